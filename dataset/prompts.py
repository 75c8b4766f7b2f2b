"""Questions that cover more ground: those of the distill split, some of them asked in another way.

    python dataset/prompts.py            # out/data/prompts.jsonl, as many questions, CPU, about 2 s

Last line: next: python dataset/generate.py --input out/data/prompts.jsonl --out ...

A student is as robust as the text that it has seen, and a teacher will answer any question. So a
share of the questions is changed, each by one operation, before the teacher is asked:

    typos, no_punctuation, order, upper    as in dataset/suites.py
    invented      a name and a thing that nobody has heard of: "Zavo has 3 tiblins" (Berko 1958
                  asked children about "wugs"); English alone

All of them keep the answer, so what the teacher says can be verified as before. A row says its
"operation" ("none": unchanged). Nothing that is reserved for the suites is used, but an operation
that is used here is no longer a surprise in the suite of its name: RESULTS.md says which are.
"""
import json
import random
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import OUT, atomic_write, check, check_apart, fail, need_file, run, show  # noqa: E402
from dataset import suites  # noqa: E402
from dataset.stories import tell  # noqa: E402
from dataset.story_texts import NAMES, OBJECTS  # noqa: E402


@dataclass
class Config:
    input: str = OUT / "data/stories/distill.jsonl"  # questions of dataset/stories.py
    out: str = OUT / "data/prompts.jsonl"  # the same number of questions
    operations: str = "typos,invented,no_punctuation,order"  # drawn evenly; commas between
    share: float = 0.5       # of the questions that are changed (0.2 to 0.8)
    seed: int = 0            # of everything that is drawn
    fresh: bool = False      # replace what is there


REAL = {word.lower() for items in (NAMES["en"], OBJECTS["en"]) for pair in items for word in pair}


def invented_word(rng):
    """Two or three syllables, such as "tiblin", that are no name or object of the stories."""
    while True:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") +
                       rng.choice(["", "", "b", "l", "n", "r", "s"])
                       for _ in range(rng.choice([2, 2, 3])))
        if word not in REAL and word + "s" not in REAL:
            return word


def invented(rng, row, story):
    """The same problem about a person and things that do not exist."""
    if story["lang"] == "en":
        thing = invented_word(rng)
        return tell(**{**story, "name": (invented_word(rng).title(), rng.choice(["he", "she"])),
                       "thing": (thing, thing + "s")})


OPERATIONS = dict(typos=suites.typos, invented=invented, no_punctuation=suites.no_punctuation,
                  order=suites.order, upper=suites.upper)


def changed(rng, row, operations, share):
    """The row, or with chance `share` the same question after one operation that applies to it."""
    if rng.random() < share:
        story = suites.drawn(row)
        for name in rng.sample(operations, len(operations)):
            new = OPERATIONS[name](rng, row, story)
            if new:
                turns = [new["conversations"][0], row["conversations"][1]]  # no worked steps
                return {**row, "id": new["id"], "conversations": turns, "operation": name}
    return {**row, "operation": "none"}


def read_rows(path):
    """The rows of a file of dataset/stories.py; UserError for any other line."""
    for number, line in enumerate(need_file(path, "python dataset/stories.py").open("rb"), 1):
        try:
            row = json.loads(line)
            known = suites.drawn(row)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            known = None
        if not known:
            fail(f"{show(path)}:{number}: no question of dataset/stories.py",
                 fix="--input with its distill.jsonl")
        yield row


def main(cfg):
    """Change a share of the questions, write all of them."""
    operations = cfg.operations.split(",")
    unknown = [name for name in operations if name not in OPERATIONS]
    check(not unknown, "--operations", cfg.operations, "some of " + ",".join(OPERATIONS))
    check(0 <= cfg.share <= 1, "--share", cfg.share, "a number from 0 to 1")
    check_apart("--out", cfg.out, cfg.input)
    need_file(cfg.input, "python dataset/stories.py")
    rng = random.Random(cfg.seed)
    rows = [changed(rng, row, operations, cfg.share) for row in read_rows(cfg.input)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    out = Path(cfg.out)
    if out.exists() and out.read_bytes() != data and not cfg.fresh:
        fail(f"{show(out)} is there, made otherwise", fix="choose another --out, or --fresh")
    with atomic_write(out) as file:
        file.write(data)
    counts = Counter(row["operation"] for row in rows)
    print(" | ".join(f"{name} {n:,}" for name, n in counts.most_common()))
    print(f"{show(out)}: {len(rows):,} questions\n"
          f"next: python dataset/generate.py --input {show(out)} "
          f"--out {show(out.with_name('traces-' + out.name))}")


if __name__ == "__main__":
    run(main, Config)
