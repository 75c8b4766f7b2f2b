"""Windows whose responses the student writes: the on-policy part of train_distill_onpolicy.py.

The prompts of a share of a step's windows are taken out of them, the student answers, and prompt
and answer are packed into windows again. What is drawn depends on seed, step and rank alone, so a
resumed run writes the same. What stands after the first end token was never written
(generate stops there), and a prompt never counts.
"""
import time

import numpy as np
import torch

import oldcommon as common
from dataset.batches import tensors
from dataset.prepare import Packed
from decoding import generate


def prompts_of(data, number, window):
    """The prompts in a window, each a list of ids: what stands before the first counted token of a
    document. Where all of it counts (plain text): the first half."""
    ids, mask, document = (data[name][number] for name in ("ids", "mask", "document"))
    found = []
    for place in (np.flatnonzero(document == d) for d in np.unique(document[document > 0])):
        counted = np.flatnonzero(mask[place] > 0)
        if len(counted):
            end = counted[0] if counted[0] > 1 else max(1, min(len(place), window) // 2)
            found.append(ids[place[:end]].tolist())
    return found


def pack(pairs, window, pad):
    """(prompt, response) pairs -> a dict as open_data has it, packed as prepare.py packs; the
    response counts, the prompt and the padding do not."""
    packed = Packed(window + 1)
    for prompt, response in pairs:
        packed.add(prompt + response, [0] * len(prompt) + [1] * len(response))
    return dict(zip(("ids", "mask", "document"), packed.arrays(pad)))


def chosen(place, share):
    """Which places in the endless row of windows the student writes: every 1/share-th, so that the
    share is exact over the steps, however few windows a step has. place (B,) -> (B,) bool."""
    return np.floor((place + 1) * share) > np.floor(place * share)


def student_writes(cfg, env, model, tokenizer, data, step, batches):
    """The step's batches with a share of their windows rewritten by the student -> batches, each
    with True at its end where it wrote; n_valid and counts of all ranks; seconds of writing."""
    began, kept, prompts, parts = time.time(), [], [], cfg.accumulate * env.world
    for part, (x, y, document, weight, numbers) in zip(range(env.rank, parts, env.world), batches):
        place = step * cfg.batch + part * cfg.batch // parts + np.arange(len(numbers))
        own = chosen(place, cfg.on_policy_share)                       # (B,)
        rest = torch.from_numpy(~own).to(x.device)
        for n in numbers[own]:
            prompts += prompts_of(data, n, cfg.window)
        if rest.any():
            kept.append([*(t if t is None or rest.all() else t[rest]
                           for t in (x, y, document, weight)), False])
    if prompts:
        generator = torch.Generator(env.device).manual_seed(
            (cfg.seed * 1_000_003 + step) * env.world + env.rank)
        with env.autocast():
            written = generate(model, prompts, cfg.max_new_tokens, {tokenizer.end},
                               temperature=cfg.sample_temperature, generator=generator)
        pairs = [(p, r[:cfg.window + 1 - len(p)]) for p, r in zip(prompts, written)]
        own = pack(pairs, cfg.window, tokenizer.pad)
        size = max(1, cfg.batch // parts)
        for first in range(0, len(own["ids"]), size):
            numbers = np.arange(first, min(first + size, len(own["ids"])))
            kept.append([*tensors(own, numbers, env.device), True])
    seconds = time.time() - began
    tokens = sum(int((b[2] > 0).sum()) if b[2] is not None else b[0].numel() for b in kept)
    supervised = sum(int((b[3] > 0).sum()) for b in kept)
    tokens, supervised = map(int, common.sum_over_ranks([tokens, supervised], env))
    return kept, max(supervised, 1.0), dict(tokens=tokens, supervised=supervised), seconds
