"""How a model writes: the cache of keys and values, sampling, and the loop of one token at a time.

Letters as in model.py: B rows, T tokens, D width, H query heads, G key/value heads, C channels, S
tokens in the cache, F the width of SwiGLU. The prompt is read by the model itself, all its tokens
at once. From then on it is asked one token a row; a single row on a CPU goes through `Decoder`, the
same layers in fewer and cheaper operations (runs/bench_decode.py times it against transformers).
"""
import math

import numpy as np
import torch


class LayerCache:
    """Keys and values of one layer, (B, G, max, C) each, filled from the left."""

    def __init__(self, shape, device, dtype):
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k, v):
        """Keep k and v (B, G, T, C) of T new tokens -> those of all S tokens."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end] = k
        self.v[:, :, self.length:end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]  # (B, G, S, C)


class KVCache:
    """What the model has read so far. `padding` (B,): how many tokens on the left are no text."""

    def __init__(self, model, batch, max_tokens, padding=None):
        c, weight = model.config, model.embed_tokens.weight
        shape = (batch, c.n_kv_heads, max_tokens, c.head_dim)
        self.layers = [LayerCache(shape, weight.device, weight.dtype) for _ in range(c.n_layers)]
        self.length = 0
        self.padding = padding if padding is not None and bool(padding.any()) else None

    def mask(self, T):
        """(B, 1, T, S) True where a new token may look; None where plain causal says the same."""
        S = self.length + T
        if self.padding is None and (self.length == 0 or T == 1):
            return None
        device = self.layers[0].k.device
        column = torch.arange(S, device=device)
        row = torch.arange(self.length, S, device=device)
        mask = (column <= row[:, None])[None, None]  # (1, 1, T, S)
        if self.padding is not None:
            # A padding token sees itself: a row without any key is 0/0 in some kernels.
            text = column >= self.padding[:, None]  # (B, S)
            mask = mask & text[:, None, None, :] | (column == row[:, None])
        return mask


class Decoder:
    """The model's layers for one new token of one row, in plain numpy: a step without a framework.

    One row of a small model is so little arithmetic that torch's own work a call is half of the
    time; numpy's is a third of it, on a CPU. Weights are joined and norms folded into them:
    h = x / rms(x) * weight, then W h, is (W * weight) (x / rms(x)): one matrix for q, k and v, one
    for gate and up. RoPE turns pairs of channels as complex numbers. A test holds it to the model.
    """

    def __init__(self, model, cache):
        c = self.config = model.config
        self.length, self.embedding = cache.length, model.embed_tokens.weight.detach().numpy()
        self.head, weights = joined_weights(model)  # (D, V), and five arrays a layer
        # dividing by the length, sqrt(D) * rms, makes eps D * eps
        self.eps_dim, self.eps_head = c.dim * c.norm_eps, np.float32(c.head_dim * c.norm_eps)
        half, room = c.head_dim // 2, cache.layers[0].k.shape[2]
        self.turns = torch.complex(model.cos, model.sin)[:room, :half].numpy()  # e^(i angle)
        order = channel_pairs(c.head_dim)
        self.layers = [(*some, torch.cat([old.k[..., order], old.v]).detach().numpy())
                       for some, old in zip(weights, cache.layers)]  # the last: (2, G, max, C)

    def step(self, token):
        """A token id -> logits (V,) of what follows."""
        c, t = self.config, self.length
        H, G, C = c.n_heads, c.n_kv_heads, c.head_dim
        x = self.embedding[token].copy()                                # (D,)
        for qkv, out, gate_up, down, scale, bounded, cache in self.layers:
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
            if not bounded:                                             # or exp may overflow
                scores -= np.maximum.reduce(scores, -1, keepdims=True)
            np.exp(scores, out=scores)                                  # softmax, undivided
            mixed = scores @ values                                     # (G, H/G, C)
            mixed /= np.add.reduce(scores, -1, keepdims=True)           # divided here, C < S
            x += mixed.reshape(-1).dot(out)
            both = self.normed(x).dot(gate_up)                          # (2F,)
            gate, up = both[:c.ffn_dim], both[c.ffn_dim:]
            gate *= 0.5                                    # silu(g) = g/2 (1 + tanh(g/2)): where
            up *= gate * (1 + np.tanh(gate))               # exp would overflow, tanh is 1
            x += up.dot(down)
        self.length += 1
        return self.normed(x).dot(self.head)

    def normed(self, x):
        """x / sqrt(|x|^2 + eps): RMSNorm but for sqrt(D). (`dot` costs less a call than @.)"""
        return x / math.sqrt(x.dot(x) + self.eps_dim)


def joined_weights(model):
    """(head, [(qkv, out, gate and up, down, scale of q and k, bounded?) of each layer]) in numpy,
    kept with a model that is not being trained until it changes (torch counts a parameter's
    changes, but not those of fused AdamW).
    """
    weights = list(model.parameters())
    frozen = not any(p.requires_grad for p in weights)
    key = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in weights]
    kept = vars(model).get("_joined")
    if kept is None or kept[0] != key or not frozen:
        size, layers = model.config.dim ** 0.5, []
        for layer in model.layers:
            a, m = layer.self_attn, layer.mlp
            q, k = (w.unflatten(0, (-1, a.head_dim))[:, channel_pairs(a.head_dim)].flatten(0, 1)
                    for w in (a.q_proj.weight, a.k_proj.weight))
            qkv = torch.cat([q, k, a.v_proj.weight])
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight])
            layers.append([*map(by_input, (
                qkv * layer.input_layernorm.weight * size, a.o_proj.weight,
                gate_up * layer.post_attention_layernorm.weight * size, m.down_proj.weight)),
                *head_scale(model.config, a)])
        head = by_input(model.lm_head.weight * model.norm.weight * size)
        kept = vars(model)["_joined"] = key, head, layers
    return kept[1:]


def by_input(weight):
    """A matrix (out, in) as (in, out), in memory, too: x @ it reads it row by row."""
    return weight.detach().t().contiguous().numpy()


def channel_pairs(head_dim):
    """RoPE turns channel i with i + C/2. In this order, 0, C/2, 1, C/2 + 1, ..., they lie side by
    side, as the two parts of complex numbers do; q·k does not change when both are reordered."""
    return torch.arange(head_dim).view(2, -1).t().flatten()


def head_scale(c, attention):
    """(H + G, C): QK-norm's weights, the sqrt(C) between length and rms, attention's C^-0.5; and
    whether they keep the scores, products of normed q and k, below 80: e^80 fits into float32."""
    ones = attention.q_proj.weight.new_ones(c.head_dim)
    q, k = ((attention.q_norm.weight, attention.k_norm.weight) if c.qk_norm else (ones, ones))
    size = c.head_dim ** 0.5 if c.qk_norm else 1.0
    scale = torch.cat([(q * size * c.head_dim ** -0.5).expand(c.n_heads, -1),
                       (k * size).expand(c.n_kv_heads, -1)])
    largest = scale.abs().amax(-1)
    bounded = c.qk_norm and bool(largest[:c.n_heads].max() * largest[c.n_heads:].max() < 80)
    return scale.detach()[:, channel_pairs(c.head_dim)].numpy(), bounded


def next_token_logits(model, cache):
    """A function: token ids (B,) -> logits (B, V) of what follows, step by step."""
    weight, rows = model.embed_tokens.weight, len(cache.layers[0].k)
    if rows == 1 and weight.device.type == "cpu" and weight.dtype == torch.float32:
        step = Decoder(model, cache).step
        return lambda token: torch.from_numpy(step(token.item())[None])
    return lambda token: model.lm_head(model.hidden_states(token[:, None], cache=cache)[:, -1])


def sample(logits, temperature, top_p=1.0, generator=None):
    """One token a row of logits (B, V) -> (B,). Temperature 0 is greedy.

    top_p keeps the smallest set of tokens with that mass (Holtzman et al. 2020), the likeliest
    token always in it.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # (B, V)
        ordered = ordered.masked_fill((mass_before >= top_p) & (mass_before > 0), -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def decode_steps(model, prompts, max_new_tokens, temperature=0.0, top_p=1.0, generator=None):
    """Yield (B,) new tokens a step, for prompts (lists of ids) of different lengths.

    Prompts are padded on the left, so that all of them end in the same column and RoPE's distances
    are right; the cache hides the padding. Ends when the longest has filled the context.
    """
    device = model.embed_tokens.weight.device
    lengths = [len(p) for p in prompts]
    longest = max(lengths)
    if min(lengths) == 0 or longest >= model.config.max_seq_len:
        raise ValueError(f"a prompt has {min(lengths)} to {longest} tokens; "
                         f"1 to {model.config.max_seq_len - 1} fit the context")
    max_new_tokens = min(max_new_tokens, model.config.max_seq_len - longest)
    padded = [[0] * (longest - len(p)) + list(p) for p in prompts]
    ids = torch.tensor(padded, device=device)  # (B, T)
    padding = torch.tensor([longest - n for n in lengths], device=device)  # (B,)
    cache = KVCache(model, len(prompts), longest + max_new_tokens, padding)
    logits = model.lm_head(model.hidden_states(ids, cache=cache)[:, -1])  # (B, V)
    step = None
    for left in range(max_new_tokens, 0, -1):
        token = sample(logits, temperature, top_p, generator)  # (B,)
        yield token
        if left > 1:
            step = step or next_token_logits(model, cache)
            logits = step(token)


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, stop_ids=(), **sampling):
    """Continue each prompt (a list of ids) -> a list of lists of new ids, the stop id included.

    A row without a stop id at its end ran into the limit. `sampling`: temperature, top_p,
    generator, as in `sample`. Raises ValueError where a prompt leaves no room in the context.
    """
    if max_new_tokens < 1 or not prompts:
        return [[] for _ in prompts]
    rows = [[] for _ in prompts]
    # Rows written together end together, where the longest has filled the context. So only those
    # with the same room go together: a row's answer must not depend on its neighbours.
    room = [min(max_new_tokens, model.config.max_seq_len - len(p)) for p in prompts]
    if min(room) != max(room):
        for size in sorted(set(room)):
            chosen = [i for i, r in enumerate(room) if r == size]
            some = [prompts[i] for i in chosen]
            found = generate(model, some, max_new_tokens, stop_ids, **sampling)
            for i, row in zip(chosen, found):
                rows[i] = row
        return rows
    stop_ids = set(stop_ids)
    running = set(range(len(prompts)))
    for token in decode_steps(model, prompts, max_new_tokens, **sampling):
        for i, id in enumerate(token.tolist()):
            if i in running:
                rows[i].append(id)
                if id in stop_ids:
                    running.discard(i)  # whatever the model says after its end does not count
        if not running:
            break
    return rows


@torch.inference_mode()
def stream(model, prompt, max_new_tokens, stop_ids=(), **sampling):
    """Yield the new ids of one prompt as they come; the stop id is the last."""
    for token in decode_steps(model, [prompt], max_new_tokens, **sampling):
        yield int(token)
        if int(token) in stop_ids:
            return
