"""Speed of a training step: share of the machine's peak, and what each choice in the loop is worth.

    python runs/bench.py     on an otherwise idle machine, 2 to 5 minutes; writes out/bench.md, .json

Part 1, share of peak, in float32 and, where the hardware has it, bf16; eager and compiled.
    peak = the best of square matmuls of 1,024 to 4,096 in that dtype
    FLOPs a token, forward and backward = 6 * (matmul parameters: output head yes, lookup no)
    + 12 * layers * heads * channels * window   (Chowdhery et al. 2022, appendix B)
Part 2, ablation.  The step of train_distill_logits.py on the default stories, one factor changed at
    a time; variants take turns, so that drift hits all. Times are medians; read the ratio.
"""
import contextlib
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch

import cli
import oldcommon as common
from cli import OUT, label
from dataset import cache_teacher
from dataset.batches import open_data, tensors
from dataset.teacher_cache import cached_divergence, checksums, first_rows, open_arrays, rows_of
from losses import cross_entropy, forward_kl, total
from model import SIZES, build
from optim import make_optimizers
from report import markdown
from tokenizer import Tokenizer


@dataclass
class Config:
    teacher: Literal[tuple(SIZES)] = "2m"    # of the teacher (random weights: same speed)
    student: Literal[tuple(SIZES)] = "0.4m"  # of the student
    data: str = OUT / "data/stories/train.jsonl"  # what a step reads
    tokenizer: str = OUT / "tokenizer.model"      # made by tokenizer/train.py
    batch: int = 8                 # windows in a step
    window: int = 256              # tokens in a window
    rounds: int = 7                # turns a variant (5 to 20), beside a warm-up
    compile: bool = True           # include torch.compile, which needs a C++ compiler on CPUs
    seed: int = 0                  # of weights and batches
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # of the plain step
    out: str = OUT / "bench"       # writes OUT.md and OUT.json


def seconds(function, env):
    """Wall-clock of one call, the device's work finished."""
    began = time.perf_counter()
    function()
    if env.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def peak_flops(env, dtype):
    """Best FLOP/s of square matmuls in a dtype."""
    dtype, best = torch.bfloat16 if dtype == "bf16" else torch.float32, 0.0
    for n in (1024, 2048, 4096):
        a = torch.randn(n, n, device=env.device, dtype=dtype)
        for _ in range(5):
            best = max(best, 2 * n ** 3 / seconds(lambda: a @ a, env))
    return best


def flops_a_token(model, window):
    """Forward and backward, every token counted."""
    c = model.config
    matmul = sum(p.numel() for n, p in model.named_parameters() if p.dim() == 2 and "layers." in n)
    return 6 * (matmul + c.dim * c.vocab_size) + 12 * c.n_layers * c.n_heads * c.head_dim * window


def take_turns(variants, rounds, env):
    """{name: function} -> {name: median seconds}; one call each a round, the first not counted."""
    times = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, function in variants.items():
            if number > 1 and times[name][0] > 20:
                continue  # hopelessly slow (emulated bf16): one reading will do
            taken = seconds(function, env)
            if number > 0:
                times[name].append(taken)
    return {name: statistics.median(t) for name, t in times.items()}


def pretrain_step(model, run_model, batch, env, dtype):
    """The step of train_pretrain.py on plain text: every token counts."""
    x, y = batch[0], batch[1]
    optimizers = make_optimizers(model, "muon", 1e-3, 0.1, bf16=dtype == "bf16")

    def step():
        """One optimizer step."""
        with precision(env, dtype):
            logits = run_model(x)                          # (B, T, V)
        (cross_entropy(logits, y).sum() / y.numel()).backward()
        finish_step(model, optimizers)
    return step


def precision(env, dtype):
    """The context in which a forward pass runs in that dtype."""
    return torch.autocast(env.device.type, torch.bfloat16) if dtype == "bf16" \
        else contextlib.nullcontext()


def logits_step(student, teacher, batch, env, dtype, optimizers, keep_counted=True,
                teacher_term=True, cache=None, numbers=None):
    """The step of train_distill_logits.py; cache: of these windows."""
    x, y, document, weight = batch
    keep = weight > 0 if keep_counted else torch.ones_like(weight, dtype=torch.bool)

    def step():
        """One optimizer step."""
        w = weight[keep]
        with precision(env, dtype):
            logits = student(x, document, keep)            # (N, V)
        values = cross_entropy(logits, y[keep])
        if cache is not None:
            rows = rows_of(cache, numbers)
            kd = cached_divergence(cache, rows, "forward_kl", logits, None)
            total(rows["label_ce"], w).item()
            values = 0.1 * values + 0.9 * kd
        elif teacher_term:
            with torch.no_grad(), precision(env, dtype):
                teacher_logits = teacher(x, document, keep)
            teacher_ce = cross_entropy(teacher_logits, y[keep])  # for the log
            values = 0.1 * values + 0.9 * forward_kl(logits, teacher_logits, 2.0)
            total(teacher_ce, w).item()
        (total(values, w) / w.sum()).backward()
        finish_step(student, optimizers)
    return step


def finish_step(model, optimizers):
    """Clip, step, clear: part of every step's time."""
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def padded_batch(batch):
    """The documents of packed windows, one a row, padded to the longest: what packing saves."""
    rows = []
    for window in zip(*batch):
        ids, targets, document, weight = window
        for number in document[document > 0].unique():
            at = document == number
            rows.append((ids[at], targets[at], document[at], weight[at]))
    pad = torch.nn.utils.rnn.pad_sequence
    x, y, _, weight = (pad(column, batch_first=True) for column in zip(*rows))
    return [x, y, None, weight]  # one document a row: plain causal attention, no mask


def share_of_peak(cfg, env, batch, vocab_size):
    """Part 1 -> a row a model, dtype and way to run it: ms a step, tokens/s, share of peak."""
    dtypes = ["float32", "bf16"] if common.fast_bf16(env.device) else ["float32"]
    peaks = {dtype: peak_flops(env, dtype) for dtype in dtypes}
    models = {name: build(size, vocab_size).to(env.device)
              for name, size in (("teacher", cfg.teacher), ("student", cfg.student))}
    steps = {}
    for name, model in models.items():
        for dtype in dtypes:
            steps[name, dtype, "eager"] = pretrain_step(model, model, batch, env, dtype)
            if cfg.compile:
                step = pretrain_step(model, torch.compile(model), batch, env, dtype)
                if runs(step):
                    steps[name, dtype, "compiled"] = step
    rows, tokens = [], batch[0].numel()
    for (name, dtype, how), taken in take_turns(steps, cfg.rounds, env).items():
        rate = flops_a_token(models[name], cfg.window) * tokens / taken
        rows.append(dict(model=name, dtype=dtype, how=how, ms=1000 * taken,
                         tokens_per_second=tokens / taken, gflops=rate / 1e9,
                         peak_gflops=peaks[dtype] / 1e9, share_of_peak=rate / peaks[dtype]))
    return rows


def runs(step):
    """Call a compiled step once, untimed; False where this machine cannot compile."""
    try:
        step()
        return True
    except Exception as error:  # no C++ compiler: a line of the table is missing
        print(f"torch.compile does not run here: {type(error).__name__}")
        return False


def make_caches(cfg, env, teacher, tokenizer, data, numbers, folder):
    """{kind: cache} of the benchmark's windows, as dataset/cache_teacher.py makes them."""
    some = data | {name: np.array(data[name][numbers]) for name in ("ids", "mask", "document")}
    found = {}
    for kind in ("topk", "sampled"):
        flags = cache_teacher.Config(kind=kind, window=cfg.window, out=str(folder / kind))
        about = cache_teacher.describe(flags, [teacher], tokenizer, some, env)
        (folder / kind).mkdir(parents=True)
        cache_teacher.write(flags, [teacher], some, about, folder / kind, env)
        found[kind] = dict(open_arrays(folder / kind, about, "r"), about=about,
                           first_rows=first_rows(some["mask"]), ids_of=some["ids"],
                           checksums=checksums(some["ids"]), folder=folder,
                           tau=flags.temperature, device=env.device)
    return found


def ablation(cfg, env, batch, vocab_size, caches, teacher):
    """Part 2 -> [(variant, ms, tokens/s, ratio to the plain step)]."""
    student = build(cfg.student, vocab_size).to(env.device)
    muon = make_optimizers(student, "muon", 1e-4, 0.1, bf16=env.dtype == "bf16")
    adamw = make_optimizers(student, "adamw", 1e-4, 0.1)
    other = "float32" if env.dtype == "bf16" else "bf16"

    def variant(data=batch, dtype=env.dtype, optimizers=muon, **changes):
        """The plain step with one factor changed."""
        return logits_step(student, teacher, data, env, dtype, optimizers, **changes)

    variants = {
        f"plain: {env.dtype}, packed, eager, counted logits alone, Muon": variant(),
        f"precision: {other}": variant(dtype=other),
        "packing: one document a row, padded to the longest": variant(padded_batch(batch)),
        "loss: logits of every token, counted or not": variant(keep_counted=False),
        "loss: cross-entropy alone, no teacher (= train_pretrain.py)": variant(teacher_term=False),
        "optimizer: AdamW for all": variant(optimizers=adamw),
    }
    for kind, cache in caches.items():
        variants[f"teacher: a cache, {kind}, k = {cache['about']['k']}"] = variant(
            cache=cache, numbers=np.arange(cfg.batch))
    if cfg.compile:
        fast = [torch.compile(m, dynamic=True) for m in (student, teacher)]
        compiled = logits_step(fast[0], fast[1], batch, env, env.dtype, muon)
        if runs(compiled):
            variants["compile: torch.compile of both models"] = compiled
    tokens = int((batch[2] > 0).sum())
    times = take_turns(variants, cfg.rounds, env)
    plain = next(iter(times.values()))
    return [dict(variant=name, ms=1000 * t, tokens_per_second=tokens / t, speed=plain / t)
            for name, t in times.items()]


def report(cfg, env, shares, rows):
    """The two tables as Markdown, and all figures as JSON."""
    v = common.versions()
    text = "\n\n".join((
        f"{v['machine']}, {v['threads']} threads, torch {v['torch']}; {label(cfg.data)}, "
        f"{cfg.batch} windows of {cfg.window} tokens a step",
        markdown(
            "model | dtype | run | ms a step: | tokens/s: | GFLOP/s: | peak GFLOP/s: | of peak:",
            [[r["model"], r["dtype"], r["how"], f"{r['ms']:.0f}", f"{r['tokens_per_second']:,.0f}",
              f"{r['gflops']:.0f}", f"{r['peak_gflops']:.0f}", f"{r['share_of_peak']:.0%}"]
             for r in shares]),
        markdown(
            "logits step, one factor changed | ms: | text tokens/s: | speed:",
            [[r["variant"], f"{r['ms']:.0f}", f"{r['tokens_per_second']:,.0f}",
              f"{r['speed']:.2f}"] for r in rows]))) + "\n"
    print("\n" + text)
    cli.write_file(f"{cfg.out}.md", text)
    cli.write_file(f"{cfg.out}.json", json.dumps(dict(versions=v, dtype=env.dtype, shares=shares,
                                                      ablation=rows), indent=1))


def main(cfg):
    """Measure both parts, then print and write them."""
    cli.check_ranges(cfg, rounds=(1, 10**9), window=(1, 512))  # 512: the context
    env = common.start(cfg)
    tokenizer = Tokenizer.load(cfg.tokenizer)
    data = open_data(cfg.data, tokenizer, cfg.window)
    windows = len(data["ids"])
    cli.check(cfg.batch <= windows, "--batch", cfg.batch, f"1 to {windows:,}, what --data has")
    numbers = np.random.default_rng(cfg.seed).permutation(windows)[:cfg.batch]
    batch = tensors(data, numbers, env.device)
    shares = share_of_peak(cfg, env, batch, tokenizer.vocab_size)
    teacher = build(cfg.teacher, tokenizer.vocab_size).to(env.device).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        caches = make_caches(cfg, env, teacher, tokenizer, data, numbers, Path(folder))
        rows = ablation(cfg, env, batch, tokenizer.vocab_size, caches, teacher)
    report(cfg, env, shares, rows)


if __name__ == "__main__":
    cli.run(main, Config)
