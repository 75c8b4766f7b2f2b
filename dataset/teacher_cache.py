"""What the teacher says about every token, written down once: a teacher that need not run any more.

    python dataset/teacher_cache.py          # of out/teacher.pt, on the default stories, top 32
    python train_distill_logits.py --name student-cached --cache out/data/cache

Last line: next: python train_distill_logits.py --name student-cached --cache ...

Three kinds, of the tokens that count in the loss. Numbers are float16, which is precise enough: on
the prose teacher it changes a token's KL by about 0.0002 nats. Each ends with bytes a token.

    topk      the k likeliest tokens with their log-probabilities, and one bucket for all others:
              any divergence on k + 1 outcomes, never above the whole one (data processing
              inequality). Without the bucket the student learns to be too sure (trap 13). 4k + 6
    sampled   k draws from the teacher's distribution: forward KL, without bias in the first pass
              (Anshumann et al. 2025, section 3). Draws that are read again can be learned. 2k + 8
    hidden    the last hidden state, the output matrix once: any divergence, any temperature. 2D + 4

Of several teachers with one tokenizer (`teacher_cache.py out/b.pt --teacher out/a.pt`) topk and
sampled keep the mean distribution (Hinton, Vinyals & Dean 2015, section 5: an ensemble). Both are
of one temperature, that of the training. After a stop the same command goes on.
"""
import json
import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoints
import common
from common import OUT, check, show
from dataset.cache_reader import NAMES, SAME, SHARD, missing, read_about, what_it_is_of
from dataset.windows import open_data, tensors
from losses import log_softmax

BATCH = 32  # windows that the teacher reads together


@dataclass
class Config:
    others: list = None            # more teachers: the mean of all is cached
    teacher: str = OUT / "teacher.pt"  # checkpoint that is cached
    data: str = OUT / "data/stories/train.jsonl"  # what the student will train on
    out: str = OUT / "data/cache"  # folder of the cache
    kind: Literal["topk", "sampled", "hidden"] = "topk"  # what is kept of a distribution
    k: int = 32                    # tokens kept, or drawn (8 to 64); topk: up to the vocabulary
    temperature: float = 2.0       # tau of topk and sampled: that of the training (1 to 4)
    window: int = 256              # as in the training
    target: Literal["cot", "answer"] = "cot"          # as in the training
    documents: int = 0             # as in the training: only the first N documents; 0: all
    skip_bad_lines: bool = False   # count bad lines of the data and go on
    seed: int = 0                  # of sampled
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # of the teacher's forward pass
    fresh: bool = False            # replace a cache of other settings


def mean_log_p(logits, tau):
    """ln of the mean of some softened distributions: a list of (N, V) -> (N, V) float32."""
    return torch.stack([log_softmax(z, tau) for z in logits]).logsumexp(0) - np.log(len(logits))


@torch.no_grad()
def quantities(teachers, data, numbers, about, env):
    """What is kept of a batch of windows -> {name: tensor (N, ...)} of their N counted tokens."""
    generator = torch.Generator(env.device).manual_seed(about["seed"] * 1_000_003 + int(numbers[0]))
    x, y, document, weight = tensors(data, numbers, env.device)
    keep = weight > 0
    with env.autocast():
        states = [teacher.hidden_states(x, document)[keep] for teacher in teachers]  # (N, D) each
        logits = [teacher.lm_head(hidden) for teacher, hidden in zip(teachers, states)]  # (N, V)
    check(all(z.isfinite().all() for z in logits),
          f"the teacher's logits are not finite in {env.dtype}; try --dtype float32")
    found = dict(label_ce=-mean_log_p(logits, 1.0).gather(-1, y[keep][:, None])[:, 0])  # (N,)
    if about["kind"] == "hidden":
        return found | dict(hidden=states[0])
    log_p = mean_log_p(logits, about["temperature"])           # (N, V) float32
    if about["kind"] == "sampled":
        draws = torch.multinomial(log_p.exp(), about["k"], replacement=True, generator=generator)
        return found | dict(ids=draws, negentropy=(log_p.exp() * log_p).sum(-1))
    kept, ids = log_p.topk(about["k"])                         # (N, k)
    if about["k"] < log_p.shape[-1]:
        rest = log_p.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
        kept = torch.cat([kept, rest], -1)                     # (N, k + 1)
    return found | dict(ids=ids, log_p=kept)


def write_shard(folder, number, teachers, data, about, env):
    """The quantities of SHARD windows, each a .npy file; label_ce is the last one."""
    end, parts = min((number + 1) * SHARD, about["windows"]), {}
    ids = torch.uint16 if about["vocab_size"] <= 2**16 else torch.uint32
    types = dict(ids=ids, log_p=torch.float16, hidden=torch.float16)
    for first in range(number * SHARD, end, BATCH):
        numbers = np.arange(first, min(first + BATCH, end))
        for name, value in quantities(teachers, data, numbers, about, env).items():
            parts.setdefault(name, []).append(value.cpu().to(types.get(name, value.dtype)).numpy())
    for name in (*NAMES[about["kind"]], "label_ce"):
        stored = np.concatenate(parts[name])
        check(np.isfinite(stored).all(), f"the teacher's {name} do not fit into float16")
        with common.atomic_write(folder / f"{name}-{number:04}.npy") as file:
            np.save(file, stored)


def main(cfg):
    """Make the cache, go on with it, or say that it is there."""
    common.positive(cfg, "k", "window")
    common.between(cfg, 0.01, 1000, "temperature")
    hidden = cfg.kind == "hidden"
    check(not hidden or not cfg.others and not {"temperature", "k"} & cfg.given,
          "--kind hidden: of one teacher (states have no mean), without --temperature and --k")
    env, folder = common.device_and_dtype(cfg), Path(cfg.out)
    paths = [cfg.teacher, *(cfg.others or [])]
    loaded = [checkpoints.load_teacher(replace(cfg, teacher=path), env) for path in paths]
    teachers, (tokenizer, *others), inputs = zip(*loaded)
    room = min(teacher.config.max_seq_len for teacher in teachers)
    check(cfg.window <= room, f"--window {cfg.window}: the teacher's context is {room}")
    check(all(other.fingerprint == tokenizer.fingerprint for other in others),
          f"{', '.join(map(show, paths))} have different tokenizers")
    data = open_data(cfg.data, tokenizer, cfg.window, cfg.target, cfg.documents, cfg.skip_bad_lines)
    k = {"topk": min(cfg.k, tokenizer.vocab_size), "sampled": cfg.k, "hidden": 0}[cfg.kind]
    about = dict(kind=cfg.kind, vocab_size=tokenizer.vocab_size, windows=len(data["ids"]), k=k,
                 temperature=None if hidden else cfg.temperature, seed=cfg.seed, dtype=env.dtype,
                 teacher_fingerprint="+".join(sorted(i["teacher_fingerprint"] for i in inputs)),
                 tokenizer_fingerprint=tokenizer.fingerprint, **what_it_is_of(cfg, data))
    lock = common.lock(folder)  # held until this function ends  # noqa: F841
    made = read_about(folder)
    check(made or not any(folder.glob("[!.]*")), f"--out {show(folder)} holds other files")
    if made and not cfg.fresh:
        common.refuse_others(folder, made, about)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        common.write_file(folder / "about.json", json.dumps(about, indent=1))
    tokenizer.save(folder / "tokenizer.model")
    with common.atomic_write(folder / "head.npy") as file:
        np.save(file, teachers[0].lm_head.weight.float().cpu().numpy())
    todo, began = missing(folder, about), time.time()
    for done, number in enumerate(todo, 1):
        write_shard(folder, number, teachers, data, about, env)
        left = (time.time() - began) / done * (len(todo) - done)
        print(f"{done}/{len(todo)} files of {SHARD:,} windows | eta {left:.0f} s")
    size, tokens = sum(p.stat().st_size for p in folder.glob("*-*.npy")), data["meta"]["supervised"]
    print(f"{show(folder)}: {'made' if todo else 'already made'}, {tokens:,} tokens, "
          f"{size / max(tokens, 1):.0f} bytes each, {size / 1e6:,.1f} MB")
    given = sorted(cfg.given & {"data", *SAME, "temperature", "skip_bad_lines"})
    print("next: " + common.command("train_distill_logits.py", name="student-cached", cache=folder,
                                    **{name: getattr(cfg, name) for name in given}))


if __name__ == "__main__":
    common.run(main, Config)
