"""The files of a teacher's cache, and how a training reads them (cache_teacher.py makes them).

    cache = open_cache("out/data/cache", data, cfg)     refused unless it is of these tokens
    rows = rows_of(cache, window_numbers)               what is kept of them, token by token
    cached_divergence(cache, rows, "forward_kl", logits, mix)  (N,)

ids, log_p, negentropy, hidden, label_ce    a row a counted token, those of a kind: see `layout`
windows, head, tokenizer                    a checksum a window; the output matrix of kind hidden;
                                            the tokenizer, so that no file of the teacher is needed
about.json                                  what it is, and a checksum of each file; written last
"""
import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

import cli
from cli import fail, show
from losses import divergence, sampled_forward_kl, topk_divergence
from tokenizer import Tokenizer, check_fingerprint

SAME = ("window", "loss_on", "target", "documents")  # flags that training and cache must share
NAMES = ("ids.bin", "log_p.bin", "negentropy.bin", "hidden.bin", "label_ce.bin", "head.bin",
         "windows.bin", "tokenizer.model", "progress.json", "about.json")  # the files of a cache


def layout(about):
    """{file: (dtype, shape of one row)} of a cache; a row is a counted token, in reading order."""
    index = "uint16" if about["vocab_size"] <= 2**16 else "uint32"
    k, number = about["k"], about["payload"]
    return {"topk": {"ids": (index, (k,)), "log_p": (number, (k + (k < about["vocab_size"]),))},
            "sampled": {"ids": (index, (k,)), "negentropy": ("float32", ())},
            "hidden": {"hidden": (number, (about["dim"],))},
            }[about["kind"]] | {"label_ce": ("float32", ())}


def files_of(about):
    """The names of a cache's files, all but about.json, which holds a checksum of each."""
    arrays = [*layout(about), "windows"] + ["head"] * (about["kind"] == "hidden")
    return [*(f"{name}.bin" for name in arrays), "tokenizer.model"]


def row_bytes(about):
    """Bytes a counted token."""
    return sum(np.dtype(d).itemsize * int(np.prod(s)) for d, s in layout(about).values())


def checksums(ids):
    """(windows,) uint32: one for the tokens of each window (windows, window + 1)."""
    return np.array([zlib.crc32(np.ascontiguousarray(row, dtype=np.uint32)) for row in ids],
                    dtype=np.uint32)


def first_rows(mask):
    """(windows + 1,): the number of counted tokens before each window."""
    return np.concatenate([[0], np.cumsum((mask[:, 1:] > 0).sum(1))])


def open_arrays(folder, about, mode):
    """{file: memory map (tokens, ...)}; UserError where one has another size than it must have."""
    found = {}
    for name, (dtype, shape) in layout(about).items():
        path, size = folder / f"{name}.bin", about["tokens"] * int(np.prod(shape))
        size *= np.dtype(dtype).itemsize
        if mode == "w":
            with open(path, "wb") as file:  # room is taken now: a memory map that finds none dies
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, size)
                file.truncate(size)
        have = path.stat().st_size if path.exists() else 0
        if have != size:
            fail(f"{show(path)} is cut short or changed", f"{have:,} bytes", f"{size:,}",
                 "make the cache again with --fresh")
        found[name] = np.memmap(path, dtype=dtype, mode="r+" if mode == "w" else mode,
                                shape=(about["tokens"], *shape))
    return found


def read_json(path, fits):
    """The dict in a file, or UserError where there is none, or where `fits(dict)` is not True."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        ok = fits(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        ok = False
    if not ok:
        fail(f"{show(path)} is damaged, or not of this script",
             fix="make the cache again with --fresh, or in another folder")
    return found


def is_about(found):
    """Whether a dict describes a finished cache; a KeyError where a key is missing or unknown."""
    tau, whole = found["temperature"], ("k", "dim", "vocab_size", "tokens", "windows")
    return (all(type(found[key]) is int for key in whole)
            and (tau is None if found["kind"] == "hidden" else type(tau) in (int, float))
            and found["payload"] in ("float16", "float32")
            and all(type(found[f"{of}_fingerprint"]) is str for of in ("teacher", "tokenizer"))
            and isinstance(found["sha256"], dict) and {*files_of(found)} <= {*found["sha256"]})


def read_about(path):
    """The description of a finished cache, or UserError."""
    folder = cli.need_file(path, "python dataset/cache_teacher.py", folder=True)
    if (folder / "progress.json").exists() and not (folder / "about.json").exists():
        fail(f"{show(folder)} is not finished", fix="the command that began it goes on")
    file = cli.need_file(folder / "about.json", "python dataset/cache_teacher.py")
    return read_json(file, is_about)


def cached_tokenizer(path):
    """The tokenizer of a cache: with it, no file of the teacher is needed."""
    tokenizer, about = Tokenizer.load(Path(path) / "tokenizer.model"), read_about(path)
    fix = "make the cache again with --fresh"
    check_fingerprint(tokenizer.fingerprint, about["tokenizer_fingerprint"], path, fix)
    if tokenizer.vocab_size != about["vocab_size"]:
        fail(f"{show(path)} and its tokenizer differ in vocabulary",
             f"{about['vocab_size']} and {tokenizer.vocab_size}", fix=fix)
    return tokenizer


def describe_cache(cache):
    """Its lines in the self-check of a training; a second one where draws are read again."""
    about, facts = cache["about"], {}
    facts["cache"] = (f"{show(cache['folder'])}: {about['kind']}, k {about['k']}, "
                      f"{about['tokens']:,} tokens")
    if about["kind"] == "sampled" and cache["passes"] > 1:
        facts["draws"] = (f"each is read {cache['passes']:.1f} times; the student "
                          "can learn them by heart: kd may fall below 0")
    return facts


def open_cache(path, data, cfg, device="cpu"):
    """A cache for these windows and this training -> dict: its arrays, what is needed to read them.

    UserError for other data, another temperature, or a divergence that the cache cannot give.
    """
    folder, about = Path(path), read_about(path)
    now = dict(data_sha256=data["meta"]["source_sha256"], windows=len(data["ids"]),
               tokens=int((data["mask"][:, 1:] > 0).sum()),
               **{name: getattr(cfg, name) for name in SAME})
    differing = [f"{key} {about.get(key)} there, {value} here" for key, value in now.items()
                 if about.get(key) != value]
    if differing:
        fail(f"{show(folder)} was made from other data: " + ", ".join(differing),
             fix="the same flags for both, or python dataset/cache_teacher.py with these")
    tau = about["temperature"]
    if tau is not None and tau != cfg.temperature:
        fail(f"{show(folder)} holds distributions at another temperature", cfg.temperature, tau,
             f"--temperature {tau}, or --kind hidden, which has every temperature")
    if about["kind"] == "sampled" and cfg.divergence != "forward_kl":
        fail("a sampled cache has forward KL alone", cfg.divergence, "forward_kl",
             "--kind topk, or hidden")
    fix = "make the cache again with --fresh"
    for name in files_of(about):
        if cli.sha256_file(cli.need_file(folder / name, fix)) != about["sha256"][name]:
            fail(f"{show(folder / name)} is cut short or changed", fix=fix)
    found = dict(open_arrays(folder, about, "r"), about=about, folder=folder, tau=cfg.temperature,
                 device=device, passes=cfg.steps * cfg.batch / len(data["ids"]),
                 first_rows=first_rows(data["mask"]), ids_of=data["ids"])
    found["checksums"] = np.fromfile(folder / "windows.bin", dtype=np.uint32)
    if about["kind"] == "hidden":
        head = np.fromfile(folder / "head.bin", dtype=np.float32)
        found["head"] = torch.from_numpy(
            head.reshape(about["vocab_size"], about["dim"])).to(device)
    return found


def rows_of(cache, numbers):
    """What is cached of some windows, by their numbers, in that order -> {file: (N, ...)}."""
    wrong = numbers[checksums(cache["ids_of"][numbers]) != cache["checksums"][numbers]]
    if len(wrong):
        fail(f"{show(cache['folder'])}: window {wrong[0]} has other tokens than when it was cached",
             fix="python dataset/cache_teacher.py --fresh")
    begin, end = cache["first_rows"][numbers], cache["first_rows"][numbers + 1]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(begin, end)])
    found = {}
    for name in layout(cache["about"]):
        value = torch.from_numpy(cache[name][rows].astype(
            np.int64 if name == "ids" else np.float32)).to(cache["device"], non_blocking=True)
        found[name] = value
    return found


def cached_divergence(cache, rows, name, logits, mix):
    """A divergence of the student's logits (N, V) from what is cached of these tokens -> (N,), at
    the training's temperature."""
    kind, tau = cache["about"]["kind"], cache["tau"]
    if kind == "hidden":
        return divergence(name, logits, rows["hidden"] @ cache["head"].T, tau, mix)
    if kind == "sampled":
        return sampled_forward_kl(logits, rows["ids"], rows["negentropy"], tau)
    return topk_divergence(name, logits, rows["ids"], rows["log_p"], tau, mix)
