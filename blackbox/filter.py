"""Which of the teacher's rows to train on: filters that say why, and a card of what is left.

    python blackbox/filter.py     # out/data/traces.jsonl -> out/data/filtered.jsonl, CPU, about 6 s
    python blackbox/filter.py --input my.jsonl --out my-clean.jsonl --against my-test.jsonl

Last line: next: python train_distill_reason.py ...

Reads every format of dataset/formats.py, and the OUT.all.jsonl of generate.py. A kept line goes to
OUT byte for byte, a dropped one to OUT.dropped.jsonl with "dropped", the first of these reasons,
and "of", the line that it repeats. OUT.card.md describes what is kept. --off near,language leaves
two of them out:

    truncation  finish_reason "length" (or "content_filter"), verdict "truncated", or an open tag
    format      verdict "format", or tags that formats.py cannot take apart
    answer      no answer, or another than "reference" (dataset/verify.py), or its verdict says so
    length      an answer below --min-length, a row above --max-length
    repetition  a loop: half of the runs of four words stood before in the same answer (metrics.py)
    language    the answer is written in another script than the prompt
    overlap     with a question of --against: blackbox/overlap.py
    exact       prompt and answer stood before, but for case and spaces
    near        nearly so: blackbox/near.py. Numbers and names count, shared templates do not

Duplicates come last, and the first of several rows is kept: a row that another filter drops takes
nobody with it. Plain text has no prompt: it meets length, repetition, overlap and duplicates.
Limits: a script is not a language (French answers to English questions pass), and a translation
that was asked for is dropped (--off language). Two passes; less than 1 KB of memory a row.
"""
import functools
import hashlib
import json
import shlex
import sys
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli  # noqa: E402
from cli import OUT, atomic_write, check, fail, label, need_file, sha256_file, show  # noqa: E402
from blackbox import card, near, overlap  # noqa: E402
from dataset.formats import (BadRow, bad_line, bad_lines_text, cut, is_text,  # noqa: E402
                             json_row, line_text, read_lines)
from blackbox.rules import final_answer, judge, read_row, said, sides  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402


@dataclass
class Config:
    input: str = OUT / "data/traces.jsonl"  # rows in any format of dataset/formats.py
    out: str = OUT / "data/filtered.jsonl"  # the kept lines
    against: str = ""              # FILE ... of evaluation questions; empty: val, test of stories
    files: list = None             # more files of --against
    off: str = ""                  # filters to leave out; commas between
    near: float = near.THRESHOLD   # Jaccard similarity of near copies (0.5 to 0.9)
    min_length: int = 1            # shortest answer, in characters (in tokens with --tokenizer)
    max_length: int = 20_000       # longest row, prompt and answer
    tokenizer: str = ""            # count the tokens of this model; empty: characters
    skip_bad_lines: bool = False   # count bad lines and go on, instead of stopping
    fresh: bool = False            # replace what is there


REASONS = ("truncation", "format", "answer", "length", "repetition", "language", "overlap",
           "exact", "near")
KEPT = len(REASONS)


# --- first pass: each row by itself, and what is remembered of it ---------------------------------

def read_pieces(path):
    """Yield (line number, first byte, end, bytes or None where too long): lines but blank ones; of
    a .txt, the documents that formats.py makes of it."""
    if is_text(path):
        with open(path, "rb") as file:
            for start, end, number in cut(path):
                yield number, start, end, file.read(end - start)
        return
    start = 0
    for number, (end, line) in enumerate(read_lines(path), 1):
        if line is None or line.strip():
            yield number, start, end, line
        start = end


def read_keys(line, path):
    """The JSON object of a line, or BadRow; of a .txt {"text"}."""
    text = line_text(line).removeprefix("\ufeff")
    return {"text": text} if is_text(path) else json_row(text)


def is_header(keys):
    """The first line of generate.py's OUT.all.jsonl: how the teacher was asked."""
    return isinstance(keys, dict) and {"teacher", "seed"} <= keys.keys() and \
        "conversations" not in keys


def first_pass(cfg, on, known, tokenizer):
    """-> {name: array (N,)}, a report of bad lines. line, start, end: where a row stands; reason:
    its index in REASONS, or KEPT; of: the row, or the question, that it repeats; digest, gate,
    signature (N, 160): what decides about duplicates, zeros where it is dropped already."""
    table, report = {name: array("q") for name in ("line", "start", "end", "reason", "of")}, {}
    table |= dict(digest=array("Q"), gate=array("Q"), signature=array("B"))
    for number, start, end, line in read_pieces(cfg.input):
        try:
            keys = read_keys(line, cfg.input)
            if number == 1 and is_header(keys):
                continue
            row, reason = judge(keys, line, cfg, on, tokenizer)
        except BadRow as error:
            bad_line(error, f"{show(cfg.input)}:{number}", cfg.skip_bad_lines, report)
            continue
        found = dict(line=number, start=start, end=end, of=-1, digest=0, gate=0,
                     reason=REASONS.index(reason) if reason else KEPT)
        signature = bytes(near.BANDS * near.ROWS)
        if not reason:
            found["digest"], found["gate"], signature = fingerprints(row)
            leak = overlap.leak(known, row.turns, sides(row)) if "overlap" in on else None
            found |= {} if leak is None else dict(of=leak, reason=REASONS.index("overlap"))
        table["signature"].frombytes(signature)
        for name, value in found.items():
            table[name].append(value)
    table = {name: np.array(values) for name, values in table.items()}
    return table | dict(signature=table["signature"].reshape(-1, near.BANDS * near.ROWS)), report


def fingerprints(row):
    """Row -> what exact duplicates share, what near ones must share, the bytes of the signature.

    A row that was changed on purpose (its "operation") is no copy of its seed, nor is one with
    another system turn.
    """
    whole = [(turn.role, said(turn).casefold().split()) for turn in row.turns]
    sketch = near.sketch(*sides(row))
    system = [turn.content for turn in row.turns if turn.role == "system"]
    gate = [sketch.numbers, card.plain(row.keys.get("operation")), system]
    return hash64(whole), hash64(gate), near.signature(sketch).tobytes()


def hash64(value):
    """64 bits of what has a repr."""
    return int.from_bytes(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), "big")


# --- the rows among themselves, then the second pass ----------------------------------------------

def drop_copies(cfg, on, table):
    """Fill in reason and of where a row that is kept so far stood before."""
    def drop(rows, first, name):
        table["reason"][rows], table["of"][rows] = REASONS.index(name), first

    @functools.lru_cache(64)
    def sketch_at(row):
        source.seek(table["start"][row])
        line = source.read(table["end"][row] - table["start"][row])
        return near.sketch(*sides(read_row(read_keys(line, cfg.input))))

    rows = np.flatnonzero(table["reason"] == KEPT)
    if "exact" in on:
        _, first, group = np.unique(table["digest"][rows], return_index=True, return_inverse=True)
        first = rows[first[group]]
        drop(rows[rows != first], first[rows != first], "exact")
        rows = rows[rows == first]
    if "near" in on:
        with open(cfg.input, "rb") as source:
            copies = near.find_copies(
                table["signature"][rows], table["gate"][rows], lambda a, b: near.similar(
                    sketch_at(int(rows[a])), sketch_at(int(rows[b])), cfg.near), cfg.near)
        pairs = np.array(list(copies.items()), dtype=np.int64).reshape(-1, 2)
        drop(rows[pairs[:, 0]], rows[pairs[:, 1]], "near")


def second_pass(cfg, table, known, tokenizer):
    """Write OUT and OUT.dropped.jsonl; return the tally for the card."""
    tally, name = card.Tally(), Path(cfg.input).name
    columns = [table[column] for column in ("start", "end", "reason", "of")]
    with (open(cfg.input, "rb") as source, atomic_write(cfg.out) as out,
          atomic_write(f"{cfg.out}.dropped.jsonl") as dropped):
        for start, end, reason, of in zip(*columns):
            source.seek(start)
            line = source.read(end - start)
            keys = read_keys(line, cfg.input)
            if reason == KEPT:
                row = read_row(keys, tokenizer)
                card.add(tally, keys, row.size, said(row.turns[-1]), final_answer(row))
                out.write(line)
                continue
            card.add(tally, keys)
            more = {"dropped": REASONS[reason]}
            if of >= 0:
                more["of"] = (known.asked[of][0] if more["dropped"] == "overlap" else
                              f"{name}:{table['line'][of]}")
            body = json.dumps(keys).encode() if is_text(cfg.input) else \
                line.strip().removeprefix(b"\xef\xbb\xbf")
            dropped.write(body[:-1] + b", " + json.dumps(more).encode()[1:] + b"\n")
    return tally


# --- the command ----------------------------------------------------------------------------------

def evaluation_files(cfg):
    """The files of --against, or those of the stories that are there."""
    if cfg.files and not cfg.against:
        fail("a word without a flag", repr(cfg.files[0]), "--input FILE, or --against FILE FILE")
    if cfg.against:
        return [need_file(path, "write some questions into it")
                for path in [cfg.against, *(cfg.files or [])]]
    stories = [OUT / f"data/stories/{name}.jsonl" for name in ("val", "test")]
    return [path for path in stories if path.exists()]


def already_made(cfg, settings):
    """True where the same command has made OUT of the same files; UserError where another did."""
    check(not Path(cfg.out).is_dir(), "--out", show(cfg.out), "a file")
    if cfg.fresh or not Path(cfg.out).exists():
        return False
    fix = "choose another --out, or --fresh replaces it"
    try:
        old = card.settings(f"{cfg.out}.card.md")
    except (OSError, ValueError, LookupError, TypeError):
        fail(f"{show(cfg.out)} is there, without a card of this script", fix=fix)
    settings = {**settings, "output": sha256_file(cfg.out)}
    cli.refuse_others(cfg.out, old, settings)
    return True


def next_command(cfg):
    """What to type after it; raw rows are there to be looked at, not to train on."""
    if cfg.input.endswith(".all.jsonl"):
        return f"python blackbox/filter.py --input {show(cfg.input.removesuffix('.all.jsonl'))}"
    return (f"python train_distill_reason.py --name student-{Path(cfg.out).stem} "
            f"--data {show(cfg.out)} --val "
            f"{show(OUT / 'data/stories/val.jsonl') if cli.is_default(cfg, 'input') else '...'}")


def write_card(cfg, table, tally, dropped, bad, against, settings):
    """OUT.card.md, the last file: without it, the others are not finished."""
    typed = shlex.join(["python", "blackbox/filter.py", *sys.argv[1:]])
    facts = [("command", typed), ("filters off", cfg.off or "none"), ("bad lines", bad or "none")]
    for what, path in (("input", cfg.input), *(("against", path) for path in against),
                       ("output", cfg.out), ("dropped rows", f"{cfg.out}.dropped.jsonl")):
        facts.append((what, f"{label(path)} sha256 {sha256_file(path)[:16]}"))
    copies = {name: table["of"][table["reason"] == REASONS.index(name)]
              for name in ("exact", "near")}
    text = card.render(tally, Path(cfg.out).name, facts, dropped, copies,
                       "tokens" if cfg.tokenizer else "characters",
                       {**settings, "output": sha256_file(cfg.out)})
    cli.write_file(f"{cfg.out}.card.md", text)


def main(cfg):
    """Judge, compare, write, describe."""
    off = set(filter(None, cfg.off.split(",")))
    on = set(REASONS) - off
    check(off <= set(REASONS), "--off", cfg.off, "some of " + ",".join(REASONS))
    cli.check_ranges(cfg, near=(0.3, 1), min_length=(0, 10**12), max_length=(1, 10**12))
    need_file(cfg.input, "python blackbox/generate.py")
    check(is_text(cfg.out) == is_text(cfg.input), "--out", cfg.out, "a .txt for a .txt alone")
    against = evaluation_files(cfg) if "overlap" in on else []
    for end in ("", ".dropped.jsonl", ".card.md"):
        cli.check_apart("--out", cfg.out + end, cfg.input, cfg.tokenizer, *against)
    tokenizer = Tokenizer.load(cfg.tokenizer) if cfg.tokenizer else None
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("out", "fresh", "files")}
    settings |= dict(input=sha256_file(cfg.input), against=[sha256_file(p) for p in against],
                     tokenizer=tokenizer and tokenizer.fingerprint)
    if already_made(cfg, settings):
        print(f"already made: {show(cfg.out)} (--fresh makes it again)\nnext: {next_command(cfg)}")
        return
    known = overlap.read_questions(against)
    table, report = first_pass(cfg, on, known, tokenizer)
    drop_copies(cfg, on, table)
    *counts, kept = np.bincount(table["reason"], minlength=KEPT + 1).tolist()
    dropped = {reason: n for reason, n in zip(REASONS, counts) if reason in on}
    bad = bad_lines_text(report)
    if not kept:
        fail(f"no row of {show(cfg.input)} is kept", f"{dropped} {bad}", "some good rows")
    tally = second_pass(cfg, table, known, tokenizer)
    write_card(cfg, table, tally, dropped, bad, against, settings)
    print(" | ".join([f"{reason} {n:,}" for reason, n in dropped.items()] + [bad] * bool(bad)))
    print(f"{show(cfg.out)}: {kept:,} of {len(table['line']):,} rows; beside it the dropped ones "
          f"and the card\nnext: {next_command(cfg)}")


if __name__ == "__main__":
    cli.run(main, Config)
