"""Lesson 2: the loss of a language model, with a target that is not quite certain.

Check your code:   python lessons/check.py 2
"""
import torch


def smoothed_loss(logits, ids, mask, document, epsilon):
    """The loss of one optimizer step: one mean over all tokens that count, in nats a token.

    The four arguments before epsilon are lists with one tensor for each micro-batch. Micro-batches
    may have different sizes B and T.
        logits (B, T, V): what the model says after it has read the tokens up to this place
        ids (B, T), int64: the tokens
        mask (B, T): 1 if this token is to be learned, else 0 (prompt, padding)
        document (B, T): the number of the document that this token belongs to
    Position t predicts the token at t + 1. It counts if that token is to be learned and if both
    belong to the same document. Logits of other positions may be NaN.
    Label smoothing: the target gives every token of the vocabulary epsilon / V, and the right token
    1 - epsilon more. The loss of a position is -sum target * ln softmax(logits).
    -> a float. 0.0 if nothing counts.
    """
    raise NotImplementedError


def lowest_loss(vocabulary, epsilon):
    """The lowest value that the smoothed loss can have, for V = vocabulary tokens.

    vocabulary: int, at least 2. epsilon: float, from 0 to 1.   -> a float, in nats
    """
    raise NotImplementedError
