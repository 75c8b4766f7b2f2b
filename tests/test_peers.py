"""The losses agree with other projects. torchtune bd2a0fc publishes its numbers (test_kd_losses.py). The functions
of TRL f2cd577, DistiLLM d47e77f, DistillKit a61c2e7, minimind d65ef2c and KDFlow 3a7a21a returned the others."""
import pytest
import torch

import losses

# eight tokens, a vocabulary of four: the inputs of torchtune's test
STUDENT, TEACHER = torch.tensor([
    [1.1250, -0.4102, -0.0879, -2.5000], [0.2676, 0.3535, 0.8711, -1.4688], [-0.1084, 1.6641, 0.0084, 0.1196],
    [0.5000, -0.6406, -0.2236, -1.5938], [-1.5312, -1.9219, 0.0000, -0.5039], [-1.5391, 1.5312, 0.5820, 0.2695],
    [-0.3887, 1.2188, 0.0000, 0.6055], [0.5000, 1.3828, 0.1309, -1.0312],
    [-0.0381, -1.2578, -1.2031, 0.0947], [-0.7852, 0.4492, 1.5547, 0.0972], [0.8203, 0.0012, 0.7656, 0.3477],
    [-1.5781, 0.4297, 0.5977, 0.3926], [1.5156, 0.1641, 2.0781, -0.7734], [-0.5898, 0.4453, -0.7969, 0.6328],
    [0.6289, -0.8359, 0.9258, 0.2109], [0.0006, 0.5195, 3.2344, -1.5781]], dtype=torch.float64).chunk(2)
ENTROPY = torch.distributions.Categorical(logits=TEACHER).entropy().mean().item()  # 1.0915951


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
