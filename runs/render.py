"""Write the tables of RESULTS.md and both READMEs from results/*.jsonl, after each <!-- NAME -->.

    python runs/render.py

No number of a table is typed by hand, and a test fails if a table differs from its rows. A line is
usually one recipe: a list of its runs, one for each seed. A column is a pair: its head, and a
function from a line to a text.
"""
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import numpy as np

from common import ROOT, check
from eval import figure, summary
from metrics import markdown, table

FILES = ("RESULTS.md", "README.md", "README.zh.md")


@dataclass
class Config:
    """No flags."""


def read_rows(*names):
    """results/NAME.jsonl -> {recipe: its runs, sorted by seed}. A run has the keys of its row, its
    flags and metrics, and an accuracy "on SUITE". UserError if a recipe has a seed twice, or if its
    runs differ in a flag that all of them have. (Older rows have flags that no longer exist.)"""
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
        check(not differing, f"the runs of {recipe} differ in {sorted(differing)}")
    return rows


def mode(runs):
    """The last part of the recipe's name: few/logits-wall -> logits-wall."""
    return runs[0]["recipe"].split("/")[-1]


def models(rows, group, axes=("",)):
    """-> the runs of a group's teacher, its student without a teacher, and each other mode on these
    axes: "" is equal tokens, "-wall" is equal wall-clock. UserError if a mode has only one
    axis: a teacher costs time, so both must be compared (trap 28 of docs/traps.md)."""
    recipes = [recipe.rpartition("/") for recipe in rows]
    names = dict.fromkeys(name.removesuffix("-wall") for side, _, name in recipes if side == group)
    modes = [name for name in names if name not in ("teacher", "alone")]
    for recipe in (f"{group}/{name}{axis}" for name in modes for axis in ("", "-wall")):
        check(recipe in rows, f"a comparison needs both axes, but there is no row of {recipe}")
    chosen = ["teacher", "alone", *(name + axis for name in modes for axis in axes)]
    return [rows[f"{group}/{name}"] for name in chosen]


# two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def paired_t(base, runs, key):
    """-> mean of runs - base over the seeds, half width of its 95 % interval (Student's t).
    UserError unless both have the same 2 to 10 seeds: nobody may leave out the worst run."""
    seeds, others = ([run["seed"] for run in side] for side in (runs, base))
    check(seeds == others and 2 <= len(seeds) <= 10,
          f"{runs[0]['recipe']} needs the seeds of {base[0]['recipe']}, {others}, but has {seeds}")
    differences = [run[key] - other[key] for run, other in zip(runs, base)]
    return fmean(differences), T95[len(seeds) - 2] * stdev(differences) / math.sqrt(len(seeds))


def bootstrap(differences, rounds=10_000, seed=0):
    """Paired differences (n,) -> mean, low, high: a 95 % percentile interval (Efron & Tibshirani
    1993, ch. 13). It draws questions with replacement. For one pair of models, many questions."""
    d = np.asarray(differences, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(d), (rounds, len(d)))
    low, high = np.quantile(d[draws].mean(axis=1), [0.025, 0.975])
    return float(d.mean()), float(low), float(high)


def suite_values(runs, suites=()):
    """-> (n,), a value for each problem. Their mean is the accuracy, over suites (none named: all
    except "clean") and runs. So `bootstrap` can pair two models problem by problem. A run's
    "suites_right" is {suite: "10-1..."}, by problem: 1 right, 0 wrong, - not in this suite."""
    values = []
    for right in (run["suites_right"] for run in runs):
        for name in suites or [name for name in right if name != "clean"]:
            found = np.array(list(right[name]))
            values.append((found == "1") * len(found) / (found != "-").sum())
    return np.mean(values, axis=0)


def over(key, form=",.0f"):
    """A column's function: mean over the seeds, except for whole numbers ± standard deviation."""
    def cell(runs):
        values = [run[key] for run in runs if run.get(key) is not None]
        around = f" ± {stdev(values):{form}}" if form != ",.0f" and len(values) > 1 else ""
        return f"{fmean(values):{form}}{around}" if values else "-"
    return cell


def exact(runs):
    """Accuracy. One seed: with Wilson's interval. Several: mean ± standard deviation. All seeds
    answer the same questions, so pooling them would make the interval too narrow."""
    return figure("exact")(runs[0]) if len(runs) == 1 else over("exact", ".1%")(runs)


def kept(teacher):
    """A column: the share of the teacher's accuracy, mean (lowest to highest seed)."""
    def cell(runs):
        shares = [run["exact"] / teacher[0]["exact"] for run in runs]
        return f"{fmean(shares):.1%} ({min(shares):.1%} to {max(shares):.1%})"
    return "of the teacher's accuracy:", cell


def gap_closed(alone, teacher):
    """A column: (ce alone - ce) / (ce alone - ce of the teacher), the part of the gap closed."""
    def cell(runs):
        base, own, best = (fmean(run["ce"] for run in side) for side in (alone, runs, teacher))
        return f"{(base - own) / (base - best):.0%}"
    return "gap closed:", cell


def judged(base, runs, key):
    """-> [mean of runs - base over seeds with its 95 % interval, in points of accuracy or in nats;
    the verdict]. INCONCLUSIVE: the interval contains 0. DOES NOT BEAT: significantly worse."""
    scale, form, better = (100, ".1f", 1) if key == "exact" else (1, ".4f", -1)
    mean, half = paired_t(base, runs, key)
    verdict = "BEATS" if mean * better > 0 else "DOES NOT BEAT"
    return [f"{scale * mean:+{form}} ± {scale * half:{form}}",
            verdict if abs(mean) > half else "INCONCLUSIVE"]


def against(head, key, base):
    """Two columns: the difference to base(runs), its verdict. Dashes for the base and a teacher."""
    def pair(runs):
        itself = mode(runs) == "teacher" or base(runs) is runs
        return ["-", "-"] if itself else judged(base(runs), runs, key)
    return [(head, lambda runs: pair(runs)[0]), ("verdict", lambda runs: pair(runs)[1])]


WORDS = {"cot": "chains of thought", "bare": "bare answers",
         "full": "whole replies, no tags", "mixed-cot": "the same student, asked for a thought",
         "mixed": "half of the rows with a thought, asked for nothing",
         "multi": "both tasks, asked for a thought", "multi-bare": "the same, asked for an answer",
         "unjudged": "as many chains, of right and wrong answers",
         "shuffled": "half of the chains with several steps are shuffled",
         "wrong": "half of the chains end with a wrong number"}
LEARNED = ("learned", lambda runs: WORDS.get(mode(runs), mode(runs)))
STUDENT = ("student", lambda runs: mode(runs).replace("-wall", ", equal wall-clock"))
MODEL, PARAMETERS = ("model", mode), ("parameters:", over("parameters"))
STEPS = [("steps:", over("steps")), ("best step:", over("best_step"))]
TOKENS = [("tokens:", over("tokens")), ("of them count:", over("supervised"))]
CE, EXACT = ("test ce:", over("ce", ".4f")), ("exact:", exact)
SUITES = ("mean of the suites:", over("suite_mean", ".1%"))
FORM = ("format:", over("format", ".1%"))
LENGTH = ("tokens an answer:", over("answer_tokens", ".1f"))
# Suites with changes that the disturbed prompts have, too (blackbox/prompts.py), and other suites.
SEEN = ["typos", "names", "order", "no_punctuation"]
HELD = ["paraphrase", "distractor", "large", "upper"]


def modes_table(rows, group):
    """All modes against the student without a teacher, at equal tokens and equal wall-clock. It
    compares accuracy if answers can be right or wrong, else cross-entropy."""
    teacher, alone, *_ = lines = models(rows, group, ("", "-wall"))
    columns = [gap_closed(alone, teacher), *against("ce against alone:", "ce", lambda _: alone)]
    if "exact" in alone[0]:
        columns = [EXACT, kept(teacher),
                   *against("points against alone:", "exact", lambda _: alone)]
    return table(lines, [STUDENT, *STEPS, CE, *columns])


def robust_table(rows, group):
    """Accuracy on the suites, and the difference to the teacher: a paired bootstrap over problems.
    A problem's value is the mean over suites and seeds."""
    teacher, *students = models(rows, group)

    def difference(runs):
        found = bootstrap(100 * (suite_values(runs) - suite_values(teacher)))
        return "-" if runs is teacher else "{:+.1f} ({:+.1f} to {:+.1f})".format(*found)
    unseen = [*HELD, "longer"]  # longer resembles "deeper" of blackbox/prompts.py
    return table([teacher, *students], [
        MODEL, ("clean:", over("on clean", ".1%")), SUITES,
        ("against the teacher (95 %):", difference),
        ("of the five unseen:", lambda runs: f"{suite_values(runs, unseen).mean():.1%}")])


def as_long(budgets, runs, needed):
    """-> the student without a teacher that had as much time as `runs`, or less time and a better
    validation ce (it overfits). budgets: its runs, sorted by steps; needed: its steps in the time
    of `runs`. UserError if no budget has so many steps and the largest is the best."""
    shorter = sum(budget[0]["steps"] < needed for budget in budgets)
    best = min(budgets[:shorter + 1], key=lambda budget: fmean(run["val_ce"] for run in budget))
    check(shorter < len(budgets) or best is not budgets[-1],
          f"{runs[0]['recipe']} takes as long as {needed:,.0f} steps alone, but no row has so many")
    return best


def white_table(rows, group):
    """White-box recipes against the student without a teacher, at equal tokens and wall-clock."""
    times = {mode(runs): [fmean(run[key] for run in runs) for key in ("ms", "making")]
             for recipe, runs in read_rows("whitebox-times").items() if recipe.startswith("white/")}
    teacher, alone = rows["white/teacher"], rows[f"{group}/alone"]
    plain = times["alone"][0]
    found = [runs for recipe, runs in rows.items()
             if recipe.startswith(f"{group}/") and runs is not teacher]
    budgets = sorted((runs for runs in found if mode(runs).startswith("alone")),
                     key=lambda runs: runs[0]["steps"])

    def cost(runs):  # -> ms a step, seconds in total
        ms, making = times["alone" if runs in budgets else mode(runs)]
        return ms, runs[0]["steps"] * ms / 1000 + making

    def timed(place, unit):  # the teacher's own steps were not timed
        return lambda runs: "-" if runs is teacher else f"{cost(runs)[place] / unit:.2f}"
    return table([teacher, *budgets, *(runs for runs in found if runs not in budgets)], [
        MODEL, ("a step costs:", timed(0, plain)), ("minutes:", timed(1, 60)), CE,
        ("KL to the teacher:", over("kl", ".3f")), gap_closed(alone, teacher),
        *against("ce against alone, equal tokens:", "ce", lambda _: alone),
        *against("equal wall-clock:", "ce",
                 lambda runs: as_long(budgets, runs, 1000 * cost(runs)[1] / plain))])


def enriched_table(rows):
    """Students of plain and disturbed questions against students of as many plain questions."""
    suites = {"mean of the kinds in training": SEEN, "mean of other kinds": HELD,
              **{name.replace("_", " "): [name] for name in ("clean", *SEEN, *HELD, "longer")}}
    lines = []
    for line, names in suites.items():
        plain, rich = ([{**run, "exact": fmean(run[f"on {name}"] for name in names)}
                        for run in rows[f"blackbox/{kind}-2000"]] for kind in ("plain", "cot"))
        lines.append([line, exact(plain), exact(rich), *judged(plain, rich, "exact")])
    return markdown("suites | plain questions: | plain and disturbed: | points: | verdict", lines)


def sweep_table(_):
    """Accuracy: one line for each temperature, one column for each alpha."""
    rows = read_rows("sweep")
    lines = [[tau, *(exact(rows[f"sweep-alpha-{alpha}-tau-{tau}"]) for alpha in (0.5, 0.9, 1))]
             for tau in (1, 2, 4, 8)]
    return markdown("temperature: | alpha 0.5: | alpha 0.9: | alpha 1:", lines)


def scoreboard(_):
    """The speedrun's summary, from the JSON that eval.py wrote at its end."""
    return summary(json.loads((ROOT / "results/speedrun.json").read_text("utf-8"))["results"])


def scoreboard_zh(_):
    """The same in Chinese."""
    text = re.sub(r"(\S+%) right", r"答对 \1", scoreboard(_))
    return re.sub(", (.+) of the parameters, (.+) times as fast",
                  r"，参数量是教师的 \1，生成速度是教师的 \2 倍", text)


TABLES = {
    "scoreboard": scoreboard, "scoreboard-zh": scoreboard_zh,
    "modes": lambda rows: modes_table(rows, "few"),
    "prose": lambda rows: modes_table(rows, "prose"),
    "smollm2": lambda rows: modes_table(rows, "smollm2"),
    "white-stories": lambda rows: modes_table(rows, "few-white"),
    "robust": lambda rows: robust_table(rows, "few"),
    "white": lambda rows: white_table(rows, "white"),
    "best": lambda rows: white_table(rows, "best"),
    "real": lambda rows: table([rows[recipe] for recipe in (
        "stories/teacher", "stories-zh/teacher", "stories-zh/cot", "stories-zh/answer", "gsm8k/cot",
        "gsm8k/answer")], [
        ("recipe", lambda runs: runs[0]["recipe"]), PARAMETERS, STEPS[0], CE,
        ("bits/byte:", over("bits_per_byte", ".3f")), EXACT, FORM]),
    "lessons": lambda rows: table([rows[f"blackbox/{name}"] for name in (
        "teacher bare full cot mixed mixed-cot multi multi-bare").split()], [
        LEARNED, *TOKENS, EXACT, kept(rows["blackbox/teacher"]), SUITES, FORM, LENGTH,
        *against("against bare answers:", "exact", lambda _: rows["blackbox/bare"])]),
    "enriched": enriched_table,
    "spoiled": lambda rows: table([rows[f"blackbox/{name}"] for name in (
        "cot unjudged shuffled wrong").split()], [
        LEARNED, EXACT, SUITES,
        *against("against chains:", "exact", lambda _: rows["blackbox/cot"])]),
    "students": lambda _: table(read_rows("students").values(), [
        MODEL, PARAMETERS, EXACT, CE, *((f"decode {n}:", over(f"decode{n}")) for n in (1, 32))]),
    "sweep": sweep_table,
}


def rendered(document, rows):
    """The document with every `<!-- NAME -->...<!-- end -->` filled from the rows."""
    return re.sub(r"(<!-- ([\w-]+) -->\n).*?(<!-- end -->)", lambda found:
                  f"{found[1]}{TABLES[found[2]](rows)}\n{found[3]}", document, flags=re.S)


def main(_):
    rows = read_rows("spine", "scoreboard", "whitebox", "blackbox", "smollm2")
    for name in FILES:
        old = (ROOT / name).read_text(encoding="utf-8")
        new = rendered(old, rows)
        common.write_file(ROOT / name, new)
        print(f"{name}: {'unchanged' if new == old else 'written'}")


if __name__ == "__main__":
    common.run(main, Config)
