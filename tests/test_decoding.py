"""Claims about decoding.py and fast_decode.py: key-value cache, single steps, sampling."""
import pytest
import torch

from decoding import KVCache, generate, sample
from fast_decode import Decoder
from losses import cross_entropy
from optim import make_optimizers
from test_model import assert_close, draw_ids

PROMPTS = [draw_ids(n, seed=seed).tolist() for seed, n in enumerate((9, 1, 4, 9))]


@pytest.mark.parametrize("lengths", [[12, 12], [12, 5, 1]], ids=str)
@pytest.mark.parametrize("blocks", [[12], [7, 1, 4], [5, 1, 4, 2], [2, 10], [1, 11], [11, 1], [1] * 12], ids=str)
@torch.no_grad()
def test_reading_in_pieces_equals_reading_at_once(tiny_model, blocks, lengths):
    """A wrong position or mask in the cache, or left padding that is visible: only the first tokens are right."""
    model, texts = tiny_model(n_layers=3), [draw_ids(n, seed=seed) for seed, n in enumerate(lengths)]
    ids = torch.stack([torch.cat([torch.zeros(12 - len(t), dtype=torch.int64), t]) for t in texts])
    cache = KVCache(model, len(ids), 12, padding=torch.tensor([12 - n for n in lengths]))
    hidden = torch.cat([model.hidden_states(p, cache=cache) for p in ids.split(blocks, dim=1)], 1)
    logits = model.lm_head(hidden)
    assert cache.length == 12 and logits.isfinite().all()
    for row, text in zip(logits, texts):
        assert_close(row[12 - len(text):], model(text[None])[0])


def test_a_changed_weight_changes_what_is_written(tiny_model):
    """Joined weights that are not updated would write with the old model. Fused AdamW does not change `_version`."""
    model, fresh, ids = tiny_model(), tiny_model(seed=5), draw_ids(2, 9)
    before = generate(model, PROMPTS[:1], 8)
    for optimizer in make_optimizers(model, "adamw", 0.05, 0.1):
        cross_entropy(model(ids), ids).sum().backward()
        optimizer.step()
    fresh.load_state_dict(model.state_dict())
    assert generate(model, PROMPTS[:1], 8) == generate(fresh, PROMPTS[:1], 8) != before
    assert generate(model, PROMPTS[:1] * 2, 8) == generate(fresh, PROMPTS[:1], 8) * 2
    with torch.no_grad():
        model.embed_tokens.weight.mul_(-1)
    assert generate(model, PROMPTS[:1], 8) != generate(fresh, PROMPTS[:1], 8)
    model.load_state_dict(tiny_model().state_dict())
    assert generate(model, PROMPTS[:1], 8) == before


@pytest.mark.parametrize("changes", [{}, dict(qk_norm=False), dict(tie_embeddings=False),
                                     dict(n_kv_heads=4), dict(n_kv_heads=1)], ids=str)
@pytest.mark.parametrize("sharp", [1.0, 30.0])  # 30: scores so large that exp overflows
@torch.no_grad()
def test_the_decoder_says_what_the_model_says(tiny_model, changes, sharp):
    """TRAPS 6: the fast path joins matrices and multiplies norms into them; it could be another model."""
    model, text, new = tiny_model(**changes), draw_ids(7, seed=1), draw_ids(4, seed=9)
    for layer in model.layers:
        for p in (layer.self_attn.q_norm, layer.self_attn.k_norm) if model.config.qk_norm else ():
            p.weight.data *= sharp
    cache = KVCache(model, 1, 11)
    model.hidden_states(text[None], cache=cache)
    decoder = Decoder(model, cache)
    for place in range(4):
        whole = model(torch.cat([text, new[:place + 1]])[None])[0, -1]  # (V,)
        assert_close(torch.from_numpy(decoder.step(new[place])), whole, atol=3e-5)


@torch.no_grad()
def test_generate_equals_reading_everything_again(tiny_model):
    """A wrong cache, last column or next position would write another text than greedy decoding without a cache."""
    model = tiny_model()
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(20):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
        assert generate(model, [prompt], 20) == [ids[len(prompt):]]


@pytest.mark.parametrize("sampling", [{}, dict(temperature=0.7, top_p=1e-6)], ids=str)
def test_a_batch_is_generated_as_one_by_one(tiny_model, sampling):
    """If left padding is visible or shifts positions, the answers to short prompts in a batch change."""
    model = tiny_model(n_kv_heads=1)
    one_by_one = [generate(model, [p], 24, **sampling)[0] for p in PROMPTS]
    assert generate(model, PROMPTS, 24, **sampling) == one_by_one
    assert len({tuple(row) for row in one_by_one}) == 4  # equal rows would prove little


def test_nothing_after_the_end_counts(tiny_model, monkeypatch):
    """A batch would cost max_new_tokens steps, or rows would lose their keys or padding when another one leaves."""
    model, sizes = tiny_model(), []
    free = generate(model, PROMPTS, 24)
    stops = {free[0][3], free[1][10], free[2][5], free[3][7]}
    real = model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda ids, **more: (sizes.append(len(ids)), real(ids, **more))[1])
    cut = generate(model, PROMPTS, 24, stops)
    for row, whole in zip(cut, free):
        ends = [i for i, id in enumerate(whole) if id in stops]
        assert row == (whole[:ends[0] + 1] if ends else whole)
    assert len(cut[0]) <= 4 and cut[0][-1] in stops
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) > 1  # finished rows have left
    assert len(sizes) == max(map(len, cut)) < 24  # also if they went on after their stop id


def test_generation_stops_at_the_context(tiny_model):
    """Beyond the context there are no positions: one token more would fail in the middle of an answer."""
    model = tiny_model(max_seq_len=16)
    assert [len(row) for row in generate(model, PROMPTS, 1000)] == [16 - len(p) for p in PROMPTS]
    assert len(generate(model, [list(range(15))], 1000)[0]) == 1
    assert generate(model, PROMPTS, 0) == [[], [], [], []] and generate(model, [], 5) == []
    for prompts in ([[1], []], [list(range(16))], [[1], list(range(17))]):  # empty, or no place left
        with pytest.raises(ValueError):
            generate(model, prompts, 4)


def test_generation_leaves_no_graph(tiny_model, monkeypatch):
    """With gradients on, the cache keeps the graph of every step, so memory grows with the text."""
    model, modes = tiny_model(), []
    for owner, name in ((Decoder, "step"), (model, "hidden_states")):
        monkeypatch.setattr(owner, name, lambda *a, real=getattr(owner, name), **k: (
            modes.append(torch.is_grad_enabled()), real(*a, **k))[1])
    generate(model, PROMPTS[:1], 3)
    assert modes == [False] * 3


def test_generation_runs_under_bf16_autocast(tiny_model):
    """Under autocast, queries, keys and cache may have different dtypes, which attention refuses."""
    with torch.autocast("cpu", torch.bfloat16):
        rows = generate(tiny_model(), PROMPTS, 5)
    assert [len(r) for r in rows] == [5] * 4


LOGITS = torch.tensor([1.5, -0.5, 2.0, 0.0, 1.0, -3.0, 0.5])


def test_greedy_is_the_argmax():
    """HTTP clients send temperature 0, or a top_p of (almost) 0: both must give the likeliest token."""
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    for temperature, top_p in ((0, 1.0), (0.0, 0.5), (2.0, 1e-9), (1.0, 0.0)):
        assert torch.equal(sample(logits, temperature, top_p), logits.argmax(-1))


def nucleus(p, top_p):
    """Holtzman et al.: p (V,) -> ids of the fewest likeliest tokens with a total of at least top_p."""
    order = p.argsort(descending=True)
    return order[:1 + (p[order].cumsum(0)[:-1] < top_p).sum()]  # a token is in if those before it are too few


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_top_p_draws_from_the_nucleus_in_proportion(top_p, temperature):
    """The set must include the token that crosses top_p, and none after it. If top_p is 1, it is the softmax."""
    whole = (LOGITS.double() / temperature).softmax(-1)
    kept = nucleus(whole, top_p)
    expected = 20_000 * whole[kept] / whole[kept].sum()
    tokens = sample(LOGITS.expand(20_000, -1), temperature, top_p, torch.Generator().manual_seed(0))
    counts = torch.bincount(tokens, minlength=7).double()
    assert counts[kept].sum() == 20_000 and (counts[kept] > 0).all()
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 27.9  # chi-square, p = 1e-4, 6 degrees
