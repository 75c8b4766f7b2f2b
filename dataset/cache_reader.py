"""Read a teacher's cache during training. dataset/teacher_cache.py writes it.

Each token that counts in the loss has one row. Rows are in the order of the windows on disk.
"""
import json
from pathlib import Path

import numpy as np
import torch

import checkpoints
from common import check, sha256_file, show
from losses import divergence, sampled_forward_kl, topk_divergence
from tokenizer import Tokenizer

SHARD = 4096  # windows in one file
SAME = ("window", "target", "documents")  # flags that must be equal in training and cache
NAMES = {"topk": ("ids", "log_p"), "sampled": ("ids", "negentropy"), "hidden": ("hidden",)}


def missing(folder, about):
    """The numbers of the shards still to be made. label_ce is the last file of a shard."""
    return [number for number in range(-(-about["windows"] // SHARD))
            if not (folder / f"label_ce-{number:04}.npy").exists()]


def what_it_is_of(cfg, data):
    """A dict that must be equal in training and cache. Otherwise rows are of other tokens."""
    return dict(data_sha256=data["meta"]["source_sha256"],
                tokens=int((data["mask"][:, 1:] > 0).sum()),
                **{name: getattr(cfg, name) for name in SAME})


def read_about(folder):
    """The about.json of a cache as a dict; {} if it is missing or belongs to something else."""
    file = Path(folder) / "about.json"
    about = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return about if "teacher_fingerprint" in about else {}


def load_teacher(cfg, env):
    """-> (teacher, its tokenizer, hashes that the run saves). With --cache the teacher is None."""
    if not cfg.cache:
        return checkpoints.load_teacher(cfg, env)
    folder, about = Path(cfg.cache), read_about(cfg.cache)
    check(about, f"--cache {folder} is not a cache; python dataset/teacher_cache.py makes one")
    made_by = about["teacher_fingerprint"]
    if "teacher" in cfg.given:
        named = checkpoints.load_teacher(cfg, env)[2]["teacher_fingerprint"]
        check(named in made_by.split("+"), f"--teacher {cfg.teacher}: {folder} has another teacher")
    inputs = dict(teacher_fingerprint=made_by, cache_sha256=sha256_file(folder / "about.json"))
    return None, Tokenizer.load(folder / "tokenizer.model"), inputs


def open_cache(cfg, env, data):
    """Open --cache for the windows `data` -> dict of arrays on disk and the places of rows in them.
    UserError: unfinished, other data, another temperature, or a divergence it cannot give."""
    folder, about = Path(cfg.cache), read_about(cfg.cache)
    differing = [f"--{key} {about[key]} there, {value} here" if key in SAME else "--data or --val"
                 for key, value in what_it_is_of(cfg, data).items() if about[key] != value]
    check(not differing, f"{show(folder)} is of another training: {''.join(differing[-1:])}")
    check(not missing(folder, about), f"{show(folder)} is not finished; run its command again")
    check(about["temperature"] in (None, cfg.temperature), f"{show(folder)} is for temperature "
          f"{about['temperature']}, not {cfg.temperature}; --kind hidden fits every temperature")
    check(about["kind"] != "sampled" or cfg.divergence == "forward_kl",
          f"{show(folder)}: a sampled cache gives forward KL only; topk and hidden give all")
    check(about["kind"] == "hidden" or vars(cfg).get("fused") != "on",
          f"--fused on: {show(folder)} has no hidden states; make it with --kind hidden")
    counts = (data["mask"][:, 1:] > 0).sum(1)  # (windows,) tokens that count
    starts = range(0, len(counts), SHARD)
    shards = [{name: np.load(folder / f"{name}-{at // SHARD:04}.npy", mmap_mode="r")
               for name in (*NAMES[about["kind"]], "label_ce")} for at in starts]
    ends = np.concatenate([np.cumsum(counts[at:at + SHARD]) for at in starts])  # end row in shard
    passes = cfg.steps * cfg.batch / len(counts)
    known = "; draws are memorised, kd may be below 0" * (about["kind"] == "sampled" and passes > 1)
    fact = f"{show(folder)}: {about['kind']}, k {about['k']}, read {passes:.1f} times{known}"
    return dict(kind=about["kind"], shards=shards, ends=ends, counts=counts, facts={"cache": fact},
                head=torch.from_numpy(np.load(folder / "head.npy")).to(env.device))  # (V, D)


def cached_rows(cache, numbers):
    """-> what is stored of the N tokens that count in windows `numbers`: {name: (N, ...)}; head."""
    rows, head = {}, cache["head"]
    for number in numbers:
        end = cache["ends"][number]
        for kept, array in cache["shards"][number // SHARD].items():
            rows.setdefault(kept, []).append(array[end - cache["counts"][number]:end])
    for kept, parts in rows.items():
        array = np.concatenate(parts).astype(np.int64 if kept == "ids" else np.float32)  # (N, ...)
        rows[kept] = torch.from_numpy(array).to(head.device, non_blocking=True)
    return rows | dict(head=head)


def cached_divergence(cache, numbers, logits, cfg, mix):
    """logits (N, V) of the tokens that count in windows `numbers` -> kd, teacher's ce: (N,)."""
    rows, name, tau = cached_rows(cache, numbers), cfg.divergence, cfg.temperature
    if cache["kind"] == "hidden":
        kd = divergence(name, logits, rows["hidden"] @ rows["head"].T, tau, mix)
    elif cache["kind"] == "sampled":
        kd = sampled_forward_kl(logits, rows["ids"], rows["negentropy"], tau)
    else:
        kd = topk_divergence(name, logits, rows["ids"], rows["log_p"], tau, mix)
    return kd, rows["label_ce"]
