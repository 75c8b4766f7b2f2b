"""Claims about runs/*.sh: with a python that only notes what it is asked, they make the rows that are
committed, and no row twice."""
import os
import re
import shutil
import subprocess

import pytest

import rowfile
from cli import ROOT

PYTHON = """#!/usr/bin/env bash
echo "$*" >> commands
before=
for word; do
    if [ "$before" = --name ]; then touch "out/$word.pt"; fi
    if [ "$before" = --out ]; then mkdir -p "$(dirname "$word")"; [ -e "$word" ] || echo > "$word"; fi
    before=$word
done
if [ "$1" = serve.py ]; then echo ready:; exec sleep 20; fi
"""


@pytest.fixture
def bash(tmp_path):
    """A function: `bash("spine.sh", ONLY=...)` runs a script in a project without data -> what it did,
    and the commands that it gave."""
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(PYTHON)
    python.chmod(0o755)
    shutil.copytree(ROOT / "runs", tmp_path / "runs")
    (tmp_path / "out/data").mkdir(parents=True)
    for name in ("teacher.pt", "data/few.jsonl"):
        (tmp_path / "out" / name).touch()

    def run(script, **env):
        (tmp_path / "commands").write_text("")
        done = subprocess.run(["bash", tmp_path / "runs" / script], capture_output=True, text=True,
                              env={"PATH": os.environ["PATH"], **env}, timeout=60)
        return done, (tmp_path / "commands").read_text().splitlines()
    return run


def rows_made(commands):
    """{(recipe, seed)} of the rows that these commands append."""
    found = set()
    for command in commands:
        if command.startswith("eval.py"):
            found.add((re.search(r"--recipe (\S+)", command)[1],
                       int(re.search(r"--out \S+-(\d+) ", command)[1])))
        elif command.startswith("speed.py"):
            turn = int(re.search(r"--seed (\d+)", command)[1])
            found |= {(f"few/speed/{which}", turn) for which in (1, 2)}
    return found


@pytest.mark.parametrize("script, name", [
    ("results.sh", "scoreboard"), ("spine.sh", "spine"), ("sweep.sh", "sweep"),
    ("whitebox.sh", "whitebox"), ("lessons.sh", "blackbox")])
def test_a_script_makes_the_rows_that_are_committed_and_none_of_them_again(bash, tmp_path, script, name):
    """A recipe renamed in a script is trained for hours beside its old row."""
    rows = {(row["recipe"], row["seed"]) for row in rowfile.read(ROOT / f"results/{name}.jsonl", "seed")}
    done, commands = bash(script, GSM8K=os.devnull)
    assert done.returncode == 0, done.stderr
    assert rows <= rows_made(commands)
    shutil.copy(ROOT / f"results/{name}.jsonl", tmp_path / "results")
    done, commands = bash(script, GSM8K=os.devnull)
    assert done.returncode == 0 and not rows & rows_made(commands), done.stderr


def test_a_pattern_chooses_the_recipes(bash):
    """ONLY had two meanings; and a count of rows that no script had made ended another one."""
    _, commands = bash("spine.sh", ONLY="*reason*", SEEDS="2")
    assert rows_made(commands) == {(f"stories/reason/{kind}", 2) for kind in ("cot", "answer", "gold")}
    done, commands = bash("lessons.sh", ONLY="blackbox/rows-*", SEEDS="1")
    assert rows_made(commands) == {(f"blackbox/rows-{percent}", 1) for percent in (1, 3, 10, 30)}
    assert commands[0].startswith("dataset/stories.py") and done.returncode == 0


def test_a_row_makes_what_it_needs_and_no_more(bash):
    """A trial made the suites of validation problems; a student evaluated once more was not trained;
    the prose's teacher was asked the stories' questions; every recipe of the white box made documents
    and a second teacher that it did not read."""
    _, commands = bash("lessons.sh", ONLY="trial/blackbox/*")
    assert [c for c in commands if "suites.py --data out/data/blackbox-stories/test.jsonl" in c]
    _, commands = bash("lessons.sh", ONLY="blackbox/multi-bare", SEEDS="1")
    assert [c for c in commands if "--name blackbox-multi-1 " in c] and \
        rows_made(commands) == {("blackbox/multi-bare", 1)}
    _, commands = bash("results.sh", ONLY="few/speed/*")
    assert commands and not [c for c in commands if "prose-teacher" in c]
    for recipe, made in (("jsd", ()), ("cached-two", ("white-teacher-1",)), ("written", ("write.py",))):
        _, commands = bash("whitebox.sh", ONLY=f"white/{recipe}", SEEDS="1")
        assert rows_made(commands) == {(f"white/{recipe}", 1)}
        for word in ("white-teacher-1", "write.py"):
            assert any(word in c for c in commands) == (word in made), (recipe, word)


def test_what_a_script_needs_is_said_in_one_line(bash, tmp_path):
    """A traceback of the script that it was about to call."""
    (tmp_path / "out/teacher.pt").unlink()
    for script in ("sweep.sh", "spine.sh", "lessons.sh", "blackbox.sh"):
        done, commands = bash(script)
        assert (done.returncode, done.stderr, commands) == (
            2, "error: no out/teacher.pt; first: bash speedrun.sh\n", [])
