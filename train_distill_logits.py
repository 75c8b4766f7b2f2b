"""Logits distillation, white box: the student learns the teacher's whole next-token distribution.

    loss = (1 - alpha) * CE(labels, q) + alpha * tau^2 * KL(p_teacher || q_student)
    mean over counted tokens; in the KL, logits are divided by tau (Hinton et al. 2015, section 2)

One CPU command (2 minutes):        python train_distill_logits.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_logits.py --size 2m
The last line but one:              out/student-logits.pt: validation ce ... nats a token ...

How it differs from the paper:
1. In the paper an example has one distribution; here each token has one, over the vocabulary.
2. The paper tried temperatures from 1 to 20. Here 2 was better than 1 in the trials (RESULTS.md).
3. The teacher runs at every step. With --cache its saved outputs are used instead.
"""
import time
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoints
import common
from dataset.cache_reader import cached_divergence, load_teacher, open_cache
from dataset.windows import open_text, self_check, step_batches, validation_ce
from fused import fused_step, use_fused
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-logits"   # the run: writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # its checkpoint; the student shares its tokenizer
    alpha: float = 0.9             # weight of the teacher's term; the labels get 1 - alpha (0 to 1)
    temperature: float = 2.0       # tau, softens both distributions (1 to 4)
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # see the top of losses.py
    beta: float = 0.5              # of jsd: 0 forward KL, 1 reverse KL (0 to 1)
    skew: float = 0.1              # of skew_*: share of the first mixed into the second (0 to 0.5)
    fused: Literal["auto", "on", "off"] = "auto"  # never hold all logits (fused.py); auto: if many
    cache: str = ""                # folder of dataset/teacher_cache.py: the teacher does not run
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


def main(cfg):
    """The loop of train_pretrain.py: `diff` the two scripts, and see the teacher's lines."""
    mix = common.check_loss_flags(cfg)
    env = common.start(cfg)
    # the teacher, frozen, or its cache; the student speaks its tokenizer
    teacher, tokenizer, inputs = load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    train, val = open_text(cfg, tokenizer, inputs)
    cache = open_cache(cfg, env, train) if cfg.cache else None
    fused = use_fused(cfg, env, tokenizer.vocab_size)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 env.dtype == "bf16")
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    run_model = torch.compile(model) if cfg.compile else model
    facts = {"parameters": f"{model.num_parameters():,}", "loss": "fused" if fused else "plain"}
    facts |= self_check(cfg, env, model, train, val, teacher) | (cache["facts"] if cache else {})
    common.begin(cfg, env, progress, facts)

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = get_lr(step, cfg.steps, cfg.lr, cfg.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

        # 2) forward, backward
        batches, n_valid, counts = step_batches(train, step, cfg, env)
        sums = [0.0] * 4                                     # loss, ce, tau^2 KL, teacher's ce
        for x, y, document, weight, windows in batches:      # each (B, T); their numbers (B,)
            if fused:                                        # the same without holding all logits
                terms = fused_step(cfg, env, model, teacher, x, y, document, weight, mix, n_valid)
                sums = [s + term for s, term in zip(sums, terms)]
                continue
            keep = weight > 0                                # (B, T) the N tokens that count
            with env.autocast():
                logits = run_model(x, document, keep)        # (N, V)
            ce = cross_entropy(logits.detach() if cfg.alpha == 1 else logits, y[keep])  # (N,)
            if cache:                                        # the teacher ran before
                kd, teacher_ce = cached_divergence(cache, windows, logits, cfg, mix)  # (N,)
            else:
                with torch.no_grad(), env.autocast():
                    teacher_logits = teacher(x, document, keep)                       # (N, V)
                kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)
                teacher_ce = cross_entropy(teacher_logits, y[keep])                   # (N,)
            values = (1 - cfg.alpha) * ce + cfg.alpha * kd   # (N,) alpha 1: ce is only for the log
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
        terms = {"loss": loss, "ce": ce, "kd": kd, "teacher ce": teacher_ce, "norm": norm, "lr": lr}
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
