"""Every input format, recognised by its keys, and how a document becomes tokens.

    .txt, {"text"} in .jsonl                                            plain text
    {"conversations": [{"role", "content", "reasoning_content"?}]}      minimind
    {"messages": [...]}, {"conversations": [{"from", "value"}]}         OpenAI, ShareGPT
    {"instruction", "input"?, "output", "system"?, "history"?}, {"prompt", "completion"} Alpaca, TRL
    {"question", "answer", "context"?, "options"?}, {"problem", "solution", "answer"?}   GSM8K, MMLU

In an assistant turn <think>, </think>, <answer>, </answer> become control tokens, and so do GSM8K's
#### and a thought with its own key. Elsewhere tags stay text. Null values and other keys are not
read. A conversation ends before a turn that it cannot use. "weight": 0 means not learned.
"""
import hashlib
import json
import re
import shlex
from dataclasses import dataclass

from common import UserError, check, check_exists, data_files, show

CHUNK = 4 * 2**20     # bytes that a worker reads at a time; also the size of a .txt document
ROLES = dict(system="system", developer="system", user="user", human="user",
             assistant="assistant", gpt="assistant")
TOOL_ROLES = ("tool", "function", "function_call", "observation")
PAIRS = dict(question="answer", problem="solution", prompt="completion", instruction="output",
             input="output")
ALIASES = dict(choices="options", answerKey="answer", passage="context")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
STOP = re.compile(r"(<(/s|end(_of_turn)?|[|｜](im_end|eot_id|end(oftext|▁of▁sentence)?)[|｜])>\s*)+$")
# How a file begins that cannot be read as it is: what it is, and the cure
KINDS = {rb"\Z": "empty", rb"\x1f\x8b": "gzip; gunzip it", rb"PAR1": "Parquet; write it as JSONL",
         rb"PK\x03\x04": "a zip archive or a checkpoint; data are .txt or .jsonl files",
         rb"\xff\xfe|\xfe\xff|.*\0": "UTF-16, or no text; try iconv -f UTF-16 -t UTF-8 {} > NEW"}
JSON_KINDS = {rb"(\xef\xbb\xbf)?\s*\[": "a JSON array; jq -c '.[]' {} > NEW makes JSONL of it",
              rb"(?!(\xef\xbb\xbf)?\s*({|\Z))": "not JSONL (plain text is .txt, CSV is not read)"}
UNREAD = set("tools functions documents rejected rationale explanation cot thought image images "
             "audio".split())  # keys with a meaning: they are not read, but counted


@dataclass
class Turn:
    """One turn of a conversation. Only an assistant's turn can have a thought and an answer."""
    role: str                     # system, user or assistant
    content: str                  # plain text; "" if it is in think and answer
    think: str | None = None   # chain of thought
    answer: str | None = None  # final answer
    learned: bool = True          # False: the model reads it, but it is not in the loss


class BadRow(UserError):
    """A row that is not a document. Rows with the same fault have the same `reason`."""
    def __init__(self, reason, got=None):
        self.reason = reason
        super().__init__(reason if got is None else f"{reason}: {str(got)[:60]}")


def parse_row(row, need_reply=True, report=None):
    """A JSON row -> str (plain text) or list of Turn. Raises BadRow if it is neither.
    need_reply=False also accepts a prompt that ends with the user. report: see read_documents."""
    if not isinstance(row, dict):
        raise BadRow("not a JSON object", row)
    row = {ALIASES.get(key, key): value for key, value in row.items() if value is not None}
    turns, weight = row.get("conversations", row.get("messages")), row.get("weight", 1)
    for ask, reply in PAIRS.items():
        if turns is None and ask in row and (reply in row or not need_reply):
            turns = pair(row, ask, reply)
    if turns is None and row.get("text") and weight != 0:
        return string(row["text"], "text")
    if not isinstance(turns, list) or not turns:
        raise BadRow("no text and no turns (see dataset/formats.py); the keys are", ", ".join(row))
    for key in sorted({key for part in (row, *turns) if isinstance(part, dict)
                       for key in UNREAD & part.keys() if part[key]}):
        note(report, f"ignored key {key}")
    before = [dict(role="system", content=row["system"])] if row.get("system") else []
    for part in row.get("history") or []:
        two = zip(("user", "assistant"), part, strict=True) if isinstance(part, list) else ()
        before += [dict(role=role, content=text) for role, text in two] or [part]
    return parse_turns(before + turns, need_reply, report, weight)


def pair(row, ask, reply):
    """The turns of a row that has a question under the key `ask` and its answer under `reply`."""
    if isinstance(row[ask], list):  # TRL: both are lists of turns
        return row[ask] + row.get(reply, [])
    options, letters = row.get("options", {}), "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    if isinstance(options, dict) and "text" in options:  # ARC: {"text": [...], "label": [...]}
        options, letters = options["text"], options.get("label", letters)
    if isinstance(options, list):
        options = dict((one.get("label", letter), one.get("text")) if isinstance(one, dict)
                       else (letter, one) for letter, one in zip(letters, options))
    text, known = row.get(reply), str(row.get("answer", "")) if ask == "problem" else ""
    if type(text) in (int, float):  # of an option, as in MMLU, or the answer itself
        text = dict(enumerate(options)).get(text, str(text))
    if known not in ("", text) and not re.search(r"####|\\boxed|</(think|answer)>", text or ""):
        text = f"{text or ''}\n#### {known}"
    lines = "\n".join(f"{said}" if f"{said}".startswith((f"{letter}.", f"{letter})"))
                      else f"{letter}. {said}" for letter, said in options.items())
    parts = [row.get("context"), string(row[ask], ask), ask != "input" and row.get("input"), lines]
    question = dict(role="user", content="\n\n".join(filter(None, parts)))
    answer = row | dict(role="assistant", content=text, worked=ask in ("question", "problem"))
    return [question, answer] if text else [question]


def parse_turns(rows, need_reply, report, weight):
    """A list of {"role", "content", ...} -> list of Turn. Flags and errors: see parse_row."""
    turns, end = [], ""  # end: why it ends with an earlier answer
    for row in rows:
        name, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
        role, texts = ROLES.get(str(name)), {}
        if name in TOOL_ROLES or row.get("tool_calls") or row.get("function_call"):
            end = "a turn that uses tools"
        elif role is None:
            end = "unknown role"
        elif isinstance(content, list):
            for part in content:
                if (kind := part.get("type")) in ("text", *THOUGHTS):
                    texts[kind] = texts.get(kind, "") + part.get(kind, part.get("text", ""))
                else:
                    end = "a part that is not text"
            row, content = row | texts, texts.get("text", "")
        if end:
            break
        turn = Turn(role, "" if content is None and role != "user" else string(content, "content"))
        if role == "assistant":
            thought = next((string(row[key], key) for key in THOUGHTS if row.get(key)), None)
            turn = parse_response_text(turn.content, thought, row.get("worked"))
            turn.learned = row.get("weight", weight) != 0
            if not (turn.content.strip() or turn.answer):
                end = "an empty answer"
                break
        if need_reply and role == "user" and not content.strip():
            raise BadRow("a user turn without text")
        if turn.content or role != "system":
            turns.append(turn)
    while (need_reply or end) and turns and turns[-1].role != "assistant":
        end = end or "a last turn without an answer"
        turns.pop()
    if not turns:
        why = f"a conversation that does not end with an answer: {end or 'it is empty'}"
        raise BadRow(end if end == "unknown role" else why, name)
    if end:
        note(report, f"conversations cut at {end}")
    return turns


def parse_response_text(content, thought=None, worked=False):
    """The text of an assistant turn -> Turn, split at its tags. BadRow if a tag is left over.
    thought: a chain of thought that had its own key; tags inside it stay text. worked: as in GSM8K,
    #### stands before the final answer. Without #### and tags, all of it is the answer."""
    if content.rstrip().endswith(">"):  # a server may leave its stop token in the text
        content = STOP.sub("", content)
    steps, hashes, answer = content.rpartition("####")
    if worked and hashes and "\n" not in answer.strip():  # otherwise a heading: "#### Step 1"
        steps = re.sub(r"<<[^<>]*=[^<>]*>>", "", steps)  # calculator notes: <<48/2=24>>
        return Turn("assistant", "", steps.strip() or None, answer.strip())
    match = re.fullmatch(r"\s*(?:<think>)?(.*?)</think>(.*)", content, re.DOTALL)
    inline, content = match.groups() if match and thought is None else ("", content)
    tags = re.fullmatch(r"(.*?)<answer>(.*?)</answer>\s*[.。]?\s*", content, re.DOTALL)
    if not (thought or worked or match or tags or re.match(r"\s*<(think|answer)>", content)):
        return Turn("assistant", content)
    between, answer = tags.groups() if tags else ("", content)
    if any(tag in part for tag in TAGS for part in (inline, between, answer)):
        raise BadRow("a tag that stands alone, twice, or before more text (cut off?)", content)
    parts = [part.strip() for part in (thought or inline, between) if part.strip()]
    return Turn("assistant", "", "\n".join(parts) or None, answer.strip())


def string(value, name):
    """Return the value. BadRow if it is not a string, or if UTF-8 cannot encode it."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string", value)
    if not value.isascii() and (half := re.search("[\ud800-\udfff]", value)):
        raise BadRow("half of a surrogate pair (an emoji that was cut in two?)", ascii(half[0]))
    return value


def is_text(path):
    return any(file.suffix.lower() == ".txt" for file in data_files(path))


def chunks(path, limit=0):
    """Yield (file, number of the first line, lines as bytes) for each 4 MB. limit: only N rows."""
    check(not (limit and is_text(path)), f"{show(path)}: plain text has no rows for --documents")
    left = limit or float("inf")
    for source in data_files(path):
        check_exists(source, "the project's speedrun.sh makes the default data")
        with open(source, "rb") as file:
            kinds, most = (KINDS, CHUNK) if is_text(source) else (KINDS | JSON_KINDS, -1)
            for begin, kind in kinds.items():
                check(not re.match(begin, file.peek(1), re.DOTALL),
                      f"{show(source)} is {kind.format(shlex.quote(show(source)))}")
            first, lines, size = 1, [], 0
            while left and (line := file.readline(most)):
                while 0x80 <= (file.peek(1) or b"\0")[0] < 0xC0:  # do not cut inside a character
                    line += file.read(1)
                lines.append(line)
                size, left = size + len(line), left - bool(line.strip())
                if size >= CHUNK:
                    yield source, first, lines
                    first, lines, size = first + len(lines), [], 0
            if lines:
                yield source, first, lines


def read_documents(path, skip_bad_lines=False, report=None, parse=parse_row, parts=None):
    """Yield ("FILE:LINE", document) of a file or a folder, or only of its chunks `parts`.
    `parse` maps a row to a document or raises BadRow. A bad line is a UserError "FILE:LINE: ...".
    With skip_bad_lines it is only counted in `report`: {reason: [count, first three places]}."""
    for file, first, lines in parts or chunks(path):
        texts, plain, name = [], is_text(file), show(file)
        for number, line in enumerate(lines, first):
            place = f"{name}:{number}"
            try:
                text = line.decode().removeprefix("\ufeff")
                if plain:
                    texts.append(text)
                elif text.strip():
                    yield place, parse(json.loads(text))
            except UnicodeDecodeError:  # not skipped: all lines with such letters would be lost
                raise UserError(f"{place}: not UTF-8; try iconv -f latin1 -t UTF-8 "
                                f"{shlex.quote(name)} > NEW; or -f GB18030, if Chinese") from None
            except (BadRow, ValueError, TypeError, AttributeError, RecursionError) as error:
                if not isinstance(error, BadRow):
                    error = BadRow("broken JSON or a wrong type (plain text is .txt)", text.strip())
                check(skip_bad_lines, f"{place}: {error}; fix the line, or use --skip-bad-lines")
                note(report, error.reason, 1, [place])
        if (text := "".join(texts).replace("\r\n", "\n").replace("\r", "\n")).strip():
            yield f"{name}:{first}", text


def note(report, reason, count=1, places=()):
    """Count something in a report and keep its first three places. With None do nothing."""
    if report is not None:
        before, known = report.get(reason, (0, []))
        report[reason] = [before + count, [*known, *places][:3]]


def bad_lines_text(report):
    """A report as one line: `broken JSON: 3 (a.jsonl:7, ...)`. An empty report gives ""."""
    return " | ".join(f"{reason}: {count:,}" + (f" ({', '.join(places)})" if places else "")
                      for reason, (count, places) in report.items())


def encode_document(tokenizer, document, target="cot"):
    """Document -> (ids, mask), two lists of the same length. The mask is 1 if a token is learned:
    plain text and its <end>; in a conversation the assistant's words and <end>. Its opening ends
    the prompt. target "cot": all tags; "answer": the same without the thought; "full": no tags."""
    t, mask = tokenizer, []
    if isinstance(document, str):
        ids = t.encode(document) + [t.text_end]
        return ids, [1] * len(ids)
    ids = [] if document[:1] and document[0].role == "system" else [*t.start]
    mask += [0] * len(ids)
    for number, turn in enumerate(document, 1):
        opening, thought = getattr(t, turn.role), []
        if turn.think is not None and target == "cot":
            text = t.gaps[0] + turn.think + t.gaps[1]
            thought = [*t.think, *t.encode(text), *t.end_think]
        elif turn.role == "assistant":
            thought = t.bare if number == len(document) else t.bare_before
        gap = t.gaps[2] if thought else ""
        said = turn.content.strip() if t.trim else turn.content
        if turn.answer is not None and target == "full":
            mark = "\n" if "\n" in turn.answer else "\n#### "  # as GSM8K, if one line
            said = turn.answer if turn.think is None else turn.think + mark + turn.answer
        body = t.encode(gap + said) if turn.answer is None or target == "full" else \
            [*t.encode(gap), *t.answer, *t.encode(turn.answer), *t.end_answer]
        learned = 1 if turn.role == "assistant" and turn.learned else 0
        ids += [*opening, *thought, *body, t.end, *t.closing]
        words = len(thought) + len(body) + 1  # and the end
        mask += [0] * len(opening) + [learned] * words + [0] * len(t.closing)
    return ids, mask


def forms(document, target):
    """The targets for encode_document, one for each training example. multi: "cot" and "answer".
    mixed: one of these, by a hash of the question, so that all its answers have the same target."""
    if target not in ("multi", "mixed"):
        return [target]
    if isinstance(document, str) or all(turn.think is None for turn in document):
        return ["cot"]  # both targets would be the same
    half = hashlib.sha256("\n".join(turn.content for turn in document).encode()).digest()[0] % 2
    return ["cot", "answer"] if target == "multi" else [("cot", "answer")[half]]
