#!/usr/bin/env bash
# The tests, in an environment of their own making:  bash test.sh  (2 minutes)
#   bash test.sh --all    the slow ones too: kills, two processes, the mutants, 1 GB of text (15 minutes)
# Other arguments go to pytest:  bash test.sh tests/test_losses.py -k temperature
set -euo pipefail
cd "$(dirname "$0")"
python=.venv/bin/python
if ! $python -c "import torch, sentencepiece, pytest, scipy, matplotlib, openai; from numpy import vecdot" 2> /dev/null; then
    echo "installing requirements-dev.txt into .venv (once)"
    if ! $python --version &> /dev/null; then python3 -m venv --clear .venv; fi  # none, or its Python is gone
    if ! $python -m pip --version &> /dev/null; then python3 -m venv .venv; fi  # half-made
    $python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
fi
exec $python -m pytest -q --durations=5 "$@"
