"""Claims about losses.py: values and gradients are right, and nothing is divided twice."""
import math

import pytest
import torch
from torch.nn import functional as F

from losses import DIVERGENCES, cross_entropy, divergence, forward_kl, log_softmax, total

B, T, V = 2, 3, 7
TEMPERATURES = (0.5, 1.0, 2.0, 4.0)


def draw(*shape, seed=0, scale=2.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


def draw_targets(seed=0):
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def student():
    return draw(B, T, V, seed=1)


@pytest.fixture
def teacher():
    return draw(B, T, V, seed=2)


def softmax_by_hand(row, temperature=1.0):
    """List of logits -> list of probabilities, in plain Python."""
    weights = [math.exp(z / temperature) for z in row]
    return [w / sum(weights) for w in weights]


def kl_by_hand(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q))


def test_cross_entropy_equals_an_explicit_double_loop(student):
    """TRAPS 1: a mean over V or B inside the loss makes it too small, and nobody notices."""
    targets = draw_targets()
    values = cross_entropy(student, targets)
    assert values.shape == (B, T)
    for b in range(B):
        for t in range(T):
            p = softmax_by_hand(student[b, t].tolist())
            assert abs(values[b, t].item() + math.log(p[targets[b, t]])) <= 1e-10


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_forward_kl_equals_an_explicit_double_loop(student, teacher, temperature):
    """TRAPS 1: `reduction="mean"` also divides by V. "batchmean" divides by B, not by the tokens."""
    values = forward_kl(student, teacher, temperature)
    assert values.shape == (B, T)
    for b in range(B):
        for t in range(T):
            p = softmax_by_hand(teacher[b, t].tolist(), temperature)
            q = softmax_by_hand(student[b, t].tolist(), temperature)
            assert abs(values[b, t].item() - temperature ** 2 * kl_by_hand(p, q)) <= 1e-10


def test_losses_equal_pytorchs_own(student, teacher):
    """We could make the same mistake in a formula and in its test. PyTorch's losses are independent."""
    targets = draw_targets()
    theirs = F.cross_entropy(student.transpose(1, 2), targets, reduction="none")
    torch.testing.assert_close(cross_entropy(student, targets), theirs, rtol=0, atol=1e-12)
    for temperature in TEMPERATURES:
        log_q = F.log_softmax(student / temperature, -1)
        log_p = F.log_softmax(teacher / temperature, -1)
        theirs = F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
        torch.testing.assert_close(forward_kl(student, teacher, temperature),
                                   temperature ** 2 * theirs, rtol=0, atol=1e-12)


def test_flat_tokens_have_the_same_losses_as_batches(student, teacher):
    """TRAPS 1: a loss that depends on B or T changes if it is given only the tokens that count."""
    targets = draw_targets()
    flat = cross_entropy(student.flatten(0, 1), targets.flatten())
    assert torch.equal(flat, cross_entropy(student, targets).flatten())
    flat = forward_kl(student.flatten(0, 1), teacher.flatten(0, 1), 2.0)
    assert torch.equal(flat, forward_kl(student, teacher, 2.0).flatten())


def test_forward_kl_is_the_teachers_expectation():
    """TRAPS 5: with the arguments swapped it is reverse KL, another objective (mode seeking).

    p = (1/2, 1/2), q = (1/4, 3/4): KL(p||q) = ln(4/3)/2 = .1438, KL(q||p) = ln(27/16)/4 = .1308.
    """
    p, q = torch.tensor([0.5, 0.5]).double().log(), torch.tensor([0.25, 0.75]).double().log()
    forward = forward_kl(student_logits=q, teacher_logits=p).item()
    assert forward == pytest.approx(math.log(4 / 3) / 2)
    swapped = forward_kl(student_logits=p, teacher_logits=q).item()
    assert swapped == pytest.approx(math.log(27 / 16) / 4)


def test_uniform_logits_cost_ln_v():
    """The self-check compares the first loss with ln V. A scaled loss would make that useless."""
    values = cross_entropy(torch.zeros(B, T, V), draw_targets())
    torch.testing.assert_close(values, torch.full((B, T), math.log(V)))


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_is_zero_where_the_student_is_the_teacher(teacher, temperature):
    """TRAPS 6: if only one side is scaled, shifted or rounded, equal logits do not give 0."""
    assert forward_kl(teacher, teacher, temperature).abs().max() == 0
    shifted = forward_kl(teacher + 3.0, teacher, temperature)  # a constant changes no probability
    assert shifted.abs().max() < 1e-12


# --- gradients ------------------------------------------------------------------------------------

def test_gradient_of_cross_entropy_is_p_minus_onehot(student):
    """The docstring and docs/equations.md state this formula. The code must not differ from it."""
    targets, student = draw_targets(), student.requires_grad_()
    cross_entropy(student, targets).sum().backward()
    expected = student.detach().softmax(-1) - F.one_hot(targets, V)
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_gradient_of_forward_kl_is_tau_times_q_minus_p(student, teacher, temperature):
    """TRAPS 3: if tau squared is missing or applied twice, the factor is not tau."""
    student.requires_grad_()
    forward_kl(student, teacher, temperature).sum().backward()
    q, p = (student.detach() / temperature).softmax(-1), (teacher / temperature).softmax(-1)
    torch.testing.assert_close(student.grad, temperature * (q - p), rtol=0, atol=1e-12)


def test_gradients_agree_with_finite_differences(student, teacher):
    """A detach in the wrong place leaves the value right and the gradient wrong (TRAPS 27)."""
    student.requires_grad_()
    targets = draw_targets()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, targets), student)
    assert torch.autograd.gradcheck(lambda z: forward_kl(z, teacher, 2.0), student)
    assert torch.autograd.gradcheck(lambda z: forward_kl(teacher, z, 2.0), student)  # by the teacher


def test_gradient_keeps_its_size_at_every_temperature():
    """TRAPS 3: without tau squared, alpha means something else at each temperature (factor 1/tau^2)."""
    norms = []
    for temperature in (1.0, 2.0, 4.0):
        student = draw(B, T, V, seed=1, scale=0.3).requires_grad_()
        forward_kl(student, draw(B, T, V, seed=2, scale=0.3), temperature).sum().backward()
        norms.append(student.grad.norm().item())
    assert max(norms) / min(norms) < 1.2


def test_kl_is_never_clamped():
    """TRAPS 13: clamp(min=0) turns a rounded -1e-9 into 0, and the token's gradient into 0, too."""
    teacher = draw(1000, V, seed=5, dtype=torch.float32)
    student = (teacher + draw(1000, V, seed=6, scale=1e-4, dtype=torch.float32)).requires_grad_()
    values = forward_kl(student, teacher)
    assert (values < 0).any()  # otherwise this test could not see a clamp
    values.sum().backward()
    assert (student.grad.norm(dim=-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_half_precision_logits_lose_nothing_in_the_loss(dtype, temperature):
    """TRAPS 20: a softmax in bf16 rounds each probability to 8 bits. A KL may be negative or NaN."""
    signs = draw(2, B, T, 1024, seed=6).sign()
    student, teacher = (80 * signs + draw(2, B, T, 1024, seed=7)).to(dtype)
    values = forward_kl(student, teacher, temperature)
    exact = forward_kl(student.double(), teacher.double(), temperature)
    assert values.dtype == torch.float32 and exact.dtype == torch.float64
    assert values.isfinite().all() and (values >= 0).all()
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)
    targets = student.argmin(-1)
    values, exact = cross_entropy(student, targets), cross_entropy(student.double(), targets)
    torch.testing.assert_close(values.double(), exact, rtol=1e-5, atol=1e-6)
    mass = log_softmax(student / 40, temperature).exp().sum(-1)  # with 8 bits each, 1,024 do not sum to 1
    torch.testing.assert_close(mass, torch.ones(B, T), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [(B, T, V + 1), (B, T, 1), (1, T, V), (T, V), (B, T + 1, V)])
def test_different_vocabularies_or_shapes_are_refused(student, wrong):
    """TRAPS 18: padding, cutting or broadcasting logits silently changes the distribution."""
    for name in DIVERGENCES:
        with pytest.raises(ValueError) as error:
            divergence(name, student, torch.zeros(wrong).double())
        assert str((B, T, V)) in str(error.value) and str(wrong) in str(error.value)


# --- weights and the one normaliser ---------------------------------------------------------------

def test_total_is_the_weighted_sum():
    """If weights were only a mask, a tag with weight 2 would count once."""
    values, weights = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.5, 0.0, 2.0]])
    assert total(values, weights).item() == 6.5


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_uncounted_tokens_may_hold_anything(bad):
    """TRAPS 9: 0 * NaN is NaN. One token with weight 0 could make the sum and all gradients NaN."""
    values = torch.tensor([[1.0, bad, 2.0]], requires_grad=True)
    loss = total(values, torch.tensor([[1.0, 0.0, 1.0]]))
    loss.backward()
    assert loss.item() == 3.0 and values.grad.tolist() == [[1.0, 0.0, 1.0]]


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


def test_a_batch_without_a_counted_token_gives_zero_and_finite_gradients(student, teacher):
    """TRAPS 9: 0/0 = NaN if a whole batch is prompt."""
    student.requires_grad_()
    total(forward_kl(student, teacher), torch.zeros(B, T)).backward()
    assert student.grad.abs().max() == 0
    nothing = student.flatten(0, 1)[torch.zeros(B * T, dtype=torch.bool)]  # (0, V), as `keep` gives
    loss = total(cross_entropy(nothing, torch.zeros(0, dtype=torch.int64)), torch.zeros(0))
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def normalised(student, teacher, weights):
    """The loss as in every training loop: the sum over tokens / the sum of weights."""
    return (total(forward_kl(student, teacher, 2.0), weights) / weights.sum()).item()


def test_doubling_the_batch_changes_nothing(student, teacher):
    """TRAPS 2: if the mask divides twice, the loss halves when the batch doubles."""
    weights = torch.tensor([[1.0, 0, 1], [1, 1, 0]])
    once = normalised(student, teacher, weights)
    twice = normalised(*(torch.cat([t, t]) for t in (student, teacher, weights)))
    assert twice == pytest.approx(once, rel=1e-12)


def test_appended_padding_changes_nothing(student, teacher):
    """TRAPS 8: padding that counts makes the loss depend on how documents were batched."""
    weights = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    before = normalised(student, teacher, weights)
    wide = [torch.cat([t, draw(B, 5, V, seed=seed, scale=50)], 1)
            for t, seed in ((student, 8), (teacher, 9))]
    after = normalised(*wide, torch.cat([weights, torch.zeros(B, 5)], 1))
    assert after == pytest.approx(before, rel=1e-12)


def test_micro_batches_add_up_to_one_gradient(student, teacher):
    """TRAPS 10: with a mean for each micro-batch, the tokens of short ones weigh more."""
    weights = torch.tensor([[1.0, 0, 0], [1, 1, 1]])
    gradients = []
    for parts in (1, 2):
        z = student.clone().requires_grad_()
        for rows in torch.arange(B).chunk(parts):
            (total(forward_kl(z[rows], teacher[rows]), weights[rows]) / weights.sum()).backward()
        gradients.append(z.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
