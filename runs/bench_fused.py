"""Memory and time of the fused loss against the plain one, each in a process of its own.

    python runs/bench_fused.py          two sizes, two minutes; the plain way takes 10 GB

Peak memory above the inputs: hidden states and output matrices of student and teacher are there
before; the logits, what is made of them and the gradients of hidden states and matrix count.
"""
import json
import multiprocessing
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import cli
import oldcommon as common
from cli import OUT
from fused import How, fused_loss
from losses import DIVERGENCES, cross_entropy, divergence, total
from report import markdown
from speed import peak_memory


@dataclass
class Config:
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # see the top of losses.py
    dim: int = 256                 # width of student and teacher
    dtype: Literal["float32", "bf16"] = "float32"  # of the hidden states
    out: str = OUT / "bench-fused.json"  # the figures


SIZES = ((8_192, 2_048), (32_768, 2_048), (32_768, 4_096), (151_936, 2_048))  # vocabulary, tokens


def plain_loss(hidden, head, y, weight, teacher_hidden, teacher_head, how):
    """The way of train_distill_logits.py: all logits of both models at once."""
    logits = hidden @ head.to(hidden.dtype).T                          # (N, V)
    teacher_logits = teacher_hidden @ teacher_head.to(hidden.dtype).T  # (N, V)
    ce = cross_entropy(logits, y)
    kd = divergence(how.name, logits, teacher_logits, how.temperature, how.mix)
    teacher_ce = cross_entropy(teacher_logits, y)
    return [total(v, weight) for v in ((1 - how.alpha) * ce + how.alpha * kd, ce, kd, teacher_ce)]


def one(way, vocab_size, tokens, cfg, pipe):
    """A process: one step in one way -> bytes above the inputs, seconds."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if cfg.dtype == "bf16" else torch.float32
    hidden, teacher_hidden = (torch.randn(tokens, cfg.dim).to(dtype) for _ in range(2))
    head, teacher_head = (torch.randn(vocab_size, cfg.dim) * 0.05 for _ in range(2))
    hidden.requires_grad_(), head.requires_grad_()
    y, weight = torch.randint(vocab_size, (tokens,)), torch.ones(tokens)
    before, began = peak_memory(), time.perf_counter()
    loss = dict(plain=plain_loss, fused=fused_loss)[way](
        hidden, head, y, weight, teacher_hidden, teacher_head, How(0.9, cfg.divergence, 2.0))[0]
    (loss / tokens).backward()
    pipe.send((peak_memory() - before, time.perf_counter() - began, loss.item() / tokens))


def main(cfg):
    """Measure every size in both ways, a process each."""
    context, found = multiprocessing.get_context("spawn"), []
    for vocab_size, tokens in SIZES:
        result = {}
        for way in ("plain", "fused"):
            ours, theirs = context.Pipe()
            process = context.Process(target=one, args=(way, vocab_size, tokens, cfg, theirs))
            process.start()
            theirs.close()
            result[way] = ours.recv()
            process.join()
        (a, plain_s, loss), (b, fused_s, other) = result["plain"], result["fused"]
        assert abs(loss - other) < 1e-2 * abs(loss), (loss, other)
        print(f"V {vocab_size:,}, {tokens:,} tokens: {a / b:.1f} times less memory, "
              f"{plain_s:.1f} s and {fused_s:.1f} s")
        found.append(dict(vocab_size=vocab_size, tokens=tokens, plain_bytes=a, fused_bytes=b,
                          plain_seconds=plain_s, fused_seconds=fused_s))
    print("\n" + markdown("V: | tokens: | plain MB: | fused MB: | times less: | plain s: | fused s:", [
        [f"{r['vocab_size']:,}", f"{r['tokens']:,}", f"{r['plain_bytes'] / 1e6:,.0f}",
         f"{r['fused_bytes'] / 1e6:,.0f}", f"{r['plain_bytes'] / r['fused_bytes']:.1f}",
         f"{r['plain_seconds']:.1f}", f"{r['fused_seconds']:.1f}"] for r in found]))
    with cli.atomic_write(cfg.out, "w") as file:
        json.dump(dict(versions=common.versions(), divergence=cfg.divergence, dim=cfg.dim,
                       dtype=cfg.dtype, sizes=found), file, indent=1)


if __name__ == "__main__":
    cli.run(main, Config)
