"""Windows on disk -> the tensors of one optimizer step, the same everywhere and after a resume.

An epoch is a seeded permutation of all windows. Step s takes places s*batch .. (s+1)*batch of the
endless row of epochs, so the number of the step is the whole data cursor: nothing else to save.
"""
import functools
import hashlib
import shutil

import numpy as np
import torch

import cli
from dataset import mixture, prepare
from dataset.formats import is_text
from tokenizer import check_fingerprint


def open_data(path, tokenizer, window, target="cot", loss_on="response", documents=0,
              skip_bad_lines=False, long_frac=-1):
    """A folder of prepare.py, or any file that it reads (prepared on the spot, once, in out/data).

    Returns a dict: ids, mask, document (windows, window + 1) arrays on disk, meta, and `name`.
    Raises UserError where the data were cut by another tokenizer. long_frac: see mixture.py.
    """
    path = cli.need_file(path, "bash speedrun.sh makes the default data; or name a file of yours",
                         folder=long_frac == -1)
    if long_frac != -1:
        settings = (cli.sha256_file(path), tokenizer.fingerprint, long_frac, documents,
                    skip_bad_lines)
        mixed = cli.OUT / "data" / "windows" / f"{path.stem}-{hash_of(settings)}.jsonl"
        if not mixed.exists():
            mixture.write_mixture(path, mixed, tokenizer, long_frac, documents, skip_bad_lines)
        path, documents = mixed, 0
    if path.is_file():
        settings = (cli.sha256_file(path), is_text(path), tokenizer.fingerprint,
                    window, target, loss_on, documents, skip_bad_lines)
        key = hash_of(settings)
        folder = cli.OUT / "data" / "windows" / f"{path.stem}-{key}"
        try:
            prepare.open_windows(folder)
        except cli.UserError:  # not there yet, or damaged: it is ours to make again
            shutil.rmtree(folder, ignore_errors=True)
            prepare.prepare(path, folder, tokenizer, window=window, target=target, loss_on=loss_on,
                            documents=documents, skip_bad_lines=skip_bad_lines)
        path = folder
    ids, mask, document, meta = prepare.open_windows(path)
    check_fingerprint(meta["fingerprint"], tokenizer.fingerprint, path, "prepare it again")
    asked = dict(window=window, target=target, loss_on=loss_on)
    asked |= dict(limit=documents) if documents else {}  # a folder of some rows may be all
    differing = [f"--{k.replace('limit', 'documents').replace('_', '-')} {meta[k]} there, {v} asked"
                 for k, v in asked.items() if meta[k] != v]
    if differing:
        cli.fail(f"the windows in {cli.show(path)} were made with other settings",
                 "; ".join(differing), fix="pass what is there, or prepare again")
    return dict(ids=ids, mask=mask, document=document, meta=meta, name=cli.show(path))


def hash_of(settings):
    """Ten hex digits that name a set of settings."""
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:10]


@functools.lru_cache(maxsize=2)
def epoch_order(windows, epoch, seed):
    """The permutation of one epoch."""
    return np.random.default_rng([seed, epoch]).permutation(windows)


def step_windows(windows, step, batch, seed):
    """The `batch` window numbers of a step; an epoch's end may fall inside it."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array([epoch_order(windows, p // windows, seed)[p % windows] for p in places])


def tensors(data, numbers, device="cpu"):
    """Windows -> x, y, document, weight, each (B, T): y is x shifted by one, weight is 1.0 where y
    counts, else 0.0."""
    ids = torch.from_numpy(data["ids"][numbers].astype(np.int64))  # (B, T + 1)
    weight = torch.from_numpy(data["mask"][numbers].astype(np.float32))
    document = torch.from_numpy(data["document"][numbers].astype(np.int64))
    batch = (ids[:, :-1], ids[:, 1:], document[:, :-1], weight[:, 1:])
    return [t.contiguous().to(device, non_blocking=True) for t in batch]


def step_batches(data, step, cfg, env, tag_ids=(), tag_weight=1.0):
    """One optimizer step's micro-batches of this rank, each x, y, document, weight and the numbers
    of its windows; n_valid and counts over ALL of the step.

    Every rank sees which windows belong to the step and how much weight they carry, so n_valid
    needs no communication: a loss divided by it and summed is right under accumulation and across
    ranks.
    """
    numbers = step_windows(len(data["ids"]), step, cfg.batch, cfg.seed)  # (batch,)
    x, y, document, weight = tensors(data, numbers)
    # through the student, padding excluded; and those that count
    counts = dict(tokens=int((document > 0).sum()), supervised=int((weight > 0).sum()))
    if tag_weight != 1.0:
        is_tag = torch.isin(y, torch.tensor(sorted(tag_ids)))
        weight = torch.where(is_tag & (weight > 0), tag_weight, weight)  # in the response, by id
    n_valid = max(weight.sum().item(), 1.0)  # nothing counts: loss 0, not 0/0
    parts = cfg.accumulate * env.world
    if (document == document[0, 0]).all():
        document = None  # one document: plain causal attention, which is faster
    batches = []
    for i in range(env.rank, parts, env.world):
        rows = slice(i * cfg.batch // parts, (i + 1) * cfg.batch // parts)
        batches.append([None if t is None else t[rows].to(env.device, non_blocking=True)
                        for t in (x, y, document, weight)] + [numbers[rows]])
    return batches, n_valid, counts


def eval_batches(data, batch, limit=0, device="cpu"):
    """All windows in order, for validation; or `limit` of them, evenly spread.

    Not the first ones: packing puts the longest documents there.
    """
    windows = len(data["ids"])
    chosen = np.linspace(0, windows - 1, min(limit or windows, windows)).astype(int)
    for start in range(0, len(chosen), batch):
        numbers = chosen[start:start + batch]
        x, y, document, weight = tensors(data, numbers, device)
        yield x, y, (None if (document == document[0, 0]).all() else document), weight
