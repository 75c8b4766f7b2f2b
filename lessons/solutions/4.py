"""A right solution of lesson 4."""
import torch


def nucleus(teacher_logits, mass):
    """(N, V) -> dict of ids (N, K) and log_p (N, K + 1)."""
    log_p = torch.log_softmax(teacher_logits, -1)
    log_p, ids = log_p.sort(-1, descending=True)         # (N, V)
    before = log_p.exp().cumsum(-1) - log_p.exp()        # (N, V) the mass of all likelier tokens
    kept = before < mass
    kept[:, 0] = True
    largest = int(kept.sum(-1).max())                    # K
    bucket = log_p.masked_fill(kept, -torch.inf).logsumexp(-1, keepdim=True)  # (N, 1)
    ids = ids.masked_fill(~kept, -1)[:, :largest]
    log_p = log_p.masked_fill(~kept, -torch.inf)[:, :largest]
    return dict(ids=ids, log_p=torch.cat([log_p, bucket], -1))


def nucleus_kl(student_logits, ids, log_p):
    """(N, V), (N, K), (N, K + 1) -> (N,) nats. An id of -1 becomes a token V that is then cut."""
    vocab_size = student_logits.shape[-1]
    log_q = torch.log_softmax(student_logits, -1)                       # (N, V)
    stored = log_q.gather(-1, ids.clamp(min=0))                         # (N, K)
    kept = torch.zeros(len(ids), vocab_size + 1, dtype=torch.bool)
    kept.scatter_(-1, ids.where(ids >= 0, vocab_size), True)            # (N, V + 1)
    bucket = log_q.masked_fill(kept[:, :vocab_size], -torch.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([stored, bucket], -1)                             # (N, K + 1)
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1)


def cache_bytes(kept, vocab_size):
    """4 or 6 bytes a kept token, and 8 a place: its number, the bucket, the cross-entropy."""
    token = 2 + (2 if vocab_size <= 65536 else 4)
    place = 2 + 2 + 4
    return sum(token * k + place for k in kept)


def pays_from(making, live, cached):
    """The first n with making + n * cached < n * live."""
    saved = live - cached
    if saved <= 0:
        return None
    return int(making // saved) + 1
