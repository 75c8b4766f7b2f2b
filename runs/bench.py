"""Measure the speed of training steps, fused loss and decoding. Nothing else should run.

    python runs/bench.py step       8 minutes, after bash speedrun.sh; kept as results/bench.md
    python runs/bench.py commits --commits "OLD,NEW,NEW --compile"      kept as results/commits.md
    python runs/bench.py whitebox   over 20 minutes; kept as results/whitebox-times.jsonl
    python runs/bench.py fused      2 minutes and 10 GB; kept as results/fused.md
    python runs/bench.py decode     1 minute, needs requirements-dev.txt; kept as results/decode.md

Scripts take turns, 60 steps each. step: FLOP/s as a share of the best square matmul. Forward and
backward, a token costs 6 * (matmul parameters of the blocks) + 12 * layers * heads * channels *
window. A counted token costs 6 * width * vocabulary more (Chowdhery et al. 2022, appendix B).
"""
import atexit
import multiprocessing
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, ROOT, check, device_and_dtype, run, versions
import numpy as np
import torch

import checkpoints
from decoding import generate
from fused import FusedLoss
from losses import cross_entropy, divergence, total
from metrics import json_lines, markdown
from model import SIZES, build
from runs import recipes
from speed import peak_memory


@dataclass
class Config:
    parts: list = None             # what to measure: step, commits, whitebox, fused, decode
    commits: str = ""              # commits: compare these; flags of the scripts may follow each
    beside: int = 0                # how many other trainings run meanwhile (0: the machine is idle)
    teacher: str = OUT / "teacher.pt"        # commits: the teacher; decode: the model that writes
    size: Literal[("", *SIZES)] = ""         # decode: random weights of this size instead
    turns: int = 3                 # how often each command is timed (2 to 10)
    steps: int = 60                # steps of a training run; the first ten are not timed


def take_turns(commands, cfg):
    """{name: a training script and its flags} -> {name: [seconds, text tokens, counted tokens]},
    medians of a step. A run that fails is left out, such as torch.compile without a compiler."""
    found = {name: [] for name in commands}
    for _, (name, command) in product(range(cfg.turns), commands.items()):
        words = (f"{command} --steps {cfg.steps} --eval-every {cfg.steps} --eval-windows 1 "
                 "--name bench --fresh").split()
        if subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL).returncode == 0:
            log = np.genfromtxt(OUT / "bench.csv", delimiter=",", names=True)[10:]
            found[name] += zip(log["seconds"], log["tokens"], log["supervised"])
    return {name: np.median(rows, axis=0).tolist() for name, rows in found.items() if rows}


def peak_share(cfg, env):
    """-> a table: plain training of two sizes, in each fast dtype, eager and compiled."""
    peaks, dtypes = {}, {"float32": torch.float32, "bf16": torch.bfloat16}
    for dtype, n, _ in product(sorted({env.dtype, "float32"}), (1024, 2048, 4096), range(5)):
        a = torch.randn(n, n, device=env.device, dtype=dtypes[dtype])
        began = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the device
        peaks[dtype] = max(peaks.get(dtype, 0), 2 * n**3 / (time.perf_counter() - began))
    runs = {(size, dtype, way): f"train_pretrain.py --size {size} --dtype {dtype} {flag}"
            for size, dtype, (way, flag) in product(
                ("2m", "0.4m"), peaks, (("eager", ""), ("compiled", "--compile")))}
    tokenizer, lines = checkpoints.load_model(cfg.teacher)[1], []
    for (size, dtype, way), (seconds, tokens, counted) in take_turns(runs, cfg).items():
        model = build(size, tokenizer.vocab_size)
        c, window, windows = model.config, 256, 8  # the defaults of the script
        matmul = sum(p.numel() for p in model.layers.parameters() if p.dim() == 2)
        attention = 12 * c.n_layers * c.n_heads * c.head_dim * window
        flops = (6 * matmul + attention) * window * windows + 6 * c.dim * c.vocab_size * counted
        rate, peak = flops / seconds / 1e9, peaks[dtype] / 1e9
        lines.append([size, dtype, way, f"{1000 * seconds:.0f}", f"{tokens / seconds:,.0f}",
                      f"{rate:.0f}", f"{peak:.0f}", f"{rate / peak:.0%}"])
    return markdown("model | dtype | run | ms: | tokens/s: | GFLOP/s: | peak: | of peak:", lines)


def commits(cfg, env):
    """-> a table: milliseconds of a step in each of --commits, as shares of the first, too."""
    todo, lines, entries = {}, [], cfg.commits.split(",")
    scripts = {"2m, no teacher": "train_pretrain.py --size 2m",
               "0.4m, no teacher": "train_pretrain.py --size 0.4m",
               "0.4m, teacher": f"train_distill_logits.py --size 0.4m --teacher {cfg.teacher}"}
    for one in entries:
        commit, _, flags = one.partition(" ")
        if not (tree := OUT / f".bench-{commit}").exists():
            subprocess.run(["git", "worktree", "add", "--detach", tree, commit], check=True)
        todo |= {(one, name): f"{tree}/{script} {flags}" for name, script in scripts.items()}
    taken = take_turns(todo, cfg)
    for one in entries:
        lines.append([f"`{one}`"])
        for name in scripts:
            seconds, first = (taken.get((key, name), [np.nan])[0] for key in (one, entries[0]))
            lines[-1] += [f"{1000 * seconds:.0f}", f"{seconds / first:.2f}"]
    return markdown("commit" + "".join(f" | {name}, ms: | share:" for name in scripts), lines)


TIMED = {recipe.name: recipe.commands[0].replace("SEED", "0") for recipe in recipes.RECIPES
         if re.match("(few-)?white/(?!teacher|alone-|logits|.*-wall)", recipe.name)}


def whitebox(cfg, env):
    """-> a JSON row for each white-box recipe: ms of a step, seconds to make the files it reads."""
    todo, making = dict(recipes.MAKE), {}
    for word in dict.fromkeys(" ".join(TIMED.values()).split()):
        recipes.make(word, todo)
        if word.startswith("out/data/white-"):
            how = recipes.MAKE[recipes.WRITTEN if word == recipes.MIXED else word]
            began = time.perf_counter()
            recipes.run(f"{how} --fresh", todo)
            making[word] = round(time.perf_counter() - began)
    return json_lines(dict(
        recipe=name, seed=0, versions=versions(), metrics=dict(
            ms=round(1000 * seconds, 1), making=sum(making.get(w, 0) for w in TIMED[name].split())))
        for name, (seconds, *_) in take_turns(TIMED, cfg).items())


def one_loss(way, vocab_size, tokens, width=256):
    """A process: loss and gradients, plain or fused -> MB above inputs, seconds, loss a token."""
    torch.manual_seed(0)
    hidden, teacher_hidden = (torch.randn(tokens, width) for _ in range(2))
    head, teacher_head = (torch.randn(vocab_size, width) * 0.05 for _ in range(2))
    hidden.requires_grad_(), head.requires_grad_()
    y, weight = torch.randint(vocab_size, (tokens,)), torch.ones(tokens)
    before, began = peak_memory(), time.perf_counter()
    if way == "fused":
        loss = FusedLoss.apply(hidden, head, y, weight, teacher_hidden, teacher_head, 0.9,
                               "forward_kl", 2.0, None)[0]
    else:
        logits, teacher_logits = hidden @ head.T, teacher_hidden @ teacher_head.T  # (N, V)
        kd = divergence("forward_kl", logits, teacher_logits, 2.0)                 # (N,)
        loss = total(0.1 * cross_entropy(logits, y) + 0.9 * kd, weight)
    (loss / tokens).backward()
    return (peak_memory() - before) / 1e6, time.perf_counter() - began, loss.item() / tokens


def fused(cfg, env):
    """-> a table: memory and time of the plain and the fused loss at each size."""
    lines, sizes = [], ((8_192, 2_048), (32_768, 2_048), (32_768, 4_096), (151_936, 2_048))
    for vocab_size, tokens in sizes:
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            (memory, seconds, loss), (less, shorter, other) = pool.starmap(
                one_loss, [(way, vocab_size, tokens) for way in ("plain", "fused")], chunksize=1)
        assert abs(loss - other) < 1e-2 * abs(loss), (loss, other)
        lines.append([f"{vocab_size:,}", f"{tokens:,}", f"{memory:,.0f}", f"{less:,.0f}",
                      f"{memory / less:.1f}", f"{seconds:.1f}", f"{shorter:.1f}"])
    return markdown("V: | tokens: | plain MB: | fused MB: | times: | plain s: | fused s:", lines)


@torch.inference_mode()
def decode(cfg, env, count=128):
    """Our model and transformers' Qwen3, with the same weights, write greedy tokens in turns."""
    from transformers import Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    model = build(cfg.size, 1024).eval() if cfg.size else checkpoints.load_model(cfg.teacher)[0]
    c = model.config
    theirs = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim, pad_token_id=0,
        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, bos_token_id=None,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_seq_len, tie_word_embeddings=c.tie_embeddings,
        rope_parameters=dict(rope_type="default", rope_theta=c.rope_theta), eos_token_id=None))
    theirs.load_state_dict({name if name.startswith("lm_head") else f"model.{name}": value
                            for name, value in model.state_dict().items()}, strict=True)
    prompt = torch.randint(10, c.vocab_size, (1, 8))
    difference = (model(prompt) - theirs(prompt).logits).abs().max().item()
    long = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False)
    writers = (lambda: generate(model, prompt.tolist(), count)[0],
               lambda: theirs.generate(prompt, **long)[0, 8:].tolist())
    same = sum(a == b for a, b in zip(*(write() for write in writers)))  # also a warm-up
    times = [], []
    for _, (write, seconds) in product(range(cfg.turns), zip(writers, times)):
        time.sleep(0.1)  # the other's threads still spin for a moment and would slow this one
        began = time.perf_counter()
        write()
        seconds.append(time.perf_counter() - began)
    ours, other = count / np.median(times, axis=1)
    return (f"largest difference of the logits {difference:.1e}; {same} of {count} greedy tokens "
            f"alike\n{model.num_parameters():,} parameters, {torch.get_num_threads()} threads: "
            f"ours {ours:,.0f} tok/s, transformers {other:,.0f} tok/s, {ours / other:.2f} times")


def main(cfg):
    os.chdir(ROOT)
    os.environ["MINIDISTILL_OUT"] = str(OUT)  # also for the scripts of other commits
    os.environ.pop("GOMP_SPINCOUNT")  # common.py has set it; an old commit must not get it
    env, v = device_and_dtype(SimpleNamespace(dtype="auto")), versions()
    parts = dict(step=peak_share, commits=commits, whitebox=whitebox, fused=fused, decode=decode)
    check(cfg.parts and set(cfg.parts) <= set(parts), "name a part to run: " + " or ".join(parts))
    print(f"{v['machine']}, {v['threads']} threads, torch {v['torch']}; device {env.device}")
    for n in range(cfg.beside):
        words = f"train_pretrain.py --steps 9999999 --name beside-{n} --fresh".split()
        atexit.register(subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL).kill)
    for name in cfg.parts:
        print(f"\n{parts[name](cfg, env)}")


if __name__ == "__main__":
    run(main, Config)
