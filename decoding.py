"""How a model writes text: a cache of keys and values, sampling, and one new token at a time.

Letters as in model.py. First the model reads the whole prompt at once. Then it reads one new token
per row in each step. The cache keeps the keys and values of all earlier tokens. For serve.py,
Answer turns the tokens into text while they come.
"""
from dataclasses import dataclass

import torch

from fast_decode import Decoder


class LayerCache:
    """Keys and values of one layer, (B, G, max, C) each, filled from the left."""
    def __init__(self, shape, device, dtype):
        self.k, self.v = torch.zeros(2, *shape, device=device, dtype=dtype)
        self.length = 0

    def append(self, k, v):
        """Store k and v (B, G, T, C) of T new tokens. Returns k and v of all S tokens so far."""
        end = self.length + k.shape[2]
        self.k[:, :, self.length:end], self.v[:, :, self.length:end] = k, v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]  # (B, G, S, C)


class KVCache:
    """Keys and values of all tokens read so far. padding (B,): number of left padding tokens."""
    def __init__(self, model, batch, max_tokens, padding=None):
        c, weight = model.config, model.embed_tokens.weight
        shape = (batch, c.n_kv_heads, max_tokens, c.head_dim)
        self.layers = [LayerCache(shape, weight.device, weight.dtype) for _ in range(c.n_layers)]
        self.length = 0
        self.padding = padding if padding is not None and padding.any() else None

    def keep(self, rows):
        """Forget all rows of the batch except `rows` (B,) of bool."""
        for layer in self.layers:
            layer.k, layer.v = layer.k[rows], layer.v[rows]
        self.padding = None if self.padding is None else self.padding[rows]

    def mask(self, T):
        """(B, 1, T, S) or (T, S): True if a new token (row) may see a token. None: causal."""
        if self.padding is None and (self.length == 0 or T == 1):
            return None
        column = torch.arange(self.length + T, device=self.layers[0].k.device)  # (S,)
        row = column[self.length:, None]  # (T, 1)
        padding = 0 if self.padding is None else self.padding[:, None, None, None]
        # A padding token sees itself, because some kernels compute 0/0 for a row without keys.
        return (column <= row) & (column >= padding) | (column == row)


def sample(logits, temperature, top_p=1.0, generator=None):
    """Draw a token per row: logits (B, V) -> ids (B,). A temperature below 0.01 means greedy. top_p
    keeps the fewest tokens with that total probability, at least one (Holtzman et al. 2020)."""
    if temperature < 0.01:  # dividing by almost 0 gives inf
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_p < 1:
        ordered, index = logits.sort(descending=True)
        mass_before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # (B, V)
        ordered = ordered.masked_fill((mass_before >= top_p) & (mass_before > 0), -torch.inf)
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def decode_steps(model, prompts, max_new_tokens, stop_ids=(), temperature=0.0, top_p=1.0,
                 generator=None, watch=None):
    """Yield the new tokens (B,) of each step. prompts: lists of ids, which may differ in length.
    Prompts are padded on the left, so all end in the same column. The cache hides the padding.
    Tokens after a stop id mean nothing. When half of the rows have stopped, these leave the batch.
    Ends early if the longest row fills the context. ValueError if a prompt is empty or fills it.
    watch(rows, logits) is called before each step: numbers of the rows in it, and (rows, V)."""
    weight, context = model.embed_tokens.weight, model.config.max_seq_len
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    if shortest == 0 or longest >= context:
        raise ValueError(f"the prompts have {shortest} to {longest} tokens; "
                         f"only 1 to {context - 1} fit the context")
    max_new_tokens = min(max_new_tokens, context - longest)
    padding = [longest - len(p) for p in prompts]
    unread = torch.tensor([[0] * n + list(p) for n, p in zip(padding, prompts)],
                          device=weight.device)  # (B, T): first the prompts, then one token per row
    cache = KVCache(model, len(prompts), longest + max_new_tokens, unread.new_tensor(padding))
    plain = not (model.config.n_experts or model.config.qkv_bias)  # what fast_decode.py can compute
    fast = (plain and len(prompts) == 1 and weight.device.type == "cpu"
            and weight.dtype == torch.float32)
    rows, stops = torch.arange(len(prompts), device=weight.device), unread.new_tensor([*stop_ids])
    decoder, token, going = None, rows, rows >= 0  # going: rows without a stop id
    for _ in range(max_new_tokens):
        if fast and cache.length:  # after the prompt: the same, but faster
            decoder = decoder or Decoder(model, cache)
            logits = torch.from_numpy(decoder.step(unread.item())[None])  # (1, V)
        else:
            logits = model.lm_head(model.hidden_states(unread, cache=cache)[:, -1])  # (B, V)
        logits = logits[:, :model.n_tokens]
        if watch:
            watch(rows, logits)
        new = sample(logits, temperature, top_p, generator)  # (rows,)
        token = new if len(rows) == len(token) else token.index_copy(0, rows, new)  # (B,)
        yield token
        if len(rows) > 1 and stop_ids:
            going = going & ~torch.isin(new, stops)  # (rows,)
            if 0 < 2 * going.sum() <= len(rows):
                cache.keep(going)
                rows, new, going = rows[going], new[going], going[going]
        unread = new[:, None]


def opening(tokenizer, target):
    """The ids that a response begins with. They tell a multi or mixed model which target to use."""
    t = tokenizer
    without = [*t.bare, *t.encode(t.gaps[2])] if t.bare else []  # an empty thought
    return {"cot": t.think, "answer": without + t.answer}.get(target, [])


@dataclass
class Answer:
    """An answer that is being written: where its text goes, and text that cannot be sent yet."""
    key: str = "content"  # inside a thought: reasoning_content
    ids: tuple = ()       # tokens of an incomplete character or mark
    held: str = ""        # text that may be the beginning of a stop string
    gap: str = ""         # white space after a mark of an imported model: not sent
    reason: str = None    # why it ended: stop or length

    def add(self, token, tokenizer, stop):
        """Add a token (None: limit reached) -> the text that can be sent now: whole characters."""
        ended, t = token is None or token in tokenizer.stop_ids, tokenizer
        ids, marks = self.ids + (() if ended else (token,)), (tuple(t.think), tuple(t.end_think))
        mark = next((mark for mark in marks if ids[-len(mark):] == mark), ())
        border = ended or mark
        half = 0 if border else max(n for mark in marks for n in range(len(mark))
                                    if ids[len(ids) - n:] == mark[:n])
        text = self.held + t.decode(ids[:len(ids) - half - len(mark)])
        if text.endswith("\ufffd") and not border:
            self.ids = ids
            return ""  # wait: a character may need several byte tokens
        stop = stop if self.key == "content" else []
        ends = [text.index(s) for s in stop if s in text]
        begun = [size for s in stop for size in range(len(s)) if text.endswith(s[:size])]
        size = min(ends) if ends else len(text) - (0 if border else max(begun, default=0))
        sent, self.ids, self.held = text[:size].lstrip(self.gap), ids[len(ids) - half:], text[size:]
        self.gap = "" if sent else self.gap
        if ends or ended:
            self.reason = "length" if token is None and not ends else "stop"
        elif mark:
            self.key, self.gap = {marks[0]: ("reasoning_content", t.gaps[0]),
                                  marks[1]: ("content", t.gaps[2])}[mark]
        return sent


def describe(tokenizer, log_p, ids):
    """Tokens with their log-probabilities, as OpenAI's API gives them -> list. log_p (V,)."""
    names = [tokenizer.decode([token], show_control=True) for token in ids]
    return [dict(token=name, logprob=log_p[token].item(),
                 bytes=list(tokenizer.raw[token] or name.encode()))
            for name, token in zip(names, ids)]


@torch.inference_mode()
def generate(model, prompts, max_new_tokens, stop_ids=(), **sampling):
    """Continue each prompt (a list of ids) -> a list of new ids per prompt, with the stop id.
    A list that ends without a stop id was cut off. sampling: temperature, top_p, generator."""
    rows = [[] for _ in prompts]
    # A batch ends when its longest row fills the context. An answer's limit must not depend on the
    # other rows, so only rows with the same limit are written together.
    limits = [min(max_new_tokens, model.config.max_seq_len - len(p)) for p in prompts]
    for limit in sorted(set(limits)):
        chosen = [i for i, n in enumerate(limits) if n == limit]
        for token in decode_steps(model, [prompts[i] for i in chosen], max_new_tokens, stop_ids,
                                  **sampling):
            for i, id in zip(chosen, token.tolist()):
                if not rows[i] or rows[i][-1] not in stop_ids:  # skip what follows a stop id
                    rows[i].append(id)
            if all(rows[i][-1] in stop_ids for i in chosen):
                break
    return rows
