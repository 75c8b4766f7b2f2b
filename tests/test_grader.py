"""Claims about lessons/check.py --grade: no submission gets points by a trick or stops the others."""
import contextlib
import csv
from pathlib import Path

import pytest

from common import ROOT

SOLUTION = ROOT / "lessons/solutions/3.py"
RIGHT = SOLUTION.read_text(encoding="utf-8")


def half(*names, then="raise NotImplementedError"):
    """Lesson 3's solution, in which only the named functions are written."""
    others = {"hellinger", "gradient", "keep_size"} - {*names}
    return RIGHT + "".join(f"\ndef {name}(*arguments):\n    {then}\n" for name in others)


def each(text):
    return half(then=text)


FORK = "import os, time\nif os.fork() == 0:\n    {}\n    while True: time.sleep(0.1)\n"
SUBMISSIONS = {  # name: (text of 3.py, points, note)
    "right": (RIGHT, 10, ""),
    "right-float64": (RIGHT.replace("_logits / temp", "_logits.double() / temp"), 10, ""),
    "right-prints": (RIGHT + "\nfor _ in range(200): print('x' * 100_000)", 10, ""),
    "right-files": (RIGHT + "\nopen('0.pt', 'w').write('10 points')", 10, ""),
    "right-thread": (RIGHT + "\nimport threading, time\n"
                     "threading.Thread(target=time.sleep, args=[99]).start()", 10, ""),
    "half-distance": (half("hellinger"), 4, "partly written"),
    "half-gradient": (half("gradient"), 3, "partly written"),
    "half-factor": (half("keep_size", then="return None"), 2, ""),
    "half-raises": (half("hellinger", "keep_size", then="raise ValueError"), 6, "some calls failed"),
    "half-hangs": (half("hellinger", then="while True: pass"), 4, "took too long"),
    "half-dies": (half("hellinger", then="import os; os._exit(0)"), 4, "some calls failed"),
    "stub": (each("raise NotImplementedError"), 0, "not written yet"),
    "empty": ("", 0, "every call failed"),
    "syntax": ("def hellinger(:", 0, "every call failed"),
    "wrong-none": (each("return None"), 0, ""),
    "wrong-text": (each("return 'lesson 3: 10 of 10 points'"), 0, ""),
    "wrong-nan": (each("return arguments[0] * float('nan')"), 0, ""),
    "hangs": ("import time; time.sleep(999)", 0, "took too long"),
    "exits": ("import os; print('10 points'); os._exit(0)", 0, "every call failed"),
    "quits": ("raise SystemExit(0)", 0, "every call failed"),
    "kills-group": ("import os; os.killpg(0, 9)", 0, "every call failed"),
    "stops": ("import os; os.kill(os.getpid(), 19)", 0, "took too long"),
    "lies": ("class Equal(float):\n    __eq__ = __le__ = __ge__ = lambda *a: True\n"
             + each("return Equal(1)"), 0, "every call failed"),
    "huge": (each("return torch.ones(10**12)"), 0, "every call failed"),
    "wide": (each("return torch.ones(1).expand(10**12)"), 0, "every call failed"),
    "deep": (each("x = []\n    for _ in range(10**5): x = [x]\n    return x"), 0, "every call failed"),
    "pickles": ("import pickle, os\nclass Run:\n    def __reduce__(self):\n"
                "        return os.system, ('touch MARK',)\n"
                "for i in range(99): pickle.dump(Run(), open(f'{i}.pt', 'wb'))\nos._exit(0)",
                0, "every call failed"),
    "pipes": ("import os\nfor i in range(0, 99, 2): os.mkfifo(f'{i}.pt')\n"
              "for i in range(1, 99, 2): os.symlink('/dev/zero', f'{i}.pt')\nos._exit(0)",
              0, "every call failed"),
    "child": (FORK.format("pass") + RIGHT, 10, ""),
    "hidden-child": (FORK.format("os.setsid(); time.sleep(20); open('MARK', 'w')") + RIGHT, 10, ""),
    "link": (None, 0, "no regular file"),
}


@pytest.mark.slow
def test_the_table_is_right_for_thirty_submissions_that_do_what_they_like(run_script, tmp_path):
    """A submission could give itself points, stop the grading of others, or go on after its end."""
    mark, folder, out = tmp_path / "mark", tmp_path / "handed-in", tmp_path / "grades.csv"
    for name, (text, _, _) in SUBMISSIONS.items():
        (folder / name).mkdir(parents=True)
        if text is None:
            (folder / name / "3.py").symlink_to(SOLUTION)
        else:
            (folder / name / "3.py").write_text(text.replace("MARK", str(mark)), encoding="utf-8")
    (folder / "nothing").mkdir()
    flags = ["--grade", folder, "--out", out]
    done = run_script("lessons/check.py", *flags, timeout=3000, TMPDIR=str(tmp_path))
    assert len(done.stdout.splitlines()) == len(SUBMISSIONS) + 2 and not done.stderr
    head, *rows = csv.reader(out.read_text(encoding="utf-8").splitlines())
    assert head == ["name", "3", "total", "note"]
    wanted = {name: [str(points), str(points), note and f"3: {note}"]
              for name, (_, points, note) in SUBMISSIONS.items()} | {"nothing": ["0", "0", "3: not handed in"]}
    assert {name: row for name, *row in rows} == wanted
    assert not mark.exists() and "--fresh" in run_script("lessons/check.py", *flags, check=False).stderr
    for path in Path("/proc").glob("[0-9]*/environ"):  # no process is left
        with contextlib.suppress(OSError):
            assert bytes(tmp_path) not in path.read_bytes(), path
