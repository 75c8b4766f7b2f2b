"""Speed and cost of checkpoints: tokens/s, latency, memory. eval.py's last table; also a script.

    python speed.py out/teacher.pt out/student-reason.pt       about half a minute for two models

Each model lives in a process of its own (its memory is its own) and they take turns, one
measurement at a time, so that a machine that slows down slows all of them. The first turn is a
warm-up. Read the ratios: they repeat within some percent, the absolute numbers are this machine's.

    prefill 1, 32    prompt tokens read a second, batch 1 and 32
    decode 1, 32     tokens written a second, all rows together
    first token      ms from a prompt of half the context to the first token
    answer p50, p95  ms of a whole greedy answer to a real question, batch 1
    MB of weights, MB peak   float32; resident memory of the process (or of the GPU) at its largest
"""
import multiprocessing
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoints
import cli
import oldcommon as common
import rowfile
from cli import OUT, label
from dataset.formats import prompt_ids, read_documents
from decoding import decode_steps, generate
from report import speed_table

BATCHES = (1, 32)


@dataclass
class Config:
    checkpoints: list = None       # the models, as words without a flag; none: out/teacher.pt
    data: str = OUT / "data/stories/test.jsonl"  # real questions for the latency of an answer
    questions: int = 20            # how many of them (20 to 200)
    rounds: int = 5                # turns a model (3 to 20), beside the warm-up
    new_tokens: int = 64           # tokens of a decode measurement
    seed: int = 0                  # of the random prompts
    row: str = ""                  # append a row for each checkpoint to this .jsonl
    recipe: str = "speed"          # the rows are called RECIPE/1, RECIPE/2, ... in their order


def timed(function):
    """Seconds of one call; its tokens are read, so a GPU has finished."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@torch.inference_mode()
def one_turn(model, tokenizer, prompts, new_tokens, generator):
    """One measurement of everything -> {name: [values]}."""
    length = max(model.config.max_seq_len // 2, 1)
    new_tokens = min(new_tokens, model.config.max_seq_len - min(8, length))
    found = {}
    for batch in BATCHES:
        ids = torch.randint(10, model.config.vocab_size, (batch, length), generator=generator)
        ids = ids.tolist()
        short, repeats = [row[:8] for row in ids], 5 if batch == 1 else 1  # one row takes only ms
        first = [timed(lambda: [t.tolist() for t in decode_steps(model, ids, 1)])
                 for _ in range(repeats)]
        taken = [timed(lambda: [t.tolist() for t in decode_steps(model, short, new_tokens)])
                 for _ in range(repeats)]
        found |= {f"prefill{batch}": [batch * length / t for t in first],
                  f"decode{batch}": [batch * new_tokens / t for t in taken]}
        if batch == 1:
            found["first_ms"] = [1000 * t for t in first]
    answer = [timed(lambda: generate(model, [p], 160, {tokenizer.end})) for p in prompts]
    return found | {"answer_ms": [1000 * seconds for seconds in answer]}


def worker(path, questions, new_tokens, seed, pipe):
    """A process with one model: measures when told to, until told to stop."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(path, device)
    prompts = [prompt_ids(tokenizer, turns) for turns in questions]
    prompts = [p for p in prompts if len(p) < model.config.max_seq_len]
    generator = torch.Generator().manual_seed(seed)
    while pipe.recv():
        pipe.send(one_turn(model, tokenizer, prompts, new_tokens, generator))
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_memory()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    pipe.send(dict(weights_mb=size / 1e6, peak_mb=peak / 1e6))


def peak_memory():
    """Largest resident memory of this process in bytes; 0 where the system does not say.

    Not ru_maxrss where there is another way: on Linux a child inherits its parent's.
    """
    if Path("/proc/self/status").exists():
        return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(paths, questions, rounds=5, new_tokens=64, seed=0):
    """Checkpoints -> a dict of report.SPEEDS each: medians over the turns."""
    context = multiprocessing.get_context("spawn")
    workers = []
    for path in paths:
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, daemon=True,
                                  args=(path, questions, new_tokens, seed, theirs))
        process.start()
        theirs.close()
        workers.append((process, ours))
    found = [{} for _ in paths]
    for turn in range(rounds + 1):
        for (_, pipe), values in zip(workers, found):
            time.sleep(0.1)  # until the last one's threads no longer spin while they wait for work
            pipe.send(True)
            for name, more in pipe.recv().items():
                if turn > 0:  # the first is the warm-up
                    values.setdefault(name, []).extend(more)
    results = []
    for (process, pipe), values in zip(workers, found):
        pipe.send(False)
        answers = sorted(values.pop("answer_ms"))
        result = {name: statistics.median(v) for name, v in values.items()}
        if answers:
            result |= dict(p50_ms=answers[len(answers) // 2],
                           p95_ms=answers[len(answers) * 95 // 100])
        results.append(result | pipe.recv())
        process.join()
    return results


def main(cfg):
    """Measure, print, append rows."""
    cli.check_ranges(cfg, questions=(1, 10**9), rounds=(1, 10**9), new_tokens=(1, 10**9),
                     seed=(0, 2**63 - 1))
    if cfg.row:
        rowfile.check_file(cfg.row)
    paths = cfg.checkpoints or [str(OUT / "teacher.pt")]
    for path in paths:
        checkpoints.load_model(path)  # a bad one is refused here, in one line, not in a worker
    questions = [d for _, d in read_documents(cfg.data) if not isinstance(d, str)][:cfg.questions]
    results = measure(paths, questions, cfg.rounds, cfg.new_tokens, cfg.seed)
    print(speed_table([r | {"model": Path(path).stem} for path, r in zip(paths, results)]))
    if cfg.row:
        for number, (path, result) in enumerate(zip(paths, results), 1):
            rowfile.append(cfg.row, dict(
                recipe=f"{cfg.recipe}/{number}", seed=cfg.seed, checkpoint=label(path),
                versions=common.versions(), metrics=result))


if __name__ == "__main__":
    cli.run(main, Config)
