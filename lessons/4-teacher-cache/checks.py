"""The checks of lesson 4. The expected numbers come from sums over the probabilities below."""
import torch

from check import near

TASKS = [("nucleus", "a place keeps as many tokens as it needs", 4),
         ("nucleus_kl", "KL from such a cache", 4),
         ("cache_bytes", "its size on disk", 1),
         ("pays_from", "when a cache saves time", 1)]

TEACHER = torch.tensor([[.02, .50, .01, .20, .01, .13, .09, .04],
                        [.005, .005, .97, .005, .005, .004, .003, .003],
                        [.16, .09, .15, .11, .14, .12, .13, .10],
                        [.55, .01, .30, .10, .01, .01, .01, .01]])
SHIFT = torch.tensor([[3.0], [-2.0], [0.0], [7.0]])  # logits may have any constant added
IDS = torch.tensor([[1, 3, 5, 6, -1, -1, -1], [2, -1, -1, -1, -1, -1, -1],
                    [0, 2, 4, 6, 5, 3, 7], [0, 2, 3, -1, -1, -1, -1]])
STUDENT = torch.tensor([[.1, .3, .1, .1, .1, .1, .1, .1], [.4, .05, .3, .05, .05, .05, .05, .05],
                        [.2, .2, .1, .1, .1, .1, .1, .1]])
KEPT = torch.tensor([[1, 3, 5, 6], [2, -1, -1, -1], [0, 2, 3, -1]])
LOG_P = torch.tensor([[.50, .20, .13, .09, .08], [.97, 0, 0, 0, .03],
                      [.55, .30, .10, 0, .05]]).log()
ALL = torch.tensor([[.2, .3, .5]]).log()
ALL_P = torch.tensor([[.5, .3, .2, 0]]).log()


def calls():
    """(function, arguments) of each call, in the order in which judge counts them."""
    return [("nucleus", [TEACHER.log() + SHIFT, 0.9]),                                   # 0
            ("nucleus", [torch.tensor([[-26.0, -25.0, 0.0, -27.0]]), 0.0]),              # 1
            ("nucleus_kl", [STUDENT[:1].log() - SHIFT[:1], KEPT[:1], LOG_P[:1]]),        # 2
            ("nucleus_kl", [STUDENT.log() + SHIFT[:3], KEPT, LOG_P]),                    # 3
            ("nucleus_kl", [torch.tensor([[40.0, 0, 0, 0]]), torch.tensor([[0]]),
                            torch.tensor([[.9, .1]]).log()]),                            # 4
            ("nucleus_kl", [ALL, torch.tensor([[2, 0, 1]]), ALL_P]),                     # 5
            ("cache_bytes", [[4, 1, 7, 3], 768]), ("cache_bytes", [[4, 1, 7, 3], 151_936]),  # 6, 7
            ("pays_from", [1.1, 0.5, 0.25]), ("pays_from", [2.0, 0.5, 0.25]),            # 8, 9
            ("pays_from", [2.0, 0.25, 0.5]), ("pays_from", [2.0, 0.5, 0.5])]             # 10, 11


def judge(a):
    """a[i]: what call i returned -> yields (points, ok, hint)."""
    yield 1, lambda: near((a[0]["log_p"][:, :-1] > -100).sum(-1), [4, 1, 7, 3]), (
        "how much p do the kept tokens have? Would the set reach the mass with one token fewer?")
    yield 1, lambda: near(a[0]["ids"], IDS) and near(a[1]["ids"], [[2]]), (
        "what is the order of ids, what fills the places after the last one, how many columns?")
    yield 1, lambda: (near(a[0]["log_p"][0].exp(), [.5, .2, .13, .09, 0, 0, 0, .08])
                      and near(a[0]["log_p"][:, -1].exp(), [.08, .03, .09, .05])), (
        "does a kept token have the teacher's own p? Do kept tokens and bucket add up to 1?")
    yield 1, lambda: near(a[1]["log_p"], [[0.0, -24.59239]], 1e-3), (
        "a bucket of 2e-11: how much of it is left after 1 - sum in float32?")
    yield 1, lambda: near(a[2], [0.28991]), (
        "a place on paper: which outcomes does it have, and whose p weighs their ln?")
    yield 1, lambda: near(a[3], [0.28991, 1.04381, 0.76172]), (
        "an id of -1 is no token: what do its -inf and the student's token 0 do in your sums?")
    yield 1, lambda: near(a[4], [3.56506], 1e-3), (
        "a student that is very sure: how small is its bucket, and is its ln still finite?")
    yield 1, lambda: near(a[5], [0.04055]), (
        "all tokens are kept, so the bucket is empty: what does 0 * ln 0 give in code?")
    yield 1, lambda: near(a[6], 92) and near(a[7], 122), (
        "add up on paper what two places with 4 and with 1 token store, for both vocabularies")
    yield 1, lambda: near([a[8], a[9]], [5, 9]) and a[10] is None and a[11] is None, (
        "how much time does one step save? What if none? And if both ways take exactly as long?")
