"""The losses, by hand, one value a token.

The losses take logits (..., V) and return float32 values (...) in nats: (B, T, V) -> (B, T), or
(N, V) -> (N,); those that end in _of take log-probabilities. Nothing is averaged here, and `total`
is the one sum. A script sums the values of the tokens that count and
divides once by their number in the whole optimizer step (`n_valid`), where it can be seen: most
public distillation bugs are a second, hidden, or wrong normaliser.

float16 and bfloat16 logits are raised to float32 before any softmax (bf16 keeps 8 bits: each
probability is rounded by up to 0.4 %, small KLs come out negative); float64 stays, for tests.

The divergences, of the student's q and the teacher's p, both softened by the temperature tau:

    forward_kl         KL(p || q)     q must be wherever p is: mode-covering, or mean-seeking
    reverse_kl         KL(q || p)     q must not be where p is not: mode-seeking
    jsd                b KL(p || m) + (1-b) KL(q || m),  m = b p + (1-b) q       between the two
    skew_forward_kl    KL(p || s p + (1-s) q)     forward, but never larger than -ln s
    skew_reverse_kl    KL(q || (1-s) p + s q)     reverse, the same
    total_variation    1/2 sum |p - q|            bounded by 1

`DIVERGENCES[name](log_q, log_p, mix)` has them by name: values of log-probabilities, whatever the
outcomes are (a vocabulary, or the buckets of dataset/cache_teacher.py), no temperature in them.
`divergence(name, student_logits, teacher_logits, temperature, mix)` softens and scales.

Scale. A gradient by the logits has one 1/tau from the chain rule, and for the KL family another one
from the softened difference p - q; tau^2 gives both back (Hinton, Vinyals & Dean 2015, section 2).
Total variation's has only the first: its derivative by q is a sign, which does not shrink. So it
gets tau. Then alpha means about the same at every temperature.
"""
import math

import torch


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


# --- divergences of log-probabilities (..., V) -> (...) -------------------------------------------

def kl(log_a, log_b):
    """KL(a || b) = sum_v a_v (ln a_v - ln b_v). An outcome without mass adds 0: 0 ln 0 = 0."""
    a = log_a.exp()
    difference = torch.where(a > 0, log_a - log_b, 0.0)
    return (a * difference).sum(-1)


def mixture(log_a, log_b, share):
    """ln(share a + (1 - share) b), without leaving the logarithm. Where both are 0 logaddexp's
    gradient is NaN, so ln 0 is -10,000 here: its exponential is 0 as well."""
    log_a, log_b = log_a.clamp(min=-1e4), log_b.clamp(min=-1e4)
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def forward_kl_of(log_q, log_p, mix=None):
    """KL(p || q). Punishes the student where the teacher has mass and it has none.

    Gradient by the student's logits, softened by tau and scaled by tau^2: tau (q - p).
    Source: Hinton, Vinyals & Dean 2015, section 2; their eq. 2 is this gradient.
    """
    return kl(log_p, log_q)


def reverse_kl_of(log_q, log_p, mix=None):
    """KL(q || p). Punishes the student where it has mass and the teacher has none.

    Gradient: tau q (ln(q/p) - KL(q || p)).   Source: Gu et al. 2024 (MiniLLM), eq. 1.
    """
    return kl(log_q, log_p)


def jsd_of(log_q, log_p, mix=0.5):
    """Generalised Jensen-Shannon divergence, mix = b in [0, 1]: b KL(p || m) + (1-b) KL(q || m).

    At the ends the formula is 0 for every q. Near them JSD/b tends to KL(p || q) (b to 0) and
    JSD/(1-b) to KL(q || p) (b to 1); so b = 0 is *defined* as forward and b = 1 as reverse KL,
    and the value jumps there: JSD(0.001) is about a thousandth of JSD(0).
    Gradient: tau (1-b) q (ln(q/m) - KL(q || m)).   Source: Agarwal et al. 2024 (GKD), section 2.
    """
    if mix in (0, 1):
        return (reverse_kl_of if mix else forward_kl_of)(log_q, log_p)
    log_m = mixture(log_p, log_q, mix)  # (..., V)
    return mix * kl(log_p, log_m) + (1 - mix) * kl(log_q, log_m)


def skew_forward_kl_of(log_q, log_p, mix=0.1):
    """KL(p || m), m = s p + (1-s) q, mix = s in [0, 1): finite where the student has no mass.

    Gradient: tau (1-s) q (sum_u q_u p_u/m_u - p/m).   Source: Ko et al. 2024 (DistiLLM), section 3.
    """
    return kl(log_p, mixture(log_p, log_q, mix) if mix else log_q)


def skew_reverse_kl_of(log_q, log_p, mix=0.1):
    """KL(q || m), m = (1-s) p + s q, mix = s in [0, 1): finite where the teacher has no mass.

    Gradient: tau q (g - sum_u q_u g_u), g = ln(q/m) - s q/m.   Source: Ko et al. 2024, section 3.
    """
    return kl(log_q, mixture(log_q, log_p, mix) if mix else log_p)


def total_variation_of(log_q, log_p, mix=None):
    """1/2 sum |p - q|: the largest difference that the two can have about any event.

    Gradient (scaled by tau): q (h - sum_u q_u h_u), h = sign(q - p) / 2.
    Source: Wen et al. 2023 (f-divergence distillation), section 3.
    """
    return 0.5 * (log_p.exp() - log_q.exp()).abs().sum(-1)


DIVERGENCES = dict(forward_kl=forward_kl_of, reverse_kl=reverse_kl_of, jsd=jsd_of,
                   skew_forward_kl=skew_forward_kl_of, skew_reverse_kl=skew_reverse_kl_of,
                   total_variation=total_variation_of)


# --- of logits ------------------------------------------------------------------------------------

def divergence(name, student_logits, teacher_logits, temperature=1.0, mix=None):
    """A divergence of DIVERGENCES, softened and scaled: two (..., V) -> (...) float32, in nats but
    for total variation, which has no unit.

    mix: b of jsd (None: 0.5), s of the skewed ones (None: 0.1); the others do not read it. Raises
    ValueError where the vocabularies differ, since padding or slicing would invent probability,
    and for a mix that is no share.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits are {tuple(student_logits.shape)}, teacher logits "
                         f"{tuple(teacher_logits.shape)}: use one tokenizer and the same tokens")
    log_q = log_softmax(student_logits, temperature)  # (..., V)
    log_p = log_softmax(teacher_logits, temperature)  # (..., V)
    return scale(name, temperature) * of_log_probabilities(name, log_q, log_p, mix)


def of_log_probabilities(name, log_q, log_p, mix=None):
    """DIVERGENCES[name] with its own mix, or its default."""
    if mix is not None and not (0 <= mix <= 1 and (mix < 1 or "skew" not in name)):
        raise ValueError(f"mix is {mix}; a share from 0 to 1, below 1 for the skewed ones")
    return DIVERGENCES[name](log_q, log_p, *(() if mix is None else (mix,)))


def scale(name, temperature):
    """What keeps the gradient's size at any temperature: tau^2, of total variation tau."""
    return temperature if name == "total_variation" else temperature ** 2


def forward_kl(student_logits, teacher_logits, temperature=1.0):
    """tau^2 KL(p || q), the plain one: what eval.py reports, at tau = 1, as KL."""
    return divergence("forward_kl", student_logits, teacher_logits, temperature)


# --- of what a cache keeps of the teacher (dataset/cache_teacher.py) ------------------------------

def topk_divergence(name, student_logits, ids, log_p, temperature=1.0, mix=None):
    """A divergence on k + 1 outcomes: the teacher's k likeliest tokens, and all the others as one.

    student_logits (N, V); ids (N, k); log_p (N, k + 1), the last one the bucket's, or (N, k) where
    k = V and there is no bucket -> (N,) nats, between 0 and the divergence on the vocabulary
    (merging outcomes cannot tell two distributions apart better), which k = V equals. log_p, maybe
    rounded to float16, is made to sum to 1 again: that is not the renormalisation of the k, which
    would move the bucket's mass to them.
    """
    z = upcast(student_logits) / temperature                               # (N, V)
    merged = z.gather(-1, ids)                                             # (N, k)
    if log_p.shape[-1] > ids.shape[-1]:
        rest = z.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)   # (N, 1)
        merged = torch.cat([merged, rest], -1)                             # (N, k + 1)
    log_q = log_softmax(merged)  # outcomes may be merged before they are normalised
    return scale(name, temperature) * of_log_probabilities(name, log_q, log_softmax(log_p), mix)


def sampled_forward_kl(student_logits, ids, negentropy, temperature=1.0):
    """tau^2 KL(p || q), estimated from tokens that were drawn from the softened p: ids (N, k),
    negentropy (N,) = sum p ln p -> (N,) nats.

    Its mean over draws is the KL, and so is its gradient's, tau (q - counts/k): the draws stand in
    an expectation over p that does not depend on the student. A single value may be negative.
    That holds while it has not seen them. Read again, in a second epoch, they do depend on each
    other: it can learn them by heart, and then the mean, too, falls below 0.
    Source: Anshumann et al. 2025, section 3.
    """
    log_q = log_softmax(student_logits, temperature)                          # (N, V)
    return temperature ** 2 * (negentropy - log_q.gather(-1, ids).mean(-1))


# --- features: what two networks think on the way (train_distill_features.py) ---------------------

def hidden_mse(student, teacher):
    """Mean over channels of (h_student - h_teacher)^2: two (..., D) -> (...).

    Source: Romero et al. 2015 (FitNets), eq. 3; Jiao et al. 2020 (TinyBERT), eq. 8.
    """
    return (upcast(student) - upcast(teacher)).square().mean(-1)


def hidden_cosine(student, teacher):
    """1 - cos of the two vectors, 0 to 2: two (..., D) -> (...). Blind to length.

    Source: Sanh et al. 2019 (DistilBERT), section 2.
    """
    return 1 - torch.cosine_similarity(upcast(student), upcast(teacher), dim=-1)


def relations(vectors, heads, mask):
    """(B, T, W) -> (B, R, T, S) log-probabilities: how each token t sees the tokens s, in R heads.

    softmax over s of a_t·a_s / sqrt(W/R), with both from the same vectors (queries, keys or
    values), where mask (B, 1, T, S) is True.
    """
    a = upcast(vectors).unflatten(-1, (heads, -1)).transpose(1, 2)  # (B, R, T, W/R)
    scores = a @ a.mT * a.shape[-1] ** -0.5                         # (B, R, T, S)
    return torch.log_softmax(scores.masked_fill(~mask, -math.inf), dim=-1)


def relation_kl(student, teacher, heads, document=None):
    """KL(teacher's relations || student's), mean over heads: (B, T, W), (B, T, W') -> (B, T) nats.

    Their widths may differ, their heads too: only the R heads into which both are split must be
    alike. A token looks at itself and at what stands before it in its own document (B, T), which
    leaves padding, document 0, out.   Source: Wang et al. 2021 (MiniLMv2), section 3.
    """
    B, T, _ = student.shape
    mask = torch.ones(B, 1, T, T, dtype=torch.bool, device=student.device).tril()
    if document is not None:
        mask &= document[:, None, :, None] == document[:, None, None, :]
    return kl(relations(teacher, heads, mask), relations(student, heads, mask)).mean(1)


def total(values, weights):
    """Sum of values (...) where weights (...) is not 0, each times its weight.

    An uncounted value may be inf or NaN: `where` keeps it out of the sum, where 0 * NaN would not.
    """
    return torch.where(weights != 0, values * weights, 0.0).sum()
