"""The checks of lesson 5. CKA's number comes from products of tokens, not of channels; the pairs
from trying all of them."""
import torch

from check import near

TASKS = [("cka", "how alike hidden states of two models are", 4),
         ("best_projection", "the best P of the hidden term", 3),
         ("pair_layers", "which block learns from which", 3)]

A = torch.tensor([[2, 0], [1, 1], [0, 3], [-1, 1], [-2, -2], [0, -3]]).float()  # (6, 2)
B = torch.tensor([[1, 0, 2], [0, 1, 1], [2, 4, -2],
                  [-1, 0, 1], [-3, -2, 0], [1, -3, -2]]).float()                # (6, 3)
TURN = torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 1.0]]) * 5  # (2, 3): a rotation, and a factor
UNRELATED = [torch.tensor([[1.0], [1.0], [-1.0], [-1.0]]),
             torch.tensor([[1.0, 2.0], [-1.0, -2.0], [1.0, 2.0], [-1.0, -2.0]])]
P = torch.tensor([[1.0, 2.0], [0.0, -1.0], [3.0, 0.5]])  # (3, 2)
LARGE = [[.31, .62, .55, .71, .24, .18, .40, .12], [.22, .35, .48, .80, .77, .41, .39, .20],
         [.10, .28, .33, .52, .69, .74, .70, .35], [.15, .05, .21, .30, .44, .78, .58, .61]]


def calls():
    """(function, arguments) of each call, in the order in which judge counts them."""
    return [("cka", [A, B]), ("cka", [B, B]),              # 0, 1
            ("cka", [A, A @ TURN]),                        # 2
            ("cka", [A + 100, B - 50]),                    # 3
            ("cka", [*UNRELATED]),                         # 4
            ("best_projection", [A, A @ P.T]),             # 5
            ("best_projection", [A + 1, B]),               # 6
            ("best_projection", [B, A - 2]),               # 7
            ("pair_layers", [[[.9, .1], [.2, .8]]]),                        # 8
            ("pair_layers", [[[-.5, -.2, -.9], [-.3, -.8, -.4]]]),          # 9
            ("pair_layers", [[[.1, .9, .2], [.1, .8, .3]]]),                # 10
            ("pair_layers", [[[.5, .9, .8], [.2, .95, .3]]]),               # 11
            ("pair_layers", [LARGE])]                                       # 12


def fits(found, student, teacher):
    """Is no direction left in which another P would be better? Then the slope of the error is 0."""
    return near(student.mT @ (student @ found.mT - teacher), torch.zeros(student.shape[1],
                                                                      teacher.shape[1]), 1e-3)


def judge(a):
    """a[i]: what call i returned -> yields (points, ok, hint)."""
    yield 1, lambda: near(a[0], 0.80221), (
        "which entries are squared before the sum, and where is a root? Try a matrix of one entry")
    yield 1, lambda: near([a[1], a[2]], [1.0, 1.0]), (
        "states that are only turned, or multiplied by 5, tell the same: what should CKA be?")
    yield 1, lambda: near(a[3], 0.80221, 1e-3), (
        "100 is added to every state: from which numbers is a mean subtracted, and over what?")
    yield 1, lambda: near(a[4], 0.0), (
        "one model's states tell nothing about the other's: what should CKA be?")
    yield 1, lambda: list(a[5].shape) == [3, 2] and list(a[7].shape) == [2, 3], (
        "the term uses student P^T: how many rows and columns must P have for this product?")
    yield 1, lambda: near(a[5], P, 1e-3), (
        "these states were made with a known P: which of the two models is multiplied by it?")
    yield 1, lambda: fits(a[6], A + 1, B) and fits(a[7], B, A - 2), (
        "move one entry of P a little: can the error still fall? There is no bias that helps P")
    yield 1, lambda: near(a[8], [1, 2]) and near(a[9], [2, 3]), (
        "from which number do blocks count? Does every student block get one, even below 0?")
    yield 1, lambda: near(a[10], [2, 3]), "can two student blocks learn from one teacher block?"
    yield 1, lambda: near(a[11], [1, 2]) and near(a[12], [2, 4, 5, 6]), (
        "the best choice for one block can spoil the next ones: which pairs have the largest sum?")
