"""One more token of one row, on a CPU, in numpy: the model's layers in fewer and cheaper calls.

    decoder = Decoder(model, cache)        # the KVCache has read the prompt, of one row
    logits = decoder.step(token)           # (V,)

A small model does so little arithmetic for one token that half of the time is torch's own work in
each call; numpy's is a third of it (runs/bench.py). Only decoding.py uses this file, and a test
compares it with the model. Letters as in model.py. What is done differently:

1. Matrices that read the same input are joined: those of q, k and v, and those of gate and up.
2. A norm's weight is folded into the matrix behind it: W (x / rms(x) * weight) is
   (W * weight) (x / rms(x)). So is sqrt(D), the factor between rms(x) and the length of x.
3. RoPE turns channel i with i + C/2. Here the two lie side by side, as the parts of a complex
   number. q·k is the same if both are reordered.
"""
import math

import numpy as np
import torch


class Decoder:
    """The model for the next tokens of a single row; float32, on a CPU."""

    def __init__(self, model, cache):
        c = self.config = model.config
        self.length, room = cache.length, cache.layers[0].k.shape[2]
        self.embedding = model.embed_tokens.weight.detach().numpy()         # (V, D)
        self.eps, self.eps_head = c.dim * c.norm_eps, np.float32(c.head_dim * c.norm_eps)
        self.head, weights = joined_weights(model)
        half, order = c.head_dim // 2, channel_pairs(c.head_dim)
        self.turns = torch.complex(model.cos[:room, :half], model.sin[:room, :half]).numpy()
        self.layers = [(*some, torch.cat([old.k[..., order], old.v]).numpy())
                       for some, old in zip(weights, cache.layers)]  # the last: (2, G, max, C)

    def step(self, token):
        """A token id -> logits (V,) of what follows."""
        c, t = self.config, self.length
        H, G, C = c.n_heads, c.n_kv_heads, c.head_dim
        x = self.embedding[token].copy()                                # (D,)
        for qkv, scale, out, gate_up, down, cache in self.layers:
            heads = self.normed(x).dot(qkv).reshape(-1, C)              # (H + 2G, C)
            qk = heads[:H + G]                                          # a view: changed in place
            if c.qk_norm:
                qk /= np.sqrt(np.vecdot(qk, qk) + self.eps_head)[:, None]
            qk *= scale                                                 # (H + G, C)
            pairs = qk.view(np.complex64)                               # (H + G, C/2)
            pairs *= self.turns[t]
            cache[:, :, t] = heads[H:].reshape(2, G, C)                 # k and v of this token
            keys, values = cache[:, :, :t + 1]                          # (G, S, C) each
            scores = heads[:H].reshape(G, -1, C) @ keys.swapaxes(1, 2)  # (G, H/G, S)
            scores -= np.maximum.reduce(scores, -1, keepdims=True)      # or exp may overflow
            np.exp(scores, out=scores)                                  # softmax, undivided
            mixed = scores @ values                                     # (G, H/G, C)
            mixed /= np.add.reduce(scores, -1, keepdims=True)           # divided here, C < S
            x += mixed.reshape(-1).dot(out)
            half, up = self.normed(x).dot(gate_up).reshape(2, -1)       # (F,) each: gate/2 and up
            x += (half * (1 + np.tanh(half)) * up).dot(down)   # silu(g) = g/2 (1 + tanh(g/2))
        self.length += 1
        return self.normed(x).dot(self.head)

    def normed(self, x):
        """x / rms(x) / sqrt(D): RMSNorm before its weight. (`dot` costs less per call than @.)"""
        return x / math.sqrt(x.dot(x) + self.eps)


@torch.no_grad()
def joined_weights(model):
    """(head, [(qkv, scale, out, gate_up, down) of each layer]), matrices as arrays (in, out). It
    takes as long as writing ten tokens, so a frozen model keeps them until a weight changes (torch
    counts that in `_version`, except for fused AdamW: a model in training keeps none)."""
    changes = [0 if p.is_inference() else p._version for p in model.parameters()]
    kept = vars(model).get("joined")
    if not kept or kept[0] != changes or any(p.requires_grad for p in model.parameters()):
        size = model.config.dim ** 0.5
        head = by_input(model.lm_head.weight * model.norm.weight * size)
        kept = model.joined = changes, head, [joined_layer(layer, size) for layer in model.layers]
    return kept[1:]


def joined_layer(layer, size):
    """The five arrays of a layer; size: sqrt(D)."""
    a, m = layer.self_attn, layer.mlp
    order = channel_pairs(a.head_dim)
    q, k = (w.unflatten(0, (-1, a.head_dim))[:, order] for w in (a.q_proj.weight, a.k_proj.weight))
    # QK-norm's weights, the sqrt(C) between length and rms, and attention's C^-0.5
    scale = torch.ones(len(q) + len(k), a.head_dim)                         # (H + G, C)
    if isinstance(a.q_norm, torch.nn.Identity):
        scale[:len(q)] = a.head_dim ** -0.5
    else:
        scale[:len(q)] = a.q_norm.weight[order]
        scale[len(q):] = a.k_norm.weight[order] * a.head_dim ** 0.5
    qkv = torch.cat([q.flatten(0, 1), k.flatten(0, 1), a.v_proj.weight])
    gate_up = torch.cat([m.gate_proj.weight / 2, m.up_proj.weight])
    qkv = qkv * layer.input_layernorm.weight * size
    gate_up = gate_up * layer.post_attention_layernorm.weight * size
    out, down = a.o_proj.weight, m.down_proj.weight
    return by_input(qkv), scale.numpy(), by_input(out), by_input(gate_up), by_input(down)


def by_input(weight):
    """A matrix (out, in) as (in, out), in memory, too: x @ it reads it row by row."""
    return weight.t().contiguous().numpy()


def channel_pairs(head_dim):
    return torch.arange(head_dim).view(2, -1).t().flatten()  # 0, C/2, 1, C/2 + 1, ...
