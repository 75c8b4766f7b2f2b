"""Claims about metrics.py: each statistic equals scipy's, or a number worked out by hand."""
import itertools
import random

import numpy as np
import pytest
from scipy import stats

from dataset.verify import agree
from metrics import calibration, chrf, majority, mcnemar, pass_at, repetition, wilson


def test_wilson_equals_scipy():
    """With the normal approximation, 10 right of 10 would have no uncertainty at all."""
    for right, n in ((0, 10), (5, 10), (10, 10), (90, 100), (1, 1), (920, 1000)):
        theirs = stats.binomtest(right, n).proportion_ci(0.95, "wilson")
        assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-6)


def test_mcnemar_by_hand_and_by_the_binomial_test():
    """Questions on which both models are right or wrong must not count: 0 of 5 wins gives 2 / 2^5."""
    assert mcnemar([1, 1, 0], [1, 1, 0]) == 1
    for only_first, only_second, p in ((1, 0, 1.0), (0, 5, 0.0625), (8, 2, 0.109375)):
        pairs = [(1, 0)] * only_first + [(0, 1)] * only_second + [(1, 1)] * 40 + [(0, 0)] * 7
        theirs = stats.binomtest(only_first, only_first + only_second).pvalue
        assert mcnemar(*zip(*pairs)) == pytest.approx(theirs) == p


def test_ece_of_a_constructed_case():
    """A wrong mean in a bin (10 tokens, worked out by hand), or confidence 1 outside the last bin."""
    ece, table = calibration(np.array([0.95] * 4 + [0.55] * 6),
                             np.array([True, False, True, True] + [True, False] * 3), bins=10)
    assert ece == pytest.approx(0.4 * 0.20 + 0.6 * 0.05)
    assert table == [(6, pytest.approx(0.55), 0.5), (4, pytest.approx(0.95), 0.75)]
    assert calibration(np.ones(5), np.zeros(5)) == (1, [(5, 1, 0)])


def test_repetition_by_hand():
    """A model that repeats itself would go unseen, or a short answer would count as repetition."""
    for ids, rate in (([1, 2, 3], 0), ([1, 2, 3, 4, 5], 0), ([7] * 8, 4 / 5), ([1, 2] * 4, 3 / 5)):
        assert repetition(ids) == pytest.approx(rate)


def test_chrf_equals_sacrebleus():
    """Spaces, short texts or the weight of recall could be counted otherwise. Oracle: sacrebleu 2.6.0."""
    for text, reference, score in (
            ("The cat sat on the mat.", "The cat is on the mat.", 67.1727), ("Rome is big.", "It is Rome.", 28.1302),
            ("意大利的首都是罗马。", "首都是罗马。", 79.4622), ("a b", "a  b", 100), ("ab", "abcdef", 31.25), ("", "a", 0)):
        assert chrf(text, reference) == pytest.approx(score, abs=1e-4)


def test_the_majority_equals_a_count_of_all_pairs():
    """A miscounted vote, a wrong choice in a tie, or a blank answer that votes. Oracle: brute force."""
    rng = random.Random(0)
    for _ in range(500):
        given = rng.choices(["7", "7.0", "8", " 8", "x", None, "", "  "], k=rng.randint(0, 7))
        said = [a for a in given if a and a.strip()]
        votes = [sum(agree(a, b) for b in said) for a in said]
        expected = said[votes.index(max(votes))] if said else None
        assert majority(given, agree) == expected, given


def test_the_chance_of_k_answers_is_the_share_of_all_choices():
    """A mistake in the formula of Chen et al. 2021. Oracle: all choices of k answers out of n."""
    for n, right, k in itertools.product(range(1, 7), range(7), range(1, 7)):
        if right <= n and k <= n:
            choices = list(itertools.combinations([1] * right + [0] * (n - right), k))
            assert pass_at(k, n, right) == pytest.approx(sum(map(any, choices)) / len(choices))
