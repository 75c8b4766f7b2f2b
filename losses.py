"""The losses, by hand, one value a token.

Logits (..., V) come in, float32 values (...) in nats go out: (B, T, V) -> (B, T), or (N, V) ->
(N,). Nothing is averaged here, and `total` is the only sum. A training script sums the values of
the tokens that count and divides once, by their number in the whole optimizer step (`n_valid`).
Most public distillation bugs are a second, hidden, or wrong normaliser.

float16 and bfloat16 logits become float32 before any softmax: bf16 keeps 8 bits, which makes small
KLs negative. float64 stays float64, for tests.
"""
import math

import torch

# name: divergence of the teacher's p and the student's q, both softened by the temperature tau;
#       its gradient by the student's logits, times the factor that `scale` gives; its source
DIVERGENCES = {
    "forward_kl": """KL(p || q). q must be wherever p is: mode-covering.
        tau (q - p).   Hinton, Vinyals & Dean 2015, section 2 and eq. 2""",
    "reverse_kl": """KL(q || p). q must not be where p is not: mode-seeking.
        tau q (ln(q/p) - KL(q || p)).   Gu et al. 2024 (MiniLLM), eq. 1""",
    "jsd": """b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q. Between the two; mix = b, 0 to 1.
        tau (1-b) q (ln(q/m) - KL(q || m)).   Agarwal et al. 2024 (GKD), section 2""",
    "skew_forward_kl": """KL(p || m), m = s p + (1-s) q. Never above -ln s; mix = s, 0 to below 1.
        tau (1-s) q (sum_u q_u p_u/m_u - p/m).   Ko et al. 2024 (DistiLLM), section 3""",
    "skew_reverse_kl": """KL(q || m), m = (1-s) p + s q. Never above -ln s; mix = s, 0 to below 1.
        tau q (g - sum_u q_u g_u), g = ln(q/m) - s q/m.   Ko et al. 2024, section 3""",
    "total_variation": """1/2 sum |p - q|, at most 1: the largest difference about any event.
        q (h - sum_u q_u h_u), h = sign(q - p) / 2.   Wen et al. 2023, section 3""",
}


def upcast(x):
    """float16 and bfloat16 as float32; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def log_softmax(logits, temperature=1.0):
    """log p = z/tau - ln sum exp(z/tau) over the last dimension, in float32 or float64."""
    z = upcast(logits)
    return torch.log_softmax(z / temperature if temperature != 1.0 else z, dim=-1)


def cross_entropy(logits, targets):
    """-ln p(target): logits (..., V), targets (...) int64 -> (...) nats.

    Gradient by the logits: p - onehot(target).
    """
    return -log_softmax(logits).gather(-1, targets[..., None])[..., 0]


def total(values, weights):
    """Sum of values (...) times weights (...), over those whose weight is not 0.

    An uncounted value may be inf or NaN: `where` keeps it out of the sum, and 0 * NaN would not.
    """
    return torch.where(weights != 0, values * weights, 0.0).sum()


def divergence(name, student_logits, teacher_logits, temperature=1.0, mix=None):
    """tau^2 D(p, q) of two tensors of logits (..., V) -> (...), for any name in DIVERGENCES.

    p = softmax(teacher/tau), q = softmax(student/tau). In nats, except total variation, which has
    no unit and is times tau: see `scale`. mix: b of jsd (None: 0.5) or s of the skewed ones (None:
    0.1); the others ignore it. Raises ValueError if the vocabularies differ (padding or cutting
    would change the distribution) or if mix is out of range.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits are {tuple(student_logits.shape)}, teacher logits "
                         f"{tuple(teacher_logits.shape)}: use one tokenizer and the same tokens")
    log_q = log_softmax(student_logits, temperature)  # (..., V)
    log_p = log_softmax(teacher_logits, temperature)  # (..., V)
    return scale(name, temperature) * of_log_probabilities(name, log_q, log_p, mix)


def of_log_probabilities(name, log_q, log_p, mix=None):
    """D(p, q) of log-probabilities (..., V) -> (...): the formulas of DIVERGENCES.

    At the ends of b the JSD's formula is 0 for every q. There the limits of JSD/b and JSD/(1-b) are
    taken, forward and reverse KL: JSD(0.001) is about a thousandth of JSD(0).
    """
    if mix is None:
        mix = 0.5 if name == "jsd" else 0.1
    if not (0 <= mix <= 1 and (mix < 1 or "skew" not in name)):
        raise ValueError(f"mix is {mix}; a share from 0 to 1, below 1 for the skewed ones")
    if name == "forward_kl" or name == "jsd" and mix == 0:
        return kl(log_p, log_q)
    if name == "reverse_kl" or name == "jsd" and mix == 1:
        return kl(log_q, log_p)
    if name == "jsd":
        log_m = mixture(log_p, log_q, mix)
        return mix * kl(log_p, log_m) + (1 - mix) * kl(log_q, log_m)
    if name == "skew_forward_kl":
        return kl(log_p, mixture(log_p, log_q, mix))
    if name == "skew_reverse_kl":
        return kl(log_q, mixture(log_q, log_p, mix))
    if name == "total_variation":
        return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)
    raise ValueError(f"no divergence {name}; there are {', '.join(DIVERGENCES)}")


def kl(log_a, log_b):
    """KL(a || b) = sum_v a_v (ln a_v - ln b_v). An outcome without mass adds 0: 0 ln 0 = 0."""
    a = log_a.exp()
    difference = torch.where(a > 0, log_a - log_b, 0.0)
    return (a * difference).sum(-1)


def mixture(log_a, log_b, share):
    """ln(share a + (1 - share) b). ln 0 is cut to -1e4: logaddexp's gradient of two -inf is NaN."""
    if share == 0:
        return log_b
    log_a, log_b = log_a.clamp(min=-1e4), log_b.clamp(min=-1e4)
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def scale(name, temperature):
    """tau^2, or tau for total variation: the gradient keeps its size at any temperature.

    The chain rule gives one 1/tau. In the KL family p - q shrinks with another (Hinton, Vinyals &
    Dean 2015, section 2); total variation's derivative by q is a sign, which does not shrink.
    """
    return temperature if name == "total_variation" else temperature ** 2


def forward_kl(student_logits, teacher_logits, temperature=1.0):
    """tau^2 KL(p || q): what eval.py reports as KL, at tau = 1."""
    return divergence("forward_kl", student_logits, teacher_logits, temperature)


def topk_divergence(name, student_logits, ids, log_p, temperature=1.0, mix=None):
    """A divergence on what a cache keeps: the teacher's k likeliest tokens, the others as a bucket.

    student_logits (N, V); ids (N, k); log_p (N, k + 1), the bucket last, or (N, k) if k = V ->
    (N,). It is at least 0 and at most the divergence on the whole vocabulary, because merging
    outcomes cannot make two distributions easier to tell apart. log_p may be rounded to float16, so
    it is normalised again, bucket included: without it the student would learn to be too sure.
    """
    z = upcast(student_logits) / temperature                               # (N, V)
    merged = z.gather(-1, ids)                                             # (N, k)
    if log_p.shape[-1] > ids.shape[-1]:
        rest = z.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)   # (N, 1)
        merged = torch.cat([merged, rest], -1)                             # (N, k + 1)
    return scale(name, temperature) * divergence(name, merged, log_p, mix=mix)


def sampled_forward_kl(student_logits, ids, negentropy, temperature=1.0):
    """tau^2 KL(p || q), estimated from tokens drawn from the softened p: student_logits (N, V),
    ids (N, k), negentropy (N,) = sum p ln p -> (N,) nats. A single value may be negative.

    Its mean over draws is the KL, and the mean gradient is the KL's, tau (q - counts/k), as long as
    the student has not seen the draws. In a second epoch it can learn them by heart, and the mean
    falls below 0.   Source: Anshumann et al. 2025, section 3.
    """
    log_q = log_softmax(student_logits, temperature)                          # (N, V)
    return temperature ** 2 * (negentropy - log_q.gather(-1, ids).mean(-1))


def hidden_mse(student, teacher):
    """Mean over channels of (h_student - h_teacher)^2: two (..., D) -> (...).

    Source: Romero et al. 2015 (FitNets), eq. 3; Jiao et al. 2020 (TinyBERT), eq. 8.
    """
    return (upcast(student) - upcast(teacher)).square().mean(-1)


def hidden_cosine(student, teacher):
    """1 - cos of the two vectors, 0 to 2: two (..., D) -> (...). It ignores their lengths.

    Source: Sanh et al. 2019 (DistilBERT), section 2.
    """
    return 1 - torch.cosine_similarity(upcast(student), upcast(teacher), dim=-1)
