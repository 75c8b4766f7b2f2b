"""Long and short traces by share: what --long-frac of train_distill_reason.py makes of a file.

Small students learn more from short chains of thought than from long ones, and more still from a
mixture with some long ones (Li et al. 2025, "Small models struggle to learn from strong reasoners";
there two teachers write the long and the short ones, here one file is divided by length).

A row is long where its thoughts have more tokens than the median row of the file. As many rows as
possible are kept, so that the share of long ones is right: below a half every short row and some
long ones. They are the first of one shuffled order, so a larger share keeps all the long rows that
a smaller one keeps, and every run learns from the same rows.
"""
import statistics

import numpy as np

from cli import atomic_write, fail, show
from dataset.formats import bad_lines_text, read_documents, read_lines
from dataset.prepare import take_rows


def thought_lengths(path, tokenizer, documents, skip_bad_lines):
    """{line number: tokens in its thoughts} of the first `documents` rows of a file (0: all)."""
    found, report = {}, {}
    for chunk in take_rows(path, documents):
        for number, document in read_documents(path, skip_bad_lines, report, *chunk):
            turns = [] if isinstance(document, str) else document
            found[number] = sum(len(tokenizer.encode(t.think)) for t in turns if t.think)
    if report:
        print(f"left out: {bad_lines_text(report)}")
    return found


def share_out(short, long, share):
    """(short, long): as many of so many rows as there can be while `share` (0 to 1) are long."""
    if share < 1 and short * share / (1 - share) <= long:
        return short, round(short * share / (1 - share))
    return round(long * (1 - share) / share), long


def write_mixture(path, out, tokenizer, share, documents=0, skip_bad_lines=False):
    """Write the rows of a file that make up the mixture to `out`, unchanged and in their order.

    UserError where no row is long, or where none would be left.
    """
    lengths = thought_lengths(path, tokenizer, documents, skip_bad_lines)
    middle = statistics.median(lengths.values()) if lengths else 0
    long = [number for number, n in lengths.items() if n > middle]
    short = [number for number, n in lengths.items() if n <= middle]
    counts = share_out(len(short), len(long), share)
    if not long or not sum(counts):
        fail(f"{show(path)} cannot be divided into short and long thoughts",
             f"{len(short):,} rows of at most {middle:g} tokens of thought, {len(long):,} longer",
             fix="leave --long-frac out")
    rng = np.random.default_rng(0)
    kept = {n for rows, count in zip((short, long), counts) for n in rng.permutation(rows)[:count]}
    with atomic_write(out) as file:
        for number, (_, line) in enumerate(read_lines(path), 1):
            if number in kept:
                file.write(line.rstrip(b"\r\n") + b"\n")
    print(f"{show(out)}: {counts[0]:,} of {len(short):,} short rows and {counts[1]:,} of "
          f"{len(long):,} with over {middle:g} tokens of thought")
