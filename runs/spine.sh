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
    $python eval.py "$out/$name.pt" --teacher "${teacher:-$out/teacher.pt}" --data "$test" \
        --out "$out/$name" --speed false --row $rows --recipe "$recipe" ${eval_flags:-}
}

# --- stories: the speedrun's data, tokenizer and teacher
stories=$out/data/stories
if [ ! -e "$out/teacher.pt" ]; then echo "first: bash speedrun.sh" >&2; exit 2; fi
teacher=$out/teacher.pt
run stories/teacher 0 "$stories/test.jsonl" train_pretrain.py

# Budgets. N steps without a teacher; N with one (equal tokens); N / ratio with one (equal wall-clock:
# `python bench.py`, rows "plain" and "no teacher").
N=300; wall=130
few=1200  # documents: 3 % of 40,000
for seed in $seeds; do
    for documents in 0 $few; do
        part=all; [ $documents = 0 ] || part=3%
        flags="--size 0.4m --documents $documents --eval-every 20"
        run stories/$part/alone $seed "$stories/test.jsonl" train_pretrain.py $flags --steps $N --lr 6e-3
        run stories/$part/logits $seed "$stories/test.jsonl" \
            train_distill_logits.py $flags --steps $N --lr 6e-3
        run stories/$part/logits-wall $seed "$stories/test.jsonl" \
            train_distill_logits.py $flags --steps $wall --lr 6e-3
    done
    # chains of thought against bare answers: the same questions, tokens and initialisation
    run stories/reason/cot $seed "$stories/test.jsonl" train_distill_reason.py --steps $N --lr 6e-3
    eval_flags="--target answer"
    run stories/reason/answer $seed "$stories/test.jsonl" \
        train_distill_reason.py --steps $N --lr 6e-3 --target answer
    eval_flags=""
done
