"""What two networks think on the way: which layers meet, and how far apart they are.

The rules of train_distill_features.py; the distances themselves are in losses.py. A layer is a
block, counted from 1, and its hidden state is the block's output: the embedding is no layer
(TRAPS 22). `features` is what Transformer.hidden_states(..., features=[]) leaves, a dict a block.
"""
from torch import nn

from cli import check
from losses import hidden_cosine, hidden_mse, relation_kl


def layer_pairs(rule, student_layers, teacher_layers, flag):
    """[(student's block, teacher's block)], counted from 1: a block's output, never the embedding.

    last: the two last ones. uniform: the student's i of n is the teacher's i/n of the way.
    """
    if rule == "last":
        return [(student_layers, teacher_layers)]
    if rule == "uniform":
        return [(i, max(1, round(i * teacher_layers / student_layers)))
                for i in range(1, student_layers + 1)]
    try:
        pairs = [tuple(map(int, pair.split(":"))) for pair in rule.split(",")]
        ok = all(1 <= s <= student_layers and 1 <= t <= teacher_layers for s, t in pairs)
    except ValueError:
        ok = False
    check(ok, flag, rule, f"last, uniform, or pairs such as 1:2, student's block 1 to "
          f"{student_layers}, teacher's 1 to {teacher_layers}")
    return pairs


def make_projections(cfg, student, teacher, pairs):
    """One matrix (D_student -> D_teacher) a pair where the widths differ, else none."""
    if not cfg.hidden_weight or student.dim == teacher.dim:
        return nn.ModuleList()
    return nn.ModuleList(nn.Linear(student.dim, teacher.dim, bias=False) for _ in pairs)


def hidden_term(cfg, pairs, projections, student, teacher, keep):
    """Mean over the pairs of the distance of the hidden states -> (N,)."""
    compare, values = dict(mse=hidden_mse, cosine=hidden_cosine)[cfg.hidden_loss], []
    for i, (s, t) in enumerate(pairs):
        hidden = student[s - 1]["hidden"][keep]                         # (N, D_student)
        hidden = projections[i](hidden) if len(projections) else hidden  # (N, D_teacher)
        values.append(compare(hidden, teacher[t - 1]["hidden"][keep]))  # (N,)
    return sum(values) / len(values)


def relation_term(cfg, pairs, student, teacher, document, keep):
    """Mean over the pairs and over q, k, v of the KL of the relations -> (N,)."""
    values = []
    for s, t in pairs:
        for which in "qkv":
            a, b = (f[which].transpose(1, 2).flatten(2)  # (B, T, heads * C)
                    for f in (student[s - 1], teacher[t - 1]))
            values.append(relation_kl(a, b, cfg.relation_heads, document)[keep])  # (B, T) -> (N,)
    return sum(values) / len(values)


def check_heads(cfg, *models):
    """UserError where queries, keys and values cannot be split into --relation-heads."""
    for c in (m.config for m in models):
        for heads in (c.n_heads, c.n_kv_heads):
            check(cfg.relation_heads > 0 and heads * c.head_dim % cfg.relation_heads == 0,
                  "--relation-heads", cfg.relation_heads,
                  f"a divisor of {heads * c.head_dim} = {heads} heads of {c.head_dim}")
