"""Routed experts: instead of one SwiGLU, a block has many, and each token uses only a few of them.

    scores = softmax(x W_gate);   y = sum over the K best experts of weight * expert(x)
    weight = score, or with norm_topk the score divided by the sum of the K scores

As in Qwen3-MoE and minimind. An imported teacher may have them (Shazeer et al. 2017, section 2). It
is frozen: there is no loss here that keeps the experts equally busy, so none can be trained.
"""
import torch
from torch import nn

from model import SwiGLU


class Experts(nn.Module):
    """x (B, T, D) -> (B, T, D). Parameter names are those of a Qwen3-MoE file."""
    def __init__(self, c):
        super().__init__()
        self.experts_per_token, self.norm_topk = c.experts_per_token, c.norm_topk
        self.gate = nn.Linear(c.dim, c.n_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(c) for _ in range(c.n_experts))

    def forward(self, x):
        tokens = x.flatten(0, -2)                                  # (N, D)
        scores = self.gate(tokens).softmax(-1, dtype=torch.float32)  # (N, experts)
        weights, chosen = scores.topk(self.experts_per_token)      # (N, K) each
        if self.norm_topk:
            weights = weights / weights.sum(-1, keepdim=True)
        out = torch.zeros_like(tokens)                             # (N, D)
        for number, expert in enumerate(self.experts):
            row, place = (chosen == number).nonzero(as_tuple=True)  # its tokens
            part = expert(tokens[row]) * weights[row, place, None]  # (tokens, D)
            out.index_add_(0, row, part.to(out.dtype))
        return out.view_as(x)
