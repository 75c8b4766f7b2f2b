"""Speed and memory of checkpoints, the last table of eval.py.

Each model lives in a process of its own, so its memory is its own. The processes take turns, one
measurement at a time, so a machine that slows down slows all models. Read the ratios: they repeat
within some percent. The absolute numbers are this machine's.
"""
import multiprocessing
import re
import resource
import statistics
import sys
import time
from itertools import takewhile
from pathlib import Path

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
def one_round(model, tokenizer, prompts, new_tokens, generator):
    """One measurement of everything -> {name: [values]}."""
    room, found = model.config.max_seq_len, {}
    length = room // 2
    new_tokens = min(new_tokens, room - min(8, length))
    for batch, repeats in ((1, 5), (32, 1)):  # a single row takes only milliseconds
        ids = torch.randint(10, model.config.vocab_size, (batch, length), generator=generator)
        long, short = ids.tolist(), ids[:, :8].tolist()
        first = [timed(decode_steps(model, long, 1)) for _ in range(repeats)]
        taken = [timed(decode_steps(model, short, new_tokens)) for _ in range(repeats)]
        found[f"prefill{batch}"] = [batch * length / seconds for seconds in first]
        found[f"decode{batch}"] = [batch * new_tokens / seconds for seconds in taken]
        found.setdefault("first_ms", [1000 * seconds for seconds in first])  # of batch 1
    found["answer_ms"] = [
        1000 * timed(takewhile(lambda token: token.item() != tokenizer.end,
                               decode_steps(model, [prompt], 160))) for prompt in prompts]
    return found


def worker(pipe, path, questions, device, new_tokens):
    """A process with one model: measures whenever it is told to, until its parent ends, and sends
    the medians so far."""
    model, tokenizer, _ = checkpoints.load_model(path, device)
    prompts = [prompt_ids(tokenizer, turns) for turns in questions]
    prompts = [prompt for prompt in prompts if len(prompt) < model.config.max_seq_len]
    generator, rounds = torch.Generator().manual_seed(0), []
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    while pipe.recv():
        rounds.append(one_round(model, tokenizer, prompts, new_tokens, generator))
        counted = rounds[1:] or rounds  # the first is a warm-up
        values = {name: sum((one[name] for one in counted), []) for name in rounds[0]}
        answers = sorted(values.pop("answer_ms"))
        found = {name: statistics.median(some) for name, some in values.items()}
        if answers:
            found |= dict(p50_ms=answers[len(answers) // 2],
                          p95_ms=answers[len(answers) * 95 // 100])
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
        pipe.send(found | dict(weights_mb=size / 1e6, peak_mb=peak / 1e6))


def peak_memory():
    """Largest resident memory of this process in bytes. On Linux a child inherits ru_maxrss."""
    if Path("/proc/self/status").exists():
        return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(paths, questions, device=torch.device("cpu"), rounds=5, new_tokens=64):
    """Checkpoints -> a dict of medians over the rounds each; {} if its process died.

    questions: conversations that are answered one by one, for the latency of an answer.
    """
    context, workers, found = multiprocessing.get_context("spawn"), [], [{} for _ in paths]
    for path in paths:
        ours, theirs = context.Pipe()
        workers.append((ours, context.Process(
            target=worker, daemon=True, args=(theirs, path, questions, device, new_tokens))))
        workers[-1][1].start()
        theirs.close()
    for _ in range(rounds + 1):
        for number, (pipe, _) in enumerate(workers):
            time.sleep(0.1)  # until the last one's threads no longer spin while they wait for work
            try:
                pipe.send(True)
                found[number] = pipe.recv()
            except (EOFError, OSError):
                found[number] = {}
    for _, process in workers:
        process.kill()
    return found
