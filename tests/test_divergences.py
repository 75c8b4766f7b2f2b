"""Claims about the divergences of losses.py: six formulas, compared with plain Python and closed forms."""
import math

import pytest
import torch

from losses import DIVERGENCES, divergence, scale
from test_losses import B, T, V, draw

TEMPERATURES = (0.5, 1.0, 2.0, 4.0)

# (name, mix): every divergence; those with a parameter at several values, with its ends
CASES = [("forward_kl", 0), ("reverse_kl", 0), ("total_variation", 0), ("jsd", 0), ("jsd", 0.1),
         ("jsd", 0.5), ("jsd", 0.9), ("jsd", 1), ("skew_forward_kl", 0.1), ("skew_forward_kl", 0),
         ("skew_reverse_kl", 0.1), ("skew_reverse_kl", 0)]
every = pytest.mark.parametrize("name, mix", CASES)


def softmax_by_hand(row, temperature):
    """List of logits -> list of probabilities, in plain Python."""
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def kl_by_hand(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def by_hand(name, mix, q, p):
    """The definition: q (student) and p (teacher), two lists of probabilities -> nats."""
    m, n = ([mix * x + (1 - mix) * y for x, y in zip(*pair)] for pair in ((p, q), (q, p)))
    if name == "jsd" and 0 < mix < 1:
        return mix * kl_by_hand(p, m) + (1 - mix) * kl_by_hand(q, m)
    return {"forward_kl": lambda: kl_by_hand(p, q), "reverse_kl": lambda: kl_by_hand(q, p),
            "jsd": lambda: kl_by_hand(q, p) if mix else kl_by_hand(p, q),
            "skew_forward_kl": lambda: kl_by_hand(p, m),
            "skew_reverse_kl": lambda: kl_by_hand(q, n),
            "total_variation": lambda: sum(abs(a - b) for a, b in zip(p, q)) / 2}[name]()


def test_every_divergence_is_tested():
    """A new divergence without a case would pass all tests below."""
    assert {name for name, _ in CASES} == set(DIVERGENCES)


@every
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_values_equal_an_explicit_double_loop(name, mix, temperature):
    """TRAPS 1, 5: a mean over V or the other direction could have the right name."""
    student, teacher = draw(B, T, V, seed=1), draw(B, T, V, seed=2)
    values = divergence(name, student, teacher, temperature, mix)
    assert values.shape == (B, T)
    factor = temperature if name == "total_variation" else temperature ** 2
    for b in range(B):
        for t in range(T):
            q, p = (softmax_by_hand(z[b, t].tolist(), temperature) for z in (student, teacher))
            assert abs(values[b, t].item() - factor * by_hand(name, mix, q, p)) <= 1e-10
    flat = divergence(name, student.flatten(0, 1), teacher.flatten(0, 1), temperature, mix)
    assert torch.equal(flat, values.flatten())  # flat tokens and batches have the same losses


def closed_form(name, mix, q, p):
    """The gradient by the student's logits, without the factor tau: q (g - sum q g), g the derivative by q."""
    s, m = mix, (1 - mix) * p + mix * q if name == "skew_reverse_kl" else mix * p + (1 - mix) * q
    if name == "jsd" and s in (0, 1):
        name = "reverse_kl" if s else "forward_kl"
    g = {"forward_kl": -p / q, "reverse_kl": (q / p).log(), "jsd": (1 - s) * (q / m).log(),
         "skew_forward_kl": -(1 - s) * p / m, "skew_reverse_kl": (q / m).log() - s * q / m,
         "total_variation": (q - p).sign() / 2}[name]  # constants in g have no effect
    return q * (g - (q * g).sum(-1, keepdim=True))


@every
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradients_equal_the_closed_form(name, mix, temperature):
    """TRAPS 3, 21: a detach, a lost term through the mixture, or a missing tau gives a wrong gradient."""
    student, teacher = draw(B, T, V, seed=1).requires_grad_(), draw(B, T, V, seed=2)
    divergence(name, student, teacher, temperature, mix).sum().backward()
    q, p = ((z.detach() / temperature).softmax(-1) for z in (student, teacher))
    tau = 1.0 if name == "total_variation" else temperature  # tau * 1/tau, tau^2 * 1/tau
    torch.testing.assert_close(student.grad, tau * closed_form(name, mix, q, p), rtol=0, atol=1e-12)


@every
def test_gradients_agree_with_finite_differences(name, mix):
    """The closed form and the code could share one author's mistake."""
    student, teacher = draw(B, T, V, seed=1).requires_grad_(), draw(B, T, V, seed=2)
    both = student, teacher.requires_grad_()
    assert torch.autograd.gradcheck(lambda *logits: divergence(name, *logits, 2.0, mix), both)


@every
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_teacher_itself_costs_nothing_and_pulls_nowhere(name, mix, temperature):
    """TRAPS 6: if one side is rounded differently, equal distributions do not give 0."""
    student, teacher = draw(B, T, V, seed=2).requires_grad_(), draw(B, T, V, seed=2)
    values = divergence(name, student, teacher, temperature, mix)
    values.sum().backward()
    assert values.abs().max() <= 1e-14 and student.grad.abs().max() <= 1e-14


@every
@pytest.mark.parametrize("spread", [1e-4, 0.1, 1.0, 10.0])
def test_no_divergence_is_negative_beyond_rounding_and_none_is_clamped(name, mix, spread):
    """TRAPS 13: a negative value means that a side does not sum to 1. A clamp sets gradients to 0."""
    teacher = draw(1000, V, seed=3, scale=max(spread, 1.0), dtype=torch.float32)
    student = (teacher + draw(1000, V, seed=4, scale=spread, dtype=torch.float32)).requires_grad_()
    values = divergence(name, student, teacher, 1.0, mix)
    assert values.min() >= -1e-6
    values.sum().backward()
    assert (student.grad.norm(dim=-1) > 0).float().mean() > 0.99  # a clamp at 0 leaves about half


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_of_80_are_finite_and_near_float64(name, mix, dtype):
    """TRAPS 20: probabilities underflow to 0, their logarithm is minus infinity, and 0 * inf is NaN."""
    signs = draw(2, B, T, 1024, seed=6).sign()
    student, teacher = (80 * signs + draw(2, B, T, 1024, seed=7)).to(dtype)
    values = divergence(name, student.requires_grad_(), teacher, 1.0, mix)
    values.sum().backward()
    exact = divergence(name, student.detach().double(), teacher.double(), 1.0, mix)
    assert values.dtype == torch.float32 and exact.dtype == torch.float64
    assert values.isfinite().all() and student.grad.isfinite().all() and (values >= -1e-6).all()
    torch.testing.assert_close(values.detach().double(), exact, rtol=1e-5, atol=1e-5)


@every
def test_an_impossible_token_costs_nothing_where_nobody_believes_in_it(name, mix):
    """A masked token has a logit of minus infinity. 0 ln 0 must be 0, or NaN reaches the gradient."""
    student, teacher = draw(T, V, seed=1), draw(T, V, seed=2)
    student[:, 3] = teacher[:, 3] = -math.inf
    values = divergence(name, student.requires_grad_(), teacher, 2.0, mix)
    values.sum().backward()
    rest = [0, 1, 2, 4, 5, 6]
    expected = divergence(name, student.detach()[:, rest], teacher[:, rest], 2.0, mix)
    torch.testing.assert_close(values.detach(), expected)
    assert student.grad.isfinite().all() and (student.grad[:, 3] == 0).all()


@pytest.mark.parametrize("name", ["skew_forward_kl", "skew_reverse_kl", "jsd", "total_variation"])
def test_the_bounded_ones_are_bounded(name):
    """Distributions that share no token must cost -ln s (JSD: ln 2, total variation: 1), not infinity."""
    student, teacher = torch.tensor([0.0, -200.0]).double(), torch.tensor([-200.0, 0.0]).double()
    bound = {"jsd": math.log(2), "total_variation": 1.0}.get(name, -math.log(0.1))
    assert divergence(name, student, teacher).item() == pytest.approx(bound, rel=1e-12)
    assert divergence("forward_kl", student, teacher).item() == pytest.approx(200)


def test_the_ends_of_jsd_are_the_kls_by_definition_and_the_value_jumps():
    """GKD's formula is 0 if beta is 0 or 1. Without a special case, both would train nothing."""
    student, teacher = draw(T, V, seed=1), draw(T, V, seed=2)
    for end, near, other in ((0, 1e-6, "forward_kl"), (1, 1 - 1e-6, "reverse_kl")):
        whole = divergence("jsd", student, teacher, 1.0, end)
        torch.testing.assert_close(whole, divergence(other, student, teacher), rtol=0, atol=0)
        beside = divergence("jsd", student, teacher, 1.0, near)
        assert (beside < 1e-5 * whole).all()
        torch.testing.assert_close(beside / 1e-6, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradients_keep_their_size_at_every_temperature(name):
    """TRAPS 3: the KL family needs tau^2, total variation tau; the wrong one is off by a factor of 2 to 4."""
    norms = []
    for temperature in (1.0, 2.0, 4.0):
        student = draw(B, T, V, seed=1, scale=0.3).requires_grad_()
        divergence(name, student, draw(B, T, V, seed=2, scale=0.3), temperature).sum().backward()
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.2
    assert scale(name, 4.0) == (4.0 if name == "total_variation" else 16.0)


def test_a_mix_that_is_no_share_is_refused_and_each_has_its_own_default():
    """A beta of 0.5 is the usual JSD, but a skew of 0.5 would not be the loss of the papers."""
    student, teacher = draw(T, V, seed=1), draw(T, V, seed=2)
    for name, default in (("jsd", 0.5), ("skew_forward_kl", 0.1), ("skew_reverse_kl", 0.1)):
        torch.testing.assert_close(divergence(name, student, teacher),
                                   divergence(name, student, teacher, 1.0, default), rtol=0, atol=0)
        for wrong in (-0.1, 1.5, math.nan, 1.0)[:3 if name == "jsd" else 4]:
            with pytest.raises(ValueError, match="share"):
                divergence(name, student, teacher, 1.0, wrong)


def test_no_mass_costs_nothing_even_where_the_other_side_is_impossible():
    """A teacher's e^-150 is 0 in float32. Multiplied by ln 0 of a masked student, it would be NaN."""
    student, teacher = torch.tensor([0.0, -math.inf]), torch.tensor([0.0, -150.0])
    assert divergence("forward_kl", student, teacher) == 0
    assert divergence("forward_kl", student, torch.zeros(2)) == math.inf  # correct, so it is not hidden
