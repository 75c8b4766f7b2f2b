"""The checks of lesson 3. The expected numbers come from a loop in plain Python, and those of the
gradient from finite differences of it."""
import math

import torch

from check import near

TASKS = [("hellinger", "a distance of two distributions", 5),
         ("gradient", "its gradient, without autograd", 3),
         ("keep_size", "the factor that keeps the gradient's size", 2)]

STUDENT = torch.tensor([[[2.0, -1.0, 0.5, 0.0], [0.3, 1.7, -2.0, 1.0]],
                        [[0.0, 0.0, 3.0, -1.5], [-0.7, 0.2, 0.9, 1.4]]])  # (2, 2, 4)
TEACHER = torch.tensor([[[1.0, 1.0, -0.5, 2.0], [3.0, -1.0, 0.4, 0.0]],
                        [[-2.0, 0.6, 1.1, 0.5], [0.8, -0.3, 2.2, -1.0]]])
NEARLY = TEACHER[0, 0] + torch.tensor([0.001, -0.001, 0.0005, 0.0])
HALF, FIFTH = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.8, 0.2]]).log()
NEVER = (torch.tensor([1.0, -math.inf, 0.0, -math.inf]),
         torch.tensor([0.0, 1.0, -math.inf, -math.inf]), 1.0)

AT_1 = torch.tensor([[0.22182, 0.41454], [0.16893, 0.21332]])
AT_4 = torch.tensor([[0.01730, 0.03983], [0.02066, 0.01880]])
SLOPE_1 = torch.tensor([-0.13388, 0.11796, -0.01098, 0.02690])  # of place (0, 1)
SLOPE_4 = torch.tensor([-0.01105, 0.01205, -0.00539, 0.00440])


def calls():
    """(function, arguments) of each call, in the order in which judge counts them."""
    return [("hellinger", [FIFTH, HALF, 1.0]),           # 0
            ("hellinger", [STUDENT, TEACHER, 1.0]),      # 1
            ("hellinger", [STUDENT, TEACHER, 4.0]),      # 2
            ("hellinger", [NEARLY, TEACHER[0, 0], 1.0]),  # 3
            ("hellinger", [*NEVER]),                     # 4
            ("gradient", [STUDENT, TEACHER, 1.0]),       # 5
            ("gradient", [STUDENT, TEACHER, 4.0]),       # 6
            ("gradient", [*NEVER]),                      # 7
            ("keep_size", [1.0, False]), ("keep_size", [5.0, False]),  # 8, 9
            ("keep_size", [1.0, True]), ("keep_size", [5.0, True])]    # 10, 11


def judge(a):
    """a[i]: what call i returned -> yields (points, ok, hint)."""
    yield 1, lambda: near(a[0].flatten(), [0.05132]), (
        "p = (0.5, 0.5) and q = (0.8, 0.2): what does the formula give on paper, and your code?")
    yield 1, lambda: near(a[1], AT_1), (
        "one value for each place: over which dimension does the sum run?")
    yield 1, lambda: near(a[2], AT_4), (
        "which models see the temperature, and does it act before or after the softmax?")
    yield 1, lambda: near(a[3] / 5.19388e-8, 1.0, 0.05), (
        "nearly equal models: how many digits of float32 are left after 1 - 0.99999995?")
    yield 1, lambda: near(a[4], 0.55659) and near(a[7], [-0.05963, 0.0, 0.05963, 0.0]), (
        "a token of probability 0, also in gradient: does a logarithm or a division meet it?")
    yield 1, lambda: near(a[5].sum(-1), torch.zeros(2, 2)) and a[5].abs().max() > 0.01, (
        "one logit rises: what happens to the other probabilities? So what is the gradient's sum?")
    yield 1, lambda: near(a[5][0, 1], SLOPE_1), (
        "raise one logit by 0.001: does hellinger change by 0.001 times your gradient?")
    yield 1, lambda: near(a[6][0, 1], SLOPE_4), (
        "how large is the gradient at temperature 4? The logit is divided before the softmax")
    yield 1, lambda: near(a[8], 1.0) and near(a[9], 25.0), (
        "the squared distance: how does its gradient shrink from temperature 10 to 20, and why?")
    yield 1, lambda: near(a[10], 1.0) and near(a[11], 5.0), (
        "the root: its gradient is that of the square, divided by what? Does this shrink as well?")
