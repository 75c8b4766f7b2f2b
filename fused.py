"""The loss without its logits: output matrix and divergence in one, a few tokens at a time.

    loss, ce, kd, teacher_ce = fused_loss(hidden, head, y, weight, teacher_hidden, ..., how)
    (loss / n_valid).backward()

A (tokens, V) tensor of logits is the largest thing in a training step (4,096 tokens of a vocabulary
of 32,768: 0.5 GB in float32, and the plain loss holds six or more of them). Here logits live for
`CHUNK` elements at a time: of a few tokens, student's and teacher's are made, the plain loss of
losses.py is taken, and its gradient by these logits turned at once into gradients of the hidden
states and of the output matrix. The backward pass has nothing left to do but to scale them (Hsu et
al. 2024, Liger, for cross-entropy; Wijmans et al. 2024 make the logits anew in the backward pass).
Works for every divergence, because it calls the plain one.

Matmuls are in the dtype of the hidden states, softmax and sums in float32. Uncounted tokens must be
left out before (hidden[keep]).
"""
from dataclasses import dataclass

import torch

from losses import cross_entropy, divergence, total

CHUNK = 2**22  # logits of one model held at a time: 16 MB in float32


def fused_terms(cfg, env, model, teacher, x, y, document, weight, mix):
    """A micro-batch of train_distill_logits.py: sums over tokens of loss, ce, kd, teacher's ce."""
    keep, dtype = weight > 0, torch.bfloat16 if env.dtype == "bf16" else torch.float32
    with env.autocast():
        hidden = model.hidden_states(x, document)[keep].to(dtype)              # (N, D)
        with torch.no_grad():
            theirs = teacher.hidden_states(x, document)[keep].to(dtype)        # (N, D')
    with torch.autocast(env.device.type, enabled=False):
        return fused_loss(hidden, model.lm_head.weight, y[keep], weight[keep], theirs,
                          teacher.lm_head.weight,
                          How(cfg.alpha, cfg.divergence, cfg.temperature, mix))


def pays(cfg, env, vocab_size):
    """Worth it? Where a micro-batch's logits are many; a cache and torch.compile have no hidden
    states to begin from. runs/bench_fused.py measures."""
    logits = cfg.batch // (cfg.accumulate * env.world) * cfg.window * vocab_size
    return logits >= 2**26 and not (cfg.cache or cfg.compile)  # 0.3 GB in float32


@dataclass
class How:
    """Which loss: as the flags of train_distill_logits.py."""
    alpha: float = 1.0
    name: str = "forward_kl"
    temperature: float = 1.0
    mix: float = None


class FusedLoss(torch.autograd.Function):
    """hidden (N, D), head (V, D), y (N,), weight (N,), teacher's hidden (N, D'), head (V, D'), How
    -> sums over tokens: loss, ce, kd, teacher's ce. Only the first has a gradient."""

    @staticmethod
    def forward(ctx, hidden, head, y, weight, teacher_hidden, teacher_head, how):
        """The four sums; the gradients are made here, too, and kept."""
        grad_hidden = torch.empty_like(hidden)                                # (N, D)
        grad_head = torch.zeros_like(head, dtype=torch.float32)               # (V, D)
        sums = [torch.zeros((), dtype=torch.float32, device=hidden.device) for _ in range(4)]
        matrix, teacher_matrix = (w.to(h.dtype) for w, h in ((head, hidden),
                                                             (teacher_head, teacher_hidden)))
        step = max(1, CHUNK // len(head))
        for at in range(0, len(hidden), step):
            part = slice(at, at + step)
            teacher_logits = teacher_hidden[part] @ teacher_matrix.T          # (n, V)
            logits = (hidden[part] @ matrix.T).detach().requires_grad_()      # (n, V)
            with torch.enable_grad():
                ce = cross_entropy(logits, y[part])                           # (n,)
                kd = divergence(how.name, logits, teacher_logits, how.temperature, how.mix)
                loss = total((1 - how.alpha) * ce + how.alpha * kd, weight[part])
            [grad] = torch.autograd.grad(loss, logits)                        # (n, V)
            grad_hidden[part] = grad @ matrix
            grad_head += grad.T @ hidden[part]
            teacher_ce = cross_entropy(teacher_logits, y[part])               # (n,)
            sums[0] += loss.detach()
            for i, values in enumerate((ce, kd, teacher_ce), 1):
                sums[i] += total(values.detach(), weight[part])
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        ctx.mark_non_differentiable(*sums[1:])  # or they would have a gradient, of zeros
        return tuple(sums)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        """The gradients of `forward`, scaled."""
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_loss * grad_hidden, grad_loss * grad_head, None, None, None, None, None


def fused_loss(hidden, head, y, weight, teacher_hidden, teacher_head, how):
    """Sums over tokens as scalars: loss (with gradient), ce, kd, teacher's ce.

    ValueError where the vocabularies differ, as `divergence` raises it.
    """
    if len(head) != len(teacher_head):
        raise ValueError(f"the student has {len(head)} logits, the teacher {len(teacher_head)}: "
                         "use one tokenizer")
    return FusedLoss.apply(hidden, head, y, weight, teacher_hidden, teacher_head, how)
