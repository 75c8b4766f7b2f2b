"""Markdown tables, and those of eval.py: from results to text, and nothing else."""

SPEEDS = {"prefill1": "prefill 1", "prefill32": "prefill 32", "decode1": "decode 1",
          "decode32": "decode 32", "first_ms": "first token ms", "p50_ms": "answer p50 ms",
          "p95_ms": "answer p95 ms", "weights_mb": "MB of weights", "peak_mb": "MB peak"}


def markdown(head, rows):
    """A table; head "model | steps: | verdict": a colon ends the name of a column of numbers."""
    names = head.split(" | ")
    lines = [[name.removesuffix(":") for name in names], *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    text.insert(1, "".join("|---:" if name.endswith(":") else "|---" for name in names) + "|")
    return "\n".join(text)


def columns(names):
    """Columns of numbers, as a part of a head."""
    return " | ".join(f"{name}:" for name in names)


def table(results):
    """The scoreboard; a cell without a figure is a dash."""
    return markdown(
        "model | parameters: | train tokens: | ce: | bits/byte: | KL: | agree: | exact: | "
        "format: | tok/s batch 1: | batch 32:",
        [[r["model"], f"{r['parameters']:,}", number(r, "train_tokens", ",d"),
          number(r, "ce", ".4f"), number(r, "bits_per_byte", ".3f"), *against_teacher(r),
          proportion(r), number(r, "format", ".1%"), number(r, "decode1", ",.0f"),
          number(r, "decode32", ",.0f")] for r in results])


def against_teacher(r):
    """KL and agreement; dashes for the teacher itself, whose 0 and 100 % say nothing."""
    if r["model"] == r["teacher"]:
        return "-", "-"
    return number(r, "kl", ".4f"), number(r, "agreement", ".1%")


def keeps(results):
    """A line a model: what it keeps of the first one's accuracy, at what size and speed."""
    first, lines = results[0], []
    for r in results[1:]:
        if not first.get("exact") or "exact" not in r or "decode1" not in r:
            continue
        lines.append(f"- {r['model']} keeps {r['exact'] / first['exact']:.1%} of "
                     f"{first['model']}'s accuracy at "
                     f"{r['parameters'] / first['parameters']:.0%} of its parameters "
                     f"and {r['decode1'] / first['decode1']:.1f} times its speed at batch 1, "
                     f"{r['decode32'] / first['decode32']:.1f} at batch 32")
    return "\n".join(lines)


def details(results):
    """Calibration, copying, and what the answers look like."""
    return markdown(
        "model | ECE: | copy: | answer tokens: | repeats: | limit: | too long for ce:",
        [[r["model"], number(r, "ece", ".4f"), number(r, "copy", ".1%"),
          number(r, "answer_tokens", ".1f"), number(r, "repeats", ".1%"),
          number(r, "limit", ".1%"), number(r, "too_long", ",d")] for r in results])


def reliability_table(results):
    """A line a bin of confidence, a column a model: how often it was right, of how many tokens."""
    bins = 15  # of metrics.Calibration
    found = [{min(int(c * bins), bins - 1): (n, a) for n, c, a in r["reliability"]}
             for r in results]

    def cells(i):
        return [f"{i / bins:.2f}-{(i + 1) / bins:.2f}"] + [
            "{1:.1%} of {0:,}".format(*f[i]) if i in f else "-" for f in found]
    return markdown(f"confidence: right | {columns(r['model'] for r in results)}",
                    map(cells, sorted(set().union(*found))))


def robustness_table(results):
    """A line a suite, a column a model: accuracy with its interval, its difference to the same
    problems unchanged, McNemar's p of that."""
    def cell(f):
        return f"{proportion(f)}, {100 * (0 - f['drop']):+.1f}, p {f['p']:.2g}"
    rows = [[name, *(cell(r["suites"][name]) for r in results)]
            for name in results[0]["suites"] if name != "hostile"]
    rows += [["**mean**", *(f"{r['suite_mean']:.1%}" for r in results)],
             ["**worst**", *(f"{r['suite_worst']:.1%} {r['worst_suite']}" for r in results)]]
    hostile = [r["suites"].get("hostile") for r in results]
    ended = [f"{h['ended']} of {h['n']}, {h['refused']}" for h in hostile if h]
    if ended:
        rows.append(["hostile texts: ended, refused as too long", *ended])
    return markdown("suite (95 %), points against clean | "
                    f"{columns(r['model'] for r in results)}", rows)


def vote_table(results):
    """Greedy answers beside what several samples make of them, and what each costs."""
    first = results[0]["vote"]
    sizes = [k for k, _ in first["best_of"]]
    return markdown(
        f"model | greedy: | majority of {first['samples']}: | "
        f"{columns(f'best of {k}' for k in sizes)} | answer tokens: | of {first['samples']}:",
        [[r["model"], proportion(r), proportion(dict(
            exact=r["vote"]["majority"], exact_interval=r["vote"]["majority_interval"])),
          *(f"{share:.1%}" for _, share in r["vote"]["best_of"]),
          number(r, "answer_tokens", ".1f"), number(r["vote"], "tokens", ".1f")] for r in results])


def speed_table(results):
    """What speed.py measures, a line a model."""
    return markdown(f"model | {columns(SPEEDS.values())}", [
        [r["model"], *(number(r, key, ",.1f" if key.endswith(("ms", "mb")) else ",.0f")
                       for key in SPEEDS)] for r in results])


def proportion(r):
    """Exact match with its interval, or a dash."""
    if "exact" not in r:
        return "-"
    low, high = r["exact_interval"]
    return f"{r['exact']:.1%} ({100 * low:.1f}-{100 * high:.1f})"


def number(result, key, form):
    """A figure as text, or a dash."""
    return format(result[key], form) if key in result else "-"


def right_answer(turns):
    """The reference of a question."""
    return turns[-1].answer if turns[-1].answer is not None else turns[-1].content


def shown_answers(results, questions, replies, count):
    """The first questions with every model's full answer, control pieces by name."""
    lines = []
    for i, turns in enumerate(questions[:count]):
        asked = " ".join(t.content for t in turns[:-1])
        lines += [f"### Question {i + 1}", "", asked, "",
                  f"Right answer: **{right_answer(turns)}**", ""]
        for r, answers in zip(results, replies):
            text = " ".join(answers[i]["response"].split("\n"))
            lines.append(f"- {r['model']} ({answers[i]['verdict']}): `{text}`")
        lines.append("")
    return "\n".join(lines)


def tables(results):
    """Every table that has figures, one under the other."""
    found = [table(results), keeps(results), details(results)]
    if "vote" in results[0]:
        found.append(vote_table(results))
    if "suites" in results[0]:
        found.append(robustness_table(results))
    if "p50_ms" in results[0] or "decode1" in results[0]:
        found.append(speed_table(results))
    return "\n\n".join(filter(None, found))
