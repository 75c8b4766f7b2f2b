"""Each trap has a test that sees it: mutants.py breaks the code, the named test must turn red."""
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common import ROOT
import mutants
from mutants import MUTANTS, mutated, names

# docs/traps.md: what touches what is built so far
TRAPS = {*range(1, 29)}


def test_every_trap_has_a_mutant_that_still_applies():
    """A mutant whose text is gone breaks nothing, and nobody would miss it."""
    assert TRAPS <= {trap for trap, *_ in MUTANTS} and len(set(names())) == len(MUTANTS)
    for trap, file, old, new, test in MUTANTS:
        text = (ROOT / file).read_text(encoding="utf-8")
        assert mutated(text, old, new, file) != text
        path, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")


def test_the_list_of_traps_names_exactly_those_with_a_mutant():
    """A trap in the documentation that no test sees, or one that readers cannot look up."""
    text = (ROOT / "docs" / "traps.md").read_text(encoding="utf-8")
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.M)} == {trap for trap, *_ in MUTANTS}


def test_a_mutant_can_be_left_in_a_copy_for_a_class(tmp_path, capsys):
    """The exercise of docs/class.md: the copy has the bug, the original has not."""
    assert mutants.main(["--apply", "3", str(tmp_path / "broken")]) == 0
    assert "scale(name, temperature) * of_log_probabilities(" not in (tmp_path / "broken/losses.py").read_text(encoding="utf-8")
    assert "scale(name, temperature) * of_log_probabilities(" in (ROOT / "losses.py").read_text(encoding="utf-8")
    assert mutants.main(["--apply", "3", str(tmp_path / "broken")]) == 2  # there already
    assert mutants.main(["--apply", "99", str(tmp_path / "other")]) == 2
    assert "test_gradient_keeps_its_size" in capsys.readouterr().out


@pytest.fixture(scope="session")
def verdicts(request, tmp_path_factory):
    """What mutants.py says about the mutants of the selected tests, all in one go, two at a time."""
    chosen = [item.callspec.params["name"] for item in request.session.items
              if item.function is test_the_code_broken_by_a_mutant_turns_its_test_red]
    path = tmp_path_factory.mktemp("mutants") / "verdicts.json"
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("mutants.py")), "--json",
                           str(path), *chosen], capture_output=True, text=True)
    assert path.exists(), done.stdout + done.stderr
    found = json.loads(path.read_text(encoding="utf-8"))
    for name, (ok, line) in found.items():
        assert ok or not name.startswith("green"), line
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_code_broken_by_a_mutant_turns_its_test_red(name, verdicts):
    """A test that stays green over its own bug protects nothing."""
    ok, line = verdicts[name]
    assert ok, line
