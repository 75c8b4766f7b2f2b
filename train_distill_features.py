"""Feature distillation, white box: the student also learns what the teacher thinks on the way.

    loss = logits_weight * ((1 - alpha) * CE + alpha * tau^2 * KL)    as in train_distill_logits.py
         + hidden_weight   * mean over layer pairs of d(P h_student, h_teacher)
         + relation_weight * mean over layer pairs and q, k, v of KL(R_teacher || R_student)
    d is MSE or 1 - cosine; P a learned projection where the widths differ; R = softmax(a a^T/c^.5)
    says how similar the tokens are to each other, by their queries, keys or values (MiniLMv2)

One CPU command (2 minutes):        python train_distill_features.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_features.py --size 2m
The last line but one:              out/student-features.pt: validation ce ... nats a token ...

How it differs from the papers:
1. TinyBERT (Jiao et al. 2020) and MiniLMv2 (Wang et al. 2021) distil encoders: here a token sees
   only the tokens before it, in its own document, and only the counted tokens add to the loss.
2. MiniLMv2 takes one layer and no logits; here any pairs of layers, and logits beside them.
3. Queries and keys are taken after QK-norm, before RoPE.
4. The projections are trained with AdamW, kept for a resume, and dropped in the end.
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
from features import check_heads, hidden_term, layer_pairs, make_projections, relation_term
from losses import DIVERGENCES, cross_entropy, divergence, total
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-features"  # the run: writes out/NAME.pt and out/NAME.csv
    teacher: str = OUT / "teacher.pt"  # checkpoint of the teacher; its tokenizer is the student's
    hidden_weight: float = 1.0     # weight of the hidden states (0: none; 0.1 to 10)
    hidden_loss: Literal["mse", "cosine"] = "mse"  # how two hidden states are compared
    hidden_layers: str = "uniform"  # last, uniform, or pairs of block outputs, such as 1:2,3:4
    relation_weight: float = 0.0   # weight of the relations (0: none; 0.1 to 10)
    relation_heads: int = 8        # into which queries, keys and values are split (1 to 32)
    relation_layers: str = "last"  # as --hidden-layers
    logits_weight: float = 1.0     # weight of labels and teacher's distribution (0: features alone)
    alpha: float = 0.9             # of these two, the share of the teacher's distribution (0 to 1)
    temperature: float = 2.0       # tau, softens both distributions (1 to 4)
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # see the top of losses.py
    beta: float = 0.5              # of jsd: 0 forward KL, 1 reverse KL (0 to 1)
    skew: float = 0.1              # of skew_*: share of the first mixed into the second (0 to 0.5)
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
    fresh: bool = False            # start again and replace out/NAME.pt


def check_flags(cfg):
    """UserError for a weight that cannot be, or for none."""
    cli.check_ranges(cfg, logits_weight=(0, 10**6), hidden_weight=(0, 10**6),
                     relation_weight=(0, 10**6))
    check(cfg.logits_weight or cfg.hidden_weight or cfg.relation_weight, "--logits-weight",
          cfg.logits_weight, "above 0, or another weight above 0")


def main(cfg):
    """Set up, self-check, and the loop of six numbered steps."""
    mix = common.check_loss_flags(cfg)
    check_flags(cfg)
    env = common.start(cfg)
    common.check_run_flags(cfg, env)

    # the teacher: frozen, in eval mode; the student speaks its tokenizer
    teacher, tokenizer, inputs = checkpoints.load_teacher(cfg, env.device)
    model, start = checkpoints.make_student(cfg, teacher, tokenizer)
    inputs |= start
    layers = model.config.n_layers, teacher.config.n_layers
    hidden_pairs = layer_pairs(cfg.hidden_layers, *layers, "--hidden-layers")
    relation_pairs = layer_pairs(cfg.relation_layers, *layers, "--relation-layers")
    if cfg.relation_weight:
        check_heads(cfg, model, teacher)
    projections = make_projections(cfg, model.config, teacher.config, hidden_pairs).to(env.device)
    model.to(env.device).train().requires_grad_(True)

    train, val, text = common.open_text(cfg, env, tokenizer)
    inputs |= text
    state = checkpoints.open_run(cfg, env, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 bf16=env.dtype == "bf16")
    if len(projections):
        optimizers += make_optimizers(projections, "adamw", cfg.lr, cfg.weight_decay)
    progress = checkpoints.restore(state, model, optimizers, env)
    if state and len(projections):
        projections.load_state_dict(state["projections"])
    trained = [*model.parameters(), *projections.parameters()]

    common.print_start(cfg, env, {
        "parameters": f"{model.num_parameters():,}, teacher {teacher.num_parameters():,}, "
                      f"projections {sum(p.numel() for p in projections.parameters()):,}",
        "layers": f"hidden {hidden_pairs}, relations {relation_pairs} (student, teacher)",
        **common.facts(model, tokenizer, train, val, cfg, env),
        **common.teacher_facts(teacher, val, cfg, env)})
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
        sums = [0.0] * 6                        # loss, ce, kd, hidden, relation, teacher's ce
        for x, y, document, weight, _ in batches:            # each (B, T)
            keep, theirs, ours = weight > 0, [], []          # (B, T) the N tokens that count
            with torch.no_grad(), env.autocast():
                teacher_logits = teacher.lm_head(
                    teacher.hidden_states(x, document, features=theirs)[keep])  # (N, V)
            with env.autocast():
                logits = model.lm_head(model.hidden_states(x, document, features=ours)[keep])
            ce = cross_entropy(logits, y[keep])              # (N,) float32
            kd = divergence(cfg.divergence, logits, teacher_logits, cfg.temperature, mix)
            hidden = relation = torch.zeros_like(ce)
            if cfg.hidden_weight:
                hidden = hidden_term(cfg, hidden_pairs, projections, ours, theirs, keep)    # (N,)
            if cfg.relation_weight:
                relation = relation_term(cfg, relation_pairs, ours, theirs, document, keep)  # (N,)
            values = cfg.logits_weight * ((1 - cfg.alpha) * ce + cfg.alpha * kd) \
                + cfg.hidden_weight * hidden + cfg.relation_weight * relation  # (N,)
            teacher_ce = cross_entropy(teacher_logits, y[keep])
            terms = [total(v, weight[keep]) for v in (values, ce, kd, hidden, relation, teacher_ce)]
            loss = terms[0] / n_valid                        # the one normaliser
            loss.backward()
            for i, term in enumerate(terms):
                sums[i] += term.item()

        # 3) clip, step
        common.sum_gradients(trained, env)
        norm = torch.nn.utils.clip_grad_norm_(trained, cfg.clip).item()
        loss, ce, kd, hidden, relation, teacher_ce = (
            s / n_valid for s in common.sum_over_ranks(sums, env))
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
        terms = {"loss": loss, "ce": ce, "kd": kd, "hidden": hidden, "relation": relation,
                 "teacher ce": teacher_ce, "norm": norm, "lr": lr}
        common.log(log_file, env, cfg, progress.step, terms, val_ce, seconds, counts)

        # 6) save, stop
        stopped = common.should_stop(env)
        if last or stopped or progress.step % cfg.save_every == 0:
            more = {} if last else dict(projections=projections.state_dict())
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more)
        if stopped and not last:
            common.stop_signal(env, cfg)

    common.end(cfg, env, progress)


if __name__ == "__main__":
    cli.run(main, Config)
