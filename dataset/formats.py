"""Every input format, recognised by its keys, and how a document becomes tokens.

    .txt                                        documents of about 4 MB, cut at line ends
    {"text"}                                                            in .jsonl: plain text
    {"conversations": [{"role", "content", "reasoning_content"?}]}      minimind
    {"messages": [...]}, {"conversations": [{"from", "value"}]}         OpenAI, ShareGPT
    {"instruction", "input"?, "output", "system"?, "history"?}          Alpaca
    {"prompt", "completion"}                                            TRL; text or lists of turns
    {"question", "answer", "context"?, "options"?}, {"problem", "solution"}     GSM8K

Null values and other keys are ignored. In an assistant turn <think>, </think>, <answer>, </answer>
become control tokens, and so do the #### of GSM8K and a thought with its own key. The first <think>
may be missing: R1's chat template puts it into the prompt. Elsewhere tags stay text. A conversation
ends with the answer before a turn that uses tools. "weight": 0 means read, but not learned.
"""
import hashlib
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from common import UserError, check, check_exists, data_files, show

CHUNK = 4 * 2**20     # bytes that a worker reads at a time; also the size of a .txt document
ROLES = dict(system="system", developer="system", user="user", human="user",
             assistant="assistant", gpt="assistant")
PAIRS = dict(question="answer", problem="solution", prompt="completion", instruction="output")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
STOP_TOKENS = ("<end>", "<|im_end|>", "<|eot_id|>", "<|endoftext|>", "</s>")  # of chat models
# How a file begins that cannot be read as it is: what it is, and the cure
KINDS = {rb"\Z": "empty", rb"\x1f\x8b": "gzip; gunzip it", rb"PAR1": "Parquet; write it as JSONL",
         rb"PK\x03\x04": "a zip archive or a checkpoint; data are .txt or .jsonl files",
         rb"\xff\xfe|\xfe\xff|.*\0": "UTF-16, or no text; try iconv -f UTF-16 -t UTF-8 {} > NEW"}
JSON_KINDS = {rb"(\xef\xbb\xbf)?\s*\[": "a JSON array; jq -c '.[]' {} > NEW makes JSONL of it",
              rb"(?!(\xef\xbb\xbf)?\s*({|\Z))": "not JSONL (plain text is .txt, CSV is not read)"}
# Keys with a meaning in public data: they are not read, but counted
UNREAD = set("tools functions documents rejected choices rationale image images audio".split())


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
    row = {key: value for key, value in row.items() if value is not None}
    turns = row.get("conversations", row.get("messages"))
    for ask, reply in PAIRS.items():
        if turns is None and ask in row and (reply in row or not need_reply):
            turns = pair(row, ask, reply)
    if turns is None and row.get("text"):
        return string(row["text"], "text")
    if not isinstance(turns, list) or not turns:
        raise BadRow("no text and no turns (see dataset/formats.py); the keys are", ", ".join(row))
    for key in sorted({key for part in (row, *turns) if isinstance(part, dict)
                       for key in UNREAD & part.keys() if part[key]}):
        note(report, f"ignored key {key}")
    before = [dict(role="system", content=row["system"])] if row.get("system") else []
    before += [dict(role=role, content=text) for two in row.get("history", [])
               for role, text in zip(("user", "assistant"), two)]
    return parse_turns(before + turns, need_reply, report)


def pair(row, ask, reply):
    """The turns of a row that has a question under the key `ask` and its answer under `reply`."""
    if isinstance(row[ask], list):  # TRL: both are lists of turns
        return row[ask] + row.get(reply, [])
    options = row.get("options", {})
    if isinstance(options, list):
        options = dict(zip("ABCDEFGHIJKLMNOPQRSTUVWXYZ", options))
    parts = [row.get("context"), string(row[ask], ask), row.get("input"),
             "\n".join(f"{letter}. {text}" for letter, text in options.items())]
    turns = [dict(role="user", content="\n\n".join(filter(None, parts)))]
    if row.get(reply):
        turns.append({**row, "role": "assistant", "content": row[reply],
                      "worked": ask in ("question", "problem")})
    return turns


def parse_turns(rows, need_reply, report):
    """A list of {"role", "content", ...} -> list of Turn. Flags and errors: see parse_row."""
    turns, end = [], ""  # end: why it ends with an earlier answer
    for row in rows:
        if not isinstance(row, dict):
            raise BadRow("a turn that is not a JSON object", row)
        name, content = row.get("role", row.get("from")), row.get("content", row.get("value"))
        if name in ("tool", "function") or row.get("tool_calls") or row.get("function_call"):
            end = "a turn that uses tools"
        elif str(name) not in ROLES:
            raise BadRow("unknown role", name)
        elif isinstance(content, list):
            if any(part.get("type") != "text" for part in content):
                end = "a part that is not text"
            content = "".join(part.get("text", "") for part in content)
        if end:
            break
        turn = Turn(ROLES[name], string(content, "content"))
        if turn.role == "assistant":
            thought = next((string(row[key], key) for key in THOUGHTS if row.get(key)), None)
            read = parse_worked_answer if row.get("worked") else parse_response_text
            turn = read(content, thought)
            turn.learned = row.get("weight", 1) != 0
            if not (turn.content.strip() or turn.answer):
                raise BadRow("an empty answer")
        if need_reply and turn.role == "user" and not turn.content.strip():
            raise BadRow("a user turn without text")
        if turn.content or turn.role != "system":
            turns.append(turn)
    while (need_reply or end) and turns and turns[-1].role != "assistant":
        end = end or "a last turn without an answer"
        turns.pop()
    if not turns:
        raise BadRow(f"a conversation that does not end with an answer: {end or 'it is empty'}")
    if end:
        note(report, f"conversations cut at {end}")
    return turns


def parse_worked_answer(text, thought):
    """GSM8K's answer: steps, ####, final answer. Without #### and tags, all of it is the answer."""
    steps, hashes, answer = text.rpartition("####")
    if hashes and "\n" not in answer.strip():  # otherwise a Markdown heading: "#### Step 1"
        steps = re.sub(r"<<[^<>]*=[^<>]*>>", "", steps)  # calculator notes: <<48/2=24>>
        return Turn("assistant", "", steps.strip() or None, answer.strip())
    turn = parse_response_text(text, thought)
    return turn if turn.answer is not None else Turn("assistant", "", None, text.strip())


def parse_response_text(content, thought=None):
    """The text of an assistant turn -> Turn, split at its tags. BadRow if a tag is left over.
    thought: a chain of thought that had its own key. Tags inside it stay text."""
    for token in STOP_TOKENS:  # a server may leave its stop token in the text
        if content.rstrip().endswith(token):
            content = content.rstrip().removesuffix(token)
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


def string(value, name):
    """Return the value. BadRow if it is not a string, or if UTF-8 cannot encode it."""
    if not isinstance(value, str):
        raise BadRow(f"{name} is not a string", value)
    if half := re.search("[\ud800-\udfff]", value):
        raise BadRow("half of a surrogate pair (an emoji that was cut in two?)", ascii(half[0]))
    return value


def is_text(path):
    return any(file.suffix.lower() == ".txt" for file in data_files(path))


def chunks(path, limit=0):
    """Yield (file, number of the first line, lines as bytes) for each 4 MB. limit: only N rows."""
    check(not (limit and is_text(path)), f"{show(path)}: plain text has no rows for --documents")
    left = limit or float("inf")
    for source in data_files(path):
        check_exists(source, "bash speedrun.sh makes the default data")
        check(source.is_file(), f"{show(path)} has no .txt and no .jsonl file")
        with open(source, "rb") as file:
            kinds, most = (KINDS, CHUNK) if is_text(source) else (KINDS | JSON_KINDS, -1)
            for begin, kind in kinds.items():
                check(not re.match(begin, file.peek(1), re.DOTALL),
                      f"{show(source)} is {kind.format(shlex.quote(show(source)))}")
            first, lines, size = 1, [], 0
            while left and (line := file.readline(most)):
                if most == CHUNK and not line.endswith(b"\n"):  # do not cut inside a character
                    while 0x80 <= (file.peek(1) or b"\0")[0] < 0xC0:
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
                text = line.decode().removeprefix("\ufeff").replace("\r\n", "\n")
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
        if "".join(texts).strip():
            yield f"{name}:{first}", "".join(texts)


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
    """Document -> (ids, mask), two lists of the same length. The mask is 1 if a token is learned.
    Plain text is learned whole, with <end>. In a conversation, the assistant's words and <end> are.
    Its role token is not, because it ends the prompt. target "cot": <think>...</think>
    <answer>...</answer>. "answer": the same without the thought. "full": plain text, no tags."""
    t, ids, mask = tokenizer, [], []
    if isinstance(document, str):
        ids = t.encode(document) + [t.end]
        return ids, [1] * len(ids)
    for turn in document:
        body = [t.answer, *t.encode(turn.answer), t.end_answer] if turn.answer is not None \
            else t.encode(turn.content)
        if turn.answer is not None and target == "full":
            gap = "\n" if "\n" in turn.answer else "\n#### "  # as GSM8K, if one line
            body = t.encode(turn.answer if turn.think is None else turn.think + gap + turn.answer)
        elif turn.think is not None and target == "cot":
            body = [t.think, *t.encode(turn.think), t.end_think, *body]
        body = [*body, t.end]
        learned = 1 if turn.role == "assistant" and turn.learned else 0
        ids += [getattr(t, turn.role), *body]
        mask += [0] + [learned] * len(body)
    return ids, mask


def forms(document, target):
    """The targets for encode_document, one for each training example. multi: "cot" and "answer".
    mixed: one of these, by a hash of the question, so that all its answers have the same target."""
    if target not in ("multi", "mixed"):
        return [target]
    if isinstance(document, str) or all(turn.think is None for turn in document):
        return ["cot"]  # both targets would be the same
    prompt = "\n".join(turn.content for turn in document)
    half = hashlib.sha256(prompt.encode()).digest()[0] % 2
    return ["cot", "answer"] if target == "multi" else [("cot", "answer")[half]]
