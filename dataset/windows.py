"""Text or JSONL -> windows of tokens on disk, cut once -> the tensors of one optimizer step.

A window is window + 1 tokens, so that x = ids[:-1] and y = ids[1:] are `window` long:

    ids       <user> 2 + 3 ? <end> <assistant> 5 <end> | <user> ...         <pad> <pad>
    mask        0    0 0 0 0   0        0      1   1   |   0                  0     0
    document    1    1 1 1 1   1        1      1   1   |   2                  0     0

A conversation is in one window. If it is too long, it ends after its last answer that fits. Its
first token is never learned, because the token before it belongs to another document. Plain text is
one stream for each 4 MB of a file, with <end> after each document. Its windows overlap by a token.
Its documents all have number 1, so attention crosses them. Document number 0 is padding.
"""
import contextlib
import functools
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import threading
from bisect import bisect_left, insort
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from common import (OUT, atomic_write, check, command, data_files, lock, progress, sha256_file,
                    show, sum_over_ranks, write_file)
from dataset.formats import (CHUNK, bad_lines_text, chunks, encode_document, forms, is_text, note,
                             parse_row, read_documents)
from losses import cross_entropy, divergence

VERSION = 5  # of the files on disk
SORTED, OPEN_WINDOWS = 1024, 1024  # documents sorted together; windows kept open
NAMES = ("ids", "mask", "document")


def open_data(path, tokenizer, window, target="cot", documents=0, skip_bad_lines=False, part=""):
    """A file or folder that formats.py reads -> dict: meta, and ids, mask, document, each (windows,
    window + 1): read-only arrays on disk. They are made once for the same arguments and content.
    documents: only the first N rows; 0: all. part: "" is everything; "val" is a tenth, "train" the
    rest, see border. UserError if there is nothing to learn from."""
    next(chunks(path, documents))  # UserError if the file cannot be read
    source = sha256_file(path)
    settings = (VERSION, source, is_text(path), tokenizer.fingerprint, window, target, documents,
                skip_bad_lines, part)
    key = hashlib.sha256(repr(settings).encode()).hexdigest()[:10]
    folder = OUT / "windows" / f"{Path(path).stem}-{key}"
    with lock(folder, wait=True):  # several runs and ranks may start at once
        if not (folder / "meta.json").exists():  # written last
            below = border(path, documents, skip_bad_lines) if part else ""
            job = functools.partial(cut, tokenizer, window, target, skip_bad_lines, below, part)
            write_windows(path, folder, window, source, cut_all(job, path, documents))
    arrays = {name: np.memmap(folder / f"{name}.bin", dtype, "r").reshape(-1, window + 1)
              for name, dtype in zip(NAMES, dtypes(tokenizer))}
    return dict(arrays, meta=json.loads((folder / "meta.json").read_text(encoding="utf-8")))


def dtypes(tokenizer):  # in the order of NAMES
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32, np.uint8, np.uint16


def write_windows(path, folder, window, source, parts):
    """Write what `cut` made of each chunk, in order, to the files of a folder; meta.json last."""
    total, report, whole = Counter(), {}, sum(file.stat().st_size for file in data_files(path))
    parts = progress(f"{show(path)}: bytes cut:", parts, whole, lambda part: part[1]["bytes"])
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(atomic_write(folder / f"{name}.bin")) for name in NAMES]
        for arrays, numbers, left_out in parts:
            for file, array in zip(files, arrays):
                file.write(array.data)
            total["longest"] = max(total["longest"], numbers.pop("longest"))
            total.update(numbers)
            for reason, entry in left_out.items():
                note(report, reason, *entry)
    why = bad_lines_text(report) or "too little text"
    if total["too_long"] and not total["windows"]:
        why = f"no answer fits into --window {window}; the longest first one needs "
        why += f"{total['longest'] - 1:,}, and a --teacher or --init with such a context"
    check(total["windows"], f"{show(path)}: nothing to learn from; {why}")
    padding = 1 - total["tokens"] / (total["windows"] * (window + 1))
    write_file(folder / "meta.json", json.dumps(dict(
        total, window=window, source_sha256=source, padding_share=padding, left_out=report)))


def cut_all(job, path, documents):
    """Yield job(chunks) for all chunks of a file, in order. Large files use several processes."""
    jobs, workers = groups(path, documents), os.cpu_count()
    if sum(file.stat().st_size for file in data_files(path)) <= CHUNK:
        yield from map(job, jobs)
        return
    # spawn, because a forked process may hang if torch runs threads
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), start_worker) as pool:
        waiting = deque(pool.submit(job, chunk) for chunk in itertools.islice(jobs, 2 * workers))
        while waiting:  # few results in memory at any time
            yield waiting.popleft().result()
            waiting.extend(pool.submit(job, chunk) for chunk in itertools.islice(jobs, 1))


def groups(path, documents):
    """Yield lists of chunks, each of one kind and about 4 MB: small files share windows."""
    group, size = [], 0
    for chunk in chunks(path, documents):
        if group and (size >= CHUNK or is_text(chunk[0]) != is_text(group[0][0])):
            yield group
            group, size = [], 0
        group, size = [*group, chunk], size + sum(map(len, chunk[2]))
    yield group


def start_worker():
    """In a worker process: ignore Ctrl-C, and exit as soon as the parent process has ended."""
    parent = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def question_hash(document):
    """A hash of the first question, without case and extra spaces. All its answers share it."""
    question = document if isinstance(document, str) else next(
        (turn.content for turn in document if turn.role == "user"), "")
    return hashlib.sha256(" ".join(question.casefold().split()).encode()).hexdigest()


def border(path, documents, skip_bad_lines):
    """-> the hash below which a question is held out: about a tenth are, at least one, not all."""
    rows = (chunk for file in data_files(path) if not is_text(file)
            for chunk in chunks(file, documents))
    rows = itertools.islice(read_documents(path, skip_bad_lines, parts=rows), documents or 1000)
    hashes = sorted({question_hash(document) for _, document in rows})
    check(len(hashes) != 1, f"{show(path)} has one question, so none can be held out; name --val")
    return min(max("1a", hashes[1]), hashes[-1]) if hashes else ""  # a tenth begin with 00 to 19


def cut(tokenizer, window, target, skip_bad_lines, below, part, group):
    """Chunks -> [ids, mask, document], (windows, window + 1) each; counts; what was left out."""
    texts, fitting, too_long, report, size = [], [], [], {}, window + 1
    read, plain = None if part == "val" else report, is_text(group[0][0])  # "train" reports
    parse = functools.partial(parse_row, report=read)
    for _, document in read_documents("", skip_bad_lines, read, parse, group):
        here = plain or not part or (part == "val") == (question_hash(document) < below)
        for form in forms(document, target) if here else ():
            ids, mask = encode_document(tokenizer, document, form)
            if len(ids) > size and not isinstance(document, str):  # end it after an earlier answer
                ends = [i + 1 for i in range(len(ids)) if mask[i] and ids[i] == tokenizer.end]
                end = max((end for end in ends if end <= size), default=min(ends, default=len(ids)))
                ids, mask = ids[:end], mask[:end]
                fate = "cut to fit the window" if end <= size else "left out: first answer too long"
                note(report, f"conversations {fate}")
            kind = texts if isinstance(document, str) else fitting if len(ids) <= size else too_long
            # not lists: the garbage collector would walk through them again and again
            kind.append((ids, mask) if kind is texts else (np.array(ids), np.array(mask)))
    stream = [token for ids, _ in texts for token in ids]
    if part and plain:  # the last tenth of every 4 MB
        end = len(stream) * 9 // 10
        stream = stream[end:] if part == "val" else stream[:end]
    pieces = [stream[i:i + size] for i in range(0, len(stream) - 1, window)]
    pieces = [(ids, [0] + [1] * (len(ids) - 1)) for ids in pieces]  # each token is learned once
    packed = [pack_documents(group, size, tokenizer.pad) for group in (fitting, pieces)]
    ids, mask, document = arrays = [np.concatenate(pair).astype(dtype)
                                    for *pair, dtype in zip(*packed, dtypes(tokenizer))]
    numbers = dict(documents=len(texts) + len(fitting), too_long=len(too_long),
                   longest=max((len(ids) for ids, _ in too_long), default=0),
                   bytes=sum(len(line) for chunk in group for line in chunk[2]), windows=len(ids),
                   supervised=int(mask.sum()), tokens=int((document > 0).sum()),
                   spelled=int(np.isin(ids, tokenizer.byte_ids).sum()))  # tokens of single bytes
    return arrays, numbers, report


def pack_documents(documents, size, pad):
    """A list of (ids, mask) -> (3, windows, size): ids, mask and document number of each window.
    Best fit, the longest of 1,024 documents first: of stories about 3 % is padding."""
    windows, free = [], []  # free: sorted (space, window number, document number)
    for start in range(0, len(documents), SORTED):
        for ids, mask in sorted(documents[start:start + SORTED], key=lambda pair: -len(pair[0])):
            place = bisect_left(free, (len(ids),))
            if place == len(free):  # it fits into no window
                free = [*free[1 - OPEN_WINDOWS:], (size, len(windows), 1)]  # close the fullest
                windows.append(np.array([[pad], [0], [0]]).repeat(size, 1))  # (3, size)
                place = -1
            space, number, order = free.pop(place)
            here = slice(size - space, size - space + len(ids))
            for row, values in zip(windows[number], (ids, mask, order)):
                row[here] = values
            if space > len(ids):
                insort(free, (space - len(ids), number, order + 1))
    return np.array(windows, int).reshape(-1, 3, size).swapaxes(0, 1)  # (3, windows, size)


def summary(meta):
    """One line about a file: its windows, documents, tokens, padding, and what was left out."""
    return " | ".join(filter(None, [
        f"{meta['windows']:,} windows of {meta['window']}", f"{meta['documents']:,} documents",
        f"{meta['tokens']:,} tokens, {meta['supervised']:,} supervised",
        f"padding {meta['padding_share']:.1%}", bad_lines_text(meta["left_out"])]))


def open_text(cfg, tokenizer, inputs):
    """(train, val) windows for a training run. Adds the hashes of both to the dict `inputs`."""
    files = [(cfg.val, 0, ""), (cfg.data, cfg.documents, "")]
    if "data" in cfg.given and "val" not in cfg.given:  # hold out a tenth of the data
        files = [(cfg.data, cfg.documents, part) for part in ("val", "train")]
    val, train = (open_data(path, tokenizer, cfg.window, cfg.target, rows, cfg.skip_bad_lines, part)
                  for path, rows, part in files)
    inputs |= dict(data_sha256=train["meta"]["source_sha256"],
                   val_sha256=val["meta"]["source_sha256"] + files[0][2],
                   tokenizer_fingerprint=tokenizer.fingerprint)
    return train, val


@functools.lru_cache(maxsize=2)
def epoch_order(windows, epoch, seed):
    return np.random.default_rng([seed, epoch]).permutation(windows)


def step_windows(windows, step, batch, seed):
    """The window numbers (batch,) of a step. An epoch is a seeded permutation of all windows, and
    epochs follow one another. So a resumed run needs only the number of its step."""
    places = np.arange(step * batch, (step + 1) * batch)
    return np.array([epoch_order(windows, p // windows, seed)[p % windows] for p in places])


def tensors(data, numbers, device="cpu"):
    """Windows -> x, y, document, weight (B, T). y is x shifted by 1; weight is 1.0 if y counts."""
    ids, document = (torch.from_numpy(data[name][numbers].astype(np.int64))
                     for name in ("ids", "document"))  # (B, T + 1)
    weight = torch.from_numpy(data["mask"][numbers].astype(np.float32))
    batch = (ids[:, :-1], ids[:, 1:], document[:, :-1], weight[:, 1:])
    return [t.contiguous().to(device, non_blocking=True) for t in batch]


def step_batches(data, step, cfg, env, tag_ids=(), tag_weight=1.0):
    """-> (this rank's micro-batches of one optimizer step, n_valid, counts). A micro-batch is x, y,
    document, weight (B, T) and window numbers (B,). n_valid and counts are of the WHOLE step: every
    rank reads it. Losses divided by n_valid, the sum of weights, add up over batches and ranks."""
    numbers = step_windows(len(data["ids"]), step, cfg.batch, cfg.seed)  # (batch,)
    x, y, document, weight = tensors(data, numbers)
    # tokens through the student, without padding; tokens that count in the loss
    counts = dict(tokens=int((document > 0).sum()), supervised=int((weight > 0).sum()))
    if tag_weight != 1.0:
        is_tag = torch.isin(y, torch.tensor(sorted(tag_ids)))
        weight = torch.where(is_tag & (weight > 0), tag_weight, weight)  # only in responses
    n_valid = max(weight.sum().item(), 1.0)  # if nothing counts: 0, not 0/0
    if (document == document[0, 0]).all():
        document = None  # plain causal attention is faster
    batches, parts = [], cfg.accumulate * env.world
    for i in range(env.rank, parts, env.world):
        rows = slice(i * cfg.batch // parts, (i + 1) * cfg.batch // parts)
        batches.append([None if t is None else t[rows].to(env.device, non_blocking=True)
                        for t in (x, y, document, weight)] + [numbers[rows]])
    return batches, n_valid, counts


def eval_batches(data, batch, limit=0, device="cpu"):
    """Tensors of all windows, or of `limit` spread evenly: the longest documents come first."""
    windows = len(data["ids"])
    chosen = np.linspace(0, windows - 1, min(limit or windows, windows)).astype(int)
    for start in range(0, len(chosen), batch):
        x, y, document, weight = tensors(data, chosen[start:start + batch], device)
        yield x, y, (None if (document == document[0, 0]).all() else document), weight


@torch.no_grad()
def validation_ce(model, val, cfg, env):
    """Mean cross-entropy on validation data, in nats a token. Each rank reads a part of it."""
    ce_sum = count = 0.0
    batches = eval_batches(val, cfg.batch, cfg.eval_windows, env.device)
    for x, y, document, weight in itertools.islice(batches, env.rank, None, env.world):  # (B, T)
        keep = weight > 0                      # (B, T) the N tokens that count
        with env.autocast():
            logits = model(x, document, keep)  # (N, V)
        ce_sum += cross_entropy(logits, y[keep]).sum().item()
        count += keep.sum().item()
    ce_sum, count = sum_over_ranks([ce_sum, count], env)
    check(count > 0, f"--val {cfg.val}: no token counts in the loss")
    return ce_sum / count


@torch.no_grad()
def self_check(cfg, env, model, train, val, teacher=None):
    """-> {name: text} for the log, to check before the first step. The KL between two passes of the
    teacher must be 0, or it is not deterministic. UserError if its logits are not finite."""
    held_out = "data" in cfg.given and "val" not in cfg.given
    facts = {"data": f"{show(cfg.data)}: {summary(train['meta'])}",
             "validation": "held out of the data: " * held_out + summary(val["meta"]),
             "tokens a step": f"{cfg.batch * cfg.window:,} with padding",
             "ce at start": f"{validation_ce(model, val, cfg, env):.3f} nats; "
                            f"ln V = {math.log(model.config.vocab_size):.3f} is guessing"}
    if (spelled := train["meta"]["spelled"] / max(train["meta"]["tokens"], 1)) > 0.3:
        own = command("tokenizer/train.py", cfg.data, out=OUT / f"{Path(cfg.data).stem}.model")
        facts["warning"] = f"{spelled:.0%} of the tokens are single bytes; better pieces: {own}"
    if teacher is None:
        return facts
    x, _, document, weight = next(eval_batches(val, cfg.batch, cfg.batch, env.device))
    with env.autocast():
        first, second = (teacher(x, document, weight > 0) for _ in range(2))  # (N, V)
    kl = divergence("forward_kl", second, first).mean().item()
    ce = validation_ce(teacher, val, cfg, env)
    check(math.isfinite(kl) and math.isfinite(ce),
          f"the teacher's logits are not finite in {env.dtype}; try another --dtype or --teacher")
    return facts | {"teacher's ce": f"{ce:.3f} nats", "KL(teacher||teacher)": f"{kl:.1e} must be 0"}
