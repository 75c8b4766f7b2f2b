"""The black box with a server of others, llama.cpp's. Its 127 MB of packages are not in requirements-dev.txt."""
import contextlib
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest

from common import ROOT
from metrics import json_lines
from runs.smollm2 import SERVER
from test_generate import read

QUESTIONS = [f"Which animal lives in {place}? Answer with one word." for place in (
    "the sea", "a forest", "the desert", "a farm", "the snow", "a city", "a lake", "a cave")]


@pytest.fixture
def llama():
    """A function: `llama(path)` starts llama.cpp's server with a GGUF, until the end of the test -> its URL."""
    if not find_spec("xllamacpp"):
        pytest.skip(".venv/bin/pip install --no-deps xllamacpp (34 MB) for this test")
    with contextlib.ExitStack() as stack:
        def start(path):
            server = stack.enter_context(subprocess.Popen([sys.executable, "-c", SERVER, path, "1"], text=True,
                                                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL))
            stack.callback(server.kill)
            return server.stdout.readline().strip()
        yield start


@pytest.mark.slow
def test_llama_cpps_answers_are_resumed_filtered_and_learned(llama, smollm2, run_script, tiny_world, out_dir):
    """Our mock server answers as we expect it; a real one ends, counts and fails in its own way."""
    prompts, answers, kept = (out_dir / f"{name}.jsonl" for name in ("prompts", "answers", "kept"))
    prompts.write_text(json_lines(dict(question=text) for text in QUESTIONS))
    ask = ["blackbox/generate.py", f"--base-url={llama(smollm2)}/v1", "--model=smollm2", f"--input={prompts}",
           f"--out={answers}", "--samples=3", "--concurrency=2", "--max-new-tokens=30"]
    raw = out_dir / "answers.jsonl.all.jsonl"
    process = subprocess.Popen([sys.executable, *ask], cwd=ROOT, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and len(read(raw)) < 7:  # a header and six answers
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9 and 7 <= len(read(raw)) < 25
    run_script(*ask)
    rows = read(raw)[1:]
    jobs = sorted((row["question"], row["sample"]) for row in rows)
    assert jobs == [(q, s) for q in range(8) for s in range(3)]
    for row in rows:
        end = dict(unverified="stop", truncated="length")[row["verdict"]]
        assert row["finish_reason"] == end and 0 < row["usage"]["completion_tokens"] <= 30
    run_script("blackbox/filter.py", "--input", answers, "--out", kept)
    replies = [json.loads(line)["conversations"][-1] for line in kept.open()]
    assert all(reply["content"] and "<|" not in reply["content"] for reply in replies)
    run_script("train_distill_responses.py", "--name=smol", "--data", kept, "--size=0.1m",
               "--tokenizer", tiny_world.tokenizer, "--steps=4")
    assert (out_dir / "smol.pt").exists()
