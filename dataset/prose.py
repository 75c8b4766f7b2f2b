"""Real English without a download: Python's own documentation, from the Python that runs this.

    python dataset/prose.py        # about 1.6 M characters, CPU, about 10 s

In prose many next tokens are possible, so soft targets say more than in arithmetic. A hash of the
module name gives the split (90/5/5). The text depends on the Python version: note its SHA-256.
"""
import ast
import contextlib
import hashlib
import inspect
import platform
import random
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, command, run
from dataset.stories import write_set

SPLITS = ("train", "val", "test")
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
MIN_CHARS = 200  # shorter texts are left out


@dataclass
class Config:
    out: str = OUT / "data" / "prose"  # folder of train, val, test .jsonl and about.json
    fresh: bool = False      # replace existing files


def sources(stdlib):
    """Yield (name, text): pydoc's help topics, and each docstring of the .py files under stdlib."""
    from pydoc_data.topics import topics
    yield from ((f"topic:{name}", text) for name, text in sorted(topics.items()))
    for path in sorted(stdlib.rglob("*.py"), key=lambda p: p.relative_to(stdlib).as_posix()):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIP & set(parts):
            continue
        with contextlib.suppress(SyntaxError, ValueError):  # not Python 3
            nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, DOCUMENTED)]
            yield from ((parts[0], ast.get_docstring(n, clean=False) or "") for n in nodes)


def collect(found):
    """Yield (split, row) for (name, text) pairs, shuffled, so that the first N are a fair sample. A
    repeated long paragraph is dropped, because the topic "compound" contains all of "if"."""
    rows, seen = {split: [] for split in SPLITS}, set()
    for module, text in found:
        kept = []
        for paragraph in inspect.cleandoc(text).split("\n\n"):
            plain = " ".join(paragraph.split())  # topics indent quoted text
            if plain not in seen:
                kept.append(paragraph)
            if len(plain) >= 80:  # short ones may repeat
                seen.add(plain)
        text = "\n\n".join(kept).strip()
        if len(text) >= MIN_CHARS:
            bucket = int(hashlib.sha256(f"prose {module}".encode()).hexdigest()[:8], 16) % 100
            split = "train" if bucket < 90 else "val" if bucket < 95 else "test"
            rows[split].append({"text": text, "module": module})
    for split in SPLITS:
        random.Random(0).shuffle(rows[split])
        yield from ((split, row) for row in rows[split])


def main(cfg):
    settings = dict(min_chars=MIN_CHARS, order="shuffled", python=platform.python_version())
    rows = collect(sources(Path(sysconfig.get_paths()["stdlib"])))
    write_set(cfg.out, SPLITS, rows, settings, cfg.fresh)
    print("next:", command("tokenizer/train.py", f"{cfg.out}/train.jsonl",
                           out=OUT / f"{Path(cfg.out).name}.model"))


if __name__ == "__main__":
    run(main, Config)
