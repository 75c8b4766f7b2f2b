"""The checks of lesson 1. The expected numbers come from plain Python, not from the solution."""
import math

import torch

from check import near

TASKS = [("temperature_for", "the temperature of a wanted entropy", 6),
         ("dark_knowledge", "what the teacher says about the wrong tokens", 4)]

LOGITS = torch.tensor([2.0, 1.0, 0.5, -1.0, 0.0])
PAPER = torch.tensor([3.0, 1.0]).log()                  # probabilities 3/4 and 1/4
MASKED = torch.tensor([2.0, 1.0, -math.inf, 0.0])       # the third token is impossible
TIE = torch.tensor([1.0, 1.0, 0.0])
ROWS = torch.tensor([[3.0, 1.0, 0.0, -1.0, 2.0], [0.5, 2.5, -0.5, 1.0, 0.0],
                     [-2.0, 0.0, 1.0, 0.3, 4.0]])
LABELS = torch.tensor([0, 3, 4])
SURE = torch.tensor([[1.0, 200.0, 0.0, 0.5]])           # e^200 is too large for float32
TAU = 0.759776                                          # of LOGITS at 1 nat


def calls():
    """(function, arguments) of each call, in the order in which judge counts them."""
    return [("temperature_for", [PAPER, 0.562335]),                        # 0
            ("temperature_for", [LOGITS, 0.1]),                            # 1
            ("temperature_for", [LOGITS, 1.0]),                            # 2
            ("temperature_for", [LOGITS, 1.6]),                            # 3
            ("temperature_for", [LOGITS + 100, 1.0]),                      # 4
            ("temperature_for", [LOGITS * 250, 1.0]),                      # 5
            ("temperature_for", [LOGITS / 100, 1.0]),                      # 6
            ("temperature_for", [MASKED, 0.8]),                            # 7
            ("temperature_for", [LOGITS, 1.7]),                            # 8
            ("temperature_for", [MASKED, 1.2]),                            # 9
            ("temperature_for", [TIE, 0.5]),                               # 10
            ("dark_knowledge", [torch.tensor([[8.0, 1.0, 1.0]]).log(), torch.tensor([0])]),  # 11
            ("dark_knowledge", [ROWS, LABELS]),                            # 12
            ("dark_knowledge", [SURE, torch.tensor([1])])]                 # 13


def ratio(answer, expected):
    return near(answer / expected, 1.0, 0.001)


def judge(a):
    """a[i]: what call i returned -> yields (points, ok, hint)."""
    yield 1, lambda: ratio(a[0], 1.0), (
        "p = (3/4, 1/4) has 0.5623 nats at temperature 1: what is -sum p ln p on paper, and yours?")
    yield 1, lambda: ratio(a[1], 0.243480) and ratio(a[2], TAU) and ratio(a[3], 7.26225), (
        "a low and a high entropy: after how many halvings is the interval small enough?")
    yield 1, lambda: ratio(a[4], TAU), (
        "100 is added to all logits: should the softmax change, and can float32 hold e^100?")
    yield 1, lambda: ratio(a[5], 250 * TAU) and ratio(a[6], TAU / 100), (
        "all logits become 250 times as large: how large must tau be? Does your interval hold it? "
        "Does a p become exactly 0?")
    yield 1, lambda: ratio(a[7], 0.929441), (
        "a logit of -inf: what is 0 * ln 0 in the entropy, and what does the computer say?")
    yield 1, lambda: a[8] is a[9] is a[10] is None and ratio(a[2], TAU), (
        "which entropies are impossible? Think of few possible tokens, and of two equal winners")
    yield 1, lambda: near(a[11], [0.693147]), (
        "p = (0.8, 0.1, 0.1), label 0: what do the two others become when they add up to 1? "
        "And what does the label add, once its p is set to 0: does 0 * ln 0 occur?")
    yield 2, lambda: near(a[12], [0.947537, 0.730219, 1.101122]), (
        "one value for each row: is the label always the likeliest token?")
    yield 1, lambda: near(a[13], [1.020191]), (
        "the teacher is almost certain: how much is 1 - p in float32 then? Can you avoid it?")
