"""What a row of filter.py must be by itself: from its line to the first rule that it breaks.

    judge(keys, line, cfg, on, tokenizer)     (Row, None), or (Row or None, "length"), or BadRow

A rule is a function (row, cfg) -> True where the row is to be dropped. What a row brings itself
(verdict, finish_reason) and what formats.py cannot take apart comes before the rules.
"""
import re
from dataclasses import dataclass

from dataset.formats import BadRow, Turn, encode_document, parse_row
from dataset.verify import answer_in, extract_answer, verdict
from metrics import repetition

VERDICTS = {"ok": None, "truncated": "truncation", "format": "format", "no answer": "answer",
            "wrong answer": "answer"}
FAULTS = {"a tag that stands alone, twice, or before more text": "format",  # of a BadRow
          "an answer with no response token": "answer"}

# A letter of a script without spaces says as much as three of an alphabet.
SCRIPTS = {name: (re.compile(f"[{letters}]+"), weight) for name, letters, weight in (
    ("Latin", "A-Za-z\u00c0-\u024f", 1), ("Greek", "\u0370-\u03ff", 1),
    ("Cyrillic", "\u0400-\u052f", 1), ("Hebrew", "\u0590-\u05ff", 1),
    ("Arabic", "\u0600-\u06ff\u0750-\u077f", 1), ("Devanagari", "\u0900-\u097f", 1),
    ("Thai", "\u0e00-\u0e7f", 1), ("Hangul", "\uac00-\ud7af", 3), ("Kana", "\u3040-\u30ff", 3),
    ("Han", "\u3400-\u9fff\U00020000-\U0003ffff", 3))}
NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\\[A-Za-z]+|https?://\S+", re.DOTALL)
# Words and marks; 16 letters at most, so that hahahaha is a loop, too.
PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w{1,16}|[^\w\s]")


@dataclass
class Row:
    """A row, taken apart. Plain text is an answer without a prompt."""
    keys: dict    # the JSON object
    turns: list   # of Turn; the last one is the assistant's
    size: tuple   # length of prompt and of answer, in characters or tokens


def read_row(keys, tokenizer=None):
    """A JSON object -> Row, or BadRow. In a raw row of generate.py the answer stands beside."""
    raw = isinstance(keys, dict) and "content" in keys and keys.get("conversations")
    if isinstance(raw, list):
        last = {"role": "assistant", **{k: keys.get(k) for k in ("content", "reasoning_content")}}
        document = parse_row({"conversations": [*raw, last]})
    else:
        document = parse_row(keys)
    turns = [Turn("assistant", document)] if isinstance(document, str) else document
    if tokenizer:
        ids, mask = encode_document(tokenizer, document)
        return Row(keys, turns, (len(ids) - sum(mask), sum(mask)))
    return Row(keys, turns, (sum(len(said(turn)) for turn in turns[:-1]), len(said(turns[-1]))))


def said(turn):
    """All that a turn says."""
    return "\n".join(part for part in (turn.think, turn.answer, turn.content) if part)


def sides(row):
    """The text before the last answer, system turns apart, and that answer."""
    before = [said(turn) for turn in row.turns[:-1] if turn.role != "system"]
    return "\n".join(before), said(row.turns[-1])


def answer_parts(row):
    """Thoughts and answers of all the assistant's turns, each for itself."""
    return [part for turn in row.turns if turn.role == "assistant"
            for part in (turn.think, turn.answer, turn.content) if part]


def final_answer(row):
    """What stands there as the last answer, for the card, or None."""
    last = row.turns[-1]
    return last.answer if last.answer is not None else extract_answer(last.content)


# --- the rules ------------------------------------------------------------------------------------

def unfinished(text):
    """Is a tag open at the end?"""
    return any(text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>") for tag in ("think", "answer"))


def cut_off(row, cfg):
    """A tag that is open inside a text."""
    return any(unfinished(part) for part in answer_parts(row))


def wrong(row, cfg):
    """Another answer than "reference"? A verdict that the row brings is believed."""
    reference = row.keys.get("reference")
    if type(reference) in (int, float):
        reference = str(reference)
    if row.keys.get("verdict") in list(VERDICTS) or not isinstance(reference, str):
        return False
    last = row.turns[-1]
    answer = answer_in(last.content, reference) if last.answer is None else last.answer
    return verdict(reference, answer, True, True) != "ok"


def too_short_or_long(row, cfg):
    """The answer too short, or the row too long?"""
    return row.size[1] < cfg.min_length or sum(row.size) > cfg.max_length


def loops(row, cfg):
    """Are half of its runs of four repeated, in a whole part or in its last 64 words and marks?"""
    found = [PIECES.findall(part) for part in answer_parts(row)]
    return any(max(repetition(pieces), repetition(pieces[-64:])) > 0.5
               for pieces in found if len(pieces) >= 24)


def letters(text):
    """{script: letters}, without LaTeX, code and addresses; of the first 20,000 characters."""
    text = NO_LANGUAGE.sub(" ", text[:20_000])
    names = ["Latin"] if text.isascii() else SCRIPTS
    return {name: weight * sum(map(len, pattern.findall(text)))
            for name in names for pattern, weight in [SCRIPTS[name]]}


def foreign(row, cfg):
    """Is a part of the answer in a script that the prompt hardly has, and hardly in its own?"""
    asked = letters(sides(row)[0])
    a = max(asked, key=asked.get)
    for got in map(letters, answer_parts(row)):
        b = max(got, key=got.get)
        if (asked[a] >= 6 and got[b] >= 12 and asked.get(b, 0) < 0.2 * sum(asked.values())
                and got.get(a, 0) < 0.2 * sum(got.values())):
            return True
    return False


RULES = dict(truncation=cut_off, answer=wrong, length=too_short_or_long, repetition=loops,
             language=foreign)


def judge(keys, line, cfg, on, tokenizer):
    """A JSON object and its line -> (Row or None, the first reason to drop it or None), or BadRow.

    on: the names of the filters in use. A fault that a filter knows is its reason; with that
    filter off, it is a bad line as everywhere.
    """
    if isinstance(keys, dict):
        given = keys.get("verdict")
        reason = VERDICTS.get(given) if isinstance(given, str) else None
        ended = keys.get("finish_reason") not in ("length", "content_filter")
        reason = reason if ended else "truncation"
        if reason in on:
            return None, reason
    try:
        row = read_row(keys, tokenizer)
    except BadRow as error:
        open_tag = unfinished(line.decode().replace("\\/", "/"))
        for reason in ["truncation"] * open_tag + [FAULTS.get(error.reason)]:
            if reason in on and error.reason in FAULTS:
                return None, reason
        raise
    return row, next((name for name, broken in RULES.items() if name in on and broken(row, cfg)),
                     None)
