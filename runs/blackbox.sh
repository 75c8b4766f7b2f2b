#!/usr/bin/env bash
# Black box from start to end: a teacher behind HTTP, a filter, students that never read its file.
#   bash runs/blackbox.sh    4 minutes on 2 cores, after bash speedrun.sh; writes out/blackbox.md
# Stopped? Run the same command again: it continues. PORT=8123 sets the teacher server's port.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python out=${MINIDISTILL_OUT:-out} port=${PORT:-8123}
stories=$out/data/stories asked=$out/data/blackbox-prompts.jsonl
answers=$out/data/blackbox.jsonl kept=$out/data/blackbox-filtered.jsonl
if [ ! -e "$out/teacher.pt" ]; then echo "error: run bash speedrun.sh first" >&2; exit 2; fi

# the teacher runs in another process and gives only text, on loopback
$python serve.py "$out/teacher.pt" --port "$port" > "$out/serve.txt" & server=$!
trap 'kill $server 2> /dev/null' EXIT
until grep -q ^ready: "$out/serve.txt"; do kill -0 $server 2> /dev/null || exit 1; sleep 0.5; done

# make prompts, ask the teacher, filter its answers
$python blackbox/prompts.py --input "$stories/distill.jsonl" --out "$asked"
$python blackbox/generate.py --base-url "http://127.0.0.1:$port/v1" --model teacher \
    --input "$asked" --questions 4000 --out "$answers"
kill $server; trap - EXIT
$python blackbox/filter.py --input "$answers" --out "$kept" \
    --against "$stories/val.jsonl,$stories/test.jsonl"

# three students of the same rows: bare answers, full replies, chains of thought
train="--data $kept --val $stories/val.jsonl --steps 800"
$python train_distill_responses.py $train --target answer --name blackbox-answer
$python train_distill_responses.py $train --name blackbox-full
$python train_distill_reason.py $train --name blackbox-reason
$python eval.py "$out"/{teacher,blackbox-answer,blackbox-full,blackbox-reason}.pt \
    --out "$out/blackbox"
