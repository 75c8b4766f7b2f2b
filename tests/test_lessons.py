"""Claims about lessons/: checks accept right solutions and refuse others, texts and commands agree."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import ROOT

sys.path.insert(0, str(ROOT / "lessons"))
import check
import sandbox

SOLUTIONS = ROOT / "lessons/solutions"
each_lesson = pytest.mark.parametrize("lesson", check.LESSONS)
WEIRD = [None, True, 0, 1, -1.0, float("nan"), float("inf"), "", "text", [], [1, [2.0, "x"]], {},
         {"a": None}, torch.zeros(()), torch.ones(4), torch.full((2, 2), torch.nan),
         torch.zeros(0, 3), torch.zeros(100_000), torch.ones(2, 2, 4).long(), ValueError("no")]


def graded(lesson, text, tmp_path):
    """Run our own code in this process -> the rows of check.judged."""
    path = tmp_path / "exercise.py"
    path.write_text(text, encoding="utf-8")
    checks = check.checks_of(lesson)
    answers = [sandbox.unpack(row) for row in sandbox.answer(path, checks.calls())]
    return check.judged(checks, answers)


def points(rows):
    return sum(row["points"] for row in rows if row["ok"])


def wrong_ones(lesson):
    """solutions/N-wrong.txt -> (title, hint, text of the wrong solution): "- " lines become the "+ " lines below."""
    right = (SOLUTIONS / f"{lesson}.py").read_text(encoding="utf-8")
    text = (SOLUTIONS / f"{lesson}-wrong.txt").read_text(encoding="utf-8")
    for part in re.split(r"^== ", text, flags=re.M)[1:]:
        title, hint, *lines = part.strip("\n").split("\n")
        text = right
        for old, new in re.findall(r"^((?:- .*\n)+)((?:\+ ?.*\n)*)", "\n".join([*lines, ""]), re.M):
            old, new = ("\n".join(line[2:] for line in side.splitlines()) for side in (old, new))
            assert text.count(old) == 1, f"lesson {lesson}, {title}: {old!r} must occur once"
            text = text.replace(old, new)
        assert hint.startswith("hint: ") and text != right, title
        yield title, hint.removeprefix("hint: "), text


@each_lesson
def test_the_solution_has_all_points_and_each_wrong_one_fewer_with_its_hint(lesson, tmp_path):
    """Checks could accept a plausible mistake, or answer it with a hint about something else."""
    rows = graded(lesson, (SOLUTIONS / f"{lesson}.py").read_text(encoding="utf-8"), tmp_path)
    assert [row for row in rows if not row["ok"]] == [] and points(rows) == 10
    checks = check.checks_of(lesson)
    assert sum(points for _, _, points in checks.TASKS) == 10
    assert {name for name, _ in checks.calls()} == {name for name, _, _ in checks.TASKS}
    wrong = list(wrong_ones(lesson))
    assert len(wrong) >= 5
    for title, hint, text in wrong:
        rows = graded(lesson, text, tmp_path)
        assert points(rows) < 10, title
        shown = [row["hint"] for row in rows if not row["ok"]]
        assert any(hint in line for line in shown), f"{title}: {shown}"
    named = [row["hint"].split(": ")[0] for row in rows]  # each hint begins with its function
    assert list(dict.fromkeys(named)) == [name for name, _, _ in checks.TASKS]


@each_lesson
def test_a_stub_and_answers_of_any_type_have_no_points(lesson, tmp_path):
    """A judge could raise on a strange answer, or give points to a function that ignores its input."""
    stub = (check.LESSONS[lesson] / "exercise.py").read_text(encoding="utf-8")
    assert points(graded(lesson, stub, tmp_path)) == 0
    checks = check.checks_of(lesson)
    for weird in WEIRD:
        rows = check.judged(checks, [weird] * len(checks.calls()))
        assert points(rows) <= 1, (weird, [row["hint"] for row in rows if row["ok"]])


@pytest.mark.slow
@each_lesson
def test_every_command_of_a_lesson_runs_after_the_speedrun(lesson, fast):
    """A lesson's command could fail in class: a renamed flag, a file that the speedrun does not make."""
    text = (check.LESSONS[lesson] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.M | re.S)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], cwd=ROOT,
                          env={**os.environ, "MINIDISTILL_OUT": str(fast), "PATH": path},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((fast / f"lesson-{lesson}.json").read_text(encoding="utf-8"))
    assert (found["points"], found["note"]) == (0, "not written yet")
