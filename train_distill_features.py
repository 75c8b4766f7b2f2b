"""Feature distillation, white box: the student also learns from layers inside the teacher.

    loss = logits_weight * ((1 - alpha) * CE + alpha * tau^2 * KL)    as in train_distill_logits.py
         + hidden_weight   * mean over layer pairs of d(P h_student, h_teacher)
         + relation_weight * mean over layer pairs and q, k, v of KL(R_teacher || R_student)
    d: MSE or 1 - cosine; P: learned matrix if widths differ; R: softmax(a a^T/c^.5), a = q, k or v

One CPU command (2 minutes):        python train_distill_features.py
One GPU command:                    torchrun --nproc-per-node 1 train_distill_features.py --size 2m
It ends with:                       out/student-features.pt: validation ce ... nats a token ...

How it differs from the papers:
1. TinyBERT (Jiao et al. 2020) and MiniLMv2 (Wang et al. 2021) distil encoders. Here a token sees
   only itself and the tokens before it in its document. Only tokens that count add to the loss.
2. MiniLMv2 uses one layer and no logits. Here you choose pairs of layers, and logits are used too.
3. Queries and keys are taken after QK-norm and before RoPE.
4. AdamW trains the projections P. They are saved for a resume and dropped at the end.
"""
import re
import time
from dataclasses import dataclass
from typing import Literal

import common
import torch
from torch import nn

import checkpoints
from dataset.windows import open_text, self_check, step_batches, validation_ce
from losses import DIVERGENCES, cross_entropy, divergence, kl, total, upcast
from model import SIZES
from optim import get_lr, make_optimizers, set_lr


@dataclass
class Config:
    name: str = "student-features"  # name of the run: it writes out/NAME.pt and out/NAME.csv
    teacher: str = common.OUT / "teacher.pt"  # teacher's checkpoint; its tokenizer is used, too
    hidden_weight: float = 1.0     # weight of the hidden-state term (0: off; 0.1 to 10)
    hidden_loss: Literal["mse", "cosine"] = "mse"  # distance d of two hidden states
    hidden_layers: str = "uniform"  # last, uniform, or student:teacher blocks, as 1:2,3:4
    relation_weight: float = 0.0   # weight of the relation term (0: off; 0.1 to 10)
    relation_heads: int = 8        # parts that queries, keys and values are cut into (1 to 32)
    relation_layers: str = "last"  # the same choices as --hidden-layers
    logits_weight: float = 1.0     # weight of the loss of train_distill_logits.py (0: no logits)
    alpha: float = 0.9             # in that loss: weight of the teacher; labels: 1 - alpha (0 to 1)
    temperature: float = 2.0       # tau (1 to 4); above 1, both distributions are flatter
    divergence: Literal[tuple(DIVERGENCES)] = "forward_kl"  # formulas: at the top of losses.py
    beta: float = 0.5              # only for jsd: 0 is forward KL, 1 is reverse KL (0 to 1)
    skew: float = 0.1              # only for skew_*: share s in their formulas (0 to 0.5)
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
    fresh: bool = False            # start again at step 0 and replace out/NAME.pt


def layer_pairs(rule, ours, theirs):
    """rule, numbers of blocks -> layer pairs [(student's, teacher's)], counted from 1. A layer is a
    block's output. uniform: block i with the teacher's block i * theirs / ours, rounded."""
    if rule == "last":
        return [(ours, theirs)]
    if rule == "uniform":
        return [(i, max(1, round(i * theirs / ours))) for i in range(1, ours + 1)]
    pairs = [(int(s), int(t)) for s, t in re.findall(r"(\d+):(\d+)", rule)]
    common.check(re.fullmatch(r"\d+:\d+(,\d+:\d+)*", rule)
                 and all(1 <= s <= ours and 1 <= t <= theirs for s, t in pairs),
                 f"layers {rule}: must be last, uniform, or pairs from 1:1 to {ours}:{theirs}")
    return pairs


def hidden_mse(student, teacher):
    """Two hidden states (..., D) -> (...): the mean over D of (h_student - h_teacher)^2.
    Source: Romero et al. 2015 (FitNets), eq. 3; Jiao et al. 2020 (TinyBERT), eq. 8."""
    return (upcast(student) - upcast(teacher)).square().mean(-1)


def hidden_cosine(student, teacher):
    """Two hidden states (..., D) -> (...): 1 - cosine, from 0 to 2. Their lengths do not matter.
    Source: Sanh et al. 2019 (DistilBERT), section 2."""
    return 1 - torch.cosine_similarity(upcast(student), upcast(teacher), dim=-1)


def hidden_term(cfg, pairs, projections, student, teacher, keep):
    """Distance of the hidden states at the N tokens of keep (B, T), mean over the pairs -> (N,)."""
    compare = dict(mse=hidden_mse, cosine=hidden_cosine)[cfg.hidden_loss]
    values = [compare(project(student[s - 1]["hidden"][keep]), teacher[t - 1]["hidden"][keep])
              for project, (s, t) in zip(projections, pairs)]  # (N, D_teacher) -> (N,) each
    return sum(values) / len(values)


def relation_kl(student, teacher, heads, document=None):
    """KL(teacher's relations || student's) of queries, keys or values (B, H, T, C) -> (B, T) nats.
    The H * C channels are cut into R = `heads` parts (H and C may differ). The KL is a mean over R.
    Relations of token t: softmax over s of a_t·a_s / sqrt(HC/R), how similar t is to each token s,
    t or earlier, of its document (B, T).   Source: Wang et al. 2021 (MiniLMv2), section 3."""
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
    """relation_kl at the N tokens of keep (B, T), mean over the pairs and over q, k, v -> (N,)."""
    values = [relation_kl(student[s - 1][part], teacher[t - 1][part], cfg.relation_heads, document)
              for s, t in pairs for part in "qkv"]  # (B, T) each
    return sum(value[keep] for value in values) / len(values)


def main(cfg):
    """Set up, print the self-check, then train: each step has six numbered parts."""
    mix = common.check_loss_flags(cfg)
    common.between(cfg, 0, 10**6, "logits_weight", "hidden_weight", "relation_weight")
    common.between(cfg, 1, 2**32 - 1, "relation_heads")
    common.check(cfg.logits_weight or cfg.hidden_weight or cfg.relation_weight, "all weights are 0")
    env = common.start(cfg)
    # the frozen teacher; the student uses its tokenizer
    teacher, tokenizer, inputs = checkpoints.load_teacher(cfg, env)
    model, _, inputs = checkpoints.start_model(cfg, env, teacher, tokenizer, inputs)
    own, other = model.config, teacher.config
    hidden_pairs = layer_pairs(cfg.hidden_layers, own.n_layers, other.n_layers)
    relation_pairs = layer_pairs(cfg.relation_layers, own.n_layers, other.n_layers)
    for width in (c.n_kv_heads * c.head_dim for c in (own, other)):  # keys; queries: a multiple
        common.check(not cfg.relation_weight or width % cfg.relation_heads == 0,
                     f"--relation-heads {cfg.relation_heads}: must divide the key width {width}")
    project = cfg.hidden_weight and own.dim != other.dim
    projections = nn.ModuleList(nn.Linear(own.dim, other.dim, bias=False) if project
                                else nn.Identity() for _ in hidden_pairs)
    added = sum(p.numel() for p in projections.parameters())
    train, val = open_text(cfg, tokenizer, inputs)
    optimizers = make_optimizers(model, cfg.optimizer, cfg.lr, cfg.weight_decay, env.dtype)
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
        lr = set_lr(optimizers, get_lr(step, cfg.steps, cfg.lr, cfg.warmup))

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
            loss = terms[0] / n_valid                        # the loss is divided only here
            loss.backward()
            sums = [s + term.item() for s, term in zip(sums, terms)]

        # 3) clip, step
        common.sum_gradients(trained, env)
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0).item()
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
        stopped = common.sum_over_ranks([env.stop], env)[0] > 0  # a signal to any rank
        if due or stopped:
            more = {} if progress.step == cfg.steps else dict(projections=projections.state_dict())
            checkpoints.save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more)
        if stopped:
            break

    common.end(cfg, env, progress)


if __name__ == "__main__":
    common.run(main, Config)
