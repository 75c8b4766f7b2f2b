"""The next token of one row, in numpy on a CPU: the same model in fewer and cheaper calls.

    decoder = Decoder(model, cache)        # a KVCache of one row that has read the prompt
    logits = decoder.step(token)           # (V,)

In a small model much of the time is torch's overhead per call, and numpy has less: see
results/decode.md. Only decoding.py uses this file. How it differs from model.py (same letters):
1. Matrices with the same input are joined: q, k and v into one, gate and up into another.
2. The weight of a norm is multiplied into the next matrix, because W (x / rms(x) * weight) is
   (W * weight) (x / rms(x)). The same is done with sqrt(D), the length of x divided by rms(x).
3. RoPE rotates channels i and i + C/2 together. Here they are neighbours, as the two parts of a
   complex number. Reordering both q and k in this way does not change q·k.
"""
import math

import numpy as np
import torch


class Decoder:
    """Computes the logits of one row, token by token, in float32 on a CPU."""
    def __init__(self, model, cache):
        c = self.config = model.config
        self.length, size = cache.length, cache.layers[0].k.shape[2]
        self.embedding = model.embed_tokens.weight.detach().numpy()         # (V, D)
        self.eps, self.eps_head = c.dim * c.norm_eps, np.float32(c.head_dim * c.norm_eps)
        self.head, weights = joined_weights(model)
        half, order = c.head_dim // 2, channel_pairs(c.head_dim)
        self.turns = torch.complex(model.cos[:size, :half], model.sin[:size, :half]).numpy()
        self.layers = [(*some, torch.cat([old.k[..., order], old.v]).numpy())
                       for some, old in zip(weights, cache.layers)]  # last item: (2, G, max, C)

    def step(self, token):
        """A token id -> logits (V,) for the token after it. The cache grows by one token."""
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
            scores -= np.maximum.reduce(scores, -1, keepdims=True)      # so exp cannot overflow
            np.exp(scores, out=scores)                                  # softmax before division
            mixed = scores @ values                                     # (G, H/G, C)
            mixed /= np.add.reduce(scores, -1, keepdims=True)           # divides C values, not S
            x += mixed.reshape(-1).dot(out)
            half, up = self.normed(x).dot(gate_up).reshape(2, -1)       # one row each: gate/2, up
            x += (half * (1 + np.tanh(half)) * up).dot(down)   # silu(g) = g/2 (1 + tanh(g/2))
        self.length += 1
        return self.normed(x).dot(self.head)

    def normed(self, x):
        """x (D,) -> x / rms(x) / sqrt(D): RMSNorm without its weight. (`dot` is cheaper than @.)"""
        return x / math.sqrt(x.dot(x) + self.eps)


@torch.no_grad()
def joined_weights(model):
    """Model -> (head, [(qkv, scale, out, gate_up, down) per layer]); matrices are (in, out). This
    takes as long as writing ten tokens, so a frozen model reuses the result until `_version` shows
    that a weight changed. Fused AdamW does not update `_version`: in training nothing is reused."""
    changes = [0 if p.is_inference() else p._version for p in model.parameters()]
    kept = vars(model).get("joined")
    if not kept or kept[0] != changes or any(p.requires_grad for p in model.parameters()):
        size = model.config.dim ** 0.5
        head = by_input(model.lm_head.weight * model.norm.weight * size)
        kept = model.joined = changes, head, [joined_layer(layer, size) for layer in model.layers]
    return kept[1:]


def joined_layer(layer, size):
    """A Block -> its five arrays, in the order of joined_weights. size: sqrt(D)."""
    a, m = layer.self_attn, layer.mlp
    order = channel_pairs(a.head_dim)
    q, k = (w.unflatten(0, (-1, a.head_dim))[:, order] for w in (a.q_proj.weight, a.k_proj.weight))
    # QK-norm's weights, times sqrt(C) = length / rms; for q also times attention's C^-0.5
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
    """A matrix (out, in) -> array (in, out), also in memory: x @ array reads it row by row."""
    return weight.t().contiguous().numpy()


def channel_pairs(head_dim):
    return torch.arange(head_dim).view(2, -1).t().flatten()  # 0, C/2, 1, C/2 + 1, ...
