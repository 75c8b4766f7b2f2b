"""results/*.jsonl -> the tables of RESULTS.md and both READMEs, between `<!-- NAME -->` marks.

    python runs/render.py            write the tables
    python runs/render.py --check    status 2 where a table differs from its rows (a test does this)

No figure in those files is typed by hand. A comparison with a teacher is refused unless it has both
axes, equal tokens and equal wall-clock: a teacher is not free (TRAPS 28).
"""
import ast
import json
import re
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli
import rowfile
from cli import ROOT, check, fail, show
from metrics import bootstrap, front, paired_t, points_lost, suite_values, surer
from report import columns, keeps, markdown, number, proportion
from report import table as eval_table

FILES = ("RESULTS.md", "README.md", "README.zh.md", "docs/equations.md")


@dataclass
class Config:
    check: bool = False            # compare instead of writing; status 2 where they differ
    show: str = ""                 # print these tables of --rows instead; commas between
    rows: str = ROOT / "results/scoreboard.jsonl"    # of --show


def read_rows(*paths):
    """{recipe: {seed: row}} of the files; the same recipe and seed twice is refused."""
    found = {}
    for path in paths:
        for number, row in enumerate(rowfile.read(path, "seed"), 1):
            seeds = found.setdefault(row["recipe"], {})
            if row["seed"] in seeds:
                fail(f"{path}:{number}: {row['recipe']} seed {row['seed']} stands twice")
            seeds[row["seed"]] = row
    return found


def all_rows():
    """The rows of the files whose recipes are compared over seeds."""
    return read_rows(*(ROOT / f"results/{name}.jsonl"
                       for name in ("spine", "scoreboard", "whitebox", "blackbox")))


def made_by(recipe):
    """The command that makes a recipe's rows."""
    script = {"few": "results", "prose": "results", "white": "whitebox", "best": "whitebox",
              "few-white": "whitebox", "blackbox": "lessons"}.get(recipe.split("/")[0], "spine")
    return f"bash runs/{script}.sh"


def seeds_of(rows, recipe):
    """{seed: row} of a recipe; UserError where there is none, or where the runs were not alike."""
    if recipe not in rows:
        fail(f"no row of {recipe}", fix=made_by(recipe))
    alike = [{k: v for k, v in row.get("config", {}).items() if k not in ("name", "seed", "fresh")}
             for row in rows[recipe].values()]
    for other in alike[1:]:
        differing = [k for k in {*other, *alike[0]} if other.get(k) != alike[0].get(k)]
        if differing:
            fail(f"{recipe}: its rows were made with other flags", ", ".join(sorted(differing)),
                 fix="delete the old rows and make them again")
    return dict(sorted(rows[recipe].items()))


def values(rows, recipe, metric):
    """{seed: value} of a metric over the seeds of a recipe."""
    return {seed: row["metrics"][metric] for seed, row in seeds_of(rows, recipe).items()}


def mean_of(rows, recipe, key):
    """Mean over the seeds of a recipe of what stands beside the metrics."""
    return statistics.fmean(row[key] for row in seeds_of(rows, recipe).values())


def spread(found, form):
    """Mean and standard deviation of numbers, one a seed, as text."""
    v = list(found)
    return format(statistics.mean(v), form) + \
        (f" ± {format(statistics.stdev(v), form)}" if len(v) > 1 else "")


def over_seeds(rows, recipe, metric, form):
    """The same of a metric of a recipe."""
    return spread(values(rows, recipe, metric).values(), form)


def paired(a, b):
    """Mean of b - a over the seeds and the half width of its 95 % interval (paired t).

    UserError where one side has a seed more: a run that is left out is a choice.
    """
    if set(a) != set(b) or len(a) < 2:
        fail("a comparison needs the same seeds on both sides, two at least",
             f"{sorted(a)} and {sorted(b)}", fix="the script that made the others makes what is missing")
    return paired_t([b[s] - a[s] for s in sorted(a)])


def verdict(a, b, better):
    """Is b better than a? better: +1 higher, -1 lower.

    INCONCLUSIVE where the interval contains 0; DOES NOT BEAT is significantly worse.
    """
    mean, half = paired(a, b)
    if abs(mean) <= half:
        return "INCONCLUSIVE"
    return "BEATS" if mean * better > 0 else "DOES NOT BEAT"


def points(differences):
    """Mean and 95 % bootstrap interval of paired differences of accuracy, in points, as text."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in bootstrap(differences)))


def judged(base, found, metric="exact"):
    """[mean of found - base over seeds and its interval, in points of accuracy or in nats of
    cross-entropy, as text; the verdict]."""
    scale, form, better = (100, ".1f", 1) if metric == "exact" else (1, ".4f", -1)
    mean, half = (scale * x for x in paired(base, found))
    return [f"{mean:+{form}} ± {half:{form}}", verdict(base, found, better)]


def gap_closed(base, found, teacher):
    """The share of the gap to the teacher's cross-entropy that is closed, or a gap too small for
    one, as text."""
    gap = statistics.mean(base.values()) - teacher
    return f"{-paired(base, found)[0] / gap:.0%}" if gap >= 0.15 else f"gap {gap:.3f}"


def exact_match(rows, recipe):
    """One seed: with Wilson's interval. Several: mean ± standard deviation. A dash for text.

    All seeds answer the same questions, so pooling them would make the interval too narrow.
    """
    found = [r["metrics"] for r in rows[recipe].values()]
    if len(found) == 1 or "exact" not in found[0]:
        return proportion(found[0])
    return spread((m["exact"] for m in found), ".1%")


def modes_table(rows, group):
    """Every mode of a group against the student without a teacher, on both axes.

    The difference is of accuracy where answers can be right or wrong, else of cross-entropy. A mode
    is any recipe GROUP/MODE; one without a GROUP/MODE-wall is refused.
    """
    metric = "exact" if "exact" in first(rows, f"{group}/alone")["metrics"] else "ce"
    teacher = teacher_of(rows, group)
    lines = [mode_cells(rows, teacher, "teacher"),
             mode_cells(rows, f"{group}/alone", "without a teacher")]
    teacher_ce = first(rows, teacher)["metrics"]["ce"]
    base_ce, base = values(rows, f"{group}/alone", "ce"), values(rows, f"{group}/alone", metric)
    for mode in modes(rows, group):
        for recipe, axis in ((mode, "tokens"), (f"{mode}-wall", "wall-clock")):
            lines.append(mode_cells(rows, recipe, f"{mode.split('/')[-1]}, equal {axis}",
                                    gap_closed(base_ce, values(rows, recipe, "ce"), teacher_ce),
                                    *judged(base, values(rows, recipe, metric), metric)))
    return markdown("student | steps: | best step: | tokens: | test ce: | exact: | gap closed: | "
                    f"{'points' if metric == 'exact' else 'ce'} against alone: | verdict", lines)


def teacher_of(rows, group):
    """The recipe of a group's teacher: of the group itself, or of the one that it belongs to."""
    own = f"{group}/teacher"
    return own if own in rows or "/" not in group else teacher_of(rows, group.rsplit("/", 1)[0])


def first(rows, recipe):
    """The row of the first seed, or UserError."""
    return next(iter(seeds_of(rows, recipe).values()))


def modes(rows, group):
    """GROUP/MODE of every mode, as the rows have them; UserError for a mode with one axis alone."""
    of_group = [r for r in rows if r.rsplit("/", 1)[0] == group and
                not r.endswith(("/teacher", "/alone"))]
    for recipe in of_group:
        other = recipe.removesuffix("-wall") if recipe.endswith("-wall") else f"{recipe}-wall"
        if other not in rows:
            fail(f"{recipe}: a comparison needs both axes, equal tokens and equal wall-clock",
                 f"no row of {other}", fix=made_by(recipe))
    return [r for r in of_group if not r.endswith("-wall")]


def mode_cells(rows, recipe, name, *compared):
    """One line of modes_table; compared: gap closed, difference and verdict, or nothing."""
    row = first(rows, recipe)
    return [name, f"{row['config']['steps']:,}", f"{mean_of(rows, recipe, 'best_step'):,.0f}",
            f"{row['tokens']:,}", over_seeds(rows, recipe, "ce", ".4f"),
            exact_match(rows, recipe), *(compared or ["-"] * 3)]


# No question of any student was changed in these ways (blackbox/prompts.py has the others).
UNSEEN = ("paraphrase", "distractor", "large", "longer", "upper")


def robust_table(rows, group):
    """Accuracy on the suites, and what each model loses from clean to their mean, both against the
    teacher: paired bootstraps over problems, each value the mean over seeds."""
    lines = []
    theirs = first(rows, f"{group}/teacher")["metrics"]["suites_right"]
    for recipe in (f"{group}/teacher", f"{group}/alone", *modes(rows, group)):
        metrics = [r["metrics"] for r in seeds_of(rows, recipe).values()]
        for m in metrics:  # "-" where a problem is not in a suite: the same places, the same suites
            if [v.replace("1", "0") for v in m["suites_right"].values()] != \
                    [v.replace("1", "0") for v in theirs.values()]:
                fail(f"{recipe} was asked other suites than its teacher", fix="make its rows again")
        each = {value: sum(value(m["suites_right"]) for m in metrics) / len(metrics)
                for value in (suite_values, points_lost)}
        clean, mean, unseen = (
            spread(found, ".1%") for found in (
                [m["suites"]["clean"]["exact"] for m in metrics],
                [m["suite_mean"] for m in metrics],
                [statistics.fmean(m["suites"][s]["exact"] for s in UNSEEN) for m in metrics]))
        accuracy = {s: statistics.fmean(m["suites"][s]["exact"] for m in metrics)
                    for s in metrics[0]["suites_right"]}
        worst = min(accuracy, key=accuracy.get)
        other = ["-", "-"]
        if recipe != f"{group}/teacher":
            other = [points(own - value(theirs)) for value, own in each.items()]
        lines.append([recipe.split("/")[-1], clean, mean, other[0], unseen,
                      f"{worst}, {accuracy[worst]:.1%}",
                      f"{100 * each[points_lost].mean():.1f}", other[1]])
    return markdown("model | clean: | mean of the suites: | against the teacher (95 %): | of the "
                    "five unseen: | worst suite | points lost: | more than the teacher (95 %):",
                    lines)


def suites_table(rows, group):
    """Accuracy on each suite, mean over seeds, of the models that results.sh trains."""
    recipes = [f"{group}/teacher", f"{group}/alone", *modes(rows, group)]
    def cell(recipe, suite):
        return spread((r["metrics"]["suites"][suite]["exact"]
                       for r in seeds_of(rows, recipe).values()), ".1%")
    return markdown(f"suite | {columns(r.split('/')[-1] for r in recipes)}", [
        [suite.replace("_", " "), *(cell(recipe, suite) for recipe in recipes)]
        for suite in first(rows, recipes[0])["metrics"]["suites"] if suite != "hostile"])


def keeps_lines(rows, group):
    """The line of each student, the one without a teacher first: accuracy, size, speed kept."""
    speeds = [[row["metrics"] for row in seeds_of(rows, f"{group}/speed/{which}").values()]
              for which in (1, 2)]  # the teacher's, a student's; as often as they were measured
    one, many = (" and ".join(f"{b[key] / a[key]:.2f}" for a, b in zip(*speeds))
                 for key in ("decode1", "decode32"))
    whole = statistics.fmean(values(rows, f"{group}/teacher", "exact").values())
    size = first(rows, f"{group}/alone")["metrics"]["parameters"] / \
        first(rows, f"{group}/teacher")["metrics"]["parameters"]
    alone, lines = values(rows, f"{group}/alone", "exact"), []
    for recipe in (f"{group}/alone", *modes(rows, group)):
        kept = [x / whole for x in values(rows, recipe, "exact").values()]
        verb, compared = "reaches", ""
        if recipe != f"{group}/alone":
            tokens, wall = (verdict(alone, values(rows, r, "exact"), 1)
                            for r in (recipe, f"{recipe}-wall"))
            verb = "keeps"
            compared = f"; against alone: {tokens} at equal tokens, {wall} at equal wall-clock"
        lines.append(f"- {recipe.split('/')[-1]} {verb} {statistics.fmean(kept):.1%} "
                     f"({min(kept):.1%} to {max(kept):.1%}) of the teacher's accuracy{compared}")
    return "\n".join(lines) + (
        f"\n\nEach at {size:.1%} of the teacher's parameters and, measured {len(speeds[0])} times, "
        f"{one} times its speed at batch 1 and {many} times at batch 32.")


def reason_table(rows):
    """Chains of thought against bare answers of the same questions at equal tokens."""
    lines = []
    for recipe, name, nearest in (
            ("stories/reason/cot", "the teacher's verified chains of thought", min),
            ("stories/reason/answer", "bare answers of the same questions", max),
            ("stories/reason/gold", "the stories' own steps, as many, other questions", min)):
        row = first(rows, recipe)
        near = nearest(rows[recipe].values(), key=lambda r: r["metrics"]["exact"])
        lines.append([name, row["config"]["steps"], f"{row['tokens']:,}", f"{row['supervised']:,}",
                      exact_match(rows, recipe), proportion(near["metrics"]),
                      over_seeds(rows, recipe, "format", ".1%"),
                      over_seeds(rows, recipe, "answer_tokens", ".1f")])
    return markdown("trained on | steps: | tokens: | supervised: | exact: | nearest seed: | "
                    "format: | tokens an answer:", lines)


def single_table(rows, recipes):
    """One line a recipe, for runs of one seed."""
    lines = []
    for recipe in recipes:
        for seed, row in rows.get(recipe, {}).items():
            m = row["metrics"]
            lines.append([recipe, seed, f"{m['parameters']:,}", row["config"]["steps"],
                          f"{m['ce']:.4f}", f"{m['bits_per_byte']:.3f}", proportion(m),
                          number(m, "format", ".1%")])
    return markdown("run | seed: | parameters: | steps: | test ce: | bits/byte: | exact: | format:",
                    lines)


def trials_table(rows):
    """What was tried before, on validation data and a seed of its own."""
    lines = []
    for recipe in sorted(r for r in rows if r.startswith("trial/")):
        for seed, row in rows[recipe].items():
            lines.append([recipe.removeprefix("trial/"), seed, row["config"]["steps"],
                          f"{row['metrics']['ce']:.4f}", proportion(row["metrics"])])
    return markdown("trial | seed: | steps: | validation ce: | exact:", lines)


def more_rows(name):
    """The rows of results/NAME.jsonl."""
    return rowfile.read(ROOT / f"results/{name}.jsonl", "metrics")


MODEL = "model | parameters: | exact: | test ce:"


def model_cells(row):
    """One row of a MODEL table."""
    m = row["metrics"]
    return [row["recipe"], f"{m['parameters']:,}", proportion(m), f"{m['ce']:.4f}"]


def students_table(_):
    """Seven shapes on one teacher's traces; on the Pareto front where none is faster and better."""
    rows = more_rows("students")
    best = front([(r["metrics"]["decode1"], r["metrics"]["exact"]) for r in rows])
    lines = []
    for row in rows:
        m = row["metrics"]
        lines.append([*model_cells(row), f"{m['decode1']:,.0f}", f"{m['decode32']:,.0f}",
                      "yes" if (m["decode1"], m["exact"]) in best else ""])
    return markdown(f"{MODEL} | decode 1: | decode 32: | Pareto front", lines)


def teachers_table(_):
    """Three teachers, and the same student taught by each."""
    return markdown(MODEL, map(model_cells, more_rows("teachers")))


def sweep_table(_):
    """Validation accuracy (and cross-entropy) of each temperature and alpha."""
    cells = {(r["config"]["temperature"], r["config"]["alpha"]): r["metrics"]
             for r in more_rows("sweep")}
    alphas = sorted({alpha for _, alpha in cells})
    lines = []
    for tau in sorted({tau for tau, _ in cells}):
        found = [cells.get((tau, alpha)) for alpha in alphas]
        lines.append([f"{tau:g}",
                      *(f"{m['exact']:.1%} ({m['ce']:.3f})" if m else "-" for m in found)])
    return markdown(columns(["temperature", *(f"alpha {a:g}" for a in alphas)]), lines)


def step_times():
    """{recipe: (ms a step, seconds before the first)} of whitebox-times.jsonl, mean over turns."""
    found = {}
    for row in more_rows("whitebox-times"):
        found.setdefault(row["recipe"], []).append((row["metrics"]["ms"], row["metrics"]["making"]))
    return {recipe: tuple(map(statistics.fmean, zip(*turns))) for recipe, turns in found.items()}


def as_long(rows, recipe, needed):
    """The student without a teacher that a recipe is compared with at equal wall-clock, which are
    `needed` steps of that student: the smallest budget that is enough, or, as it overfits, the best
    one below that; validation chooses. Where none is enough the longest must do worse than a
    shorter one on validation data: then more steps would not help."""
    group = recipe.split("/")[0]
    budgets = alone_budgets(rows, group)
    longer = [alone for _, alone in budgets]
    shorter = sum(steps < needed for steps, _ in budgets)
    best = min(longer[:shorter + 1], key=lambda alone: mean_of(rows, alone, "val_ce"))
    if shorter == len(longer) and best == longer[-1]:
        fail(f"{recipe} takes as long as {needed:,.0f} steps alone", "no such row",
             f"{group}/alone-{needed:.0f} or more", "bash runs/whitebox.sh")
    return best


def alone_budgets(rows, group):
    """[(steps, recipe)] of the students without a teacher."""
    return sorted((first(rows, r)["config"]["steps"], r) for r in rows
                  if re.fullmatch(rf"{group}/alone(-\d+)?", r))


def white_rows(rows, group):
    """Every white-box recipe against the student without a teacher, at as many steps and at equal
    wall-clock: the cells of white_table."""
    times, teacher = step_times(), first(rows, "white/teacher")["metrics"]
    plain, _ = times["white/alone"]
    base = values(rows, f"{group}/alone", "ce")
    alone = [recipe for _, recipe in alone_budgets(rows, group)]
    lines = []
    for recipe in alone + [r for r in rows if r.startswith(f"{group}/") and
                           r not in (*alone, f"{group}/teacher")]:
        ce, name = values(rows, recipe, "ce"), recipe.split("/")[1]
        timed = "white/alone" if recipe in alone else f"white/{name}"
        if timed not in times:
            fail(f"no time of a step of {recipe}", fix="bash runs/whitebox.sh --times")
        ms, making = times[timed]
        seconds = first(rows, recipe)["config"]["steps"] * ms / 1000 + making
        compared = ["0%" if recipe == f"{group}/alone" else "", *[""] * 4]
        if recipe not in alone:
            longest = values(rows, as_long(rows, recipe, 1000 * seconds / plain), "ce")
            compared = [gap_closed(base, ce, teacher["ce"]),
                        *judged(base, ce, "ce"), *judged(longest, ce, "ce")]
        lines.append([name, f"{ms / plain:.2f}", f"{seconds / 60:.1f}",
                      spread(ce.values(), ".4f"), over_seeds(rows, recipe, "kl", ".3f"), *compared])
    return lines


def white_table(rows, group):
    """The rows of white_rows, the teacher above them."""
    ce = first(rows, "white/teacher")["metrics"]["ce"]
    return markdown(
        "recipe | a step costs: | minutes: | test ce: | KL to the teacher: | gap closed: | "
        "ce against alone, equal tokens: | verdict | equal wall-clock: | verdict",
        [["teacher", "", "", f"{ce:.4f}", 0, "100%", *[""] * 4], *white_rows(rows, group)])


def white_lines(rows, group):
    """The table in a line a recipe, for the README."""
    return "\n".join(
        f"- {name} closes {closed}: {tokens} at equal tokens, {wall} at equal wall-clock"
        for name, *_, closed, _, tokens, _, wall in white_rows(rows, group) if tokens)


def cache_table(_):
    """What each cache costs, and after how many steps it has paid against the teacher beside."""
    times = step_times()
    online, plain = times["white/forward"][0], times["white/alone"][0]
    lines = [["none, the teacher beside", "-", f"{online:.0f} ms", f"{plain / online:.2f}", "-"]]
    for kind in ("topk", "sampled", "hidden"):
        ms, making = times[f"white/cached-{kind}"]
        lines.append([kind, f"{making:.0f} s", f"{ms:.0f} ms", f"{plain / ms:.2f}",
                      f"{1000 * making / (online - ms):,.0f} steps"])
    return markdown("cache | made in: | a step: | steps/s of plain pretraining: | pays after:",
                    lines)


def topk_table(_):
    """Students of lists of k tokens, with a bucket for the rest, and renormalised."""
    found = {}
    for row in more_rows("topk"):
        kind, k = row["recipe"].split("/")
        m = row["metrics"]
        found.setdefault(int(k), {})[kind] = (m["ce"], m["kl"], 100 * surer(m["reliability"]))
    return markdown(
        "k: | ce, bucket: | ce, renormalised: | KL to the teacher, bucket: | renormalised: | "
        "surer than right, bucket: | renormalised:",
        [[k, *(f"{kinds[kind][i]:{form}}" for i, form in enumerate((".3f", ".3f", "+.1f"))
               for kind in ("bucket", "renormalised"))] for k, kinds in sorted(found.items())])


def stories_table(rows):
    """White-box recipes on the stories, beside the scoreboard's rows of the same seeds."""
    seeds = seeds_of(rows, "few-white/jsd")
    rows = {name: {s: found[s] for s in seeds if s in found} for name, found in rows.items()}
    base = values(rows, "few/alone", "exact")
    lines = []
    for recipe in ("few/alone", *(f"{r}{axis}" for r in ("few/logits", "few-white/jsd",
                   "few-white/hidden", "few-white/on-policy") for axis in ("", "-wall"))):
        exact = values(rows, recipe, "exact")
        axis = "equal wall-clock" if recipe.endswith("-wall") else "equal tokens"
        name = recipe.split("/")[1].removesuffix("-wall")
        lines.append([f"{name}{'' if name == 'alone' else f', {axis}'}",
                      f"{first(rows, recipe)['config']['steps']:,}",
                      over_seeds(rows, recipe, "ce", ".4f"), over_seeds(rows, recipe, "kl", ".3f"),
                      exact_match(rows, recipe), over_seeds(rows, recipe, "suite_mean", ".1%"),
                      f"{mean_of(rows, recipe, 'train_seconds') / 60:.1f}",
                      *(["-", "-"] if name == "alone" else judged(base, exact))])
    return markdown("student | steps: | test ce: | KL to the teacher: | exact: | mean of the "
                    "suites: | minutes: | points against alone: | verdict", lines)


# --- black box: results/blackbox.jsonl, of runs/lessons.sh ----------------------------------------

LESSONS = {
    "bare": "bare answers", "full": "whole replies, no tags", "cot": "chains of thought",
    "mixed": "half of the rows with a thought, asked for nothing",
    "mixed-cot": "the same student, asked for a thought",
    "multi": "both tasks, asked for a thought", "multi-bare": "the same, asked for an answer"}
SEEN = ("typos", "names", "order", "no_punctuation")  # suites whose operation runs/lessons.sh uses
COUSIN = "longer"                                      # its "deeper" adds an operation, up to 4


def marks(rows, recipe, *suites):
    """{seed: accuracy on some suites as one value a problem (n,)}."""
    return {seed: suite_values(row["metrics"]["suites_right"], suites)
            for seed, row in seeds_of(rows, recipe).items()}


def lessons_table(rows):
    """One teacher's text, learned in five ways at equal tokens from one initialisation."""
    lines = []
    whole = first(rows, "blackbox/teacher")["metrics"]["exact"]
    bare = values(rows, "blackbox/bare", "exact")
    for name, words in (("teacher", "the teacher itself"), *LESSONS.items()):
        row, recipe = first(rows, f"blackbox/{name}"), f"blackbox/{name}"
        exact = values(rows, recipe, "exact")
        kept = ["-"] * 3
        if name != "teacher":
            kept[0] = f"{statistics.fmean(exact.values()) / whole:.1%}"
            if name != "bare":
                kept[1:] = judged(bare, exact)
        lines.append([words, f"{row['tokens']:,}", f"{row['supervised']:,}",
                      exact_match(rows, recipe), kept[0],
                      over_seeds(rows, recipe, "suite_mean", ".1%"),
                      over_seeds(rows, recipe, "format", ".1%"),
                      over_seeds(rows, recipe, "answer_tokens", ".1f"), *kept[1:]])
    return markdown("learned | tokens: | of them count: | exact: | of the teacher's: | mean of the "
                    "suites: | format: | tokens an answer: | against bare answers: | verdict",
                    lines)


def lesson_lines(rows):
    """What each lesson keeps of the teacher's accuracy, for the README."""
    whole = first(rows, "blackbox/teacher")["metrics"]["exact"]
    return "\n".join(
        f"- {LESSONS[name]}: " + "{:.1%} ({:.1%} to {:.1%}) of the teacher's accuracy".format(
            statistics.fmean(kept), min(kept), max(kept))
        for name in ("bare", "full", "cot", "multi")
        for kept in [[x / whole for x in values(rows, f"blackbox/{name}", "exact").values()]])


def enriched_table(rows):
    """Disturbed questions among those that the teacher was asked, against none, as many rows."""
    there = first(rows, "blackbox/cot-2000")["metrics"]["suites_right"]
    held = [s for s in there if s not in (*SEEN, COUSIN, "clean", "other_language")]
    lines = []
    for name, suites in (("clean", ["clean"]), ("mean of those in training", SEEN),
                         *[(s, [s]) for s in SEEN], ("mean of those held out", held),
                         *[(s, [s]) for s in held], (COUSIN, [COUSIN])):
        plain, rich = (marks(rows, f"blackbox/{r}-2000", *suites) for r in ("plain", "cot"))
        means = [{seed: m.mean() for seed, m in found.items()} for found in (plain, rich)]
        each = sum(rich[seed] - plain[seed] for seed in rich) / len(rich)  # (n,)
        n = sum(c != "-" for s in suites for c in there[s])
        lines.append([name.replace("_", " "), f"{n:,}",
                      *(spread(found.values(), ".1%") for found in means),
                      *judged(*means), points(each)])
    return markdown("suites | answers: | plain questions: | disturbed ones, too: | points: | "
                    "verdict | of these eight models (95 %, over problems):", lines)


def spoiled_table(rows):
    """The same chains unjudged, out of order, or with a wrong end, against those that were kept."""
    suites = over_seeds(rows, "blackbox/cot", "suite_mean", ".1%")
    lines = [["kept: judged and filtered", exact_match(rows, "blackbox/cot"), suites, "-", "-"]]
    base = values(rows, "blackbox/cot", "exact")
    for name, words in (("unjudged", "unjudged: as many, of all answers, right and wrong"),
                        ("shuffled", "half of the chains of several steps shuffled"),
                        ("wrong", "half of the chains end with a wrong number")):
        suites = over_seeds(rows, "blackbox/unjudged", "suite_mean", ".1%") \
            if name == "unjudged" else "-"
        lines.append([words, exact_match(rows, f"blackbox/{name}"), suites,
                      *judged(base, values(rows, f"blackbox/{name}", "exact"))])
    lines.append(["wrong against shuffled", "", "", *judged(
        *(values(rows, f"blackbox/{name}", "exact") for name in ("shuffled", "wrong")))])
    return markdown("the rows | exact: | mean of the suites: | against the kept ones: | verdict",
                    lines)


def amount_table(rows):
    """How accuracy grows with the teacher's rows."""
    lines = []
    for percent in (1, 3, 10, 30, 100):
        recipe = f"blackbox/rows-{percent}" if percent < 100 else "blackbox/cot"
        count = first(rows, recipe)["config"]["documents"]  # 0: all
        lines.append([f"{count:,}" if count else "all", f"{percent}%", exact_match(rows, recipe),
                      f"{mean_of(rows, recipe, 'best_step'):,.0f}",
                      f"{mean_of(rows, recipe, 'val_ce'):.4f}"])
    return markdown("rows: | share: | exact: | best step: | validation ce:", lines)


def scoreboard(_):
    """The speedrun's own table, from the JSON that eval.py wrote at its end."""
    found = json.loads((ROOT / "results/speedrun.json").read_text(encoding="utf-8"))
    return eval_table(found["results"]) + "\n\n" + keeps(found["results"])


def machines_table(_):
    """Where the rows of each file were made, and how long their training took."""
    lines = []
    for name, script in (("scoreboard", "results.sh"), ("students", "students.sh"),
                         ("teachers", "students.sh"), ("sweep", "sweep.sh"), ("spine", "spine.sh"),
                         ("whitebox", "whitebox.sh"), ("blackbox", "lessons.sh")):
        found = {}
        for row in more_rows(name):
            v = row["versions"]
            found.setdefault((v["machine"], v["torch"]), []).append(row.get("train_seconds", 0))
        for (machine, torch), seconds in sorted(found.items()):
            lines.append([f"`{name}.jsonl`", f"`{script}`", machine, torch, len(seconds),
                          f"{sum(seconds) / 60:.0f}"])
    return markdown("rows | made by | machine | torch | runs: | minutes of training:", lines)


def printed(name):
    """What a benchmark printed, kept as results/NAME.md."""
    return lambda _: (ROOT / f"results/{name}.md").read_text(encoding="utf-8").strip()


def file_map(_):
    """Every file that a reader opens, its lines, and the first sentence of its own docstring."""
    lines = []
    for pattern in ("*.py", "dataset/*.py", "blackbox/*.py", "tokenizer/*.py", "runs/*.py", "runs/*.sh",
                    "*.sh", "tests/mutants.py"):
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if not text.strip():
                continue
            if path.suffix == ".py":
                said = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
            else:  # the comment at the top, up to the line that shows a command
                said = text.removeprefix("#!/usr/bin/env bash\n").replace("\n# ", "\n")
                said = re.split(r"\n {2}|\n\n|\nset -|:  ", said.removeprefix("# "))[0]
            said = re.split(r"(?<=[.?:]) (?=[A-Z])|:$", " ".join(said.split()))[0].rstrip(".:")
            lines.append([f"`{path.relative_to(ROOT)}`", len(text.splitlines()), said])
    return markdown("file | lines: | what it is", lines)


TABLES = {
    "scoreboard": scoreboard,
    "machines": machines_table,
    "speed": printed("bench"),
    "decode": printed("decode"),
    "fused": printed("fused"),
    "map": file_map,
    "modes": lambda rows: modes_table(rows, "few"),
    "keeps": lambda rows: keeps_lines(rows, "few"),
    "robust": lambda rows: robust_table(rows, "few"),
    "suites": lambda rows: suites_table(rows, "few"),
    "logits-all": lambda rows: modes_table(rows, "stories/all"),
    "prose": lambda rows: modes_table(rows, "prose"),
    "white": lambda rows: white_table(rows, "white"),
    "best": lambda rows: white_table(rows, "best"),
    "white-stories": stories_table,
    "best-lines": lambda rows: white_lines(rows, "best"),
    "cache-pays": cache_table,
    "topk": topk_table,
    "reason": reason_table,
    "real": lambda rows: single_table(rows, ["stories/teacher", "stories-zh/teacher",
                                             "stories-zh/cot", "stories-zh/answer", "gsm8k/cot",
                                             "gsm8k/answer"]),
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


def line_of(match):
    """`losses.py:40` `cross_entropy` with the line where it stands now."""
    file, name = match[1], match[2]
    for number, text in enumerate((ROOT / file).read_text(encoding="utf-8").splitlines(), 1):
        if re.match(rf"(def|class) {name}\b", text):
            return f"`{file}:{number}` `{name}`"
    fail(f"docs/equations.md: {file} has no {name}")


def rendered(text, rows):
    """The text with every `<!-- NAME -->...<!-- end -->` filled from the rows, and every
    `file:line` before a name put right."""
    text = re.sub(r"`([\w/]+\.py):\d+` `(\w+)`", line_of, text)

    def fill(match):
        name = match[1]
        if name not in TABLES:
            fail(f"no table called {name}", fix="one of " + ", ".join(TABLES))
        return f"<!-- {name} -->\n{TABLES[name](rows)}\n<!-- end -->"
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def main(cfg):
    """Write the tables, compare them, or print some."""
    if cfg.show:
        rows = read_rows(cfg.rows)
        for name in cfg.show.split(","):
            check(name in TABLES, "--show", name, "some of " + ",".join(TABLES))
            try:
                print(f"\n{TABLES[name](rows)}")
            except (KeyError, TypeError) as error:
                fail(f"{show(cfg.rows)} has no rows for the table {name}", f"no {error}",
                     fix="another --show, or make the rows")
        return
    rows = all_rows()
    for name in FILES:
        path = ROOT / name
        if not path.exists():
            continue
        old = path.read_text(encoding="utf-8")
        new = rendered(old, rows)
        if cfg.check and new != old:
            fail(f"{name} differs from results/", fix="python runs/render.py")
        if not cfg.check and new != old:
            with cli.atomic_write(path, "w") as file:
                file.write(new)
        print(f"{name}: {'as its rows' if new == old else 'rendered'}")


if __name__ == "__main__":
    cli.run(main, Config)
