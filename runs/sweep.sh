#!/usr/bin/env bash
# Temperature times alpha, on 3 % of the stories: a row of results/sweep.jsonl a cell, on validation data.
#   bash runs/sweep.sh         about 25 minutes on 2 cores, after bash speedrun.sh
# Rows that are there are skipped. (alpha 0 would be the student without a teacher.)
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/rows.sh
rows=results/sweep.jsonl group=sweep teacher=$out/teacher.pt test=$out/data/stories/val.jsonl
prepare_sweep() { need "$teacher" "bash speedrun.sh"; }
for alpha in 0.5 0.9 1; do
    for tau in 1 2 4 8; do
        run sweep-alpha-$alpha-tau-$tau 9 train_distill_logits.py --alpha $alpha --temperature $tau \
            --documents 1200 --steps 800 --eval-every 50
    done
done
