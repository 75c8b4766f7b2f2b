"""How much probability has a model for the tokens that a cache keeps? At the cache's temperature.

    python lessons/4-teacher-cache/kept.py out/data/lesson4-k4 out/teacher.pt out/student-logits.pt
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import numpy as np
import torch

import checkpoints
from common import OUT
from dataset.windows import eval_batches, open_data
from losses import log_softmax


@torch.inference_mode()
def kept_mass(path, ids, about):
    """Mean p of the kept tokens ids (N, k), for a checkpoint -> a number from 0 to 1."""
    model, tokenizer, _ = checkpoints.load_model(path)
    data = open_data(OUT / "data/stories/train.jsonl", tokenizer, about["window"],
                     documents=about["documents"])
    logits = torch.cat([model(x, document, weight > 0)
                        for x, _, document, weight in eval_batches(data, 32)])  # (N, V)
    return log_softmax(logits, about["temperature"]).exp().gather(-1, ids).sum(-1).mean().item()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    ids = torch.from_numpy(np.load(folder / "ids-0000.npy").astype(np.int64))  # (N, k)
    for path in sys.argv[2:]:
        mass = kept_mass(path, ids, about)
        print(f"{Path(path).stem:<14} temperature {about['temperature']:g}: {mass:.1%} of its "
              f"probability on the kept tokens, {1 - mass:.1%} in the bucket")
