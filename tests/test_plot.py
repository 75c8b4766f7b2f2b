"""Claims about plot.py: every figure is drawn from files, shows its numbers, and none is faked."""
import json

import pytest

from runs import plot


def row(recipe, seed, exact):
    suites = {name: dict(exact=exact) for name in ("clean", "typos", "other_language")}
    metrics = dict(exact=exact, ece=0.1, reliability=[(50, 0.4, 0.2), (90, 0.9, 0.8), (2, 0.1, 1.0)], suites=suites,
                   decode1=1000 * seed, decode32=9e3, parameters=10 ** 5)
    return json.dumps(dict(recipe=recipe, seed=seed, metrics=metrics)) + "\n"


@pytest.fixture
def flags(tmp_path, tiny_world, out_dir):
    """Files of every kind that plot.py reads, as flags."""
    files = dict(
        scoreboard=row("few/alone", 1, 0.5) + row("few/alone", 2, 0.7) + row("few/kd", 1, 0.9) +
        row("few/kd-wall", 1, 0.3) + row("prose/alone", 1, 0.1) + row("trial/few/alone", 9, 0.1),
        students="".join(row(f"size-{n}", n, n / 10) for n in (1, 2, 3)),
        topk="".join(row(f"{kind}/{k}", 9, 0) for kind in ("bucket", "renormalised")
                     for k in (8, 2)),
        blackbox=row("blackbox/rows-10", 1, 0.5) + row("blackbox/rows-10", 2, 0.7) +
        row("blackbox/cot", 1, 0.9) + row("blackbox/bare", 1, 0.2))
    for name, text in files.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    return [f"--teacher={tiny_world.teacher}", f"--out={tmp_path / 'figures'}",
            "--question=2 + 3?", f"--results={tmp_path}"]


NAMES = ["amount", "pareto", "reliability", "robustness", "soft-targets", "topk"]


@pytest.fixture
def drawn(monkeypatch):
    """What each figure showed when it was saved: {file name: (labels of the legend, axes)}."""
    pyplot = plot.pyplot()
    found, save = {}, pyplot.savefig
    monkeypatch.setattr(plot, "pyplot", lambda: pyplot)
    monkeypatch.setattr(pyplot, "savefig", lambda path, **k: (
        found.setdefault(path.name, pyplot.gca()), save(path, **k)))
    return found


def test_one_command_draws_every_figure(call, flags, tmp_path, drawn):
    """A figure that silently stays the old one."""
    assert call("runs.plot", *flags).status == 0
    assert sorted(p.stem for p in (tmp_path / "figures").iterdir()) == NAMES
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (tmp_path / "figures").iterdir())


def test_the_figures_show_the_rows(call, flags, drawn):
    """Bars of the wrong model, of the wall-clock runs, or of one seed alone."""
    call("runs.plot", *flags)
    robust = drawn["robustness.png"]
    assert [t.get_text() for t in robust.get_legend().get_texts()] == ["alone", "kd"]
    heights = [bar.get_height() for bars in robust.containers for bar in bars]
    assert heights == pytest.approx([0.6] * 3 + [0.9] * 3)  # the mean of 0.5 and 0.7
    bucket = drawn["topk.png"].get_lines()[1]
    sure = 100 * (50 * 0.2 + 90 * 0.1 - 2 * 0.9) / 142  # points surer than right, over all tokens
    assert bucket.get_label().startswith("one bucket")
    assert bucket.get_xydata().tolist() == [[2, pytest.approx(sure)], [8, pytest.approx(sure)]]
    amount = drawn["amount.png"].get_lines()
    assert amount[0].get_xydata().tolist() == [[10, pytest.approx(0.6)], [100, 0.9]] and amount[1].get_ydata()[0] == 0.2
    assert drawn["reliability.png"].lines[1].get_xydata().tolist() == [[0.4, 0.2], [0.9, 0.8]]  # no (2, ...)
    pareto = drawn["pareto.png"]
    assert pareto.lines[0].get_xydata().tolist() == [[3000, 0.3]]  # it beats the others in both


def test_a_report_of_eval_is_drawn_as_well(call, flags, tmp_path, drawn):
    """A user's own models are in no row."""
    results = [dict(model="mine", reliability=[(50, 0.4, 0.2)], ece=0.2, suites={"typos": dict(exact=0.25)})]
    (tmp_path / "report.json").write_text(json.dumps(dict(results=results)))
    assert call("runs.plot", *flags, f"--report={tmp_path / 'report.json'}").status == 0
    assert [bar.get_height() for bar in drawn["robustness.png"].containers[0]] == [0.25]


def test_what_is_missing_is_said_and_the_rest_drawn(call, flags, tmp_path):
    """One missing file must not cost the other figures."""
    (tmp_path / "topk.jsonl").unlink()
    done = call("runs.plot", *flags)
    assert done.status == 0 and "topk: its data are not there yet" in done.out
    assert not (tmp_path / "figures/topk.png").exists()
    assert (tmp_path / "figures/pareto.png").exists()


def test_the_curves_are_those_of_the_named_logs(call, out_dir, drawn):
    """Those of an older run, or steps without a validation as zeros."""
    (out_dir / "a.csv").write_text("step,val_ce\n1,\n2,3.5\n4,2.5\n")
    assert call("runs.plot", out_dir / "a.csv").status == 0
    assert list(drawn) == ["curves.png"] and (out_dir / "figures/curves.png").exists()
    assert drawn["curves.png"].lines[0].get_xydata().tolist() == [[2, 3.5], [4, 2.5]]
