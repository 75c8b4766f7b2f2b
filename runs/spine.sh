#!/usr/bin/env bash
# The figures of RESULTS.md: every run is one row of results/spine.jsonl; rows that are there are
# skipped, so stop it whenever you like and start it again.
#   bash runs/spine.sh                      everything (about 4 hours on 2 cores)
#   ONLY=prose SEEDS=1 bash runs/spine.sh   only recipes whose name contains "prose", one seed
#   GSM8K=path/gsm8k_train.jsonl bash runs/spine.sh    the run on real word problems, too
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
out=${MINIDISTILL_OUT:-out}
rows=results/spine.jsonl
seeds=${SEEDS:-1 2 3}
mkdir -p results

# run RECIPE SEED TEST SCRIPT FLAGS...: train one model, score it on TEST, append its row, unless there
run() {
    local recipe=$1 seed=$2 test=$3; shift 3
    local name=${recipe//\//-}-$seed
    case "$recipe" in *"${ONLY:-}"*) ;; *) return 0 ;; esac
    if grep -qsF "{\"recipe\": \"$recipe\", \"seed\": $seed," $rows; then return 0; fi
    echo "== $recipe, seed $seed"
    $python "$@" --name "$name" --seed "$seed"
    score "$recipe" "$seed" "$test" "$name"
}

# score RECIPE SEED TEST NAME: evaluate out/NAME.pt and append its row, unless it is there
score() {
    if grep -qsF "{\"recipe\": \"$1\", \"seed\": $2," $rows; then return 0; fi
    $python eval.py "$out/$4.pt" --teacher "$teacher" --data "$3" --out "$out/$4" --speed false \
        --row $rows --recipe "$1" ${eval_flags:-}
}

# --- stories: the speedrun's data, tokenizer and teacher
stories=$out/data/stories
if [ ! -e "$out/teacher.pt" ]; then echo "first: bash speedrun.sh" >&2; exit 2; fi
teacher=$out/teacher.pt
score stories/teacher 0 "$stories/test.jsonl" teacher

# Budgets. N steps without a teacher; N with one (equal tokens); N / ratio with one (equal wall-clock:
# `python bench.py`, rows "plain" and "no teacher").
N=300; wall=150; R=800
few=1200  # documents: 3 % of 40,000
for seed in $seeds; do
    for documents in 0 $few; do
        part=all; [ $documents = 0 ] || part=3%
        flags="--size 0.4m --documents $documents --lr 6e-3 --eval-every 50"
        run stories/$part/alone $seed "$stories/test.jsonl" train_pretrain.py $flags --steps $N
        run stories/$part/logits $seed "$stories/test.jsonl" train_distill_logits.py $flags --steps $N
        run stories/$part/logits-wall $seed "$stories/test.jsonl" \
            train_distill_logits.py $flags --steps $wall
    done
    # chains of thought against bare answers: the same questions, tokens and initialisation
    run stories/reason/cot $seed "$stories/test.jsonl" train_distill_reason.py --steps $R
    run stories/reason/answer $seed "$stories/test.jsonl" \
        train_distill_reason.py --steps $R --target answer
done

# --- prose: Python's own documentation; a text with entropy, where a teacher has more to say
prose=$out/data/prose
if [ ! -e "$prose/about.json" ]; then $python dataset/prose.py; fi
if [ ! -e "$out/prose.model" ]; then
    $python tokenizer/train.py "$prose/train.jsonl" --out "$out/prose.model"
fi
files="--data $prose/train.jsonl --val $prose/val.jsonl --eval-windows 0"
teacher=$out/prose-teacher-0.pt
run prose/teacher 0 "$prose/test.jsonl" train_pretrain.py $files --tokenizer "$out/prose.model" \
    --steps 900 --batch 8 --lr 3e-3 --weight-decay 0.3
N=1000; wall=440
few=533  # documents: a quarter, which is all that the students see
for seed in $seeds; do
    alone="$files --documents $few --tokenizer $out/prose.model --size 0.4m --lr 6e-3"
    logits="$files --documents $few --teacher $teacher --size 0.4m --lr 6e-3 --alpha 1"
    run prose/alone $seed "$prose/test.jsonl" train_pretrain.py $alone --steps $N
    run prose/logits $seed "$prose/test.jsonl" train_distill_logits.py $logits --steps $N
    run prose/logits-wall $seed "$prose/test.jsonl" train_distill_logits.py $logits --steps $wall
done

# --- Chinese stories: a teacher, its traces, a student
zh=$out/data/stories-zh
if [ ! -e "$zh/about.json" ]; then $python dataset/stories.py --lang zh --out "$zh"; fi
if [ ! -e "$out/zh.model" ]; then
    $python tokenizer/train.py "$zh/train.jsonl" --vocab-size 2048 --out "$out/zh.model"
fi
teacher=$out/stories-zh-teacher-0.pt
files="--val $zh/val.jsonl --tokenizer $out/zh.model"
run stories-zh/teacher 0 "$zh/test.jsonl" train_pretrain.py --data "$zh/train.jsonl" $files
if [[ stories-zh/cot == *"${ONLY:-}"* ]]; then
    $python dataset/generate.py --teacher "$teacher" --input "$zh/distill.jsonl" --samples 1 \
        --out "$out/data/traces-zh.jsonl"
fi
run stories-zh/cot 0 "$zh/test.jsonl" train_distill_reason.py --data "$out/data/traces-zh.jsonl" $files

# --- GSM8K: reasoning distillation from worked solutions; every tenth problem is held out
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
    flags="--size 0.9m --window 512 --context 768 --steps 400 --lr 4e-3"
    eval_flags="--max-new-tokens 256"
    teacher=$out/gsm8k-cot-0.pt
    run gsm8k/cot 0 "$gsm/heldout.jsonl" train_distill_reason.py $files $flags
    teacher=$out/gsm8k-answer-0.pt
    run gsm8k/answer 0 "$gsm/heldout.jsonl" train_distill_reason.py $files $flags --target answer
    eval_flags=""
fi
if [ -z "${ONLY:-}" ]; then $python runs/render.py; fi
