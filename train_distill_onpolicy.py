"""On-policy distillation, white box: the student writes, the teacher corrects.

    loss = (1 - alpha) * CE(labels, q) + alpha * tau^2 * D(p_teacher, q_student)    on the data
    loss = tau^2 * D(p_teacher, q_student)                     on text that the student wrote itself
    D exact, over the vocabulary, at every token of a response; no gradient through the writing
    (Agarwal et al. 2024, GKD, algorithm 1; its lambda is --on-policy-share; tau of total variation)

A student that learns only from the data never sees its own mistakes (exposure bias). Here a share
of each step's windows (--on-policy-share) keeps its prompts, and the student writes the responses.
Share 0 is train_distill_logits.py --fused off, to the bit.

One CPU command (6 minutes):        python train_distill_onpolicy.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_onpolicy.py --size 2m
The last line but one:              out/student-onpolicy.pt: validation ce ... nats a token ...

How it differs from the paper:
1. The paper draws for each batch whether the student writes it; here the same share of every step.
2. The paper starts from a fine-tuned student: use --init. From random weights it writes babble.
3. On the data's text the labels have a say, too (alpha 1: none, as in the paper).
4. Plain text has no prompt: the first half of a window stands for one, so at share 0.5 its own
   text is a quarter of what counts. Of several turns, the first answer is written.
5. The student writes at --sample-temperature, 1, while D is taken at tau, 2; the paper's are 1.
"""
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

import checkpoints
import common
from dataset.windows import (NAMES, open_text, pack_documents, self_check, step_batches, tensors,
                             validation_ce)
from decoding import generate
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-onpolicy" # the run: writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # its checkpoint; the student shares its tokenizer
    on_policy_share: float = 0.5   # share of the windows that the student answers (0 to 1)
    sample_temperature: float = 1.0  # at which it writes (0.5 to 1; 0: greedy)
    max_new_tokens: int = 96       # longest response that it writes
    alpha: float = 0.9             # on the data: weight of the teacher; the labels get the rest
    temperature: float = 2.0       # tau, softens both distributions (1 to 4)
    divergence: Literal[tuple(DIVERGENCES)] = "reverse_kl"  # see the top of losses.py
    beta: float = 0.5              # of jsd: 0 forward KL, 1 reverse KL (0 to 1)
    skew: float = 0.1              # of skew_*: share of the first mixed into the second (0 to 0.5)
    data: str = common.OUT / "data/stories/train.jsonl"  # .txt or .jsonl, see dataset/formats.py
    val: str = common.OUT / "data/stories/val.jsonl"     # validation text; its best step is kept
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the student, by name: see SIZES in model.py
    init: str = ""                 # checkpoint to start from; empty: fresh, of --size
    init_from_teacher: str = ""    # start as some of the teacher's blocks, such as 1,3,4
    window: int = 256              # tokens in a window (128 to 1,024); the context is twice that
    target: Literal["cot", "answer"] = "cot"      # answer: leave the <think> span out
    documents: int = 0             # use only the first N documents; 0: all
    skip_bad_lines: bool = False   # count bad lines of the data and go on, instead of stopping
    batch: int = 8                 # windows in an optimizer step (4 to 64); small models like few
    accumulate: int = 1            # micro-batches it is cut into, to save memory; same gradient
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 1e-2               # peak learning rate (1e-3 to 1e-2 for these small models)
    warmup: int = 30               # steps of linear warmup (10 to 200)
    weight_decay: float = 0.1      # decoupled, matrices only (0 to 0.3)
    clip: float = 1.0              # largest gradient norm; larger ones are scaled down (0.5 to 5)
    optimizer: Literal["muon", "adamw"] = "muon"  # muon: hidden matrices by Muon, the rest by AdamW
    eval_every: int = 100          # steps between validations, and checkpoints (20 to 500)
    eval_windows: int = 64         # validation windows; 0: all
    seed: int = 0                  # of the weights and of the order of the windows
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    compile: bool = False          # torch.compile: worth its minute on a GPU
    fresh: bool = False            # start again and replace out/NAME.pt


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


def student_writes(cfg, env, model, tokenizer, data, step):
    """A step's batches as step_batches makes them, a share of their windows rewritten by the
    student -> batches, each with True at its end if the student wrote it; n_valid and counts of all
    ranks; seconds of writing."""
    batches, _, _ = step_batches(data, step, cfg, env)
    began, kept, prompts, parts = time.time(), [], [], cfg.accumulate * env.world
    for part, (*batch, numbers) in zip(range(env.rank, parts, env.world), batches):
        place = step * cfg.batch + part * cfg.batch // parts + np.arange(len(numbers))  # (B,)
        # every 1/share-th of the endless row of windows, however few a step has: exact over steps
        own = np.floor((place + 1) * cfg.on_policy_share) > np.floor(place * cfg.on_policy_share)
        for number in numbers[own]:
            prompts += prompts_of(data, number, cfg.window)
        if not own.all():
            kept.append([*(t if t is None else t[~own] for t in batch), False])
    if prompts:
        generator = torch.Generator(env.device).manual_seed(
            (cfg.seed * 1_000_003 + step) * env.world + env.rank)
        with env.autocast():
            written = generate(model, prompts, cfg.max_new_tokens, {tokenizer.end},
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
    """Set up, self-check, and the loop of six numbered steps."""
    mix = common.check_loss_flags(cfg)
    common.between(cfg, 0, 1, "on_policy_share")
    common.between(cfg, 0, 100, "sample_temperature")
    common.positive(cfg, "max_new_tokens")
    env = common.start(cfg)
    # the teacher, frozen; the student speaks its tokenizer
    teacher, tokenizer, inputs = checkpoints.load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    train, val = open_text(cfg, tokenizer, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 env.dtype == "bf16")
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    run_model = torch.compile(model) if cfg.compile else model
    facts = {"parameters": f"{model.num_parameters():,}"}
    common.begin(cfg, env, progress, facts | self_check(cfg, env, model, train, val, teacher))

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = get_lr(step, cfg.steps, cfg.lr, cfg.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

        # 2) forward, backward
        batches, n_valid, counts, writing = student_writes(cfg, env, model, tokenizer, train, step)
        sums = [0.0] * 4                                     # loss, ce, kd, teacher's ce
        for x, y, document, weight, own in batches:          # each (B, T); own: True or False
            keep = weight > 0                                # (B, T) the N tokens that count
            with torch.no_grad(), env.autocast():
                teacher_logits = teacher(x, document, keep)  # (N, V)
            with env.autocast():
                logits = run_model(x, document, keep)        # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)  # (N,)
            alpha = 1.0 if own else cfg.alpha                # its own words are no labels
            values = (1 - alpha) * ce + alpha * kd           # (N,)
            teacher_ce = cross_entropy(teacher_logits, y[keep])  # (N,)
            terms = [total(v, weight[keep]) for v in (values, ce, kd, teacher_ce)]
            loss = terms[0] / n_valid                        # the one normaliser
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip).item()
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
                 "writing": writing / seconds}  # share of the time; ce is also of its own words
        common.log(cfg, env, progress.step, terms, val_ce, seconds, counts)

        # 6) save, stop
        stopped = common.should_stop(env)
        if due or stopped:
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs)
        if stopped:
            break

    common.end(cfg, env, progress)


if __name__ == "__main__":
    common.run(main, Config)
