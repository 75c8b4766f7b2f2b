"""Evaluate any number of checkpoints; write the figures as Markdown tables and as JSON.

    python eval.py out/teacher.pt out/student-logits.pt    # on out/data/stories/test.jsonl

Everything runs in float32, because bf16 would round the logits. docs/use.md explains each column.
exact is the share of right answers to questions with a known answer: a number, an option or a few
words. The reply must say the words, without denial ("not Rome") or another answer ("Rome or
Paris"). A cut-off answer is wrong. chrF compares all other replies with the reference, 0 to 100.
"""
import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
import torch

import checkpoints
import speed
from common import OUT, check, progress, show
from dataset.formats import bad_lines_text, parse_row, read_documents
from dataset.suites import IN_MEAN, read_suites
from dataset.verify import (agree, extract_answer, known_answer, parse_number, parse_response,
                            prompt_ids, verdict)
from dataset.windows import eval_batches, open_data
from decoding import generate, opening
from losses import cross_entropy, divergence
from metrics import (append_rows, calibration, chrf, json_lines, majority, markdown, mcnemar,
                     pass_at, repetition, table, wilson)


@dataclass
class Config:
    checkpoints: list = None       # checkpoints, without a flag; none: out/teacher.pt
    teacher: str = ""              # checkpoint to compare with in KL and agree; empty: the first
    data: str = OUT / "data/stories/test.jsonl"  # test set, in any format of dataset/formats.py
    target: Literal["auto", "cot", "answer", "full"] = "auto"  # answer format; auto: as trained
    questions: int = 1000          # of the test set and each suite (0: none); 1,000: ±3 points
    max_new_tokens: int = 160      # limit of an answer in tokens; a cut-off answer is wrong
    samples: int = 0               # answers per question for a majority vote (0: none; 4 to 32)
    temperature: float = 0.0       # sampling temperature of --samples (0.5 to 1; 0: none)
    seed: int = 0                  # random seed of --samples
    window: int = 0                # tokens in a window (at most a context); 0: as trained
    batch: int = 64                # questions answered, or windows scored, at once
    suites: str = ""               # folder of robustness suites, for example out/data/suites
    speed: bool = True             # measure speed, latency and memory
    out: str = OUT / "eval"        # writes OUT.md, OUT.json and OUT.answers.jsonl
    row: str = ""                  # append one row per checkpoint to this .jsonl file
    recipe: str = ""               # name of those rows; empty: the checkpoint's name
    skip_bad_lines: bool = False   # skip and count bad lines of the test set


@torch.inference_mode()
def score(model, tokenizer, teacher, data, cfg):
    """Means over the counted tokens -> dict: ce and KL (nats), agreement, bits per byte, ECE."""
    device, sums, seen = model.embed_tokens.weight.device, Counter(), []
    bytes_of = torch.tensor([*map(len, tokenizer.raw)], device=device)  # (V,)
    batches = eval_batches(data, cfg.batch, device=device)
    for x, y, document, weight in progress("windows scored:", batches, len(data["ids"]),
                                           lambda batch: len(batch[0])):
        keep = weight > 0                                     # (B, T)
        logits, y = model(x, document, keep), y[keep]         # (N, V), (N,)
        confidence, likeliest = logits.softmax(-1).max(-1)    # (N,)
        sums["ce"] += cross_entropy(logits, y).double().sum().item()
        if teacher is not None:
            teacher_logits = teacher(x, document, keep)       # (N, V)
            sums["kl"] += divergence("forward_kl", logits, teacher_logits).double().sum().item()
            sums["agreement"] += (logits.argmax(-1) == teacher_logits.argmax(-1)).sum().item()
        sums["bytes"] += bytes_of[y].sum().item()
        seen.append((confidence, likeliest == y))
    sure, right = (torch.cat(some).cpu().numpy() for some in zip(*seen))
    check(len(right), f"--data {cfg.data}: no token to score")
    bits, (ece, reliability) = sums["ce"] / math.log(2), calibration(sure, right)
    return dict(bits_per_byte=bits / max(sums.pop("bytes"), 1), counted_tokens=len(right), ece=ece,
                reliability=reliability, **{key: value / len(right) for key, value in sums.items()})


def answer(model, tokenizer, questions, target, cfg, **sampling):
    """Conversations -> one dict per answer, see `judge`. sampling: temperature, generator; default:
    greedy. --target cot or answer begins the response with its tag, for models trained on both."""
    opened = opening(tokenizer, cfg.target)  # empty for "auto" and "full"
    prompts = [prompt_ids(tokenizer, turns, target) + opened for turns in questions]
    written = [[] for _ in prompts]  # stays empty if the prompt fills the context
    fits = [i for i, prompt in enumerate(prompts) if len(prompt) < model.config.max_seq_len]
    fits.sort(key=lambda i: len(prompts[i]))  # similar lengths together: less padding
    batches = (fits[start:start + cfg.batch] for start in range(0, len(fits), cfg.batch))
    for some in progress("questions answered:", batches, len(fits), len):
        rows = generate(model, [prompts[i] for i in some], cfg.max_new_tokens, tokenizer.stop_ids,
                        **sampling)
        for i, ids in zip(some, rows):
            written[i] = opened + ids
    return [judge(tokenizer, ids, turns[-1], target) for ids, turns in zip(written, questions)]


def judge(tokenizer, ids, reference, target):
    """Compare generated ids with the reference turn -> dict: the answer, and its verdict.
    The answer is the text inside <answer>. Without that tag, extract_answer finds it if the right
    answer is a number. Otherwise it is the whole reply. Empty ids: the question was too long."""
    parsed, wanted = parse_response(tokenizer, ids, target), known_answer(reference)
    got, text = parsed["answer"], parsed["text"]
    if got is None:
        got = text.strip() if parse_number(wanted or "") is None else extract_answer(text)
    # The format has its own column. Here only the answer and its end count.
    found = verdict(wanted, got, parsed["ended"], True) if ids else "prompt too long"
    near = None if wanted else chrf(got, reference.answer or reference.content)
    return parsed | dict(response=tokenizer.decode(ids, show_control=True), answer=got,
                         verdict=found, chrf=near, answer_tokens=len(ids), repeats=repetition(ids))


def vote(model, tokenizer, questions, target, cfg):
    """Sample --samples answers per question and let them vote -> (figures, answers by question).
    best_of: [[k, share of known]], k = 1, 2, 4 .. samples. tokens: mean total of a question."""
    n, count = cfg.samples, sum(known_answer(turns[-1]) is not None for turns in questions)
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(cfg.seed)
    replies = answer(model, tokenizer, [q for q in questions for _ in range(n)], target, cfg,
                     temperature=cfg.temperature, generator=generator)
    samples = [replies[i:i + n] for i in range(0, len(replies), n)]
    right = [[r["answer"] for r in some if r["verdict"] == "ok"] for some in samples]
    won = sum(majority([r["answer"] for r in some if r["ended"]], agree) in ok
              for some, ok in zip(samples, right))
    best_of = [[k, sum(pass_at(k, n, len(ok)) for ok in right) / count]
               for k in sorted({2 ** i for i in range(n.bit_length())} | {n})]
    figures = dict(samples=n, temperature=cfg.temperature, best_of=best_of, majority=won / count,
                   majority_interval=wilson(won, count),
                   tokens=sum(r["answer_tokens"] for r in replies) / len(questions))
    return figures, [[r["answer"] for r in some] for some in samples]


def robustness(model, tokenizer, suites, target, cfg):
    """Accuracy on the first --questions problems of each suite, each compared with its unchanged
    problem -> a dict. suite_mean: mean exact of IN_MEAN. suites: {name: dict(n, exact,
    exact_interval, drop, p)}; drop: accuracy lost against clean; hostile: ended, refused.
    suites_right: {name: "10-1..."}: each clean problem is right, wrong, or not in this suite."""
    right, found = {}, {}
    kept = {row["source"] for row in suites["clean"][:cfg.questions]}
    for name, rows in progress("suites:", suites.items()):  # clean comes first
        rows = [row for row in rows if name == "hostile" or row["source"] in kept]
        questions = [parse_row(row, need_reply=False) for row in rows]  # hostile text may be empty
        replies = answer(model, tokenizer, questions, target, cfg)
        if name == "hostile":
            found[name] = dict(n=len(rows), ended=sum(r["ended"] for r in replies),
                               refused=sum(r["verdict"] == "prompt too long" for r in replies))
        elif rows:  # none for "upper" in Chinese, which has no upper case
            solved = {row["source"]: r["verdict"] == "ok" for row, r in zip(rows, replies)}
            right[name], n, k = solved, len(rows), sum(solved.values())
            unchanged = [right["clean"][source] for source in solved]
            found[name] = dict(n=n, exact=k / n, exact_interval=wilson(k, n),
                               drop=(sum(unchanged) - k) / n, p=mcnemar(unchanged, solved.values()))
    exact = {name: found[name]["exact"] for name in IN_MEAN if name in found}
    text = {name: "".join("-01"[1 + right[name].get(i, -1)] for i in right["clean"])
            for name in ("clean", *exact)}
    return dict(suites=found, suite_mean=sum(exact.values()) / len(exact), suites_right=text)


def evaluate(cfg, loaded, teacher, window, questions, suites, theirs):
    """-> (figures of one model except speed, answers, its open replies; theirs: the teacher's)"""
    model, tokenizer, state = loaded
    trained = state.get("run_config", {}).get("target")
    own = trained if trained in ("answer", "full") else "cot"  # multi and mixed: cot
    target = own if cfg.target == "auto" else cfg.target
    data = open_data(cfg.data, tokenizer, window, target, skip_bad_lines=cfg.skip_bad_lines)
    same = tokenizer.fingerprint == teacher[1].fingerprint  # otherwise KL has no meaning
    tokens = state.get("tokens", 0) + state.get("inputs", {}).get("init_tokens", 0)
    result = dict(parameters=model.num_parameters(), window=window, train_tokens=tokens,
                  **score(model, tokenizer, teacher[0] if same else None, data, cfg),
                  too_long=data["meta"]["too_long"])
    replies = answer(model, tokenizer, questions, target, cfg)
    n, verdicts = len(replies), Counter(sorted(r["verdict"] for r in replies))
    opened = [r for r in replies if r["chrf"] is not None]
    k, said = n - len(opened), [r["answer"] for r in opened]
    if questions:
        result |= dict(n=n, limit=verdicts["truncated"] / n, verdicts=verdicts,
                       format=sum(r["well_formed"] for r in replies) / n)
        for key in ("answer_tokens", "repeats"):
            result[key] = sum(r[key] for r in replies) / n
    if k:
        result |= dict(exact=verdicts["ok"] / k, exact_interval=wilson(verdicts["ok"], k))
    if opened:
        result |= dict(known=k, chrf=sum(r["chrf"] for r in opened) / len(opened))
    if opened and theirs:
        result["to_teacher"] = sum(map(chrf, said, theirs)) / len(opened)
    replies = [dict(response=r["response"], verdict=r["verdict"]) for r in replies]
    if k and cfg.samples:
        result["vote"], samples = vote(model, tokenizer, questions, target, cfg)
        replies = [reply | dict(samples=some) for reply, some in zip(replies, samples)]
    if suites and cfg.questions:
        result |= robustness(model, tokenizer, suites, target, cfg)
    return result, replies, said


def figure(key, form=".1%"):
    """A column's function: result -> a figure as text, with its 95 % interval if there is one. It
    gives a dash if the figure is missing or compares the teacher with itself (0 and 100 %)."""
    def cell(r):
        own = key in ("kl", "agreement", "to_teacher") and r["model"] == r["teacher"]
        if own or key not in r:
            return "-"
        interval = "-".join(f"{100 * end:.1f}" for end in r.get(f"{key}_interval", ()))
        some = f" of {r['known']:,}" if key == "exact" and "known" in r else ""
        return format(r[key], form) + (f" ({interval})" if interval else "") + some
    return cell


MODEL, EXACT = ("model", figure("model", "")), ("exact:", figure("exact"))
OPEN = ("chrF:", figure("chrf", ".1f")), ("to teacher:", figure("to_teacher", ".1f"))
SCOREBOARD = [
    MODEL, ("parameters:", figure("parameters", ",d")),
    ("train tokens:", figure("train_tokens", ",d")), ("ce:", figure("ce", ".4f")),
    ("bits/byte:", figure("bits_per_byte", ".3f")), ("KL:", figure("kl", ".4f")),
    ("agree:", figure("agreement")), EXACT, *OPEN, ("format:", figure("format")),
    ("tok/s batch 1:", figure("decode1", ",.0f")), ("batch 32:", figure("decode32", ",.0f"))]
DETAILS = [
    MODEL, ("ECE:", figure("ece", ".4f")), ("answer tokens:", figure("answer_tokens", ".1f")),
    ("repeats:", figure("repeats")), ("limit:", figure("limit")),
    ("too long for ce:", figure("too_long", ",d")),
    ("first token ms:", figure("first_ms", ",.1f")), ("answer ms:", figure("p50_ms", ",.1f")),
    ("MB peak:", figure("peak_mb", ",.1f")), ("mean of the suites:", figure("suite_mean"))]


def summary(results):
    """One line per model: share of right answers, size and speed relative to the first model."""
    first, lines = results[0], []
    for r in (r for r in results if "exact" in r):
        lines.append(f"{r['model']:<16} {r['exact']:.1%} right")
        if r is not first and "decode1" in first and "decode1" in r:
            lines[-1] += (f", {r['parameters'] / first['parameters']:.0%} of the parameters, "
                          f"{r['decode1'] / first['decode1']:.1f} times as fast")
    return "\n".join(["```", *lines, "```"]) if lines else ""


def tables(results):
    """All tables that have figures, and the summary, as one Markdown text."""
    first, board = results[0], [c for c in SCOREBOARD if "chrf" in results[0] or c not in OPEN]
    found = [table(results, board), table(results, DETAILS)]
    if "vote" in first:
        lines = [r | r["vote"] | dict(r["vote"]["best_of"]) for r in results]
        best_of = ((f"best of {k}:", figure(k)) for k, _ in first["vote"]["best_of"])
        found.append(table(lines, [MODEL, EXACT, ("majority:", figure("majority")), *best_of,
                                   ("tokens of all:", figure("tokens", ".1f"))]))

    def on(s):  # s: a suite's figures. Hostile texts have no right answer
        if "ended" in s:
            return f"{s['ended']} of {s['n']} ended, {s['refused']} too long"
        return f"{figure('exact')(s)}, {100 * (0 - s['drop']):+.1f}, p {s['p']:.2g}"
    if "suites" in first:
        heads = ["suite (95 %), points against clean", *(f"{r['model']}:" for r in results)]
        found.append(markdown(" | ".join(heads), [
            [name, *(on(r["suites"][name]) for r in results)] for name in first["suites"]]))
    return "\n\n".join(filter(None, [*found, summary(results)]))


def write_report(cfg, results, rows):
    """Write OUT.md (the tables, and answers to the first five questions), OUT.json (all figures)
    and OUT.answers.jsonl (one row per question, with the answers of all models)."""
    v = common.versions()
    text = (f"# Scoreboard\n\n{show(cfg.data)}; ce in windows of {results[0]['window']}; KL and "
            f"agreement against {results[0]['teacher']}; float32, {v['threads']} threads, "
            f"{v['machine']}, torch {v['torch']}.\n\n{tables(results)}\n")
    for n, row in enumerate(rows[:5], 1):
        text += f"\n### Question {n}\n\n{row['question']}\n\nReference: **{row['right']}**\n\n"
        for model, found in row["answers"].items():
            line = found["response"].replace("\n", " ")
            text += f"- {model} ({found['verdict']}): `{line}`\n"
    if rows:
        common.write_file(f"{cfg.out}.answers.jsonl", json_lines(rows))
    figures = dict(data=show(cfg.data), versions=v, results=results)
    common.write_file(f"{cfg.out}.json", json.dumps(figures, indent=1))
    common.write_file(f"{cfg.out}.md", text)


def row_of(cfg, result, state):
    """One checkpoint's row for --row, a dict: the figures, and everything they depend on."""
    run = state.get("run_config", {})
    flags = ("questions", "max_new_tokens", "target", "temperature", "seed")
    evaluation = {flag: getattr(cfg, flag) for flag in flags}
    if cfg.suites:
        evaluation["suites_sha256"] = common.sha256_file(Path(cfg.suites) / "about.json")
    trained = ("inputs", "train_seconds", "tokens", "supervised", "best_step")
    return dict(
        recipe=cfg.recipe or result["model"], seed=run.get("seed"), config=run,
        **{key: state.get(key) for key in trained}, val_ce=state.get("best_ce"),
        trained_with=state.get("versions"), test_data=show(cfg.data),
        test_sha256=common.sha256_file(cfg.data), versions=common.versions(), evaluation=evaluation,
        metrics={k: v for k, v in result.items() if k not in ("model", "teacher")})


def main(cfg):
    """Evaluate every checkpoint, measure speed, write report and rows."""
    common.between(cfg, 0, 2**32 - 1, "questions", "samples", "temperature", "seed", "window")
    common.between(cfg, 1, 2**32 - 1, "max_new_tokens", "batch")
    check((cfg.samples > 0) == (cfg.temperature > 0), "use --samples and --temperature together")
    for path, begins in ((f"{cfg.out}.md", "# Scoreboard"), (f"{cfg.out}.json", '{\n "data"'),
                         (f"{cfg.out}.answers.jsonl", '{"question"'), (cfg.row, '{"recipe"')):
        text = Path(path).read_text("utf-8", "replace") if path and Path(path).exists() else ""
        check(text[:len(begins)] in (begins, ""),
              f"{show(path)} was not written by eval.py; choose another --out or --row")
    check(cfg.row or not cfg.recipe, "--recipe needs --row")
    cfg.checkpoints, bad = cfg.checkpoints or [str(OUT / "teacher.pt")], {}
    rows = read_documents(cfg.data, cfg.skip_bad_lines, bad, lambda row: parse_row(row, report=bad))
    conversations = [document for _, document in rows if not isinstance(document, str)]
    if bad:
        print(f"note: {bad_lines_text(bad)}")
    questions, suites = conversations[:cfg.questions], read_suites(cfg.suites) if cfg.suites else {}
    opened = [turns for turns in questions if known_answer(turns[-1]) is None]
    check(not cfg.samples or len(opened) < len(questions), "--samples needs known answers")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    paths = [*cfg.checkpoints, cfg.teacher or cfg.checkpoints[0]]
    *models, teacher = loaded = [checkpoints.load_model(path, device) for path in paths]
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(set(paths)):  # equal names: a/m.pt and b/m.pt
        names = [show(path) for path in paths]
    window = min(min(cfg.window or state.get("run_config", {}).get("window", 2**16),  # for all
                     model.config.max_seq_len) for model, _, state in loaded)
    rows = [dict(question=" ".join(t.content for t in before), right=last.answer or last.content,
                 answers={}) for *before, last in questions]
    results, theirs = [], []  # the teacher's open replies; without --teacher the first model's
    if cfg.teacher and opened:
        *_, theirs = evaluate(cfg, teacher, teacher, window, opened, {}, [])
    for name, one in zip(names, models):
        result, answers, said = evaluate(cfg, one, teacher, window, questions, suites, theirs)
        theirs = theirs or said
        results.append(dict(model=name, teacher=names[-1]) | result)
        for row, reply in zip(rows, answers):
            row["answers"][name] = reply
        print(tables(results[-1:]).splitlines()[2])
    write_report(cfg, results, rows)
    if cfg.speed:  # the report is already saved, in case this fails
        measured = speed.measure(cfg.checkpoints, conversations[:20], device)
        results = [result | more for result, more in zip(results, measured)]
        write_report(cfg, results, rows)
    print(f"\n{tables(results)}\n\nwritten: {show(cfg.out)}.*")
    if cfg.row:
        append_rows(cfg.row, [row_of(cfg, result, state)
                              for result, (_, _, state) in zip(results, models)])


if __name__ == "__main__":
    common.run(main, Config)
