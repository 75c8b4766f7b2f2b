"""Corrupt rows on purpose: what does the student learn from a chain of thought?

    python runs/spoil.py --how shuffled --out out/data/shuffled.jsonl

    shuffled    the steps of a chain in another order; the answer stays the same
    wrong       another number as the last result and the answer; the order stays the same
    unjudged    (--input OUT.all.jsonl) all complete answers, right or wrong

After Li et al. 2025 ("LLMs can easily learn to reason from demonstrations"). Their student is a
pretrained model. Ours starts from random weights, and a step is a line such as "3+19=22".
"""
import random
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, between, check, command, run, show, write_file
from dataset.formats import parse_row, read_documents
from dataset.verify import parse_number, turn_row
from metrics import json_lines


@dataclass
class Config:
    input: str = OUT / "data/traces.jsonl"  # rows of blackbox/generate.py, with thoughts
    how: Literal["shuffled", "wrong", "unjudged"] = "shuffled"  # what to change, see above
    share: float = 0.5             # share of the suitable rows that change (0.25 to 1)
    out: str = OUT / "data/spoiled.jsonl"  # the new rows
    seed: int = 0                  # random seed
    fresh: bool = False            # replace an existing file


def corrupted(rng, turn, how):
    """-> the turn with its steps in another order, or with another answer from 1 to 99. None if it
    has no other order, or if the chain does not end with its answer."""
    steps, other = (turn.think or "").split("\n"), turn.answer
    if how == "shuffled" and len(set(steps)) > 1:
        while "\n".join(steps) == turn.think:
            rng.shuffle(steps)
        return replace(turn, think="\n".join(steps))
    if how == "wrong" and steps[-1].endswith(f"={other}") and parse_number(other) is not None:
        while other == turn.answer:
            other = str(rng.randint(1, 99))
        return replace(turn, think=turn.think.removesuffix(turn.answer) + other, answer=other)


def unjudged(row):
    """A row of OUT.all.jsonl -> turns; [] for other rows, incomplete answers and no thought."""
    if row.get("verdict") not in ("ok", "wrong answer", "unverified") or "content" not in row:
        return []
    reply = {name: row[name] for name in ("content", "reasoning_content")}
    turns = parse_row(dict(conversations=[*row["conversations"], dict(reply, role="assistant")]))
    return turns if turns[-1].think else []


def main(cfg):
    between(cfg, 0, 1, "share")
    rng, out, rows, count = random.Random(cfg.seed), Path(cfg.out), [], 0
    check(cfg.fresh or not out.exists(), f"{show(out)} is there already; --fresh replaces it")
    read = unjudged if cfg.how == "unjudged" else parse_row
    for place, turns in filter(lambda found: found[1], read_documents(cfg.input, parse=read)):
        check(isinstance(turns, list), f"{place}: plain text has no steps")
        other = corrupted(rng, turns[-1], cfg.how)
        if other and rng.random() < cfg.share:
            turns, count = [*turns[:-1], other], count + 1
        rows.append(dict(conversations=[turn_row(turn) for turn in turns]))
    count = count if read is parse_row else len(rows)
    check(count, f"{show(cfg.input)} has no row with a thought for --how {cfg.how}")
    write_file(out, json_lines(rows))
    print(f"{show(out)}: {count:,} of {len(rows):,} rows {cfg.how}\nnext:",
          command("train_distill_reason.py", name=f"student-{out.stem}", data=out))


if __name__ == "__main__":
    run(main, Config)
