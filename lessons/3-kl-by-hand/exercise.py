"""Lesson 3: another distance between teacher and student, and its gradient without autograd.

p = softmax(teacher_logits / temperature) and q = softmax(student_logits / temperature) over the
last dimension. The squared Hellinger distance of a place is

    1/2 * sum over tokens of (sqrt(p) - sqrt(q))^2

Check it with `python lessons/check.py 3`. Delete `raise NotImplementedError` where you begin.
"""
import torch


def hellinger(student_logits, teacher_logits, temperature):
    """Two tensors of logits (..., V) -> (...): a squared Hellinger distance for each place.
    0 if p and q are equal, 1 if they have no token in common. A logit can be -inf: then its token
    has probability 0. For nearly equal models the result must still be precise to 5 %."""
    raise NotImplementedError


def gradient(student_logits, teacher_logits, temperature):
    """The derivatives of hellinger by student_logits, (..., V) -> (..., V): one for each token of
    each place. Write down the formula that you found on paper. Autograd is off here."""
    raise NotImplementedError


def keep_size(temperature, root):
    """The factor that keeps the gradient at about the same size at every large temperature: a power
    of the temperature, so 1 at temperature 1. The gradient by the student's logits is meant, after
    p and q were made at this temperature. root False: the factor for hellinger. root True: for
    its square root, which is the Hellinger distance. temperature: a number. Returns a number."""
    raise NotImplementedError
