"""How a model writes: the cache of keys and values, sampling, and the loop of one token at a time.

Letters as in model.py: B rows, T tokens, D width, H query heads, G key/value heads, C channels, S
tokens in the cache. The prompt is read by the model itself, all its tokens at once; from then on
`Decoder` runs the same layers for one token a row, in fewer operations (runs/bench_decode.py times
it against transformers).
"""
import torch
from torch.nn import functional as F


class LayerCache:
    """Keys and values of one layer, (B, G, max, C) each, filled from the left."""

    def __init__(self, shape, device, dtype):
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k, v):
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
    """The model's layers for one new token a row: weights joined, norms folded into them.

    h = x / rms(x) * weight, then W h, is (W * weight) (x / rms(x)): one matrix for q, k and v, one
    for gate and up. QK-norm's weights and the softmax scale go into the tables of RoPE. A test
    holds it to the full forward pass.
    """

    def __init__(self, model, cache):
        c = self.config = model.config
        self.length, self.embedding = cache.length, model.embed_tokens.weight
        self.head, weights = joined_weights(model)  # (D, V), and four matrices a layer
        # `scaled` divides by the length, sqrt(D) * rms, so eps becomes sqrt(D * eps)
        self.eps_dim, self.eps_head = (self.embedding.new_tensor((n * c.norm_eps) ** 0.5)
                                       for n in (c.dim, c.head_dim))
        self.bias = None
        if cache.padding is not None:  # (B*G, 1, S) minus infinity where a row has no text
            column = torch.arange(cache.layers[0].k.shape[2], device=self.embedding.device)
            hidden = column < cache.padding[:, None]  # (B, S)
            bias = torch.zeros(hidden.shape, device=column.device).masked_fill_(hidden, -torch.inf)
            self.bias = bias.repeat_interleave(c.n_kv_heads, 0)[:, None]
        self.layers = [(*matrices, *self.tables(model, layer.self_attn, old),
                        torch.stack([old.k, old.v]))  # (2, B, G, max, C)
                       for matrices, layer, old in zip(weights, model.layers, cache.layers)]

    def tables(self, model, a, old):
        """RoPE's cosines and sines for q and k of one layer, two (max, H + G, C)."""
        c = self.config
        q, k = ((a.q_norm.weight, a.k_norm.weight) if c.qk_norm
                else (torch.ones_like(model.cos[0]),) * 2)
        size = c.head_dim ** 0.5 if c.qk_norm else 1.0  # rms is the length / sqrt(C)
        weight = torch.cat([(q * size * c.head_dim ** -0.5).expand(c.n_heads, -1),
                            (k * size).expand(c.n_kv_heads, -1)])  # (H + G, C)
        half = c.head_dim // 2
        sign = torch.ones_like(model.cos[0])
        sign[:half] = -1
        room = old.k.shape[2]                                             # max, of this cache
        cos = model.cos[:room, None] * weight                             # (max, H + G, C)
        sin = (model.sin[:room] * sign)[:, None] * weight.roll(half, -1)  # of x rolled by half
        return cos, sin

    def step(self, token):
        """Token ids (B,) -> logits (B, V) of what follows."""
        c, t = self.config, self.length
        B, both = len(token), c.n_heads + c.n_kv_heads
        groups = B * c.n_kv_heads
        x = self.embedding[token]                                         # (B, D)
        for qkv, out, gate_up, down, cos, sin, cache in self.layers:
            heads = torch.mm(scaled(x, self.eps_dim), qkv).view(B, -1, c.head_dim)  # (B, H+2G, C)
            qk, v = heads[:, :both], heads[:, both:]
            if c.qk_norm:
                qk = scaled(qk, self.eps_head)
            qk = torch.addcmul(qk * cos[t], qk.roll(c.head_dim // 2, -1), sin[t])  # (B, H+G, C)
            cache[0, :, :, t], cache[1, :, :, t] = qk[:, c.n_heads:], v
            keys, values = cache[:, :, :, :t + 1].flatten(1, 2)           # (B*G, S, C) each
            q = qk[:, :c.n_heads].reshape(groups, -1, c.head_dim)         # (B*G, H/G, C)
            scores = torch.bmm(q, keys.mT)                                # (B*G, H/G, S)
            if self.bias is not None:
                scores += self.bias[:, :, :t + 1]
            mixed = torch.bmm(scores.softmax(-1), values).view(B, -1)     # (B, H*C)
            x = torch.addmm(x, mixed, out)
            gate, up = torch.mm(scaled(x, self.eps_dim), gate_up).chunk(2, -1)
            x = torch.addmm(x, F.silu(gate) * up, down)
        self.length += 1
        return torch.mm(scaled(x, self.eps_dim), self.head)


def joined_weights(model):
    """(head, [(qkv, out, gate and up, down) of each layer]), kept with the model until it changes.

    torch counts the changes of every tensor (an optimizer's step, a load): the key holds them all.
    """
    key = [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
    kept = vars(model).get("_joined")
    if kept is None or kept[0] != key:
        size, layers = model.config.dim ** 0.5, []
        for layer in model.layers:
            a, m = layer.self_attn, layer.mlp
            qkv = torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight])
            gate_up = torch.cat([m.gate_proj.weight, m.up_proj.weight])
            layers.append([by_input(w) for w in (
                qkv * layer.input_layernorm.weight * size, a.o_proj.weight,
                gate_up * layer.post_attention_layernorm.weight * size, m.down_proj.weight)])
        head = by_input(model.lm_head.weight * model.norm.weight * size)
        kept = vars(model)["_joined"] = key, head, layers
    return kept[1:]


def by_input(weight):
    """A matrix (out, in) as (in, out), in memory, too: faster for one row."""
    return weight.t().contiguous()


def scaled(x, eps):
    """x / sqrt(|x|^2 + eps^2), over the last dimension: RMSNorm but for a factor sqrt(D)."""
    return x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), eps)


def sample(logits, temperature, top_k=0, top_p=1.0, generator=None):
    """One token a row of logits (B, V) -> (B,). Temperature 0 is greedy.

    top_k keeps the k likeliest tokens; top_p the smallest set with that mass (Holtzman et al.
    2020), the likeliest token always in it.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if 0 < top_k < logits.shape[-1]:
        best = logits.topk(top_k)
        logits = torch.full_like(logits, -torch.inf).scatter_(-1, best.indices, best.values)
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # (B, V)
        ordered = ordered.masked_fill((mass_before >= top_p) & (mass_before > 0), -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def decode_steps(model, prompts, max_new_tokens, temperature=0.0, top_k=0, top_p=1.0,
                 generator=None):
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
    decoder = None
    for left in range(max_new_tokens, 0, -1):
        token = sample(logits, temperature, top_k, top_p, generator)  # (B,)
        yield token
        if left > 1:
            decoder = decoder or Decoder(model, cache)
            logits = decoder.step(token)


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, stop_ids=(), **sampling):
    """Continue each prompt (a list of ids) -> a list of lists of new ids, the stop id included.

    A row without a stop id at its end ran into the limit. `sampling`: temperature, top_k, top_p,
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
