"""The learning rate, and the two optimizers: AdamW for all, or Muon for the hidden matrices.

Muon (Jordan et al. 2024) steps along the orthogonal matrix nearest to the momentum: every singular
value of the update is made about 1, so that rare directions move as far as common ones. It is for
matrices between hidden layers; embeddings, the output matrix and norms stay with AdamW.
torch.optim.Muon takes one matrix after the other, in bfloat16: on many CPUs slower than the whole
forward and backward pass. Here those of one shape go together, in bfloat16 if that is fast.
"""
import math

import torch


def get_lr(step, steps, lr, warmup, min_lr=0.0):
    """Learning rate of a step in 0..steps: linear warmup, then half a cosine down to min_lr."""
    warmup = min(warmup, steps // 2)
    if step < warmup:  # 1) the first steps: gradients are large, their moments not known yet
        return lr * (step + 1) / warmup
    progress = min(1, (step - warmup) / (steps - warmup))  # 2) after them: 0 to 1
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)


def orthogonalize(m, iterations=5):
    """(..., M, N) -> nearly the nearest orthogonal matrix, by Newton-Schulz.

    Each iteration applies s -> 3.4445 s - 4.7750 s^3 + 2.0315 s^5 to every singular value: a
    quintic that pushes 0..1 towards 1 fast, and ends between about 0.7 and 1.2. Those below 0.003
    of the norm are only multiplied by about 3.44^5."""
    x = m if m.shape[-2] <= m.shape[-1] else m.mT  # the products below are (small side)^2
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # singular values now <= 1
    for _ in range(iterations):
        a = x @ x.mT
        x = 3.4445 * x + (2.0315 * a @ a - 4.7750 * a) @ x
    return x if m.shape[-2] <= m.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, times 0.2 * sqrt(max(R, C)): the size of an AdamW update
    (Liu et al. 2025, eq. 4), so that one learning rate serves both. Weight decay is decoupled."""

    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95, bf16=False):
        super().__init__(list(params), dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.bf16 = bf16  # only the iteration: momentum and weights stay in float32

    @torch.no_grad()
    def step(self):
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    if "momentum" not in self.state[p]:
                        self.state[p]["momentum"] = torch.zeros_like(p)
                    momentum = self.state[p]["momentum"]
                    momentum.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov: look ahead
                updates = torch.stack(updates)  # (matrices, R, C)
                updates = orthogonalize(updates.bfloat16() if self.bf16 else updates)
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for p, update in zip(params, updates):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.to(p.dtype), alpha=-scale)


def make_optimizers(model, kind, lr, weight_decay, bf16=False):
    """A list of optimizers that together hold every parameter of the model exactly once.

    kind "muon": Muon on matrices inside blocks, AdamW on the rest. "adamw": AdamW on all. Norm
    weights are not decayed: there is nothing to shrink towards."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if p.dim() == 2 and "layers." in n]
    matrices = [p for n, p in named if p.dim() == 2 and "layers." not in n]
    norms = [p for n, p in named if p.dim() != 2]
    groups = [dict(params=matrices if kind == "muon" else matrices + hidden),
              dict(params=norms, weight_decay=0.0)]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr,
                              betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
    return [adamw, Muon(hidden, lr, weight_decay, bf16=bf16)] if kind == "muon" else [adamw]
