"""Measure speed and memory of checkpoints: the last columns of eval.py.

Each model has a process with its own memory. They take turns: a slow moment affects all of them.
"""
import multiprocessing
import re
import resource
import sys
import time
from collections import defaultdict
from itertools import takewhile
from pathlib import Path
from statistics import median

import torch

import checkpoints
from common import progress
from dataset.verify import prompt_ids
from decoding import decode_steps


def timed(steps):
    """Seconds for all steps of decode_steps. Each token is read, so a GPU must finish it first."""
    began = time.perf_counter()
    for token in steps:
        token.tolist()
    return time.perf_counter() - began


@torch.inference_mode()
def worker(pipe, path, questions, device):
    """One process, one model: measure in each round, send the medians so far (tokens/s, ms, MB)."""
    model, tokenizer, _ = checkpoints.load_model(path, device)
    context, prompts = model.config.max_seq_len, [prompt_ids(tokenizer, q) for q in questions]
    new_tokens = min(64, context - 8)
    while True:
        if pipe.recv() < 2:  # round 0 is a warm-up
            values = defaultdict(list)
        for batch in [1] * 5 + [32]:  # batch 1 five times: it takes only milliseconds
            ids = torch.randint(10, model.config.vocab_size, (batch, context // 2)).tolist()
            if batch == 1:
                values["first_ms"].append(1000 * timed(decode_steps(model, ids, 1)))
            taken = timed(decode_steps(model, [row[:8] for row in ids], new_tokens))
            values[f"decode{batch}"].append(batch * new_tokens / taken)
        for prompt in (prompt for prompt in prompts if len(prompt) < context):
            answer = takewhile(lambda token: token.item() not in tokenizer.stop_ids,
                               decode_steps(model, [prompt], 160))
            values["p50_ms"].append(1000 * timed(answer))
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        values["peak_mb"] = [peak / 1e6]
        pipe.send({name: median(some) for name, some in values.items()})


def peak_memory():
    """Peak memory of this process in bytes. Not ru_maxrss on Linux, where a child inherits it."""
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def measure(paths, questions, device=torch.device("cpu"), rounds=5):
    """Paths of checkpoints -> one dict of medians for each; {} if its process died.
    questions: conversations, answered one by one to measure the time of a whole answer."""
    context, found = multiprocessing.get_context("spawn"), [{} for _ in paths]
    pipes = [context.Pipe() for _ in paths]
    for path, (_, theirs) in zip(paths, pipes):
        context.Process(target=worker, args=(theirs, path, questions, device), daemon=True).start()
        theirs.close()
    for number in progress("rounds of speed:", range(rounds + 1)):
        for place, (pipe, _) in enumerate(pipes):
            time.sleep(0.1)  # idle threads of the last process still use the CPU
            try:
                pipe.send(number)
                found[place] = pipe.recv()
            except (EOFError, OSError):
                found[place] = {}
    for process in multiprocessing.active_children():
        process.kill()
    return found
