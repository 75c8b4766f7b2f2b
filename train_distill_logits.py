"""Logits distillation, white box: the student learns the teacher's whole next-token distribution.

    loss = (1 - alpha) * CE(labels, q) + alpha * tau^2 * KL(p_teacher || q_student)
    (Hinton, Vinyals & Dean 2015, section 2), both distributions of the KL softened by tau;
    summed over counted tokens, divided once by n_valid. --divergence: other ones than forward KL

One CPU command (2 minutes):        python train_distill_logits.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_logits.py --size 2m
The last line but one:              out/student-logits.pt: validation ce ... nats a token ...

How it differs from the paper:
1. A token's distribution over the vocabulary stands where the paper has an example's over classes.
2. The paper tried temperatures from 1 to 20; here 2, better than 1 in the trials of RESULTS.md.
3. The teacher runs beside the student, on the same windows; with --cache, it ran once before.
   `diff train_pretrain.py train_distill_logits.py`: the loop differs in the teacher's lines.
"""
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

import checkpoints
import cli
import oldcommon as common
from cli import OUT, check
from dataset.batches import step_batches
from dataset.teacher_cache import (cached_divergence, cached_tokenizer, describe_cache, open_cache,
                                   read_about, rows_of)
from fused import fused_terms, pays
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-logits"   # the run: writes out/NAME.pt and out/NAME.csv
    teacher: str = OUT / "teacher.pt"  # checkpoint of the teacher; its tokenizer is the student's
    alpha: float = 0.9             # weight of the teacher's term; the labels get 1 - alpha (0 to 1)
    temperature: float = 2.0       # tau, softens both distributions (1 to 4)
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # see the top of losses.py
    beta: float = 0.5              # of jsd: 0 forward KL, 1 reverse KL (0 to 1)
    skew: float = 0.1              # of skew_*: share of the first mixed into the second (0 to 0.5)
    fused: Literal["auto", "on", "off"] = "auto"  # never hold all logits (fused.py); auto: if many
    cache: str = ""                # folder of dataset/cache_teacher.py: the teacher need not run
    data: str = OUT / "data/stories/train.jsonl"  # a file of text, or a folder of prepare.py
    val: str = OUT / "data/stories/val.jsonl"     # validation text; its best step is kept
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the student, by name: see SIZES in model.py
    init: str = ""                 # checkpoint to start from, in its own shape; empty: --size
    init_from_teacher: str = ""    # start as every-other block of the teacher, or as blocks 1,3,4
    window: int = 256              # tokens in a training window (128 to 1,024), up to the context
    context: int = 512             # tokens the model can hold, prompt and answer (256 to 4,096)
    loss_on: Literal["response", "all"] = "response"  # which tokens of a conversation count
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
    eval_every: int = 100          # steps between validations (20 to 500)
    eval_windows: int = 64         # validation windows; 0: all
    save_every: int = 100          # steps between checkpoints (20 to 1,000)
    log_every: int = 20            # steps between log lines
    seed: int = 0                  # of the weights and of the order of the windows
    dtype: Literal["auto", "float32", "bf16"] = "auto"  # auto: bf16 where the hardware has it
    compile: bool = False          # torch.compile: worth its minute on a GPU
    fresh: bool = False            # start again and replace out/NAME.pt


def teacher_or_cache(cfg, env):
    """(teacher, tokenizer, what the run remembers of it); with a cache the teacher is None."""
    if not cfg.cache:
        return checkpoints.load_teacher(cfg, env.device)
    made = read_about(cfg.cache)["teacher_fingerprint"]
    if "teacher" in cfg.given:
        _, _, named = checkpoints.load_teacher(cfg, "cpu")
        check(named["teacher_fingerprint"] == made, "--teacher", cfg.teacher,
              f"none, or the one that made {cfg.cache}: {made}")
    else:
        cfg.teacher = ""  # the default one may be another
    cache = cli.sha256_file(Path(cfg.cache) / "about.json")  # another cache: another run
    return None, cached_tokenizer(cfg.cache), dict(teacher_fingerprint=made, cache_sha256=cache)


def main(cfg):
    """Set up, self-check, and the loop of six numbered steps."""
    mix = common.check_loss_flags(cfg)
    check(cfg.fused != "on" or not (cfg.cache or cfg.compile), "--fused", cfg.fused,
          "auto or off with --cache and --compile")
    env = common.start(cfg)
    common.check_run_flags(cfg, env)

    # the teacher: frozen, in eval mode, or a cache; the student speaks its tokenizer
    teacher, tokenizer, inputs = teacher_or_cache(cfg, env)
    model, start = checkpoints.make_student(cfg, teacher, tokenizer)
    inputs |= start
    model.to(env.device).train().requires_grad_(True)

    train, val, text = common.open_text(cfg, env, tokenizer)
    inputs |= text
    cache = open_cache(cfg.cache, train, cfg, env.device) if cfg.cache else None
    fused = cfg.fused == "on" or cfg.fused == "auto" and pays(cfg, env, tokenizer.vocab_size)
    state = checkpoints.open_run(cfg, env, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 bf16=env.dtype == "bf16")
    progress = checkpoints.restore(state, model, optimizers, env)
    run_model = torch.compile(model) if cfg.compile else model

    common.print_start(cfg, env, {
        "parameters": f"{model.num_parameters():,}" +
                      (f", teacher {teacher.num_parameters():,}" if teacher else ""),
        **common.facts(model, tokenizer, train, val, cfg, env),
        "loss": "fused, never all logits at once" if fused else "plain",
        **(describe_cache(cache) if cache else common.teacher_facts(teacher, val, cfg, env))})
    log_file = common.open_log(cfg, env, progress.step)
    common.catch_signals(env)

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = get_lr(step, cfg.steps, cfg.lr, cfg.warmup)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr

        # 2) forward, backward
        batches, n_valid, counts = step_batches(train, step, cfg, env)
        sums = [0.0] * 4                                     # loss, ce, kd, teacher's ce
        for x, y, document, weight, windows in batches:      # each (B, T); their numbers (B,)
            keep = weight > 0                                # (B, T) the N tokens that count
            if fused:                                        # the same four sums
                terms = fused_terms(cfg, env, model, teacher, x, y, document, weight, mix)
            else:
                with env.autocast():
                    logits = run_model(x, document, keep)    # (N, V)
                # (N,) float32; at alpha 1 it is for the log alone: no gradient of zeros
                ce = cross_entropy(logits.detach() if cfg.alpha == 1 else logits, y[keep])
                if cache:                                    # the teacher ran before
                    rows = rows_of(cache, windows)           # each (N, ...)
                    kd = cached_divergence(cache, rows, cfg.divergence, logits, mix)  # (N,)
                    teacher_ce = rows["label_ce"]            # (N,)
                else:
                    with torch.no_grad(), env.autocast():
                        teacher_logits = teacher(x, document, keep)                   # (N, V)
                    kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)
                    teacher_ce = cross_entropy(teacher_logits, y[keep])               # (N,)
                values = (1 - cfg.alpha) * ce + cfg.alpha * kd  # (N,) tau^2 is in kd
                terms = [total(v, weight[keep]) for v in (values, ce, kd, teacher_ce)]
            loss = terms[0] / n_valid                        # the one normaliser
            loss.backward()
            for i, term in enumerate(terms):
                sums[i] += term.item()

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
        common.advance(progress, counts, seconds)
        last = progress.step == cfg.steps
        if last or progress.step % cfg.eval_every == 0:
            val_ce = common.validation_ce(model, val, cfg, env)
            common.keep_best(progress, model, val_ce)

        # 5) log
        terms = {"loss": loss, "ce": ce, "kd": kd, "teacher ce": teacher_ce, "norm": norm, "lr": lr}
        common.log(log_file, env, cfg, progress.step, terms, val_ce, seconds, counts)

        # 6) save, stop
        stopped = common.should_stop(env)
        if last or stopped or progress.step % cfg.save_every == 0:
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs)
        if stopped and not last:
            common.stop_signal(env, cfg)

    common.end(cfg, env, progress)


if __name__ == "__main__":
    cli.run(main, Config)
