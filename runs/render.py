"""results/*.jsonl -> the tables of RESULTS.md and both READMEs, between `<!-- NAME -->` marks.

    python runs/render.py            write the tables
    python runs/render.py --check    status 2 if a table differs from its rows (a test does this)

No figure in those files is typed by hand. A table is lines and columns. A line is mostly the runs
of one recipe, one a seed. A column is a head and a function of a line.
"""
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
from common import ROOT, UserError, check
from eval import SCOREBOARD, figure, keeps
from metrics import table

FILES = ("RESULTS.md", "README.md", "README.zh.md")


@dataclass
class Config:
    check: bool = False            # compare instead of writing; status 2 if they differ


# --- rows -----------------------------------------------------------------------------------------

def read_rows(*names):
    """{recipe: its runs by seed} of results/NAME.jsonl. A run has the keys of its row, of its flags
    and metrics, and "on SUITE" accuracies. UserError if the runs of a recipe were not alike in a
    flag that all of them have (older rows have flags that are gone)."""
    rows = {}
    for line in (line for name in names for line in open(ROOT / f"results/{name}.jsonl")):
        row = json.loads(line)
        suites = {f"on {name}": suite["exact"] for name, suite in
                  row["metrics"].get("suites", {}).items() if name != "hostile"}
        run = {**row.get("config", {}), **row["metrics"], **suites, **row}
        rows.setdefault(row["recipe"], []).append(run)
    for recipe, runs in rows.items():
        runs.sort(key=lambda run: run["seed"])
        check(len({run["seed"] for run in runs}) == len(runs), f"{recipe} has a seed twice")
        flags = [run.get("config", {}) for run in runs]
        shared = set.intersection(*map(set, flags)) - {"name", "seed", "fresh"}
        differing = {flag for flag in shared for run in runs if run[flag] != runs[0][flag]}
        check(not differing,
              f"the runs of {recipe} differ in {sorted(differing)}; delete the old ones")
    return rows


def mode(runs):
    """few/logits-wall -> logits-wall"""
    return runs[0]["recipe"].split("/")[-1]


def of(rows, group, *names):
    """The runs of each recipe GROUP/NAME."""
    return [rows[f"{group}/{name}"] for name in names]


def models(rows, group, axes=("",)):
    """The runs of a group's teacher, of the student without one, and of each mode of the group on
    these axes: "" is equal tokens, "-wall" equal wall-clock. UserError if a mode has only one axis:
    a teacher is not free (TRAPS 28)."""
    names = [mode(runs) for recipe, runs in rows.items() if recipe.rpartition("/")[0] == group]
    modes = dict.fromkeys(name.removesuffix("-wall") for name in names)
    modes = [name for name in modes if name not in ("teacher", "alone")]
    for recipe in (f"{group}/{name}{axis}" for name in modes for axis in ("", "-wall")):
        if recipe not in rows:
            raise UserError("a comparison needs both axes, equal tokens and equal wall-clock, and "
                            f"there is no row of {recipe}")
    return of(rows, group, "teacher", "alone", *(name + axis for name in modes for axis in axes))


# --- statistics -----------------------------------------------------------------------------------

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
       2.145, 2.131, 2.120, 2.110, 2.101, 2.093)


def paired_t(base, runs, key):
    """Mean of runs - base over the seeds, and the half width of its 95 % interval (Student's t).
    UserError unless both have the same seeds, 2 to 20: to leave a run out is to choose."""
    seeds, others = ([run["seed"] for run in side] for side in (runs, base))
    check(seeds == others and 2 <= len(seeds) <= 20,
          f"{runs[0]['recipe']} has seeds {seeds} and {base[0]['recipe']} {others}; "
          "a comparison needs the same ones, 2 to 20")
    differences = [run[key] - other[key] for run, other in zip(runs, base)]
    return fmean(differences), T95[len(seeds) - 2] * stdev(differences) / math.sqrt(len(seeds))


def bootstrap(differences, rounds=10_000, seed=0):
    """Mean of paired differences, its 95 % percentile interval (Efron & Tibshirani 1993, ch. 13).
    Questions are drawn again with replacement: for one pair of models on many questions."""
    d = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(d), (rounds, len(d)))
    low, high = np.quantile(d[draws].mean(axis=1), [0.025, 0.975])
    return float(d.mean()), float(low), float(high)


def suite_values(runs, suites=()):
    """Accuracy on the suites (none: all except "clean"), mean over suites and runs, as one value a
    problem -> (n,), so that `bootstrap` pairs two models problem by problem. A run's "suites_right"
    is {suite: "10-1..."}, a character a problem: 1 right, 0 wrong, - not in this suite."""
    values = []
    for right in (run["suites_right"] for run in runs):
        for name in suites or [name for name in right if name != "clean"]:
            marks = np.array(list(right[name]))
            values.append((marks == "1") * len(marks) / (marks != "-").sum())
    return np.mean(values, axis=0)


def surer(runs):
    """Confidence in the likeliest token minus how often it is right, in points, of the first run.
    Its "reliability" is [(tokens, mean confidence, accuracy)] of bins."""
    tokens, confidence, accuracy = np.array(runs[0]["reliability"]).T
    return float(100 * (tokens * (confidence - accuracy)).sum() / tokens.sum())


# --- columns: (head, function of a line) ----------------------------------------------------------

def average(key, form=",.0f", unit=1):
    """A column's function: the mean over the seeds."""
    return lambda runs: format(fmean(run[key] for run in runs) / unit, form)


def over(key, form):
    """A column's function: mean ± standard deviation over the seeds, or a dash."""
    def cell(runs):
        values = [run[key] for run in runs if key in run]
        around = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
        return f"{fmean(values):{form}}{around}" if values else "-"
    return cell


def exact(runs):
    """Accuracy. One seed: with Wilson's interval. Several: mean ± standard deviation, since all
    seeds answer the same questions, and pooling them would make the interval too narrow."""
    return figure("exact")(runs[0]) if len(runs) == 1 else over("exact", ".1%")(runs)


def kept(teacher):
    """A column: the share of the teacher's accuracy, mean (lowest to highest seed)."""
    def cell(runs):
        shares = [run["exact"] / teacher[0]["exact"] for run in runs]
        return f"{fmean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
    return "of the teacher's accuracy:", cell


def gap_closed(alone, teacher):
    """A column: the share of the gap in cross-entropy to the teacher; a dash for a small gap."""
    def cell(runs):
        base, own, best = (fmean(run["ce"] for run in side) for side in (alone, runs, teacher))
        return f"{(base - own) / (base - best):.0%}" if base - best >= 0.15 else "-"
    return "gap closed:", cell


def judged(base, runs, key):
    """[mean of runs - base over seeds and its 95 % interval, in points of accuracy or in nats;
    the verdict]. INCONCLUSIVE: the interval contains 0. DOES NOT BEAT: significantly worse."""
    scale, form, better = (100, ".1f", 1) if key == "exact" else (1, ".4f", -1)
    mean, half = paired_t(base, runs, key)
    verdict = "BEATS" if mean * better > 0 else "DOES NOT BEAT"
    return [f"{scale * mean:+{form}} ± {scale * half:{form}}",
            verdict if abs(mean) > half else "INCONCLUSIVE"]


def against(head, key, base):
    """Two columns: the difference to the runs base(runs), and the verdict. Dashes for those runs
    themselves and for a teacher."""
    def pair(runs):
        itself = mode(runs) == "teacher" or base(runs) is runs
        return ["-", "-"] if itself else judged(base(runs), runs, key)
    return [(head, lambda runs: pair(runs)[0]), ("verdict", lambda runs: pair(runs)[1])]


def student(runs):
    """logits-wall -> "logits, equal wall-clock"."""
    name, wall, _ = mode(runs).partition("-wall")
    return name if name in ("teacher", "alone") else \
        f"{name}, equal {'wall-clock' if wall else 'tokens'}"


WORDS = {"cot": "chains of thought", "bare": "bare answers", "answer": "bare answers",
         "full": "whole replies, no tags", "gold": "the stories' own steps, other questions",
         "mixed": "half of the rows with a thought, asked for nothing",
         "mixed-cot": "the same student, asked for a thought",
         "multi": "both tasks, asked for a thought", "multi-bare": "the same, asked for an answer",
         "unjudged": "as many chains of all answers, right and wrong",
         "shuffled": "half of the chains of several steps shuffled",
         "wrong": "half of the chains end with a wrong number"}
LEARNED = ("learned", lambda runs: WORDS.get(mode(runs), mode(runs)))
RECIPE, SEED = ("recipe", lambda runs: runs[0]["recipe"]), ("seed:", average("seed"))
MODEL, PARAMETERS = ("model", mode), ("parameters:", average("parameters"))
STEPS, BEST = ("steps:", average("steps")), ("best step:", average("best_step"))
TOKENS, COUNTED = ("tokens:", average("tokens")), ("of them count:", average("supervised"))
CE, VAL_CE = ("test ce:", over("ce", ".4f")), ("validation ce:", over("ce", ".4f"))
EXACT, KL = ("exact:", exact), ("KL to the teacher:", over("kl", ".3f"))
SUITES = ("mean of the suites:", over("suite_mean", ".1%"))
FORM = ("format:", over("format", ".1%"))
LENGTH = ("tokens an answer:", over("answer_tokens", ".1f"))
DECODE = [("decode 1:", over("decode1", ",.0f")), ("decode 32:", over("decode32", ",.0f"))]
INTERVAL = "{:+.1f} ({:+.1f} to {:+.1f})".format
# Suites of the kinds of the disturbed prompts (blackbox/prompts.py), and of other kinds.
SEEN = ["typos", "names", "order", "no_punctuation"]
HELD = ["paraphrase", "distractor", "large", "upper"]  # and longer, which has a cousin there


# --- tables ---------------------------------------------------------------------------------------

def modes_table(rows, group, *more):
    """Modes against the student without a teacher, on both axes: in accuracy if answers can be
    right or wrong, else in cross-entropy."""
    teacher, alone, *_ = lines = models(rows, group, ("", "-wall"))
    head, key = ("points", "exact") if "exact" in alone[0] else ("ce", "ce")
    return table(lines, [
        ("student", student), STEPS, BEST, TOKENS, CE, EXACT, *more, gap_closed(alone, teacher),
        *against(f"{head} against alone:", key, lambda _: alone)])


def stories_table(rows):
    """White-box modes on the stories, beside the scoreboard's runs of the same seeds."""
    seeds = [run["seed"] for run in rows["few-white/jsd"]]
    same = {f"few-white/{name}": [run for run in rows[f"few/{name}"] if run["seed"] in seeds]
            for name in ("alone", "logits", "logits-wall")}
    rows = {"few-white/teacher": rows["few/teacher"], **same, **rows}
    minutes = ("minutes:", average("train_seconds", ".1f", unit=60))
    return modes_table(rows, "few-white", KL, SUITES, minutes)


def robust_table(rows, group):
    """Accuracy on the suites, and the points lost from clean to their mean, both against the
    teacher: paired bootstraps over problems, each value the mean over seeds."""
    lines = models(rows, group)
    places = {tuple(marks.replace("1", "0") for marks in run["suites_right"].values())
              for runs in lines for run in runs}
    check(len(places) == 1, f"the students of {group} were asked other suites than their teacher")

    def lost(runs):  # (n,)
        return suite_values(runs, ["clean"]) - suite_values(runs)

    def more(value):
        return lambda runs: "-" if runs is lines[0] else \
            INTERVAL(*bootstrap(100 * (value(runs) - value(lines[0]))))
    return table(lines, [
        MODEL, ("clean:", over("on clean", ".1%")), SUITES,
        ("against the teacher (95 %):", more(suite_values)),
        ("of the five unseen:",
         lambda runs: f"{suite_values(runs, [*HELD, 'longer']).mean():.1%}"),
        ("points lost:", lambda runs: f"{100 * lost(runs).mean():.1f}"),
        ("more than the teacher (95 %):", more(lost))])


def suites_table(rows, group):
    """Accuracy on each suite, a column a model."""
    def column(runs):
        return f"{mode(runs)}:", lambda suite: over(suite, ".1%")(runs)
    lines = models(rows, group)
    return table([key for key in lines[0][0] if key.startswith("on ")], [
        ("suite", lambda suite: suite[3:].replace("_", " ")), *map(column, lines)])


def step_times():
    """{recipe of white: (ms a step, seconds before the first)}, mean over turns."""
    return {mode(runs): tuple(fmean(run[key] for run in runs) for key in ("ms", "making"))
            for recipe, runs in read_rows("whitebox-times").items() if recipe.startswith("white/")}


def as_long(budgets, runs, needed):
    """The student without a teacher that is compared with runs as long as `needed` of its steps: of
    budgets (its runs, by steps) the smallest that is enough or, since it overfits, a smaller one
    that does better on validation data. UserError if none is enough and the longest is the best of
    them: more steps might help."""
    shorter = sum(budget[0]["steps"] < needed for budget in budgets)
    best = min(budgets[:shorter + 1], key=lambda budget: fmean(run["val_ce"] for run in budget))
    check(shorter < len(budgets) or best is not budgets[-1],
          f"{runs[0]['recipe']} takes as long as {needed:,.0f} steps alone, and no row has so many")
    return best


def white_table(rows, group, short=False):
    """White-box recipes against the student without a teacher; short: only what they are worth."""
    times, teacher, alone = step_times(), rows["white/teacher"], rows[f"{group}/alone"]
    plain = times["alone"][0]
    found = [runs for recipe, runs in rows.items()
             if recipe.startswith(f"{group}/") and runs is not teacher]
    budgets = sorted((runs for runs in found if mode(runs).startswith("alone")),
                     key=lambda runs: runs[0]["steps"])
    recipes = [runs for runs in found if runs not in budgets]

    def cost(runs):  # ms a step, and seconds in all
        ms, making = times["alone" if runs in budgets else mode(runs)]
        return ms, runs[0]["steps"] * ms / 1000 + making

    def timed(place, unit):  # the teacher's own steps were not timed
        return lambda runs: "-" if runs is teacher else f"{cost(runs)[place] / unit:.2f}"
    closed = gap_closed(alone, teacher)
    tokens = against("ce against alone, equal tokens:", "ce", lambda _: alone)
    wall = against("equal wall-clock:", "ce",
                   lambda runs: as_long(budgets, runs, 1000 * cost(runs)[1] / plain))
    if short:
        return table(recipes, [MODEL, closed, ("equal tokens", tokens[1][1]),
                               ("equal wall-clock", wall[1][1])])
    return table([teacher, *budgets, *recipes], [
        MODEL, ("a step costs:", timed(0, plain)), ("minutes:", timed(1, 60)), CE, KL, closed,
        *tokens, *wall])


def cache_table(_):
    """What each cache costs, and after how many steps it has paid against the teacher beside."""
    times = step_times()

    def pays(name):
        gain = times["forward"][0] - times[name][0]  # ms a step
        return f"{1000 * times[name][1] / gain:,.0f} steps" if gain else "-"
    return table(("forward", "cached-topk", "cached-sampled", "cached-hidden"), [
        ("model", str), ("made in:", lambda name: f"{times[name][1]:.0f} s"),
        ("a step:", lambda name: f"{times[name][0]:.0f} ms"), ("pays after:", pays)])


def enriched_table(rows):
    """Disturbed questions among those that the teacher was asked, against none, as many rows."""
    plain, rich = of(rows, "blackbox", "plain-2000", "cot-2000")
    suites = {"mean of those in training": SEEN, "mean of those held out": HELD,
              **{name: [name] for name in ("clean", *SEEN, *HELD, "longer")}}

    def on(runs, line):
        return [{**run, "exact": fmean(run[f"on {s}"] for s in suites[line])} for run in runs]

    def problems(line):  # (n,)
        return suite_values(rich, suites[line]) - suite_values(plain, suites[line])
    return table(suites, [
        ("suites", lambda line: line.replace("_", " ")),
        ("answers:", lambda line: sum(rich[0]["suites"][s]["n"] for s in suites[line])),
        ("plain questions:", lambda line: exact(on(plain, line))),
        ("disturbed ones, too:", lambda line: exact(on(rich, line))),
        ("points:", lambda line: judged(on(plain, line), on(rich, line), "exact")[0]),
        ("verdict", lambda line: judged(on(plain, line), on(rich, line), "exact")[1]),
        ("of these eight models (95 %, over problems):",
         lambda line: INTERVAL(*bootstrap(100 * problems(line))))])


def machines_table(*names):
    """Where the rows of each file were made, and how long their training took."""
    runs = {name: sum(read_rows(name).values(), []) for name in names}
    seconds = {name: [run.get("train_seconds", 0) for run in runs[name]] for name in names}
    places = {name: {run["versions"]["machine"] for run in runs[name]} for name in names}
    return table(names, [
        ("rows", "{}.jsonl".format), ("machines", lambda name: "; ".join(sorted(places[name]))),
        ("runs:", lambda name: len(runs[name])),
        ("minutes of training:", lambda name: f"{sum(seconds[name]) / 60:.0f}")])


def text(name):
    """What a command wrote, kept as results/NAME."""
    return (ROOT / "results" / name).read_text(encoding="utf-8").strip()


def scoreboard(_):
    """The speedrun's own table, from the JSON that eval.py wrote at its end."""
    found = json.loads(text("speedrun.json"))["results"]
    return table(found, SCOREBOARD) + "\n\n" + keeps(found)


TABLES = {
    "scoreboard": scoreboard,
    "speed": lambda _: text("bench.md"),
    "decode": lambda _: text("decode.md"),
    "fused": lambda _: text("fused.md"),
    "modes": lambda rows: modes_table(rows, "few"),
    "prose": lambda rows: modes_table(rows, "prose"),
    "logits-all": lambda rows: modes_table(
        {"stories/all/teacher": rows["stories/teacher"], **rows}, "stories/all"),
    "white-stories": stories_table,
    "keeps": lambda rows: table(models(rows, "few", ("", "-wall"))[1:], [
        ("student", student), PARAMETERS, kept(rows["few/teacher"]),
        *against("points against alone:", "exact", lambda _: rows["few/alone"])]),
    "keeps-speed": lambda rows: table(of(rows, "few/speed", "1", "2"), [
        ("speed of", lambda runs: {"1": "the teacher", "2": "a student"}[mode(runs)]), *DECODE]),
    "robust": lambda rows: robust_table(rows, "few"),
    "suites": lambda rows: suites_table(rows, "few"),
    "white": lambda rows: white_table(rows, "white"),
    "best": lambda rows: white_table(rows, "best"),
    "best-lines": lambda rows: white_table(rows, "best", short=True),
    "cache-pays": cache_table,
    "topk": lambda _: table(sorted(read_rows("topk").values(), key=lambda runs: int(mode(runs))), [
        RECIPE, CE, KL, ("surer than right:", lambda runs: f"{surer(runs):+.1f}")]),
    "reason": lambda rows: table(of(rows, "stories/reason", "cot", "answer", "gold"), [
        LEARNED, STEPS, TOKENS, COUNTED, EXACT, FORM, LENGTH]),
    "real": lambda rows: table([rows[recipe] for recipe in (
        "stories/teacher", "stories-zh/teacher", "stories-zh/cot", "stories-zh/answer", "gsm8k/cot",
        "gsm8k/answer")], [
        RECIPE, PARAMETERS, STEPS, CE, ("bits/byte:", over("bits_per_byte", ".3f")), EXACT, FORM]),
    "trials": lambda rows: table([rows[r] for r in sorted(rows) if r.startswith("trial/")], [
        RECIPE, SEED, STEPS, VAL_CE, EXACT]),
    "lessons": lambda rows: table(of(
        rows, "blackbox", "teacher", "bare", "full", "cot", "mixed", "mixed-cot", "multi",
        "multi-bare"), [
        LEARNED, TOKENS, COUNTED, EXACT, kept(rows["blackbox/teacher"]), SUITES, FORM, LENGTH,
        *against("against bare answers:", "exact", lambda _: rows["blackbox/bare"])]),
    "lesson-lines": lambda rows: table(of(rows, "blackbox", "bare", "full", "cot", "multi"), [
        LEARNED, kept(rows["blackbox/teacher"])]),
    "enriched": enriched_table,
    "spoiled": lambda rows: table(of(rows, "blackbox", "cot", "unjudged", "shuffled", "wrong"), [
        LEARNED, EXACT, SUITES,
        *against("against chains:", "exact", lambda _: rows["blackbox/cot"]),
        *against("against shuffled:", "exact", lambda _: rows["blackbox/shuffled"])]),
    "amount": lambda rows: table(of(
        rows, "blackbox", "rows-1", "rows-3", "rows-10", "rows-30", "cot"), [
        ("share", mode), EXACT, BEST, ("validation ce:", average("val_ce", ".4f"))]),
    "students": lambda _: table(read_rows("students").values(), [
        MODEL, PARAMETERS, EXACT, CE, *DECODE]),
    "teachers": lambda _: table(read_rows("teachers").values(), [MODEL, PARAMETERS, EXACT, CE]),
    "sweep": lambda _: table(read_rows("sweep").values(), [
        ("temperature:", average("temperature", "g")), ("alpha:", average("alpha", "g")), EXACT,
        VAL_CE]),
    "machines": lambda _: machines_table("scoreboard", "students", "teachers", "sweep", "spine",
                                         "whitebox", "blackbox"),
}


def rendered(document, rows):
    """The document with every `<!-- NAME -->...<!-- end -->` filled from the rows."""
    def fill(match):
        check(match[1] in TABLES, f"no table is called {match[1]}; one of {', '.join(TABLES)}")
        try:
            return f"<!-- {match[1]} -->\n{TABLES[match[1]](rows)}\n<!-- end -->"
        except KeyError as error:
            raise UserError(f"the table {match[1]} needs what no row has: {error}") from error
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, document, flags=re.S)


def main(cfg):
    """Write the tables, or compare them."""
    rows = read_rows("spine", "scoreboard", "whitebox", "blackbox")
    for name in FILES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = rendered(old, rows)
        check(new == old or not cfg.check,
              f"{name} differs from results/: python runs/render.py writes it anew")
        if new != old:
            common.write_file(ROOT / name, new)
        print(f"{name}: {'as its rows' if new == old else 'rendered'}")


if __name__ == "__main__":
    common.run(main, Config)
