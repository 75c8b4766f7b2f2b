"""Real English without a download: Python's own documentation, from the Python that runs this.

    python dataset/prose.py        # about 1.6 M characters, CPU, about 10 s

Last line: next: python tokenizer/train.py out/data/prose/train.jsonl --out out/prose.model

Two sources: the help topics of `pydoc` and the docstrings of the standard library, read with
`ast` (no module is imported). Where arithmetic has one right next token, prose has many: here the
teacher's soft targets have something to say.

Train, val and test (90/5/5) are split by a hash of the module or topic, so no module stands in two.
Topics quote each other ("compound" contains all of "if"), hence a paragraph that has been seen
before is dropped: it would leak from train to test. That costs 16 % of the characters. The texts
of a split are shuffled: the first quarter of them is a sample of all. The text
differs between Python versions: the sha256 printed here belongs into every result.
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
from cli import OUT, check_ranges, fail, run, show  # noqa: E402
from dataset.stories import already_made, write_set  # noqa: E402

SPLITS = ("train", "val", "test")
SKIP = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
PARAGRAPH = 80  # characters from which a repeated paragraph is dropped; shorter ones are idioms


@dataclass
class Config:
    min_chars: int = 200     # shorter texts are left out (50 to 1,000)
    out: str = OUT / "data" / "prose"  # folder of train, val, test .jsonl and about.json
    fresh: bool = False      # replace what is there


def topics():
    """Yield (name, text) of pydoc's help topics; some builds of Python leave them out."""
    try:
        from pydoc_data.topics import topics as found
    except ImportError:
        print("note: this Python has no pydoc_data.topics; going on with the docstrings alone")
        return
    for name in sorted(found):
        yield f"topic:{name}", found[name]


def docstrings(stdlib):
    """Yield (top-level module, docstring) for every .py file under the folder stdlib."""
    for path in sorted(stdlib.rglob("*.py"), key=lambda p: p.relative_to(stdlib).as_posix()):
        parts = path.relative_to(stdlib).with_suffix("").parts
        if SKIP & set(parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # templates and Python 2 samples that some builds ship
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield parts[0], ast.get_docstring(node, clean=False) or ""


def split_of(module):
    """"train", "val" or "test" from a hash of the module's name."""
    bucket = int(hashlib.sha256(f"prose {module}".encode()).hexdigest()[:8], 16) % 100
    return "train" if bucket < 90 else "val" if bucket < 95 else "test"


def collect(sources, min_chars):
    """{split: rows}: cleaned texts of at least min_chars, long paragraphs kept once in all."""
    rows, seen = {split: [] for split in SPLITS}, set()
    for module, text in sources:
        kept = []
        for paragraph in inspect.cleandoc(text).split("\n\n"):
            plain = " ".join(paragraph.split())  # topics indent what they quote
            if len(plain) >= PARAGRAPH:
                if plain in seen:
                    continue
                seen.add(plain)
            kept.append(paragraph)
        text = "\n\n".join(kept).strip()
        if len(text) >= min_chars:
            rows[split_of(module)].append({"text": text, "module": module})
    for found in rows.values():  # so that the first N documents are a sample, not the topics alone
        random.Random(0).shuffle(found)
    return rows


def write(out, rows, settings):
    """The splits and about.json, and a line about each."""
    pairs = ((split, row) for split in SPLITS for row in rows[split])
    texts = {split: len(rows[split]) for split in SPLITS}
    characters = {split: sum(len(row["text"]) for row in rows[split]) for split in SPLITS}
    hashes = write_set(out, SPLITS, pairs, settings, texts=texts, characters=characters)
    for split in SPLITS:
        print(f"{split:<6} {texts[split]:>6,} texts | {characters[split]:>10,} characters | "
              f"sha256 {hashes[split][:12]} | {show(out / f'{split}.jsonl')}")
    print(f"Python {settings['python']}; whole hashes in {show(out / 'about.json')}")


def main(cfg):
    """Collect, split, write."""
    check_ranges(cfg, min_chars=(1, 10**9))
    out = Path(cfg.out)
    settings = {"min_chars": cfg.min_chars, "order": "shuffled",
                "python": platform.python_version()}
    if not already_made(out, SPLITS, settings, cfg.fresh):
        stdlib = Path(sysconfig.get_paths()["stdlib"])
        rows = collect([*topics(), *docstrings(stdlib)], cfg.min_chars)
        if not all(rows.values()):
            fail("too little prose", f"{sum(map(len, rows.values()))} texts under {stdlib}",
                 fix="use a Python with its standard library as .py files, or a lower --min-chars")
        write(out, rows, settings)
    print(f"next: python tokenizer/train.py {show(out / 'train.jsonl')} --out out/prose.model")


if __name__ == "__main__":
    run(main, Config)
