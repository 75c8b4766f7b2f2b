"""The data card of blackbox/filter.py: what the kept rows are like, what was dropped. Markdown.

Distinct-n: different word n-grams of the answers by their words (Li et al. 2016, section 5.2). It
falls as a set grows, so it is that of the first million words: compare sets of like size. Entropy:
bits of the frequencies of the final answers; the most it can be is log2 of their number. What a row
says is shown as plain text, cut at 40 characters.
"""
import json
import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from blackbox import near
from report import columns, markdown

FIELDS = ("operation", "label", "verdict", "finish_reason", "model")
DIFFERENT = 100_000  # values that are told apart; what comes later is counted as one
WORDS = 1_000_000    # of which distinct-n is taken


def counters():
    """A count of the values of each field."""
    return {name: Counter() for name in FIELDS}


@dataclass
class Tally:
    """What grows row by row."""
    seen: dict = field(default_factory=counters)  # in all rows
    kept: dict = field(default_factory=counters)
    answers: Counter = field(default_factory=Counter)
    usage: Counter = field(default_factory=Counter)
    sizes: array = field(default_factory=lambda: array("q"))  # prompt, answer, prompt, answer ...
    grams: dict = field(default_factory=lambda: {1: [], 2: [], 3: []})
    words: int = 0


def clean(text, marks):
    """A text on one line, a space for each of these marks."""
    return "".join(c if c.isprintable() and c not in marks else " " for c in text)


def plain(value):
    """Any value of a row as a short text that breaks no line and no table of Markdown."""
    if not isinstance(value, (str, int, float, type(None))):
        value = f"({type(value).__name__})"
    text = clean(str(value)[:41], "|`<>*[]\\")
    return (text[:40].strip() or "(empty)") + "…" * (len(text) > 40)


def count(counter, value):
    """Add one, and let a million different values not fill the memory."""
    counter[value if value in counter or len(counter) < DIFFERENT else "(others)"] += 1


def add(tally, keys, size=None, text="", answer=None):
    """Count a row by its JSON object; a kept one also by its lengths, its answer's text and its
    final answer."""
    for name in FIELDS:
        if name in keys:
            count(tally.seen[name], plain(keys[name]))
            if size:
                count(tally.kept[name], plain(keys[name]))
    usage = keys.get("usage") if isinstance(keys.get("usage"), dict) else {}
    for name in ("prompt_tokens", "completion_tokens"):
        if type(usage.get(name)) is int:
            tally.usage[name] += usage[name]
    if size:
        tally.sizes.extend(size)
        count(tally.answers, plain(answer) if answer is not None else "(none found)")
        if tally.words < WORDS:
            codes = near.hashed(near.words(text))
            tally.words += len(codes)
            for n, found in tally.grams.items():
                found.append(near.grams(codes, n))


# --- Markdown -------------------------------------------------------------------------------------

def share(part, whole):
    """"12 (3.4%)"."""
    return f"{part:,} ({part / max(1, whole):.1%})"


def lengths(sizes):
    """Mean and percentiles of prompt and answer."""
    at, parts = [0, 5, 25, 50, 75, 95, 100], np.array(sizes).reshape(-1, 2).T
    return markdown(f" | mean: | {columns(f'{p} %' for p in at)}", [
        (name, f"{column.mean():,.1f}", *(f"{v:,.0f}" for v in np.percentile(column, at)))
        for name, column in zip(("prompt", "answer"), parts)])


def frequencies(answers, total):
    """The most frequent final answers, and the entropy of all."""
    p = np.array(list(answers.values())) / total
    return (f"{len(answers):,} different ones, entropy {-(p * np.log2(p)).sum():.2f} bits of "
            f"{math.log2(len(answers)):.2f}.\n\n" + markdown(
                "answer | rows:", [(a, share(n, total)) for a, n in answers.most_common(10)]))


def render(tally, title, facts, dropped, copies, unit, made):
    """The card.

    facts: [(what, text)]; dropped: {reason: rows}; copies: {reason: of what the rows are copies};
    made: the settings, which `settings` reads again.
    """
    kept = len(tally.sizes) // 2
    total = kept + sum(dropped.values())
    distinct = [f"distinct-{n} {len(np.unique(np.concatenate(found))) / tally.words:.4f}"
                for n, found in tally.grams.items()]
    parts = [f"# Data card: {plain(title)}", f"{share(kept, total)} of {total:,} rows are kept.",
             "\n".join(f"- {what}: `{clean(text, '`')}`" for what, text in facts),
             "## Dropped, by the first reason",
             markdown("reason | rows:", [(name, share(n, total)) for name, n in dropped.items()])]
    for name, of in copies.items():
        sizes = np.unique(of, return_counts=True)[1]
        parts.append(f"{name} duplicates: {len(of):,} copies of {len(sizes):,} rows, at most "
                     f"{sizes.max(initial=0):,} of one.")
    parts += [f"## Lengths of the kept rows, in {unit}", lengths(tally.sizes),
              "## Diversity of the kept answers",
              f"{', '.join(distinct)}, of {tally.words:,} words.",
              "## Final answers of the kept rows", frequencies(tally.answers, kept)]
    for name in FIELDS:
        if tally.seen[name]:
            parts += [f"## {name}", markdown(" | rows: | kept:", [
                (value, f"{n:,}", share(tally.kept[name][value], n))
                for value, n in tally.seen[name].most_common(20)])]
    if tally.usage:
        parts += ["## Usage, of all rows",
                  "\n".join(f"- {name}: {n:,}" for name, n in tally.usage.items())]
    return "\n\n".join([*parts, f"<!-- {json.dumps(made)} -->\n"])


def settings(path):
    """The settings in the last line of a card; OSError, ValueError, LookupError where there are
    none."""
    last = Path(path).read_text(encoding="utf-8").splitlines()[-1]
    return dict(json.loads(last.removeprefix("<!-- ").removesuffix(" -->")))
