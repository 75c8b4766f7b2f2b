"""A decoder-only transformer built like Llama and Qwen3. decoding.py uses it to write text.

Letters used in every shape comment of this project:
    B sequences in a batch     T tokens in a sequence       V vocabulary        D model width
    H query heads              G key/value heads (G <= H)   C channels per head S tokens in cache

One block is   x = x + attention(rms_norm(x));   x = x + swiglu(rms_norm(x)).
Sources: RMSNorm, Zhang & Sennrich 2019, eq. 4; RoPE, Su et al. 2021, eq. 34; grouped-query
attention, Ainslie et al. 2023; SwiGLU, Shazeer 2020, eq. 6; QK-norm as in Qwen3. Parameter names
are the same as in Hugging Face's Llama and Qwen3 classes, without their prefix "model." RoPE pairs
the same channels (i with i + C/2). runs/bench.py decode copies a model into Qwen3.
"""
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class ModelConfig:
    """The shape of a model. Every checkpoint contains it as a plain dict."""
    vocab_size: int = 1024
    dim: int = 192            # D, width of the residual stream
    n_layers: int = 4         # blocks
    n_heads: int = 6          # H, query heads
    n_kv_heads: int = 3       # G, key/value heads; must divide n_heads
    head_dim: int = 32        # C, channels per head; must be even for RoPE
    ffn_dim: int = 512        # hidden width of SwiGLU, about 8/3 of dim
    max_seq_len: int = 512    # context length in tokens: prompt and answer together
    rope_theta: float = 10_000.0  # RoPE's base: larger values rotate more slowly
    norm_eps: float = 1e-6    # added inside the square root of RMSNorm
    qk_norm: bool = True      # RMSNorm on queries and keys, as in Qwen3; Llama has none
    tie_embeddings: bool = True  # the output matrix is the embedding matrix
    qkv_bias: bool = False    # q, k and v have a bias, as in Qwen2
    rope_scaling: tuple = ()  # Llama 3: factor, low and high frequency factor, original context
    n_experts: int = 0        # SwiGLUs of width ffn_dim in a block: see moe.py; 0: a single one
    experts_per_token: int = 0
    norm_topk: bool = True    # the weights of a token's experts add up to 1


# Names: number of parameters at V = 1,024. Widths are multiples of 32: fast in matmul kernels.
SIZES = {
    "0.1m": dict(dim=64, n_layers=1, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=160),
    "0.2m": dict(dim=64, n_layers=3, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=160),
    "0.4m": dict(dim=96, n_layers=3, n_heads=3, n_kv_heads=1, head_dim=32, ffn_dim=256),
    "0.4m-deep": dict(dim=64, n_layers=7, n_heads=2, n_kv_heads=1, head_dim=32, ffn_dim=160),
    "0.4m-wide": dict(dim=160, n_layers=1, n_heads=5, n_kv_heads=1, head_dim=32, ffn_dim=352),
    "0.7m": dict(dim=128, n_layers=3, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=384),
    "0.9m": dict(dim=128, n_layers=4, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=352),
    "2m": dict(dim=192, n_layers=4, n_heads=6, n_kv_heads=3, head_dim=32, ffn_dim=512),
    "2m-deep": dict(dim=128, n_layers=9, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=384),
    "3m-deep": dict(dim=128, n_layers=14, n_heads=4, n_kv_heads=2, head_dim=32, ffn_dim=384),
    "5m": dict(dim=256, n_layers=6, n_heads=8, n_kv_heads=4, head_dim=32, ffn_dim=704),
    "10m": dict(dim=384, n_layers=6, n_heads=6, n_kv_heads=3, head_dim=64, ffn_dim=1024),
    "30m": dict(dim=512, n_layers=10, n_heads=8, n_kv_heads=4, head_dim=64, ffn_dim=1408),
    "100m": dict(dim=768, n_layers=15, n_heads=12, n_kv_heads=6, head_dim=64, ffn_dim=2048),
}


class RMSNorm(nn.Module):
    """x (..., dim) -> x / sqrt(mean(x^2) + eps) * weight. The mean is over the last dimension."""
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope_frequencies(head_dim, theta, scaling=()):
    """(C/2,) angles of one position: theta^(-2i/C) for pair i. With Llama 3's scaling, pairs that
    turn less than `high` times in the original context are slowed down, those below `low` turns
    by the whole `factor`. So a longer context brings no new angles."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)  # (C/2,)
    if scaling:
        factor, low, high, original = scaling
        turns = frequencies * original / (2 * torch.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)  # (C/2,): 1 is the plain frequency
        frequencies = frequencies * (kept + (1 - kept) / factor)
    return frequencies


def rotate(x, cos, sin):
    """Rotate each channel pair of x (B, heads, T, C) by its position's angle. q·k then depends only
    on the distance between two tokens, so positions need not restart in each packed document."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def attend(q, k, v, mask):
    """softmax(q k^T / sqrt(C)) v: q (B, H, T, C), k and v (B, G, S, C) -> (B, H, T, C). With a
    mask of None or bool, torch's kernel computes all of it. The kernel's backward pass is slow in
    bf16 on a CPU: small batches get a mask of numbers, 0 or -inf. Source: Vaswani et al. 2017."""
    B, H, T, C = q.shape
    if mask is None or mask.dtype == torch.bool:  # a single new token may see the whole cache
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True,
                                              is_causal=mask is None and T > 1)
    q = (q * C ** -0.5).reshape(B, k.shape[1], -1, C)  # (B, G, H/G * T, C): H/G heads share keys
    scores = (q @ k.mT).view(B, H, T, -1) + mask       # (B, H, T, S)
    return (scores.softmax(-1).view(*q.shape[:3], -1) @ v).view(B, H, T, C)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share G key/value heads."""
    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.dim, c.n_heads * c.head_dim, bias=c.qkv_bias)
        self.k_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.v_proj = nn.Linear(c.dim, c.n_kv_heads * c.head_dim, bias=c.qkv_bias)
        self.o_proj = nn.Linear(c.n_heads * c.head_dim, c.dim, bias=False)
        self.q_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c.head_dim, c.norm_eps) if c.qk_norm else nn.Identity()

    def forward(self, x, cos, sin, mask, cache=None, features=None):
        """x (B, T, D) -> (B, T, D). cos, sin (T, C). mask: see attend; None: plain causal."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)  # (B, T, H, C)
        k = self.k_proj(x).view(B, T, -1, self.head_dim)  # (B, T, G, C)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)  # (B, T, G, C)
        q, k, v = (t.transpose(1, 2) for t in (self.q_norm(q), self.k_norm(k), v))  # (B, ., T, C)
        if features is not None:  # before RoPE, so not yet rotated by position
            features.append(dict(q=q, k=k, v=v))  # (B, H or G, T, C)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.append(k, v)  # (B, G, S, C)
        out = attend(q, k, v, mask)  # (B, H, T, C)
        return self.o_proj(out.transpose(1, 2).reshape(B, T, -1))  # (B, T, D)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)). Gate and up are not joined: Muon must treat each separately."""
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.dim, c.ffn_dim, bias=False)
        self.up_proj = nn.Linear(c.dim, c.ffn_dim, bias=False)
        self.down_proj = nn.Linear(c.ffn_dim, c.dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A pre-norm residual block: x (B, T, D) -> (B, T, D). For the arguments see Attention. The
    last block may get keep (B, T) of bool. Then it returns only the N True tokens (N, D)."""
    def __init__(self, c):
        super().__init__()
        self.input_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.dim, c.norm_eps)
        self.mlp = SwiGLU(c)
        if c.n_experts:  # only of an imported teacher
            from moe import Experts  # here, because moe.py imports this file
            self.mlp = Experts(c)

    def forward(self, x, cos, sin, mask, cache=None, features=None, keep=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache, features)
        x = x if keep is None else x[keep]
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """The whole model: token ids (B, T) -> logits (B, T, V)."""
    def __init__(self, config):
        super().__init__()
        c = self.config = config
        self.n_tokens = c.vocab_size  # ids from here on are padding and are never sampled
        self.embed_tokens = nn.Embedding(c.vocab_size, c.dim)
        self.layers = nn.ModuleList(Block(c) for _ in range(c.n_layers))
        self.norm = RMSNorm(c.dim, c.norm_eps)
        self.lm_head = nn.Linear(c.dim, c.vocab_size, bias=False)
        if c.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight
        angles = torch.outer(torch.arange(c.max_seq_len, dtype=torch.float64),
                             rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling))  # (T, C/2)
        angles = torch.cat([angles, angles], dim=-1)  # (T, C): i and i + C/2 share an angle
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)
        for name, p in self.named_parameters():  # small weights: first loss near ln V
            std = 0.02
            if "layers" not in name:  # the final norm gives length sqrt(D), so logits get std 0.2
                std = 0.2 * c.dim ** -0.5
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= (2 * c.n_layers) ** -0.5  # residual outputs: smaller in deep models (GPT-2)
            if p.dim() == 2:  # norm weights stay 1
                nn.init.normal_(p, std=std)

    def num_parameters(self):
        """The number of parameters, with embeddings. Tied embeddings count once."""
        return sum(p.numel() for p in self.parameters())

    def hidden_states(self, ids, document=None, cache=None, features=None, keep=None):
        """ids (B, T) -> output of the final norm (B, T, D). ValueError beyond the context length.
        document (B, T): a token sees itself and earlier tokens with the same document number.
        None: it sees all earlier tokens, also those in the cache, but never the left padding.
        features: a list. Each block appends a dict: its output `hidden` (B, T, D), and q, k, v.
        keep (B, T) of bool: only its N True tokens, row by row (N, D). After the last attention no
        token reads the others. So they cost no MLP there, no output matrix and no softmax."""
        (B, T), start = ids.shape, cache.length if cache else 0
        if start + T > self.config.max_seq_len:
            raise ValueError(f"{start + T} tokens, but the context holds {self.config.max_seq_len}")
        mask = cache.mask(T) if cache else None  # (B, 1, T, S), (T, S) or None
        if document is not None:
            mask = document[:, None, :, None] == document[:, None, None, :]  # (B, 1, T, T)
            mask = mask.tril()  # causal. Padding sees itself, too, so no row is empty
        small = cache is None and B * T * T <= 2**21  # attend then stores T * T scores
        if small and ids.is_cpu and torch.is_autocast_enabled("cpu"):  # see attend
            mask = torch.ones(T, T, dtype=torch.bool).tril() if mask is None else mask
            mask = torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill(~mask, -torch.inf)
        x = self.embed_tokens(ids)  # (B, T, D)
        cos, sin = (t[start:start + T].to(x.dtype) for t in (self.cos, self.sin))  # (T, C) each
        for i, layer in enumerate(self.layers):
            x = layer(x, cos, sin, mask, cache.layers[i] if cache else None, features,
                      keep if i == len(self.layers) - 1 else None)  # (B, T, D), at the end (N, D)
            if features is not None:
                features[-1]["hidden"] = x
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def forward(self, ids, document=None, keep=None):
        """ids (B, T) -> logits (B, T, V), or with keep those of its True tokens (N, V)."""
        return self.lm_head(self.hidden_states(ids, document, keep=keep))


def build(size, vocab_size, **changes):
    """A new, random Transformer of a size in SIZES: `build("2m", 1024, max_seq_len=256)`."""
    return Transformer(ModelConfig(vocab_size=vocab_size, **{**SIZES[size], **changes}))


def with_layers(model, numbers):
    """A new Transformer with copies of some blocks of `model` (numbered from 1), of its embeddings,
    norm and head: a student can start as half of its teacher (Sanh et al. 2019, section 3)."""
    student = Transformer(replace(model.config, n_layers=len(numbers)))
    student.load_state_dict(model.state_dict(), strict=False)  # the next lines replace the blocks
    for own, number in zip(student.layers, numbers):
        own.load_state_dict(model.layers[number - 1].state_dict())
    return student
