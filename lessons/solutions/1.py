"""Lesson 1, solved."""
import math

import torch


def entropy(logits):
    """Logits (..., V) -> the entropy of softmax(logits) (...), in nats."""
    log_p = torch.log_softmax(logits.double(), -1)
    p = log_p.exp()
    return -torch.where(p > 0, p * log_p, 0.0).sum(-1)


def temperature_for(logits, nats):
    low, high = math.log(0.001), math.log(1000)
    if not entropy(logits / math.exp(low)) <= nats <= entropy(logits / math.exp(high)):
        return None
    for _ in range(40):
        middle = (low + high) / 2
        if entropy(logits / math.exp(middle)) < nats:
            low = middle
        else:
            high = middle
    return math.exp(high)


def dark_knowledge(logits, labels):
    others = logits.scatter(-1, labels[:, None], -math.inf)  # (N, V): the label becomes impossible
    return entropy(others)
