"""The statistics and tables of eval.py: intervals, paired tests, votes, calibration, repeats.

Always report an interval. When two models answer the same questions, compare them question by
question: the questions vary far more than the models do.
"""
import math
from collections import Counter

import numpy as np


def wilson(successes, n, z=1.959964):
    """95 % interval of a proportion (Wilson 1927): inside 0..1 and right near both ends."""
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first, second):
    """Are two models (or one, on two versions of the questions) right equally often? -> exact p.
    first, second: bools, one a question. Of the questions on which they differ, each side should
    win half (McNemar 1947; two-sided, the exact binomial form)."""
    pairs = list(zip(first, second, strict=True))
    n, wins = sum(a != b for a, b in pairs), sum(a > b for a, b in pairs)
    tail = sum(math.comb(n, k) for k in range(min(wins, n - wins) + 1))
    return min(1.0, 2 * tail / 2 ** n)


def calibration(confidence, hit, bins=15):
    """Does a model that says 80 % hit 80 %? -> (ECE, [(tokens, mean confidence, accuracy)] of the
    bins in use: a reliability diagram).

    confidence: (N,) in 0..1, of the likeliest token; hit: (N,) bool, is it the text's?
    ECE = sum over bins of share * |accuracy - mean confidence| (Guo et al. 2017, eq. 3).
    """
    index = np.minimum((confidence.astype(np.float64) * bins).astype(int), bins - 1)
    n, sure, right = (np.bincount(index, weights, bins) for weights in (None, confidence, hit))
    table = [(int(k), c / k, h / k) for k, c, h in zip(n, sure, right) if k]
    return float(np.abs(right - sure).sum() / len(hit)), table


def repetition(ids, n=4):
    """Share of an answer's n-grams (ids: a list) that it has said before: 0 none, near 1 a loop.
    seq-rep-n of Welleck et al. 2020, section 6.1; 0 if it is shorter than n."""
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def majority(answers, same):
    """The answer that most answers agree with, the first of equals; None: nobody answered.
    None and blank texts do not vote. same(a, b): are two answers one?"""
    counts = Counter(text for text in answers if text and text.strip())
    votes = {text: sum(counts[other] for other in counts if same(text, other)) for text in counts}
    return max(votes, key=votes.get, default=None)


def pass_at(k, n, right):
    """pass@k: the chance that one of k answers is right, drawn from n of which `right` are.
    Unbiased for k fresh answers (Chen et al. 2021, eq. 1)."""
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def markdown(head, rows):
    """A Markdown table; head: "model | steps: | verdict", a colon after a column of numbers."""
    names = head.split(" | ")
    lines = [[name.removesuffix(":") for name in names], *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    text.insert(1, "".join("|---:" if name.endswith(":") else "|---" for name in names) + "|")
    return "\n".join(text)


def table(lines, columns):
    """A Markdown table; a column is (head, function of a line)."""
    rows = [[cell(line) for _, cell in columns] for line in lines]
    return markdown(" | ".join(head for head, _ in columns), rows)
