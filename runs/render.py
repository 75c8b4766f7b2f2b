"""results/*.jsonl -> the tables of RESULTS.md and both READMEs, between `<!-- NAME -->` marks.

    python runs/render.py            write the tables
    python runs/render.py --check    status 2 if a table differs from its rows (a test does this)

No figure in those files is typed by hand. A table is lines and columns; a column is a head and a
function of a line, and a line is mostly the runs of one recipe, one a seed. A comparison with a
teacher is refused unless it has both axes, equal tokens and equal wall-clock: a teacher is not free
(TRAPS 28).
"""
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, mean, stdev

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import report
from common import ROOT, UserError, check, markdown

FILES = ("RESULTS.md", "README.md", "README.zh.md")


@dataclass
class Config:
    check: bool = False            # compare instead of writing; status 2 if they differ


# --- rows -----------------------------------------------------------------------------------------

def read_rows(*names):
    """{recipe: its runs by seed} of results/NAME.jsonl. A run is a row (dict) that has the keys of
    its "config" and "metrics", too. UserError if the runs of a recipe were not alike."""
    rows = {}
    for name in names:
        for line in (ROOT / f"results/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            run = {**row.get("config", {}), **row["metrics"], **row}
            rows.setdefault(row["recipe"], []).append(run)
    for recipe, runs in rows.items():
        runs.sort(key=lambda run: run["seed"])
        check(len({run["seed"] for run in runs}) == len(runs), f"{recipe} has a seed twice")
        flags = [{k: v for k, v in run.get("config", {}).items()
                  if k not in ("name", "seed", "fresh")} for run in runs]
        check(all(other == flags[0] for other in flags),
              f"the runs of {recipe} had different flags; delete the old rows")
    return rows


def name_of(runs):
    """few/logits-wall -> logits-wall"""
    return runs[0]["recipe"].split("/")[-1]


def modes(rows, group):
    """GROUP/MODE of every mode that has rows; UserError for a mode with only one axis."""
    of_group = [r for r in rows if r.rsplit("/", 1)[0] == group and
                not r.endswith(("/teacher", "/alone"))]
    for recipe in of_group:
        other = recipe.removesuffix("-wall") if recipe.endswith("-wall") else f"{recipe}-wall"
        if other not in rows:
            raise UserError(f"{recipe}: a comparison needs both axes, equal tokens and equal "
                            f"wall-clock, and there is no row of {other}")
    return [r for r in of_group if not r.endswith("-wall")]


def teacher_of(rows, group):
    """The runs of a group's teacher: of the group itself, or of the group that it belongs to."""
    own = f"{group}/teacher"
    return rows[own] if own in rows or "/" not in group else \
        teacher_of(rows, group.rsplit("/", 1)[0])


# --- statistics: tests/test_docs.py compares them with scipy or with values by hand -----------------

# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
       2.145, 2.131, 2.120, 2.110, 2.101, 2.093)


def paired_t(base, runs, key):
    """Mean of runs - base over the seeds, and the half width of its 95 % interval (Student's t).

    UserError unless both have the same seeds, 2 to 20: a run that is left out is a choice.
    """
    seeds, others = ([run["seed"] for run in side] for side in (runs, base))
    check(seeds == others and 2 <= len(seeds) <= 20,
          f"{runs[0]['recipe']} has seeds {seeds} and {base[0]['recipe']} {others}; "
          "a comparison needs the same ones, 2 to 20")
    differences = [run[key] - other[key] for run, other in zip(runs, base)]
    half = T95[len(seeds) - 2] * stdev(differences) / math.sqrt(len(seeds))
    return mean(differences), half


def bootstrap(differences, rounds=10_000, seed=0):
    """Mean of paired differences, its 95 % percentile interval (Efron & Tibshirani 1993, ch. 13).

    Questions are drawn again with replacement: for one pair of models on many questions.
    """
    d = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(d), (rounds, len(d)))
    low, high = np.quantile(d[draws].mean(axis=1), [0.025, 0.975])
    return float(d.mean()), float(low), float(high)


def suite_values(right, suites=()):
    """The mean accuracy on the suites as one value a problem -> (n,), so that `bootstrap` of the
    difference of two models is paired problem by problem. The mean of the values is the mean of
    the suites' accuracies.

    right: {suite: "10-1..."}, a character a problem of "clean": 1 right, 0 wrong, - not in this
    suite; suites: their names, none: all except "clean".
    """
    value = np.zeros(len(right["clean"]))
    suites = suites or [name for name in right if name != "clean"]
    for name in suites:
        marks = np.array(list(right[name]))
        value += (marks == "1") * (len(marks) / (marks != "-").sum()) / len(suites)
    return value


def points_lost(right):
    """Accuracy on clean minus the mean of the suites, as one value a problem -> (n,)."""
    return suite_values(right, ["clean"]) - suite_values(right)


def surer(reliability):
    """Mean confidence in the likeliest token minus how often it is right, of a Calibration's bins:
    (tokens, mean confidence, accuracy) of each."""
    tokens = sum(n for n, _, _ in reliability)
    return sum(n * (sure - right) for n, sure, right in reliability) / tokens


def front(points):
    """Of (speed, accuracy) pairs, those that no other beats in both: the Pareto front, by speed."""
    best, kept = -1.0, []
    for speed, accuracy in sorted(points, reverse=True):
        if accuracy > best:
            best = accuracy
            kept.append((speed, accuracy))
    return kept[::-1]


# --- cells and columns ----------------------------------------------------------------------------

def cells(lines, columns):
    """The cells of a table: a column is (head, function of a line)."""
    return [[cell(line) for _, cell in columns] for line in lines]


def table(lines, columns, above=(), below=()):
    """A Markdown table of lines and columns; above, below: lines of cells that are no recipe's."""
    return markdown(" | ".join(head for head, _ in columns),
                    [*above, *cells(lines, columns), *below])


def first(key, form=","):
    """A column's function: a figure that is the same for all seeds."""
    return lambda runs: format(runs[0][key], form)


def average(key, form, unit=1):
    """A column's function: the mean over the seeds."""
    return lambda runs: format(fmean(run[key] for run in runs) / unit, form)


def spread(values, form):
    """Mean ± standard deviation of one value a seed, as text; a dash without a value."""
    if not values:
        return "-"
    around = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{around}"


def over(key, form):
    """A column's function: mean ± standard deviation over the seeds, or a dash."""
    return lambda runs: spread([run[key] for run in runs if key in run], form)


def proportion(run):
    """Accuracy of one run with its Wilson interval, or a dash."""
    return "{:.1%} ({:.1f}-{:.1f})".format(run["exact"], *(100 * x for x in run["exact_interval"])) \
        if "exact" in run else "-"


def exact(runs):
    """Accuracy. One seed: with Wilson's interval. Several: mean ± standard deviation, since all
    seeds answer the same questions, and pooling them would make the interval too narrow."""
    return proportion(runs[0]) if len(runs) == 1 else over("exact", ".1%")(runs)


def judged(base, runs, key):
    """[mean of runs - base over the seeds and its 95 % interval, in points of accuracy or in nats
    of cross-entropy; the verdict], as text.

    INCONCLUSIVE if the interval contains 0; DOES NOT BEAT is significantly worse.
    """
    scale, form, better = (100, ".1f", 1) if key == "exact" else (1, ".4f", -1)
    middle, half = paired_t(base, runs, key)
    verdict = "BEATS" if middle * better > 0 else "DOES NOT BEAT"
    return [f"{scale * middle:+{form}} ± {scale * half:{form}}",
            verdict if abs(middle) > half else "INCONCLUSIVE"]


def against(head, key, base, blank="-"):
    """Two columns, difference and verdict. base(runs): the runs to compare with, None: blank."""
    def pair(runs):
        other = base(runs)
        return judged(other, runs, key) if other else [blank] * 2
    return [(head, lambda runs: pair(runs)[0]), ("verdict", lambda runs: pair(runs)[1])]


def points(differences):
    """Mean and 95 % bootstrap interval of paired differences of accuracy, in points, as text."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in bootstrap(differences)))


def gap_closed(base, runs, teacher):
    """The share of the gap to the teacher's cross-entropy that is closed, or a gap too small for
    one, as text."""
    gap = mean(run["ce"] for run in base) - teacher[0]["ce"]
    return f"{-paired_t(base, runs, 'ce')[0] / gap:.0%}" if gap >= 0.15 else f"gap {gap:.3f}"


STEPS, TOKENS = ("steps:", first("steps")), ("tokens:", first("tokens"))
CE, EXACT = ("test ce:", over("ce", ".4f")), ("exact:", exact)
KL = ("KL to the teacher:", over("kl", ".3f"))
FORMAT, LENGTH = ("format:", over("format", ".1%")), ("tokens an answer:", over("answer_tokens", ".1f"))
SUITES = ("mean of the suites:", over("suite_mean", ".1%"))
SEED, PARAMETERS = ("seed:", first("seed")), ("parameters:", first("parameters"))


# --- the scoreboard, students, teachers -----------------------------------------------------------

def on_both_axes(rows, recipes):
    """The runs of each recipe at equal tokens, then at equal wall-clock."""
    return [rows[recipe + axis] for recipe in recipes for axis in ("", "-wall")]


def axis(runs):
    """logits -> "logits, equal tokens"; logits-wall -> "logits, equal wall-clock"."""
    mode, wall, _ = name_of(runs).partition("-wall")
    return f"{mode}, equal {'wall-clock' if wall else 'tokens'}"


def modes_table(rows, group):
    """Every mode of a group against the student without a teacher, on both axes: in accuracy if
    answers can be right or wrong, else in cross-entropy."""
    teacher, alone = teacher_of(rows, group), rows[f"{group}/alone"]
    names = {id(teacher): "teacher", id(alone): "without a teacher"}
    key = "exact" if "exact" in alone[0] else "ce"
    return table([teacher, alone, *on_both_axes(rows, modes(rows, group))], [
        ("student", lambda runs: names.get(id(runs)) or axis(runs)), STEPS,
        ("best step:", average("best_step", ",.0f")), TOKENS, CE, EXACT,
        ("gap closed:", lambda runs: "-" if id(runs) in names else gap_closed(alone, runs, teacher)),
        *against(f"{'points' if key == 'exact' else 'ce'} against alone:", key,
                 lambda runs: None if id(runs) in names else alone)])


# No question of any student was changed in these ways (blackbox/prompts.py has the others).
UNSEEN = ("paraphrase", "distractor", "large", "longer", "upper")


def robust_table(rows, group):
    """Accuracy on the suites, and what each model loses from clean to their mean, both against the
    teacher: paired bootstraps over problems, each value the mean over seeds."""
    teacher = rows[f"{group}/teacher"]
    lines = [teacher, *(rows[recipe] for recipe in (f"{group}/alone", *modes(rows, group)))]
    places = {tuple(marks.replace("1", "0") for marks in run["suites_right"].values())
              for runs in lines for run in runs}
    check(len(places) == 1, f"the students of {group} were asked other suites than their teacher")

    def each(value, runs):  # (n,)
        return sum(value(run["suites_right"]) for run in runs) / len(runs)

    def more(value, runs):
        return "-" if runs is teacher else points(each(value, runs) - each(value, teacher))

    def worst(runs):
        accuracy = {s: fmean(run["suites"][s]["exact"] for run in runs)
                    for s in runs[0]["suites_right"]}
        return "{}, {:.1%}".format(*min(accuracy.items(), key=lambda pair: pair[1]))
    return table(lines, [
        ("model", name_of),
        ("clean:", lambda runs: spread([r["suites"]["clean"]["exact"] for r in runs], ".1%")),
        SUITES, ("against the teacher (95 %):", lambda runs: more(suite_values, runs)),
        ("of the five unseen:", lambda runs: spread(
            [fmean(r["suites"][s]["exact"] for s in UNSEEN) for r in runs], ".1%")),
        ("worst suite", worst),
        ("points lost:", lambda runs: f"{100 * each(points_lost, runs).mean():.1f}"),
        ("more than the teacher (95 %):", lambda runs: more(points_lost, runs))])


def suites_table(rows, group):
    """Accuracy on each suite, a column a model."""
    recipes = [f"{group}/teacher", f"{group}/alone", *modes(rows, group)]

    def column(runs):
        return f"{name_of(runs)}:", lambda suite: spread(
            [run["suites"][suite]["exact"] for run in runs], ".1%")
    return table([suite for suite in rows[recipes[0]][0]["suites"] if suite != "hostile"], [
        ("suite", lambda suite: suite.replace("_", " ")), *(column(rows[r]) for r in recipes)])


def kept(runs, teacher):
    """What the seeds keep of the teacher's accuracy, as text: mean (lowest to highest)."""
    shares = [run["exact"] / teacher[0]["exact"] for run in runs]
    return f"{fmean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%}) of the teacher's accuracy"


def keeps_lines(rows, group):
    """A line a student, the one without a teacher first: accuracy kept; then its size and speed."""
    teacher, alone = rows[f"{group}/teacher"], rows[f"{group}/alone"]
    lines = [f"- alone reaches {kept(alone, teacher)}"]
    for recipe in modes(rows, group):
        tokens, wall = (judged(alone, runs, "exact")[1] for runs in on_both_axes(rows, [recipe]))
        lines.append(f"- {name_of(rows[recipe])} keeps {kept(rows[recipe], teacher)}; against "
                     f"alone: {tokens} at equal tokens, {wall} at equal wall-clock")
    size = alone[0]["parameters"] / teacher[0]["parameters"]
    turns = list(zip(rows[f"{group}/speed/1"], rows[f"{group}/speed/2"]))  # the teacher, a student
    one, many = (" and ".join(f"{student[key] / theirs[key]:.2f}" for theirs, student in turns)
                 for key in ("decode1", "decode32"))
    return "\n".join(lines) + (
        f"\n\nEach at {size:.1%} of the teacher's parameters and, measured {len(turns)} times, "
        f"{one} times its speed at batch 1 and {many} times at batch 32.")


def reason_table(rows):
    """Chains of thought against bare answers of the same questions at equal tokens."""
    names = {"cot": "the teacher's verified chains of thought",
             "answer": "bare answers of the same questions",
             "gold": "the stories' own steps, as many, other questions"}

    def nearest(runs):  # the seed that the comparison of the two kinds hangs on
        most = max if name_of(runs) == "answer" else min
        return proportion(most(runs, key=lambda run: run["exact"]))
    return table([rows[f"stories/reason/{kind}"] for kind in names], [
        ("trained on", lambda runs: names[name_of(runs)]), STEPS, TOKENS,
        ("supervised:", first("supervised")), EXACT, ("nearest seed:", nearest), FORMAT, LENGTH])


def single_table(rows):
    """Other data: one run a recipe."""
    recipes = ("stories/teacher", "stories-zh/teacher", "stories-zh/cot", "stories-zh/answer",
               "gsm8k/cot", "gsm8k/answer")
    return table([rows[recipe] for recipe in recipes], [
        ("run", first("recipe", "")), SEED, PARAMETERS, STEPS, CE,
        ("bits/byte:", over("bits_per_byte", ".3f")), EXACT, FORMAT])


def trials_table(rows):
    """What was tried before, on validation data and a seed of its own."""
    return table([rows[recipe] for recipe in sorted(rows) if recipe.startswith("trial/")], [
        ("trial", lambda runs: runs[0]["recipe"].removeprefix("trial/")), SEED,
        ("steps:", first("steps", "d")), ("validation ce:", CE[1]), EXACT])


def students_table(_):
    """Seven shapes on one teacher's traces; on the Pareto front if none is faster and better."""
    rows = read_rows("students").values()

    def place(runs):
        return runs[0]["decode1"], runs[0]["exact"]
    best = front(map(place, rows))
    return table(rows, [("model", name_of), PARAMETERS, EXACT, CE,
                        ("decode 1:", first("decode1", ",.0f")),
                        ("decode 32:", first("decode32", ",.0f")),
                        ("Pareto front", lambda runs: "yes" if place(runs) in best else "")])


def teachers_table(_):
    """Three teachers, and the same student taught by each."""
    return table(read_rows("teachers").values(), [("model", name_of), PARAMETERS, EXACT, CE])


def sweep_table(_):
    """Validation accuracy (and cross-entropy) of each temperature and alpha."""
    found = {(run["temperature"], run["alpha"]): "{exact:.1%} ({ce:.3f})".format(**run)
             for [run] in read_rows("sweep").values()}
    temperatures, alphas = (sorted(set(values)) for values in zip(*found))

    def column(alpha):
        return f"alpha {alpha:g}:", lambda temperature: found[temperature, alpha]
    return table(temperatures, [("temperature:", "{:g}".format), *map(column, alphas)])


# --- white box ------------------------------------------------------------------------------------

def step_times():
    """{mode: (ms a step, seconds before the first)} of white/MODE, mean over turns."""
    return {recipe.removeprefix("white/"): tuple(fmean(run[key] for run in runs)
                                                 for key in ("ms", "making"))
            for recipe, runs in read_rows("whitebox-times").items()}


def alone_budgets(rows, group):
    """The runs of each student without a teacher, by its number of steps."""
    return sorted((runs for recipe, runs in rows.items()
                   if re.fullmatch(rf"{group}/alone(-\d+)?", recipe)), key=lambda r: r[0]["steps"])


def as_long(budgets, runs, needed):
    """The student without a teacher (of alone_budgets) that is compared with runs as long as
    `needed` of its steps: the smallest budget that is enough. As it overfits, a smaller one that
    does better on validation data stands in its place. UserError if none is enough, unless the
    longest does worse than a shorter one: then more steps would not help."""
    shorter = sum(budget[0]["steps"] < needed for budget in budgets)
    best = min(budgets[:shorter + 1], key=lambda budget: fmean(run["val_ce"] for run in budget))
    check(shorter < len(budgets) or best is not budgets[-1],
          f"{runs[0]['recipe']} takes as long as {needed:,.0f} steps alone, and no row has so many")
    return best


def white_columns(rows, group):
    """White-box recipes against the student without a teacher, at equal tokens and wall-clock."""
    teacher, alone, budgets = rows["white/teacher"], rows[f"{group}/alone"], alone_budgets(rows, group)
    times = step_times()

    def cost(runs):
        return times["alone" if runs in budgets else name_of(runs)]

    def seconds(runs):
        ms, making = cost(runs)
        return runs[0]["steps"] * ms / 1000 + making

    def closed(runs):
        if runs in budgets:
            return "0%" if runs is alone else ""
        return gap_closed(alone, runs, teacher)

    def longest(runs):
        return None if runs in budgets else \
            as_long(budgets, runs, 1000 * seconds(runs) / times["alone"][0])
    return [
        ("recipe", name_of),
        ("a step costs:", lambda runs: f"{cost(runs)[0] / times['alone'][0]:.2f}"),
        ("minutes:", lambda runs: f"{seconds(runs) / 60:.1f}"), CE, KL, ("gap closed:", closed),
        *against("ce against alone, equal tokens:", "ce",
                 lambda runs: None if runs in budgets else alone, blank=""),
        *against("equal wall-clock:", "ce", longest, blank="")]


def white_recipes(rows, group):
    """The runs of each recipe with a teacher."""
    return [runs for recipe, runs in rows.items() if recipe.startswith(f"{group}/") and
            not re.match(r"alone|teacher", name_of(runs))]


def white_table(rows, group):
    """The teacher, the students without one, and every recipe."""
    teacher = ["teacher", "", "", f"{rows['white/teacher'][0]['ce']:.4f}", 0, "100%", *[""] * 4]
    return table([*alone_budgets(rows, group), *white_recipes(rows, group)],
                 white_columns(rows, group), above=[teacher])


def white_lines(rows, group):
    """The table in a line a recipe, for the README."""
    return "\n".join(
        f"- {name} closes {closed}: {tokens} at equal tokens, {wall} at equal wall-clock"
        for name, *_, closed, _, tokens, _, wall in cells(white_recipes(rows, group),
                                                          white_columns(rows, group)))


def cache_table(_):
    """What each cache costs, and after how many steps it has paid against the teacher beside."""
    times = step_times()
    online, plain = times["forward"][0], times["alone"][0]

    def column(head, form):
        def cell(kind):
            ms, making = times[f"cached-{kind}"]
            return form.format(ms=ms, making=making, speed=plain / ms,
                               pays=1000 * making / (online - ms))
        return head, cell
    return table(("topk", "sampled", "hidden"), [
        ("cache", str), column("made in:", "{making:.0f} s"), column("a step:", "{ms:.0f} ms"),
        column("steps/s of plain pretraining:", "{speed:.2f}"),
        column("pays after:", "{pays:,.0f} steps")],
        above=[["none, the teacher beside", "-", f"{online:.0f} ms", f"{plain / online:.2f}", "-"]])


def topk_table(_):
    """Students of lists of k tokens, with a bucket for the rest, and renormalised."""
    rows = read_rows("topk")

    def column(head, kind, figure, form):
        return head, lambda k: format(figure(rows[f"{kind}/{k}"][0]), form)
    return table(sorted({int(name_of(runs)) for runs in rows.values()}), [
        ("k:", str),
        column("ce, bucket:", "bucket", lambda run: run["ce"], ".3f"),
        column("ce, renormalised:", "renormalised", lambda run: run["ce"], ".3f"),
        column("KL to the teacher, bucket:", "bucket", lambda run: run["kl"], ".3f"),
        column("renormalised:", "renormalised", lambda run: run["kl"], ".3f"),
        column("surer than right, bucket:", "bucket",
               lambda run: 100 * surer(run["reliability"]), "+.1f"),
        column("renormalised:", "renormalised",
               lambda run: 100 * surer(run["reliability"]), "+.1f")])


def stories_table(rows):
    """White-box recipes on the stories, beside the scoreboard's runs of the same seeds."""
    seeds = [run["seed"] for run in rows["few-white/jsd"]]
    rows = {recipe: [run for run in runs if run["seed"] in seeds] for recipe, runs in rows.items()}
    alone = rows["few/alone"]
    return table([alone, *on_both_axes(rows, ("few/logits", "few-white/jsd", "few-white/hidden",
                                              "few-white/on-policy"))], [
        ("student", lambda runs: "alone" if runs is alone else axis(runs)), STEPS, CE, KL, EXACT,
        SUITES, ("minutes:", average("train_seconds", ".1f", unit=60)),
        *against("points against alone:", "exact", lambda runs: None if runs is alone else alone)])


# --- black box ------------------------------------------------------------------------------------

LESSONS = {
    "teacher": "the teacher itself", "bare": "bare answers", "full": "whole replies, no tags",
    "cot": "chains of thought", "mixed": "half of the rows with a thought, asked for nothing",
    "mixed-cot": "the same student, asked for a thought",
    "multi": "both tasks, asked for a thought", "multi-bare": "the same, asked for an answer"}
SEEN = ["typos", "names", "order", "no_punctuation"]   # suites whose operation the prompts had
COUSIN = "longer"                                      # their "deeper" adds an operation, up to 4


def lessons_table(rows):
    """One teacher's text, learned in several ways at equal tokens from one initialisation."""
    teacher, bare = rows["blackbox/teacher"], rows["blackbox/bare"]
    return table([rows[f"blackbox/{name}"] for name in LESSONS], [
        ("learned", lambda runs: LESSONS[name_of(runs)]), TOKENS,
        ("of them count:", first("supervised")), EXACT,
        ("of the teacher's:", lambda runs: "-" if runs is teacher else average(
            "exact", ".1%", unit=teacher[0]["exact"])(runs)),
        SUITES, FORMAT, LENGTH,
        *against("against bare answers:", "exact",
                 lambda runs: None if runs in (teacher, bare) else bare)])


def lesson_lines(rows):
    """What each lesson keeps of the teacher's accuracy, for the README."""
    return "\n".join(f"- {LESSONS[name]}: "
                     f"{kept(rows[f'blackbox/{name}'], rows['blackbox/teacher'])}"
                     for name in ("bare", "full", "cot", "multi"))


def enriched_table(rows):
    """Disturbed questions among those that the teacher was asked, against none, as many rows."""
    plain, rich = rows["blackbox/plain-2000"], rows["blackbox/cot-2000"]
    there = rich[0]["suites_right"]
    held = [s for s in there if s not in (*SEEN, COUSIN, "clean", "other_language")]
    lines = {"clean": ["clean"], "mean of those in training": SEEN, **{s: [s] for s in SEEN},
             "mean of those held out": held, **{s: [s] for s in (*held, COUSIN)}}

    def scored(runs, suites):  # (seeds, n)
        return np.array([suite_values(run["suites_right"], suites) for run in runs])

    def accuracy(runs, line):
        return [dict(run, exact=float(value.mean()))
                for run, value in zip(runs, scored(runs, lines[line]))]

    def column(head, runs):
        return head, lambda line: over("exact", ".1%")(accuracy(runs, line))

    def compared(line):
        return judged(accuracy(plain, line), accuracy(rich, line), "exact")

    def over_problems(line):
        return points((scored(rich, lines[line]) - scored(plain, lines[line])).mean(0))
    return table(lines, [
        ("suites", lambda line: line.replace("_", " ")),
        ("answers:", lambda line: f"{sum(m != '-' for s in lines[line] for m in there[s]):,}"),
        column("plain questions:", plain), column("disturbed ones, too:", rich),
        ("points:", lambda line: compared(line)[0]), ("verdict", lambda line: compared(line)[1]),
        ("of these eight models (95 %, over problems):", over_problems)])


def spoiled_table(rows):
    """The same chains unjudged, out of order, or with a wrong end, against those that were kept."""
    names = {"cot": "kept: judged and filtered",
             "unjudged": "unjudged: as many, of all answers, right and wrong",
             "shuffled": "half of the chains of several steps shuffled",
             "wrong": "half of the chains end with a wrong number"}
    cot, _, shuffled, wrong = lines = [rows[f"blackbox/{name}"] for name in names]
    return table(lines, [
        ("the rows", lambda runs: names[name_of(runs)]), EXACT, SUITES,
        *against("against the kept ones:", "exact", lambda runs: None if runs is cot else cot)],
        below=[["wrong against shuffled", "", "", *judged(shuffled, wrong, "exact")]])


def amount_table(rows):
    """How accuracy grows with the teacher's rows."""
    shares = {"rows-1": "1%", "rows-3": "3%", "rows-10": "10%", "rows-30": "30%", "cot": "100%"}
    return table([rows[f"blackbox/{name}"] for name in shares], [
        ("rows:", lambda runs: f"{runs[0]['documents']:,}" if runs[0]["documents"] else "all"),
        ("share:", lambda runs: shares[name_of(runs)]), EXACT,
        ("best step:", average("best_step", ",.0f")), ("validation ce:", average("val_ce", ".4f"))])


# --- all tables -----------------------------------------------------------------------------------

def scoreboard(_):
    """The speedrun's own table, from the JSON that eval.py wrote at its end."""
    found = json.loads((ROOT / "results/speedrun.json").read_text(encoding="utf-8"))
    return report.table(found["results"]) + "\n\n" + report.keeps(found["results"])


def machines_table(_):
    """Where the rows of each file were made, and how long their training took."""
    made_by = dict(scoreboard="results.sh", students="students.sh", teachers="students.sh",
                   sweep="sweep.sh", spine="spine.sh", whitebox="whitebox.sh", blackbox="lessons.sh")
    found = {}
    for name in made_by:
        for run in sum(read_rows(name).values(), []):
            place = (name, run["versions"]["machine"], run["versions"]["torch"])
            found.setdefault(place, []).append(run.get("train_seconds", 0))
    return table(sorted(found, key=lambda place: (list(made_by).index(place[0]), place)), [
        ("rows", lambda place: f"`{place[0]}.jsonl`"),
        ("made by", lambda place: f"`{made_by[place[0]]}`"),
        ("machine", lambda place: place[1]), ("torch", lambda place: place[2]),
        ("runs:", lambda place: len(found[place])),
        ("minutes of training:", lambda place: f"{sum(found[place]) / 60:.0f}")])


def printed(name):
    """What a benchmark printed, kept as results/NAME.md."""
    return (ROOT / f"results/{name}.md").read_text(encoding="utf-8").strip()


TABLES = {
    "scoreboard": scoreboard,
    "machines": machines_table,
    "speed": lambda _: printed("bench"),
    "decode": lambda _: printed("decode"),
    "fused": lambda _: printed("fused"),
    "modes": lambda rows: modes_table(rows, "few"),
    "keeps": lambda rows: keeps_lines(rows, "few"),
    "robust": lambda rows: robust_table(rows, "few"),
    "suites": lambda rows: suites_table(rows, "few"),
    "logits-all": lambda rows: modes_table(rows, "stories/all"),
    "prose": lambda rows: modes_table(rows, "prose"),
    "white": lambda rows: white_table(rows, "white"),
    "best": lambda rows: white_table(rows, "best"),
    "best-lines": lambda rows: white_lines(rows, "best"),
    "white-stories": stories_table,
    "cache-pays": cache_table,
    "topk": topk_table,
    "reason": reason_table,
    "real": single_table,
    "trials": trials_table,
    "lessons": lessons_table,
    "lesson-lines": lesson_lines,
    "enriched": enriched_table,
    "spoiled": spoiled_table,
    "amount": amount_table,
    "students": students_table,
    "teachers": teachers_table,
    "sweep": sweep_table,
}


def rendered(text, rows):
    """The text with every `<!-- NAME -->...<!-- end -->` filled from the rows."""
    def fill(match):
        check(match[1] in TABLES, f"no table is called {match[1]}; one of {', '.join(TABLES)}")
        try:
            return f"<!-- {match[1]} -->\n{TABLES[match[1]](rows)}\n<!-- end -->"
        except KeyError as error:
            raise UserError(f"the table {match[1]} needs what no row has: {error}") from error
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def all_rows():
    """The rows whose recipes are compared over seeds."""
    return read_rows("spine", "scoreboard", "whitebox", "blackbox")


def main(cfg):
    """Write the tables, or compare them."""
    rows = all_rows()
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
