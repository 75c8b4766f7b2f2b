"""The losses agree with other projects: numbers that their tests publish or their functions returned.

Published in tests or documentation: torchtune bd2a0fc (test_kd_losses.py), TRL f2cd577, optax 2edbcbe,
Wikipedia (Kullback-Leibler divergence), scipy (jensenshannon). Returned once for STUDENT and TEACHER by
the function named: TRL f2cd577, DistiLLM d47e77f, DistillKit a61c2e7, minimind d65ef2c, KDFlow 3a7a21a.
"""
import math

import pytest
import torch

import losses

# eight tokens, a vocabulary of four: the inputs of torchtune's test; KEEP: a mask for hidden states
STUDENT, TEACHER = torch.tensor([
    [1.1250, -0.4102, -0.0879, -2.5000], [0.2676, 0.3535, 0.8711, -1.4688], [-0.1084, 1.6641, 0.0084, 0.1196],
    [0.5000, -0.6406, -0.2236, -1.5938], [-1.5312, -1.9219, 0.0000, -0.5039], [-1.5391, 1.5312, 0.5820, 0.2695],
    [-0.3887, 1.2188, 0.0000, 0.6055], [0.5000, 1.3828, 0.1309, -1.0312],
    [-0.0381, -1.2578, -1.2031, 0.0947], [-0.7852, 0.4492, 1.5547, 0.0972], [0.8203, 0.0012, 0.7656, 0.3477],
    [-1.5781, 0.4297, 0.5977, 0.3926], [1.5156, 0.1641, 2.0781, -0.7734], [-0.5898, 0.4453, -0.7969, 0.6328],
    [0.6289, -0.8359, 0.9258, 0.2109], [0.0006, 0.5195, 3.2344, -1.5781]], dtype=torch.float64).chunk(2)
KEEP = torch.tensor([1, 1, 0, 1, 0, 1, 1, 1]).bool()
ENTROPY = torch.distributions.Categorical(logits=TEACHER).entropy().mean().item()  # 1.0915951


def logs(*p):
    return torch.tensor(p, dtype=torch.float64).log()


@pytest.mark.parametrize("name, mix, tau, expected, off", [  # means over the tokens, without tau^2
    ("forward_kl", None, 1, 1.7209 - ENTROPY, 1e-4), ("reverse_kl", None, 1, 0.6775, 1e-4),  # torchtune
    *(("jsd", beta, tau, value, 2e-9) for beta, *both in (  # TRL generalized_jsd_loss; beta: the teacher's share
        (0, 0.6292863700, 0.1948004868), (0.1, 0.0534227074, 0.0172506610), (0.5, 0.1415480209, 0.0467621152),
        (0.9, 0.0567116677, 0.0172517588), (1, 0.6774912030, 0.1945222274)) for tau, value in zip((1, 2), both)),
    ("forward_kl", None, 1, 1.7208812236785889 - ENTROPY, 2e-6),  # DistiLLM; lam of js_distance is 1 - our beta
    ("reverse_kl", None, 1, 0.6774912476539612, 2e-6), ("total_variation", None, 1, 0.43347275257110596, 2e-6),
    ("skew_forward_kl", 0.1, 1, 1.5536648035049438 - ENTROPY, 2e-6),
    ("skew_forward_kl", 0.5, 1, 1.2379521131515503 - ENTROPY, 2e-6),
    ("skew_reverse_kl", 0.1, 1, 0.4817807972431183, 2e-6), ("skew_reverse_kl", 0.5, 1, 0.13673906028270721, 2e-6),
    ("jsd", 0.9, 1, 0.05671168863773346, 2e-6), ("jsd", 0.1, 1, 0.053422711789608, 2e-6),
    ("forward_kl", None, 2, 0.19480054080486298, 2e-6), ("jsd", 0.5, 2, 0.04676211625337601, 2e-6),  # DistillKit
    ("total_variation", None, 2, 0.25445136427879333, 2e-6),
    *(("forward_kl", None, tau, value / tau**2, 2e-9) for tau, value in (  # minimind, Model-Optimizer: with tau^2
        (1, 0.6292863700), (1.5, 0.7327646806), (2, 0.7792019473), (4, 0.8257154667))),
    ("skew_forward_kl", 0.1, 1, 0.46206966042518616, 2e-6), ("jsd", 0.7, 1, 0.12259942293167114, 2e-6)])  # KDFlow
def test_values_are_those_of_other_projects(name, mix, tau, expected, off):
    """A divergence that passes our own formulas, but is not what the field calls by that name."""
    value = losses.divergence(name, STUDENT, TEACHER, tau, mix).mean() / losses.scale(name, tau)
    assert value.item() == pytest.approx(expected, abs=off)


@pytest.mark.parametrize("name, mix, tau, first, last", [  # of tokens 0 and 7, without tau^2
    ("jsd", 0, 1, (0.2858718, 0.0325158, 0.0796929, -0.3980805), (0.1958155, 0.4995093, -0.73803, 0.0427052)),  # TRL
    ("jsd", 0.1, 1, (0.0146203, 0.0004425, 0.0038482, -0.018911), (0.0149665, 0.0387563, -0.0569947, 0.0032718)),
    ("jsd", 0.5, 1, (0.0223745, -0.0039261, 0.0049666, -0.0234151), (0.0295791, 0.0830629, -0.1191936, 0.0065517)),
    ("jsd", 1, 1, (0.0769481, -0.0275733, 0.0136274, -0.0630022), (0.0855685, 0.4102806, -0.5167306, 0.0208815)),
    ("jsd", 0.5, 2, (0.0121386, 0.0020464, 0.0060036, -0.0201886), (0.0122377, 0.0247428, -0.042907, 0.0059265)),
    ("skew_forward_kl", None, 1, (0.0870997, -0.0064495, 0.0212081, -0.1018583),  # DistiLLM, from here on
     (0.1163094, 0.3065547, -0.4483625, 0.0254984)),
    ("skew_reverse_kl", None, 1, (0.0636374, -0.01855, 0.0124292, -0.0575166),
     (0.0852269, 0.2642788, -0.3687197, 0.0192139)),
    ("total_variation", None, 1, (0.0112456, 0.0024224, 0.0033437, -0.0170117),
     (0.0369548, 0.0893442, -0.1342914, 0.0079924))])
def test_gradients_are_those_of_other_projects(name, mix, tau, first, last):
    """The right value with the gradient of another term."""
    z = STUDENT.clone().requires_grad_()
    losses.divergence(name, z, TEACHER, tau, mix).sum().backward()
    expected = torch.tensor([first, last], dtype=torch.float64)
    torch.testing.assert_close(z.grad[[0, 7]] / losses.scale(name, tau), expected, rtol=0, atol=2e-7)


def test_constants_that_others_publish():
    """Small cases that a reader can look up."""
    third, pair = (1 / 3,) * 3, losses.of_log_probabilities
    log_p = TEACHER.log_softmax(-1)
    top, ids = log_p.topk(2, -1)
    lists = torch.cat([top, torch.log1p(-top.exp().sum(-1, keepdim=True))], -1)
    two, three = torch.tensor([[0, 1]]), (logs(.5, .3, .2)[None], logs(.2, .6, .2)[None])
    bucket = losses.topk_divergence("forward_kl", three[0], two, three[1])
    a, b = (torch.tensor(row, dtype=torch.float64) for row in (
        (-2.9957, -3.5066, -3.9120, -1.2040, -0.6931, -2.3026), (-1.6094, -1.6094, -1.6094, -2.3026, -1.8971, -1.8971)))
    hidden = losses.hidden_mse(STUDENT, TEACHER), losses.hidden_cosine(STUDENT, TEACHER)
    for found, expected, off in (
            (pair("forward_kl", logs(.1, .9), logs(.9, .1)), 0.8 * math.log(9), 1e-12),  # TRL test_gkd_trainer.py
            (pair("jsd", logs(.6, .3, .1), logs(.5, .4, .1), 0.5), 0.005859544696623507, 1e-12),  # test_gold_trainer.py
            (pair("forward_kl", logs(.8, .2), logs(.5, .5)), 0.22314355131420976, 1e-12),  # TRL SDFT, also the next
            (bucket, 0.23263016196113617, 1e-12),  # with a tail bucket; renormalised it would be 0.2908
            (losses.topk_divergence("forward_kl", STUDENT, ids, lists).mean(), 0.48795193433761597, 2e-6),  # DistillKit
            (losses.topk_divergence("jsd", STUDENT, ids, lists).mean(), 0.10179130733013153, 2e-6),
            (hidden[0].mean(), 2.1174023151397705, 2e-6), (hidden[1].mean(), 1.0216366052627563, 2e-6),
            (hidden[0][KEEP].mean(), 1.8949271440505981, 2e-6), (hidden[1][KEEP].mean(), 0.9700796604156494, 2e-6),
            (losses.kl(logs(.2, .2, .2, .1, .15, .15), a), 0.8875577, 1e-6),  # optax KLDivergenceTest
            (losses.kl(logs(.05, .03, .02, .3, .5, 0), b), 0.7592807, 1e-6), (losses.kl(b, a), 0.8875625, 1e-4),
            (pair("forward_kl", logs(*third), logs(.36, .48, .16)), 0.0852996, 1e-7),  # Wikipedia
            (pair("reverse_kl", logs(*third), logs(.36, .48, .16)), 0.0974550, 1e-7),
            (pair("jsd", logs(1, 0, 0), logs(0, 1, 0), 0.5) / math.log(2), 1, 1e-12),  # scipy jensenshannon
            (pair("jsd", logs(1, 0), logs(.5, .5), 0.5) ** 0.5, 0.46450140402245893, 1e-12)):
        assert found.item() == pytest.approx(expected, abs=off)
