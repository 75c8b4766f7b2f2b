#!/usr/bin/env bash
# Temperature times alpha, on 3 % of the stories: a row of results/sweep.jsonl a cell, on validation data.
#   bash runs/sweep.sh         about 25 minutes on 2 cores, after bash speedrun.sh
# Rows that are there are skipped. (alpha 0 would be the student without a teacher.)
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
out=${MINIDISTILL_OUT:-out}
rows=results/sweep.jsonl
if [ ! -e "$out/teacher.pt" ]; then echo "first: bash speedrun.sh" >&2; exit 2; fi
for alpha in 0.5 0.9 1; do
    for tau in 1 2 4 8; do
        name=sweep-alpha-$alpha-tau-$tau
        if grep -qsF "{\"recipe\": \"$name\"," $rows; then continue; fi
        $python train_distill_logits.py --name $name --alpha $alpha --temperature $tau \
            --documents 1200 --steps 800 --eval-every 50 --seed 9
        $python eval.py "$out/$name.pt" --teacher "$out/teacher.pt" --data "$out/data/stories/val.jsonl" \
            --speed false --out "$out/$name" --row $rows --recipe $name
    done
done
