"""What the teacher says of every token, written down once: a teacher that need not run any more.

    python dataset/cache_teacher.py          # of out/teacher.pt, on the default stories, top 32
    python train_distill_logits.py --name student-cached --cache out/data/cache

Last line: next: python train_distill_logits.py --name student-cached --cache ...

Three kinds, for the counted tokens alone (bytes for V <= 65,536 and a float16 payload, which rounds
ln p by up to 1/2,048 of itself: with the prose teacher a token's KL by 0.0002 nats, rarely 0.002;
more with tau^2 and with -ln p: up to 0.06 at tau 2 where all logits are eight times as large):

    topk      the k likeliest tokens with their log-probabilities, and one bucket for all the
              others: any divergence, on k + 1 outcomes, which never exceeds the whole one (data
              processing inequality). Without the bucket the k would be renormalised, and the
              student taught to be too sure (TRAPS 13). k = V has no bucket. 4k + 6 bytes a token
    sampled   k draws from the teacher's distribution: the gradient of forward KL, without bias
              (Anshumann et al. 2025, section 3, at proposal temperature 1) in the first pass over
              the cache. Every later one reads the same draws: the student can learn them by heart,
              and then its kd falls below 0, where no KL can be. 2k + 8 bytes
    hidden    the last hidden state, and the output matrix once: everything, at any temperature.
              2D + 4 bytes; exact with --payload float32

Several teachers of one tokenizer, `--teacher out/a.pt out/b.pt`: topk and sampled are of the mean
of their distributions (Hinton, Vinyals & Dean 2015, section 5: an ensemble as the teacher).

topk and sampled are of one temperature, which the training must share: the normaliser of another
one is not in them. Everything is keyed by window, in the order of the prepared data: shuffling, a
second epoch and accumulation find the same row. A checksum of each window's tokens is compared when
it is read. A stop loses nothing: the same command goes on.
"""
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoints
import cli
import oldcommon as common
from cli import OUT, check, fail, show
from dataset.batches import open_data, tensors
from dataset.teacher_cache import (NAMES, SAME, checksums, files_of, first_rows, is_about,
                                   open_arrays, read_json, row_bytes)
from losses import log_softmax


@dataclass
class Config:
    teacher: str = OUT / "teacher.pt"  # checkpoint that is asked
    others: list = None            # more teachers, as words without a flag: the mean of all
    data: str = OUT / "data/stories/train.jsonl"  # what the student will train on
    out: str = OUT / "data/cache"  # folder of the cache
    kind: Literal["topk", "sampled", "hidden"] = "topk"  # what is kept of a distribution
    k: int = 32                    # tokens kept, or drawn (8 to 64); topk: up to the vocabulary
    temperature: float = 2.0       # tau of topk and sampled: that of the training (1 to 4)
    payload: Literal["float16", "float32"] = "float16"  # of the numbers
    window: int = 256              # as in the training
    loss_on: Literal["response", "all"] = "response"  # as in the training
    target: Literal["cot", "answer"] = "cot"          # as in the training
    documents: int = 0             # as in the training: only the first N documents; 0: all
    skip_bad_lines: bool = False   # count bad lines of the data and go on
    batch: int = 32                # windows read together
    seed: int = 0                  # of sampled
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # of the teacher's forward pass
    fresh: bool = False            # replace what is there


def mean_log_p(logits, temperature=1.0):
    """ln of the mean of some softened distributions: a list of (N, V) -> (N, V) float32."""
    found = [log_softmax(z, temperature) for z in logits]
    if len(found) == 1:
        return found[0]
    return torch.stack(found).logsumexp(0) - math.log(len(found))


@torch.no_grad()
def ask(teachers, batch, about, env, generator):
    """One batch of windows -> {file: array (tokens, ...)} of its counted tokens."""
    x, y, document, weight = batch
    keep, logits = weight > 0, []
    with env.autocast():
        for teacher in teachers:
            hidden = teacher.hidden_states(x, document)[keep]  # (N, D)
            logits.append(teacher.lm_head(hidden))             # (N, V)
    if not all(z.isfinite().all() for z in logits):
        fail("the teacher's logits are not finite", fix="another --teacher, or --dtype float32")
    label_ce = -mean_log_p(logits).gather(-1, y[keep][:, None])[:, 0]  # (N,) at temperature 1
    found = dict(label_ce=label_ce)
    if about["kind"] == "hidden":
        return {name: value.cpu() for name, value in (found | dict(hidden=hidden)).items()}
    log_p = mean_log_p(logits, about["temperature"])           # (N, V) float32
    if about["kind"] == "sampled":
        draws = torch.multinomial(log_p.exp(), about["k"], replacement=True, generator=generator)
        found |= dict(ids=draws, negentropy=(log_p.exp() * log_p).sum(-1))
    else:
        best = log_p.topk(about["k"])
        kept = best.values                                     # (N, k)
        if about["k"] < about["vocab_size"]:
            rest = log_p.scatter(-1, best.indices, -torch.inf).logsumexp(-1, keepdim=True)
            kept = torch.cat([kept, rest], -1)                 # (N, k + 1)
        found |= dict(ids=best.indices, log_p=kept)
    return {name: value.cpu() for name, value in found.items()}


def write(cfg, teachers, data, about, folder, env):
    """All windows that are still missing, batch by batch; what is done is noted after each."""
    progress, windows, began = folder / "progress.json", len(data["ids"]), time.time()
    done = start(progress, about, cfg.fresh)
    if not done:
        note(progress, about, 0)  # from here on the folder is a cache's
    arrays = open_arrays(folder, about, "r+" if done else "w")
    rows = first_rows(data["mask"])
    for first in range(done, windows, cfg.batch):
        last = min(first + cfg.batch, windows)
        x, y, document, weight = tensors(data, np.arange(first, last), env.device)
        generator = torch.Generator(env.device).manual_seed(cfg.seed * 1_000_003 + first)
        found = ask(teachers, (x, y, document, weight), about, env, generator)
        for name, value in found.items():
            value = value.numpy() if value.dtype != torch.bfloat16 else value.float().numpy()
            with np.errstate(over="ignore"):
                value = value.astype(arrays[name].dtype)
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                fail(f"the teacher's {name} do not fit into {value.dtype}", fix="--payload float32")
            arrays[name][rows[first]:rows[last]] = value
            arrays[name].flush()
        note(progress, about, last)
        if first // cfg.batch % 20 == 19 or last == windows:
            rate = (last - done) / (time.time() - began)
            print(f"window {last:>7,}/{windows:,} | {rate:.0f} windows/s | {rows[last]:,} tokens, "
                  f"{row_bytes(about)} bytes each | eta {(windows - last) / rate:.0f} s")


def note(progress, about, windows):
    """How far an unfinished cache is."""
    cli.write_file(progress, json.dumps(dict(about=about, windows=windows)))


def start(progress, about, fresh):
    """How many windows an unfinished cache holds; UserError where it is another one's."""
    if fresh or not progress.exists():
        return 0
    found = read_json(progress, lambda found: type(found["windows"]) is int
                      and 0 <= found["windows"] <= found["about"]["windows"])
    cli.refuse_others(progress.parent, found["about"], about)
    return found["windows"]


def check_folder(folder, fresh):
    """UserError for a folder that holds something else than a cache, finished or not.

    A damaged cache may not say what it is: `fresh` takes one by the names of its files.
    """
    names = {p.name for p in folder.iterdir()} if folder.exists() else set()
    names = {name for name in names if not name.endswith(".tmp")}  # of a killed writer
    texts = [(folder / n).read_text(encoding="utf-8", errors="replace")
             for n in ("about.json", "progress.json") if n in names]
    if not names or any("teacher_fingerprint" in text for text in texts):
        return
    if not names <= {*NAMES} or names == {"tokenizer.model"}:  # that alone may be anybody's
        fail(f"{show(folder)} holds other files", fix="choose another --out")
    if not fresh:
        fail(f"{show(folder)} holds a damaged cache", fix="--fresh makes it again")


def describe(cfg, teachers, tokenizer, data, env):
    """What a cache is, as a plain dict: all that a training must agree with."""
    c, meta = teachers[0].config, data["meta"]
    topk = cfg.kind == "topk"
    k = min(cfg.k, c.vocab_size) if topk else cfg.k if cfg.kind == "sampled" else 0
    return dict(
        kind=cfg.kind, k=k, temperature=cfg.temperature if cfg.kind != "hidden" else None,
        payload=cfg.payload, dim=c.dim, vocab_size=c.vocab_size, seed=cfg.seed, dtype=env.dtype,
        teacher_fingerprint="+".join(sorted(map(checkpoints.weights_fingerprint, teachers))),
        tokenizer_fingerprint=tokenizer.fingerprint, data_sha256=meta["source_sha256"],
        windows=len(data["ids"]), tokens=int((data["mask"][:, 1:] > 0).sum()),
        batch=cfg.batch if cfg.kind == "sampled" else None,  # what is drawn depends on it
        **{name: getattr(cfg, name) for name in SAME})


def load_teachers(cfg, env):
    """(the models, their one tokenizer)."""
    teachers, tokenizer = [], None
    for path in (cfg.teacher, *(cfg.others or ())):
        teacher, own, _ = checkpoints.load_model(path, env.device, "python train_pretrain.py")
        tokenizer = tokenizer or own
        if own.fingerprint != tokenizer.fingerprint:
            fail(f"{show(path)} and {show(cfg.teacher)} have different tokenizers",
                 fix="teachers of one tokenizer")
        room = teacher.config.max_seq_len
        check(cfg.window <= room, "--window", cfg.window, f"at most {show(path)}'s context, {room}")
        teachers.append(teacher)
    return teachers, tokenizer


def main(cfg):
    """Make the cache, go on with it, or say that it is there."""
    shared = {name: common.RANGES[name] for name in ("window", "documents", "seed")}
    cli.check_ranges(cfg, k=(1, 2**20), temperature=(0.01, 1000), batch=(1, 2**16), **shared)
    check(not cfg.others or "teacher" in cfg.given, "--teacher", show(cfg.teacher),
          "the first of several teachers, named: --teacher out/a.pt out/b.pt")
    check(not cfg.others or cfg.kind != "hidden", "--kind", cfg.kind,
          "topk or sampled: hidden states of several teachers have no mean")
    check(cfg.out.strip("./"), "--out", cfg.out, "the name of a folder")
    env, folder = common.device_and_dtype(cfg), Path(cfg.out).absolute()
    check(not folder.exists() or folder.is_dir(), "--out", show(folder), "a folder, or a new name")
    teachers, tokenizer = load_teachers(cfg, env)
    data = open_data(cfg.data, tokenizer, cfg.window, cfg.target, cfg.loss_on, cfg.documents,
                     cfg.skip_bad_lines)
    about = describe(cfg, teachers, tokenizer, data, env)
    check(about["tokens"] > 0, "--data", cfg.data, "text with at least one counted token")
    lock = checkpoints.lock_file(folder)  # held until this function ends  # noqa: F841
    finished = folder / "about.json"
    check_folder(folder, cfg.fresh)
    if finished.exists() and not cfg.fresh:
        old = {k: v for k, v in read_json(finished, is_about).items() if k != "sha256"}
        cli.refuse_others(folder, old, about)
        open_arrays(folder, about, "r")  # or one line that says what is damaged
        print(f"already made: {show(folder)} (--fresh makes it again)")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        if cfg.fresh:  # files of another kind of cache would stay
            for name in NAMES:
                (folder / name).unlink(missing_ok=True)
        finish(cfg, teachers, tokenizer, data, about, folder, env)
    total = about["tokens"] * row_bytes(about)
    by = f"of {len(teachers)} teachers, " * (len(teachers) > 1)
    print(f"{show(folder)}: {by}{about['tokens']:,} tokens, {row_bytes(about)} bytes each, "
          f"{total / 1e6:,.1f} MB\nnext: {next_command(cfg)}")


def finish(cfg, teachers, tokenizer, data, about, folder, env):
    """Write all files; about.json, with their checksums, last: without it, not finished."""
    write(cfg, teachers, data, about, folder, env)
    tokenizer.save(folder / "tokenizer.model")
    cli.write_file(folder / "windows.bin", checksums(data["ids"]).tobytes())
    if cfg.kind == "hidden":
        head = teachers[0].lm_head.weight.float().cpu().numpy()
        cli.write_file(folder / "head.bin", head.tobytes())
    hashes = {name: cli.sha256_file(folder / name) for name in files_of(about)}
    cli.write_file(folder / "about.json", json.dumps(dict(about, sha256=hashes), indent=1))
    (folder / "progress.json").unlink()


def next_command(cfg):
    """What to type after it: a training with the flags that it must share."""
    words = f"python train_distill_logits.py --name student-cached --cache {show(cfg.out)}"
    if not cli.is_default(cfg, "data"):
        words += f" --data {show(cfg.data)} --val ..."
    for flag in (*SAME, "temperature"):
        if not cli.is_default(cfg, flag):
            words += f" --{flag.replace('_', '-')} {getattr(cfg, flag)}"
    return words


if __name__ == "__main__":
    cli.run(main, Config)
