"""The checks of lesson 2. The expected numbers come from a loop in plain Python over all tokens."""
import math

import torch

from check import near

TASKS = [("smoothed_loss", "the loss of a language model, with label smoothing", 8),
         ("lowest_loss", "how low it can fall", 2)]


def fill(B, T, factor):
    """Logits (B, T, 4) without a pattern, the same on every computer."""
    return (torch.arange(B * T * 4) * factor % 11 / 4 - 1).view(B, T, 4)


PAPER = torch.tensor([[[3.0, 1.0], [1.0, 9.0]]]).log()  # (1, 2, 2)
FIRST, SECOND = fill(2, 5, 7), fill(1, 3, 5)
IDS, MORE = torch.tensor([[0, 3, 1, 2, 2], [1, 1, 0, 3, 2]]), torch.tensor([[2, 0, 1]])
ALL = torch.ones_like(IDS)
MASK = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
PACKED = torch.tensor([[1, 1, 1, 2, 2], [1, 2, 2, 2, 2]])
PADDED = torch.tensor([[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]])
HOLES = FIRST.clone()
HOLES[0, [0, 2, 4]] = HOLES[1, 2:] = math.nan           # where MASK and PADDED count nothing
TWO = [[FIRST, SECOND], [IDS, MORE], [MASK, torch.ones_like(MORE)],
       [PADDED, torch.ones_like(MORE)], 0.1]
APART = [[*x[0].split(1), x[1]] for x in TWO[:4]] + [0.1]  # the same tokens in three micro-batches


def calls():
    """(function, arguments) of each call, in the order in which judge counts them."""
    one = torch.ones(1, 2, dtype=torch.int64)
    return [("smoothed_loss", [[PAPER], [torch.tensor([[1, 0]])], [one], [one], 0.0]),    # 0
            ("smoothed_loss", [[FIRST], [IDS], [ALL], [ALL], 0.0]),        # 1
            ("smoothed_loss", [[FIRST], [IDS], [MASK], [ALL], 0.0]),       # 2
            ("smoothed_loss", [[FIRST], [IDS], [ALL], [PACKED], 0.0]),     # 3
            ("smoothed_loss", [[FIRST], [IDS], [ALL], [ALL], 0.2]),        # 4
            ("smoothed_loss", TWO), ("smoothed_loss", APART),              # 5, 6
            ("smoothed_loss", [[FIRST], [IDS], [ALL * 0], [ALL], 0.1]),    # 7
            ("smoothed_loss", [[HOLES, SECOND], *TWO[1:]]),                # 8
            ("lowest_loss", [7, 0.0]), ("lowest_loss", [7, 1.0]),          # 9, 10
            ("lowest_loss", [4, 0.2]), ("lowest_loss", [1000, 0.1])]       # 11, 12


def judge(a):
    """a[i]: what call i returned -> yields (points, ok, hint)."""
    yield 1, lambda: near(a[0], 0.287682), (
        "two tokens are one prediction: which of the two places makes it? There q is 3/4")
    yield 1, lambda: near(a[1], 1.385201), (
        "two rows of five tokens: how many predictions are there, and what is their mean?")
    yield 1, lambda: near(a[2], 1.751865), (
        "the mask belongs to tokens: is mask 1 needed at a place's own token or at the next one?")
    yield 1, lambda: near(a[3], 1.289925), (
        "a window with two documents: can the first one's end tell how the second one begins?")
    yield 1, lambda: near(a[4], 1.438326), (
        "label smoothing: what is the whole target at epsilon 0.2 and V = 4? Does it add up to 1?")
    yield 2, lambda: near(a[5], 2.038040) and near(a[6], 2.038040), (
        "micro-batches of different size: does each token have the same weight in the result?")
    yield 1, lambda: near(a[7], 0.0) and near(a[8], 2.038040), (
        "what is 0 * NaN, and 0 / 0? Places that do not count must not come near the sum")
    yield 1, lambda: near(a[9], 0.0) and near(a[10], math.log(7)), (
        "two limits: how low is it if the target is certain, or if all tokens have the same share?")
    yield 1, lambda: near(a[11], 0.587501) and near(a[12], 1.014848), (
        "cross-entropy = entropy + KL: which part can the model change? "
        "How much of the target does the right token get?")
