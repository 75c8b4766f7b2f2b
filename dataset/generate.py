"""Ask the teacher: sample chains of thought on the distill split, keep those whose answer holds.

    python dataset/generate.py --teacher out/teacher.pt --input out/data/stories/distill.jsonl

Black box: what is kept is text. Each question is asked --samples times at a temperature above 0; an
answer is kept if it ended, has the form <think>...</think><answer>...</answer>, gives the known
answer and was not said before for the same question (rejection sampling: Yuan et al. 2023, 3.3).
Writes OUT (the kept rows, ready for train_distill_reason.py) and OUT.all.jsonl (every sample with
its verdict, appended batch by batch: the same command after a stop asks only what is missing).
"""
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoints
import cli
from cli import OUT, check, fail, show
from dataset.formats import (Turn, bad_lines_text, count_bad, parse_response, prompt_ids,
                             read_documents, turn_row)
from dataset.verify import extract_answer, verdict
from decoding import generate


@dataclass
class Config:
    teacher: str = OUT / "teacher.pt"  # checkpoint that is asked
    input: str = OUT / "data/stories/distill.jsonl"  # questions with known answers, in any format
    out: str = OUT / "data/traces.jsonl"  # the kept rows
    questions: int = 0             # ask only the first N; 0: all
    samples: int = 1               # answers a question (1 to 16)
    temperature: float = 0.7       # of sampling (0.5 to 1; above 1 the traces get worse)
    top_p: float = 1.0             # keep the smallest set of tokens with this mass (0.9 to 1)
    max_new_tokens: int = 128      # an answer that reaches this is rejected as truncated
    batch: int = 128               # answers written together
    seed: int = 0                  # a batch's stream depends on this and on its number alone
    skip_bad_lines: bool = False   # count bad lines of the input and go on
    fresh: bool = False            # ask everything again


def read_questions(cfg, tokenizer, context):
    """[(line, turns, reference answer)]; rows of text and rows without an answer are refused.

    What does not fit into the teacher's context is left out, and counted on the screen.
    """
    found, report, too_long = [], {}, 0
    for line, document in read_documents(cfg.input, cfg.skip_bad_lines, report):
        if isinstance(document, str):
            fail(f"{cfg.input}:{line}: plain text", expected="a conversation with a known answer",
                 fix="see dataset/formats.py for the formats")
        last = document[-1]
        reference = last.answer if last.answer is not None else extract_answer(last.content)
        if reference is None and cfg.skip_bad_lines:
            count_bad(report, "no known answer", 1, [f"{show(cfg.input)}:{line}"])
            continue
        if reference is None:
            fail(f"{show(cfg.input)}:{line}: no known answer", last.content[:60],
                 "one to verify against")
        if len(prompt_ids(tokenizer, document)) >= context:
            too_long += 1
            continue
        found.append((line, document, reference))
        if len(found) == cfg.questions:
            break
    if report:
        print(f"left out: {bad_lines_text(report)}")
    long = f"{too_long:,} questions longer than the teacher's context of {context} tokens"
    if not found:
        fail(f"{show(cfg.input)} holds no question to ask", long if too_long else "no good row")
    if too_long:
        print(f"left out: {long}")
    return found


def done_batches(path, header, fresh):
    """How many whole batches OUT.all.jsonl holds; a torn last batch is cut off, not repeated."""
    if fresh or not path.exists():
        with cli.atomic_write(path, "w") as file:
            file.write(json.dumps(header) + "\n")
        return 0
    lines = path.read_bytes().split(b"\n")
    try:
        found = dict(json.loads(lines[0]))
    except (ValueError, TypeError):
        fail(f"{show(path)} was not made by this script", fix="choose another --out")
    differing = [f"{k} was {found.get(k)!r}, is {v!r}" for k, v in header.items()
                 if found.get(k) != v]
    if differing:
        fail(f"{show(path)} was made by another command: " + ", ".join(differing),
             fix="choose another --out, or replace it with --fresh")
    keep, done = len(lines[0]) + 1, 0
    size = keep
    for line in lines[1:-1]:
        size += len(line) + 1
        if line.startswith(b'{"batch_end"'):
            keep, done = size, done + 1
    with open(path, "r+b") as file:
        file.truncate(keep)
    return done


def judge(tokenizer, ids, reference):
    """One sample -> its row: what was said and the verdict."""
    parsed = parse_response(tokenizer, ids)
    return dict(reasoning_content=parsed["think"], content=parsed["answer"], tokens=len(ids),
                verdict=verdict(reference, parsed["answer"], parsed["ended"],
                                parsed["well_formed"]))


def ask(cfg, model, tokenizer, questions, path, device):
    """Append every missing batch of samples to OUT.all.jsonl."""
    jobs = sorted(((q, s) for q in range(len(questions)) for s in range(cfg.samples)),
                  key=lambda job: len(prompt_ids(tokenizer, questions[job[0]][1])))
    # sorted: prompts of about equal length together
    batches = [jobs[i:i + cfg.batch] for i in range(0, len(jobs), cfg.batch)]
    header = {**checkpoints.comparable(cfg), "teacher": checkpoints.weights_fingerprint(model),
              "input": cli.sha256_file(cfg.input)}
    lock = checkpoints.lock_file(path)  # held until this function ends  # noqa: F841
    done = done_batches(path, header, cfg.fresh)
    counts, began = Counter(), time.time()
    for number in range(done, len(batches)):
        prompts = [prompt_ids(tokenizer, questions[q][1]) for q, _ in batches[number]]
        generator = torch.Generator(device).manual_seed(cfg.seed * 1_000_003 + number)
        rows = generate(model, prompts, cfg.max_new_tokens, {tokenizer.end}, generator=generator,
                        temperature=cfg.temperature, top_p=cfg.top_p)
        lines = []
        for (q, s), ids in zip(batches[number], rows):
            row = dict(question=q, sample=s, **judge(tokenizer, ids, questions[q][2]))
            counts[row["verdict"]] += 1
            lines.append(json.dumps(row, ensure_ascii=False))
        lines.append(json.dumps(dict(batch_end=number)))
        with cli.append(path) as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if number % 10 == 9 or number == len(batches) - 1:
            rate = sum(counts.values()) / (time.time() - began)
            left = (len(batches) - number - 1) * cfg.batch / rate
            print(f"batch {number + 1:>4}/{len(batches)} | {rate:.0f} answers/s | "
                  f"ok {counts['ok'] / sum(counts.values()):.1%} | eta {left:.0f} s")


def keep(cfg, questions, path):
    """OUT.all.jsonl -> OUT: right, whole, distinct; counts by reason."""
    counts, said, rows = Counter(), set(), []
    for line in path.read_text(encoding="utf-8").split("\n")[1:-1]:
        row = json.loads(line)
        if "batch_end" in row:
            continue
        reason, key = row["verdict"], (row["question"], row["reasoning_content"])
        if reason == "ok" and key in said:
            reason = "said before"
        counts[reason] += 1
        if reason == "ok":
            said.add(key)
            rows.append(row)
    if not rows:
        fail("no answer of the teacher holds", dict(counts), "some right ones",
             "a higher --max-new-tokens" if counts["truncated"] > sum(counts.values()) / 2
             else "a better teacher")
    rows.sort(key=lambda r: (r["question"], r["sample"]))
    with cli.atomic_write(cfg.out, "w") as file:
        for row in rows:
            line, turns, _ = questions[row["question"]]
            said = Turn("assistant", "", row["reasoning_content"], row["content"])
            file.write(json.dumps(dict(conversations=[turn_row(t) for t in [*turns[:-1], said]],
                                       source_line=line, sample=row["sample"]),
                                  ensure_ascii=False) + "\n")
    return counts, len({r["question"] for r in rows})


def next_command(cfg):
    """What to type after it; rows elsewhere than the default need to be named."""
    default = {field.name: str(field.default) for field in dataclasses.fields(cfg)}
    words = "python train_distill_reason.py"
    if os.path.abspath(cfg.out) != default["out"]:
        val = " --val ..." if os.path.abspath(cfg.input) != default["input"] else \
            f" --val {show(OUT / 'data/stories/val.jsonl')}"
        words += f" --name student-{Path(cfg.out).stem} --data {show(cfg.out)}{val}"
    return words


def main(cfg):
    """Ask what is missing, keep what holds."""
    for flag in ("samples", "batch", "max_new_tokens"):
        value = getattr(cfg, flag)
        check(value > 0, "--" + flag.replace("_", "-"), value, "a positive whole number")
    check(cfg.questions >= 0, "--questions", cfg.questions, "a whole number, 0 for all")
    check(0 <= cfg.seed < 2**32, "--seed", cfg.seed, "a whole number from 0, below 2^32")
    check(cfg.temperature == 0 or 0.01 <= cfg.temperature <= 100, "--temperature", cfg.temperature,
          "0 (greedy), or 0.01 to 100")
    check(0 <= cfg.top_p <= 1, "--top-p", cfg.top_p, "a number from 0 to 1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cli.need_file(cfg.input, "python dataset/stories.py")
    model, tokenizer, _ = checkpoints.load_model(cfg.teacher, device, "python train_pretrain.py")
    questions = read_questions(cfg, tokenizer, model.config.max_seq_len)
    path = Path(cfg.out + ".all.jsonl")
    cli.check_apart("--out", cfg.out, cfg.input, cfg.teacher)
    if Path(cfg.out).exists() and not path.exists() and not cfg.fresh:
        fail(f"{show(cfg.out)} is there already",
             fix="choose another --out, or --fresh replaces it")
    ask(cfg, model, tokenizer, questions, path, device)
    counts, answered = keep(cfg, questions, path)
    print(" | ".join(f"{reason} {n:,}" for reason, n in counts.most_common()))
    print(f"{show(cfg.out)}: {counts['ok']:,} traces of {answered:,} of {len(questions):,} "
          f"questions\nnext: {next_command(cfg)}")


if __name__ == "__main__":
    cli.run(main, Config)
