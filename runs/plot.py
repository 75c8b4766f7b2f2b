"""Draw logs, reports and rows into out/figures/, with matplotlib (requirements-dev.txt).

    python runs/plot.py                       every figure that has its data, as in RESULTS.md
    python runs/plot.py out/student-*.csv     the learning curves of these runs
    python runs/plot.py --report out/eval.json      your own models
"""
import json
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, UserError, check, run, show, stop
import numpy as np
import torch

from checkpoints import load_model
from dataset.formats import Turn
from dataset.verify import prompt_ids
from decoding import generate
from runs.render import mode, models, read_rows


@dataclass
class Config:
    logs: list = None              # logs of runs (out/NAME.csv): draw only their learning curves
    report: str = ""               # draw a JSON report of eval.py instead of the scoreboard's rows
    teacher: str = OUT / "teacher.pt"  # draw the soft targets of this checkpoint
    question: str = "Mia has 12 apples. She buys 5 more. How many apples has she?"  # ask this
    out: str = OUT / "figures"     # the folder of the figures; those of RESULTS.md: docs/figures


def pyplot():
    """-> matplotlib.pyplot with large letters for a projector; it needs no screen."""
    check(find_spec("matplotlib"), "pip install -r requirements-dev.txt installs matplotlib")
    from matplotlib import pyplot as plt
    plt.switch_backend("Agg")
    plt.rcParams.update({"font.size": 15, "figure.figsize": (9, 5.5), "lines.linewidth": 2.5,
                         "axes.grid": True, "grid.alpha": 0.3, "axes.spines.top": False,
                         "axes.spines.right": False, "figure.constrained_layout.use": True})
    return plt


def curves(cfg, plt):
    """Validation cross-entropy against step. The axis is logarithmic: losses fall by factors."""
    for path in cfg.logs:
        lines = Path(path).read_text("utf-8", "replace").splitlines() or [""]
        if "val_ce" not in lines[0].split(","):
            stop(f"{show(path)} is no log of a training run")
        rows = np.genfromtxt(lines, delimiter=",", names=True, invalid_raise=False)
        rows = rows[rows["val_ce"] > 0]  # only steps that measured it
        plt.plot(rows["step"], rows["val_ce"], "o-", label=Path(path).stem)
    plt.gca().set(yscale="log", xlabel="step", ylabel="validation ce, nats a token",
                  title="Lower is better; where a curve rises, it overfits")


@torch.inference_mode()
def soft_targets(cfg, plt):
    """The teacher's ten likeliest tokens at the place of its own answer where it is least sure."""
    model, tokenizer, _ = load_model(cfg.teacher)
    ids = prompt_ids(tokenizer, [Turn("user", cfg.question)])
    new = generate(model, [ids], 100, tokenizer.stop_ids)[0]
    logits = model(torch.tensor([ids + new]))[0, len(ids) - 1:-1]  # (new, V)
    place = int(torch.distributions.Categorical(logits=logits).entropy().argmax())
    best, x = logits[place].topk(10).indices, np.arange(10)  # (10,)
    for shift, tau in ((-0.27, 1), (0, 2), (0.27, 4)):
        height = (logits[place] / tau).softmax(-1)[best]  # (10,)
        plt.bar(x + shift, height.tolist(), 0.27, label=f"temperature {tau}")
    names = [repr(tokenizer.decode([i], show_control=True)) for i in best.tolist()]
    plt.xticks(x, names, rotation=35, ha="right")
    before = tokenizer.decode(new[:place], show_control=True).replace("\n", " ")
    plt.gca().set(yscale="log", ylabel="probability (logarithmic)", title="A higher temperature "
                  f"shows what else\nthe teacher considers after {before[-30:]!r}")


def evaluated(cfg):
    """-> {model: its runs}, from a report of eval.py or the scoreboard's rows at equal tokens."""
    try:
        if cfg.report:
            return {r["model"]: [r] for r in json.loads(Path(cfg.report).read_bytes())["results"]}
    except (ValueError, LookupError, TypeError):
        stop(f"{show(cfg.report)} is no report of eval.py")
    return {mode(runs): runs for runs in models(read_rows("scoreboard"), "few")}


def reliability(cfg, plt):
    """Accuracy against confidence; on the diagonal they are equal. Larger dots have more tokens."""
    plt.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1.5)
    for name, (run, *_) in evaluated(cfg).items():  # only the first seed
        bins = [b for b in run.get("reliability", []) if b[0] >= 20]  # fewer tokens: mere chance
        if bins:
            tokens, confidence, accuracy = zip(*bins)
            [line] = plt.plot(confidence, accuracy, label=f"{name}, ECE {run['ece']:.3f}")
            plt.scatter(confidence, accuracy, [20 + 300 * n / max(tokens) for n in tokens],
                        color=line.get_color(), alpha=0.6)
    plt.gca().set(xlabel="confidence in the likeliest token", ylabel="how often it is right",
                  title="Below the diagonal: more confident than right")


def robustness(cfg, plt):
    """Accuracy on each suite: a bar is the mean over seeds, its line ± one standard deviation."""
    results = {name: runs for name, runs in evaluated(cfg).items() if "suites" in runs[0]}
    check(results, "no model was asked the suites (eval.py --suites)")
    suites = [name for name in next(iter(results.values()))[0]["suites"] if name != "hostile"]
    x, width = np.arange(len(suites)), 0.8 / len(results)
    for k, (name, runs) in enumerate(results.items()):
        exact = [[run["suites"][suite]["exact"] for run in runs] for suite in suites]
        plt.bar(x + (k - (len(results) - 1) / 2) * width, [*map(fmean, exact)], width, label=name,
                yerr=[np.std(e, ddof=len(e) > 1) for e in exact], error_kw={"lw": 1})
    plt.xticks(x, [suite.replace("_", " ") for suite in suites], rotation=35, ha="right")
    plt.gca().set(ylabel="share answered right", ylim=(0, 1.02),
                  title="Who still answers when a question is disturbed?")


def pareto(_, plt):
    """Accuracy (95 % interval) against speed. No model is better in both than one of the front."""
    rows = sorted(sum(read_rows("students").values(), []), key=lambda run: run["decode1"])
    points = [(run["decode1"], run["exact"]) for run in rows]
    front = [(x, y) for x, y in points if all(y > other for faster, other in points if faster > x)]
    plt.plot(*zip(*front), color="gray", linestyle="--", label="Pareto front")
    for marker, run, (x, y) in zip("osD^vP*X", rows, points):
        low, high = run["exact_interval"]
        name = f"{mode([run]).removeprefix('size-')}: {run['parameters'] / 1e6:.2f} M parameters"
        plt.errorbar(x, y, [[y - low], [high - y]], fmt=marker, ms=10, capsize=4, label=name)
    plt.gca().set(xlabel="tokens written a second, batch 1", ylabel="share answered right",
                  title="Faster students: little accuracy is lost at first, then a lot")


def topk(_, plt):
    """Confidence minus accuracy of students of top-k lists, with or without a bucket (trap 13)."""
    sure = {"renormalised": [], "bucket": []}
    for recipe, [run] in read_rows("topk").items():
        tokens, confidence, accuracy = np.array(run["reliability"]).T
        kind, k = recipe.split("/")
        sure[kind].append((int(k), 100 * np.average(confidence - accuracy, weights=tokens)))
    plt.plot(*zip(*sorted(sure["renormalised"])), "s-", label="made to sum to 1")
    plt.plot(*zip(*sorted(sure["bucket"])), "o-", label="one bucket for all other tokens")
    plt.axhline(0, color="gray", linestyle="--", label="as confident as right")
    plt.gca().set(xscale="log", xlabel="k, tokens that the cache keeps (logarithmic)",
                  ylabel="confidence - accuracy, points",
                  title="Without a bucket the student becomes too confident")
    plt.xticks([2, 4, 8, 16, 32], [2, 4, 8, 16, 32])
    plt.minorticks_off()


def amount(_, plt):
    """Accuracy against the share of the teacher's rows: mean ± standard deviation over seeds."""
    rows = {mode(runs): [run["exact"] for run in runs] for runs in read_rows("blackbox").values()}
    found = {n: rows["cot" if n == 100 else f"rows-{n}"] for n in (1, 3, 10, 30, 100)}
    spreads = [np.std(exact, ddof=len(exact) > 1) for exact in found.values()]
    plt.errorbar([*found], list(map(fmean, found.values())), spreads, fmt="o-", capsize=5,
                 label="chains of thought")
    plt.axhline(fmean(rows["bare"]), color="gray", linestyle="--", label="bare answers of all rows")
    plt.gca().set(xscale="log", xlabel="share of the teacher's rows (logarithmic)",
                  ylabel="share answered right", ylim=(0, 1),
                  title="A third of the teacher's rows teaches nearly all")
    plt.xticks([*found], [f"{share} %" for share in found])
    plt.minorticks_off()


def ways(_, plt):
    """All ways to distil: who writes the text, and what the teacher says about each token of it."""
    gives = ["nothing", "the token\nthat it wrote", "its k likeliest\ntokens (a cache)",
             "its whole\ndistribution", "hidden states,\ntoo"]
    writers = ["people, or\na program", "the teacher", "the student"]
    for x, y, text in ((0, 0, "pretrain"), (2, 0, "logits\n--cache"), (3, 0, "logits"),
                       (4, 0, "features"), (3, 1, "logits on\ngenerated\ndocuments"),
                       (1, 1, "responses:\nanswers\n\nreason: chains\nof thought"),
                       (3, 2, "onpolicy")):
        color = "#f6c177" if x == 1 else "#9ccfd8" if x else "#dddddd"
        plt.text(x, y, text, ha="center", va="center", size=12, bbox=dict(fc=color, pad=7, lw=0))
    plt.xticks(range(5), gives, size=12)
    plt.yticks(range(3), writers, size=12)
    for color, label in (("#f6c177", "black box: text is enough"), ("#9ccfd8", "white box"),
                         ("#dddddd", "no teacher")):
        plt.scatter([], [], marker="s", s=120, color=color, label=label)
    plt.gca().set(xlim=(-0.5, 4.5), ylim=(-0.5, 2.5), ylabel="who writes the text",
                  xlabel="what the teacher says about each token: more from left to right",
                  title="Ways to distil (train_*.py, train_distill_*.py)")


def main(cfg):
    plt, out = pyplot(), Path(cfg.out)
    out.mkdir(parents=True, exist_ok=True)
    figures = reliability, robustness, soft_targets, pareto, topk, amount, ways
    for draw in [curves] if cfg.logs else figures:
        path = out / f"{draw.__name__.replace('_', '-')}.png"
        try:
            draw(cfg, plt)
            plt.legend(fontsize=12)
            plt.savefig(path, dpi=100)
            print(show(path))
        except UserError as error:
            print(f"{path.name} is not drawn: {error}")
        plt.close("all")


if __name__ == "__main__":
    run(main, Config)
