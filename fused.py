"""The loss without its logits: output matrix and divergence in one, a few tokens at a time.

A (tokens, V) tensor of logits is the largest thing in a training step: 4,096 tokens of a vocabulary
of 32,768 take 0.5 GB in float32, and the plain loss holds at least six of them. Here a few tokens
at a time get logits, the student's and the teacher's. The plain loss of losses.py is taken, with
any divergence. Its gradient by these logits becomes gradients of the hidden states and of the
output matrix at once, and the backward pass only scales them (Hsu et al. 2024, Liger, for
cross-entropy; Wijmans et al. 2024 make the logits again in the backward pass).

Matmuls are in the dtype of the hidden states, softmax and sums in float32.
"""
import torch

from losses import cross_entropy, divergence, total

CHUNK = 2**22  # logits of one model held at a time: 16 MB in float32


def use_fused(cfg, env, vocab_size):
    """--fused on or off; auto: if a micro-batch has many logits (0.3 GB in float32). With a cache
    or torch.compile there are no hidden states to begin from."""
    logits = cfg.batch // (cfg.accumulate * env.world) * cfg.window * vocab_size
    many = logits >= 2**26 and not (cfg.cache or cfg.compile)
    return cfg.fused == "on" or cfg.fused == "auto" and many


class FusedLoss(torch.autograd.Function):
    """See fused_loss. `forward` makes the gradients, too; only the first sum has one."""

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
        ctx.mark_non_differentiable(*others)  # or they would have a gradient, of zeros
        return loss, *others

    @staticmethod
    def backward(ctx, grad_loss, *_):
        grad_hidden, grad_head = ctx.saved_tensors
        return grad_loss * grad_hidden, grad_loss * grad_head, *[None] * 8


def fused_loss(hidden, head, y, weight, teacher_hidden, teacher_head, alpha=1.0, name="forward_kl",
               temperature=1.0, mix=None):
    """hidden (N, D), head (V, D), y (N,), weight (N,), teacher's hidden (N, D') and head (V, D')
    -> sums over tokens as scalars: loss = (1 - alpha) ce + alpha kd, ce, kd, teacher's ce. kd: a
    divergence of losses.py. ValueError if the vocabularies differ."""
    return FusedLoss.apply(hidden, head, y, weight, teacher_hidden, teacher_head, alpha, name,
                           temperature, mix)


def fused_step(cfg, env, model, teacher, x, y, document, weight, mix, n_valid):
    """Forward and backward of a micro-batch of train_distill_logits.py -> four sums over tokens, as
    floats: loss, ce, kd, teacher's ce."""
    keep, dtype = weight > 0, torch.bfloat16 if env.dtype == "bf16" else torch.float32
    with env.autocast():
        hidden = model.hidden_states(x, document)[keep].to(dtype)              # (N, D)
        with torch.no_grad():
            teacher_hidden = teacher.hidden_states(x, document)[keep].to(dtype)  # (N, D')
    with torch.autocast(env.device.type, enabled=False):
        terms = fused_loss(hidden, model.lm_head.weight, y[keep], weight[keep], teacher_hidden,
                           teacher.lm_head.weight, cfg.alpha, cfg.divergence, cfg.temperature, mix)
        (terms[0] / n_valid).backward()
    return [term.item() for term in terms]
