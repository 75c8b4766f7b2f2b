"""Rows of any format as prompts for a teacher: what is asked, and what is known about it.

A row of dataset/formats.py is a prompt and its known answer: a bare number, what is marked as the
answer, what GSM8K has behind ####. An essay is none, nor is a number in it; its prompt, and a
conversation that ends with the user, are prompts whose answer nobody knows. Rows that
blackbox/prompts.py has made, told by their "operation", say more about themselves.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from cli import fail, show
from dataset.formats import (BadRow, Turn, bad_lines_text, is_text, parse_row, read_documents,
                             short, string, with_reply)
from dataset.verify import marked, parse_number


@dataclass
class Prompt:
    """What is asked, and what is known about it."""
    turns: list               # of Turn, without the answer
    reference: Optional[str]  # the known answer, or None
    operation: str            # what blackbox/prompts.py did to the seed; "none": nothing
    source: str               # id of the seed's row, or FILE:LINE
    label: str                # "kept", "changed" (by the operation), or "teacher": only it knows


def known_answer(turn):
    """The final answer of a turn, or None: a number that merely stands in an essay is none."""
    if turn.answer is not None:
        return turn.answer
    found = marked(turn.content)
    return found if found != turn.content or parse_number(found) is not None else None


def question_of(row):
    """A row of any format -> the turns up to a user's last one, and the known answer or None; or
    BadRow."""
    document = parse_row(with_reply(row))
    if isinstance(document, str):
        raise BadRow("plain text", short(document), "a prompt: see dataset/formats.py")
    *turns, said = document
    if not turns or turns[-1].role != "user":
        raise BadRow("no question", turns[-1].role if turns else "nothing", "a user's turn last")
    return turns, known_answer(said) if with_reply(row) is row else None


def parse_prompt(row):
    """A row of any format as a Prompt, its source empty where the row has none; or BadRow."""
    turns, reference = question_of(row)
    grown = row if "operation" in row else {}  # by blackbox/prompts.py: in other files, a "label"
    about = dict(operation=grown.get("operation", "none"),            # or a "source" is any word
                 source=grown.get("source", row.get("id", "")),
                 label=grown.get("label", "teacher" if reference is None else "kept"))
    about = {key: str(value) for key, value in about.items()}
    return Prompt(turns, reference, **{key: string(about, key) for key in about})


def read_prompts(cfg, fits=lambda prompt: True, limit=""):
    """The prompts of --input that fit; the others, and bad lines, are counted on the screen."""
    if is_text(cfg.input):
        fail(f"{show(cfg.input)}:1: plain text", expected="prompts, one JSON object a line",
             fix="see dataset/formats.py for the formats")
    found, report, too_long = [], {}, 0
    for line, prompt in read_documents(cfg.input, cfg.skip_bad_lines, report, parse=parse_prompt):
        prompt.source = prompt.source or f"{Path(cfg.input).name}:{line}"
        if not fits(prompt):
            too_long += 1
            continue
        found.append(prompt)
        if len(found) == cfg.questions:
            break
    if report:
        print(f"left out: {bad_lines_text(report)}")
    long = f"{too_long:,} questions longer than {limit}"
    if not found:
        fail(f"{show(cfg.input)} holds no question to ask", long if too_long else "no good row")
    if too_long:
        print(f"left out: {long}")
    return found


def asked(cfg, prompt):
    """The turns as they are sent: with --system, unless the prompt has a system turn of its own."""
    own = not cfg.system or any(turn.role == "system" for turn in prompt.turns)
    return prompt.turns if own else [Turn("system", cfg.system), *prompt.turns]
