"""Every input format, told apart by its keys; and how a document becomes tokens and back.

    .txt                  documents of about 4 MB, cut at line ends
    .jsonl, one row a line:
    {"text"}                                                            plain text
    {"conversations": [{"role", "content", "reasoning_content"?}]}      minimind
    {"messages": [...]}                                                 OpenAI
    {"conversations": [{"from", "value"}]}                              ShareGPT
    {"instruction", "input"?, "output", "system"?, "history"?}          Alpaca
    {"prompt", "completion"}                                            TRL; text or lists of turns
    {"question", "answer", "context"?, "options"?}, {"problem", "solution"}     GSM8K: the answer is
                                          what follows the last ####, the thought what stands before

Blank lines are skipped, a key that is null is absent, other keys are ignored. In an assistant turn
`<think>...</think><answer>...</answer>`, or a thought in a key of its own, becomes the marks of the
tokenizer; elsewhere tags stay text. The opening <think> may be missing, because R1's chat template
puts it into the prompt. A turn that uses tools ends the conversation before it. A turn with
"weight": 0 is read and not learned.
"""
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import UserError, check, show

CHUNK = 4 * 2**20     # bytes: what one worker reads at a time, and the size of a .txt document
ROLES = dict(system="system", developer="system", user="user", human="user",
             assistant="assistant", gpt="assistant")
PAIRS = (("question", "answer"), ("problem", "solution"), ("prompt", "completion"),
         ("instruction", "output"))
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
END_MARKS = ("<end>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>")  # of other chat models
TARGETS = ("cot", "answer", "full", "multi", "mixed")  # see turn_body, and forms for the last two
KINDS = {b"\x1f\x8b": "gzip; gunzip it", b"PK\x03\x04": "zip; unzip it",  # by the first bytes
         b"PAR1": "Parquet; write it as JSONL", b"\xff\xfe": "UTF-16; iconv -t UTF-8",
         b"\xfe\xff": "UTF-16; iconv -t UTF-8"}


@dataclass
class Turn:
    """One turn: who speaks, the text, and of an assistant thought and answer if it has them."""
    role: str                     # system, user or assistant
    content: str                  # plain text; "" if think and answer carry it
    think: Optional[str] = None   # chain of thought
    answer: Optional[str] = None  # final answer
    learned: bool = True          # False: read, and not counted in the loss


class BadRow(UserError):
    """A row that is no document. `reason` is the same words for every row with that fault."""
    def __init__(self, reason, got=None):
        self.reason = reason
        shown = "" if got is None else f": {got if isinstance(got, str) else json.dumps(got)}"
        super().__init__(reason + (shown if len(shown) < 60 else shown[:57] + "..."))


# --- a row becomes a document ---------------------------------------------------------------------

def parse_row(row, need_reply=True, report=None):
    """A row (what a line of JSON holds) -> str or list of Turn; BadRow if it is neither.

    need_reply=False also accepts a conversation that ends with the user: a prompt. `report` counts
    what was left out of good rows, as in read_documents.
    """
    if not isinstance(row, dict):
        raise BadRow("not a JSON object (`jq -c '.[]' FILE` makes lines of an array)", row)
    row = {key: value for key, value in row.items() if value is not None}
    turns = row.get("conversations", row.get("messages"))
    for ask, reply in PAIRS:
        if turns is None and ask in row and (reply in row or not need_reply):
            turns = pair(row, ask, reply)
    if turns is None and row.get("text"):
        return string(row, "text")
    if turns is None:
        raise BadRow("an empty text" if "text" in row else "unknown keys (see formats.py)", row)
    if not isinstance(turns, list) or not turns:
        raise BadRow("an empty conversation", turns)
    before = [dict(role="system", content=row["system"])] if row.get("system") else []
    before += [dict(role=role, content=text) for two in row.get("history", [])
               for role, text in zip(("user", "assistant"), two)]
    return parse_turns(before + turns, need_reply, report)


def pair(row, ask, reply):
    """The turns of a question and its reply under the keys `ask` and `reply`."""
    if isinstance(row[ask], list):  # TRL: both are lists of turns
        return row[ask] + row.get(reply, [])
    options = row.get("options", {})
    if isinstance(options, list):
        options = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options))
    parts = [row.get("context"), string(row, ask), row.get("input"),
             "\n".join(f"{letter}. {text}" for letter, text in options.items())]
    turns = [dict(role="user", content="\n\n".join(filter(None, parts)))]
    if row.get(reply):
        turns.append({**row, "role": "assistant", "content": row[reply],
                      "worked": ask in ("question", "problem")})
    return turns


def parse_turns(rows, need_reply, report):
    """A list of {"role", "content", ...} -> list of Turn, or BadRow."""
    turns = []
    for row in rows:
        if not isinstance(row, dict):
            raise BadRow("a turn that is not an object", row)
        name = row.get("role", row.get("from"))
        if name in ("tool", "function") or row.get("tool_calls") or row.get("function_call"):
            while turns and turns[-1].role != "assistant":
                turns.pop()
            note(report, "conversations cut at a turn that uses tools")
            break
        if str(name) not in ROLES:
            raise BadRow("unknown role", name)
        turn = Turn(ROLES[name], content_of(row))
        if turn.role == "assistant":
            thought = next((string(row, key) for key in THOUGHTS if row.get(key)), None)
            read = parse_worked_answer if row.get("worked") else parse_response_text
            turn = read(turn.content, thought)
            turn.learned = row.get("weight", 1) != 0
            if not (turn.content.strip() or turn.answer):
                raise BadRow("an empty answer")
        if need_reply and turn.role == "user" and not turn.content.strip():
            raise BadRow("a user turn without text")
        if turn.content or turn.role != "system":
            turns.append(turn)
    if not turns:
        raise BadRow("no answer before a turn that uses tools")
    if need_reply and turns[-1].role != "assistant":
        raise BadRow("a conversation that does not end with an answer")
    return turns


def content_of(row):
    """The text of a turn: a string, or a list of text parts."""
    content = row.get("content", row.get("value"))
    if isinstance(content, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
            raise BadRow("a part of a turn that is not text", content)
        content = "".join(string(part, "text") for part in content)
    return string(dict(content=content), "content")


def parse_worked_answer(text, thought):
    """GSM8K's answer: steps, ####, the final answer. Without that mark, all of it is the answer."""
    steps, mark, answer = text.rpartition("####")
    if mark and "\n" not in answer.strip():  # else a heading of Markdown: "#### Step 1"
        steps = re.sub(r"<<[^<>]*=[^<>]*>>", "", steps)  # for a calculator: <<48/2=24>>
        return Turn("assistant", "", steps.strip() or None, answer.strip())
    turn = parse_response_text(text, thought)
    return turn if turn.answer is not None else Turn("assistant", "", None, text.strip())


def parse_response_text(content, thought=None):
    """The text of an assistant turn -> Turn, with its literal tags (R1 style) taken apart.

    thought: a chain of thought that came in a key of its own; tags in it are text.
    """
    for mark in END_MARKS:  # a server may leave its stop mark in the text
        if content.rstrip().endswith(mark):
            content = content.rstrip().removesuffix(mark)
    match = re.fullmatch(r"\s*(?:<think>)?(.*?)</think>(.*)", content, re.DOTALL)
    inline, content = match.groups() if match and thought is None else ("", content)
    tagged = re.fullmatch(r"(.*?)<answer>(.*?)</answer>\s*\.?\s*", content, re.DOTALL)
    if thought is None and not match and not tagged \
            and not content.lstrip().startswith(("<think>", "<answer>")):
        return Turn("assistant", content)
    between, answer = tagged.groups() if tagged else ("", content)
    if any(tag in part for tag in TAGS for part in (inline, between, answer)):
        raise BadRow("a tag that stands alone, twice, or before more text (cut off?)", content)
    parts = [part.strip() for part in (thought or inline, between) if part.strip()]
    return Turn("assistant", "", "\n".join(parts) or None, answer.strip())


def turn_row(turn):
    """A Turn as a row of "conversations" that reads back as the same Turn."""
    if turn.think is not None:
        return dict(role=turn.role, reasoning_content=turn.think, content=turn.answer)
    text = turn.content if turn.answer is None else f"<answer>{turn.answer}</answer>"
    return dict(role=turn.role, content=text)


def string(row, key):
    """row[key], which must be text that UTF-8 can hold."""
    value = row.get(key)
    if not isinstance(value, str):
        raise BadRow(f"{key} is not a string", value)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow("half of a surrogate pair", f"U+{ord(value[error.start]):04X}") from None
    return value


# --- files ----------------------------------------------------------------------------------------

def is_text(path):
    """Is it a file of plain text?"""
    return Path(path).suffix.lower() == ".txt"


def chunks(path, limit=0):
    """Yield (number of the first line, lines as bytes) of a file, about 4 MB at a time.

    limit: only the first so many rows of a .jsonl file. UserError if the file cannot be read.
    """
    check(not Path(path).is_dir(), f"{show(path)} is a folder; name a file")
    check(Path(path).exists(), f"{show(path)} does not exist; bash speedrun.sh makes the default "
                                "data, or name a file of yours")
    check(not (limit and is_text(path)), f"{show(path)} is plain text and has no rows to limit; "
                                         "leave --documents out")
    with open(path, "rb") as file:
        head = file.peek(4)[:4]
        check(head, f"{show(path)} is empty")
        for magic, kind in KINDS.items():
            check(not head.startswith(magic), f"{show(path)} is {kind}")
        first, lines, size, left = 1, [], 0, limit or float("inf")
        while line := file.readline(CHUNK if is_text(path) else -1):
            if is_text(path) and not line.endswith(b"\n"):  # not in the middle of a character
                while 0x80 <= (file.peek(1) or b"\0")[0] < 0xC0:
                    line += file.read(1)
            lines.append(line)
            size, left = size + len(line), left - bool(line.strip())
            if size >= CHUNK or not left:
                yield first, lines
                first, lines, size = first + len(lines), [], 0
            if not left:
                return
        if lines:
            yield first, lines


def read_documents(path, skip_bad_lines=False, report=None, parse=parse_row):
    """Yield (line number, document) of a file. `parse` makes a row a document, or raises BadRow.

    A bad line is a UserError "FILE:LINE: ...". With skip_bad_lines it is left out and counted in
    `report`: {reason: [count, the first three places]}.
    """
    for first, lines in chunks(path):
        yield from documents_of(path, first, lines, skip_bad_lines, report, parse)


def documents_of(path, first, lines, skip_bad_lines=False, report=None, parse=parse_row):
    """Yield (line number, document) of some lines of a file; see read_documents."""
    texts = []
    for number, line in enumerate(lines, first):
        try:
            text = line.decode().removeprefix("\ufeff").replace("\r\n", "\n")
            if is_text(path):
                texts.append(text)
            elif text.strip():
                yield number, parse(json.loads(text))
        except (BadRow, ValueError, TypeError, AttributeError, RecursionError) as error:
            if not isinstance(error, BadRow):
                broken = isinstance(error, (ValueError, RecursionError))  # or not UTF-8
                error = BadRow("broken JSON (plain text must be in a .txt file)" if broken else
                               "a value of a wrong type", str(error))
            where = f"{show(path)}:{number}"
            check(skip_bad_lines, f"{where}: {error}; mend the line, or --skip-bad-lines")
            note(report, error.reason, 1, [where])
    if "".join(texts).strip():
        yield first, "".join(texts)


def note(report, reason, count=1, places=()):
    """Count something that was left out, with the first three places, in a report (None:
    nowhere)."""
    if report is not None:
        before, known = report.get(reason, (0, []))
        report[reason] = [before + count, [*known, *places][:3]]


def bad_lines_text(report):
    """A report as one line: `broken JSON: 3 (a.jsonl:7, ...)`; "" if there is none."""
    return " | ".join(f"{reason}: {count:,}" + (f" ({', '.join(places)})" if places else "")
                      for reason, (count, places) in report.items())


def counted(counter, between=" | "):
    """A Counter as a line, the most frequent first: `ok 12 | format 3`."""
    return between.join(f"{name} {n:,}" for name, n in counter.most_common())


def texts(document):
    """All the texts of a document, without marks."""
    if isinstance(document, str):
        return [document]
    parts = [part for turn in document for part in (turn.content, turn.think, turn.answer)]
    return [part for part in parts if part]


# --- documents as tokens, and back ----------------------------------------------------------------

def encode_document(tokenizer, document, target="cot"):
    """Document -> (ids, mask); the mask is 1 where a token is learned.

    Text: every token and its <end>. Conversation: what the assistant says and its <end>, never the
    mark of the role, with which the prompt ends.
    """
    if isinstance(document, str):
        ids = tokenizer.encode(document) + [tokenizer.end]
        return ids, [1] * len(ids)
    ids, mask = [], []
    for turn in document:
        body = [*turn_body(tokenizer, turn, target), tokenizer.end]
        learned = 1 if turn.role == "assistant" and turn.learned else 0
        ids += [getattr(tokenizer, turn.role), *body]
        mask += [0] + [learned] * len(body)
    return ids, mask


def forms(document, target):
    """The forms (targets of encode_document) in which a document is learned, an example each.

    multi: with its thought and as a bare answer. mixed: one of the two, half of the questions each,
    by a hash of their text, so that all the answers to one question have one form.
    """
    if target not in ("multi", "mixed"):
        return [target]
    if isinstance(document, str) or all(turn.think is None for turn in document):
        return ["cot"]  # there is one form only
    prompt = "\n".join(turn.content for turn in document)
    half = hashlib.sha256(prompt.encode()).digest()[0] % 2
    return ["cot", "answer"] if target == "multi" else [("cot", "answer")[half]]


def turn_body(tokenizer, turn, target):
    """Ids of a turn between its role's mark and its <end>.

    target: "cot" <think>...</think><answer>...</answer>; "answer" the same without the thought;
    "full" all of it as plain text, without a tag.
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

    No #### before an answer of several lines (it would read as a heading), or without a thought.
    """
    if turn.think is None:
        return turn.answer
    return turn.think + ("\n" if "\n" in turn.answer else "\n#### ") + turn.answer


def prompt_ids(tokenizer, turns, target="cot"):
    """What generation starts from: every turn before the last assistant turn, then <assistant>."""
    before = turns[:-1] if turns[-1].role == "assistant" else turns
    return encode_document(tokenizer, before, target)[0] + [tokenizer.assistant]
