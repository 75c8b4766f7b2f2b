"""Claims about model.py: the formulas, the mask, the positions. The oracles go one number at a time."""
import cmath
import math

import pytest
import torch

from decoding import generate
from losses import cross_entropy
from model import SIZES, attend, build, with_layers
from optim import make_optimizers

V = 300  # of tiny_model


def draw_ids(*shape, vocab_size=V, seed=0):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def assert_close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def rms_norm_oracle(x, weight, eps):
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) * weight


def swiglu_oracle(x, mlp):
    gate = x @ mlp.gate_proj.weight.T
    return (gate / (1 + torch.exp(-gate)) * (x @ mlp.up_proj.weight.T)) @ mlp.down_proj.weight.T


def rope_oracle(x, position, theta):
    """RoPE as in the paper: channels i and i + half as one complex number that is turned."""
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
        x = x + swiglu_oracle(rms_norm_oracle(x, layer.post_attention_layernorm.weight, c.norm_eps), layer.mlp)
    return rms_norm_oracle(x, model.norm.weight, c.norm_eps) @ model.lm_head.weight.T


@pytest.mark.parametrize("changes", [
    {}, dict(n_kv_heads=1), dict(n_kv_heads=4), dict(qk_norm=False), dict(tie_embeddings=False),
    dict(rope_theta=100.0, norm_eps=1e-2)], ids=str)
@torch.no_grad()
def test_logits_equal_the_formulas(tiny_model, changes):
    """If a token sees later ones, the loss looks good. With a wrong key head, scale or norm, a model still trains."""
    model = tiny_model(**changes).double()
    ids, document = draw_ids(1, 7), torch.tensor([[1, 1, 1, 1, 2, 2, 2]])
    assert_close(model(ids)[0], logits_oracle(model, ids[0], [1] * 7), atol=1e-6)
    expected = logits_oracle(model, ids[0], document[0].tolist())
    assert_close(model(ids, document)[0], expected, atol=1e-6)


def test_parameter_names_are_those_of_hugging_face(tiny_model):
    """Weights of Llama and Qwen3 are found by name. A renamed parameter would not be found."""
    block = {"input_layernorm", "post_attention_layernorm", "self_attn.q_proj", "self_attn.k_proj",
             "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm", "self_attn.k_norm",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    names = {f"layers.0.{n}.weight" for n in block} | {"embed_tokens.weight", "norm.weight", "lm_head.weight"}
    assert set(tiny_model(n_layers=1).state_dict()) == names
    llama = {n for n in names if "q_norm" not in n and "k_norm" not in n}
    assert set(tiny_model(n_layers=1, qk_norm=False).state_dict()) == llama


@pytest.mark.parametrize("size", SIZES)
def test_a_size_has_the_parameters_of_its_name(size, monkeypatch):
    """A size "2m" with 3.1 M parameters would make every comparison by size wrong."""
    for draw in ("normal_", "uniform_"):  # only shapes matter; unwritten memory costs nothing
        monkeypatch.setattr(torch.Tensor, draw, lambda self, *args, **kwargs: self)
    model = build(size, 1024)
    c, count = model.config, model.num_parameters()
    attention = 2 * c.dim * (c.n_heads + c.n_kv_heads) * c.head_dim
    block = attention + 3 * c.dim * c.ffn_dim + 2 * c.dim + 2 * c.head_dim
    assert count == c.vocab_size * c.dim + c.n_layers * block + c.dim
    assert count == pytest.approx(float(size.split("m")[0]) * 1e6, rel=0.15)


def test_tied_embeddings_are_one_tensor_counted_once_and_stay_tied_after_loading(tiny_model):
    """Two tensors would drift apart in training. Counted twice, a small model looks 30 % larger."""
    tied, untied = tiny_model(seed=1), tiny_model(tie_embeddings=False)
    tied.load_state_dict(tiny_model(seed=2).state_dict(), strict=True)
    assert tied.lm_head.weight is tied.embed_tokens.weight
    assert torch.equal(tied.lm_head.weight, tiny_model(seed=2).embed_tokens.weight)
    assert untied.num_parameters() - tied.num_parameters() == V * tied.config.dim


@pytest.mark.parametrize("size", ["0.1m", "0.4m", "2m"])
@torch.no_grad()
def test_loss_at_init_is_guessing(size):
    """Large logits at the start cost a hundred steps. With tied embeddings each token would predict itself."""
    torch.manual_seed(0)
    model, ids = build(size, 1024, max_seq_len=64), draw_ids(8, 64, vocab_size=1024)
    logits, targets = model(ids), draw_ids(8, 64, vocab_size=1024, seed=1)
    assert cross_entropy(logits, targets).mean().item() == pytest.approx(math.log(1024), abs=0.05)
    assert logits.softmax(-1).max() < 0.02


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@torch.no_grad()
def test_packed_documents_equal_one_by_one(tiny_model, n_kv_heads):
    """Attention across documents gives context that is missing in use. A place in the window must not change logits."""
    model = tiny_model(n_kv_heads=n_kv_heads)
    texts = [draw_ids(n, seed=n) for n in (5, 3, 8, 1)]
    ids = torch.cat([*texts, torch.zeros(4, dtype=torch.int64)])[None]  # (1, 21), four of padding
    numbers = torch.tensor([5, 6, 7, 8, 0]).repeat_interleave(torch.tensor([5, 3, 8, 1, 4]))[None]
    logits = model(ids, numbers)[0]
    assert logits.isfinite().all()  # padding, too: a NaN there would reach the gradient
    for text, packed in zip(texts, logits.split([5, 3, 8, 1, 4])):
        assert_close(packed, model(text[None])[0])


@pytest.mark.parametrize("heads", [(4, 2), (3, 3)], ids=str)
def test_attention_by_hand_is_the_kernel_forward_and_backward(heads, tiny_model):
    """In bf16 on a CPU the formula is computed step by step. A wrong head order or scale would be another model."""
    q, k, v = (torch.randn(2, h, 7, 8, dtype=torch.float64, requires_grad=True) for h in (*heads, heads[1]))
    visible = (torch.tensor([1, 1, 1, 2, 2, 3, 3])[:, None] == torch.tensor([1, 1, 1, 2, 2, 3, 3])).tril()
    found = []
    for mask in (visible, torch.zeros(7, 7, dtype=torch.float64).masked_fill(~visible, -torch.inf)):
        out = attend(q, k, v, mask)
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for kernel, by_hand in zip(*found):
        assert_close(by_hand, kernel, atol=1e-12)
    model, ids = tiny_model(), draw_ids(2, 9)
    for document in (None, torch.tensor([[1] * 5 + [2] * 4] * 2)):  # None: plain causal
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(ids, document)
        assert_close(rounded.float(), model(ids, document), atol=0.05 * model(ids, document).abs().max().item())


def test_keep_changes_no_logit_and_no_gradient(tiny_model):
    """A token that does not count is left out of the last MLP. It still is a key for the others."""
    model, ids = tiny_model(), torch.arange(40).view(2, 20)
    keep = ids % 3 == 1
    all_of_them, only_these = [
        [logits, *torch.autograd.grad(logits.square().mean(), [*model.parameters()])]
        for logits in (model(ids)[keep], model(ids, keep=keep))]
    assert_close(only_these, all_of_them)


def test_a_window_longer_than_the_context_is_refused(tiny_model):
    """Positions beyond the table of RoPE would be cut off or start again at 0, without an error."""
    model = tiny_model(max_seq_len=8)
    assert model(draw_ids(1, 8)).shape == (1, 8, V)
    with pytest.raises(ValueError):
        model(draw_ids(1, 9))


@torch.no_grad()
def test_a_student_of_some_blocks_is_the_teacher_without_the_others(tiny_model):
    """TRAPS 26: with wrong names, some weights are not loaded. They stay random, without an error."""
    teacher, ids = tiny_model(n_layers=5, tie_embeddings=False), draw_ids(2, 9)
    student = with_layers(teacher, [2, 5])
    assert student.config.n_layers == 2
    teacher.layers = torch.nn.ModuleList([teacher.layers[1], teacher.layers[4]])
    assert_close(student(ids), teacher(ids))
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(student.parameters(), teacher.parameters()))


@pytest.mark.parametrize("tied", [True, False])
def test_one_batch_can_be_learned_by_heart(tiny_model, tied):
    """If a model cannot memorise one batch, something is detached, masked or shifted by mistake."""
    model = tiny_model(fresh=True, n_layers=1, tie_embeddings=tied).train()
    ids, optimizers = draw_ids(2, 9), make_optimizers(model, "muon", 0.02, 0.0)
    for step in range(60):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:]).mean()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert loss.item() < 0.05
    assert generate(model, [ids[0, :1].tolist()], 8)[0] == ids[0, 1:].tolist()  # a wrong shift would show here


def test_every_parameter_gets_a_gradient_and_train_mode_is_eval_mode(tiny_model):
    """A registered weight that is not used is never trained. TRAPS 19: dropout would make a teacher noisy."""
    model, ids = tiny_model(tie_embeddings=False), draw_ids(2, 6)
    cross_entropy(model(ids), draw_ids(2, 6, seed=1)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.norm() == 0] == []
    assert torch.equal(model.train()(ids), model.eval()(ids))
