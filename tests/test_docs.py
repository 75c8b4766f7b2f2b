"""Claims about the documents: translations agree, figures come from rows, commands and files exist."""
import importlib
import re
import shlex
from contextlib import nullcontext

import numpy as np
import pytest
from scipy import stats

from common import ROOT, UserError, parse
from metrics import json_lines
from losses import DIVERGENCES
from runs import render

TWINS = [(f"{name}.md", f"{name}.zh.md") for name in ("README", "docs/class", "docs/symptoms", "lessons/README")]
LESSONS = [(path, path.with_suffix(".zh.md")) for path in sorted(ROOT.glob("lessons/*/README.md"))]
DOCUMENTS = [*sum(TWINS, ()), "RESULTS.md", "docs/use.md", "docs/equations.md", "docs/real.md"]
FOREIGN = {"help", "nproc-per-node", "fast", "all", "times", "apply", "from"}  # flags of no Config


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def commands(text):
    """Returns every command of a document: the lines of its code blocks and the text in backticks."""
    lines = "\n".join(re.findall(r"```\w*\n(.*?)```", text, flags=re.S)).splitlines()
    lines += re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [line.strip() for line in lines if re.match(r" *(python|bash|export|source) \S", line)]


@pytest.mark.parametrize("twins", TWINS + LESSONS, ids=str)
def test_twins_have_the_same_headings_commands_and_tables(twins):
    """An outdated translation sends its readers to flags that no longer exist."""
    english, chinese = ([re.findall(r"^(#+) |<!-- (\w+)(?:-zh)? -->|(^```bash\n.*?^```$)", text, flags=re.M | re.S),
                         commands(text)] for text in map(read, twins))
    assert english == chinese and "##" in {found[0] for found in english[0]}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_command_flag_link_and_file_in_a_document_exists(name):
    """A documented command could end in "unknown argument", or a link could lead to a file that was moved."""
    text = read(name)
    for command in commands(text):
        words = shlex.split(command, comments=True)
        if words[0] == "python" and words[1].endswith(".py") and "tests/" not in words[1]:
            module = importlib.import_module(words[1][:-3].replace("/", "."))
            parse(module.Config, words[2:])
    named = {flag.removeprefix("no-") for flag in re.findall(r"[ `]--([a-z][a-z-]+)", text)}
    scripts = "".join(map(read, [*ROOT.glob("*.py"), *ROOT.glob("[bdlrt]*/*.py")]))
    knobs = {field.replace("_", "-") for field in re.findall(r"^    (\w+): .+ = ", scripts, flags=re.M)}
    assert named <= knobs | FOREIGN
    files = re.findall(r"`(?:python |bash )?([\w/]+\.(?:py|sh))\b", text)
    for target in files + re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert any((ROOT / place / target).exists() for place in (".", "docs", "tests", "lessons")), target


def test_every_equation_names_a_function_and_a_test_that_exist():
    """The list of equations could name a function or a test that no longer exists."""
    table = read("docs/equations.md").split("\n## ")[0]
    rows = re.findall(r"^\|.*\| `([\w/]+\.py)` `(\w+)` \| `(\w+\.py)::(\w+)` \|$", table, flags=re.M)
    assert len(rows) == len(re.findall("^\\| ", table, flags=re.M)) - 1
    for file, name, tests, test in rows:
        assert re.search(rf"^(def|class) {name}\b", read(file), flags=re.M), (file, name)
        assert f"def {test}(" in read(f"tests/{tests}"), test
    assert sum(row[1] == "of_log_probabilities" for row in rows) == len(DIVERGENCES)


def test_every_table_is_shown_and_equals_its_rows():
    """A figure could be edited by hand, a row changed without its table, or a table made but never shown."""
    rows = render.read_rows("spine", "scoreboard", "whitebox", "blackbox", "smollm2")
    for name in render.FILES:
        assert render.rendered(read(name), rows) == read(name), f"{name}: python runs/render.py"
    shown = re.findall(r"^<!-- ([\w-]+) -->$", "".join(map(read, render.FILES)), flags=re.M)
    assert {*shown} - {"end"} == {*render.TABLES}


def runs_of(recipe, ce, exact=(0.5,), **more):
    return [dict(recipe=recipe, seed=seed, steps=10, best_step=10, ce=c, val_ce=c, exact=e,
                 exact_interval=(0, 1)) | more for seed, (c, e) in enumerate(zip(ce, exact), 1)]


def test_a_claim_with_one_axis_is_refused():
    """TRAPS 28: at equal tokens only, a teacher looks free; at equal wall-clock time, distillation lost."""
    values = {"teacher": ([1.0], [0.8]), "alone": ([2.0, 2.0], [0.5, 0.6]),
              "logits": ([1.5, 1.49], [0.7, 0.8]), "logits-wall": ([2.1, 2.2], [0.3, 0.41])}
    rows = {f"g/{name}": runs_of(f"g/{name}", *both) for name, both in values.items()}
    for some in ({**rows, "g/new": []}, {**rows, "g/new-wall": []}):
        with pytest.raises(UserError, match="both axes"):
            render.modes_table(some, "g")
    *_, tokens, wall_clock = render.modes_table(rows, "g").splitlines()
    assert tokens.endswith("| 93.8% (87.5% to 100.0%) | +20.0 ± 0.0 | BEATS |")
    assert wall_clock.endswith("| -19.5 ± 6.4 | DOES NOT BEAT |")
    for run in sum(rows.values(), []):
        del run["exact"]  # prose has no right answers: lower cross-entropy is better
    *_, tokens, wall_clock = render.modes_table(rows, "g").splitlines()
    assert tokens.endswith("| 50% | -0.5050 ± 0.0635 | BEATS |") and "| -15% |" in wall_clock


def test_runs_left_out_repeated_or_made_otherwise_are_refused(tmp_path, monkeypatch):
    """A mode looks better without its worst seed, and a seed that counts twice narrows the interval."""
    with pytest.raises(UserError, match="needs the seeds"):
        render.paired_t(runs_of("alone", [2, 2], [0, 0]), runs_of("kd", [1]), "ce")
    monkeypatch.setattr(render, "ROOT", tmp_path)
    (tmp_path / "results").mkdir()

    for seed, steps in ((1, 5), (2, 6), (2, 5)):  # a seed twice, another flag, correct rows
        rows = [dict(recipe="a", seed=s, config=dict(name=f"a-{s}", seed=s, steps=n), metrics={})
                for s, n in ((1, 5), (seed, steps))]
        (tmp_path / "results/new.jsonl").write_text(json_lines(rows))
        with pytest.raises(UserError) if (seed, steps) != (2, 5) else nullcontext():
            assert [run["steps"] for run in render.read_rows("new")["a"]] == [5, 5]


def test_a_recipe_is_compared_with_a_student_that_had_as_much_time():
    """A recipe whose step costs twice as much looks better if the other student had less time."""
    budgets = short, middle, long = [runs_of("w/alone", [ce], steps=steps) for steps, ce in
                                     ((10, 2.0), (15, 1.9), (25, 1.0))]
    assert [render.as_long(budgets, short, needed) for needed in (12, 16)] == [middle, long]
    with pytest.raises(UserError):  # more steps might help this student
        render.as_long(budgets, short, needed=26)
    long[0]["val_ce"] = 3.0  # overfitted, as validation shows
    assert render.as_long(budgets, short, needed=16) is middle is render.as_long(budgets, short, 99)


def test_accuracy_on_suites_by_hand():
    """Each suite must count the same: 1 of 4 and 1 of 2 make 37.5 %. A dash is not a wrong answer."""
    run, other = (dict(suites_right=dict(clean="1110", typos=typos, large=large))
                  for typos, large in (("1000", "-1-0"), ("1100", "-0-0")))
    assert render.suite_values([run]).mean() == pytest.approx(0.375)
    assert render.suite_values([run], ["clean"]).tolist() == [1, 1, 1, 0]
    assert render.suite_values([run, other]).tolist() == [0.5, 0.75, 0, 0]


def test_statistics_equal_scipys():
    """A wrong quantile or an unpaired test makes every verdict wrong."""
    assert render.T95 == pytest.approx(stats.t.ppf(0.975, range(1, 10)), abs=6e-4)
    a, b, c = [4.01, 3.88, 3.98, 4.10], [3.42, 3.41, 3.46, 3.50], [4.0, 4.2, 4.0, 4.0]
    base, runs, mixed = (runs_of("r", side, side) for side in (a, b, c))
    mean, half = render.paired_t(base, runs, "ce")
    theirs = stats.ttest_rel(b, a).confidence_interval(0.95)
    assert (mean - half, mean + half) == pytest.approx((theirs.low, theirs.high), rel=1e-3)
    verdicts = [render.judged(*pair, "ce")[1] for pair in ((base, runs), (runs, base), (base, mixed))]
    assert verdicts == ["BEATS", "DOES NOT BEAT", "INCONCLUSIVE"]
    d = np.random.default_rng(0).choice([-1, 0, 0, 0, 0, 1, 1], 800)
    theirs = stats.bootstrap((d,), np.mean, n_resamples=10_000, method="percentile", rng=3)
    assert render.bootstrap(d) == pytest.approx((d.mean(), *theirs.confidence_interval), abs=0.004)
