"""The losses, written by hand. Each loss gives one value for each token.

Logits (..., V) come in, values (...) in nats go out: (B, T, V) -> (B, T), or (N, V) -> (N,).
Only `total` sums over tokens, and nothing here averages over them. Prompts and padding do not
count: their weight is 0. Other tokens have weight 1 (train_distill_reason.py can change it). A
training script sums value * weight, and divides once by the sum of the weights in the whole
optimizer step, `n_valid`. Much public code divides twice, or by a wrong number (docs/traps.md).

float16 and bfloat16 logits become float32 before any softmax. bf16 has 8 significant bits, and its
rounding can make a small KL negative. float64 stays float64, for tests.
"""
import math

import torch

# name: the divergence of the teacher's p and the student's q, both softmax(logits / tau). Then the
#       gradient of scale * divergence by the student's logits, and the source. u: any token.
DIVERGENCES = {
    "forward_kl": """KL(p || q). Large if q is small where p is large.
        tau (q - p).   Hinton, Vinyals & Dean 2015, section 2 and eq. 2""",
    "reverse_kl": """KL(q || p). Large if q is large where p is small.
        tau q (ln(q/p) - KL(q || p)).   Gu et al. 2024 (MiniLLM), eq. 1""",
    "jsd": """b KL(p || m) + (1-b) KL(q || m), m = b p + (1-b) q. mix = b, from 0 to 1.
        tau (1-b) q (ln(q/m) - KL(q || m)).   Agarwal et al. 2024 (GKD), section 2""",
    "skew_forward_kl": """KL(p || m), m = s p + (1-s) q. At most -ln s; mix = s, 0 to below 1.
        tau (1-s) q (sum_u q_u p_u/m_u - p/m).   Ko et al. 2024 (DistiLLM), section 3""",
    "skew_reverse_kl": """KL(q || m), m = (1-s) p + s q. At most -ln s; mix = s, 0 to below 1.
        tau q (g - sum_u q_u g_u), g = ln(q/m) - s q/m.   Ko et al. 2024, section 3""",
    "total_variation": """1/2 sum |p - q|, 0 to 1: the largest difference on any set of tokens.
        q (h - sum_u q_u h_u), h = sign(q - p) / 2.   Wen et al. 2023, section 3""",
}


def upcast(x):
    """float16 and bfloat16 become float32; float64 stays float64."""
    return x if x.dtype == torch.float64 else x.float()


def log_softmax(logits, temperature=1.0):
    """log p = z/tau - ln sum exp(z/tau) over the last dimension, in float32 or float64."""
    z = upcast(logits)
    return torch.log_softmax(z / temperature if temperature != 1.0 else z, dim=-1)


def cross_entropy(logits, targets):
    """-ln p(target): logits (..., V), targets (...) int64 -> (...) nats. The gradient by the logits
    is softmax(logits) - onehot(target)."""
    return -log_softmax(logits).gather(-1, targets[..., None])[..., 0]


def total(values, weights):
    """Values (...), weights (...) -> scalar: the sum of value * weight over weights that are not 0.
    A value of weight 0 may be inf or NaN. It is skipped, because 0 * NaN is NaN."""
    return torch.where(weights != 0, values * weights, 0.0).sum()


def divergence(name, student_logits, teacher_logits, temperature=1.0, mix=None):
    """tau^2 D(p, q) of two tensors of logits (..., V) -> (...), for any name in DIVERGENCES.
    p = softmax(teacher/tau), q = softmax(student/tau). The unit is nats. Total variation has no
    unit, and tau instead of tau^2, see `scale`. mix: b of jsd (default 0.5) or s of skew_* (default
    0.1); others ignore it. Raises ValueError if the shapes differ (padding or cutting a vocabulary
    would change the distribution), if the name is unknown, or if mix is out of range."""
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits are {tuple(student_logits.shape)}, teacher logits "
                         f"{tuple(teacher_logits.shape)}: use one tokenizer and the same tokens")
    log_q = log_softmax(student_logits, temperature)  # (..., V)
    log_p = log_softmax(teacher_logits, temperature)  # (..., V)
    return scale(name, temperature) * of_log_probabilities(name, log_q, log_p, mix)


def of_log_probabilities(name, log_q, log_p, mix=None):
    """D(p, q) of log-probabilities (..., V) -> (...): the formulas of DIVERGENCES.
    With b = 0 or 1 the JSD is 0 for every q and teaches nothing. So b = 0 gives forward KL, and
    b = 1 reverse KL. The value jumps there: at b = 0.001 it is about 0.001 times forward KL."""
    if mix is None:
        mix = 0.5 if name == "jsd" else 0.1
    if not (0 <= mix <= 1 and (mix < 1 or "skew" not in name)):
        raise ValueError(f"mix is {mix}: must be a share from 0 to 1 (skew_*: below 1)")
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
    raise ValueError(f"unknown divergence {name}; use one of {', '.join(DIVERGENCES)}")


def kl(log_a, log_b):
    """KL(a || b) = sum_v a_v (ln a_v - ln b_v), (..., V) -> (...). A token with a_v = 0 adds 0."""
    a = log_a.exp()
    difference = torch.where(a > 0, log_a - log_b, 0.0)
    return (a * difference).sum(-1)


def mixture(log_a, log_b, share):
    """ln(share a + (1 - share) b). Both are set to at least -1e4: two -inf give a NaN gradient."""
    if share == 0:
        return log_b
    log_a, log_b = log_a.clamp(min=-1e4), log_b.clamp(min=-1e4)
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def scale(name, temperature):
    """tau^2, or tau for total variation. It keeps the gradient at about the same size at every tau.
    Dividing logits by tau divides the gradient by tau. It also makes p and q more alike: if tau is
    large, q - p is about (z_q - z_p) / (tau V), for logits z of mean 0. So the gradient of a KL is
    divided by tau again (Hinton, Vinyals & Dean 2015, section 2). The derivative of total variation
    by q is only a sign, so there the second effect is missing."""
    return temperature if name == "total_variation" else temperature ** 2


def topk_divergence(name, student_logits, ids, log_p, temperature=1.0, mix=None):
    """A divergence from a cache: the teacher's k likeliest tokens, and a bucket for all others.
    student_logits (N, V); ids (N, k); log_p (N, k + 1) at the same tau, the bucket last -> (N,).
    If k = V, log_p is (N, k), without a bucket. The result is at most the divergence on the whole
    vocabulary: merging tokens makes two distributions more alike. float16 rounds log_p, so it is
    normalised again, bucket included. For k < V a list without one makes the student too sure."""
    z = upcast(student_logits) / temperature                               # (N, V)
    merged = z.gather(-1, ids)                                             # (N, k)
    if log_p.shape[-1] > ids.shape[-1]:
        rest = z.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)   # (N, 1)
        merged = torch.cat([merged, rest], -1)                             # (N, k + 1)
    return scale(name, temperature) * divergence(name, merged, log_p, mix=mix)


def sampled_forward_kl(student_logits, ids, negentropy, temperature=1.0):
    """tau^2 KL(p || q), estimated from k tokens sampled from p = softmax(teacher / tau).
    student_logits (N, V), ids (N, k), negentropy (N,) = sum p ln p -> (N,) nats. It may be < 0.
    Over new samples its mean is tau^2 KL. The gradient of one set of samples is tau (q - counts/k),
    with the mean tau (q - p), as of the KL. In later epochs the student can memorise the samples,
    and the value falls below 0.   Source: Anshumann et al. 2025, section 3."""
    log_q = log_softmax(student_logits, temperature)                          # (N, V)
    return temperature ** 2 * (negentropy - log_q.gather(-1, ids).mean(-1))
