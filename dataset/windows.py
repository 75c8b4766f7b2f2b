"""Text or JSONL -> windows of tokens on disk, cut once -> the tensors of one optimizer step.

A window is window + 1 tokens, so that x = ids[:-1] and y = ids[1:] are `window` long:

    ids       <user> 2 + 3 ? <end> <assistant> 5 <end> | <user> ...         <pad> <pad>
    mask        0    0 0 0 0   0        0      1   1   |   0                  0     0
    document    1    1 1 1 1   1        1      1   1   |   2                  0     0

Conversations are packed whole, never split; the first token of a document is never learned, because
its predecessor belongs to another one. Plain text is one stream for each 4 MB of the file,
documents apart by <end>; its windows overlap by one token and attention crosses documents (document
1 throughout). A document number of 0 is padding.

An epoch is a seeded permutation of all windows. Step s takes places s*batch .. (s+1)*batch of the
endless row of epochs, so the number of the step is the whole data cursor: nothing else to save.
"""
import contextlib
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from bisect import bisect_left, insort
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

import common
from common import OUT, check, show, write_file
from dataset.formats import (CHUNK, bad_lines_text, chunks, documents_of, encode_document, forms,
                             is_text, note, parse_row)
from losses import cross_entropy, forward_kl
from tokenizer import Tokenizer

VERSION = 3          # of the files below
SORTED = 1024        # documents packed at a time, the longest first
OPEN_WINDOWS = 1024  # windows that may still take a document
NAMES = ("ids", "mask", "document")


# --- one chunk of a file becomes windows ----------------------------------------------------------

def cut(tokenizer, path, window, target, skip_bad_lines, chunk):
    """(first line, lines) of a file -> [ids, mask, document], each (windows, window + 1); numbers;
    what was left out."""
    first, lines = chunk
    packed, stream, report = Packed(window + 1), [], {}
    numbers = Counter(documents=0, too_long=0, longest=0, bytes=sum(map(len, lines)))
    parse = functools.partial(parse_row, report=report)
    for _, document in documents_of(path, first, lines, skip_bad_lines, report, parse):
        for form in forms(document, target):
            ids, mask = encode_document(tokenizer, document, form)
            if isinstance(document, str):
                stream += ids
            elif len(ids) <= window + 1:
                packed.add(ids, mask)
            else:
                numbers["too_long"] += 1
                numbers["longest"] = max(numbers["longest"], len(ids))
                continue
            numbers["documents"] += 1
    # text and conversations may be in one file
    pairs = zip(packed.arrays(tokenizer.pad), stream_arrays(stream, window, tokenizer.pad))
    ids, mask, document = arrays = [np.concatenate(pair).astype(dtype)
                                    for pair, dtype in zip(pairs, dtypes(tokenizer))]
    numbers.update(windows=len(ids), tokens=int((document > 0).sum()),
                   supervised=int(mask[:, 1:].sum()))
    return arrays, numbers, report


class Packed:
    """Documents packed whole into windows of `size` tokens, each where it leaves least room.

    Padding of the stories at 256: 5.1 % in the order of the file, 3.3 % with the longest of 1,024
    first.
    """

    def __init__(self, size):
        self.size, self.waiting, self.windows = size, [], []
        self.open = []  # sorted (room, number of the window)

    def add(self, ids, mask):
        """One document, its ids and mask; placed with others, the longest first."""
        self.waiting.append((ids, mask))
        if len(self.waiting) == SORTED:
            self.place_all()

    def place_all(self):
        """Give every waiting document the fullest window that still has room for it, or a new
        one."""
        for ids, mask in sorted(self.waiting, key=lambda pair: -len(pair[0])):
            place = bisect_left(self.open, (len(ids), 0))
            if place < len(self.open):
                room, number = self.open.pop(place)
            else:
                room, number = self.size, len(self.windows)
                self.windows.append([])
                if len(self.open) >= OPEN_WINDOWS:
                    self.open.pop(0)
            self.windows[number].append((ids, mask))
            if room > len(ids):
                insort(self.open, (room - len(ids), number))
        self.waiting = []

    def arrays(self, pad):
        """ids, mask and document number, (windows, window + 1) each."""
        self.place_all()
        all_ids = np.full((len(self.windows), self.size), pad)  # (windows, window + 1)
        all_mask, all_documents = np.zeros_like(all_ids), np.zeros_like(all_ids)
        for number, content in enumerate(self.windows):
            start = 0
            for order, (ids, mask) in enumerate(content, 1):
                here = slice(start, start + len(ids))
                all_ids[number, here], all_mask[number, here] = ids, mask
                all_documents[number, here] = order
                start += len(ids)
        return all_ids, all_mask, all_documents


def stream_arrays(stream, window, pad):
    """A stream of tokens in windows that share a border token: all but the first learned once."""
    count = -(-(len(stream) - 1) // window) if stream else 0
    padded = np.full(max(count, 1) * window + 1, pad)
    padded[:len(stream)] = stream
    real = (np.arange(len(padded)) < len(stream)).astype(np.uint8)
    ids, real = (sliding_window_view(a, window + 1)[::window][:count] for a in (padded, real))
    mask = real.copy()
    mask[:, 0] = 0  # the last token of the window before: learned there
    return ids, mask, real


# --- a whole file, once ---------------------------------------------------------------------------

def open_data(path, tokenizer, window, target="cot", documents=0, skip_bad_lines=False):
    """The windows of any file that formats.py reads, cut once and kept under a hash of all that
    they depend on -> dict: ids, mask, document (windows, window + 1), read-only on disk, and meta.

    documents: only the first so many rows; 0: all. UserError if nothing in the file can be learned.
    """
    next(chunks(path, documents))  # UserError for a file that cannot be read
    source = common.sha256_file(path)
    settings = (VERSION, source, is_text(path), tokenizer.fingerprint, window, target, documents,
                skip_bad_lines)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:10]
    folder = OUT / "windows" / f"{Path(path).stem}-{key}"
    with common.lock(folder, wait=True):  # several runs and ranks may start at once
        if not folder.exists():
            settings = window, target, skip_bad_lines
            write_windows(path, folder, tokenizer, settings, documents, source)
    arrays = {name: np.memmap(folder / f"{name}.bin", dtype, "r").reshape(-1, window + 1)
              for name, dtype in zip(NAMES, dtypes(tokenizer))}
    return dict(arrays, meta=json.loads((folder / "meta.json").read_text(encoding="utf-8")))


def dtypes(tokenizer):
    """Of ids, mask and document on disk."""
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32, np.uint8, np.uint16


def write_windows(path, folder, tokenizer, settings, documents, source):
    """Cut a file into windows on all cores, in a temporary folder, which is renamed at the end."""
    temporary, window = folder.with_name(f".{folder.name}.tmp"), settings[0]
    shutil.rmtree(temporary, ignore_errors=True)  # of a killed writer: the lock is ours
    temporary.mkdir(parents=True)
    total, report, size = Counter(), {}, os.path.getsize(path)
    began = shown = time.time()
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, temporary, ignore_errors=True)  # after an error
        files = [stack.enter_context(open(temporary / f"{name}.bin", "wb")) for name in NAMES]
        for arrays, numbers, more in cut_all(tokenizer, path, settings, documents):
            for file, array in zip(files, arrays):
                file.write(array.data)
            total["longest"] = max(total["longest"], numbers.pop("longest"))
            total.update(numbers)
            for reason, (count, places) in more.items():
                note(report, reason, count, places)
            if time.time() - shown > 5:
                shown = time.time()
                done, rate = total["bytes"], total["bytes"] / (shown - began)
                print(f"{show(path)}: {done / 1e6:.1f}/{size / 1e6:.1f} MB | {rate / 1e6:.1f} MB/s "
                      f"| eta {(size - done) / rate:.0f} s")
        for file in files:
            file.flush()
            os.fsync(file.fileno())
        why = f"nothing to learn from; {bad_lines_text(report) or 'no row'}"
        if total["too_long"]:
            why = f"all documents are longer than the window; --window {total['longest'] - 1} fits"
        check(total["windows"], f"{show(path)}: {why}")
        padding = 1 - total["tokens"] / (total["windows"] * (window + 1))
        write_file(temporary / "meta.json", json.dumps(dict(
            total, window=window, source_sha256=source, padding_share=padding, left_out=report)))
        os.rename(temporary, folder)


def cut_all(tokenizer, path, settings, documents):
    """Yield `cut` of every chunk of a file, in order; by several processes if there are several."""
    jobs = chunks(path, documents)
    if os.path.getsize(path) <= CHUNK:
        for chunk in jobs:
            yield cut(tokenizer, path, *settings, chunk)
        return
    # spawn: a fork of a process in which torch runs threads may hang
    workers, waiting = os.cpu_count(), deque()
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker,
                             (tokenizer.model_bytes,)) as pool:
        for chunk in jobs:
            waiting.append(pool.submit(work, path, *settings, chunk))
            if len(waiting) > 2 * workers:  # few results in memory at any time
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def start_worker(model_bytes):
    """What each process needs once. A killed parent leaves none behind; Ctrl-C is for the
    parent."""
    global worker_tokenizer
    worker_tokenizer, parent = Tokenizer(model_bytes), multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(*job):
    """One chunk, in a process of the pool."""
    return cut(worker_tokenizer, *job)


def summary(meta):
    """One line that says what a file became, and what was left out."""
    parts = [f"{meta['windows']:,} windows of {meta['window']}", f"{meta['documents']:,} documents",
             f"{meta['tokens']:,} tokens, {meta['supervised']:,} supervised",
             f"padding {meta['padding_share']:.1%}"
             + " (a larger --window pads less)" * (meta["padding_share"] > 0.1)]
    if meta["too_long"]:
        parts.append(f"{meta['too_long']:,} documents left out: too long, to {meta['longest']}")
    return " | ".join([*parts, *filter(None, [bad_lines_text(meta["left_out"])])])


# --- windows become tensors -----------------------------------------------------------------------

def open_text(cfg, tokenizer, inputs):
    """(train, val) windows of a training; `inputs` gets what the run must remember of them."""
    check("val" in cfg.given or "data" not in cfg.given,
          f"--data {cfg.data} needs --val, text of the same kind: hold back a tenth of it, say")
    options = dict(window=cfg.window, target=cfg.target, skip_bad_lines=cfg.skip_bad_lines)
    val = open_data(cfg.val, tokenizer, **options)
    train = open_data(cfg.data, tokenizer, documents=cfg.documents, **options)
    inputs |= dict(data_sha256=train["meta"]["source_sha256"],
                   val_sha256=val["meta"]["source_sha256"],
                   tokenizer_fingerprint=tokenizer.fingerprint)
    return train, val


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
    """One optimizer step's micro-batches of this rank, each x, y, document, weight (B, T) and the
    numbers (B,) of its windows; n_valid and counts over ALL of the step.

    Every rank sees which windows belong to the step and how much weight they carry, so n_valid
    needs no communication: a loss divided by it and summed is right under accumulation and across
    ranks. document is None if there is one document: plain causal attention is faster.
    """
    numbers = step_windows(len(data["ids"]), step, cfg.batch, cfg.seed)  # (batch,)
    x, y, document, weight = tensors(data, numbers)
    # tokens through the student, padding excluded; and those that count
    counts = dict(tokens=int((document > 0).sum()), supervised=int((weight > 0).sum()))
    if tag_weight != 1.0:
        is_tag = torch.isin(y, torch.tensor(sorted(tag_ids)))
        weight = torch.where(is_tag & (weight > 0), tag_weight, weight)  # in the response, by id
    n_valid = max(weight.sum().item(), 1.0)  # nothing counts: loss 0, not 0/0
    parts = cfg.accumulate * env.world
    if (document == document[0, 0]).all():
        document = None
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
        x, y, document, weight = tensors(data, chosen[start:start + batch], device)
        yield x, y, (None if (document == document[0, 0]).all() else document), weight


@torch.no_grad()
def validation_ce(model, val, cfg, env):
    """Cross-entropy on validation data, nats a counted token; each rank reads its share."""
    ce_sum = count = 0.0
    batches = eval_batches(val, cfg.batch, cfg.eval_windows, env.device)
    for x, y, document, weight in itertools.islice(batches, env.rank, None, env.world):  # (B, T)
        keep = weight > 0                      # (B, T) the N tokens that count
        with env.autocast():
            logits = model(x, document, keep)  # (N, V)
        ce_sum += cross_entropy(logits, y[keep]).sum().item()
        count += keep.sum().item()
    ce_sum, count = common.sum_over_ranks([ce_sum, count], env)
    check(count > 0, f"--val {cfg.val}: no token counts")
    return ce_sum / count


@torch.no_grad()
def self_check(cfg, env, model, train, val, teacher=None):
    """Numbers that must be right before the first step, as lines for the log.

    The mean KL between two passes of the teacher is 0, or it is not deterministic (train mode).
    UserError if its logits are not finite.
    """
    vocab_size = model.config.vocab_size
    facts = {"data": f"{show(cfg.data)}: {summary(train['meta'])}",
             "validation": summary(val["meta"]),
             "tokens a step": f"{cfg.batch * cfg.window:,} with padding",
             "ce at start": f"{validation_ce(model, val, cfg, env):.3f} nats; "
                            f"ln V = {math.log(vocab_size):.3f} is guessing"}
    if teacher is None:
        return facts
    x, _, document, weight = next(eval_batches(val, cfg.batch, cfg.batch, env.device))
    with env.autocast():
        first, second = (teacher(x, document, weight > 0) for _ in range(2))  # (N, V)
    kl, ce = forward_kl(second, first).mean().item(), validation_ce(teacher, val, cfg, env)
    check(math.isfinite(kl) and math.isfinite(ce),
          f"the teacher's logits are not finite in {env.dtype}; try another --dtype or --teacher")
    return facts | {"teacher's ce": f"{ce:.3f} nats", "KL(teacher||teacher)": f"{kl:.1e} must be 0"}
