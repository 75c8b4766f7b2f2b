"""Look at tokens, mask and documents of a window, and at the teacher's loss with four mistakes.

    python lessons/2-language-model/look.py
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))
import torch

from checkpoints import load_model
from dataset.windows import OUT, open_data, tensors
from losses import cross_entropy

teacher, tokenizer, _ = load_model(OUT / "teacher.pt")
data = open_data(OUT / "data/stories/val.jsonl", tokenizer, window=256)

# ids, mask, document: (windows, 257) each. Where does the second conversation of window 0 begin?
second = int((data["document"][0] == 2).argmax())
for name in ("document", "mask", "ids"):
    row = data[name][0, second - 4:second + 3].tolist()
    if name == "ids":
        name, row = "token", [tokenizer.decode([i], show_control=True) for i in row]
    print(f"{name:9}" + "".join(f"{item:>10}" for item in row))

x, y, document, weight = tensors(data, range(8))  # (8, 256) each; y is x shifted by one
with torch.no_grad():
    logits = teacher(x, document)                 # (8, 256, V)
keep = weight > 0                                 # (8, 256) the places that count
right = cross_entropy(logits, y)[keep].mean()
print(f"right                 {right:.4f}")
print(f"labels not shifted    {cross_entropy(logits, x)[keep].mean():.4f}")
print(f"labels shifted twice  {cross_entropy(logits[:, :-1], y[:, 1:])[keep[:, 1:]].mean():.4f}")
print(f"no mask               {cross_entropy(logits, y).mean():.4f}")
print(f"divided by V as well  {right / tokenizer.vocab_size:.4f}")
