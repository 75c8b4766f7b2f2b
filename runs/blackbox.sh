#!/usr/bin/env bash
# Black box, end to end: a teacher behind HTTP, its answers filtered, students that never saw its file.
#   bash runs/blackbox.sh      4 minutes on 2 cores, after bash speedrun.sh; results in out/blackbox.md
# Stopped? The same command goes on where it was. PORT=8123 names the port of the teacher's server.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python out=${MINIDISTILL_OUT:-out} port=${PORT:-8123}
stories=$out/data/stories asked=$out/data/blackbox-prompts.jsonl
answers=$out/data/blackbox.jsonl kept=$out/data/blackbox-filtered.jsonl
if [ ! -e "$out/teacher.pt" ]; then echo "error: first: bash speedrun.sh" >&2; exit 2; fi

# the wall: another process gives the teacher's text, on loopback
$python serve.py --checkpoint "$out/teacher.pt" --port "$port" > "$out/serve.txt" & server=$!
trap 'kill $server 2> /dev/null' EXIT
until grep -q ^ready: "$out/serve.txt"; do kill -0 $server 2> /dev/null || exit 1; sleep 0.5; done

# ask, filter, look at the card
$python blackbox/prompts.py --input "$stories/distill.jsonl" --out "$asked"
$python blackbox/generate.py --base-url "http://127.0.0.1:$port/v1" --model teacher \
    --input "$asked" --questions 4000 --out "$answers"
kill $server; trap - EXIT
$python blackbox/filter.py --input "$answers" --out "$kept" \
    --against "$stories/val.jsonl,$stories/test.jsonl"

# the same rows, three lessons: bare answers, whole replies, chains of thought
train="--data $kept --val $stories/val.jsonl --steps 800"
$python train_distill_responses.py $train --target answer --name blackbox-answer
$python train_distill_responses.py $train --name blackbox-full
$python train_distill_reason.py $train --name blackbox-reason
$python eval.py "$out"/{teacher,blackbox-answer,blackbox-full,blackbox-reason}.pt \
    --out "$out/blackbox"
