"""Check an exercise, or grade a class.

    python lessons/check.py 3                                   your lessons/3-*/exercise.py
    python lessons/check.py --grade FOLDER --out grades.csv     FOLDER/NAME/3.py, for all names

A lesson has 10 points. A submission runs in a process of its own, from a copy in a temporary folder
(sandbox.py). It is called with the arguments of `calls()` in the lesson's checks.py, and only data
come back: numbers, text, lists, dicts, tensors. This process never imports a submission. It gives
the points, so nothing that a submission prints or writes is a grade. After 6 seconds of calls the
process dies, with all processes that it started. What it had answered before still counts.

This protects the grades from mistakes and from most tricks. It does NOT protect the computer. A
submission runs as you: it can read, change and delete your files, use the network and kill this
process. It can also read lessons/solutions, or contain the expected numbers. So grade strangers in
a container or as a separate user, in a copy without lessons/solutions, and look into submissions
that have all points. The limits of memory and of processes work only on Linux, and root has no
limit of processes. Only Linux can find a process that has left its group.

For authors: judge(answers) yields (points, ok, hint), in the order of TASKS. ok may be a function
without arguments. If it raises, this check has failed, and the next ones still count. An answer is
an Exception object if the call raised. In the calls autograd is off, and each call has its own copy
of its arguments.
"""
import csv
import functools
import io
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
import common
import torch

import sandbox
from common import OUT, check, show, write_file

LESSONS = {int(path.name.split("-")[0]): path for path in sorted(HERE.glob("[0-9]*-*"))}


@dataclass
class Config:
    lesson: list = None      # number of a lesson, without a flag: check your exercise
    grade: str = ""          # folder of submissions: FOLDER/NAME/3.py for all names and lessons
    out: str = "grades.csv"  # table that --grade writes
    fresh: bool = False      # replace an existing --out


def near(answer, expected, tolerance=1e-4):
    """For judge: is a number, or a tensor of the right shape, nowhere further away than tolerance?
    NaN is not near. It raises if the answer is something else, so: `lambda: near(...)`."""
    answer, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (answer, expected))
    return answer.shape == expected.shape and bool(((answer - expected).abs() <= tolerance).all())


@functools.cache  # before the first submission runs: it could change the file
def checks_of(lesson):
    return sandbox.load(LESSONS[lesson] / "checks.py")


def judged(checks, answers):
    """Ask judge -> list of dicts: points, ok, hint. It never raises, whatever the answers are.
    A hint begins with the name of its function. TASKS says how many points each function has."""
    names = [name for name, _, points in checks.TASKS for _ in range(points)]  # of each point
    rows, done, total = [], 0, len(names)
    try:
        for points, ok, hint in checks.judge(answers):
            try:
                ok = bool(ok() if callable(ok) else ok)
            except Exception:  # an answer of another type or shape
                ok = False
            rows.append(dict(points=points, ok=ok, hint=f"{names[done]}: {hint}"))
            done += points
    except Exception as error:
        rows.append(dict(points=total - done, ok=False,
                         hint=f"does each answer fit its docstring? {type(error).__name__}"))
    return rows


def examine(submission, lesson, **output):
    """Run and judge a submission -> dict: lesson, points, of, note, checks; errors: by function."""
    checks = checks_of(lesson)
    calls, errors = checks.calls(), {}
    answers = sandbox.run(submission, calls, **output)
    failed = [(name, found) for (name, _), found in zip(calls, answers)
              if isinstance(found, Exception)]
    for name, found in failed:
        errors.setdefault(name, str(found))
    rows = judged(checks, answers)
    return dict(lesson=lesson, points=sum(row["points"] for row in rows if row["ok"]),
                of=sum(points for _, _, points in checks.TASKS), note=noted(failed, len(calls)),
                checks=rows, errors=errors)


def noted(failed, calls):
    """What went wrong, in our words. The submission's own do not reach the table."""
    kinds = {type(found) for _, found in failed}
    if TimeoutError in kinds:
        return "took too long"
    if len(failed) == calls and kinds == {NotImplementedError}:
        return "not written yet"
    if RuntimeError in kinds:
        return "every call failed" if len(failed) == calls else "some calls failed"
    return "partly written" if failed else ""


def check_own(lesson):
    """Check lessons/N-*/exercise.py, print points and hints, write out/lesson-N.json."""
    found = examine(LESSONS[lesson] / "exercise.py", lesson, output=None)
    note = f", {found['note']}" if found["note"] else ""
    print(f"lesson {lesson}: {found['points']} of {found['of']} points{note}")
    if found["note"] != "not written yet":
        for name, text in found["errors"].items():
            print(f"  {name}: {text}")
        for row in sorted(found["checks"], key=lambda row: row["ok"]):  # failed ones first
            print(f"  {'ok  ' if row['ok'] else 'hint'} | {row['points']} | {row['hint']}")
    write_file(OUT / f"lesson-{lesson}.json", json.dumps(found, indent=1, ensure_ascii=False))


def usable(path):
    """Is it a small regular file, and no link? A link could point at the solution."""
    return path.is_file() and not path.is_symlink() and not path.parent.is_symlink() \
        and path.stat().st_size <= sandbox.LARGEST


def grade(folder, out):
    """Grade FOLDER/NAME/N.py -> the table `out`: a row a NAME, a column a lesson handed in. Beside
    it, OUT.json has all checks of all submissions."""
    students = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    lessons = [n for n in LESSONS if any((path / f"{n}.py").exists() for path in students)]
    check(lessons, f"{show(folder)} has no NAME/N.py with N from {', '.join(map(str, LESSONS))}")
    for lesson in lessons:
        checks_of(lesson)
    table, began, details = [["name", *lessons, "total", "note"]], time.time(), {}
    for done, student in enumerate(students, 1):
        points, notes = [], []
        for lesson in lessons:
            path, found = student / f"{lesson}.py", dict(points=0, note="not handed in")
            if usable(path):
                found = examine(path, lesson)
            elif path.exists():
                found["note"] = "no regular file"
            details[f"{student.name}/{path.name}"] = found
            points.append(found["points"])
            notes += [f"{lesson}: {found['note']}"] if found["note"] else []
        table.append([student.name, *points, sum(points), "; ".join(notes)])
        left = common.eta((time.time() - began) / done * (len(students) - done))
        print(f"{done:>3}/{len(students)} | {student.name} | {sum(points)} points | "
              f"{'; '.join(notes) or 'ok'} | {left}")
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(table)
    write_file(out.with_suffix(".json"), json.dumps(details, indent=1, ensure_ascii=False))
    write_file(out, text.getvalue())
    print(f"{show(out)}: {len(students)} students, lessons {', '.join(map(str, lessons))}")


def main(cfg):
    if cfg.grade:
        folder, out = Path(cfg.grade), Path(cfg.out)
        check(folder.is_dir(), f"--grade {cfg.grade}: must be a folder")
        check(out.suffix == ".csv", f"--out {cfg.out}: must end in .csv; a .json is written, too")
        for file in (out, out.with_suffix(".json")):
            check(cfg.fresh or not file.exists(), f"{file} exists; choose another or --fresh")
        return grade(folder, out)
    word = "".join(cfg.lesson or [])
    check(word.isdigit() and int(word) in LESSONS,
          f"lesson {word!r}: must be one of {', '.join(map(str, LESSONS))}, or use --grade")
    check_own(int(word))


if __name__ == "__main__":
    common.run(main, Config)
