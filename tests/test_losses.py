"""Claims about losses.py: values and gradients are right, and nothing is divided twice."""
import math

import pytest
import torch
from torch.nn import functional as F

from losses import DIVERGENCES, cross_entropy, divergence, log_softmax, total

B, T, V = 2, 3, 7


def draw(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def draw_targets(seed=0):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def test_cross_entropy_is_pytorchs_and_its_gradient_is_p_minus_onehot():
    """TRAPS 1: a mean over V or B inside the loss makes it too small, and nobody notices."""
    targets, student = draw_targets(), draw(B, T, V, seed=1).requires_grad_()
    values = cross_entropy(student, targets)
    theirs = F.cross_entropy(student.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(values, theirs, rtol=0, atol=1e-12)
    values.sum().backward()
    expected = student.detach().softmax(-1) - F.one_hot(targets, V)
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)
    flat = cross_entropy(student.flatten(0, 1), targets.flatten())
    assert torch.equal(flat, values.flatten())  # flat tokens and batches have the same losses


def test_forward_kl_is_the_teachers_expectation():
    """TRAPS 5: with the arguments swapped it is reverse KL, another objective (mode seeking)."""
    p, q = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.75]).double().log()
    forward = divergence("forward_kl", student_logits=q, teacher_logits=p).item()
    assert forward == pytest.approx(math.log(4 / 3) / 2)
    swapped = divergence("forward_kl", student_logits=p, teacher_logits=q).item()
    assert swapped == pytest.approx(math.log(27 / 16) / 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_half_precision_logits_lose_nothing_in_the_loss(dtype, temperature):
    """TRAPS 20: a softmax in bf16 rounds each probability to 8 bits."""
    student = (80 * draw(B, T, 1024, seed=6).sign() + draw(B, T, 1024, seed=7)).to(dtype)
    targets = student.argmin(-1)
    values, exact = cross_entropy(student, targets), cross_entropy(student.double(), targets)
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)
    mass = log_softmax(student / 40, temperature).exp().sum(-1)  # with 8 bits each, 1,024 do not sum to 1
    torch.testing.assert_close(mass, torch.ones(B, T), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [(B, T, V + 1), (B, T, 1), (1, T, V), (T, V), (B, T + 1, V)])
def test_different_vocabularies_or_shapes_are_refused(wrong):
    """TRAPS 18: padding, cutting or broadcasting logits silently changes the distribution."""
    for name in DIVERGENCES:
        with pytest.raises(ValueError) as error:
            divergence(name, draw(B, T, V, seed=1), torch.zeros(wrong).double())
        assert str((B, T, V)) in str(error.value) and str(wrong) in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_total_is_the_weighted_sum_and_uncounted_tokens_may_hold_anything(bad):
    """TRAPS 9: 0 * NaN is NaN, in the sum and all gradients. Weights are no mask: a tag with weight 2 counts twice."""
    values = torch.tensor([[1.0, bad, 2.0]], requires_grad=True)
    loss = total(values, torch.tensor([[0.5, 0.0, 2.0]]))
    loss.backward()
    assert loss.item() == 4.5 and values.grad.tolist() == [[0.5, 0.0, 2.0]]


def test_an_infinite_uncounted_cross_entropy_leaves_finite_gradients():
    """TRAPS 9: a label of padding may have probability 0. Its gradient must be 0, not NaN."""
    logits = draw(B, T, V, dtype=torch.float32)
    logits[0, 1, 4] = -math.inf
    targets, weights = draw_targets(), torch.ones(B, T)
    targets[0, 1], weights[0, 1] = 4, 0.0
    logits.requires_grad_()
    loss = total(cross_entropy(logits, targets), weights)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()
    assert logits.grad[0, 1].abs().max() == 0 and logits.grad[0, 0].norm() > 0
