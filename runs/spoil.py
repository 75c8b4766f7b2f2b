"""Rows spoiled on purpose: what in a chain of thought does the student learn from?

    python runs/spoil.py --how shuffled --out out/data/shuffled.jsonl

    shuffled    the steps of a chain in another order than they were thought; its answer is right
    wrong       the chain's last result, and so the answer, is another number; its order is right
    unjudged    (of OUT.all.jsonl) what the teacher said, right or wrong, as it was said: the rows
                of somebody who does not look at them

Last line: next: python train_distill_reason.py --data ...

Li et al. 2025 ("LLMs can easily learn to reason from demonstrations") find that a student of wrong
answers loses little and one of shuffled steps much: it is the structure that teaches. There the
student knows a good deal already and its steps are paragraphs; here it starts from random weights
and a step is one line, such as "3+19=22". A chain of one step has no other order and stays as it
is.
"""
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli
from cli import OUT, fail, show
from dataset.formats import (BadRow, Turn, json_lines, parse_response_text, read_documents,
                             turn_row)
from dataset.verify import parse_number


@dataclass
class Config:
    input: str = OUT / "data/traces.jsonl"  # rows of blackbox/generate.py, with thoughts
    how: Literal["shuffled", "wrong", "unjudged"] = "shuffled"  # see above
    share: float = 0.5             # of the rows that are spoiled (0.25 to 1)
    out: str = OUT / "data/spoiled.jsonl"  # as many rows
    seed: int = 0                  # of everything that is drawn
    skip_bad_lines: bool = False   # leave bad lines of the input out
    fresh: bool = False            # replace what is there


def shuffled(rng, turn):
    """The turn with its steps in another order, or None where there is no other one."""
    steps = turn.think.split("\n")
    others = steps[:]
    while others == steps and len(set(steps)) > 1:
        rng.shuffle(others)
    if others == steps:
        return None
    return Turn(turn.role, "", "\n".join(others), turn.answer)


def wrong(rng, turn):
    """The turn with another whole number, of 1 to 99, as its answer and its chain's last result;
    None where the chain does not end with its answer."""
    if not turn.think.endswith(f"={turn.answer}") or parse_number(turn.answer) is None:
        return None
    other = turn.answer
    while other == turn.answer:
        other = str(rng.randint(1, 99))
    return Turn(turn.role, "", turn.think.removesuffix(turn.answer) + other, other)


def spoil(rows, change, share, seed):
    """Rows, a share of them changed: `share` of those that can be, drawn by the seed.

    Returns the rows, in their order, and how many are changed.
    """
    rng, spoiled, count = random.Random(seed), [], 0
    for turns in rows:
        changed = change(rng, turns[-1]) if turns[-1].think and turns[-1].answer else None
        if changed and rng.random() < share:
            turns, count = [*turns[:-1], changed], count + 1
        spoiled.append(turns)
    return spoiled, count


def unjudged(row):
    """A line of OUT.all.jsonl -> turns, right or wrong; BadRow for another line.

    No turns: the header, and what is cut, without form or thought: no chain to learn from.
    """
    if isinstance(row, dict) and "teacher" in row:
        return []
    try:
        turns = [Turn(t["role"], t["content"]) for t in row["conversations"]]
        thought, content, found = row["reasoning_content"], row["content"], row["verdict"]
    except (KeyError, TypeError):
        raise BadRow("no answer of blackbox/generate.py", expected="a line of OUT.all.jsonl")
    if found not in ("ok", "wrong answer", "unverified"):
        return []
    said = parse_response_text(content, thought)
    return [*turns, said] if said.think else []


def main(cfg):
    """Read all rows, change some, write them in their order."""
    cli.check_ranges(cfg, share=(0.001, 1), seed=(0, 2**32 - 1))
    cli.check_apart("--out", cfg.out, cfg.input)
    path, out = cli.need_file(cfg.input, "python blackbox/generate.py"), Path(cfg.out)
    if out.exists() and not cfg.fresh:
        fail(f"{show(out)} is there already", fix="choose another --out, or --fresh replaces it")
    if cfg.how == "unjudged":
        said = [row for _, row in read_documents(path, cfg.skip_bad_lines, parse=unjudged)]
        rows = [turns for turns in said if turns]
        count = len(rows)
        print(f"{len(said) - 1 - count:,} answers are left out: cut, without form or thought")
    else:
        rows = [row for _, row in read_documents(path, cfg.skip_bad_lines)]
        if any(isinstance(row, str) for row in rows):
            fail(f"{show(path)} has rows of plain text", "text", "conversations with thoughts")
        change = shuffled if cfg.how == "shuffled" else wrong
        rows, count = spoil(rows, change, cfg.share, cfg.seed)
    if count == 0:
        fail(f"{show(path)}: no row can be spoiled", "no thoughts of several steps that end with "
             "the answer", "rows of blackbox/generate.py")
    cli.write_file(out, json_lines(dict(conversations=[turn_row(t) for t in turns])
                                   for turns in rows))
    print(f"{show(out)}: {count:,} of {len(rows):,} rows {cfg.how}\n"
          f"next: python train_distill_reason.py --name student-{out.stem} --data {show(out)} "
          "--val ...")


if __name__ == "__main__":
    cli.run(main, Config)
