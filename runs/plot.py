"""Figures from logs, reports and rows, into docs/figures/. Needs matplotlib (requirements-dev.txt).

    python runs/plot.py                          every figure whose data are there
    python runs/plot.py out/student-*.csv        the learning curves of these runs, into out/figures/

    curves.png        validation cross-entropy against step, of the CSV files
    soft-targets.png  the teacher's next-token distribution at temperatures 1, 2 and 4
    reliability.png   confidence against accuracy          (results/scoreboard.jsonl, or a report)
    robustness.png    accuracy on each suite               (the same; of eval.py --suites)
    pareto.png        accuracy against decode speed        (results/students.jsonl)
    topk.png          top-k lists, renormalised or not     (results/topk.jsonl)
    amount.png        accuracy against the teacher's rows  (results/blackbox.jsonl)
"""
import csv
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import checkpoints
import cli
import rowfile
from cli import OUT, ROOT, check, fail, show
from dataset.formats import Turn, prompt_ids
from decoding import generate
from metrics import front, surer


@dataclass
class Config:
    logs: list = None              # CSV files of runs: their learning curves, nothing else
    results: str = ROOT / "results"  # folder of rows, those of runs/*.sh and runs/topk_bias.py
    report: str = ""               # a report of eval.py, instead of the rows of the scoreboard
    teacher: str = OUT / "teacher.pt"  # whose soft targets are drawn
    question: str = "Mia has 12 apples. She buys 5 more. How many apples has she?"  # it is asked
    out: str = ""                  # folder of the figures; empty: docs/figures, of logs out/figures


def pyplot():
    """matplotlib, large enough for a projector, without a screen."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot as plt
    except ImportError:
        fail("matplotlib is not installed", fix="pip install -r requirements-dev.txt")
    plt.rcParams.update({"font.size": 15, "figure.figsize": (9, 5.5), "lines.linewidth": 2.5,
                         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
                         "axes.spines.right": False, "figure.constrained_layout.use": True})
    return plt


def rows_of(cfg, name):
    """The rows of a file of --results; none where there is no such file."""
    path = Path(cfg.results) / f"{name}.jsonl"
    return rowfile.read(path, "metrics") if path.exists() else []


def curves(cfg, plt):
    """Validation cross-entropy against step; logarithmic, since losses fall by factors."""
    for path in cfg.logs:
        path = cli.need_file(path, "name the CSV of a run")
        with open(path, newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r.get("val_ce")]
        plt.plot([int(r["step"]) for r in rows], [float(r["val_ce"]) for r in rows], "o-",
                 label=path.stem)
    plt.yscale("log")
    plt.xlabel("step")
    plt.ylabel("validation ce, nats a token")
    plt.legend()
    return "curves.png"


@torch.inference_mode()
def soft_targets(cfg, plt):
    """The likeliest ten tokens at the place of its own answer where the teacher is least sure."""
    if not Path(cfg.teacher).exists():
        return None
    model, tokenizer, _ = checkpoints.load_model(cfg.teacher)
    ids = prompt_ids(tokenizer, [Turn("user", cfg.question)])
    room = model.config.max_seq_len
    check(len(ids) < room, "--question", f"{len(ids)} tokens", f"fewer than the context, {room}")
    new = generate(model, [ids], 100, {tokenizer.end})[0]
    logits = model(torch.tensor([ids + new]))[0, len(ids) - 1:-1]  # (new, V)
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    place = int(entropy.argmax())
    best = logits[place].topk(10).indices
    names = [repr(tokenizer.decode([i], show_control=True)) for i in best.tolist()]
    for shift, temperature in enumerate((1, 2, 4)):
        height = (logits[place] / temperature).softmax(-1)[best]
        plt.bar([i + 0.27 * (shift - 1) for i in range(10)], height.tolist(), 0.27,
                label=f"temperature {temperature}")
    plt.yscale("log")
    plt.xticks(range(10), names, rotation=35, ha="right")
    plt.ylabel("probability (logarithmic)")
    said = tokenizer.decode(new[:place], show_control=True).replace("\n", " ")
    plt.title(f"... {said[-50:]} ?", fontsize=13)
    plt.legend()
    return "soft-targets.png"


def report_results(cfg, key):
    """The results that have this key: of a report of eval.py, or of rows: one a recipe few/MODE at
    equal tokens; accuracy on a suite is the mean over seeds, all else the first seed's."""
    if cfg.report:
        path = cli.need_file(cfg.report, "python eval.py")
        report = json.loads(path.read_text(encoding="utf-8"))
        check("results" in report, "--report", show(path), "the .json of a report of eval.py")
        return [r for r in report["results"] if key in r]
    found = {}
    for row in rows_of(cfg, "scoreboard"):
        group, _, model = row["recipe"].partition("/")
        if group == "few" and key in row["metrics"] and not model.endswith("-wall"):
            found.setdefault(model, []).append(
                dict(row["metrics"], model=model, seed=row["seed"]))
    for seeds in found.values():
        seeds.sort(key=lambda r: r["seed"])
        for name in seeds[0].get("suites", {}):
            if name != "hostile":
                seeds[0]["suites"][name] = dict(
                    exact=fmean(r["suites"][name]["exact"] for r in seeds))
    return [seeds[0] for seeds in found.values()]


FEW = 20


def reliability(cfg, plt):
    """On the diagonal a model's confidence is its accuracy; the size of a dot is its tokens."""
    results = [r for r in report_results(cfg, "reliability")
               if any(b[0] >= FEW for b in r["reliability"])]
    if not results:
        return None
    plt.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1.5)
    for r in results:
        # a bin of a few tokens is at 0 or 1 by chance
        tokens, confidence, accuracy = zip(*[b for b in r["reliability"] if b[0] >= FEW])
        sizes = [20 + 300 * n / max(tokens) for n in tokens]
        [line] = plt.plot(confidence, accuracy, label=f"{r['model']}, ECE {r['ece']:.3f}")
        plt.scatter(confidence, accuracy, sizes, color=line.get_color(), alpha=0.6)
    plt.xlabel("confidence of the likeliest token")
    plt.ylabel("how often it is right")
    plt.legend(fontsize=12)
    return "reliability.png"


def robustness(cfg, plt):
    """Accuracy on each suite, a group of bars a suite."""
    results = report_results(cfg, "suites")
    if not results:
        return None
    names = [n for n in results[0]["suites"] if n != "hostile"]
    width = 0.8 / len(results)
    for k, r in enumerate(results):
        places = [i + (k - (len(results) - 1) / 2) * width for i in range(len(names))]
        plt.bar(places, [r["suites"][n]["exact"] for n in names], width, label=r["model"])
    plt.xticks(range(len(names)), [n.replace("_", " ") for n in names], rotation=35, ha="right")
    plt.ylabel("exact match")
    plt.ylim(0, 1)
    plt.legend(fontsize=12)
    return "robustness.png"


def pareto(cfg, plt):
    """Accuracy against decode speed; a dot a model, its name and parameters beside it."""
    rows = [r for r in rows_of(cfg, "students") if "decode1" in r["metrics"]]
    if not rows:
        return None
    points = [(r["metrics"]["decode1"], r["metrics"]["exact"]) for r in rows]
    plt.plot(*zip(*front(points)), color="gray", linestyle="--", label="Pareto front")
    for i, (point, row) in enumerate(sorted(zip(points, rows), key=lambda pair: pair[0])):
        plt.scatter(*point, 90)
        name = row["recipe"].split("/")[-1].removeprefix("size-")
        plt.annotate(f"{name}\n{row['metrics']['parameters'] / 1e6:.2f} M", point, fontsize=11,
                     textcoords="offset points", ha="center", xytext=(0, (12, -34)[i % 2]))
    plt.xscale("log")
    plt.xlabel("tokens written a second, batch 1 (logarithmic)")
    plt.ylabel("exact match")
    plt.margins(0.15)
    plt.legend(loc="lower left")
    return "pareto.png"


def topk(cfg, plt):
    """How much surer than right a student is that learned from top-k lists, with the bucket for all
    other tokens and with the list renormalised (TRAPS 13)."""
    found = {}
    for row in rows_of(cfg, "topk"):
        kind, k = row["recipe"].split("/")
        found.setdefault(kind, []).append((int(k), 100 * surer(row["metrics"]["reliability"])))
    if not found:
        return None
    for kind, mark in (("renormalised", "s"), ("bucket", "o")):
        label = {"bucket": "one bucket for all others"}.get(kind, kind)
        plt.plot(*zip(*sorted(found.get(kind, [(1, float("nan"))]))), marker=mark, label=label)
    plt.axhline(0, color="gray", linestyle="--", label="as sure as right")
    plt.xscale("log", base=2)
    plt.xlabel("k, tokens that the cache keeps")
    plt.ylabel("confidence - accuracy, points")
    plt.legend()
    return "topk.png"


def amount(cfg, plt):
    """Accuracy against the share of the teacher's rows, a dot a seed, and what bare answers reach
    with all of them."""
    found, bare = {}, []
    for row in rows_of(cfg, "blackbox"):
        name, exact = row["recipe"].split("/")[-1], row["metrics"]["exact"]
        if name == "cot" or name.startswith("rows-"):
            found.setdefault(100 if name == "cot" else int(name[5:]), []).append(exact)
        elif name == "bare":
            bare.append(exact)
    if not found:
        return None
    shares = sorted(found)
    [line] = plt.plot(shares, [fmean(found[s]) for s in shares], label="chains of thought")
    for share in shares:
        plt.scatter([share] * len(found[share]), found[share], 50, color=line.get_color())
    if bare:
        plt.axhline(fmean(bare), color="gray", linestyle="--", label="bare answers of all rows")
    plt.xscale("log")
    plt.xticks(shares, [f"{s} %" for s in shares])
    plt.xlabel("share of the teacher's rows (logarithmic)")
    plt.ylabel("exact match")
    plt.ylim(0, 1)
    plt.legend()
    return "amount.png"


def main(cfg):
    """Draw every figure whose data are there."""
    plt = pyplot()
    cfg.out = cfg.out or (OUT / "figures" if cfg.logs else ROOT / "docs/figures")
    Path(cfg.out).mkdir(parents=True, exist_ok=True)
    figures = (soft_targets, reliability, robustness, pareto, topk, amount)
    for draw in (curves,) if cfg.logs else figures:
        try:
            name = draw(cfg, plt)
        except (ValueError, KeyError, TypeError) as error:  # UnicodeDecodeError is a ValueError
            fail(f"{draw.__name__}: its file is not of this project", f"{type(error).__name__} "
                 f"{str(error)[:60]}", fix="name another file, or make it again")
        if name:
            plt.savefig(Path(cfg.out) / name, dpi=100)
            print(show(Path(cfg.out) / name))
        else:
            print(f"{draw.__name__}: its data are not there yet")
        plt.close("all")


if __name__ == "__main__":
    cli.run(main, Config)
