"""Evaluation: any number of checkpoints side by side, as one Markdown table and JSON.

    python eval.py out/teacher.pt out/student-logits.pt    the table, on out/data/stories/test.jsonl
    python eval.py out/student-logits.pt --chat             talk to a model
    python eval.py out/teacher.pt --prompt "Mia has 3 pears. She buys 4 more. How many has she now?"

One CPU command takes about a minute for three small models. Always float32: bf16 rounds the logits.

What the columns mean
    train tokens   that the model has been trained on, padding excluded
    ce             cross-entropy, nats a counted token (of a conversation: the assistant's turns)
    bits/byte      the same per byte of text: comparable between tokenizers
    KL, agree      KL(teacher || model) in nats, and how often both like the same token best;
                   the teacher is --teacher, else the first checkpoint
    ECE            calibration error: how far confidence and accuracy of the likeliest token differ
    copy           share of tokens right when a random sequence is read for the second time
    exact          share of questions with the right answer, greedy, with Wilson's 95 % interval;
                   an answer that ran into the limit is wrong
    format         share of answers that are <think>...</think><answer>...</answer><end>, exactly;
                   of a model trained on bare answers, without the thought, on full ones, without a
                   tag (and ce is of those); on several forms: of the chains, how often it thinks
    tokens, repeats, limit   of an answer: mean length; share of its 4-grams said before; share of
                   answers that ran into the limit
    suites         accuracy on each robustness suite (--suites; dataset/suites.py), its difference
                   to the same problems unchanged, and McNemar's p of that difference
    tok/s          tokens written a second, batch 1 and 32; more in the table of speed.py
    majority, best of k      of --samples at a --temperature: see answers.py

A model that was trained on two forms of answer (train_distill_reason.py --target multi or mixed) is
told which one to give by --target cot or answer: its response is begun with <think> or <answer>.
"""
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

import checkpoints
import cli
import oldcommon as common
import rowfile
import speed
from answers import answer, tally, vote
from cli import OUT, check, fail, label, show
from dataset.batches import eval_batches, open_data
from dataset.formats import bad_lines_text, parse_row, read_documents
from dataset.suites import IN_MEAN, read_suites
from losses import cross_entropy, forward_kl
from metrics import Calibration, mcnemar, wilson
from report import reliability_table, right_answer, shown_answers, table, tables
from talk import talk


@dataclass
class Config:
    checkpoints: list = None       # the models, as words without a flag; none: out/teacher.pt
    teacher: str = ""              # checkpoint that KL and agreement refer to; empty: the first
    data: str = OUT / "data/stories/test.jsonl"  # test set, in any format of dataset/formats.py
    window: int = 0                # tokens seen at once in ce and KL; 0: as all were trained
    target: Literal["auto", "cot", "answer", "full"] = "auto"  # form of an answer; auto: as trained
    questions: int = 1000          # questions to answer (0: none; 1,000: an interval of 2 points)
    max_new_tokens: int = 160      # limit of an answer; one that reaches it is wrong
    think_budget: int = 0          # end a thought after so many tokens (16 to 512); 0: never
    samples: int = 0               # answers a question to vote on (0: none; 4 to 32)
    batch: int = 64                # questions answered together, windows scored together
    suites: str = ""               # folder of robustness suites, such as out/data/suites
    shown: int = 5                 # questions whose full answers go into the report
    speed: bool = True             # measure speed, latency and memory
    out: str = OUT / "eval"        # writes OUT.md and OUT.json
    row: str = ""                  # append a row for each checkpoint to this .jsonl
    recipe: str = ""               # what to call those rows; empty: the name of the run
    skip_bad_lines: bool = False   # count bad lines of the test set and go on
    chat: bool = False             # talk to the first checkpoint instead
    prompt: str = ""               # answer this once instead
    complete: str = ""             # go on with this plain text instead (models trained on text)
    top: int = 0                   # with --prompt, --complete: the likeliest N tokens a place
    temperature: float = 0.0       # of that, and of --samples; 0 is greedy (0.5 to 1)
    seed: int = 0                  # of what is drawn at a temperature


# --- quality --------------------------------------------------------------------------------------

@torch.inference_mode()
def score(model, tokenizer, teacher, data, cfg, device):
    """Cross-entropy, bits a byte, KL to the teacher and top-1 agreement over all counted tokens."""
    sums = dict(ce=0.0, kl=0.0, agree=0.0)
    tokens, text_bytes, calibration = 0, 0, Calibration()
    bytes_of = torch.as_tensor(tokenizer.token_bytes, device=device)  # (V,)
    for x, y, document, weight in eval_batches(data, cfg.batch, device=device):
        keep = weight > 0                                     # (B, T)
        logits, y = model(x, document, keep), y[keep]         # (N, V), (N,)
        sums["ce"] += cross_entropy(logits, y).double().sum().item()
        if teacher is not None:
            teacher_logits = teacher(x, document, keep)       # (N, V)
            sums["kl"] += forward_kl(logits, teacher_logits).double().sum().item()
            sums["agree"] += (logits.argmax(-1) == teacher_logits.argmax(-1)).sum().item()
        confidence, likeliest = logits.softmax(-1).max(-1)    # (N,)
        calibration.add(confidence.cpu().numpy(), (likeliest == y).cpu().numpy())
        tokens += len(y)
        text_bytes += bytes_of[y].sum().item()
    check(tokens > 0, "--data", cfg.data, "a test set with at least one counted token")
    bits = sums["ce"] / math.log(2)
    result = dict(ce=sums["ce"] / tokens, bits_per_byte=bits / max(text_bytes, 1),
                  counted_tokens=tokens, ece=calibration.ece(), reliability=calibration.table())
    if teacher is not None:
        result |= dict(kl=sums["kl"] / tokens, agreement=sums["agree"] / tokens)
    return result


@torch.inference_mode()
def copy_probe(model, data, seed=0, sequences=64, length=24):
    """Read random pieces twice: share of the second reading that the model foresees (greedy).

    What a copying head can do (Olsson et al. 2022), nothing of which the text has taught: pieces
    are drawn one by one from those that the test set uses.
    """
    device = model.embed_tokens.weight.device
    length = min(length, model.config.max_seq_len // 2)
    used = np.unique(data["ids"][:200][data["mask"][:200] > 0])
    ids = np.random.default_rng(seed).choice(used, (sequences, length)).astype(np.int64)
    twice = torch.from_numpy(np.concatenate([ids, ids], axis=1)).to(device)  # (B, 2 * length)
    foreseen = model(twice)[:, length:-1].argmax(-1)                         # (B, length - 1)
    return (foreseen == twice[:, length + 1:]).float().mean().item()


# --- robustness -----------------------------------------------------------------------------------

def robustness(model, tokenizer, suites, target, cfg):
    """Accuracy on each suite, paired with the same problems unchanged -> a dict.

    suites: {name: dict(n, exact, exact_interval, drop, p)}, drop of accuracy against clean;
    mean and worst over IN_MEAN; hostile: how many answers ended, and what was too long to ask.
    """
    right, found = {}, {}
    for name, rows in ((n, r) for n, r in suites.items() if r):  # Chinese has no upper case
        turns = [parse_row(row) for row in rows]
        replies = answer(model, tokenizer, turns, target, cfg)
        if name == "hostile":
            found[name] = dict(n=len(rows), ended=sum(r["ended"] for r in replies),
                               refused=sum(r["verdict"] == "prompt too long" for r in replies))
            continue
        right[name] = [r["verdict"] == "ok" for r in replies]
        n, k = len(rows), sum(right[name])
        found[name] = dict(n=n, exact=k / n, exact_interval=wilson(k, n))
    clean = {row["id"]: ok for row, ok in zip(suites["clean"], right["clean"])}
    for name, oks in right.items():
        unchanged = [clean[row["source"]] for row in suites[name]]
        found[name] |= dict(drop=(sum(unchanged) - sum(oks)) / len(oks), p=mcnemar(unchanged, oks))
    counted = {name: found[name]["exact"] for name in IN_MEAN if name in found}
    worst = min(counted, key=counted.get)
    return dict(suites=found, suite_mean=sum(counted.values()) / len(counted), worst_suite=worst,
                suite_worst=counted[worst],
                suites_right={name: marks(suites["clean"], suites[name], right[name])
                              for name in ("clean", *counted)})


def marks(clean, rows, right):
    """"10-1...": a character a clean problem, right, wrong, or not in this suite (points_lost)."""
    said = {row["source"]: "01"[ok] for row, ok in zip(rows, right)}
    return "".join(said.get(row["id"], "-") for row in clean)


# --- report ---------------------------------------------------------------------------------------

def common_window(cfg, loaded):
    """The window that all models are scored at: the smallest that one of them was trained on.

    Positions beyond its window a model has never learned: longer windows would measure how RoPE
    extrapolates, and windows of different lengths would give the models different contexts.
    """
    trained = [min(state.get("run_config", {}).get("window", model.config.max_seq_len),
                   model.config.max_seq_len) for model, _, state in loaded]
    room = min(model.config.max_seq_len for model, _, _ in loaded)
    check(cfg.window <= room, "--window", cfg.window, f"at most the smallest context, {room}")
    return cfg.window or min(trained)


def check_own_files(cfg):
    """UserError before the work where an output would replace, or be added to, somebody else's."""
    for path, begins in ((f"{cfg.out}.md", "# Scoreboard"), (f"{cfg.out}.json", '{\n "data"'),
                         (f"{cfg.out}.answers.jsonl", '{"question"'), (cfg.row, '{"recipe"')):
        if path and Path(path).exists():
            with open(path, encoding="utf-8", errors="replace") as file:
                if not file.read(len(begins)) in (begins, ""):
                    fail(f"{show(path)} is there and not of this script", fix="choose another name")


def write_report(cfg, results, answers_text):
    """OUT.md and OUT.json, the tables."""
    v = common.versions()
    text = (f"# Scoreboard\n\n{label(cfg.data)}; ce in windows of {results[0]['window']}; "
            f"KL and agreement against {results[0]['teacher']}; "
            f"float32, {v['threads']} threads, {v['machine']}, torch {v['torch']}.\n\n"
            f"{tables(results)}\n\n{reliability_table(results)}\n\n{answers_text}")
    cli.write_file(f"{cfg.out}.md", text)
    cli.write_file(f"{cfg.out}.json", json.dumps(dict(data=label(cfg.data), versions=v,
                                                      results=results), indent=1))


def write_answers(cfg, results, questions, replies):
    """OUT.answers.jsonl: a line a question, with the answer and the verdict of every model."""
    with cli.atomic_write(f"{cfg.out}.answers.jsonl", "w") as file:
        for i, turns in enumerate(questions):
            row = dict(question=" ".join(t.content for t in turns[:-1]), right=right_answer(turns))
            row["answers"] = {r["model"]: {k: a[i][k] for k in ("response", "verdict", "samples")
                                           if k in a[i]} for r, a in zip(results, replies)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def evaluation_flags(cfg):
    """What the metrics of a row depend on besides the model and the test set."""
    flags = {k: getattr(cfg, k) for k in ("questions", "max_new_tokens", "target", "window")}
    flags |= dict(think_budget=cfg.think_budget) if cfg.think_budget else {}
    flags |= dict(temperature=cfg.temperature, seed=cfg.seed) if cfg.samples else {}
    about = Path(cfg.suites) / "about.json"
    return flags | (dict(suites_sha256=cli.sha256_file(about)) if cfg.suites else {})


def append_row(cfg, result, state):
    """One finished run as a row of --row."""
    run = state.get("run_config", {})
    row = dict(recipe=cfg.recipe or result["model"], seed=run.get("seed"), config=run,
               inputs=state.get("inputs", {}), test_data=label(cfg.data),
               test_sha256=cli.sha256_file(cfg.data), versions=common.versions(),
               trained_with=state.get("versions"), evaluation=evaluation_flags(cfg),
               train_seconds=round(state.get("train_seconds", 0), 3), tokens=state.get("tokens", 0),
               supervised=state.get("supervised", 0), val_ce=state.get("best_ce"),
               best_step=state.get("best_step"),
               metrics={k: v for k, v in result.items()
                        if k not in ("model", "teacher")})
    rowfile.append(cfg.row, row)


def check_flags(cfg):
    """UserError for a value that cannot be, and for an output that would replace another's file."""
    many = 2**32 - 1
    cli.check_ranges(cfg, window=(0, many), questions=(0, many), max_new_tokens=(1, many),
                     think_budget=(0, many), samples=(0, 1000), batch=(1, many), shown=(0, many),
                     top=(0, many), seed=(0, many))
    check(cfg.temperature == 0 or 0.01 <= cfg.temperature <= 100, "--temperature", cfg.temperature,
          "0 (greedy), or 0.01 to 100")
    check(not cfg.samples or cfg.temperature, "--temperature", cfg.temperature,
          "above 0 where --samples are drawn (0.7, say)")
    for flag in {"prompt", "complete"} & cfg.given:
        check(getattr(cfg, flag), f"--{flag}", getattr(cfg, flag), "a text")
    if not (cfg.chat or cfg.prompt or cfg.complete):
        if cfg.row:
            rowfile.check_file(cfg.row)
        cli.need_file(cfg.data, "bash speedrun.sh, or --data with a file of yours")
        for written in (f"{cfg.out}.md", f"{cfg.out}.json", f"{cfg.out}.answers.jsonl", cfg.row):
            cli.check_apart("--row" if written == cfg.row else "--out", written, cfg.data)
        check_own_files(cfg)


def conversations(cfg):
    """The test set's conversations; what was left out is said."""
    report = {}
    found = [d for _, d in read_documents(cfg.data, cfg.skip_bad_lines, report)
             if not isinstance(d, str)]
    if report:
        print(f"left out: {bad_lines_text(report)}")
    return found


def evaluate(cfg, loaded, teacher, window, questions, suites, device):
    """Everything but speed about one model -> (result, its answers)."""
    model, tokenizer, state = loaded
    tokens = state.get("tokens", 0) + state.get("inputs", {}).get("init_tokens", 0)
    result = dict(parameters=model.num_parameters(), window=window, train_tokens=tokens)
    target = cfg.target  # bare answers are compared with bare answers
    if target == "auto":
        target = state.get("run_config", {}).get("target", "cot")
        target = "cot" if target in ("multi", "mixed") else target
    data = open_data(cfg.data, tokenizer, window, target, skip_bad_lines=cfg.skip_bad_lines)
    same = tokenizer.fingerprint == teacher[1].fingerprint
    result |= score(model, tokenizer, teacher[0] if same else None, data, cfg, device)
    result["copy"] = copy_probe(model, data)
    result["too_long"] = data["meta"]["too_long"]  # left out of ce; all are answered
    replies = answer(model, tokenizer, questions, target, cfg)
    if questions:
        result |= tally(replies)
    if questions and cfg.samples:
        result["vote"], drawn = vote(model, tokenizer, questions, target, cfg)
        for reply, answers in zip(replies, drawn):
            reply["samples"] = answers
    if suites:
        result |= robustness(model, tokenizer, suites, target, cfg)
    return result, replies


def main(cfg):
    """Evaluate every checkpoint, measure speed, write report and rows; or talk."""
    cfg.checkpoints = cfg.checkpoints or [str(OUT / "teacher.pt")]
    check_flags(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if cfg.chat or cfg.prompt or cfg.complete:
        return talk(cfg, device)
    asked, suites = conversations(cfg), read_suites(cfg.suites) if cfg.suites else {}
    questions = asked[:cfg.questions]
    loaded = [checkpoints.load_model(path, device) for path in cfg.checkpoints]
    teacher_path = cfg.teacher or cfg.checkpoints[0]
    teacher = checkpoints.load_model(teacher_path, device)
    window = common_window(cfg, [*loaded, teacher])
    stems = [Path(path).stem for path in cfg.checkpoints]
    names = {p: s if stems.count(s) == 1 else label(p) for p, s in zip(cfg.checkpoints, stems)}
    results, replies = [], []
    for path, one in zip(cfg.checkpoints, loaded):
        result, answers = evaluate(cfg, one, teacher, window, questions, suites, device)
        results.append(dict(model=names[path], teacher=names.get(teacher_path,
                                                                 Path(teacher_path).stem)) | result)
        replies.append(answers)
        print(table(results[-1:]).splitlines()[-1])
    if cfg.speed:
        for result, measured in zip(results, speed.measure(cfg.checkpoints, asked[:20])):
            result |= measured
    print("\n" + tables(results) + "\n")
    write_report(cfg, results, shown_answers(results, questions, replies, cfg.shown))
    if questions:
        write_answers(cfg, results, questions, replies)
    print(f"written: {show(cfg.out)}.md, .json" + (", .answers.jsonl" if questions else ""))
    if cfg.row:
        for result, (_, _, state) in zip(results, loaded):
            append_row(cfg, result, state)


if __name__ == "__main__":
    cli.run(main, Config)
