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
from cli import ROOT, fail
from metrics import front, paired_t, wilson
from report import keeps
from report import table as eval_table

FILES = ("RESULTS.md", "README.md", "README.zh.md")


@dataclass
class Config:
    check: bool = False            # compare instead of writing; status 2 where they differ
    rows: str = ROOT / "results/spine.jsonl"  # the rows


def read_rows(path):
    """{recipe: {seed: row}}; the same recipe and seed twice is refused."""
    found = {}
    text = cli.need_file(path, "bash runs/spine.sh").read_text(encoding="utf-8")
    for number, line in enumerate(text.splitlines(), 1):
        row = json.loads(line)
        seeds = found.setdefault(row["recipe"], {})
        if row["seed"] in seeds:
            fail(f"{path}:{number}: {row['recipe']} seed {row['seed']} stands twice")
        seeds[row["seed"]] = row
    return found


def values(rows, recipe, metric):
    """{seed: value} of a metric over the seeds of a recipe."""
    if recipe not in rows:
        fail(f"no row of {recipe}", fix="bash runs/spine.sh")
    return {seed: row["metrics"][metric] for seed, row in rows[recipe].items()}


def spread(found, form):
    """Mean and standard deviation over seeds as text."""
    v = list(found.values())
    return format(statistics.mean(v), form) + \
        (f" ± {format(statistics.stdev(v), form)}" if len(v) > 1 else "")


def paired(a, b):
    """Mean of b - a over common seeds and the half width of its 95 % interval (paired t)."""
    d = [b[s] - a[s] for s in sorted(set(a) & set(b))]
    if len(d) < 2:
        fail("a comparison needs at least two common seeds", len(d))
    return paired_t(d)


def verdict(a, b, better):
    """Is b better than a? better: +1 higher, -1 lower.

    INCONCLUSIVE where the interval contains 0; DOES NOT BEAT is significantly worse.
    """
    mean, half = paired(a, b)
    if abs(mean) <= half:
        return "INCONCLUSIVE"
    return "BEATS" if mean * better > 0 else "DOES NOT BEAT"


def exact_match(rows, recipe):
    """One seed: with Wilson's interval. Several: mean ± standard deviation.

    All seeds answer the same questions, so pooling them would make the interval too narrow.
    """
    found = [r["metrics"] for _, r in sorted(rows[recipe].items())]
    if len(found) == 1:
        low, high = wilson(round(found[0]["exact"] * found[0]["n"]), found[0]["n"])
        return f"{found[0]['exact']:.1%} ({100 * low:.1f}-{100 * high:.1f})"
    return spread({i: m["exact"] for i, m in enumerate(found)}, ".1%")


def logits_table(rows, group, teacher):
    """The student alone against logits distillation on both axes."""
    alone, tokens, wall = (f"{group}/{kind}" for kind in ("alone", "logits", "logits-wall"))
    for recipe in (alone, tokens, wall):
        if recipe not in rows:
            fail(f"{group}: a comparison needs both axes, equal tokens and equal wall-clock",
                 f"no row of {recipe}", fix="bash runs/spine.sh")
    has_exact = "exact" in next(iter(rows[alone].values()))["metrics"]
    teacher_ce = statistics.mean(values(rows, teacher, "ce").values())
    lines = ["| student | steps | best step | tokens | test ce | exact | gap closed | ce - alone | "
             "verdict |", "|---|---:|---:|---:|---:|---:|---:|---:|---|",
             line(rows, teacher, "teacher", has_exact, "-", "-", "-")]
    for recipe, name in ((alone, "without a teacher"), (tokens, "logits, equal tokens"),
                         (wall, "logits, equal wall-clock")):
        ce, base = values(rows, recipe, "ce"), values(rows, alone, "ce")
        closed = difference = judged = "-"
        if recipe != alone:
            mean, half = paired(base, ce)
            gap = statistics.mean(base.values()) - teacher_ce
            closed = f"{-mean / gap:.0%}" if gap >= 0.15 else f"gap only {gap:.3f}"
            difference, judged = f"{mean:+.4f} ± {half:.4f}", verdict(base, ce, -1)
        lines.append(line(rows, recipe, name, has_exact, closed, difference, judged))
    return "\n".join(lines)


def line(rows, recipe, name, has_exact, closed, difference, judged):
    """One line of logits_table."""
    row = next(iter(rows[recipe].values()))
    exact = exact_match(rows, recipe) if has_exact else "-"
    best = statistics.mean(r["best_step"] for r in rows[recipe].values())
    return (f"| {name} | {row['config']['steps']} | {best:.0f} | {row['tokens']:,} | "
            f"{spread(values(rows, recipe, 'ce'), '.4f')} | {exact} | {closed} | {difference} | "
            f"{judged} |")


def reason_table(rows):
    """Chains of thought against bare answers of the same questions at equal tokens."""
    lines = ["| trained on | steps | tokens | supervised | exact | nearest seed | format | "
             "tokens an answer |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for recipe, name, nearest in (
            ("stories/reason/cot", "the teacher's verified chains of thought", min),
            ("stories/reason/answer", "bare answers of the same questions", max),
            ("stories/reason/gold", "the stories' own steps, as many, other questions", min)):
        row = next(iter(rows[recipe].values()))
        near = nearest(rows[recipe].values(), key=lambda r: r["metrics"]["exact"])
        lines.append(f"| {name} | {row['config']['steps']} | {row['tokens']:,} | "
                     f"{row['supervised']:,} | {exact_match(rows, recipe)} | "
                     f"{exact_match({0: {0: near}}, 0)} | "
                     f"{spread(values(rows, recipe, 'format'), '.1%')} | "
                     f"{spread(values(rows, recipe, 'answer_tokens'), '.1f')} |")
    return "\n".join(lines)


def single_table(rows, recipes):
    """One line a recipe, for runs of one seed."""
    lines = ["| run | seed | parameters | steps | test ce | bits/byte | exact | format |",
             "|---|---:|---:|---:|---:|---:|---:|---:|"]
    for recipe in recipes:
        for seed, row in rows.get(recipe, {}).items():
            m = row["metrics"]
            exact = exact_match({recipe: {seed: row}}, recipe) if "exact" in m else "-"
            form = f"{m['format']:.1%}" if "format" in m else "-"
            lines.append(f"| {recipe} | {seed} | {m['parameters']:,} | {row['config']['steps']} | "
                         f"{m['ce']:.4f} | {m['bits_per_byte']:.3f} | {exact} | {form} |")
    return "\n".join(lines)


def trials_table(rows):
    """What was tried before, on validation data and a seed of its own."""
    lines = ["| trial | seed | steps | validation ce | exact |", "|---|---:|---:|---:|---:|"]
    for recipe in sorted(r for r in rows if r.startswith("trial/")):
        for seed, row in rows[recipe].items():
            exact = exact_match({0: {0: row}}, 0) if "exact" in row["metrics"] else "-"
            lines.append(f"| {recipe.removeprefix('trial/')} | {seed} | {row['config']['steps']} | "
                         f"{row['metrics']['ce']:.4f} | {exact} |")
    return "\n".join(lines)


def more_rows(name):
    """The rows of results/NAME.jsonl."""
    path = cli.need_file(ROOT / f"results/{name}.jsonl", "bash runs/students.sh or runs/sweep.sh")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def students_table(_):
    """Seven shapes on one teacher's traces; on the Pareto front where none is faster and better."""
    rows = more_rows("students")
    points = [(r["metrics"]["decode1"], r["metrics"]["exact"]) for r in rows]
    lines = ["| model | parameters | exact | test ce | decode 1 | decode 32 | Pareto front |",
             "|---|---:|---:|---:|---:|---:|---|"]
    for row, point in zip(rows, points):
        m = row["metrics"]
        lines.append(f"| {row['recipe']} | {m['parameters']:,} | {exact_match({0: {0: row}}, 0)} | "
                     f"{m['ce']:.4f} | {m['decode1']:,.0f} | {m['decode32']:,.0f} | "
                     f"{'yes' if point in front(points) else ''} |")
    return "\n".join(lines)


def teachers_table(_):
    """Three teachers, and the same student taught by each."""
    lines = ["| model | parameters | exact | test ce |", "|---|---:|---:|---:|"]
    for row in more_rows("teachers"):
        m = row["metrics"]
        lines.append(f"| {row['recipe']} | {m['parameters']:,} | {exact_match({0: {0: row}}, 0)} | "
                     f"{m['ce']:.4f} |")
    return "\n".join(lines)


def sweep_table(_):
    """Validation accuracy (and cross-entropy) of each temperature and alpha."""
    cells = {(r["config"]["temperature"], r["config"]["alpha"]): r["metrics"]
             for r in more_rows("sweep")}
    alphas = sorted({alpha for _, alpha in cells})
    lines = ["| temperature | " + " | ".join(f"alpha {a:g}" for a in alphas) + " |",
             "|---:" * (len(alphas) + 1) + "|"]
    for tau in sorted({tau for tau, _ in cells}):
        found = [cells.get((tau, alpha)) for alpha in alphas]
        lines.append(f"| {tau:g} | " + " | ".join(
            f"{m['exact']:.1%} ({m['ce']:.3f})" if m else "-" for m in found) + " |")
    return "\n".join(lines)


def scoreboard(_):
    """The speedrun's own table, from the JSON that eval.py wrote at its end."""
    found = json.loads((ROOT / "results/speedrun.json").read_text(encoding="utf-8"))
    return eval_table(found["results"]) + "\n\n" + keeps(found["results"])


def speed_table(_):
    """bench.py's own two tables."""
    return (ROOT / "results/bench.md").read_text(encoding="utf-8").strip()


def file_map(_):
    """Every file that a reader opens, its lines, and the first sentence of its own docstring."""
    lines = ["| file | lines | what it is |", "|---|---:|---|"]
    for pattern in ("*.py", "dataset/*.py", "tokenizer/*.py", "runs/*.py", "runs/*.sh",
                    "*.sh", "tests/mutants.py"):
        for path in sorted(ROOT.glob(pattern)):
            text = path.read_text(encoding="utf-8")
            if not text.strip():
                continue
            if path.suffix == ".py":
                first = ast.get_docstring(ast.parse(text)).split("\n\n")[0]
            else:  # the comment under #!, up to the line that shows a command
                first = text.split("\n#  ")[0].split("\n", 1)[1].split("\n\n")[0]
                first = first.split("\nset -")[0].replace("# ", "").split(":  ")[0]
            first = re.split(r"(?<=[.?:]) (?=[A-Z])|:$", " ".join(first.split()))[0].rstrip(".:")
            lines.append(f"| `{path.relative_to(ROOT)}` | {len(text.splitlines())} | {first} |")
    return "\n".join(lines)


TABLES = {
    "scoreboard": scoreboard,
    "speed": speed_table,
    "map": file_map,
    "logits-all": lambda rows: logits_table(rows, "stories/all", "stories/teacher"),
    "logits-few": lambda rows: logits_table(rows, "stories/3%", "stories/teacher"),
    "prose": lambda rows: logits_table(rows, "prose", "prose/teacher"),
    "reason": reason_table,
    "real": lambda rows: single_table(rows, ["stories/teacher", "stories-zh/teacher",
                                             "stories-zh/cot", "stories-zh/answer", "gsm8k/cot",
                                             "gsm8k/answer"]),
    "trials": trials_table,
    "students": students_table,
    "teachers": teachers_table,
    "sweep": sweep_table,
}


def rendered(text, rows):
    """The text with every `<!-- NAME -->...<!-- end -->` filled from the rows."""
    def fill(match):
        name = match[1]
        if name not in TABLES:
            fail(f"no table called {name}", fix="one of " + ", ".join(TABLES))
        return f"<!-- {name} -->\n{TABLES[name](rows)}\n<!-- end -->"
    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", fill, text, flags=re.S)


def main(cfg):
    rows = read_rows(cfg.rows)
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
