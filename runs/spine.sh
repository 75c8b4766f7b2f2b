#!/usr/bin/env bash
# The figures of RESULTS.md that are not the scoreboard's (runs/results.sh), one row of results/spine.jsonl a finished run. Rows that are there
# are skipped, so stop it whenever you like and start it again.
#   bash runs/spine.sh                      everything (about an hour on 2 cores)
#   ONLY=reason SEEDS=1 bash runs/spine.sh  only recipes whose name contains "reason", one seed
#   GSM8K=path/gsm8k_train.jsonl bash runs/spine.sh    the run on real word problems, too
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
out=${MINIDISTILL_OUT:-out}
rows=results/spine.jsonl
seeds=${SEEDS:-1 2 3 4}
mkdir -p results

wanted() { case "$1" in *"${ONLY:-}"*) return 0 ;; *) return 1 ;; esac; }
done_already() { grep -qsF "{\"recipe\": \"$1\", \"seed\": $2," $rows; }

# run RECIPE SEED TEST SCRIPT FLAGS...: train one model, score it on TEST, append its row, unless there
run() {
    local recipe=$1 seed=$2 test=$3; shift 3
    local name=${recipe//\//-}-$seed
    if ! wanted "$recipe" || done_already "$recipe" "$seed"; then return 0; fi
    echo "== $recipe, seed $seed"
    $python "$@" --name "$name" --seed "$seed"
    score "$recipe" "$seed" "$test" "$name"
}

# score RECIPE SEED TEST NAME: evaluate out/NAME.pt and append its row, unless it is there
score() {
    if ! wanted "$1" || done_already "$1" "$2"; then return 0; fi
    $python eval.py "$out/$4.pt" --teacher "$teacher" --data "$3" --out "$out/$4" --speed false \
        --row $rows --recipe "$1" ${eval_flags:-}
}

# --- stories: the speedrun's data, tokenizer and teacher
stories=$out/data/stories
if [ ! -e "$out/teacher.pt" ]; then echo "first: bash speedrun.sh" >&2; exit 2; fi
teacher=$out/teacher.pt
score stories/teacher 0 "$stories/test.jsonl" teacher

# Trials, all on a seed that is not reported, scored on validation data: as many on either side.
few="--documents 1200 --eval-every 50 --steps 800"  # 3 % of 40,000
trial() { local recipe=$1; shift; run "trial/stories/$recipe" 9 "$stories/val.jsonl" "$@" $few; }
alone="train_pretrain.py --size 0.4m"
trial alone/lr-6e-3          $alone --lr 6e-3
trial alone/lr-3e-3          $alone --lr 3e-3
trial alone/lr-1e-2          $alone --lr 1e-2
trial alone/lr-6e-3-decay-.3 $alone --lr 6e-3 --weight-decay 0.3
trial alone/lr-1e-2-decay-.3 $alone --lr 1e-2 --weight-decay 0.3
trial alone/lr-1.5e-2        $alone --lr 1.5e-2
trial logits/alpha-.9        train_distill_logits.py --lr 6e-3 --temperature 1
trial logits/alpha-.5        train_distill_logits.py --lr 6e-3 --alpha 0.5 --temperature 1
trial logits/alpha-1         train_distill_logits.py --lr 6e-3 --alpha 1 --temperature 1
trial logits/alpha-1-tau-2   train_distill_logits.py --lr 6e-3 --alpha 1 --temperature 2
trial logits/alpha-1-tau-2-lr-1e-2  train_distill_logits.py --lr 1e-2 --alpha 1 --temperature 2
trial logits/alpha-1-tau-4-lr-1e-2  train_distill_logits.py --lr 1e-2 --alpha 1 --temperature 4
for lr in 6e-3 1e-2; do
    for kind in cot answer; do
        run trial/stories/$kind/lr-$lr 9 "$stories/val.jsonl" train_distill_reason.py --target $kind --lr $lr
    done
done

# Budgets. N steps without a teacher; N with one (equal tokens); as many as take the same time
# (equal wall-clock): N / ratio of the lines "plain" and "no teacher" of `python bench.py`, 1.55.
N=800; wall=516
for seed in $seeds; do
    flags="--lr 1e-2 --eval-every 50"
    run stories/all/alone $seed "$stories/test.jsonl" $alone $flags --steps $N
    for kind in "logits $N" "logits-wall $wall"; do
        set -- $kind
        run stories/all/$1 $seed "$stories/test.jsonl" train_distill_logits.py $flags \
            --alpha 1 --temperature 2 --steps $2
    done
    # chains of thought against bare answers: the same questions, tokens and initialisation
    run stories/reason/cot $seed "$stories/test.jsonl" train_distill_reason.py
    run stories/reason/answer $seed "$stories/test.jsonl" train_distill_reason.py --target answer
    # control: as many documents with the generator's own steps, which the teacher nearly always writes
    run stories/reason/gold $seed "$stories/test.jsonl" train_distill_reason.py \
        --data "$stories/train.jsonl" --val "$stories/val.jsonl" --documents 7756
done

# --- Chinese stories: a teacher, its traces, a student
zh=$out/data/stories-zh
if wanted stories-zh/teacher || wanted stories-zh/cot || wanted stories-zh/answer; then
    if [ ! -e "$zh/about.json" ]; then $python dataset/stories.py --lang zh --out "$zh"; fi
    if [ ! -e "$out/zh.model" ]; then
        $python tokenizer/train.py "$zh/train.jsonl" --vocab-size 2048 --out "$out/zh.model"
    fi
    teacher=$out/stories-zh-teacher-0.pt
    files="--val $zh/val.jsonl --tokenizer $out/zh.model"
    run stories-zh/teacher 0 "$zh/test.jsonl" train_pretrain.py --data "$zh/train.jsonl" $files
    $python dataset/generate.py --teacher "$teacher" --input "$zh/distill.jsonl" \
        --out "$out/data/traces-zh.jsonl"
    for kind in cot answer; do
        run stories-zh/$kind 0 "$zh/test.jsonl" train_distill_reason.py \
            --data "$out/data/traces-zh.jsonl" $files --target $kind
    done
fi

# --- GSM8K: reasoning distillation from worked solutions; a tenth validates, a tenth is held out
if [ -n "${GSM8K:-}" ]; then
    gsm=$out/data/gsm8k
    mkdir -p "$gsm"
    awk 'NR % 10 >= 2' "$GSM8K" > "$gsm/train.jsonl"
    awk 'NR % 10 == 1' "$GSM8K" > "$gsm/val.jsonl"
    awk 'NR % 10 == 0' "$GSM8K" > "$gsm/heldout.jsonl"
    if [ ! -e "$out/gsm8k.model" ]; then
        $python tokenizer/train.py "$gsm/train.jsonl" --vocab-size 2048 --out "$out/gsm8k.model"
    fi
    files="--data $gsm/train.jsonl --val $gsm/val.jsonl --tokenizer $out/gsm8k.model --eval-windows 0"
    eval_flags="--max-new-tokens 256"
    for kind in cot answer; do
        teacher=$out/gsm8k-$kind-0.pt
        run gsm8k/$kind 0 "$gsm/heldout.jsonl" train_distill_reason.py $files --target $kind \
            --size 0.9m --window 512 --context 768 --lr 4e-3 --steps 600
    done
fi
if [ -z "${ONLY:-}" ]; then $python runs/render.py; fi
