"""Real English without a download: Python's own documentation, from the Python that runs this.

    python dataset/prose.py        # about 1.6 M characters, CPU, about 10 s

Last line: next: python tokenizer/train.py out/data/prose/train.jsonl --out out/prose.model

Arithmetic has one right next token, prose has many: here soft targets have something to say. The
text is that of pydoc's topics and of docstrings. It depends on the Python version: its SHA-256
belongs into every result. A hash of the module or topic is its split (90/5/5).
"""
import ast
import hashlib
import inspect
import platform
import random
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, check, command, run  # noqa: E402
from dataset.stories import write_set  # noqa: E402

SPLITS = ("train", "val", "test")
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
MIN_CHARS = 200  # shorter texts are left out
PARAGRAPH = 80  # characters from which a repeated paragraph is dropped; shorter ones are idioms


@dataclass
class Config:
    out: str = OUT / "data" / "prose"  # folder of train, val, test .jsonl and about.json
    fresh: bool = False      # replace what is there


def sources(stdlib):
    """Yield (name, text): pydoc's help topics, and each docstring of the .py files under stdlib."""
    from pydoc_data.topics import topics
    yield from ((f"topic:{name}", text) for name, text in sorted(topics.items()))
    for path in sorted(stdlib.rglob("*.py"), key=lambda p: p.relative_to(stdlib).as_posix()):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIP & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates, Python 2
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield parts[0], ast.get_docstring(node, clean=False) or ""


def split_of(module):
    """"train", "val" or "test" from a hash of the module's name."""
    bucket = int(hashlib.sha256(f"prose {module}".encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 90 else "val" if bucket < 95 else "test"


def collect(found):
    """(name, text) pairs -> (split, row) pairs, shuffled: the first N are a sample.

    A repeated long paragraph is dropped. The topic "compound" contains all of "if": it would leak.
    """
    rows, seen = {split: [] for split in SPLITS}, set()
    for module, text in found:
        kept = []
        for paragraph in inspect.cleandoc(text).split("\n\n"):
            plain = " ".join(paragraph.split())  # topics indent what they quote
            if plain not in seen:
                kept.append(paragraph)
            if len(plain) >= PARAGRAPH:
                seen.add(plain)
        text = "\n\n".join(kept).strip()
        if len(text) >= MIN_CHARS:
            rows[split_of(module)].append({"text": text, "module": module})
    check(all(rows.values()), "too little prose; use a Python that has its library as .py files")
    for split in SPLITS:
        random.Random(0).shuffle(rows[split])
        yield from ((split, row) for row in rows[split])


def main(cfg):
    """Collect, split, write."""
    settings = dict(min_chars=MIN_CHARS, order="shuffled", python=platform.python_version())
    rows = collect(sources(Path(sysconfig.get_paths()["stdlib"])))
    write_set(cfg.out, SPLITS, rows, settings, cfg.fresh)
    train = Path(cfg.out) / "train.jsonl"
    print("next:", command("tokenizer/train.py", train, out="out/prose.model"))


if __name__ == "__main__":
    run(main, Config)
