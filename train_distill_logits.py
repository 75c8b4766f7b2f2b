"""Logits distillation, white box: the student learns the teacher's whole next-token distribution.

    loss = (1 - alpha) * CE(labels, q) + alpha * tau^2 * KL(p || q)
    a mean over the tokens that count. In the KL, the teacher's p and the student's q are both
    softmax(logits / tau) (Hinton et al. 2015, section 2).

One CPU command (2 minutes):        python train_distill_logits.py --name my-student
One GPU command:                    torchrun --nproc-per-node 1 train_distill_logits.py --size 2m
It ends with:                       out/my-student.pt: validation ce ... nats a token ...

How it differs from the paper:
1. In the paper each example has one distribution. Here each token has one, over the vocabulary.
2. The paper tried temperatures from 1 to 20, we 1 to 8. 4 and 8 were as good as 2 (RESULTS.md).
3. The teacher runs at every step. With --cache its outputs were saved before, whole or in part.
"""
import time
from dataclasses import dataclass
from typing import Literal

import common
import torch

import checkpoints
from dataset.cache_reader import cached_divergence, cached_rows, load_teacher, open_cache
from dataset.windows import open_text, self_check, step_batches, validation_ce
from fused import fused_step, use_fused
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers, set_lr


@dataclass
class Config:
    name: str = "student-logits"   # name of the run: it writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # teacher's checkpoint; its tokenizer is used, too
    alpha: float = 0.9             # weight of the teacher's term; the labels get 1 - alpha (0 to 1)
    temperature: float = 2.0       # tau (1 to 4); above 1, both distributions are flatter
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # formulas: at the top of losses.py
    beta: float = 0.5              # only for jsd: 0 is forward KL, 1 is reverse KL (0 to 1)
    skew: float = 0.1              # only for skew_*: share s in their formulas (0 to 0.5)
    fused: Literal["auto", "on", "off"] = "auto"  # logits in parts: see fused.py; auto: if many
    cache: str = ""                # folder of dataset/teacher_cache.py, used instead of the teacher
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
    compile: bool = False          # faster in bf16; a model's first run compiles for a minute
    fresh: bool = False            # start again at step 0 and replace out/NAME.pt


def main(cfg):
    """The same loop as train_pretrain.py. `diff` the two scripts to see what the teacher adds."""
    mix = common.check_loss_flags(cfg)
    env = common.start(cfg)
    # the frozen teacher, or its cache; the student uses its tokenizer
    teacher, tokenizer, inputs = load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    train, val = open_text(cfg, tokenizer, inputs)
    cache = open_cache(cfg, env, train) if cfg.cache else None
    fused = use_fused(cfg, env, tokenizer.vocab_size, cache)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay, env.dtype)
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    facts = {"parameters": f"{model.num_parameters():,}", "loss": "fused" if fused else "plain"}
    facts |= self_check(cfg, env, model, train, val, teacher) | (cache["facts"] if cache else {})
    common.begin(cfg, env, progress, facts)

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = set_lr(optimizers, get_lr(step, cfg.steps, cfg.lr, cfg.warmup))

        # 2) forward, backward
        batches, n_valid, counts = step_batches(train, step, cfg, env)
        sums = [0.0] * 4                                     # loss, ce, kd, teacher's ce
        for x, y, document, weight, windows in batches:      # (B, T) each, but windows (B,)
            if fused:                                        # the same loss, logits in parts
                source = cached_rows(cache, windows) if cache else teacher
                terms = fused_step(cfg, env, model, source, x, y, document, weight, mix, n_valid)
                sums = [s + term for s, term in zip(sums, terms)]
                continue
            keep = weight > 0                                # (B, T) the N tokens that count
            with env.autocast():
                logits = model(x, document, keep)            # (N, V)
            ce = cross_entropy(logits.detach() if cfg.alpha == 1 else logits, y[keep])  # (N,)
            if cache:                                        # saved outputs of the teacher
                kd, teacher_ce = cached_divergence(cache, windows, logits, cfg, mix)  # (N,)
            else:
                with torch.no_grad(), env.autocast():
                    teacher_logits = teacher(x, document, keep)                       # (N, V)
                kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)
                teacher_ce = cross_entropy(teacher_logits, y[keep])                   # (N,)
            values = (1 - cfg.alpha) * ce + cfg.alpha * kd   # (N,) kd has its tau^2
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
        terms = {"loss": loss, "ce": ce, "kd": kd, "teacher ce": teacher_ce, "norm": norm, "lr": lr}
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
