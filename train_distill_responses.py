"""Response distillation, black box: the student learns the teacher's answers as text.

    loss = 1/n_valid * sum over response tokens t of  -ln q(y_t | question, y_<t),
    y what the teacher said: sequence-level distillation (Kim & Rush 2016)

The teacher's distribution over whole answers is out of reach, but an answer is a draw from it: with
such draws, cross-entropy is KL(teacher || student) over answers but for a constant. So the loop is
that of train_pretrain.py, and `diff` shows no more than flags: who wrote the text is what counts.
Any file of chats or instructions will do (formats: dataset/formats.py), whoever wrote the answers:
    {"conversations": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Where a row has a thought and an answer, such as those of blackbox/generate.py, the student learns
    --target full      all of it as plain text, no tags: the thought, then "#### " and the answer
    --target answer    the answer alone: <answer>27</answer>
Replies without these two parts are learned as they stand. Chains of thought between their tags:
train_distill_reason.py.

One CPU command (2 minutes):        python train_distill_responses.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_responses.py --size 2m
The last line but one:              out/student-responses.pt: validation ce ... nats a token ...

How it differs from Kim & Rush 2016:
1. They take the teacher's likeliest answer, found by beam search; here answers are sampled, one a
   question or several, at a temperature, and the wrong ones are dropped where that can be told.
2. They distil machine translation; here every assistant turn of a conversation counts, and no
   question does.
3. They also mix in the teacher's distribution of each token: train_distill_logits.py, on the same
   file, for whoever has the teacher's weights.
"""
import time
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoints
import cli
import oldcommon as common
from cli import OUT
from dataset.batches import step_batches
from losses import cross_entropy, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-responses"  # the run: writes out/NAME.pt and out/NAME.csv
    data: str = OUT / "data/traces.jsonl"  # of blackbox/generate.py, or your own file of chats
    val: str = OUT / "data/stories/val.jsonl"     # validation text; its best step is kept
    tokenizer: str = OUT / "tokenizer.model"      # made by tokenizer/train.py
    size: Literal[tuple(SIZES)] = "0.4m"  # shape of the model, by name: see SIZES in model.py
    init: str = ""                 # checkpoint to start from, in its own shape; empty: --size
    window: int = 256              # tokens in a training window (128 to 1,024), up to the context
    context: int = 512             # tokens the model can hold, prompt and answer (256 to 4,096)
    target: Literal["full", "answer"] = "full"    # the whole reply as plain text, or the answer
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
        batches, n_valid, counts = step_batches(train, step, cfg, env)
        step_ce = 0.0
        for x, y, document, weight, _ in batches:            # each (B, T)
            keep = weight > 0                                # (B, T) the N tokens that count
            with env.autocast():
                logits = run_model(x, document, keep)        # (N, V)
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            loss = total(ce, weight[keep]) / n_valid         # the one normaliser
            loss.backward()
            step_ce += loss.item()

        # 3) clip, step
        common.sum_gradients(model.parameters(), env)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.clip).item()
        [step_ce] = common.sum_over_ranks([step_ce], env)
        common.check_finite(step_ce, norm, step, cfg)
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
        terms = dict(ce=step_ce, norm=norm, lr=lr)
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
