"""Claims about model.py: the formulas, the mask, the positions, the cache and the sampling."""
import cmath
import math
import re

import pytest
import torch

import model as model_module
from decoding import Decoder, KVCache, generate, sample, stream
from losses import cross_entropy
from model import (SIZES, ModelConfig, RMSNorm, SwiGLU, Transformer, build, rope_table,
                   rotate)
from optim import make_optimizers

V = 300  # of tiny_model


def draw_ids(*shape, vocab_size=V, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


# --- an independent implementation, one number at a time ------------------------------------------

def rms_norm_oracle(x, weight, eps):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) * weight


def swiglu_oracle(x, mlp):
    gate = x @ mlp.gate_proj.weight.T
    return (gate / (1 + torch.exp(-gate)) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


def rope_oracle(x, position, theta):
    """RoPE as in the paper: pairs of channels as complex numbers, times e^(i * position * f)."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        z = complex(x[i], x[i + half]) * cmath.exp(1j * position * theta ** (-2 * i / len(x)))
        out[i], out[i + half] = z.real, z.imag
    return out


def attention_oracle(x, attn, c, document):
    """(T, D) -> (T, D): a loop over heads, queries and keys, in float64."""
    T = len(x)
    out = torch.zeros(T, c.n_heads, c.head_dim, dtype=x.dtype)
    for h in range(c.n_heads):
        g = h * c.n_kv_heads // c.n_heads  # the key/value head that this query head shares
        rows, shared = [slice(i * c.head_dim, (i + 1) * c.head_dim) for i in (h, g)]
        q, k = x @ attn.q_proj.weight[rows].T, x @ attn.k_proj.weight[shared].T  # (T, C)
        v = x @ attn.v_proj.weight[shared].T
        if c.qk_norm:
            q = rms_norm_oracle(q, attn.q_norm.weight, c.norm_eps)
            k = rms_norm_oracle(k, attn.k_norm.weight, c.norm_eps)
        q = [rope_oracle(q[t], t, c.rope_theta) for t in range(T)]
        k = [rope_oracle(k[t], t, c.rope_theta) for t in range(T)]
        for t in range(T):
            seen = [s for s in range(t + 1) if document[s] == document[t]]
            scores = [math.exp(float(q[t] @ k[s]) / math.sqrt(c.head_dim)) for s in seen]
            out[t, h] = sum(w / sum(scores) * v[s] for w, s in zip(scores, seen))
    return out.flatten(1) @ attn.o_proj.weight.T


@torch.no_grad()
def logits_oracle(model, ids, document):
    """The logits (T, V) of one window, by the formulas at the top of model.py."""
    c, x = model.config, model.embed_tokens.weight[ids]
    for layer in model.layers:
        normed = rms_norm_oracle(x, layer.input_layernorm.weight, c.norm_eps)
        x = x + attention_oracle(normed, layer.self_attn, c, document)
        x = x + swiglu_oracle(rms_norm_oracle(x, layer.post_attention_layernorm.weight, c.norm_eps),
                              layer.mlp)
    return rms_norm_oracle(x, model.norm.weight, c.norm_eps) @ model.lm_head.weight.T


@pytest.mark.parametrize("changes", [
    {}, dict(n_kv_heads=1), dict(n_kv_heads=4), dict(qk_norm=False), dict(tie_embeddings=False),
    dict(rope_theta=100.0, norm_eps=1e-2)], ids=str)
@torch.no_grad()
def test_logits_equal_the_formulas(tiny_model, changes):
    """A head that reads another group's keys, a scale or a norm too much: it trains, only worse."""
    model = tiny_model(**changes).double()
    ids, document = draw_ids(1, 7), torch.tensor([[1, 1, 1, 1, 2, 2, 2]])
    assert_close(model(ids)[0], logits_oracle(model, ids[0], [1] * 7), atol=1e-6)
    expected = logits_oracle(model, ids[0], document[0].tolist())
    assert_close(model(ids, document)[0], expected, atol=1e-6)


def test_rms_norm_and_swiglu_are_their_formulas():
    """RMSNorm has no mean to subtract; SwiGLU gates with silu, not with sigmoid or gelu."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    norm = RMSNorm(7, 1e-6).double()
    torch.nn.init.normal_(norm.weight)
    assert_close(norm(x), rms_norm_oracle(x, norm.weight, 1e-6), atol=1e-12)
    mlp = SwiGLU(ModelConfig(dim=7, ffn_dim=5)).double()
    assert_close(mlp(x), swiglu_oracle(x, mlp), atol=1e-12)
    ones = norm(torch.full((1, 7), 3.0).double())
    assert_close(ones, norm.weight[None], atol=1e-6)  # by hand: 3 / sqrt(mean of 9) = 1


# --- shape, names, size ---------------------------------------------------------------------------

def test_parameter_names_are_those_of_hugging_face(tiny_model):
    """Llama and Qwen3 checkpoints are read by name; a renamed one is a missing one."""
    block = {"input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
             "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    names = {f"layers.0.{n}.weight" for n in block} | {"embed_tokens.weight", "norm.weight",
                                                      "lm_head.weight"}
    assert set(tiny_model(n_layers=1).state_dict()) == names
    llama = {n for n in names if "q_norm" not in n and "k_norm" not in n}
    assert set(tiny_model(n_layers=1, qk_norm=False).state_dict()) == llama


def parameters_by_hand(c):
    attention = 2 * c.dim * c.n_heads * c.head_dim + 2 * c.dim * c.n_kv_heads * c.head_dim
    block = attention + 3 * c.dim * c.ffn_dim + 2 * c.dim + 2 * c.head_dim
    return c.vocab_size * c.dim * (1 if c.tie_embeddings else 2) + c.n_layers * block + c.dim


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_parameters_of_its_name(size, monkeypatch):
    """A "2m" of 3.1 M parameters makes every comparison by size wrong."""
    for draw in ("normal_", "uniform_"):  # shapes alone: memory that nobody writes costs nothing
        monkeypatch.setattr(torch.Tensor, draw, lambda self, *args, **kwargs: self)
    model = build(size, 1024)
    count = model.num_parameters()
    assert count == parameters_by_hand(model.config)
    assert count == pytest.approx(float(size.split("m")[0]) * 1e6, rel=0.15)


def test_tied_embeddings_are_one_tensor_counted_once(tiny_model):
    """Two tensors drift apart in training; counted twice, a small model looks 30 % larger."""
    tied, untied = tiny_model(), tiny_model(tie_embeddings=False)
    assert tied.lm_head.weight.data_ptr() == tied.embed_tokens.weight.data_ptr()
    assert len([n for n, _ in tied.named_parameters() if "lm_head" in n or "embed" in n]) == 1
    assert untied.lm_head.weight.data_ptr() != untied.embed_tokens.weight.data_ptr()
    assert untied.num_parameters() - tied.num_parameters() == V * tied.config.dim


def test_tied_embeddings_stay_tied_after_loading(tiny_model):
    """load_state_dict copies into both names; a copy that replaced one would untie them."""
    model = tiny_model(seed=1)
    model.load_state_dict(tiny_model(seed=2).state_dict(), strict=True)
    assert model.lm_head.weight is model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tiny_model(seed=2).embed_tokens.weight)


def test_a_checkpoint_knows_its_shape(tiny_model):
    """TRAPS 26: sizes typed again at each stage; here the saved config rebuilds the very model."""
    model = tiny_model(n_kv_heads=1, qk_norm=False, max_seq_len=16)
    config = vars(model.config)
    assert all(type(v) in (int, float, bool) for v in config.values())  # weights_only=True reads it
    again = Transformer(ModelConfig(**config))
    again.load_state_dict(model.state_dict(), strict=True)
    ids = draw_ids(2, 9)
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("size", ["0.1m", "0.2m", "0.4m", "0.9m", "2m", "5m"])
@torch.no_grad()
def test_loss_at_init_is_guessing(size):
    """Large initial logits cost the first hundred steps; tied, a token's own is the largest."""
    torch.manual_seed(0)
    model, ids = build(size, 1024, max_seq_len=64), draw_ids(8, 64, vocab_size=1024)
    logits, targets = model(ids), draw_ids(8, 64, vocab_size=1024, seed=1)
    assert cross_entropy(logits, targets).mean().item() == pytest.approx(math.log(1024), abs=0.05)
    assert logits.softmax(-1).max() < 0.02


def test_the_same_seed_gives_the_same_weights():
    """A run that cannot be repeated cannot be compared."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(build("0.1m", V))
    for a, b in zip(*(m.parameters() for m in models)):
        assert torch.equal(a, b)


# --- positions ------------------------------------------------------------------------------------

def test_rope_turns_channel_i_with_i_plus_half():
    """The other pairing (2i with 2i + 1) has the same shapes and reads Llama's weights as noise."""
    cos, sin = rope_table(4, 8, 10_000.0)
    x = torch.zeros(1, 1, 4, 8)
    x[..., 0] = 1.0
    turned = rotate(x, cos, sin)[0, 0]
    for t in range(4):
        assert_close(turned[t], torch.tensor([math.cos(t), 0, 0, 0, math.sin(t), 0, 0, 0]))
    x = torch.zeros(1, 1, 4, 8)
    x[..., 7] = 1.0  # pair 3 of 4: frequency 10,000^(-6/8) = 0.001
    assert_close(rotate(x, cos, sin)[0, 0, 2],
                 torch.tensor([0, 0, 0, -math.sin(0.002), 0, 0, 0, math.cos(0.002)]))


def test_rope_depends_on_the_distance_alone():
    """What lets packed documents and left padding do without positions of their own."""
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    cos, sin = (t.double() for t in rope_table(64, 8, 10_000.0))

    def score(i, j):
        at = lambda x, t: rotate(x, cos[t:t + 1], sin[t:t + 1])
        return (at(q, i) * at(k, j)).sum().item()

    for distance in (0, 1, 7, 30):
        scores = [score(j + distance, j) for j in (0, 1, 20, 33)]
        assert scores == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert abs(score(7, 0) - score(0, 7)) > 1e-3  # the sign of the distance matters


@torch.no_grad()
def test_left_padding_shifts_nothing(tiny_model):
    """The same text ten columns further right, behind another document, has the same logits."""
    model, ids = tiny_model(), draw_ids(1, 9)
    moved = torch.cat([draw_ids(1, 10, seed=1), ids], 1)
    document = torch.tensor([[1] * 10 + [2] * 9])
    assert_close(model(moved, document)[:, 10:], model(ids))


# --- masks ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_no_token_sees_a_later_one(tiny_model, packed):
    """A leak from the future makes the training loss beautiful and generation useless."""
    model, ids = tiny_model(), draw_ids(1, 12)
    document = torch.tensor([[1] * 5 + [2] * 7]) if packed else None
    before = model(ids, document)
    for t in range(12):
        changed = ids.clone()
        changed[0, t] = (ids[0, t] + 1) % V
        after = model(changed, document)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t] - before[:, t]).abs().max() > 1e-2
        end = 5 if packed and t < 5 else 12  # and every later token of its document does see it
        assert ((after - before).abs().amax(-1)[0, t:end] > 1e-6).all()


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@torch.no_grad()
def test_packed_documents_equal_one_by_one(tiny_model, n_kv_heads):
    """Attention across documents is context that is not there when the model is asked."""
    model = tiny_model(n_kv_heads=n_kv_heads)
    texts = [draw_ids(n, seed=n) for n in (5, 3, 8, 1)]
    ids = torch.cat([*texts, torch.zeros(4, dtype=torch.int64)])[None]  # (1, 21), four of padding
    numbers = torch.tensor([5, 6, 7, 8, 0]).repeat_interleave(torch.tensor([5, 3, 8, 1, 4]))[None]
    logits = model(ids, numbers)[0]
    assert logits.isfinite().all()  # padding, too: its NaN would reach the gradient
    for text, packed in zip(texts, logits.split([5, 3, 8, 1, 4])):
        assert_close(packed, model(text[None])[0])


def test_packed_documents_have_the_gradients_of_one_by_one(tiny_model):
    """TRAPS 8: padding in a window must not reach a gradient either."""
    model = tiny_model()
    texts = [draw_ids(n, seed=n) for n in (5, 8)]
    for text in texts:
        cross_entropy(model(text[None, :-1]), text[None, 1:]).sum().backward()
    apart = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    x = torch.cat([texts[0][:-1], texts[1][:-1], torch.zeros(6, dtype=torch.int64)])[None]
    y = torch.cat([texts[0][1:], texts[1][1:]])
    document = torch.tensor([[1] * 4 + [2] * 7 + [0] * 6])
    cross_entropy(model(x, document, document > 0), y).sum().backward()
    for p, grad in zip(model.parameters(), apart):
        assert (p.grad - grad).norm() <= 1e-5 * grad.norm()


@torch.no_grad()
def test_keep_equals_selecting_afterwards(tiny_model):
    """TRAPS 7: an order of its own would pair the teacher's logits with other tokens."""
    model, ids = tiny_model(), draw_ids(2, 6)
    document = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]])
    keep = torch.tensor([[0, 1, 1, 0, 1, 0], [1, 0, 0, 0, 0, 1]]).bool()
    assert_close(model(ids, document, keep), model(ids, document)[keep])
    by_hand = [(0, 1), (0, 2), (0, 4), (1, 0), (1, 5)]  # reading order
    everything = model(ids, document)
    assert_close(model(ids, document, keep), torch.stack([everything[b, t] for b, t in by_hand]))
    assert model(ids, document, torch.zeros_like(keep)).shape == (0, V)


def test_a_window_longer_than_the_context_is_refused(tiny_model):
    """Positions beyond the table would be cut off or wrap around without a word."""
    model = tiny_model(max_seq_len=8)
    assert model(draw_ids(1, 8)).shape == (1, 8, V)
    with pytest.raises(ValueError, match="9 tokens.*8"):
        model(draw_ids(1, 9))


# --- the cache ------------------------------------------------------------------------------------

@pytest.mark.parametrize("blocks", [[1] * 12, [12], [5, 1, 4, 2], [1, 11], [11, 1]], ids=str)
@torch.no_grad()
def test_reading_in_pieces_equals_reading_at_once(tiny_model, blocks):
    """A wrong position or mask in the cache: the first tokens are right, the rest is babble."""
    model, ids = tiny_model(n_layers=3), draw_ids(2, 12)
    cache, hidden = KVCache(model, 2, 12), []
    for piece in ids.split(blocks, dim=1):
        hidden.append(model.hidden_states(piece, cache=cache))
    assert cache.length == 12
    assert_close(model.lm_head(torch.cat(hidden, 1)), model(ids))


@pytest.mark.parametrize("blocks", [[12], [7, 1, 4], [2, 10], [1] * 12], ids=str)
@torch.no_grad()
def test_the_cache_hides_left_padding(tiny_model, blocks):
    """Rows of different lengths in one batch: padding that is seen changes the shorter ones."""
    model, lengths = tiny_model(), [12, 5, 1]
    texts = [draw_ids(n, seed=n) for n in lengths]
    ids = torch.stack([torch.cat([torch.zeros(12 - len(t), dtype=torch.int64), t]) for t in texts])
    cache = KVCache(model, 3, 12, padding=torch.tensor([12 - n for n in lengths]))
    hidden = torch.cat([model.hidden_states(p, cache=cache) for p in ids.split(blocks, dim=1)], 1)
    logits = model.lm_head(hidden)
    assert logits.isfinite().all()
    for row, text in zip(logits, texts):
        assert_close(row[12 - len(text):], model(text[None])[0])


# --- a student out of its teacher's layers --------------------------------------------------------

@torch.no_grad()
def test_a_student_of_some_blocks_is_the_teacher_without_the_others(tiny_model):
    """TRAPS 26: loaded by wrong names, some weights stay random and nobody is told."""
    teacher, ids = tiny_model(n_layers=5, tie_embeddings=False), draw_ids(2, 9)
    student = model_module.with_layers(teacher, [2, 5])
    assert student.config.n_layers == 2
    teacher.layers = torch.nn.ModuleList([teacher.layers[1], teacher.layers[4]])
    assert_close(student(ids), teacher(ids))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(student.parameters(), teacher.parameters()))
    whole = tiny_model(n_layers=3)
    assert_close(model_module.with_layers(whole, [1, 2, 3])(ids), whole(ids))


# --- generation -----------------------------------------------------------------------------------

def test_an_optimizer_step_changes_what_is_written(tiny_model):
    """Fused AdamW changes a parameter without counting it: one row would write with old weights."""
    model, ids = tiny_model(), draw_ids(2, 9)
    generate(model, PROMPTS[:1], 8)
    for optimizer in make_optimizers(model, "adamw", 0.05, 0.1):
        cross_entropy(model(ids), ids).sum().backward()
        optimizer.step()
    fresh = tiny_model(seed=5)
    fresh.load_state_dict(model.state_dict())
    assert generate(model, PROMPTS[:1], 8) == generate(fresh, PROMPTS[:1], 8)
    assert generate(model, PROMPTS[:1] * 2, 8) == generate(fresh, PROMPTS[:1], 8) * 2


def test_a_changed_weight_changes_what_is_written(tiny_model):
    """Joined weights that outlive a change write with the model of yesterday."""
    model, other = tiny_model(seed=0).requires_grad_(False), tiny_model(seed=1).requires_grad_(False)
    before = generate(model, PROMPTS, 6)
    model.load_state_dict(other.state_dict())
    assert generate(model, PROMPTS, 6) == generate(other, PROMPTS, 6) != before
    with torch.no_grad():
        model.embed_tokens.weight.mul_(-1)
    assert generate(model, PROMPTS, 6) != generate(other, PROMPTS, 6)
    model.load_state_dict(tiny_model(seed=0).state_dict())
    assert generate(model, PROMPTS, 6) == before


@pytest.mark.parametrize("changes", [{}, dict(qk_norm=False), dict(tie_embeddings=False),
                                     dict(n_heads=4, n_kv_heads=4), dict(n_heads=4, n_kv_heads=1)],
                         ids=str)
@pytest.mark.parametrize("sharp", [1.0, 30.0])  # the second: scores beyond what exp can take
@torch.no_grad()
def test_the_decoder_says_what_the_model_says(tiny_model, changes, sharp):
    """TRAPS 6: a fast path with folded norms and joined matrices may be another model."""
    model, text, new = tiny_model(**changes), draw_ids(7, seed=1), draw_ids(4, seed=9)
    for layer in model.layers:
        for p in (layer.self_attn.q_norm, layer.self_attn.k_norm) if model.config.qk_norm else ():
            p.weight.data *= sharp
    with torch.no_grad():
        for p in model.parameters():  # norm weights of 1 would hide that one is left out
            p.mul_(1 + 0.3 * torch.rand(p.shape, generator=torch.Generator().manual_seed(3)))
    cache = KVCache(model, 1, 11)
    model.hidden_states(text[None], cache=cache)
    decoder = Decoder(model, cache)
    for place in range(4):
        whole = model(torch.cat([text, new[:place + 1]])[None])[0, -1]  # (V,)
        assert_close(torch.from_numpy(decoder.step(new[place])), whole, atol=3e-5)


PROMPTS = [draw_ids(n, seed=seed).tolist() for seed, n in enumerate((9, 1, 4, 9))]


@torch.no_grad()
def greedy_oracle(model, prompt, count):
    """No cache: the whole text is read again for each token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt):]


def test_generate_equals_reading_everything_again(tiny_model):
    """The cache, the last column and the next position, all at once."""
    model = tiny_model()
    for prompt in PROMPTS:
        assert generate(model, [prompt], 20) == [greedy_oracle(model, prompt, 20)]


@pytest.mark.parametrize("changes", [{}, dict(qk_norm=False, n_kv_heads=1)], ids=str)
def test_the_model_itself_writes_what_the_decoder_writes(tiny_model, changes, monkeypatch):
    """Several rows, or a GPU: the model goes on with its cache, and must write the same."""
    model = tiny_model(**changes)
    before = generate(model, PROMPTS[:1], 24)
    assert before[0] == list(stream(model, PROMPTS[0], 24))
    monkeypatch.setattr(Decoder, "step", None)  # not to be called
    assert generate(model, [PROMPTS[0]] * 2, 24) == before * 2


@pytest.mark.parametrize("sampling", [
    dict(), dict(temperature=0.7, top_p=1e-6)], ids=str)
def test_a_batch_is_generated_as_one_by_one(tiny_model, sampling):
    """Padding on the left that is seen or shifts positions changes the answers of short prompts."""
    model = tiny_model(n_kv_heads=1)
    one_by_one = [generate(model, [p], 24, **sampling)[0] for p in PROMPTS]
    assert generate(model, PROMPTS, 24, **sampling) == one_by_one
    assert len({tuple(row) for row in one_by_one}) == 4  # or it proves little


@pytest.mark.parametrize("sampling", [
    dict(), dict(temperature=1.0), dict(temperature=1.3, top_p=0.8)], ids=str)
def test_stream_equals_generate(tiny_model, sampling):
    """What the chat shows and what the evaluation scores must be one thing."""
    model = tiny_model()
    again = lambda: dict(sampling, generator=torch.Generator().manual_seed(5))
    row = generate(model, PROMPTS[:1], 30, **again())[0]
    assert list(stream(model, PROMPTS[0], 30, **again())) == row
    stop = row[7]
    row = generate(model, PROMPTS[:1], 30, {stop}, **again())[0]
    assert list(stream(model, PROMPTS[0], 30, {stop}, **again())) == row
    assert row[-1] == stop and stop not in row[:-1]


def test_nothing_after_the_end_counts(tiny_model):
    """A finished row goes on being computed in its batch; those tokens are no answer."""
    model = tiny_model()
    free = generate(model, PROMPTS, 24)
    stops = {free[0][3], free[1][10]}
    cut = generate(model, PROMPTS, 24, stops)
    for row, whole in zip(cut, free):
        ends = [i for i, id in enumerate(whole) if id in stops]
        assert row == (whole[:ends[0] + 1] if ends else whole)
    assert len(cut[0]) <= 4 and cut[0][-1] in stops


def test_a_finished_batch_stops_computing(tiny_model, monkeypatch):
    """Without it every answer costs max_new_tokens steps."""
    model, calls = tiny_model(), []
    read = model.hidden_states
    monkeypatch.setattr(model, "hidden_states", lambda *a, **k: (calls.append(1), read(*a, **k))[1])
    first = greedy_oracle(model, PROMPTS[0], 1)
    calls.clear()
    assert generate(model, [PROMPTS[0], PROMPTS[0]], 50, set(first)) == [first, first]
    assert len(calls) == 1


def test_generation_stops_at_the_context(tiny_model):
    """One token more and the position table ends: an error in the middle of an answer."""
    model = tiny_model(max_seq_len=16)
    assert len(generate(model, [PROMPTS[0]], 1000)[0]) == 16 - len(PROMPTS[0])
    assert len(generate(model, [PROMPTS[1]], 1000)[0]) == 15
    assert len(list(stream(model, PROMPTS[2], 1000))) == 12
    assert [len(row) for row in generate(model, PROMPTS, 1000)] == [16 - len(p) for p in PROMPTS]
    assert len(generate(model, [list(range(15))], 1000)[0]) == 1


def test_nothing_asked_for_is_nothing_made(tiny_model):
    """0 new tokens or no prompt: edges of an evaluation, no errors."""
    assert generate(tiny_model(), PROMPTS, 0) == [[], [], [], []]
    assert generate(tiny_model(), [], 5) == []


@pytest.mark.parametrize("prompts", [[[]], [[1], []], [list(range(16))], [[1], list(range(17))]],
                         ids=lambda p: str([len(x) for x in p]))
def test_a_prompt_that_cannot_be_continued_is_refused(tiny_model, prompts):
    """An empty row has no last token, a full context no next one."""
    with pytest.raises(ValueError, match="15 fit the context"):
        generate(tiny_model(max_seq_len=16), prompts, 4)


def test_generation_leaves_no_graph(tiny_model, monkeypatch):
    """With gradients on, the cache keeps the graph of every step: memory grows with the text."""
    model, modes = tiny_model(), []
    read, step = model.hidden_states, Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda *a: (modes.append(torch.is_grad_enabled()), step(*a))[1])
    monkeypatch.setattr(model, "hidden_states", lambda *a, **k: (
        modes.append(torch.is_grad_enabled()), read(*a, **k))[1])
    generate(model, PROMPTS[:1], 3)
    for _ in stream(model, PROMPTS[0], 3):
        assert torch.is_grad_enabled()  # the caller's own mode, between two tokens
    assert modes == [False] * 6


def test_generation_runs_under_bf16_autocast(tiny_model):
    """Queries, keys and the cache may then have different dtypes, which attention refuses."""
    with torch.autocast("cpu", torch.bfloat16):
        rows = generate(tiny_model(), PROMPTS, 5)
    assert [len(r) for r in rows] == [5] * 4


# --- sampling -------------------------------------------------------------------------------------

def draws(logits, count=20_000, seed=0, **options):
    """How often each token is drawn: (V,) counts of one row of logits."""
    generator = torch.Generator().manual_seed(seed)
    tokens = sample(logits.expand(count, -1), generator=generator, **options)
    return torch.bincount(tokens, minlength=logits.shape[-1]).double()


def chi_square(counts, p):
    """Sum of (observed - expected)^2 / expected over the tokens that can be drawn."""
    assert counts[p == 0].sum() == 0
    expected = p * counts.sum()
    return ((counts - expected) ** 2 / expected)[p > 0].sum().item()


LOGITS = torch.tensor([1.5, -0.5, 2.0, 0.0, 1.0, -3.0, 0.5])
ORDER = [2, 0, 4, 6, 3, 1, 5]  # from the likeliest down


def test_greedy_is_the_argmax():
    """Temperature 0, or almost no mass: both mean the likeliest token."""
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    best = logits.argmax(-1)
    assert torch.equal(sample(logits, 0), best)
    assert torch.equal(sample(logits, 0.0, top_p=0.5), best)
    assert torch.equal(sample(logits, 2.0, top_p=1e-9), best)


def test_top_p_zero_is_greedy():
    """"The likeliest token always in it"; HTTP clients do send top_p = 0."""
    assert sample(LOGITS[None], 1.0, top_p=0.0).item() == 2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_are_the_softmax(temperature):
    """Sampling from another distribution than the model's (6 degrees of freedom, p 1e-4: 27.9)."""
    p = (LOGITS.double() / temperature).softmax(-1)
    assert chi_square(draws(LOGITS, temperature=temperature), p) < 27.9


def nucleus(p, top_p):
    """Holtzman et al.: the smallest set of likeliest tokens with at least that mass."""
    mass, kept = 0.0, []
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        if mass >= top_p and kept:
            break
        kept.append(i)
        mass += p[i].item()
    return kept


@pytest.mark.parametrize("top_p", [0.01, 0.3, 0.5, 0.8, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("temperature", [0.6, 1.5])
def test_top_p_draws_from_the_nucleus_in_proportion(top_p, temperature):
    """A set without the token that crosses the mass is too small; one more is not the smallest."""
    whole = (LOGITS.double() / temperature).softmax(-1)
    kept = nucleus(whole, top_p)
    p = torch.zeros(7, dtype=torch.float64)
    p[kept] = whole[kept]
    counts = draws(LOGITS, temperature=temperature, top_p=top_p)
    assert chi_square(counts, p / p.sum()) < 27.9
    assert (counts[p > 1e-3] > 0).all()


def test_each_row_has_its_own_limits():
    """The sorted order of one row applied to another."""
    logits = torch.stack([LOGITS, LOGITS.flip(0)])
    generator = torch.Generator().manual_seed(0)
    rows = torch.stack([sample(logits, 1.0, 0.8, generator) for _ in range(300)], 1).tolist()
    assert set(rows[0]) == set(ORDER[:3]) and set(rows[1]) == {6 - i for i in ORDER[:3]}


def test_the_generator_decides():
    """Without it a seed given on the command line does nothing."""
    logits = LOGITS.expand(40, -1)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    one, again, other = [sample(logits, 1.0, generator=g).tolist() for g in generators]
    assert one == again != other


# --- it learns ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tied", [True, False])
def test_one_batch_can_be_learned_by_heart(tiny_model, tied):
    """If not, something is detached, masked or shifted: the oldest smoke test of all."""
    model = tiny_model(fresh=True, n_layers=1, tie_embeddings=tied).train()
    ids, optimizers = draw_ids(2, 9), make_optimizers(model, "muon", 0.02, 0.0)
    for step in range(60):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.05
    assert generate(model, [ids[0, :1].tolist()], 8)[0] == ids[0, 1:].tolist()  # shift included


def test_every_parameter_gets_a_gradient(tiny_model):
    """A weight that is registered and not used counts as a parameter and never learns."""
    model = tiny_model(tie_embeddings=False)
    cross_entropy(model(draw_ids(2, 6)), draw_ids(2, 6, seed=1)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.norm() == 0] == []


def test_train_and_eval_mode_are_the_same(tiny_model):
    """TRAPS 19: no dropout anywhere, so a teacher in train mode is not noisy; keep it that way."""
    model, ids = tiny_model(), draw_ids(2, 6)
    assert torch.equal(model.train()(ids), model.eval()(ids))
    assert not [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]


def test_every_shape_letter_is_explained():
    """A reader meets (B, G, S, C) and must find it at the top of the file."""
    source = open(model_module.__file__, encoding="utf-8").read()
    shapes = re.findall(r"# \(([A-Z][A-Za-z0-9, /+]*)\)", source)
    used = set(re.findall(r"\b[A-Z]\b", " ".join(shapes)))
    explained = set(re.findall(r"\b([A-Z]) [a-z]", source.split('"""')[1]))
    assert used and used <= explained
