"""Claims about plot.py: every figure is drawn from files and shows their numbers."""
import json

import numpy as np
import pytest

from common import ROOT
from metrics import json_lines
from runs import plot, render


def row(recipe, seed, exact):
    suites = {name: dict(exact=exact) for name in ("clean", "typos", "other_language")}
    bins = [(50, 0.4, 0.2), (90, 0.9, 0.8), (2, 0.1, 1.0)]
    return dict(recipe=recipe, seed=seed, metrics=dict(exact=exact, ece=0.1, reliability=bins,
                exact_interval=(exact - 0.1, exact + 0.1),
                suites=suites, decode1=1000 * seed, parameters=10 ** 5))


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Replace results/ by made-up rows -> {file name of each saved figure: its axes}."""
    files = dict(
        scoreboard=[row("few/teacher", 0, 1.0), row("few/alone", 1, 0.5), row("few/alone", 2, 0.7),
                    row("few/kd", 1, 0.9), row("few/kd-wall", 1, 0.3), row("prose/alone", 1, 0.1)],
        students=[row(f"size-{n}", n, exact) for n, exact in enumerate((0.8, 0.9, 0.7, 0.7), 1)],
        topk=[row(f"{kind}/{k}", 9, 0) for kind in ("bucket", "renormalised") for k in (8, 2)],
        blackbox=[*(row(f"blackbox/rows-{n}", seed, seed / 10) for n in (1, 3, 10, 30)
                    for seed in (5, 7)), row("blackbox/cot", 1, 0.9), row("blackbox/bare", 1, 0.2)])
    (tmp_path / "results").mkdir()
    for name, rows in files.items():
        (tmp_path / f"results/{name}.jsonl").write_text(json_lines(rows))
    monkeypatch.setattr(render, "ROOT", tmp_path)
    pyplot, found = plot.pyplot(), {}
    monkeypatch.setattr(plot, "pyplot", lambda: pyplot)
    monkeypatch.setattr(pyplot, "savefig", lambda path, save=pyplot.savefig, **flags: (
        found.update({path.name: pyplot.gca()}), save(path, **flags)))
    return found


def test_the_figures_show_the_rows(call, tiny_world, tmp_path, drawn):
    """A figure that is not drawn again, or that shows the wrong model, wall-clock runs or only one seed."""
    flags = ("--teacher", tiny_world.teacher, "--out", tmp_path / "new", "--question", "2 + 3?")
    assert call("runs.plot", *flags).status == 0 and len(drawn) == 7
    heights = [bar.get_height() for bar in drawn["robustness.png"].patches]
    assert heights == pytest.approx([1.0] * 3 + [0.6] * 3 + [0.9] * 3)  # the mean of 0.5 and 0.7
    spreads = drawn["robustness.png"].collections[1].get_segments()[0]  # the first bar of the second model
    assert np.diff(spreads[:, 1]) == pytest.approx(2 * 0.02 ** 0.5)  # twice the standard deviation
    sure = 100 * (50 * 0.2 + 90 * 0.1 - 2 * 0.9) / 142  # confidence minus accuracy, in points
    assert drawn["topk.png"].lines[1].get_xydata() == pytest.approx(np.array([[2, sure], [8, sure]]))
    chains, *_, bare = drawn["amount.png"].lines
    assert chains.get_xydata()[-2:].tolist() == [[30, pytest.approx(0.6)], [100, 0.9]]
    assert bare.get_ydata()[0] == 0.2
    for figure, line, points in (("reliability", 1, [[0.4, 0.2], [0.9, 0.8]]),  # without the bin of two tokens
                                 ("pareto", 0, [[2000, 0.9], [4000, 0.7]])):  # no other is better in both
        assert drawn[f"{figure}.png"].lines[line].get_xydata().tolist() == points
    named = " ".join(text.get_text() for text in drawn["ways.png"].texts)
    assert all(path.stem.removeprefix("train_").removeprefix("distill_") in named for path in ROOT.glob("train_*.py"))


def test_a_report_of_eval_is_drawn_and_what_is_missing_costs_no_other_figure(call, tmp_path, drawn):
    """A user's own models have a report, but no rows. One missing file must not stop the other figures."""
    result = dict(row("mine", 1, 0.25)["metrics"], model="mine")
    (tmp_path / "report.json").write_text(json.dumps(dict(results=[result])))
    done = call("runs.plot", "--report", tmp_path / "report.json", "--out", tmp_path, "--teacher", "none")
    assert done.status == 0 and "soft-targets.png is not drawn" in done.out and len(drawn) == 6
    assert [bar.get_height() for bar in drawn["robustness.png"].patches] == [0.25] * 3


def test_the_curves_are_those_of_the_named_logs(call, out_dir, drawn):
    """Curves of an older run, or a loss of 0 at steps without a validation."""
    (out_dir / "a.csv").write_text("step,val_ce\n1,\n2,3.5\n4,2.5\n")
    assert call("runs.plot", out_dir / "a.csv").status == 0 and list(drawn) == ["curves.png"]
    assert drawn["curves.png"].lines[0].get_xydata().tolist() == [[2, 3.5], [4, 2.5]]
    for flags in ([__file__], ["--report", __file__, "--out", out_dir]):  # no log, no report
        assert call("runs.plot", *flags).status == 2 and len(drawn) == 1
