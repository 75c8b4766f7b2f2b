"""Text or JSONL -> fixed windows of tokens on disk. Done once, streaming, by all cores.

    python dataset/prepare.py --input chat.jsonl --out out/data/chat --window 256

A window is window + 1 tokens, so that x = ids[:-1] and y = ids[1:] are `window` long:

    ids       <user> 2 + 3 ? <end> <assistant> 5 <end> | <user> ...         <pad> <pad>
    mask        0    0 0 0 0   0        0      1   1   |   0                  0     0
    document    1    1 1 1 1   1        1      1   1   |   2                  0     0

Conversations are packed whole, never split; the first token of a document is never learned, for
its predecessor belongs to another one. Plain text is one stream for each 4 MB of the file,
documents apart by <end>; its windows overlap by one token and attention crosses documents
(document 1 throughout). A document number of 0 is padding.

Files: ids.bin, mask.bin, document.bin (windows x window + 1), meta.json, tokenizer.model. The file
is cut into chunks of 4 MB whatever the number of workers, so the bytes do not depend on it. A
folder is whole or not there: it is written beside and renamed at the end.
"""
import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from bisect import bisect_left, insort
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from cli import (OUT, check_ranges, fail, label, need_file, refuse_others, remove_leftovers, run,
                 sha256_file, show, write_file)
from dataset.formats import (TARGETS, bad_lines_text, count_bad, cut, encode_document, forms,
                             is_text, read_documents, read_lines)
from tokenizer import Tokenizer

VERSION = 2
SORTED = 1024        # documents packed at a time, the longest first
OPEN_WINDOWS = 1024  # windows that may still take a document
NAMES = ("ids", "mask", "document")
SETTINGS = ("version", "source_sha256", "text", "fingerprint", "window", "target", "loss_on",
            "limit")


@dataclass
class Config:
    input: str = OUT / "data" / "stories" / "train.jsonl"  # .txt or .jsonl, see dataset/formats.py
    tokenizer: str = OUT / "tokenizer.model"  # made by tokenizer/train.py
    out: str = OUT / "data" / "prepared"      # folder to make
    window: int = 256                         # tokens a model sees at once (64 to 4,096)
    target: Literal[TARGETS] = "cot"          # form of a reply, as in the training
    loss_on: Literal["response", "all"] = "response"  # what the mask marks as learned
    documents: int = 0                        # only the first so many rows of the file; 0: all
    workers: int = 0                          # processes; 0: one a core
    skip_bad_lines: bool = False              # count bad lines and go on, instead of stopping
    fresh: bool = False                       # replace a folder made with other settings


# --- one chunk of the file becomes windows --------------------------------------------------------

def prepare_chunk(tokenizer, path, chunk, window, target, loss_on, skip_bad_lines):
    """-> arrays ids, mask, document (windows, window + 1) and counts of one chunk."""
    ids_type = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    types = {"ids": ids_type, "mask": np.uint8, "document": np.uint16}
    packed, stream, report = Packed(window + 1), [np.array([], dtype=ids_type)], {}
    counts = {"documents": 0, "too_long": 0, "longest": 0}
    for _, document in read_documents(path, skip_bad_lines, report, *chunk):
        for form in forms(document, target):
            ids, mask = encode_document(tokenizer, document, form, loss_on)
            if isinstance(document, str):
                stream.append(np.array(ids, dtype=ids_type))
            elif len(ids) <= window + 1:
                packed.add(ids, mask)
            else:
                counts["too_long"] += 1
                counts["longest"] = max(counts["longest"], len(ids))
                continue
            counts["documents"] += 1
    stream = np.concatenate(stream)
    # text and conversations may stand in one file
    pairs = zip(packed.arrays(tokenizer.pad), stream_arrays(stream, window, tokenizer.pad))
    arrays = {name: np.concatenate(pair).astype(types[name]) for name, pair in zip(types, pairs)}
    return arrays, counts, report


class Packed:
    """Documents packed whole into windows of `size` tokens, each where it leaves least room.

    Padding of the stories at 256: 5.1 % in the order of the file, 3.3 % with the longest of 1,024
    first. GSM8K (2,048 pieces, 56 to 593 tokens) at 512: 2.0 %, where batches of 8 to 32 documents
    of like length, out of 50 batches sorted, pad 2.2 to 3.2 %. Documents of more than half a window
    pad more, however they are packed: GSM8K at 256 14.4 %, of which 14.2 % cannot be avoided.
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
        """Give a window to every document that waits."""
        for ids, mask in sorted(self.waiting, key=lambda pair: -len(pair[0])):
            self.place(ids, mask)
        self.waiting = []

    def place(self, ids, mask):
        """Give one document the fullest window that still holds it, or a new one."""
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
    count = -(-(len(stream) - 1) // window) if len(stream) else 0
    padded = np.full(max(count, 1) * window + 1, pad, dtype=stream.dtype)
    padded[:len(stream)] = stream
    real = (np.arange(len(padded)) < len(stream)).astype(np.uint8)
    ids, real = (sliding_window_view(a, window + 1)[::window][:count] for a in (padded, real))
    mask = real.copy()
    mask[:, 0] = 0  # the last token of the window before: learned there
    return ids, mask, real


# --- all chunks, in order, by several processes ---------------------------------------------------

def start_worker(model_bytes):
    """What each process needs once."""
    global worker_tokenizer
    worker_tokenizer = Tokenizer(model_bytes)
    parent = multiprocessing.parent_process()  # a killed parent must leave nobody behind
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def work(*job):
    """One chunk of the file, in a process of the pool."""
    return prepare_chunk(worker_tokenizer, *job)


@contextlib.contextmanager
def no_interrupt():
    """Processes started here are deaf to Ctrl-C from their first moment: it is for the parent."""
    old = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)


def results(tokenizer, chunks, workers, path, *settings):
    """Yield prepare_chunk of every chunk in order, with few results waiting at any time."""
    workers = min(workers or os.cpu_count(), len(chunks))
    if workers <= 1:
        for chunk in chunks:
            yield prepare_chunk(tokenizer, path, chunk, *settings)
        return
    # spawn: a fork of a process in which torch runs threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"),
                               start_worker, (tokenizer.model_bytes,))
    waiting = deque()
    try:
        for chunk in chunks:
            with no_interrupt():
                waiting.append(pool.submit(work, path, chunk, *settings))  # may start a worker
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        fail("a worker process was killed", fix=f"free some memory, or --workers {workers // 2}")
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def take_rows(path, limit):
    """The chunks of a file, ended after its first `limit` rows (lines that are not blank)."""
    chunks = list(cut(path))
    if not limit:
        return chunks
    if is_text(path):
        fail("a .txt file is one document", f"--documents {limit}", fix="leave --documents out")
    taken, rows = [], 0
    for start, end, first_line in chunks:
        for line_end, line in read_lines(path, start, end):
            rows += line is None or bool(line.strip())
            if rows == limit:
                return [*taken, (start, line_end, first_line)]
        taken.append((start, end, first_line))
    return taken


# --- the folder -----------------------------------------------------------------------------------

def prepare(input, out, tokenizer, window, target="cot", loss_on="response", documents=0, workers=0,
            skip_bad_lines=False, fresh=False):
    """Make the folder `out` of windows, or find it made with these settings; returns its meta."""
    path = need_file(input, "python dataset/stories.py, or name a file of yours").absolute()
    out = Path(out)
    settings = {"version": VERSION, "source_sha256": sha256_file(path), "text": is_text(path),
                "fingerprint": tokenizer.fingerprint, "window": window, "target": target,
                "loss_on": loss_on, "limit": documents}
    made = find_made(out, settings, fresh)
    if made:
        print(f"{show(out)}: already made, {summary(made)}")
        return made
    remove_leftovers(out)
    chunks = take_rows(path, documents)
    folder = out.parent / f".{out.name}.{os.getpid()}.tmp"
    folder.mkdir(parents=True)
    try:
        jobs = results(tokenizer, chunks, workers, path, window, target, loss_on, skip_bad_lines)
        meta = settings | {"source": label(path), "vocab_size": tokenizer.vocab_size}
        meta |= write_windows(folder, jobs, [end for _, end, _ in chunks], window)
        tokenizer.save(folder / "tokenizer.model")
        write_file(folder / "meta.json", json.dumps(meta, indent=1))
        replace_folder(folder, out)
    except OSError as error:
        error.filename = error.filename or str(folder)  # a failed write() does not name its file
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{show(out)}: {summary(meta)}")
    return meta


def write_windows(folder, jobs, ends, window):
    """Append the arrays of every chunk to the three files; returns what goes into meta.json."""
    names = ("windows", "documents", "too_long", "longest", "tokens", "supervised")
    total = dict.fromkeys(names, 0)
    report, types, start = {}, {}, time.time()
    shown = start
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in NAMES}
        for (arrays, counts, bad), end in zip(jobs, ends):
            for name, file in files.items():
                file.write(arrays[name].data)
                types[name] = str(arrays[name].dtype)
            for reason, entry in bad.items():
                count_bad(report, reason, entry["count"], entry["first"])
            total["longest"] = max(total["longest"], counts.pop("longest"))
            counts |= {"windows": len(arrays["ids"]), "tokens": int((arrays["document"] > 0).sum()),
                       "supervised": int(arrays["mask"][:, 1:].sum())}
            for key, count in counts.items():
                total[key] += count
            if time.time() - shown > 5 or (end == ends[-1] and len(ends) > 1):
                shown = time.time()
                rate = end / (shown - start)
                print(f"{end / 1e6:8.1f}/{ends[-1] / 1e6:.1f} MB | {rate / 1e6:.1f} MB/s | "
                      f"eta {(ends[-1] - end) / rate:.0f} s")
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    if not total["windows"]:
        nothing_left(total, report)
    places = total["windows"] * (window + 1)
    total["padding_share"] = 1 - total["tokens"] / places
    return total | {"bad_lines": report, "dtype": types}


def nothing_left(total, report):
    """UserError for a file of which nothing can be learned."""
    if total["too_long"]:
        fail("every document is longer than the window", f"up to {total['longest']} tokens",
             fix=f"--window {total['longest'] - 1}")
    fail("no document is left", bad_lines_text(report) or "no row", "at least one good row")


def summary(meta):
    """One line that says what a folder holds, and what it does not."""
    line = (f"{meta['windows']:,} windows of {meta['window']} | {meta['documents']:,} documents | "
            f"{meta['tokens']:,} tokens, {meta['supervised']:,} supervised | "
            f"padding {meta['padding_share']:.1%}"
            + " (a larger --window pads less)" * (meta["padding_share"] > 0.1))
    if meta["too_long"]:
        line += (f" | {meta['too_long']:,} documents left out: too long "
                 f"(--window {meta['longest'] - 1} keeps them)")
    return " | ".join(filter(None, [line, bad_lines_text(meta["bad_lines"])]))


def find_made(out, settings, fresh):
    """The meta of a folder that is there with these settings; None where there is none to keep."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / "meta.json").exists():
        fail(f"{show(out)} is not a folder of windows", fix="choose another --out")
    if fresh:
        return None
    meta = open_windows(out)[3]
    refuse_others(out, {key: meta[key] for key in settings}, settings)
    return meta


def replace_folder(folder, out):
    """Put the finished folder where `out` is, which is moved away first and removed last."""
    old = out.parent / f".{out.name}.old.{os.getpid()}.tmp"
    for attempts_left in (2, 1, 0):  # another process may put its own there between two lines
        if out.exists():
            os.rename(out, old)
        try:
            os.rename(folder, out)
            break
        except OSError as error:
            if old.exists() and not out.exists():
                os.rename(old, out)  # as it was
            shutil.rmtree(old, ignore_errors=True)  # another process has replaced it
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or not attempts_left:
                raise
    shutil.rmtree(old, ignore_errors=True)


def open_windows(folder):
    """-> (ids, mask, document, meta): read-only memory maps (windows, window + 1) and meta.json."""
    folder = need_file(folder, "python dataset/prepare.py", folder=True)
    again = "make the folder again: python dataset/prepare.py --fresh"
    try:
        meta = json.loads(need_file(folder / "meta.json", again).read_text(encoding="utf-8"))
        version, shape = meta["version"], (meta["windows"], meta["window"] + 1)
        types = {name: np.dtype(meta["dtype"][name]) for name in NAMES}
        if {t.kind for t in types.values()} != {"u"} or not {*SETTINGS, "too_long"} <= set(meta):
            raise ValueError("keys or dtypes are missing")
    except (ValueError, KeyError, TypeError) as error:
        fail(f"{show(folder / 'meta.json')} is damaged", error, "what prepare.py wrote", again)
    if version != VERSION:
        fail(f"{show(folder)} has another format", f"version {version}", VERSION, again)
    arrays = []
    for name in NAMES:
        path, dtype = folder / f"{name}.bin", types[name]
        size, expected = need_file(path, again).stat().st_size, shape[0] * shape[1] * dtype.itemsize
        if size != expected:
            fail(f"{show(path)} is truncated or changed", f"{size:,} bytes", f"{expected:,}", again)
        arrays.append(np.memmap(path, dtype=dtype, mode="r", shape=shape))
    return (*arrays, meta)


def main(cfg):
    """Prepare one file."""
    check_ranges(cfg, window=(1, 2**16 - 1), documents=(0, 10**12), workers=(0, 10**6))
    prepare(cfg.input, cfg.out, Tokenizer.load(cfg.tokenizer), cfg.window, cfg.target, cfg.loss_on,
            cfg.documents, cfg.workers, cfg.skip_bad_lines, cfg.fresh)
    print(f"next: python train_pretrain.py --tokenizer {show(cfg.tokenizer)} "
          f"--data {show(cfg.out)} --val ...")


if __name__ == "__main__":
    run(main, Config)
