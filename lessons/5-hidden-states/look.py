"""Look into the blocks of the teacher and of student-logits, on 16 windows of validation data.

    python lessons/5-hidden-states/look.py

First: the teacher's cross-entropy without one of its blocks. Then, when you have written them: what
your cka, pair_layers and best_projection say about the hidden states of both models.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import torch

import checkpoints
from common import OUT
from dataset.windows import eval_batches, open_data
from exercise import best_projection, cka, pair_layers
from losses import cross_entropy
from model import with_layers


@torch.inference_mode()
def states_and_ce(model, windows):
    """-> the output of each block (N, D), a list; mean cross-entropy. N: the tokens that count."""
    found, ce = [], []
    for x, y, document, weight in windows:
        keep, features = weight > 0, []
        logits = model.lm_head(model.hidden_states(x, document, features=features)[keep])  # (N, V)
        found.append([block["hidden"][keep] for block in features])
        ce.append(cross_entropy(logits, y[keep]))
    return [torch.cat(parts) for parts in zip(*found)], torch.cat(ce).mean().item()


def show_similarity(student, teacher):
    """Print CKA for each pair of blocks, the pairs with the largest sum, and what P explains."""
    similarity = [[cka(a, b) for b in teacher] for a in student]
    print("CKA of the student's blocks (rows) and the teacher's (columns)")
    for row in similarity:
        print(*(f"{value:7.3f}" for value in row))
    pairs = pair_layers(similarity)
    print("pairs:", ",".join(f"{own}:{other}" for own, other in enumerate(pairs, 1)))
    for own, other in enumerate(pairs, 1):
        states, goal = student[own - 1], teacher[other - 1]
        error = (states @ best_projection(states, goal).T - goal).square().sum()
        print(f"{own}:{other} P explains {1 - (error / goal.square().sum()).item():.1%}")


if __name__ == "__main__":
    teacher, tokenizer, _ = checkpoints.load_model(OUT / "teacher.pt")
    student, _, _ = checkpoints.load_model(OUT / "student-logits.pt")
    data = open_data(OUT / "data/stories/val.jsonl", tokenizer, 256)
    windows = list(eval_batches(data, 8, limit=16))
    theirs, ce = states_and_ce(teacher, windows)
    print(f"teacher with all blocks: ce {ce:.3f}")
    blocks = range(1, teacher.config.n_layers + 1)
    for left_out in blocks:
        kept = [block for block in blocks if block != left_out]
        ce = states_and_ce(with_layers(teacher, kept), windows)[1]
        print(f"without block {left_out}: ce {ce:.3f}")
    try:
        show_similarity(states_and_ce(student, windows)[0], theirs)
    except NotImplementedError:
        print("the rest comes when cka, pair_layers and best_projection are written")
