#!/usr/bin/env bash
# Black box, end to end: a teacher behind HTTP, its answers filtered, students that never saw its file.
#   bash runs/blackbox.sh      4 minutes on 2 cores, after bash speedrun.sh; results in out/blackbox.md
# Stopped? The same command goes on where it was. PORT=8123 names the port of the teacher's server.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/rows.sh
port=${PORT:-8123} teacher=$out/teacher.pt
need "$teacher" "bash speedrun.sh"
asked=$out/data/blackbox-prompts.jsonl answers=$out/data/blackbox.jsonl kept=$out/data/blackbox-filtered.jsonl
stories=$out/data/stories
serve

# ask, filter, look at the card
$python blackbox/prompts.py --input "$stories/distill.jsonl" --out "$asked"
$python blackbox/generate.py --base-url "http://127.0.0.1:$port/v1" --model teacher --input "$asked" \
    --questions 4000 --out "$answers"
stop_serving
$python blackbox/filter.py --input "$answers" --out "$kept" --against "$stories/val.jsonl" "$stories/test.jsonl"

# the same rows, three lessons: bare answers, whole replies, chains of thought
train="--data $kept --val $stories/val.jsonl --steps 800"
$python train_distill_responses.py $train --target answer --name blackbox-answer
$python train_distill_responses.py $train --name blackbox-full
$python train_distill_reason.py $train --name blackbox-reason
$python eval.py "$out"/{teacher,blackbox-answer,blackbox-full,blackbox-reason}.pt --out "$out/blackbox"
