"""Lesson 3, solved."""
import torch


def hellinger(student_logits, teacher_logits, temperature):
    p = torch.softmax(teacher_logits / temperature, dim=-1)  # (..., V)
    q = torch.softmax(student_logits / temperature, dim=-1)  # (..., V)
    difference = p.sqrt() - q.sqrt()
    return 0.5 * (difference ** 2).sum(-1)


def gradient(student_logits, teacher_logits, temperature):
    """The distance is 1 - sum sqrt(p q). The derivative of sqrt(q_u) by z_v is
    sqrt(q_u) (1[u = v] - q_v) / (2 tau). Times -sqrt(p_u), summed over u:"""
    p = torch.softmax(teacher_logits / temperature, dim=-1)
    q = torch.softmax(student_logits / temperature, dim=-1)
    both = (p * q).sqrt()
    overlap = both.sum(-1, keepdim=True)  # (..., 1)
    return (q * overlap - both) / (2 * temperature)


def keep_size(temperature, root):
    """Dividing logits by tau divides the gradient by tau. p - q is about 1/tau, too, so the squared
    distance loses tau twice. The root H has the gradient (that of H^2) / (2 H), and H is 1/tau."""
    return temperature if root else temperature ** 2
