"""The statistics of eval.py: intervals, paired tests, votes, calibration, chrF; tables and rows.

Always report an interval. When two models answer the same questions, compare them question by
question: the questions vary far more than the models do.
"""
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np


def wilson(successes, n, z=1.959964):
    """95 % interval (low, high) of successes / n, correct even near 0 and 1 (Wilson 1927)."""
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first, second):
    """Are two models right equally often? Returns the exact two-sided p-value (McNemar 1947).
    first, second: one bool per question; or one model on two versions of each question. Only
    questions on which they differ count. If they are equally good, each side wins half of them."""
    pairs = list(zip(first, second, strict=True))
    n, wins = sum(a != b for a, b in pairs), sum(a > b for a, b in pairs)
    tail = sum(math.comb(n, k) for k in range(min(wins, n - wins) + 1))
    return min(1.0, 2 * tail / 2 ** n)


def calibration(confidence, hit, bins=15):
    """Is a model that is 80 % sure right in 80 % of the cases? Returns (ECE, reliability diagram).
    The diagram is [(tokens, mean confidence, accuracy)] of the bins that are not empty.
    confidence (N,): probability of the likeliest token. hit (N,): bool, is that token right?
    ECE = sum over bins of share * |accuracy - mean confidence| (Guo et al. 2017, eq. 3)."""
    index = np.minimum((confidence.astype(np.float64) * bins).astype(int), bins - 1)
    n, sure, right = (np.bincount(index, weights, bins) for weights in (None, confidence, hit))
    table = [(int(k), c / k, h / k) for k, c, h in zip(n, sure, right) if k]
    return float(np.abs(right - sure).sum() / len(hit)), table


def repetition(ids, n=4):
    """Share of an answer's n-grams (ids: a list) that occurred earlier in it: near 1 in a loop.
    This is seq-rep-n of Welleck et al. 2020, section 6.1. Answers shorter than n give 0."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def chrf(text, reference):
    """How near two texts are, from 0 to 100: chrF (Popović 2015), the F-score of the character
    n-grams of n = 1 to 6, without spaces, where recall counts twice as much as precision."""
    sides, shares = ["".join(side.split()) for side in (text, reference)], []
    for n in range(1, 7):
        a, b = (Counter(side[i:i + n] for i in range(len(side) - n + 1)) for side in sides)
        if a and b:  # a short text has no n-grams of this length
            both = (a & b).total()
            shares.append((both / a.total(), both / b.total()))
    precision, recall = np.mean(shares or [(0, 0)], axis=0)
    return float(500 * precision * recall / (4 * precision + recall)) if recall else 0.0


def majority(answers, same):
    """The answer that most answers agree with; in a tie the first one. None and blank texts do not
    vote. Returns None if there are no votes. same(a, b): does answer a say what answer b says?"""
    counts = Counter(text for text in answers if text and text.strip())
    votes = {text: sum(counts[other] for other in counts if same(text, other) or same(other, text))
             for text in counts}
    return max(votes, key=votes.get, default=None)


def pass_at(k, n, right):
    """pass@k: the chance that at least one of k answers is right, drawn from n of which `right` are
    right. It is unbiased for k new answers (Chen et al. 2021, eq. 1)."""
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def markdown(head, rows):
    """Rows of cells -> a Markdown table. head: "model | steps: | verdict"; colons mark numbers."""
    names = head.split(" | ")
    lines = [[name.removesuffix(":") for name in names], *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    text.insert(1, "".join("|---:" if name.endswith(":") else "|---" for name in names) + "|")
    return "\n".join(text)


def table(lines, columns):
    """Lines (dicts) -> a Markdown table. columns: (head, function from a line to its cell)."""
    rows = [[cell(line) for _, cell in columns] for line in lines]
    return markdown(" | ".join(head for head, _ in columns), rows)


def counted(counter, between=" | "):
    """A Counter as one line, the most frequent first: `ok 12 | format 3`."""
    return between.join(f"{name} {n:,}" for name, n in counter.most_common())


def json_lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_rows(path, rows):
    """Add rows to a .jsonl file. First remove half a line that a killed writer left at the end."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read(1) not in b"\n":  # half a line (not in an empty file)
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(json_lines(rows).encode())
