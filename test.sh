#!/usr/bin/env bash
# Run the tests in .venv, which is made if it is missing:  bash test.sh  (2 minutes)
#   bash test.sh --all    also slow ones: kills, two processes, mutants, 1 GB of text (20 minutes)
# Other arguments go to pytest:  bash test.sh tests/test_losses.py -k temperature
set -euo pipefail
cd "$(dirname "$0")"
python=.venv/bin/python
if ! $python -c "import torch, sentencepiece, pytest, scipy, matplotlib, openai, safetensors, tokenizers, jinja2, gguf; from numpy import vecdot" 2> /dev/null; then
    echo "installing requirements-dev.txt into .venv (once)"
    if ! $python --version &> /dev/null; then python3 -m venv --clear .venv; fi  # missing or broken
    if ! $python -m pip --version &> /dev/null; then python3 -m venv .venv; fi  # incomplete
    $python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
fi
exec $python -m pytest -q -rs --durations=5 "$@"
