"""A training reads a teacher's cache (dataset/teacher_cache.py makes it).

    cache = open_cache(cfg, env, data)                         refused unless it is of these tokens
    kd, teacher_ce = cached_divergence(cache, numbers, logits, cfg, mix)          (N,) each

A row is a counted token, in reading order. Rows are found by the number of their window.
"""
import json
from pathlib import Path

import numpy as np
import torch

import checkpoints
import common
from common import UserError, check, show
from losses import divergence, sampled_forward_kl, topk_divergence
from tokenizer import Tokenizer

SHARD = 4096  # windows in a file
SAME = ("window", "target", "documents")  # flags that training and cache must share
NAMES = {"topk": ("ids", "log_p"), "sampled": ("ids", "negentropy"), "hidden": ("hidden",)}


def shard_path(folder, name, number):
    """Where one quantity of SHARD windows lies."""
    return Path(folder) / f"{name}-{number:04}.npy"


def missing(folder, about):
    """The numbers of the shards that are not there yet."""
    return [number for number in range(-(-about["windows"] // SHARD))
            if not shard_path(folder, "label_ce", number).exists()]


def what_it_is_of(cfg, data):
    """What training and cache must share, so that each row is the right token's."""
    return dict(data_sha256=data["meta"]["source_sha256"],
                tokens=int((data["mask"][:, 1:] > 0).sum()),
                **{name: getattr(cfg, name) for name in SAME})


def read_about(cfg):
    """The description of --cache, or UserError."""
    try:
        about = json.loads((Path(cfg.cache) / "about.json").read_text(encoding="utf-8"))
        return about | dict(kind=about["kind"])  # a set of stories has an about.json, too
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"--cache {cfg.cache}: no cache; python dataset/teacher_cache.py makes "
                        "one") from None


def load_teacher(cfg, env):
    """(teacher, its tokenizer, what the run remembers of it). With --cache the teacher is None."""
    if not cfg.cache:
        return checkpoints.load_teacher(cfg, env)
    about = read_about(cfg)
    if "teacher" in cfg.given:
        _, _, named = checkpoints.load_teacher(cfg, common.device_and_dtype(cfg))
        check(named["teacher_fingerprint"] in about["teacher_fingerprint"].split("+"),
              f"--teacher {cfg.teacher}: {cfg.cache} is of another one")
    inputs = dict(teacher_fingerprint=about["teacher_fingerprint"],
                  cache_sha256=common.sha256_file(Path(cfg.cache) / "about.json"))
    return None, Tokenizer.load(Path(cfg.cache) / "tokenizer.model"), inputs


def open_cache(cfg, env, data):
    """--cache for these windows and this training -> dict: its arrays and all that reading them
    needs.

    UserError for other data, another temperature, or a divergence that the cache cannot give.
    """
    folder, about, now = Path(cfg.cache), read_about(cfg), what_it_is_of(cfg, data)
    differing = [f"{key} {about.get(key)} there, {value} here" for key, value in now.items()
                 if about.get(key) != value]
    check(not differing, f"{show(folder)} was made from other data: {', '.join(differing)}")
    check(not missing(folder, about), f"{show(folder)} is not finished; its command goes on")
    check(about["temperature"] in (None, cfg.temperature), f"{show(folder)} is of temperature "
          f"{about['temperature']}, not {cfg.temperature}; --kind hidden has every temperature")
    check(about["kind"] != "sampled" or cfg.divergence == "forward_kl",
          f"{show(folder)}: a sampled cache has forward KL only; topk and hidden have the others")
    shards = [{name: np.load(shard_path(folder, name, number), mmap_mode="r")
               for name in (*NAMES[about["kind"]], "label_ce")}
              for number in range(-(-about["windows"] // SHARD))]
    counts = (data["mask"][:, 1:] > 0).sum(1)                   # (windows,) counted tokens of each
    ends = [np.cumsum(counts[i:i + SHARD]) for i in range(0, len(counts), SHARD)]
    passes = cfg.steps * cfg.batch / len(counts)
    facts = {"cache": f"{show(folder)}: {about['kind']}, k {about['k']}"}
    if about["kind"] == "sampled" and passes > 1:
        facts["draws"] = f"each is read {passes:.1f} times and can be learned: kd may fall below 0"
    head = torch.from_numpy(np.load(folder / "head.npy")).to(env.device)  # (V, D)
    return dict(kind=about["kind"], shards=shards, ends=ends, counts=counts, head=head, facts=facts)


def rows_of(cache, numbers, device="cpu"):
    """What is cached of some windows, by their numbers, in that order -> {name: (N, ...)}."""
    found = {}
    for number in numbers:
        shard, place = divmod(number, SHARD)
        end = cache["ends"][shard][place]
        for name, array in cache["shards"][shard].items():
            rows = array[end - cache["counts"][number]:end]
            rows = rows.astype(np.int64 if name == "ids" else np.float32)
            found.setdefault(name, []).append(torch.from_numpy(rows))
    return {name: torch.cat(parts).to(device, non_blocking=True) for name, parts in found.items()}


def cached_divergence(cache, numbers, logits, cfg, mix):
    """(kd, the teacher's ce) of the counted tokens of some windows, each (N,), from what is cached
    and the student's logits (N, V)."""
    rows, name, tau = rows_of(cache, numbers, logits.device), cfg.divergence, cfg.temperature
    if cache["kind"] == "hidden":
        kd = divergence(name, logits, rows["hidden"] @ cache["head"].T, tau, mix)
    elif cache["kind"] == "sampled":
        kd = sampled_forward_kl(logits, rows["ids"], rows["negentropy"], tau)
    else:
        kd = topk_divergence(name, logits, rows["ids"], rows["log_p"], tau, mix)
    return kd, rows["label_ce"]
