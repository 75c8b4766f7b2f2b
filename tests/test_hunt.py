"""Copies for students: a handout without answers, a hunt whose bug is seen but cannot be looked up."""
import filecmp
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from common import ROOT, UserError
from lessons import handout, hunt

ANSWERS = r"solutions/|mutants|hunt|traps|grades|my\.pt|\.git/|\.pyc"


@pytest.fixture
def out(tmp_path):
    """A folder out/ as the speedrun leaves it, and what an instructor may have there, too."""
    for name in ("teacher.pt", "data/stories/val.jsonl", "grades.csv", "my.pt"):
        (tmp_path / "out/fast" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/fast" / name).write_text(name)
    return tmp_path / "out"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_handout_has_no_answers_no_history_and_no_dead_link(out, tmp_path):
    """A list of bugs in the copy would be found in a minute. A test or a link could need a lost file."""
    handout.make_copy(copy := tmp_path / "copy", out)
    names = files(copy)
    assert {"losses.py", "tests/conftest.py", "out/fast/data/stories/val.jsonl"} <= names
    assert not [name for name in names if re.search(ANSWERS, name)]
    for name in (name for name in names if name.endswith((".md", ".py"))):
        text = (copy / name).read_text(encoding="utf-8")
        assert " (docs/traps.md)" not in text and not re.search(f"^(from|import) .*({ANSWERS})", text, re.M)
        for target in re.findall(r"\]\((?!\w+:)([^)#]+)", text) if name.endswith(".md") else ():
            assert (copy / name).parent.joinpath(target).exists(), (name, target)
    with pytest.raises(UserError, match="exists"):
        handout.make_copy(copy, out)


@pytest.mark.parametrize("name", hunt.BUGS)
def test_a_hunt_has_one_bug_and_nothing_that_points_at_it(name, out, tmp_path):
    """The sheet, a time, a test or a file that is left over could tell where the bug is."""
    handout.make_copy(plain := tmp_path / "plain", out)
    hunt.make_hunt(copy := tmp_path / "copy", "Mia", name, out)
    bug, both = hunt.BUGS[name], files(plain) & files(copy)
    file, old, _, test = bug.change
    assert filecmp.cmpfiles(plain, copy, both, shallow=False)[1:] == ([file], [])
    assert files(copy) - both == {"HUNT.md", "tests/test_mine.py"}
    assert {path.stat().st_mtime for path in [copy, *copy.rglob("*")]} == {handout.WHEN}
    path, _, function = test.partition("::")
    assert f"def {function.partition('[')[0]}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
    before = (ROOT / file).read_text(encoding="utf-8").partition(old)[0]
    place = {*file[:-3].split("/"), *re.findall(r"^ *(?:def|class) (\w+)", before, flags=re.M)[-1:]}
    assert not place & {*re.findall(r"\w+", bug.symptom + bug.chinese)}
    assert bug.broken[1] < bug.healthy[0] or bug.healthy[1] < bug.broken[0]


def test_the_secret_chooses_and_the_key_tells(tmp_path, run_script):
    """Students could compute the bug from their names, or all get the same one."""
    names, secret = [f"Student {i}" for i in range(200)], "correct horse"
    first, second = ([hunt.choose(name, key) for name in names] for key in (secret, "battery staple"))
    assert first == [hunt.choose(f" {name.upper()} ", secret) for name in names]
    assert {*first} == {*hunt.BUGS} and max(Counter(first).values()) < 30
    assert sum(a == b for a, b in zip(first, second)) < 40
    (tmp_path / "names.txt").write_text("Mia Chen\n\nTom\n")
    for key, status in (("", 2), ("too short", 2), (secret, 0)):
        done = run_script("lessons/hunt.py", "--key", tmp_path / "names.txt", check=False,
                          MINIDISTILL_HUNT_SECRET=key)
        assert done.returncode == status, done.stderr
    assert [row.split(" | ")[:2] for row in done.stdout.splitlines()[2:]] == [
        [f"| {name}", hunt.choose(name, secret)] for name in ("Mia Chen", "Tom")]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "out/fast/teacher.pt").exists(), reason="needs bash speedrun.sh --fast")
@pytest.mark.parametrize("name", ["kd-tau-4", "teacher-ce", "supervised"])
def test_the_command_of_a_sheet_shows_its_symptom(name, tmp_path):
    """A sheet could describe what nobody sees, because the code or a default changed later."""
    bug = hunt.BUGS[name]
    handout.make_copy(tmp_path / "healthy", ROOT / "out", ["fast"])
    hunt.make_hunt(tmp_path / "broken", "Mia", name, ROOT / "out")
    for kind in ("healthy", "broken"):
        words = bug.command.replace("python ", f"{sys.executable} ")
        said = subprocess.run(words, shell=True, cwd=tmp_path / kind, capture_output=True, text=True,
                              env={**os.environ, "MINIDISTILL_OUT": "out/fast"}).stdout
        low, high = getattr(bug, kind)
        assert low <= float(re.search(bug.look, said)[1].replace(",", "")) <= high, said
