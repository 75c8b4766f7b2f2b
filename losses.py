"""The losses, by hand, one value a token.

Every function takes logits (..., V) and returns float32 values (...) in nats: (B, T, V) -> (B, T),
or (N, V) -> (N,). Nothing is averaged here. A script sums the values of the tokens that count and
divides once by their number in the whole optimizer step (`n_valid`), where it can be seen: most
public distillation bugs are a second, hidden, or wrong normaliser.

float16 and bfloat16 logits are raised to float32 before any softmax (bf16 keeps 8 bits: each
probability is rounded by up to 0.4 %, small KLs come out negative); float64 stays, for tests.
"""
import torch


def log_softmax(logits, temperature=1.0):
    """log p = z/tau - ln sum exp(z/tau) over the last dimension, in float32 or float64."""
    z = logits if logits.dtype == torch.float64 else logits.float()
    return torch.log_softmax(z / temperature if temperature != 1.0 else z, dim=-1)


def cross_entropy(logits, targets):
    """-ln p(target): logits (..., V), targets (...) int64 -> (...) nats.

    Gradient by the logits: p - onehot(target).
    """
    return -log_softmax(logits).gather(-1, targets[..., None])[..., 0]


def forward_kl(student_logits, teacher_logits, temperature=1.0):
    """tau^2 * KL(p_teacher || q_student), both softened by tau: two (..., V) -> (...) nats.

        KL = sum_v p_v (ln p_v - ln q_v),   p = softmax(z_teacher/tau), q = softmax(z_student/tau)

    Gradient by the student's logits: tau * (q - p). Without tau^2 it would shrink by about 1/tau^2
    (one 1/tau from the chain rule, one from the softened difference), and alpha would mean
    something else at every temperature; with it the size is roughly kept (Hinton, Vinyals & Dean
    2015, section 2).
    Not symmetric: forward KL punishes the student where the teacher has mass and it has none.
    Raises ValueError where the vocabularies differ: padding or slicing would invent probability.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(f"student logits are {tuple(student_logits.shape)}, teacher logits "
                         f"{tuple(teacher_logits.shape)}: use one tokenizer and the same tokens")
    log_q = log_softmax(student_logits, temperature)  # (..., V)
    log_p = log_softmax(teacher_logits, temperature)  # (..., V)
    return temperature ** 2 * (log_p.exp() * (log_p - log_q)).sum(-1)


def total(values, weights):
    """Sum of values (...) where weights (...) is not 0, each times its weight.

    An uncounted value may be inf or NaN: `where` keeps it out of the sum, where 0 * NaN would not.
    """
    return torch.where(weights != 0, values * weights, 0.0).sum()
