"""Claims about optim.py: the schedule, Muon compared with PyTorch's, each parameter once."""
import math

import pytest
import torch

from optim import Muon, get_lr, make_optimizers, orthogonalize


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_learning_rate_equals_hand_computed_values():
    """An off-by-one in the warmup, or a cosine that ends too early or too late."""
    for step, expected in [(0, 0.1), (4, 0.5), (9, 1.0),  # step 0 is not lost: its rate is above 0
                           (10, 1.0), (35, 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2),  # a quarter of the cosine
                           (60, 0.6), (110, 0.2), (500, 0.2)]:  # half way: the mean of 1 and .2
        rate = get_lr(step, steps=110, lr=1.0, warmup=10, min_lr=0.2)
        assert rate == pytest.approx(expected, abs=1e-12)
    assert get_lr(0, 10, 1.0, 0) == 1.0 == get_lr(0, 1, 1.0, 1)  # no warmup; only warmup


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (32, 64), (5, 7), (1, 9)], ids=str)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_orthogonalize_makes_every_singular_value_about_one_and_keeps_the_vectors(shape, scale):
    """About U V^T of the SVD. Without the normalisation it diverges; with too few steps rare directions stay short."""
    m = scale * random_matrix(*shape).double()
    u, _, vh = torch.linalg.svd(m, full_matrices=False)
    inner = u.T @ orthogonalize(m[None])[0] @ vh.T  # diagonal, all about 1
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-10
    assert 0.6 < inner.diagonal().min() and inner.diagonal().max() < 1.3


SHAPES = [(24, 24), (24, 48), (48, 24), (24, 24), (12, 24)]  # two of one shape form a stack


def test_muon_equals_pytorchs_muon():
    """A mistake in momentum, Nesterov, scale, decay or order, or one norm for a stack. PyTorch's is in bfloat16."""
    ours = [torch.nn.Parameter(random_matrix(*s, seed=i)) for i, s in enumerate(SHAPES)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    optimizers = (Muon(ours, lr=0.05, weight_decay=0.3),
                  torch.optim.Muon(theirs, lr=0.05, weight_decay=0.3, momentum=0.95, nesterov=True,
                                   adjust_lr_fn="match_rms_adamw"))
    for step in range(6):
        before = [p.detach().clone() for p in ours + theirs]
        for i, pair in enumerate(zip(ours, theirs)):
            for p in pair:
                p.grad = random_matrix(*p.shape, seed=100 * step + i) * 10.0 ** (i - 2)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 0.05 / (step + 1)  # a schedule changes both
            optimizer.step()
        moved = [p - b for p, b in zip(ours + theirs, before)]
        for a, b in zip(moved[:len(ours)], moved[len(ours):]):
            assert (a - b).norm() <= 3e-2 * b.norm()


def test_muon_leaves_out_what_has_no_gradient_and_does_not_move_what_has_a_zero_one():
    """Weight decay would shrink a frozen matrix, or a gradient of 0 would become 0 / 0 = NaN."""
    used, unused, still = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(3))
    used.grad, still.grad = random_matrix(4, 4), torch.zeros(4, 4)
    Muon([used, unused, still], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(unused, torch.ones(4, 4)) and not torch.equal(used, torch.ones(4, 4))
    torch.testing.assert_close(still.detach(), torch.full((4, 4), 0.95))  # the decay only


@pytest.mark.parametrize("kind", ["muon", "adamw"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_has_exactly_one_optimizer_and_a_frozen_one_none(tiny_model, kind, tied):
    """Updated twice, or never, a weight spoils the run. Muon would move rare tokens as far as frequent ones."""
    model = tiny_model(tie_embeddings=tied)
    for trained in (True, False):
        model.embed_tokens.requires_grad_(trained)
        optimizers = make_optimizers(model, kind, 1e-3, 0.1)
        held = [id(p) for o in optimizers for g in o.param_groups for p in g["params"]]
        assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert [type(o).__name__ for o in optimizers] == ["AdamW", "Muon"][:1 + (kind == "muon")]
    matrices = {id(p) for name, p in model.layers.named_parameters() if "_proj" in name}  # all others are norms
    assert len(matrices) == 7 * model.config.n_layers
    assert kind == "adamw" or {id(p) for p in optimizers[1].param_groups[0]["params"]} == matrices


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_weight_decay_shrinks_matrices_and_leaves_norms(tiny_model, kind):
    """Weight decay on a norm weight would turn off its layer. With gradients of 0 only the decay acts."""
    model = tiny_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    for optimizer in make_optimizers(model, kind, lr=0.1, weight_decay=0.5):
        optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] if p.dim() == 1 else before[name] * (1 - 0.1 * 0.5)
        torch.testing.assert_close(p.detach(), expected)
