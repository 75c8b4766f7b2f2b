"""The words around the code: twins agree, figures come from rows, commands and files exist."""
import ast
import importlib
import json
import re
import shlex

import numpy as np
import pytest
from scipy import stats

import common
from common import ROOT
from losses import DIVERGENCES
from runs import render

TWINS = ("README.md", "README.zh.md")
DOCUMENTS = [*TWINS, "RESULTS.md", "docs/class.md", "docs/equations.md"]
FOREIGN = {"help", "nproc-per-node", "fast", "all", "times", "apply"}  # not of a Config


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text):
    """Every command of a document: the lines of its code blocks and what stands in backticks."""
    lines = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.S)).splitlines()
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line.strip() for line in lines if re.match(r" *(python|bash|export|source) \S", line)]


def knobs():
    """The flags of all scripts, read from the fields of their Configs."""
    trees = [ast.parse(path.read_text(encoding="utf-8"))
             for pattern in ("*.py", "[bdrt]*/*.py") for path in ROOT.glob(pattern)]
    return {field.target.id.replace("_", "-") for tree in trees for node in tree.body
            if isinstance(node, ast.ClassDef) and node.name == "Config"
            for field in node.body if isinstance(field, ast.AnnAssign)}


def test_the_readmes_have_the_same_headings_commands_and_tables():
    """A translation that lags behind sends its readers to flags that are gone."""
    english, chinese = map(read, TWINS)
    for pattern in (r"^(#+) ", r"<!-- ([\w-]+) -->"):
        assert re.findall(pattern, english, flags=re.M) == re.findall(pattern, chinese, flags=re.M)
    assert commands(english) == commands(chinese)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_flag_link_and_file_in_a_document_exists(name):
    """A documented command that ends in "unknown argument", a link to a file that was moved."""
    text = read(name)
    for command in commands(text):
        words = shlex.split(command, comments=True)
        if words[0] == "python" and words[1].endswith(".py") and "tests/" not in words[1]:
            module = importlib.import_module(words[1][:-3].replace("/", "."))
            common.parse(module.Config, words[2:])
    named = {flag.removeprefix("no-") for flag in re.findall(r"[ `]--([a-z][a-z-]+)", text)}
    assert named <= knobs() | FOREIGN
    files = re.findall(r"`(?:python |bash )?([\w/]+\.(?:py|sh))\b", text)
    for target in files + re.findall(r"\]\((?!http)([^)#]+)\)", text):
        places = ROOT, (ROOT / name).parent, ROOT / "tests"
        assert any((place / target).exists() for place in places), target


def test_every_equation_names_a_function_and_a_test_that_exist():
    """A name that is gone sends the reader nowhere; a test that is gone shows nothing."""
    rows = [line.strip("|").split("|") for line in read("docs/equations.md").splitlines()
            if line.startswith("| ")][1:]
    for _, _, _, code, test in rows:
        file, name = re.fullmatch(r" `([\w/]+\.py)` `(\w+)` ", code).groups()
        assert re.search(rf"^(def|class) {name}\b", read(file), flags=re.M), (file, name)
        file, test = test.strip(" `").split("::")
        assert f"def {test}(" in read(f"tests/{file}"), test
    assert sum("`of_log_probabilities`" in row[3] for row in rows) == len(DIVERGENCES)


def test_every_table_is_shown_and_equals_its_rows():
    """A figure edited by hand, a row changed without its table, or code for a table nobody sees."""
    rows = render.read_rows("spine", "scoreboard", "whitebox", "blackbox")
    shown = set()
    for name in render.FILES:
        assert render.rendered(read(name), rows) == read(name), f"{name}: python runs/render.py"
        shown |= set(re.findall(r"^<!-- ([\w-]+) -->$", read(name), flags=re.M))
    assert shown - {"end"} == set(render.TABLES)


# --- render.py: runs made by hand -----------------------------------------------------------------

def run_of(recipe, seed, ce, exact=0.5, **more):
    return dict(recipe=recipe, seed=seed, steps=10, best_step=10, tokens=1, ce=ce, val_ce=ce,
                exact=exact, exact_interval=(0, 1)) | more


def test_a_claim_with_one_axis_is_refused():
    """TRAPS 28: judged at equal tokens alone, a teacher looks free; at equal wall-clock it lost."""
    tokens = [run_of("g/logits", 1, 1.5, 0.7), run_of("g/logits", 2, 1.49, 0.8)]
    wall = [run_of("g/logits-wall", 1, 2.1, 0.3), run_of("g/logits-wall", 2, 2.2, 0.41)]
    rows = {"g/teacher": [run_of("g/teacher", 0, 1.0, 0.9)], "g/logits": tokens,
            "g/alone": [run_of("g/alone", 1, 2.0, 0.5), run_of("g/alone", 2, 2.0, 0.6)]}
    for some in (rows, {**rows, "g/new-wall": [run_of("g/new-wall", 1, 2.1)]}):
        with pytest.raises(common.UserError, match="both axes"):
            render.modes_table(some, "g")
    rows["g/logits-wall"] = wall
    lines = render.modes_table(rows, "g").splitlines()
    assert lines[-2].endswith("| 50% | +20.0 ± 0.0 | BEATS |")  # (2 - 1.495) / (2 - 1)
    assert lines[-1].endswith("| -15% | -19.5 ± 6.4 | DOES NOT BEAT |")
    for run in sum(rows.values(), []):
        del run["exact"]  # prose has no right answers: less cross-entropy is better
    assert render.modes_table(rows, "g").splitlines()[-2].endswith("| -0.5050 ± 0.0635 | BEATS |")


def test_runs_left_out_repeated_or_made_otherwise_are_refused(tmp_path, monkeypatch):
    """Without its worst seed a mode is better; a seed that counts twice narrows the interval."""
    with pytest.raises(common.UserError, match="the same ones"):
        render.paired_t([run_of("alone", s, 2) for s in (1, 2)], [run_of("kd", 1, 1)], "ce")
    monkeypatch.setattr(render, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()
    for seed, steps, words in ((1, 5, "twice"), (2, 6, "differ in"), (2, 5, None)):
        rows = [dict(recipe="a", seed=s, config=dict(name=f"a-{s}", seed=s, steps=n), metrics={})
                for s, n in ((1, 5), (seed, steps))]
        (tmp_path / "results/new.jsonl").write_text(common.json_lines(rows))
        if words:
            with pytest.raises(common.UserError, match=words):
                render.read_rows("new")
    assert [run["steps"] for run in render.read_rows("new")["a"]] == [5, 5]


def test_a_recipe_is_compared_with_a_student_that_had_as_much_time():
    """A smaller budget on the other side would flatter a recipe whose step costs twice as much."""
    short, middle, long = ([run_of("w/alone", 1, ce, steps=steps)] for steps, ce in
                           ((10, 2.0), (15, 1.9), (25, 1.0)))
    budgets = [short, middle, long]
    assert render.as_long(budgets, short, needed=12) is middle
    assert render.as_long(budgets, short, needed=16) is long
    with pytest.raises(common.UserError, match="26 steps"):  # more steps might help
        render.as_long(budgets, short, needed=26)
    long[0]["val_ce"] = 3.0  # overfitted, as validation sees
    assert render.as_long(budgets, short, needed=16) is middle is render.as_long(budgets, short, 99)


def test_accuracy_on_suites_by_hand():
    """Suites 1 of 4 and 1 of 2 make 37.5 %, whatever their sizes; a dash is no wrong answer."""
    run = dict(suites_right=dict(clean="1110", typos="1000", large="-1-0"))
    assert render.suite_values([run]).mean() == pytest.approx(0.375)
    assert render.suite_values([run], ["clean"]).tolist() == [1, 1, 1, 0]
    other = dict(suites_right=dict(clean="1110", typos="1100", large="-0-0"))
    assert render.suite_values([run, other]).tolist() == [0.5, 0.75, 0, 0]


def test_statistics_equal_scipys():
    """A wrong quantile or an unpaired test makes every verdict wrong."""
    for degrees, value in enumerate(render.T95, 1):
        assert value == pytest.approx(stats.t.ppf(0.975, degrees), abs=6e-4)
    a, b = [4.01, 3.88, 3.98, 4.10], [3.42, 3.41, 3.46, 3.50]
    base, runs = ([dict(recipe="r", seed=s, ce=v) for s, v in enumerate(side)] for side in (a, b))
    mean, half = render.paired_t(base, runs, "ce")
    theirs = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((theirs.low, theirs.high), rel=1e-3)
    assert render.judged(base, runs, "ce")[1] == "BEATS"
    assert render.judged(runs, base, "ce")[1] == "DOES NOT BEAT"
    assert render.judged(base[:2], [dict(r, ce=r["ce"] + r["seed"]) for r in base[:2]],
                         "ce")[1] == "INCONCLUSIVE"  # 0.5 ± 6.35
    d = np.random.default_rng(0).choice([-1, 0, 0, 0, 0, 1, 1], 800)
    theirs = stats.bootstrap((d,), np.mean, n_resamples=10_000, method="percentile",
                             rng=np.random.default_rng(3)).confidence_interval
    assert render.bootstrap(d) == pytest.approx((d.mean(), theirs.low, theirs.high), abs=0.004)
    assert render.bootstrap(d) == render.bootstrap(d)
