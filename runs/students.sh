#!/usr/bin/env bash
# Which student? Seven shapes on one teacher's traces, and three teachers for one student.
#   bash runs/students.sh      about 25 minutes on 2 cores, after bash speedrun.sh; writes
#                              results/students.jsonl, results/teachers.jsonl; python runs/plot.py draws them
# Models and rows that are there are not made again. The models of a table are timed side by side, in one
# call, so do not use the machine for anything else in its last minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/rows.sh
if [ -e results/students.jsonl ] && [ -e results/teachers.jsonl ]; then echo "both tables are there"; exit; fi
need "$out/data/traces.jsonl" "bash speedrun.sh"

# students: chains of thought of the same teacher, equal tokens
students=()
for size in 0.1m 0.2m 0.4m 0.4m-deep 0.4m-wide 0.9m 2m; do
    $python train_distill_reason.py --name "size-$size" --size $size
    students+=("$out/size-$size.pt")
done

# teachers: each trained alike on the same stories; the student learns from its distribution
teachers=()
for size in 0.9m 2m 5m; do
    teacher=$out/teacher-$size.pt
    if [ $size = 2m ]; then teacher=$out/teacher.pt; else
        $python train_pretrain.py --name teacher-$size --size $size
    fi
    $python train_distill_logits.py --name "taught-by-$size" --teacher "$teacher" --documents 1200 \
        --alpha 1 --temperature 2 --steps 800
    teachers+=("$teacher" "$out/taught-by-$size.pt")
done

if [ ! -e results/students.jsonl ]; then
    $python eval.py "$out/teacher.pt" "${students[@]}" --out "$out/students" --row results/students.jsonl
fi
if [ ! -e results/teachers.jsonl ]; then
    $python eval.py "${teachers[@]}" --teacher "$out/teacher-5m.pt" --out "$out/teachers" \
        --speed false --row results/teachers.jsonl
fi
