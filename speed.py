"""Speed and memory of checkpoints, the last table of eval.py.

Each model lives in a process of its own, so its memory is its own. The processes take turns, so a
machine that slows down slows all models. Read the ratios: they repeat within some percent.
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
from dataset.formats import prompt_ids
from decoding import decode_steps


def timed(steps):
    """Seconds that some decode_steps take; each token is read, so a GPU has finished."""
    began = time.perf_counter()
    for token in steps:
        token.tolist()
    return time.perf_counter() - began


@torch.inference_mode()
def one_round(model, tokenizer, prompts, new_tokens, values):
    """Measure everything once. values: {name: [value]}, which grows."""
    half = model.config.max_seq_len // 2
    new_tokens = min(new_tokens, 2 * half - min(8, half))
    for batch, repeats in ((1, 5), (32, 1)):  # a single row takes only milliseconds
        ids = torch.randint(10, model.config.vocab_size, (batch, half)).tolist()
        for _ in range(repeats):
            first = timed(decode_steps(model, ids, 1))
            taken = timed(decode_steps(model, [row[:8] for row in ids], new_tokens))
            values[f"prefill{batch}"].append(batch * half / first)
            values[f"decode{batch}"].append(batch * new_tokens / taken)
            if batch == 1:
                values["first_ms"].append(1000 * first)
    for prompt in prompts:
        answer = takewhile(lambda token: token.item() != tokenizer.end,
                           decode_steps(model, [prompt], 160))
        values["p50_ms"].append(1000 * timed(answer))


def worker(pipe, path, questions, device, new_tokens):
    """A process with one model: measures in each round and sends the medians so far."""
    model, tokenizer, _ = checkpoints.load_model(path, device)
    prompts = [prompt_ids(tokenizer, turns) for turns in questions]
    prompts = [prompt for prompt in prompts if len(prompt) < model.config.max_seq_len]
    while True:
        if pipe.recv() < 2:  # round 0 is a warm-up
            values = defaultdict(list)
        one_round(model, tokenizer, prompts, new_tokens, values)
        found = {name: median(some) for name, some in values.items()}
        if prompts:
            found["p95_ms"] = sorted(values["p50_ms"])[len(values["p50_ms"]) * 95 // 100]
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        pipe.send(found | dict(peak_mb=peak / 1e6))


def peak_memory():
    """Largest resident memory of this process in bytes. On Linux a child inherits ru_maxrss."""
    if Path("/proc/self/status").exists():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def measure(paths, questions, device=torch.device("cpu"), rounds=5, new_tokens=64):
    """Checkpoints -> a dict of medians over the rounds each; {} if its process died.

    questions: conversations that are answered one by one, for the latency of an answer.
    """
    context, pipes, found = multiprocessing.get_context("spawn"), [], [{} for _ in paths]
    for path in paths:
        ours, theirs = context.Pipe()
        pipes.append(ours)
        context.Process(target=worker, args=(theirs, path, questions, device, new_tokens),
                        daemon=True).start()
        theirs.close()
    for number in range(rounds + 1):
        for place, pipe in enumerate(pipes):
            time.sleep(0.1)  # until the last one's threads no longer spin while they wait for work
            try:
                pipe.send(number)
                found[place] = pipe.recv()
            except (EOFError, OSError):
                found[place] = {}
    for process in multiprocessing.active_children():
        process.kill()
    return found
