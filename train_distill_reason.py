"""Chain-of-thought distillation, black box: the student learns the teacher's solutions as text.

    loss = 1/n_valid * sum over response tokens t of  w_t * -ln q(y_t | question, y_<t),
    w_t = --tag-weight at the tags <think> </think> <answer> </answer>, else 1; n_valid = sum of w_t

No teacher runs. The script reads the teacher's text, from blackbox/generate.py or an R1-style file:
    {"conversations": [{"role": "user", "content": "..."},
     {"role": "assistant", "content": "<think>...</think><answer>...</answer>"}]}
Compare with --target answer (only answers) and mixed (thoughts for about half of the questions).

One CPU command (2 minutes):        python train_distill_reason.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_reason.py --size 2m
It ends with:                       out/student-reason.pt: validation ce ... nats a token ...

How it differs from the papers:
1. DeepSeek-R1 (2025, section 2.4) and Ho, Schmid & Yun 2022 train pretrained students. Here a
   student may also start from random weights.
2. --target multi makes two examples of a question (Distilling step-by-step, Hsieh et al. 2023).
   There a prefix of the question names the task. Here it is the first token, <think> or <answer>.
3. Each tag is a single token id, so --tag-weight changes the weight of the tags and nothing else.
   Imported models spell tags in several ids. Then --tag-weight must be 1.
"""
import time
from dataclasses import dataclass
from typing import Literal

import common
import numpy as np
import torch

import checkpoints
from dataset.windows import open_text, self_check, step_batches, validation_ce
from losses import cross_entropy, total
from model import SIZES
from optim import get_lr, make_optimizers, set_lr


@dataclass
class Config:
    name: str = "student-reason"   # name of the run: it writes out/NAME.pt and out/NAME.csv
    data: str = common.OUT / "data/traces.jsonl"  # from blackbox/generate.py, or your own file
    val: str = common.OUT / "data/stories/val.jsonl"  # validation; with --data only: a tenth of it
    tokenizer: str = common.OUT / "tokenizer.model"      # file made by tokenizer/train.py
    size: Literal[tuple(SIZES)] = "0.4m"  # name of the model's shape: see SIZES in model.py
    init: str = ""                 # checkpoint to start from; empty: a new model of --size
    window: int = 256              # tokens in a window (128 to 1,024); a new model's context is 2x
    target: Literal["cot", "answer", "multi", "mixed"] = "cot"  # what is learned: see above
    tag_weight: float = 1.0        # weight of the four tags in the loss (1 to 10)
    documents: int = 0             # use only the first N documents; 0: all
    skip_bad_lines: bool = False   # skip and count bad lines of the data, instead of stopping
    batch: int = 8                 # windows in an optimizer step (4 to 64; small models: few)
    accumulate: int = 1            # cut a batch into N micro-batches: less memory, same gradient
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 6e-3               # peak learning rate (1e-3 to 1e-2 for these small models)
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
    common.between(cfg, 1e-9, float("inf"), "tag_weight")
    env = common.start(cfg)
    # the model: new, or a checkpoint with its own shape and tokenizer
    model, tokenizer, inputs = checkpoints.start_model(cfg, env)
    train, val = open_text(cfg, tokenizer, inputs)
    common.check(cfg.tag_weight == 1 or tokenizer.tag_ids,
                 "--tag-weight must be 1: this model spells tags in ordinary tokens")
    places = np.lib.stride_tricks.sliding_window_view(train["ids"], len(tokenizer.think), 1)
    common.check(cfg.target == "answer" or (places == tokenizer.think).all(-1).any(), "no row of "
                 "--data has a thought; use train_distill_responses.py, or --target answer")
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay, env.dtype)
    progress, _ = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    facts = {"parameters": f"{model.num_parameters():,}"} | self_check(cfg, env, model, train, val)
    common.begin(cfg, env, progress, facts)

    for step in range(progress.step, cfg.steps):
        began = time.time()
        # 1) learning rate
        lr = set_lr(optimizers, get_lr(step, cfg.steps, cfg.lr, cfg.warmup))

        # 2) forward, backward
        batches, n_valid, counts = step_batches(train, step, cfg, env, tokenizer.tag_ids,
                                                cfg.tag_weight)
        sums = [0.0, 0.0]                                    # loss, ce
        for x, y, document, weight, _ in batches:            # each (B, T)
            keep = weight > 0                                # (B, T) the N response tokens
            with env.autocast():
                logits = model(x, document, keep)            # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            terms = [total(ce, weight[keep]), ce.sum()]      # with tag weights, and without
            loss = terms[0] / n_valid                        # the loss is divided only here
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        loss, ce = common.sum_over_ranks(sums, env)
        loss, ce = loss / n_valid, ce / max(counts["supervised"], 1)
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
        terms = {"loss": loss, "ce": ce, "norm": norm, "lr": lr}  # equal if --tag-weight is 1
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
