"""Lesson 4: a cache in which each place keeps as many tokens as it needs.

A cache of N places is a dict of two tensors. K is the largest number of tokens that a place keeps.
    ids    (N, K) int64: the kept tokens, the likeliest first. After the last one: -1
    log_p  (N, K + 1): their ln p. After the last one: -inf. Column K: ln of the bucket's p
"""
import torch  # noqa: F401


def nucleus(teacher_logits, mass):
    """teacher_logits (N, V) and mass (from 0 to below 1) -> dict(ids=..., log_p=...).
    Each place keeps the smallest set of likeliest tokens whose p adds up to at least `mass`.
    This set has at least one token. The bucket has the p of all other tokens together.
    Its ln p must be right even if this p is as small as 1e-9."""
    raise NotImplementedError


def nucleus_kl(student_logits, ids, log_p):
    """KL(teacher || student) in nats, from such a cache: (N, V), (N, K), (N, K + 1) -> (N,).
    The outcomes of a place are its kept tokens and its bucket, for the student, too.
    An outcome with p = 0 adds 0. All numbers must be finite."""
    raise NotImplementedError


def cache_bytes(kept, vocab_size):
    """kept: a list with the number of kept tokens of each place -> bytes of this cache on disk.
    No -1 and no -inf is stored. A place needs its number of kept tokens (2 bytes), each id (2 bytes
    if the vocabulary has at most 65,536 tokens, else 4), each ln p with the bucket's (2 bytes) and
    the cross-entropy of the teacher (4 bytes)."""
    raise NotImplementedError


def pays_from(making, live, cached):
    """The smallest number of training steps with which a cache saves time. None if it never does.
    All are in seconds. making: making the cache. live: a step with the teacher. cached: a step
    with the cache.
    With the returned number of steps, cache and training together take less time than `live`."""
    raise NotImplementedError
