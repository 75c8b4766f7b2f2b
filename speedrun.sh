#!/usr/bin/env bash
# Make everything on two CPU cores: data, tokenizer, teacher, students, scoreboard.
#   bash speedrun.sh           at most 15 minutes, no GPU, no network after the installation
#   bash speedrun.sh --fast    the same in 3 minutes, in out/fast; too short to compare the students
#   bash speedrun.sh --lang zh     in Chinese, in out/zh (with --fast: in out/zh/fast)
# Stopped? Run the same command again. It continues, because every step skips what is finished.
# You may install another PyTorch build in .venv first, for example the CPU build on Linux.
set -euo pipefail
cd "$(dirname "$0")"

fast="" lang=en out=${MINIDISTILL_OUT:-out} pieces=1024
while [ $# -gt 0 ]; do
    case "$1 ${2:-}" in
        "--fast "*) fast=/fast; shift ;;
        "--lang zh") lang=zh out=$out/zh pieces=2048; shift 2 ;;
        *) echo "error: got $*; expected --fast, --lang zh, or nothing" >&2; exit 2 ;;
    esac
done
export MINIDISTILL_OUT=$out$fast

# a virtual environment with Python 3.10 or newer
python=.venv/bin/python
if ! $python -c "import torch, sentencepiece; from numpy import vecdot" 2> /dev/null; then
    echo "installing torch, numpy and sentencepiece into .venv (once)"
    if ! $python --version &> /dev/null; then python3 -m venv --clear .venv; fi  # missing or broken
    if ! $python -m pip --version &> /dev/null; then python3 -m venv .venv; fi  # incomplete
    $python -m pip install --quiet --disable-pip-version-check -r requirements.txt
fi

# stage SECONDS COMMAND...: run it; print the command, the expected seconds and the real ones
began=$SECONDS
stage() {
    local expected=$1 start=$SECONDS; shift
    printf '\n$ python %s\n  (about %s s)\n' "$*" "$expected"
    $python "$@"
    printf '  took %s s, %s s so far\n' $((SECONDS - start)) $((SECONDS - began))
}

# The first two students get the labels of a few stories. The others get no labels.
if [ -n "$fast" ]; then
    few="--documents 600"
    stage   2 dataset/stories.py --lang $lang --ops 1-2 --train 12000 --distill 2000
    stage   3 tokenizer/train.py --vocab-size $((pieces * 3 / 4))
    stage  50 train_pretrain.py --name teacher --size 0.9m --steps 300 --lr 6e-3
    small="--size 0.2m --steps 200 --lr 8e-3"
    stage  15 train_pretrain.py --name student-alone $small $few
    stage  30 train_distill_logits.py --name student-logits $small $few
    stage  10 blackbox/generate.py
    stage  15 train_distill_reason.py --name student-reason $small
    stage  15 train_distill_reason.py --name student-answer $small --target answer
    questions=300
else
    few="--documents 1200 --eval-every 50"
    stage   6 dataset/stories.py --lang $lang --ops 1-4
    stage   5 tokenizer/train.py --vocab-size $pieces
    stage 230 train_pretrain.py
    stage 100 train_pretrain.py --name student-alone --size 0.4m --lr 1e-2 --steps 800 $few
    stage 210 train_distill_logits.py $few
    stage  60 blackbox/generate.py
    stage 100 train_distill_reason.py
    stage 100 train_distill_reason.py --name student-answer --target answer
    questions=1000
fi
stage 40 eval.py "$MINIDISTILL_OUT"/{teacher,student-alone,student-logits,student-reason,student-answer}.pt \
    --questions $questions --out "$MINIDISTILL_OUT/report"
printf '\nThe scoreboard and five questions with all answers: %s/report.md\n' "$MINIDISTILL_OUT"
