"""The learning rate, and the two optimizers: AdamW for all, or Muon for the matrices in blocks.

Muon (Jordan et al. 2024) steps along the orthogonal matrix nearest to the momentum. Its singular
values are all about 1, so rare directions move as far as common ones. Muon is for the matrices in
blocks. AdamW updates the embeddings, the output matrix and the norms. torch.optim.Muon takes one
matrix at a time, in bfloat16, which is slow on many CPUs. Here all matrices of one shape are
updated together. In a bf16 run, orthogonalize computes in bfloat16.
"""
import math

import torch


def get_lr(step, steps, lr, warmup, min_lr=0.0):
    """Learning rate of step 0, 1, ..., steps: linear warmup, then half a cosine down to min_lr."""
    warmup = min(warmup, steps // 2)
    if step < warmup:  # 1) first steps: gradients are large, their averages not known yet
        return lr * (step + 1) / warmup
    progress = min(1, (step - warmup) / (steps - warmup))  # 2) then: 0 to 1
    return min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (lr - min_lr)


def set_lr(optimizers, lr):
    """Set the learning rate of all optimizers; returns it."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = lr
    return lr


def orthogonalize(m, iterations=5):
    """(K, M, N) -> about the nearest orthogonal matrix, same shape, by Newton-Schulz.
    Each iteration changes every singular value s (0 to 1) to 3.4445 s - 4.7750 s^3 + 2.0315 s^5.
    In the end it is about 0.7 to 1.2. Only values below 0.0015 of the norm stay smaller."""
    x = m if m.shape[-2] <= m.shape[-1] else m.mT  # wide, so that x @ x.mT is small
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # singular values now <= 1
    for _ in range(iterations):
        a = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x if m.shape[-2] <= m.shape[-1] else x.mT


class Muon(torch.optim.Optimizer):
    """The update is orthogonalised Nesterov momentum times 0.2 * sqrt(max(R, C)), about as large as
    AdamW's (Liu et al. 2025, eq. 4). So both use one learning rate. Weight decay is decoupled."""
    def __init__(self, params, lr, weight_decay=0.0, momentum=0.95, bf16=False):
        super().__init__(list(params), dict(lr=lr, weight_decay=weight_decay, momentum=momentum))
        self.bf16 = bf16  # in orthogonalize only: momentum and weights stay float32

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


def make_optimizers(model, kind, lr, weight_decay, dtype="float32"):
    """-> list of optimizers. Each trainable parameter of the model is in exactly one of them.
    kind "muon": Muon on matrices inside blocks, AdamW on the rest. "adamw": AdamW on all. Norm
    weights get no weight decay, because 0 is no good value for a scale. dtype: "bf16" for Muon."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    hidden = [p for n, p in named if p.dim() == 2 and "layers." in n]
    matrices = [p for n, p in named if p.dim() == 2 and "layers." not in n]
    norms = [p for n, p in named if p.dim() != 2]
    groups = [dict(params=matrices if kind == "muon" else matrices + hidden),
              dict(params=norms, weight_decay=0.0)]
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=lr,
                              betas=(0.9, 0.95), weight_decay=weight_decay, fused=True)
    muon = [Muon(hidden, lr, weight_decay, bf16=dtype == "bf16")] if kind == "muon" else []
    return [adamw, *muon]
