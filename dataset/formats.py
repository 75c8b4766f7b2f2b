"""Every input format, told apart by its keys, read as a stream; and how a document becomes tokens.

    .txt                  one document; a file over 4 MB is cut at line ends into documents of 4 MB
    .jsonl, one row a line:
    {"text"}                                        plain text
    {"conversations": [{"role", "content", "reasoning_content"?}]}      minimind
    {"messages": [{"role", "content"}]}             OpenAI
    {"instruction", "input"?, "output"}             Alpaca
    {"question", "answer"}                          GSM8K: what follows the last #### is the
                                                    answer, before it the chain of thought

Other keys of a row are ignored, blank lines skipped. Roles are system, user and assistant. In an
assistant turn `<think>...</think><answer>...</answer>`, or a reasoning_content, becomes the marks
of the tokenizer; elsewhere it stays text. `<think>...</think>` and plain text: that text is the
answer. The opening <think> may be missing (R1's chat template puts it into the prompt); what stands
between the thought and <answer> belongs to the thought; a tag left open is a bad line.
"""
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import UserError, fail, need_file, show
from tokenizer import check_unicode

CHUNK = 4 * 2**20     # bytes: the piece of a file that one worker reads, and a .txt document
MAX_LINE = 8 * 2**20  # bytes: a longer line is a bad line and is never held in memory
ROLES = ("system", "user", "assistant")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
TARGETS = ("cot", "answer", "full", "multi", "mixed")  # see turn_body, and forms for the last two
KEYS = "text, conversations, messages, instruction + output, or question + answer"


@dataclass
class Turn:
    """One turn: who speaks, the text, and of an assistant thought and answer where it has them."""
    role: str                     # system, user or assistant
    content: str                  # plain text; "" where think and answer carry it
    think: Optional[str] = None   # chain of thought
    answer: Optional[str] = None  # final answer


class BadRow(UserError):
    """A row that is no document. `reason` is the same words for every row with that fault."""
    def __init__(self, reason, got=None, expected=None):
        self.reason = reason
        parts = [reason] + ([f"got {got}"] if got else [])
        super().__init__("; ".join(parts + ([f"expected {expected}"] if expected else [])))


# --- a row becomes a document ---------------------------------------------------------------------

def parse_row(row):
    """A row (what a line of JSON says) -> str or list of Turn; BadRow where it is neither."""
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", short(row), '{"text": ...} or another object')
    for key in ("conversations", "messages"):
        if key in row:
            return parse_conversation(row[key])
    if "question" in row and "answer" in row:
        return checked([Turn("user", string(row, "question")), parse_worked_answer(row)])
    if "instruction" in row and "output" in row:
        extra = optional(row, "input")
        prompt = string(row, "instruction") + (f"\n\n{extra}" if extra else "")
        return checked([Turn("user", prompt), parse_response_text(string(row, "output"))])
    if "text" in row:
        if not string(row, "text"):
            raise BadRow("an empty text", expected="at least one character")
        return row["text"]
    raise BadRow("unknown keys", ", ".join(map(str, list(row)[:8])) or "none", KEYS)


def parse_worked_answer(row):
    """GSM8K's answer: steps, ####, the final answer. Without that mark, all of it is the answer."""
    thought, mark, answer = string(row, "answer").rpartition("####")
    if mark and "\n" not in answer.strip():  # else a heading of Markdown: "#### Step 1"
        thought = re.sub(r"<<[^<>]*=[^<>]*>>", "", thought)  # for a calculator: <<48/2=24>>
        return Turn("assistant", "", thought.strip() or None, answer.strip())
    turn = parse_response_text(row["answer"], optional(row, "reasoning_content"))
    return turn if turn.answer is not None else Turn("assistant", "", None, row["answer"].strip())


def parse_conversation(rows):
    """A list of {"role", "content", ...} -> turns, or BadRow."""
    if not isinstance(rows, list) or not rows:
        raise BadRow("an empty conversation", short(rows), "a list of turns")
    turns = []
    for row in rows:
        if not isinstance(row, dict):
            raise BadRow("a turn that is not an object", short(row), "role and content")
        role = row.get("role")
        if role not in ROLES:
            got = short(role) if "role" in row else "a turn with the keys " + ", ".join(row)
            raise BadRow("unknown role", got, "role: " + ", ".join(ROLES))
        content = string(row, "content")
        if role == "assistant":
            turns.append(parse_response_text(content, optional(row, "reasoning_content")))
        else:
            turns.append(Turn(role, content))
    return checked(turns)


def parse_response_text(content, thought=None):
    """The text of an assistant turn -> Turn, with its literal tags (R1 style) taken apart."""
    if thought is None:  # R1's chat template puts <think> into the prompt: it may be missing
        match = re.fullmatch(r"\s*(?:<think>)?(.*?)</think>(.*)", content, re.DOTALL)
        if match:
            thought, content = match.groups()
    tagged = re.fullmatch(r"(.*?)<answer>(.*?)</answer>\s*", content, re.DOTALL)
    if thought is None and not tagged and not content.lstrip().startswith(("<think>", "<answer>")):
        return Turn("assistant", content)
    before, answer = tagged.groups() if tagged else ("", content)
    thought = "\n".join(part.strip() for part in (thought or "", before) if part.strip())
    if any(tag in part for tag in TAGS for part in (thought, answer)):
        raise BadRow("a tag that stands alone, twice, or before more text", short(content),
                     "<think>...</think><answer>...</answer> and no more: was it cut off?")
    return Turn("assistant", "", thought or None, answer.strip())


def turn_row(turn):
    """A Turn as a row of "conversations" that reads back as the same Turn."""
    if turn.think is not None:
        return dict(role=turn.role, reasoning_content=turn.think, content=turn.answer)
    said = turn.content if turn.answer is None else f"<answer>{turn.answer}</answer>"
    return dict(role=turn.role, content=said)


def checked(turns):
    """The turns, or BadRow unless every response has a token and the last turn is a response."""
    if all(turn.role != "assistant" for turn in turns):
        raise BadRow("a conversation without an assistant turn", expected="one that answers")
    if turns[-1].role != "assistant":
        raise BadRow("a conversation that does not end with the assistant", turns[-1].role)
    for turn in turns:
        if turn.role == "assistant" and not (turn.content.strip() or turn.answer):
            raise BadRow("an answer with no response token", "an empty answer", "some text")
    return turns


def with_reply(row):
    """A row as it is, or, where it ends before the assistant's reply, with "?" in that place: the
    readers demand one. A prompt whose answer nobody knows is so told from others."""
    if not isinstance(row, dict):
        return row
    for key in ("conversations", "messages"):
        last = row[key][-1] if isinstance(row.get(key), list) and row[key] else None
        if isinstance(last, dict) and last.get("role") == "user":
            return {key: [*row[key], dict(role="assistant", content="?")]}
    for key, reply in (("question", "answer"), ("instruction", "output")):
        if key in row and row.get(reply) in (None, ""):
            return {**row, reply: "?"}
    return row


def string(row, key):
    """row[key], which must be a valid text."""
    value = row.get(key)
    if not isinstance(value, str):
        got = short(value) if key in row else "nothing"
        raise BadRow("content that is not a string", f"{key}: {got}", f"{key}: a string")
    try:
        check_unicode(value)
    except UserError as error:
        raise BadRow("a lone surrogate", f"{key}: {error}") from None
    return value


def optional(row, key):
    """row[key] as a valid text, or None where there is none, or an empty one."""
    return string(row, key) if row.get(key) else None


def short(value):
    """The beginning of a value, for an error."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


# --- files ----------------------------------------------------------------------------------------

def is_text(path):
    """Is it a file of plain text?"""
    return Path(path).suffix.lower() == ".txt"


def cut(path):
    """Yield chunks of whole lines: (first byte, end, number of the first line)."""
    start, line = 0, 1
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            size, lines = 0, 0
            while block:
                size, lines = size + len(block), lines + block.count(b"\n")
                block = b"" if block.endswith(b"\n") else file.readline(CHUNK)
            yield start, start + size, line
            start, line = start + size, line + lines


def read_lines(path, start=0, end=None):
    """Yield (byte at which it ends, line or None where it is over MAX_LINE) of a byte range."""
    with open(path, "rb") as file:
        file.seek(start)
        while end is None or start < end:
            line = file.readline(MAX_LINE)
            if not line:
                return
            start += len(line)
            too_long = len(line) == MAX_LINE and not line.endswith(b"\n")
            rest = line
            while too_long and rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE)
                start += len(rest)
            yield start, None if too_long else line


def read_documents(path, skip_bad_lines=False, report=None, start=0, end=None, first_line=1,
                   parse=parse_row):
    """Yield (line number, document) of a file, or of the byte range that `cut` gave.

    `parse` makes a row of JSON a document, or raises BadRow.

    A bad line is a UserError "FILE:LINE: found; expected". With skip_bad_lines it is left out and
    counted in `report`: {reason: {"count": n, "first": ["FILE:LINE", ...]}}.
    """
    need_file(path, "write some documents into it")
    text_file = is_text(path)
    if text_file and end is None:  # whole file: chunk by chunk, as prepare.py does
        for chunk in cut(path):
            yield from read_documents(path, skip_bad_lines, report, *chunk)
        return
    parts = []
    for number, (_, line) in enumerate(read_lines(path, start, end), first_line):
        try:
            text = line_text(line)
            if number == 1 or not text_file:  # Windows editors put it before the first line, and
                text = text.removeprefix("\ufeff")  # whoever joins such files into other lines
            if text_file:
                parts.append(text)
            elif text.strip():
                yield number, parse(json_row(text))
        except BadRow as error:
            bad_line(error, f"{show(path)}:{number}", skip_bad_lines, report)
    if "".join(parts).strip():
        yield first_line, "".join(parts)


def line_text(line):
    """The bytes of a line as text, or BadRow."""
    if line is None:
        raise BadRow("a line that is too long", expected=f"at most {MAX_LINE >> 20} MB")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at {error.start}"
        raise BadRow("invalid UTF-8", byte, "UTF-8 text") from None


def json_row(text):
    """The text of a line as JSON, or BadRow."""
    if text.lstrip().startswith("["):
        raise BadRow("a JSON array", short(text.strip()),
                     "one JSON object a line: `jq -c '.[]' FILE` makes it so")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadRow("broken JSON", f"{str(error)[:60]} in {short(text.strip())}",
                     "one JSON object a line (a file of plain text must end in .txt)") from None


def bad_line(error, where, skip_bad_lines, report):
    """Count a BadRow at FILE:LINE in a report, or make it the UserError that names the line."""
    if not skip_bad_lines:
        fail(f"{where}: {error}", fix="mend the line, or --skip-bad-lines")
    count_bad(report, error.reason, 1, [where])


def count_bad(report, reason, count, where):
    """Add to a report of bad lines, keeping the first three places of each reason."""
    if report is not None:
        entry = report.setdefault(reason, {"count": 0, "first": []})
        entry["count"] += count
        entry["first"] = (entry["first"] + where)[:3]


def bad_lines_text(report):
    """A report as one line: `3 bad lines: broken JSON (a.jsonl:7, ...)`; "" where there is none."""
    return " | ".join(f"{entry['count']:,} bad lines: {reason} ({', '.join(entry['first'])})"
                      for reason, entry in report.items())


def counted(counter, between=" | "):
    """A Counter as a line, the most frequent first: `ok 12 | format 3`."""
    return between.join(f"{name} {n:,}" for name, n in counter.most_common())


def json_lines(rows):
    """Rows as the text of a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def texts(document):
    """All the texts of a document, without marks."""
    if isinstance(document, str):
        return [document]
    parts = [part for turn in document for part in (turn.content, turn.think, turn.answer)]
    return [part for part in parts if part]


# --- documents as tokens, and back ----------------------------------------------------------------

def encode_document(tokenizer, document, target="cot", loss_on="response"):
    """Document -> (ids, mask); the mask is 1 where a token is learned.

    Text: every token and its <end>. Conversation: what the assistant says and its <end>, never the
    mark of the role, which the prompt ends with; with loss_on="all" all but the very first token.
    """
    if isinstance(document, str):
        ids = tokenizer.encode(document) + [tokenizer.end]
        return ids, [1] * len(ids)
    ids, mask = [], []
    for turn in document:
        body = [*turn_body(tokenizer, turn, target), tokenizer.end]
        learned = 1 if turn.role == "assistant" or loss_on == "all" else 0
        ids += [getattr(tokenizer, turn.role), *body]
        mask += [1 if loss_on == "all" and mask else 0] + [learned] * len(body)
    return ids, mask


def forms(document, target):
    """The forms (targets of encode_document) in which a document is learned, an example each.

    multi: with its thought and as a bare answer; mixed: one of the two, half of the questions each,
    by a hash of their text, so that all the answers to one question have one form.
    """
    if target not in ("multi", "mixed"):
        return [target]
    if isinstance(document, str) or all(turn.think is None for turn in document):
        return ["cot"]  # there is one form only
    asked = "\n".join(turn.content for turn in document)
    half = hashlib.sha256(asked.encode()).digest()[0] % 2
    return ["cot", "answer"] if target == "multi" else [("cot", "answer")[half]]


def turn_body(tokenizer, turn, target):
    """Ids of a turn between its role's mark and its <end>.

    target: "cot" <think>...</think><answer>...</answer>, "answer" without the thought, "full" all
    of it as plain text, without a tag.
    """
    t, body = tokenizer, []
    if target == "full" and turn.answer is not None:
        return t.encode(plain_reply(turn))
    if turn.think is not None and target == "cot":
        body += [t.think, *t.encode(turn.think), t.end_think]
    if turn.answer is not None:
        return [*body, t.answer, *t.encode(turn.answer), t.end_answer]
    return body + t.encode(turn.content)


def plain_reply(turn):
    """A reply as one plain text, in GSM8K's notation: the thought, then `#### ` and the answer.

    No mark before an answer of several lines (it would read as a heading), or without a thought.
    """
    if turn.think is None:
        return turn.answer
    return turn.think + ("\n" if "\n" in turn.answer else "\n#### ") + turn.answer


def prompt_ids(tokenizer, turns, target="cot"):
    """What generation starts from: every turn before the last assistant turn, then <assistant>."""
    before = turns[:-1] if turns[-1].role == "assistant" else turns
    return encode_document(tokenizer, before, target)[0] + [tokenizer.assistant]


def opening(tokenizer, target):
    """The ids that a response of this form begins with. Put behind a prompt they tell a model that
    has learned two forms (target multi or mixed) which one is asked."""
    return {"cot": [tokenizer.think], "answer": [tokenizer.answer]}.get(target, [])


def parse_response(tokenizer, ids, target="cot"):
    """Generated ids -> think, answer (None where not found), text, ended, well_formed.

    Told by ids, so a spelled "<answer>" is text. What follows the first <end> is ignored.
    """
    t, ids = tokenizer, [int(i) for i in ids]
    body = ids[:ids.index(t.end)] if t.end in ids else ids
    return {"think": span(t, body, t.think, t.end_think),
            "answer": span(t, body, t.answer, t.end_answer),
            "text": t.decode(body), "ended": t.end in ids,
            "well_formed": well_formed(t, ids, target)}


def span(tokenizer, ids, first, last):
    """Text between the first mark `first` and the next mark `last`, or None."""
    if first not in ids:
        return None
    ids = ids[ids.index(first) + 1:]
    return tokenizer.decode(ids[:ids.index(last)]) if last in ids else None


# T think, t its end, A answer, a its end, x a token of text, - another mark, . the end
PATTERNS = dict(cot="Tx*tAx*a", answer="Ax*a", full="x+")


def well_formed(tokenizer, ids, target="cot"):
    """Exactly <think>...</think><answer>...</answer><end>; target "answer": without the thought;
    "full": text without a tag. What follows the first <end> is ignored."""
    t = tokenizer
    letters = {t.think: "T", t.end_think: "t", t.answer: "A", t.end_answer: "a", t.end: "."}
    said = "".join(letters.get(i, "-" if i in t.control_ids else "x") for i in map(int, ids))
    return re.match(PATTERNS[target] + "[.]", said) is not None
