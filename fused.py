"""The loss with less memory: output matrix and divergence together, for a few tokens at a time.

A (tokens, V) tensor of logits is the largest one in a training step. With 4,096 tokens and a
vocabulary of 32,768 it takes 0.5 GB in float32, and the plain loss stores at least six of them.
Here a few tokens at a time get logits and the plain loss of losses.py, with any divergence. The
gradients of the hidden states and of the output matrix are computed at once, in the forward pass.
The backward pass only scales them (Hsu et al. 2024, Liger, for cross-entropy). Wijmans et al. 2024
compute the logits again in the backward pass. Matmuls use the dtype of the hidden states.
"""
import torch

from losses import cross_entropy, divergence, total

CHUNK = 2**23  # logits of one model in memory at a time: 32 MB in float32


def use_fused(cfg, env, vocab_size, cache=None):
    """--fused -> bool. auto: True if a micro-batch has many logits (0.3 GB in float32). A cache
    must hold hidden states: the other kinds give no logits of the teacher."""
    logits = cfg.batch // (cfg.accumulate * env.world) * cfg.window * vocab_size
    many = logits >= 2**26 and (not cache or cache["kind"] == "hidden")
    return cfg.fused == "on" or cfg.fused == "auto" and many


class FusedLoss(torch.autograd.Function):
    """hidden (N, D), head (V, D), y (N,), weight (N,), teacher's hidden (N, D') and head (V, D'),
    alpha, name, tau, mix -> four weighted sums over tokens: loss = (1 - alpha) ce + alpha kd, ce,
    kd, teacher's ce. kd is a divergence of losses.py. Only the loss has a gradient; `forward`
    computes this gradient. ValueError if the vocabularies differ."""

    @staticmethod
    def forward(ctx, hidden, head, y, weight, teacher_hidden, teacher_head, alpha, name, tau, mix):
        grad_hidden = torch.empty_like(hidden)                                # (N, D)
        grad_head = torch.zeros_like(head, dtype=torch.float32)               # (V, D)
        sums = torch.zeros(4, device=hidden.device)
        matrix, teacher_matrix = head.to(hidden.dtype), teacher_head.to(teacher_hidden.dtype)
        step = max(1, CHUNK // len(head))
        for at in range(0, len(hidden), step):
            part = slice(at, at + step)
            teacher_logits = teacher_hidden[part] @ teacher_matrix.T          # (n, V)
            logits = (hidden[part] @ matrix.T).detach().requires_grad_()      # (n, V)
            with torch.enable_grad():
                ce = cross_entropy(logits, y[part])                           # (n,)
                kd = divergence(name, logits, teacher_logits, tau, mix)
                loss = total((1 - alpha) * ce + alpha * kd, weight[part])
            [grad] = torch.autograd.grad(loss, logits)                        # (n, V)
            grad_hidden[part] = grad @ matrix
            grad_head += grad.T @ hidden[part]
            others = ce.detach(), kd.detach(), cross_entropy(teacher_logits, y[part])
            sums += torch.stack([loss.detach(), *(total(v, weight[part]) for v in others)])
        ctx.save_for_backward(grad_hidden, grad_head.to(head.dtype))
        loss, *others = sums.unbind()
        ctx.mark_non_differentiable(*others)  # or they would get gradients of zeros
        return loss, *others

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_loss * grad_hidden, grad_loss * grad_head, *[None] * 8


def fused_step(cfg, env, model, teacher, x, y, document, weight, mix, n_valid):
    """Forward and backward pass of a micro-batch of train_distill_logits.py: x, y, document, weight
    (B, T) -> four sums over tokens, as floats: loss, ce, kd, teacher's ce. The teacher is a model,
    or a dict with its hidden states (N, D') and its head (V, D')."""
    keep, dtype = weight > 0, torch.bfloat16 if env.dtype == "bf16" else torch.float32
    with env.autocast():
        hidden = model.hidden_states(x, document, keep=keep).to(dtype)         # (N, D)
        with torch.no_grad():
            stored = teacher if isinstance(teacher, dict) else dict(
                hidden=teacher.hidden_states(x, document, keep=keep), head=teacher.lm_head.weight)
    with torch.autocast(env.device.type, enabled=False):
        terms = FusedLoss.apply(
            hidden, model.lm_head.weight, y[keep], weight[keep],
            stored["hidden"].to(dtype), stored["head"], cfg.alpha, cfg.divergence,
            cfg.temperature, mix)
        (terms[0] / n_valid).backward()
    return [term.item() for term in terms]
