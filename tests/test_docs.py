"""The words around the code: twins agree, figures come from rows, commands exist."""
import importlib
import re
import shlex
import sys

import pytest

import cli
from cli import ROOT
from runs import render

READMES = ("README.md", "README.zh.md")
DOCUMENTS = [*READMES, "RESULTS.md", "docs/class.md"]


def code_blocks(text):
    return re.findall(r"```\w*\n(.*?)```", text, flags=re.S)


def commands(text):
    """Every `python SCRIPT ...` line and inline command of a document."""
    found = [line for block in code_blocks(text) for line in block.splitlines()]
    found += re.findall(r"`([^`\n]+)`", text)
    return [c for c in found if re.match(r"python \S+\.py( |$)", c.strip())]


def test_the_readmes_have_the_same_headings_code_and_tables():
    """A translation that lags behind sends its readers to flags that are gone."""
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    levels = [re.findall(r"^(#+) ", text, flags=re.M) for text in (english, chinese)]
    assert levels[0] == levels[1]
    assert code_blocks(english) == code_blocks(chinese)
    marks = [re.findall(r"<!-- ([\w-]+) -->", text) for text in (english, chinese)]
    assert marks[0] == marks[1]


def test_every_table_equals_its_rows():
    """A figure edited by hand, or a row changed without its table."""
    rows = render.read_rows(ROOT / "results/spine.jsonl")
    for name in render.FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert render.rendered(text, rows) == text, f"{name}: python runs/render.py"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_in_the_documents_has_known_flags(name):
    """A documented command that stops with "unknown flag"."""
    found = commands((ROOT / name).read_text(encoding="utf-8"))
    for command in found:
        words = shlex.split(command.split("#")[0])[1:]
        if words[0].startswith("tests/"):  # mutants.py has its own test
            continue
        module = importlib.import_module(words[0][:-3].replace("/", "."))
        cli.parse(module.Config, words[1:])
    assert found or name == "RESULTS.md"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file(name):
    """A link to a file that was moved."""
    text = (ROOT / name).read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert ((ROOT / name).parent / target).exists(), target


def row(recipe, seed, ce, steps=10):
    return dict(recipe=recipe, seed=seed, config=dict(steps=steps), tokens=1, best_step=steps,
                metrics=dict(ce=ce, exact=0.5, n=10))


def table_of(*rows):
    found = {}
    for r in rows:
        found.setdefault(r["recipe"], {})[r["seed"]] = r
    return found


def test_a_claim_with_one_axis_is_refused():
    """TRAPS 28: judged at equal tokens alone, a teacher looks free; at equal wall-clock it lost."""
    rows = table_of(row("g/teacher", 0, 1.0), row("g/alone", 1, 2.0), row("g/alone", 2, 2.0),
                    row("g/logits", 1, 1.5), row("g/logits", 2, 1.49))
    with pytest.raises(cli.UserError, match="both axes"):
        render.logits_table(rows, "g", "g/teacher")
    wall = table_of(row("g/logits-wall", 1, 2.1), row("g/logits-wall", 2, 2.2))
    assert "BEATS" in render.logits_table({**rows, **wall}, "g", "g/teacher")


def test_paired_t_is_the_hand_computed_one():
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t(2) = 4.303."""
    mean, half = render.paired({1: 0, 2: 0, 3: 0}, {1: 1, 2: 2, 3: 3})
    assert mean == 2 and half == pytest.approx(4.303 / 3 ** 0.5)
    assert render.verdict({1: 0, 2: 0, 3: 0}, {1: 1, 2: 2, 3: 3}, +1) == "INCONCLUSIVE"
    assert render.verdict({1: 0, 2: 0, 3: 0}, {1: 2, 2: 2.1, 3: 1.9}, +1) == "BEATS"
    assert render.verdict({1: 0, 2: 0, 3: 0}, {1: 2, 2: 2.1, 3: 1.9}, -1) == "DOES NOT BEAT"


def test_the_same_run_twice_is_refused(tmp_path):
    """A seed that counts twice narrows the interval."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"recipe": "a", "seed": 1}\n' * 2)
    with pytest.raises(cli.UserError, match="twice"):
        render.read_rows(path)


def test_the_training_scripts_are_short_enough_to_read_aloud():
    """A loop that nobody reads to its end teaches nothing."""
    for path in sorted(ROOT.glob("train_*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 250, path.name
    assert sys.version_info >= (3, 10)
