"""Which of the teacher's rows to train on: rules that say why a row is dropped, and a card.

    python blackbox/filter.py     # out/data/traces.jsonl -> out/data/filtered.jsonl, CPU, about 6 s
    python blackbox/filter.py --input my.jsonl --out kept.jsonl --against val.jsonl,test.jsonl

Last line: next: python train_distill_reason.py ...

Reads every .jsonl format of dataset/formats.py, and the OUT.all.jsonl of generate.py. A kept line
goes to OUT byte for byte. A dropped one goes to OUT.dropped.jsonl with "dropped", the first of
these reasons, and "of", the line that it repeats. OUT.card.md counts both.

    truncation  finish_reason or verdict say that the text was cut off, or a tag is open
    format      verdict "format", or tags that formats.py cannot take apart
    answer      no answer, or a verdict that it is wrong; in a row of generate.py (keys operation,
                source, label) also another answer than "reference"
    length      prompt and answer have more than 20,000 characters
    repetition  a loop: half of the runs of four words stood before in the same answer
    language    the answer is written in another script than the prompt
    overlap     an evaluation question, or 13 words in a row of one (Brown et al. 2020, appendix C),
                if the numbers agree, too: stories share sentences
    exact       prompt and answer stood before, in any case and with any spaces
    near        nearly so: see blackbox/near.py

Duplicates come last, so a row that is dropped for another reason takes no other with it. --off
length,language leaves rules out: for long chains of thought, for translations. A French answer to
an English question passes: its script is the same. A row takes about 6 KB of memory.
"""
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, check, command, run, show, write_file
from blackbox.client import finished
from blackbox.near import UNSPACED, find_copies, numbers, words
from dataset.formats import BadRow, Turn, bad_lines_text, is_text, parse_row, read_documents, texts
from dataset.verify import answer_in, verdict
from metrics import markdown, repetition


@dataclass
class Config:
    input: str = OUT / "data/traces.jsonl"  # rows in any format of dataset/formats.py
    out: str = OUT / "data/filtered.jsonl"  # the kept lines
    against: str = ""             # FILE,FILE: evaluation questions; empty: those of the stories
    off: str = ""                 # rules to leave out; commas between
    skip_bad_lines: bool = False  # count bad lines and go on, instead of stopping
    fresh: bool = False           # replace what is there


REASONS = ("truncation", "format", "answer", "length", "repetition", "language", "overlap",
           "exact", "near")
VERDICTS = {"truncated": "truncation", "format": "format", "no answer": "answer",
            "wrong answer": "answer", "refused": "answer", "failed": "answer",
            "too short": "length"}  # of generate.py; the others drop nothing
FAULTS = {"a tag that stands": "format", "an empty answer": "answer",  # how a BadRow begins
          "a conversation that does not end": "answer", "a user turn without text": "format"}
HEADER = {"seed", "temperature", "max_new_tokens"}  # keys of the first line of an OUT.all.jsonl
MAX_LENGTH = 20_000                          # characters of a row
RUN, RUN_UNSPACED, INSTRUCTION = 13, 26, 20  # words; letters; questions that share a run
NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\\[A-Za-z]+|https?://\S+", re.DOTALL)
# A loop is of words (hahahaha, too) or numbers; a row of a matrix is one piece, a mark is none.
PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{1,16}|\d(?:(?![^\W\d_])[^\n=]){0,15}")


@dataclass
class Row:
    """A line of the input. Plain text is an answer without a prompt."""
    keys: dict        # its JSON object
    turns: list       # of Turn; the last one is the assistant's; [] if `reason` is known without
    reason: str = ""  # why it is dropped
    of: str = ""      # the line that it repeats
    number: int = 0   # of its line

    def sides(self):
        """(prompt without system turns, answer) as texts."""
        before = [turn for turn in self.turns[:-1] if turn.role != "system"]
        return "\n".join(texts(before)), "\n".join(texts(self.turns[-1:]))

    def replies(self):
        """Thoughts and answers of all the assistant's turns, each for itself."""
        return texts([turn for turn in self.turns if turn.role == "assistant"])


def read_row(row, off):
    """A line of JSON -> Row, judged by itself; None for the header of generate.py; or BadRow."""
    keys = row if isinstance(row, dict) else {}
    cut_off = not finished(keys.get("finish_reason"))
    reason = "truncation" if cut_off else VERDICTS.get(str(keys.get("verdict")))
    if reason and reason not in off:
        return Row(keys, [], reason)
    if isinstance(keys.get("conversations"), list) and "content" in keys:  # OUT.all.jsonl
        reply = {name: keys.get(name) for name in ("content", "reasoning_content")}
        row = {"conversations": [*keys["conversations"], dict(reply, role="assistant")]}
    try:
        document = parse_row(row)
    except BadRow as error:
        if HEADER <= keys.keys():
            return None
        reason = next((FAULTS[fault] for fault in FAULTS if error.reason.startswith(fault)), None)
        if reason == "format" and "truncation" not in off and unfinished(json.dumps(row)):
            reason = "truncation"
        if not reason or reason in off:
            raise
        return Row(keys, [], reason)
    found = Row(keys, [Turn("assistant", document)] if isinstance(document, str) else document)
    found.reason = next((name for name, bad in RULES.items() if name not in off and bad(found)), "")
    return found


def unfinished(text):
    """Is a tag open at the end?"""
    return any(text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>") for tag in ("think", "answer"))


def wrong(row):
    """Another answer than "reference"? A verdict that the row brings is believed."""
    keys, reference = row.keys, row.keys.get("reference")
    ours = isinstance(reference, str) and {"operation", "source", "label"} <= keys.keys()
    if not ours or keys.get("verdict") == "ok":
        return False
    last = row.turns[-1]
    answer = answer_in(last.content, reference) if last.answer is None else last.answer
    return verdict(reference, answer, True, True) != "ok"


def loops(row):
    """Are half of its runs of four repeated, in a whole text or in its last 64 pieces?"""
    found = [PIECES.findall(text) for text in row.replies()]
    return any(max(repetition(pieces), repetition(pieces[-64:])) > 0.5
               for pieces in found if len(pieces) >= 24)


def scripts(text):
    """Letters by script, such as LATIN, of the first 20,000 characters without LaTeX, code, links.
    One of Chinese, Japanese or Korean says as much as three of an alphabet."""
    found = Counter()
    for letter, n in Counter(NO_LANGUAGE.sub(" ", text[:20_000])).items():
        if letter.isalpha():
            script = unicodedata.name(letter, "").partition(" ")[0]
            found[script] += n * (3 if script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else 1)
    return found


def foreign(row):
    """Is a text of the answer in a script that the prompt hardly has, and hardly in its own?"""
    prompt = scripts(row.sides()[0])
    for reply in map(scripts, row.replies()):
        a, b = (max(found, key=found.get, default="") for found in (prompt, reply))
        if (prompt[a] >= 6 and reply[b] >= 12 and prompt[b] < 0.2 * prompt.total()
                and reply[a] < 0.2 * reply.total()):
            return True


RULES = dict(truncation=lambda row: any(map(unfinished, row.replies())), answer=wrong,
             length=lambda row: sum(map(len, texts(row.turns))) > MAX_LENGTH,
             repetition=loops, language=foreign)


def questions_in(document):
    """What the user says, in all and turn by turn; a plain text is one question."""
    turns = [] if isinstance(document, str) else document
    prompts = [turn.content for turn in turns if turn.role == "user"] or texts(document)
    return ["\n".join(prompts), *prompts]


def runs(found):
    """Words -> all runs of 13 of them; of 26 letters in Chinese, where a letter is half a word."""
    unspaced = len(re.findall(f"[{UNSPACED}]", "".join(found)))
    n = RUN_UNSPACED if 2 * unspaced > len(found) else RUN
    return [" ".join(found[i:i + n]) for i in range(len(found) - n + 1)]


def read_questions(paths):
    """Evaluation files -> {a question, or a run of one: [(FILE:LINE, numbers of the question)]}. A
    run that more than 20 questions share is an instruction ("Let us think step by step ...")."""
    known = defaultdict(list)
    for path in paths:
        for line, document in read_documents(path):
            found = words(questions_in(document)[0])
            for piece in {" ".join(found), *runs(found)}:
                known[piece].append((f"{show(path)}:{line}", numbers(found)))
    return {piece: asking for piece, asking in known.items() if len(asking) <= INSTRUCTION}


def leak(known, row):
    """FILE:LINE of an evaluation question that the row gives away, or None."""
    pieces = [(found, [" ".join(found)]) for found in map(words, questions_in(row.turns))]
    pieces += [(found, runs(found)) for found in map(words, row.sides())]
    for found, keys in pieces:
        own = numbers(found)
        for place, others in (held for key in keys for held in known.get(key, ())):
            if own in others or others in own:
                return place


def drop_copies(rows, off, name):
    """Give rows that repeat an earlier one a reason, and a place in the file of this name."""
    first = {}
    for row in rows if "exact" not in off else ():
        key = str([(turn.role, "\n".join(texts([turn])).casefold().split()) for turn in row.turns])
        before = first.setdefault(key, row)
        if before is not row:
            row.reason, row.of = "exact", f"{name}:{before.number}"
    rows, gated = [row for row in rows if not row.reason], []
    for row in rows:  # another system turn, or a prompt that was changed on purpose, is no copy
        system = [turn.content for turn in row.turns if turn.role == "system"]
        gated.append((str([row.keys.get("operation"), system]), *row.sides()))
    for copy, of in (find_copies(gated) if "near" not in off else {}).items():
        rows[copy].reason, rows[copy].of = "near", f"{name}:{rows[of].number}"


def write_all(cfg, rows, kept, counts, asked):
    """OUT.dropped.jsonl, the card, and last OUT: if OUT is there, all three are."""
    lines, dropped = Path(cfg.input).read_bytes().split(b"\n"), []
    for row in (row for row in rows if row.reason):
        more = dict(dropped=row.reason) | (dict(of=row.of) if row.of else {})
        line = lines[row.number - 1].strip().removeprefix(b"\xef\xbb\xbf")
        dropped.append(line[:-1] + b", " + json.dumps(more).encode()[1:] + b"\n")
    body = b"".join(lines[row.number - 1] + b"\n" for row in kept)
    sizes = np.array([[len(side) for side in row.sides()] for row in kept]).T  # (2, N)
    lengths = [(name, *(f"{value:,.0f}" for value in np.percentile(column, [0, 50, 95, 100])))
               for name, column in zip(("prompt", "answer"), sizes)]
    shares = [(reason, f"{n:,}", f"{n / len(rows):.1%}") for reason, n in counts.items()]
    out = Path(cfg.out)
    made = out.exists() and not cfg.fresh
    check(not made or out.read_bytes() == body,
          f"{show(out)} is there with other rows; choose another --out, or --fresh")
    write_file(f"{out}.dropped.jsonl", b"".join(dropped))
    write_file(f"{out}.card.md", "\n\n".join([
        f"# {out.name}: {len(kept):,} of {len(rows):,} rows are kept",
        markdown("dropped by | rows: | share:", shares),
        markdown("characters | least: | median: | 95 %: | most:", lengths),
        f"Input: {show(cfg.input)}. Questions kept out: {asked or None}\n"]))
    write_file(out, body)
    print(f"{'already made' if made else 'made'}: {show(out)}, {len(kept):,} of {len(rows):,} rows")


def main(cfg):
    """Judge each row, compare them, write, describe."""
    off, report, rows = set(filter(None, cfg.off.split(","))), {}, []
    check(off <= set(REASONS), f"--off {cfg.off}: must be some of {','.join(REASONS)}")
    for path in (cfg.input, cfg.out):
        check(not is_text(path), f"{show(path)}: plain text has no rows; name a .jsonl file")
    stories = [OUT / f"data/stories/{name}.jsonl" for name in ("val", "test")]
    against = cfg.against.split(",") if cfg.against else [path for path in stories if path.exists()]
    outputs = {Path(cfg.out + end).resolve() for end in ("", ".dropped.jsonl", ".card.md")}
    for path in (cfg.input, *against):
        check(Path(path).resolve() not in outputs, f"--out {cfg.out} would replace {show(path)}")
    known = read_questions(against if "overlap" not in off else [])
    for number, row in read_documents(cfg.input, cfg.skip_bad_lines, report,
                                      lambda keys: read_row(keys, off)):
        check(row or number == 1, f"{show(cfg.input)}:{number}: a header of generate.py; delete it")
        if row:
            row.number = number
            if not row.reason and (place := leak(known, row)):
                row.reason, row.of = "overlap", place
            rows.append(row)
    drop_copies([row for row in rows if not row.reason], off, Path(cfg.input).name)
    found = Counter(row.reason for row in rows)
    counts = {reason: found[reason] for reason in REASONS if reason not in off}
    print(" | ".join([f"{reason} {n:,}" for reason, n in counts.items()]))
    if report:
        print(bad_lines_text(report))
    kept = [row for row in rows if not row.reason]
    check(kept, f"no row of {show(cfg.input)} is kept")
    write_all(cfg, rows, kept, counts, ", ".join(map(show, against)))
    script = "reason" if any(row.turns[-1].think for row in kept) else "responses"
    val = None if "input" in cfg.given else OUT / "data/stories/val.jsonl"
    following = command(f"train_distill_{script}.py", name=f"student-{Path(cfg.out).stem}",
                        data=cfg.out, val=val)
    if cfg.input.endswith(".all.jsonl"):  # raw rows are to be looked at, not to train on
        following = command("blackbox/filter.py", input=cfg.input.removesuffix(".all.jsonl"))
    print("next:", following)


if __name__ == "__main__":
    run(main, Config)
