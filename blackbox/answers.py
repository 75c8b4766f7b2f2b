"""Answers of a teacher: judged, kept as lines of OUT.all.jsonl, chosen for OUT.

A line of OUT.all.jsonl (after a header) is one answer and all that is known about it:

    question, sample        which prompt, which of its --samples answers
    conversations           the prompt's turns as the row had them, without --system
    operation, source, label, reference         what is known about the prompt
    model, parameters, seed, finish_reason, usage, seconds, time    how it came
    verdict                 of verify.verdict, or "unverified": nobody knows the answer
    reasoning_content, content                  what was said, uncut

The form: of a checkpoint <think>...</think><answer>...</answer> is demanded, its own format. Of an
endpoint no tags are: its answer is all of the content, or what verify.answer_in finds there.
"""
import json
import os
from collections import Counter
from datetime import datetime, timezone

import cli
from cli import fail, show
from blackbox.endpoint import hide
from dataset.formats import (TAGS, BadRow, Turn, json_lines, parse_response, parse_response_text,
                             parse_row, turn_row)
from dataset.verify import answer_in, verdict

PARAMETERS = ("temperature", "top_p", "max_new_tokens", "system")
KEPT = ("ok", "unverified")
KEPT_KEYS = ("conversations", "operation", "source", "label", "sample", "verdict", "model",
             "finish_reason", "usage")
NEEDED = {*KEPT_KEYS, "question", "reference", "reasoning_content", "content"}


def judge(reference, answer, ended, well_formed):
    """verify.verdict; where nobody knows the answer, "unverified" is all there is to say."""
    found = verdict(reference or "", answer, ended, well_formed)
    return "unverified" if reference is None and found in ("ok", "wrong answer") else found


def judge_ids(tokenizer, prompt, ids):
    """What a checkpoint wrote -> the row's finish_reason, verdict, reasoning_content, content."""
    said = parse_response(tokenizer, ids)
    found = judge(prompt.reference, said["answer"], said["ended"], said["well_formed"])
    thought, content = said["think"], said["answer"]
    if not said["well_formed"]:  # all of it, with the marks by name
        thought, content = None, tokenizer.decode(ids, show_control=True).removesuffix("<end>")
    return dict(finish_reason="stop" if said["ended"] else "length", verdict=found,
                reasoning_content=thought, content=content)


def judge_text(prompt, answer):
    """The verdict on an endpoint's answer: without <answer>, by what answer_in finds in it.

    A filter that cuts an answer leaves a part of it, as the limit does. A free text that spells a
    tag cannot be made thought and answer by kept_turn; where nobody knows the answer, none is.
    """
    ended = answer["finish_reason"] not in ("length", "content_filter")
    try:
        turn = parse_response_text(answer["content"], answer["reasoning_content"])
    except BadRow:  # a tag that stands alone
        return judge(prompt.reference, None, ended, False)
    known, final = prompt.reference, turn.content if turn.answer is None else turn.answer
    if known is None:
        return judge(known, final, ended, True)
    if "<answer>" not in answer["content"]:
        final = answer_in(final, known)
    return judge(known, final, ended, not any(tag in turn.content for tag in TAGS))


def row(cfg, prompts, job, **known):
    """One line of OUT.all.jsonl as a dict."""
    prompt, now = prompts[job[0]], datetime.now(timezone.utc)
    return dict(question=job[0], sample=job[1], conversations=[turn_row(t) for t in prompt.turns],
                operation=prompt.operation, source=prompt.source, label=prompt.label,
                reference=prompt.reference, parameters={k: getattr(cfg, k) for k in PARAMETERS},
                time=now.isoformat(timespec="seconds"), **known)


def open_answers(path, header, jobs, fresh, more):
    """Those of the jobs, (question, sample), that OUT.all.jsonl holds; a new file where there is
    none or it is to be replaced; UserError for that of another command; a torn last line is cut.

    more: may answers to other jobs stand in it? Then they stay, and do not count.
    """
    if fresh or not path.exists():
        cli.write_file(path, json_lines([header]))
        return set()
    done = set()
    with open(path, "rb") as file:
        try:
            found = dict(json.loads(next(file, b"")))
        except (ValueError, TypeError):
            fail(f"{show(path)} was not made by this script", fix="choose another --out")
        cli.refuse_others(path, found, header)
        for number, line in enumerate(file, 2):
            if line.endswith(b"\n"):
                try:
                    row = json.loads(line)
                    job = row["question"], row["sample"]
                    ok = (more or job in jobs) and NEEDED <= set(row)
                except (ValueError, TypeError, LookupError):
                    ok = False
                if not ok:
                    fail(f"{show(path)}:{number}: no answer of this script", fix="delete the line")
                done.add(job)
    cli.cut_torn_line(path)
    return done & jobs


def hidden(value, key):
    """What JSON can say, with the key hidden in its texts; names of fields are ours."""
    if isinstance(value, dict):
        return {name: hidden(inner, key) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [hidden(inner, key) for inner in value]
    return hide(value, key, 8) if isinstance(value, str) else value


def append_rows(file, rows, key=""):
    """Append answers as lines, on the disk before it returns; the key is in none of them."""
    file.write(json_lines(hidden(row, key) for row in rows))
    file.flush()
    os.fsync(file.fileno())


def kept_turn(row):
    """An answer as the student learns it. A free text that holds the known answer becomes thought
    and answer; BadRow where a teacher has spelled tags that are no form."""
    turn = parse_response_text(row["content"], row["reasoning_content"])
    if turn.answer is None and row["verdict"] == "ok":
        said, answer = turn.content.strip(), answer_in(turn.content, row["reference"]).strip()
        return Turn("assistant", "", None if answer == said else said, answer)
    return turn


def keep(path, out):
    """OUT.all.jsonl -> OUT, the answers that are whole, right as far as anybody knows, and new.

    Returns counts by reason, and of how many prompts an answer was kept: of none, no OUT.
    """
    counts, said, rows = Counter(), set(), []
    with open(path, encoding="utf-8", newline="\n") as file:
        next(file)  # the header
        for row in map(json.loads, file):
            reason = row["verdict"]
            key = row["question"], row["reasoning_content"], row["content"]
            if reason in KEPT:
                reason = "said before" if key in said else reason
                said.add(key)
            if reason in KEPT:
                try:
                    row["conversations"].append(turn_row(kept_turn(row)))
                    parse_row(row)  # as the training will
                    rows.append(row)
                except BadRow:
                    reason = "format"
            counts[reason] += 1
    if not rows:
        return counts, 0
    rows.sort(key=lambda row: (row["question"], row["sample"]))
    cli.write_file(out, json_lines({k: row[k] for k in KEPT_KEYS} for row in rows))
    return counts, len({row["question"] for row in rows})
