"""The statistics and tables of eval.py: intervals, paired tests, votes, calibration, repeats.

Always report an interval. When two models answer the same questions, compare them question by
question: the questions vary far more than the models do. tests/test_metrics.py holds each function
to scipy or to a value computed by hand.
"""
import math

import numpy as np


def wilson(successes, n, z=1.959964):
    """95 % interval of a proportion (Wilson 1927): inside 0..1 and right near both ends."""
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mcnemar(first, second):
    """Two-sided exact p of McNemar's test: two models (or one, on two versions of the questions)
    are right equally often?

    first, second: sequences of bool, one a question. Only the questions on which they differ count:
    of these, each side should win half (McNemar 1947; the exact binomial form).
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2 ** n)


class Calibration:
    """Does a model that says 80 % hit 80 %? Token by token, its likeliest token against the text.

    ECE = sum over bins of share * |accuracy - mean confidence| (Guo et al. 2017, eq. 3).
    """

    def __init__(self, bins=15):
        self.counts = np.zeros((3, bins))  # tokens, sum of confidences, hits

    def add(self, confidence, hit):
        """confidence (N,) in 0..1, hit (N,) bool: arrays of one batch."""
        bins = self.counts.shape[1]
        index = np.minimum((np.asarray(confidence, dtype=np.float64) * bins).astype(int), bins - 1)
        for row, weights in zip(self.counts, (None, confidence, hit)):
            row += np.bincount(index, weights, minlength=bins)

    def ece(self):
        """The expected calibration error, 0 to 1."""
        n, confidence, hits = self.counts
        return float(np.abs(hits - confidence).sum() / max(n.sum(), 1))

    def table(self):
        """[(tokens, mean confidence, accuracy)] of the bins in use: a reliability diagram."""
        return [(int(n), c / n, h / n) for n, c, h in self.counts.T if n]


def repetition(ids, n=4):
    """Share of an answer's n-grams that it has said before: 0 none, near 1 a loop.

    seq-rep-n of Welleck et al. 2020, section 6.1. ids: a list; shorter than n: 0.
    """
    grams = [tuple(ids[i:i + n]) for i in range(len(ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def majority(answers, same):
    """Place of the answer that most give: of the first one of the largest group; None: no answer.

    answers: texts; None or blank ones do not vote. same(a, b): are two answers one? A group is made
    by its first member. Of equal groups the one that began first wins.
    """
    groups = []
    for place, text in enumerate(answers):
        if text is not None and text.strip():
            group = next((g for g in groups if same(text, answers[g[0]])), None)
            if group is None:
                groups.append(group := [])
            group.append(place)
    return max(groups, key=len)[0] if groups else None  # max: the first of the longest


def pass_at(k, n, right):
    """Chance that one of k answers is right, k drawn from n of which `right` are: pass@k.

    Unbiased for k fresh answers (Chen et al. 2021, eq. 1); at k = n: 1 if any is right.
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def markdown(head, rows):
    """A Markdown table; head: "model | steps: | verdict", a colon after a column of numbers."""
    names = head.split(" | ")
    lines = [[name.removesuffix(":") for name in names], *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    text.insert(1, "".join("|---:" if name.endswith(":") else "|---" for name in names) + "|")
    return "\n".join(text)


def table(lines, columns, above=()):
    """A Markdown table; a column is (head, function of a line); above: lines of ready cells."""
    return markdown(" | ".join(head for head, _ in columns),
                    [*above, *([cell(line) for _, cell in columns] for line in lines)])
