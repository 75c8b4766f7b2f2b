"""Lesson 5: which blocks of two models compute the same?

Hidden states are a tensor (N, D): N tokens, D channels. Row n of both tensors is the same token.
"""
import torch  # noqa: F401


def cka(a, b):
    """How alike are two sets of hidden states? a (N, D), b (N, D') -> a number from 0 to 1.
    First subtract each channel's mean over the tokens. Then
    |a^T b|^2 / (|a^T a| * |b^T b|), with |m|: the root of the sum of all squared entries of m."""
    raise NotImplementedError


def best_projection(student, teacher):
    """The best P for the hidden term: student (N, D), teacher (N, D') -> P (D', D).
    It makes the mean of (student P^T - teacher)^2 as small as any P can. No gradient steps."""
    raise NotImplementedError


def pair_layers(similarity):
    """Each student block gets one teacher block; their similarities add up to the largest sum.
    similarity: a list of S lists of T numbers (S <= T), student block i and teacher block j.
    -> a list of S numbers of teacher blocks, counted from 1. Each is larger than the one before:
    a later block of the student gets a later block of the teacher."""
    raise NotImplementedError
