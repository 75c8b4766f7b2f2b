#!/usr/bin/env bash
# The figures of RESULTS.md that are no other script's here, one row of results/spine.jsonl a finished run.
#   bash runs/spine.sh                      everything (about an hour on 2 cores), after bash speedrun.sh
#   SEEDS=1 ONLY="*reason*" bash runs/spine.sh    some of the seeds, the recipes that fit a pattern
#   GSM8K=path/gsm8k_train.jsonl bash runs/spine.sh    the run on real word problems, too
# Rows that are there are skipped, so stop it whenever you like and start it again.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/rows.sh
rows=results/spine.jsonl

# --- stories: the speedrun's data, tokenizer and teacher
group=stories stories=$out/data/stories teacher=$out/teacher.pt
test=$stories/test.jsonl val=$stories/val.jsonl
prepare_stories() { need "$teacher" "bash speedrun.sh"; }
if missing stories/teacher 0; then prepare_stories; score stories/teacher 0 "$teacher"; fi

# as many trials on either side
few="--documents 1200 --eval-every 50 --steps 800"  # 3 % of 40,000
alone="train_pretrain.py --size 0.4m" logits="train_distill_logits.py"
trial alone/lr-6e-3          $alone $few --lr 6e-3
trial alone/lr-3e-3          $alone $few --lr 3e-3
trial alone/lr-1e-2          $alone $few --lr 1e-2
trial alone/lr-6e-3-decay-.3 $alone $few --lr 6e-3 --weight-decay 0.3
trial alone/lr-1e-2-decay-.3 $alone $few --lr 1e-2 --weight-decay 0.3
trial alone/lr-1.5e-2        $alone $few --lr 1.5e-2
trial logits/alpha-.9        $logits $few --lr 6e-3 --temperature 1
trial logits/alpha-.5        $logits $few --lr 6e-3 --alpha 0.5 --temperature 1
trial logits/alpha-1         $logits $few --lr 6e-3 --alpha 1 --temperature 1
trial logits/alpha-1-tau-2   $logits $few --lr 6e-3 --alpha 1 --temperature 2
trial logits/alpha-1-tau-2-lr-1e-2  $logits $few --lr 1e-2 --alpha 1 --temperature 2
trial logits/alpha-1-tau-4-lr-1e-2  $logits $few --lr 1e-2 --alpha 1 --temperature 4
for lr in 6e-3 1e-2; do
    for kind in cot answer; do trial $kind/lr-$lr train_distill_reason.py --target $kind --lr $lr; done
done

# Budgets. 800 steps without a teacher; 800 with one (equal tokens); as many as take the same time
# (equal wall-clock): 800 / ratio of the lines "plain" and "no teacher" of `python runs/bench.py`, 1.55.
flags="--lr 1e-2 --eval-every 50"
for seed in ${SEEDS:-1 2 3}; do
    run stories/all/alone $seed $alone $flags --steps 800
    run stories/all/logits $seed $logits $flags --alpha 1 --temperature 2 --steps 800
    run stories/all/logits-wall $seed $logits $flags --alpha 1 --temperature 2 --steps 516
    # chains of thought against bare answers: the same questions, tokens and initialisation
    run stories/reason/cot $seed train_distill_reason.py
    run stories/reason/answer $seed train_distill_reason.py --target answer
    # control: as many documents with the generator's own steps, which the teacher nearly always writes
    run stories/reason/gold $seed train_distill_reason.py --data "$stories/train.jsonl" --val "$val" --documents 7756
done

# --- Chinese stories: a teacher, its traces, a student
group=zh zh=$out/data/stories-zh teacher=$out/stories-zh-teacher-0.pt
test=$zh/test.jsonl files="--val $zh/val.jsonl --tokenizer $out/zh.model"
pretrain="train_pretrain.py --data $zh/train.jsonl $files"
prepare_zh() {
    if [ ! -e "$zh/about.json" ]; then $python dataset/stories.py --lang zh --out "$zh"; fi
    if [ ! -e "$out/zh.model" ]; then
        $python tokenizer/train.py "$zh/train.jsonl" --vocab-size 2048 --out "$out/zh.model"
    fi
    $python $pretrain --name stories-zh-teacher-0 --seed 0
    $python blackbox/generate.py --teacher "$teacher" --input "$zh/distill.jsonl" --out "$out/data/traces-zh.jsonl"
}
run stories-zh/teacher 0 $pretrain
for kind in cot answer; do
    run stories-zh/$kind 0 train_distill_reason.py --data "$out/data/traces-zh.jsonl" $files --target $kind
done

# --- GSM8K: reasoning distillation from worked solutions; a tenth validates, a tenth is held out
group=gsm8k gsm=$out/data/gsm8k test=$out/data/gsm8k/heldout.jsonl eval_flags="--max-new-tokens 256"
prepare_gsm8k() {
    mkdir -p "$gsm"
    awk 'NR % 10 >= 2' "$GSM8K" > "$gsm/train.jsonl"
    awk 'NR % 10 == 1' "$GSM8K" > "$gsm/val.jsonl"
    awk 'NR % 10 == 0' "$GSM8K" > "$test"
    if [ ! -e "$out/gsm8k.model" ]; then
        $python tokenizer/train.py "$gsm/train.jsonl" --vocab-size 2048 --out "$out/gsm8k.model"
    fi
}
if [ -n "${GSM8K:-}" ]; then
    for kind in cot answer; do
        teacher=$out/gsm8k-$kind-0.pt
        run gsm8k/$kind 0 train_distill_reason.py --data "$gsm/train.jsonl" --val "$gsm/val.jsonl" \
            --tokenizer "$out/gsm8k.model" --eval-windows 0 --target $kind \
            --size 0.9m --window 512 --context 768 --lr 4e-3 --steps 600
    done
fi
if [ -z "${ONLY:-}" ]; then $python runs/render.py; fi
