"""The teacher writes documents: text for a student that has too little of it.

    python blackbox/write.py --teacher out/prose-teacher.pt --out out/data/written.jsonl

Last line: next: cat my.jsonl out/data/written.jsonl > mixed.jsonl ...

Beside the teacher's distribution a student needs text to read it on. Where real text is scarce the
student soon knows it by heart; the teacher, asked at its own temperature from the mark that begins
a document, writes as much as is wanted, and on it its distribution is no memory of what it has
seen. (Of the teacher's words alone: Kim & Rush 2016; with its distribution on them, one end of GKD:
Agarwal et al. 2024.) Rows are {"text"}, appended batch by batch: after a stop the same command goes
on. What is shorter than --min-chars is left out; nothing else is judged.
"""
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoints
import cli
import oldcommon as common
from cli import OUT, fail, show
from decoding import generate


@dataclass
class Config:
    teacher: str = OUT / "prose-teacher.pt"  # a checkpoint that has learned plain text
    out: str = OUT / "data/written.jsonl"    # the documents
    documents: int = 1000          # how many (500 to 10,000)
    max_new_tokens: int = 250      # longest document: within the window of the teacher's training
    temperature: float = 1.0       # of sampling; 1: the teacher's own distribution
    min_chars: int = 100           # shorter documents are left out
    batch: int = 128               # documents written together
    seed: int = 0                  # a batch's stream depends on this and on its number alone
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # of the teacher's forward pass
    fresh: bool = False            # replace what is there


def read_parts(path, header, fresh):
    """The batches of documents that OUT.parts.jsonl holds, a line each after a header; a new file
    where there is none. UserError for the file of another command."""
    if fresh or not path.exists():
        cli.write_file(path, json.dumps(header) + "\n")
    cli.cut_torn_line(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        old, batches = dict(json.loads(lines[0])), [list(json.loads(line)) for line in lines[1:]]
    except (ValueError, TypeError, IndexError):
        fail(f"{show(path)} was not made by this script", fix="choose another --out")
    cli.refuse_others(path, old, header)
    return batches


def write_batch(cfg, model, tokenizer, number, env):
    """Batch `number` -> texts, without those that are too short."""
    generator = torch.Generator(env.device).manual_seed(cfg.seed * 1_000_003 + number)
    with env.autocast():
        rows = generate(model, [[tokenizer.end]] * cfg.batch, cfg.max_new_tokens, {tokenizer.end},
                        temperature=cfg.temperature, generator=generator)
    texts = [tokenizer.decode([i for i in ids if i != tokenizer.end]) for ids in rows]
    return [text for text in texts if len(text) >= cfg.min_chars]


def main(cfg):
    """Write the batches that are missing, then OUT: the first --documents of them."""
    cli.check_ranges(cfg, documents=(1, 10**9), max_new_tokens=(1, 10**9), batch=(1, 10**9),
                     temperature=(0.01, 100), min_chars=(1, 10**9), seed=(0, 2**32 - 1))
    cli.check_apart("--out", cfg.out, cfg.teacher)
    env, out, parts = common.device_and_dtype(cfg), Path(cfg.out), Path(cfg.out + ".parts.jsonl")
    model, tokenizer, _ = checkpoints.load_model(cfg.teacher, env.device,
                                                 "python train_pretrain.py --data my.jsonl ...")
    header = {k: getattr(cfg, k) for k in ("max_new_tokens", "temperature", "min_chars", "batch",
                                           "seed")}
    header |= dict(teacher=checkpoints.weights_fingerprint(model), dtype=env.dtype)
    if out.exists() and not parts.exists() and not cfg.fresh:
        fail(f"{show(out)} is there already", fix="choose another --out, or --fresh replaces it")
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = checkpoints.lock_file(parts)  # held until this function ends  # noqa: F841
    batches = read_parts(parts, header, cfg.fresh)
    began, there = time.time(), len(batches)
    while sum(map(len, batches)) < cfg.documents:
        batches.append(write_batch(cfg, model, tokenizer, len(batches), env))
        if not any(batches) and len(batches) >= 3:
            fail("the teacher writes nothing that is long enough", f"3 batches, {cfg.min_chars} "
                 "characters at least", fix="a teacher of plain text, or a lower --min-chars "
                 "with --fresh")
        with cli.append(parts) as file:
            file.write(json.dumps(batches[-1]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        done, rate = sum(map(len, batches)), (len(batches) - there) / (time.time() - began)
        print(f"{done:>7,}/{cfg.documents:,} documents | {rate * cfg.batch:.1f} documents/s")
    texts = [text for batch in batches for text in batch][:cfg.documents]
    cli.write_file(out, "".join(json.dumps(dict(text=text)) + "\n" for text in texts))
    print(f"{show(out)}: {len(texts):,} documents, {sum(map(len, texts)):,} characters\n"
          f"next: cat my.jsonl {show(out)} > mixed.jsonl; python train_distill_logits.py "
          f"--data mixed.jsonl --teacher {show(cfg.teacher)} --val ...")


if __name__ == "__main__":
    cli.run(main, Config)
