"""Store the teacher's distribution for every token once, so that training needs no teacher.

    python dataset/teacher_cache.py          # out/teacher.pt, default stories, top 32
    python train_distill_logits.py --name student-cached --cache out/data/cache

Only tokens that count in the loss are stored. float16 is precise enough: it changes ln p by
at most 1/2,048 of itself. There are three kinds. [] is the size in bytes a token, for at most
65,536 tokens and a teacher of width D.

    topk      the k likeliest tokens with log-probabilities, and one bucket for all others. Gives
              any divergence, on k + 1 outcomes. It is never above the full one (data processing
              inequality). Without the bucket the student becomes too sure (trap 13). [4k + 6]
    sampled   k draws from the teacher's distribution. Gives forward KL, unbiased in the first pass
              (Anshumann et al. 2025, section 3). Later the student can memorise them. [2k + 8]
    hidden    the last hidden state; one output matrix. Gives any divergence at any tau. [2D + 4]

If several teachers share a tokenizer (`teacher_cache.py out/b.pt --teacher out/a.pt`), topk and
sampled store their mean distribution (an ensemble: Hinton, Vinyals & Dean 2015, section 5). Both
fit only the temperature they were made at. After a stop, run the same command again.
"""
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import numpy as np
import torch

import checkpoints
from common import OUT, check, show
from dataset.cache_reader import NAMES, SAME, SHARD, missing, read_about, what_it_is_of
from dataset.windows import open_text, tensors
from losses import log_softmax

BATCH = 8  # windows that the teacher reads together


@dataclass
class Config:
    others: list = None            # more teachers; the mean of all distributions is stored
    teacher: str = OUT / "teacher.pt"  # checkpoint of the teacher
    data: str = OUT / "data/stories/train.jsonl"  # what the student will train on
    val: str = OUT / "data/stories/val.jsonl"  # as in the training; with --data only: a tenth of it
    out: str = OUT / "data/cache"  # folder of the cache
    kind: Literal["topk", "sampled", "hidden"] = "topk"  # what to store for each token
    k: int = 32                    # tokens to store, or to draw (8 to 64); topk: at most V
    temperature: float = 2.0       # tau for topk and sampled, as in the training (1 to 4)
    window: int = 256              # tokens in a window, as in the training
    target: Literal["cot", "answer"] = "cot"          # what is learned, as in the training
    documents: int = 0             # only the first N documents, as in the training; 0: all
    skip_bad_lines: bool = False   # count bad lines of the data and go on
    seed: int = 0                  # random seed of sampled
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # precision of the teacher's forward pass
    fresh: bool = False            # replace a cache made with other settings


def mean_log_p(logits, tau):
    """ln of the mean over teachers of softmax(logits / tau): a list of (N, V) -> (N, V) float32."""
    return torch.stack([log_softmax(z, tau) for z in logits]).logsumexp(0) - np.log(len(logits))


@torch.no_grad()
def quantities(teachers, data, numbers, about, env):
    """What to store for windows `numbers` -> {name: tensor (N, ...)}, N: the tokens that count."""
    generator = torch.Generator(env.device).manual_seed(about["seed"] * 1_000_003 + int(numbers[0]))
    x, y, document, weight = tensors(data, numbers, env.device)
    keep = weight > 0
    with env.autocast():
        states = [one.hidden_states(x, document, keep=keep) for one in teachers]  # (N, D) each
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
    """Write the quantities of SHARD windows, one .npy file each. label_ce is written last."""
    numbers = np.arange(number * SHARD, min((number + 1) * SHARD, about["windows"]))
    ids = torch.uint16 if about["vocab_size"] <= 2**16 else torch.uint32
    parts, types = {}, dict(ids=ids, log_p=torch.float16, hidden=torch.float16)
    batches = np.split(numbers, range(BATCH, len(numbers), BATCH))
    for batch in common.progress(f"file {number}: windows read:", batches, len(numbers), len):
        for name, value in quantities(teachers, data, batch, about, env).items():
            parts.setdefault(name, []).append(value.cpu().to(types.get(name, value.dtype)).numpy())
    for name in (*NAMES[about["kind"]], "label_ce"):
        stored = np.concatenate(parts[name])
        check(np.isfinite(stored).all(), f"the teacher's {name} do not fit into float16")
        with common.atomic_write(folder / f"{name}-{number:04}.npy") as file:
            np.save(file, stored)


def main(cfg):
    """Make the cache, continue it after a stop, or say that it is already made."""
    common.between(cfg, 1, 2**32 - 1, "k", "window")
    common.between(cfg, 0.01, 1000, "temperature")
    hidden = cfg.kind == "hidden"
    check(not hidden or not cfg.others and not {"temperature", "k"} & cfg.given,
          "--kind hidden: use one teacher (states have no mean), no --temperature and no --k")
    env, folder = common.device_and_dtype(cfg), Path(cfg.out)
    paths = [cfg.teacher, *(cfg.others or [])]
    loaded = [checkpoints.load_teacher(replace(cfg, teacher=path), env) for path in paths]
    teachers, (tokenizer, *others), inputs = zip(*loaded)
    context = min(teacher.config.max_seq_len for teacher in teachers)
    check(cfg.window <= context, f"--window {cfg.window}: the teacher's context is {context}")
    check(all(other.fingerprint == tokenizer.fingerprint for other in others),
          f"{', '.join(map(show, paths))} have different tokenizers")
    data, _ = open_text(cfg, tokenizer, {})
    k = {"topk": min(cfg.k, tokenizer.vocab_size), "sampled": cfg.k, "hidden": 0}[cfg.kind]
    about = dict(kind=cfg.kind, vocab_size=tokenizer.vocab_size, windows=len(data["ids"]), k=k,
                 temperature=None if hidden else cfg.temperature, seed=cfg.seed, dtype=env.dtype,
                 teacher_fingerprint="+".join(sorted(i["teacher_fingerprint"] for i in inputs)),
                 tokenizer_fingerprint=tokenizer.fingerprint, **what_it_is_of(cfg, data))
    lock = common.lock(folder)  # held until this function ends  # noqa: F841
    made = read_about(folder)
    check(made or not any(folder.glob("[!.]*")), f"--out {show(folder)} contains other files")
    if made and not cfg.fresh:
        common.refuse_others(folder, made, about)
    else:
        shutil.rmtree(folder, ignore_errors=True)
        common.write_file(folder / "about.json", json.dumps(about, indent=1))
    tokenizer.save(folder / "tokenizer.model")
    with common.atomic_write(folder / "head.npy") as file:
        np.save(file, teachers[0].lm_head.weight.float().cpu().numpy())
    todo = missing(folder, about)
    for number in todo:
        write_shard(folder, number, teachers, data, about, env)
    size, tokens = sum(p.stat().st_size for p in folder.glob("*-*.npy")), data["meta"]["supervised"]
    print(f"{show(folder)}: {'made' if todo else 'already made'}, {tokens:,} tokens, "
          f"{size / max(tokens, 1):.0f} bytes each, {size / 1e6:,.1f} MB")
    given = sorted(cfg.given & {"data", "val", *SAME, "temperature", "skip_bad_lines"})
    print("next: " + common.command("train_distill_logits.py", name="student-cached", cache=folder,
                                    **{name: getattr(cfg, name) for name in given}))


if __name__ == "__main__":
    common.run(main, Config)
