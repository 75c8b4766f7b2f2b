"""Each trap has a test that sees it: if mutants.py breaks the code, the named test must fail."""
import re
import subprocess
import sys

import pytest

import mutants
from common import ROOT


def test_every_trap_of_the_list_has_a_mutant_that_still_applies():
    """A mutant whose text is no longer in the code breaks nothing, and nobody would notice."""
    listed = {int(n) for n in re.findall(r"^\| (\d+) \|", (ROOT / "docs/traps.md").read_text("utf-8"), re.M)}
    assert listed == {mutant[0] for mutant in mutants.names().values()} == {*range(1, 35)}
    for mutant in mutants.MUTANTS:
        assert mutants.mutated(mutant) != (ROOT / mutant[1]).read_text(encoding="utf-8")
        path, _, name = mutant[4].partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / path).read_text("utf-8")


def test_a_mutant_can_be_left_in_a_copy_for_a_class(tmp_path, capsys):
    """In the exercise of docs/class.md, the bug could be missing in the copy or also be in the original."""
    copy, right = tmp_path / "broken", "scale(name, temperature) * of_log_probabilities("
    assert mutants.main(["--apply", "3", str(copy)]) == 0
    assert [right in (root / "losses.py").read_text("utf-8") for root in (ROOT, copy)] == [True, False]
    for trap, folder in (("3", copy), ("99", tmp_path / "other")):  # the folder exists; no such trap
        assert mutants.main(["--apply", trap, str(folder)]) == 2
    assert "test_gradients_keep_their_size" in capsys.readouterr().out


@pytest.mark.slow
def test_the_code_broken_by_a_mutant_turns_its_test_red():
    """A test that passes although its bug is in the code protects nothing."""
    done = subprocess.run([sys.executable, mutants.__file__], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
