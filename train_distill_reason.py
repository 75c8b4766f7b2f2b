"""Chain-of-thought distillation, black box: the student learns the teacher's solutions as text.

    loss = 1/n_valid * sum over response tokens t of  w_t * -ln q(y_t | question, y_<t),
    w_t = --tag-weight where y_t is one of the four ids <think> </think> <answer> </answer>, else 1;
    n_valid = sum of w_t

blackbox/generate.py asked the teacher and kept the correct answers. Here no teacher is needed any
more: nothing of it is read but text, in the format of R1-style files, so your own traces will do:
    {"conversations": [{"role": "user", "content": "..."},
     {"role": "assistant", "content": "<think>...</think><answer>...</answer>"}]}

One CPU command (2 minutes):        python train_distill_reason.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_reason.py --size 2m
The last line but one:              out/student-reason.pt: validation ce ... nats a token ...

How it differs from the papers:
1. DeepSeek-R1 (2025, section 2.4) and Ho, Schmid & Yun 2022 fine-tune pretrained students; here a
   student may also start from random weights, since the stories need no other knowledge.
2. --target multi is Distilling step-by-step (Hsieh et al. 2023): chain and bare answer are two
   tasks, two examples a question. There a prefix of the question names the task and two losses are
   weighed; here the response's first token names it, <think> or <answer>, after the question has
   been read, every token weighs the same, and the chain ends with its answer. Left to itself the
   model takes either (a coin that costs ln 2 nats a response); `eval.py --target cot` or `--target
   answer` begins the response for it.
3. --long-frac: Li et al. 2025 mix two teachers, or long and short traces of a question; here long
   and short questions may differ (dataset/mixture.py).
4. The tags are single control ids, so their weight reaches them and nothing else.

What the chain is worth is seen beside the same rows with --target answer, the bare answers, or
mixed: half of the questions with their thoughts, half without. It is train_pretrain.py on text that
a teacher wrote: `diff` shows the tag weight, not much more.
"""
import time
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoints
import cli
import oldcommon as common
from cli import OUT, check
from dataset.batches import step_batches
from losses import cross_entropy, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-reason"   # the run: writes out/NAME.pt and out/NAME.csv
    data: str = OUT / "data/traces.jsonl"  # of blackbox/generate.py, or your own R1-style file
    val: str = OUT / "data/stories/val.jsonl"     # validation text; its best step is kept
    tokenizer: str = OUT / "tokenizer.model"      # made by tokenizer/train.py
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the model, by name: see SIZES in model.py
    init: str = ""                 # checkpoint to start from, in its own shape; empty: --size
    window: int = 256              # tokens in a training window (128 to 1,024), up to the context
    context: int = 512             # tokens the model can hold, prompt and answer (256 to 4,096)
    target: Literal["cot", "answer", "multi", "mixed"] = "cot"  # what is learned, see above
    long_frac: float = -1          # share of long traces (0 to 0.5); -1: as they are
    tag_weight: float = 1.0        # weight of the four tag ids in the loss (1 to 10)
    documents: int = 0             # use only the first N documents; 0: all
    skip_bad_lines: bool = False   # count bad lines of the data and go on, instead of stopping
    batch: int = 8                 # windows in an optimizer step (4 to 64); small models like few
    accumulate: int = 1            # micro-batches it is cut into, to save memory; same gradient
    steps: int = 800               # optimizer steps (300 to 5,000)
    lr: float = 6e-3               # peak learning rate (1e-3 to 1e-2 for these small models)
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


def main(cfg):
    """Set up, self-check, and the loop of six numbered steps."""
    check(0 < cfg.tag_weight <= 1e6, "--tag-weight", cfg.tag_weight, "above 0, up to 1,000,000")
    check(cfg.long_frac == -1 or 0 <= cfg.long_frac <= 1, "--long-frac", cfg.long_frac,
          "a share from 0 to 1, or -1 for the file as it is")
    env = common.start(cfg)
    common.check_run_flags(cfg, env)

    # the model: its shape and tokenizer come from a checkpoint where there is one
    model, tokenizer, inputs = checkpoints.start_model(cfg)
    model.to(env.device).train().requires_grad_(True)

    train, val, text = common.open_text(cfg, env, tokenizer)
    inputs |= text
    state = checkpoints.open_run(cfg, env, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 bf16=env.dtype == "bf16")
    progress = checkpoints.restore(state, model, optimizers, env)
    run_model = torch.compile(model) if cfg.compile else model

    common.print_start(cfg, env, {
        "parameters": f"{model.num_parameters():,}",
        **common.facts(model, tokenizer, train, val, cfg, env)})
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
        batches, n_valid, counts = step_batches(train, step, cfg, env, tokenizer.tag_ids,
                                                cfg.tag_weight)
        sums = [0.0, 0.0]                                    # loss, ce
        for x, y, document, weight, _ in batches:            # each (B, T)
            keep = weight > 0                                # (B, T) the N response tokens
            with env.autocast():
                logits = run_model(x, document, keep)        # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            loss = total(ce, weight[keep]) / n_valid         # the one normaliser
            loss.backward()
            sums[0] += loss.item()
            sums[1] += ce.sum().item() / max(counts["supervised"], 1)

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip).item()
        loss, ce = common.sum_over_ranks(sums, env)
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
        terms = dict(loss=loss, ce=ce, norm=norm, lr=lr)  # loss is ce but for --tag-weight
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
