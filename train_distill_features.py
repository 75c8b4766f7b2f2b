"""Feature distillation, white box: the student also learns what the teacher thinks on the way.

    loss = logits_weight * ((1 - alpha) * CE + alpha * tau^2 * KL)    as in train_distill_logits.py
         + hidden_weight   * mean over layer pairs of d(P h_student, h_teacher)
         + relation_weight * mean over layer pairs and q, k, v of KL(R_teacher || R_student)
    d: MSE or 1 - cosine; P: learned if widths differ; R: similarity of tokens, softmax(a a^T/c^.5)

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
import re
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

import checkpoints
import common
from dataset.windows import open_text, self_check, step_batches, validation_ce
from losses import (DIVERGENCES, cross_entropy, divergence, hidden_cosine, hidden_mse, kl, total,
                    upcast)
from model import SIZES
from optim import get_lr, make_optimizers


@dataclass
class Config:
    name: str = "student-features"  # the run: writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # its checkpoint; the student shares its tokenizer
    hidden_weight: float = 1.0     # weight of the hidden states (0: none; 0.1 to 10)
    hidden_loss: Literal["mse", "cosine"] = "mse"  # how two hidden states are compared
    hidden_layers: str = "uniform"  # last, uniform, or pairs of block outputs, such as 1:2,3:4
    relation_weight: float = 0.0   # weight of the relations (0: none; 0.1 to 10)
    relation_heads: int = 8        # into which queries, keys and values are split (1 to 32)
    relation_layers: str = "last"  # as --hidden-layers
    logits_weight: float = 1.0     # weight of labels and teacher's distribution (0: only features)
    alpha: float = 0.9             # of these two, the share of the teacher's distribution (0 to 1)
    temperature: float = 2.0       # tau, softens both distributions (1 to 4)
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # see the top of losses.py
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
    fresh: bool = False            # start again and replace out/NAME.pt


def layer_pairs(rule, ours, theirs):
    """[(student's block, teacher's block)] of `ours` and `theirs` blocks, counted from 1: a block's
    output, never the embedding. uniform: the student's i of n is the teacher's i/n of the way."""
    if rule == "last":
        return [(ours, theirs)]
    if rule == "uniform":
        return [(i, max(1, round(i * theirs / ours))) for i in range(1, ours + 1)]
    pairs = [(int(s), int(t)) for s, t in re.findall(r"(\d+):(\d+)", rule)]
    common.check(re.fullmatch(r"\d+:\d+(,\d+:\d+)*", rule)
                 and all(1 <= s <= ours and 1 <= t <= theirs for s, t in pairs),
                 f"layers {rule}: must be last, uniform, or pairs from 1:1 to {ours}:{theirs}")
    return pairs


def hidden_term(cfg, pairs, projections, student, teacher, keep):
    """Mean over the pairs of the distance of the hidden states -> (N,)."""
    compare = dict(mse=hidden_mse, cosine=hidden_cosine)[cfg.hidden_loss]
    values = [compare(project(student[s - 1]["hidden"][keep]), teacher[t - 1]["hidden"][keep])
              for project, (s, t) in zip(projections, pairs)]  # of each pair (N, D_teacher) -> (N,)
    return sum(values) / len(values)


def relation_kl(student, teacher, heads, document=None):
    """KL(teacher's relations || student's) of queries, keys or values (B, H, T, C) -> (B, T) nats,
    the mean over R = `heads` parts of all channels; H and C may differ. A relation is softmax over
    s of a_t·a_s / sqrt(HC/R): how similar token t is to each token s, itself and those before it in
    its document (B, T).   Source: Wang et al. 2021 (MiniLMv2), section 3."""
    B, _, T, _ = student.shape
    mask, found = torch.ones(B, 1, T, T, dtype=torch.bool, device=student.device).tril(), []
    if document is not None:
        mask &= document[:, None, :, None] == document[:, None, None, :]
    for vectors in (teacher, student):
        a = upcast(vectors).transpose(1, 2).flatten(2)    # (B, T, HC)
        a = a.unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, R, T, HC/R)
        scores = a @ a.mT * a.shape[-1] ** -0.5           # (B, R, T, S)
        found.append(torch.log_softmax(scores.masked_fill(~mask, -torch.inf), dim=-1))
    return kl(*found).mean(1)


def relation_term(cfg, pairs, student, teacher, document, keep):
    """Mean over the pairs and over q, k, v of the KL of the relations -> (N,)."""
    values = [relation_kl(student[s - 1][part], teacher[t - 1][part], cfg.relation_heads, document)
              for s, t in pairs for part in "qkv"]  # (B, T) each
    return sum(value[keep] for value in values) / len(values)


def main(cfg):
    """Set up, self-check, and the loop of six numbered steps."""
    mix = common.check_loss_flags(cfg)
    common.between(cfg, 0, 10**6, "logits_weight", "hidden_weight", "relation_weight")
    common.positive(cfg, "relation_heads")
    common.check(cfg.logits_weight or cfg.hidden_weight or cfg.relation_weight, "all weights are 0")
    env = common.start(cfg)
    # the teacher, frozen; the student speaks its tokenizer
    teacher, tokenizer, inputs = checkpoints.load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    own, other = model.config, teacher.config
    hidden_pairs = layer_pairs(cfg.hidden_layers, own.n_layers, other.n_layers)
    relation_pairs = layer_pairs(cfg.relation_layers, own.n_layers, other.n_layers)
    for width in (c.n_kv_heads * c.head_dim for c in (own, other)):  # of keys; queries: a multiple
        common.check(not cfg.relation_weight or width % cfg.relation_heads == 0,
                     f"--relation-heads {cfg.relation_heads}: must divide {width}")
    project = cfg.hidden_weight and own.dim != other.dim
    projections = nn.ModuleList(nn.Linear(own.dim, other.dim, bias=False) if project
                                else nn.Identity() for _ in hidden_pairs)
    added = sum(p.numel() for p in projections.parameters())
    train, val = open_text(cfg, tokenizer, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay,
                                 env.dtype == "bf16")
    if added:
        optimizers += make_optimizers(projections.to(env.device), "adamw", cfg.lr, cfg.weight_decay)
    progress, state = checkpoints.open_run(cfg, env, inputs, model, optimizers)
    if state:
        projections.load_state_dict(state["projections"])
    trained = [*model.parameters(), *projections.parameters()]
    facts = {"parameters": f"{model.num_parameters():,}, projections {added:,}",
             "layers": f"hidden {hidden_pairs}, relations {relation_pairs} (student, teacher)"}
    common.begin(cfg, env, progress, facts | self_check(cfg, env, model, train, val, teacher))

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
            teacher_ce = cross_entropy(teacher_logits, y[keep])  # (N,)
            terms = [total(v, weight[keep]) for v in (values, ce, kd, hidden, relation, teacher_ce)]
            loss = terms[0] / n_valid                        # the one normaliser
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

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
        checkpoints.count_step(progress, counts, seconds)
        due = progress.step == cfg.steps or progress.step % cfg.eval_every == 0
        if due:
            val_ce = validation_ce(model, val, cfg, env)
            checkpoints.keep_best(progress, model, val_ce)

        # 5) log
        terms = {"loss": loss, "ce": ce, "kd": kd, "hidden": hidden, "relation": relation,
                 "teacher ce": teacher_ce, "norm": norm, "lr": lr}
        common.log(cfg, env, progress.step, terms, val_ce, seconds, counts)

        # 6) save, stop
        stopped = common.should_stop(env)
        if due or stopped:
            more = {} if progress.step == cfg.steps else dict(projections=projections.state_dict())
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more)
        if stopped:
            break

    common.end(cfg, env, progress)


if __name__ == "__main__":
    common.run(main, Config)
