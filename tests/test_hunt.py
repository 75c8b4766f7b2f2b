"""Copies for students: a handout without answers, a hunt whose bug is seen but cannot be looked up."""
import filecmp
import re
import subprocess
import sys

import pytest

from common import ROOT, write_file
from lessons import handout, hunt

ANSWERS = r"solutions/|mutants|hunt|traps|grades|my\.pt|\.git/|\.pyc"

@pytest.fixture
def out(tmp_path):
    """A folder out/ as the speedrun leaves it, and what an instructor may have there, too."""
    for name in ("teacher.pt", "data/stories/val.jsonl", "grades.csv", "my.pt"):
        write_file(tmp_path / "out/fast" / name, name)
    return tmp_path / "out"


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_handout_has_no_answers_no_history_and_no_dead_link(out, tmp_path):
    """A list of bugs in the copy would be found in a minute. A test or a link could need a lost file."""
    handout.make_copy(copy := tmp_path / "copy", out)
    assert {"losses.py", "tests/conftest.py", "out/fast/data/stories/val.jsonl"} <= (names := files(copy))
    assert not list(filter(re.compile(ANSWERS).search, names))
    for name in (name for name in names if name.endswith((".md", ".py"))):
        text = (copy / name).read_text(encoding="utf-8")
        assert " (docs/traps.md)" not in text and not re.search(f"^(from|import) .*({ANSWERS})", text, re.M)
        for target in re.findall(r"\]\((?!\w+:)([^)#]+)", text) if name.endswith(".md") else ():
            assert (copy / name).parent.joinpath(target).exists(), (name, target)


@pytest.mark.parametrize("name", hunt.BUGS)
def test_a_hunt_has_one_bug_and_nothing_that_points_at_it(name, out, tmp_path):
    """The sheet, a time, a test or a file that is left over could tell where the bug is."""
    handout.make_copy(plain := tmp_path / "plain", out)
    hunt.make_hunt(copy := tmp_path / "copy", "Mia", name, out)
    bug, both = hunt.BUGS[name], files(plain) & files(copy)
    file, old, _, (path, _, test) = *bug.change[:3], bug.change[3].partition("::")
    assert filecmp.cmpfiles(plain, copy, both, shallow=False)[1:] == ([file], [])
    assert files(copy) - both == {"HUNT.md", "tests/test_mine.py"}
    assert {path.stat().st_mtime for path in [copy, *copy.rglob("*")]} == {handout.WHEN}
    assert f"def {test.partition('[')[0]}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
    before = (ROOT / file).read_text(encoding="utf-8").partition(old)[0]
    place = {*file[:-3].split("/"), *re.findall(r"^ *(?:def|class) (\w+)", before, flags=re.M)[-1:]}
    assert not place & {*re.findall(r"\w+", bug.symptom + bug.chinese)}
    assert bug.broken[1] < bug.healthy[0] or bug.healthy[1] < bug.broken[0]


def test_the_secret_chooses_and_the_key_tells(tmp_path, run_script):
    """Students could compute the bug from their names, or all get the same one."""
    names, secret = [f"Student {i}" for i in range(200)], "correct-horse"
    first, second = ([hunt.choose(name, key) for name in names] for key in (secret, "battery staple"))
    assert first == [hunt.choose(f" {name.upper()} ", secret) for name in names]
    assert max(map(first.count, first)) < 30 and sum(a == b for a, b in zip(first, second)) < 40
    (tmp_path / "names.txt").write_text("Mia Chen\n\nTom\n")
    *refused, done = (run_script("lessons/hunt.py", "--key", tmp_path / "names.txt", check=False,
                                 MINIDISTILL_HUNT_SECRET=key) for key in ("", "too short", secret))
    assert all("MINIDISTILL_HUNT_SECRET" in one.stderr for one in refused)
    found = [row.split(" | ")[1] for row in done.stdout.splitlines()[2:]]
    assert found == [hunt.choose(name, secret) for name in ("Mia Chen", "Tom")], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kd-tau-4", "teacher-ce", "supervised"])
def test_the_command_of_a_sheet_shows_its_symptom(name, fast, tmp_path):
    """A sheet could describe what nobody sees, because the code or a default changed later."""
    handout.make_copy(tmp_path / "healthy", fast.parent, ["fast"])
    hunt.make_hunt(tmp_path / "broken", "Mia", name, fast.parent)
    bug = hunt.BUGS[name]
    for kind, (low, high) in (("healthy", bug.healthy), ("broken", bug.broken)):
        words = f"export MINIDISTILL_OUT=out/fast PATH={sys.prefix}/bin:$PATH; {bug.command}"
        said = subprocess.run(words, shell=True, cwd=tmp_path / kind, capture_output=True, text=True).stdout
        assert low <= float(re.search(bug.look, said)[1].replace(",", "")) <= high, said
