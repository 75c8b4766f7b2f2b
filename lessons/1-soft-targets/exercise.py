"""Lesson 1: how sure is a teacher, and what does it know about the wrong words?

Check your code:   python lessons/check.py 1
"""
import torch


def temperature_for(logits, nats):
    """The temperature tau at which softmax(logits / tau) has the entropy `nats`.

    logits (V,): floats. Some may be -inf: such a token has probability 0 and adds 0 to the entropy.
    nats: a float. The entropy of probabilities p is -sum p ln p.
    -> a float between 0.001 and 1000, correct to 0.1 %. None if no such temperature exists.
    Hint: the entropy never falls when tau rises. So you can halve an interval of ln tau again and
    again, and keep the half that contains the answer.
    """
    raise NotImplementedError


def dark_knowledge(logits, labels):
    """How many nats the teacher's probabilities hold about the wrong tokens.

    logits (N, V): floats, no -inf; V is at least 3. labels (N,): int64, the right token of a row.
    -> (N,) nats: take the label away from softmax(logits), let the others add up to 1 again, and
    compute their entropy. It must be right for a teacher who is very sure of the label, too.
    """
    raise NotImplementedError
