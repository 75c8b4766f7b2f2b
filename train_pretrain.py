"""Pretraining: next-token cross-entropy. It makes the teacher, and students without a teacher.

    loss = 1/n_valid * sum over the n_valid counted tokens t of  -ln q(x_{t+1} | x_1 .. x_t)

One CPU command (2 to 4 minutes):   python train_pretrain.py
One GPU command:                    torchrun --nproc-per-node 1 train_pretrain.py --size 10m
It ends with:                       out/teacher.pt: validation ce ... nats a token ...

How it differs from the usual recipes:
1. In conversations only the assistant's turns count in the loss. In plain text every token counts.
2. Several short conversations share a window. Attention never crosses from one to another.
3. By default Muon trains the matrices inside the blocks. --optimizer adamw is the usual choice.
"""
import time
from dataclasses import dataclass
from typing import Literal

import common
import torch

import checkpoints
from dataset.windows import open_text, self_check, step_batches, validation_ce
from losses import cross_entropy, total
from model import SIZES
from optim import get_lr, make_optimizers, set_lr


@dataclass
class Config:
    name: str = "teacher"          # name of the run: it writes out/NAME.pt and out/NAME.csv
    data: str = common.OUT / "data/stories/train.jsonl"  # .txt or .jsonl, see dataset/formats.py
    val: str = common.OUT / "data/stories/val.jsonl"  # validation; with --data only: a tenth of it
    tokenizer: str = common.OUT / "tokenizer.model"      # file made by tokenizer/train.py
    size: Literal[tuple(SIZES)] = "2m"  # name of the model's shape: see SIZES in model.py
    init: str = ""                 # checkpoint to start from; empty: a new model of --size
    window: int = 256              # tokens in a window (128 to 1,024); a new model's context is 2x
    target: Literal["cot", "answer"] = "cot"      # cot: steps and answer; answer: no steps
    documents: int = 0             # use only the first N documents; 0: all
    skip_bad_lines: bool = False   # skip and count bad lines of the data, instead of stopping
    batch: int = 8                 # windows in an optimizer step (4 to 64; small models: few)
    accumulate: int = 1            # cut a batch into N micro-batches: less memory, same gradient
    steps: int = 600               # optimizer steps (300 to 5,000)
    lr: float = 4e-3               # peak learning rate (size 2m: 4e-3; smaller sizes: up to 1e-2)
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
    """Set up, print the self-check, then train: each step has six numbered parts."""
    env = common.start(cfg)
    # the model: new, or a checkpoint with its own shape and tokenizer
    model, tokenizer, inputs = checkpoints.start_model(cfg, env)
    train, val = open_text(cfg, tokenizer, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay, env.dtype)
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    facts = {"parameters": f"{model.num_parameters():,}"} | self_check(cfg, env, model, train, val)
    common.begin(cfg, env, progress, facts)

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = set_lr(optimizers, get_lr(step, cfg.steps, cfg.lr, cfg.warmup))

        # 2) forward, backward
        batches, n_valid, counts = step_batches(train, step, cfg, env)
        sums = [0.0]                                         # ce
        for x, y, document, weight, _ in batches:            # each (B, T)
            keep = weight > 0                                # (B, T) the N tokens that count
            with env.autocast():
                logits = model(x, document, keep)            # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            terms = [total(ce, weight[keep])]
            loss = terms[0] / n_valid                        # the loss is divided only here
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        ce, = (s / n_valid for s in common.sum_over_ranks(sums, env))
        common.check_finite(ce, norm, step, cfg)
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
        terms = {"ce": ce, "norm": norm, "lr": lr}
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
