"""What a step of a run cost: the median of its log, as a row. runs/whitebox.sh --times calls it.

    python runs/step_time.py out/NAME.csv --recipe white/forward --row results/whitebox-times.jsonl

The first ten steps are left out (they warm up). With --making, seconds spent before the first step,
such as those that made a cache, stand beside it.
"""
import csv
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli
import oldcommon as common
import rowfile
from cli import check, fail, show


@dataclass
class Config:
    logs: list = None              # one log of a training, as a word without a flag
    row: str = "results/whitebox-times.jsonl"  # the row is added to this file
    recipe: str = ""               # what was run
    turn: int = 1                  # which measurement of several
    making: float = 0.0            # seconds spent before the first step


def main(cfg):
    """Read the log, append the row."""
    check(len(cfg.logs or ()) == 1, "the log", cfg.logs, "one .csv of out/")
    check(cfg.recipe, "--recipe", cfg.recipe, "a name")
    path = cli.need_file(cfg.logs[0], "a training script")
    with path.open(newline="") as file:
        seconds = [float(row["seconds"]) for row in csv.DictReader(file) if int(row["step"]) > 10]
    if not seconds:
        fail(f"{show(path)} has no step after the tenth", fix="a longer run, --log-every 1")
    ms = 1000 * statistics.median(seconds)
    rowfile.append(cfg.row, dict(recipe=cfg.recipe, seed=cfg.turn, versions=common.versions(),
                                 metrics=dict(ms=ms, steps=len(seconds), making=cfg.making)))
    print(f"{cfg.recipe}: {ms:.1f} ms a step, {cfg.making:.1f} s before")


if __name__ == "__main__":
    cli.run(main, Config)
