"""On-policy distillation, white box: the student writes, the teacher corrects.

    loss = (1 - alpha) * CE(labels, q) + alpha * tau^2 * D(p_teacher, q_student)    on the data
    loss = tau^2 * D(p_teacher, q_student)                     on text that the student wrote itself
    D is exact: a sum over the vocabulary at every token that counts. Sampling has no gradient.
    Agarwal et al. 2024 (GKD), algorithm 1: lambda is --on-policy-share. Total variation: tau * D.

A student that learns only from data never sees its own mistakes (exposure bias). Here a share of
the windows (--on-policy-share) keeps only the prompts, and the student writes the responses. With
share 0 the weights are exactly those of train_distill_logits.py --fused off with the same flags.

One CPU command (6 minutes):        python train_distill_onpolicy.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_onpolicy.py --size 2m
It ends with:                       out/student-onpolicy.pt: validation ce ... nats a token ...

How it differs from the paper:
1. The paper draws at random, for each batch, who writes it. Here each step has about that share.
2. The paper starts from a fine-tuned student (use --init). With random weights it writes nonsense.
3. On the data the labels count, too. With --alpha 1 they do not, as in the paper.
4. In plain text the first half of a window is the prompt. At share 0.5, about a quarter of the
   counted tokens are then the student's. In a conversation it writes only the first answer.
5. The student samples at --sample-temperature 1, and D uses tau = 2. In the paper both are 1.
"""
import time
from dataclasses import dataclass
from typing import Literal

import common
import numpy as np
import torch

import checkpoints
from dataset.windows import (NAMES, open_text, pack_documents, self_check, step_batches, tensors,
                             validation_ce)
from decoding import generate
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers, set_lr


@dataclass
class Config:
    name: str = "student-onpolicy" # name of the run: it writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # teacher's checkpoint; its tokenizer is used, too
    on_policy_share: float = 0.5   # share of the windows in which the student writes (0 to 1)
    sample_temperature: float = 1.0  # temperature at which it writes (0.5 to 1; 0: greedy)
    max_new_tokens: int = 96       # longest response that it writes, in tokens
    alpha: float = 0.9             # on the data: weight of the teacher; labels: 1 - alpha (0 to 1)
    temperature: float = 2.0       # tau (1 to 4); above 1, both distributions are flatter
    divergence: Literal[tuple(DIVERGENCES)] = "reverse_kl"  # formulas: at the top of losses.py
    beta: float = 0.5              # only for jsd: 0 is forward KL, 1 is reverse KL (0 to 1)
    skew: float = 0.1              # only for skew_*: share s in their formulas (0 to 0.5)
    data: str = common.OUT / "data/stories/train.jsonl"  # .txt or .jsonl, see dataset/formats.py
    val: str = common.OUT / "data/stories/val.jsonl"  # validation; with --data only: a tenth of it
    size: Literal[tuple(SIZES)] = "0.4m"  # name of the student's shape: see SIZES in model.py
    init: str = ""                 # checkpoint to start from; empty: a new model of --size
    init_from_teacher: str = ""    # copy these blocks of the teacher at the start, such as 1,3,4
    window: int = 256              # tokens in a window (128 to 1,024); a new model's context is 2x
    target: Literal["cot", "answer"] = "cot"      # cot: steps and answer; answer: no steps
    documents: int = 0             # use only the first N documents; 0: all
    skip_bad_lines: bool = False   # skip and count bad lines of the data, instead of stopping
    batch: int = 8                 # windows in an optimizer step (4 to 64; small models: few)
    accumulate: int = 1            # cut a batch into N micro-batches: less memory, same gradient
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 1e-2               # peak learning rate (1e-3 to 1e-2 for these small models)
    warmup: int = 30               # steps of linear warmup (10 to 200)
    weight_decay: float = 0.1      # decoupled weight decay of the matrices (0 to 0.3)
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: Muon on block matrices, AdamW on the rest
    eval_every: int = 100          # steps between validations (20 to 500); each saves a checkpoint
    eval_windows: int = 64         # windows in a validation; 0: all
    seed: int = 0                  # random seed of the start weights and of the window order
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 if the hardware has it
    fresh: bool = False            # start again at step 0 and replace out/NAME.pt


def prompts_of(data, number, window):
    """Window `number` of data -> its prompts, lists of ids: each document's tokens before the first
    token that counts. If all of them count (plain text), the prompt is the first half."""
    ids, mask, document = (data[name][number] for name in ("ids", "mask", "document"))
    found = []
    for place in (np.flatnonzero(document == d) for d in np.unique(document[document > 0])):
        counted = np.flatnonzero(mask[place] > 0)
        if len(counted):
            end = counted[0] if counted[0] > 1 else max(1, min(len(place), window) // 2)
            found.append(ids[place[:end]].tolist())
    return found


def student_writes(cfg, env, model, tokenizer, data, step):
    """A step. In a share of the windows the student writes the response -> batches [x, y, document,
    weight, True if the student wrote it]; n_valid, counts: of all ranks; seconds of writing."""
    batches, _, _ = step_batches(data, step, cfg, env)
    began, kept, prompts, parts = time.time(), [], [], cfg.accumulate * env.world
    for part, (*batch, numbers) in zip(range(env.rank, parts, env.world), batches):
        place = step * cfg.batch + part * cfg.batch // parts + np.arange(len(numbers))  # (B,)
        # spread evenly over the windows of all steps, so small batches keep the share, too
        own = np.floor((place + 1) * cfg.on_policy_share) > np.floor(place * cfg.on_policy_share)
        for number in numbers[own]:
            prompts += prompts_of(data, number, cfg.window)
        if not own.all():
            kept.append([*(t if t is None else t[~own] for t in batch), False])
    if prompts:
        generator = torch.Generator(env.device).manual_seed(
            (cfg.seed * 1_000_003 + step) * env.world + env.rank)
        with env.autocast():
            written = generate(model, prompts, cfg.max_new_tokens, tokenizer.stop_ids,
                               temperature=cfg.sample_temperature, generator=generator)
        documents = []  # the response counts, the prompt does not
        for prompt, response in zip(prompts, written):
            response = response[:cfg.window + 1 - len(prompt)]
            documents.append((prompt + response, [0] * len(prompt) + [1] * len(response)))
        texts = dict(zip(NAMES, pack_documents(documents, cfg.window + 1, tokenizer.pad)))
        size = cfg.batch // parts
        for numbers in np.split(np.arange(len(texts["ids"])), range(size, len(texts["ids"]), size)):
            kept.append([*tensors(texts, numbers, env.device), True])
    seconds = time.time() - began
    tokens = sum(int((b[2] > 0).sum()) if b[2] is not None else b[0].numel() for b in kept)
    supervised = sum(int((b[3] > 0).sum()) for b in kept)
    tokens, supervised = map(int, common.sum_over_ranks([tokens, supervised], env))
    return kept, max(supervised, 1.0), dict(tokens=tokens, supervised=supervised), seconds


def main(cfg):
    """Set up, print the self-check, then train: each step has six numbered parts."""
    mix = common.check_loss_flags(cfg)
    common.between(cfg, 0, 1, "on_policy_share")
    common.between(cfg, 0, 100, "sample_temperature")
    common.between(cfg, 1, 2**32 - 1, "max_new_tokens")
    env = common.start(cfg)
    # the frozen teacher; the student uses its tokenizer
    teacher, tokenizer, inputs = checkpoints.load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    train, val = open_text(cfg, tokenizer, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay, env.dtype)
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    facts = {"parameters": f"{model.num_parameters():,}"}
    common.begin(cfg, env, progress, facts | self_check(cfg, env, model, train, val, teacher))

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = set_lr(optimizers, get_lr(step, cfg.steps, cfg.lr, cfg.warmup))

        # 2) forward, backward
        batches, n_valid, counts, writing = student_writes(cfg, env, model, tokenizer, train, step)
        sums = [0.0] * 4                                     # loss, ce, kd, teacher's ce
        for x, y, document, weight, own in batches:          # (B, T) each; own: by the student
            keep = weight > 0                                # (B, T) the N tokens that count
            with torch.no_grad(), env.autocast():
                teacher_logits = teacher(x, document, keep)  # (N, V)
            with env.autocast():
                logits = model(x, document, keep)            # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)  # (N,)
            alpha = 1.0 if own else cfg.alpha                # its own text has no labels
            values = (1 - alpha) * ce + alpha * kd           # (N,)
            teacher_ce = cross_entropy(teacher_logits, y[keep])  # (N,)
            terms = [total(v, weight[keep]) for v in (values, ce, kd, teacher_ce)]
            loss = terms[0] / n_valid                        # the loss is divided only here
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        loss, ce, kd, teacher_ce = (s / n_valid for s in common.sum_over_ranks(sums, env))
        common.check_finite(loss, norm, step, cfg)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # 4) evaluate
        seconds, val_ce = time.time() - began, None
        checkpoints.count_step(progress, counts, seconds)
        due = progress.step == cfg.steps or progress.step % cfg.eval_every == 0
        if due:
            val_ce = validation_ce(model, val, cfg, env)
            checkpoints.keep_best(progress, model, val_ce)

        # 5) log
        terms = {"loss": loss, "ce": ce, "kd": kd, "teacher ce": teacher_ce, "norm": norm, "lr": lr,
                 "writing": writing / seconds}  # share of the time; ce includes its own text
        common.log(cfg, env, progress.step, terms, val_ce, seconds, counts)

        # 6) save, stop
        stopped = common.sum_over_ranks([env.stop], env)[0] > 0  # a signal to any rank
        if due or stopped:
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs)
        if stopped:
            break

    common.end(cfg, env, progress)


if __name__ == "__main__":
    common.run(main, Config)
