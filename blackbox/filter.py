"""Choose the teacher's rows to train on. A dropped row gets a reason, and a report counts them.

    python blackbox/filter.py     # out/data/traces.jsonl -> out/data/filtered.jsonl, CPU, about 6 s
    python blackbox/filter.py --input my.jsonl --out kept.jsonl --against val.jsonl,test.jsonl

It reads every .jsonl format of dataset/formats.py, and OUT.all.jsonl of generate.py. A kept line is
copied to OUT byte for byte. A dropped one goes to OUT.dropped.jsonl. There "dropped" is the first
reason that applies, and "of" is the line that it repeats. OUT.card.md counts both kinds.

    truncation  finish_reason or verdict says that the text was cut off, or a tag is not closed
    format      the verdict is "format", or formats.py cannot read the tags
    answer      there is no answer, or the verdict says that it is wrong. In rows of generate.py
                (keys operation, source, label) the answer must also equal "reference"
    length      prompt and answer together have more than 20,000 characters
    repetition  a loop: over half of the runs of four words occurred before in the same answer
    language    the answer is in another script (alphabet) than the prompt
    overlap     the prompt is an evaluation question, or the row has 13 words in a row of one (Brown
                et al. 2020, appendix C). Numbers must agree, because stories share sentences
    exact       prompt and answer equal those of an earlier row, except for case and spaces
    near        they are nearly equal: see blackbox/near.py

Copies are searched last, so a copy of a row that was dropped for another reason can be kept."""
import json
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, check, command, data_files, run, show, write_file
import numpy as np

from blackbox.client import finished
from blackbox.near import UNSPACED, find_copies, numbers, words
from dataset.formats import BadRow, Turn, bad_lines_text, is_text, parse_row, read_documents
from dataset.verify import answer_in, verdict
from metrics import markdown, repetition
from tokenizer import Tokenizer


@dataclass
class Config:
    input: str = OUT / "data/traces.jsonl"  # rows in any format of dataset/formats.py
    out: str = OUT / "data/filtered.jsonl"  # the kept lines
    against: str = ""             # FILE,FILE: evaluation questions; empty: val, test of the stories
    off: str = ""                 # rules to switch off, commas between, such as length,language
    skip_bad_lines: bool = False  # count bad lines and go on, instead of stopping
    fresh: bool = False           # replace existing files


REASONS = "truncation format answer length repetition language overlap exact near".split()
VERDICTS = dict.fromkeys(["no answer", "wrong answer", "refused", "failed"], "answer") | {
    "truncated": "truncation", "format": "format", "too short": "length"}  # others drop nothing
FAULTS = {"a tag that stands": "format", "an empty answer": "answer",  # how a BadRow begins
          "a conversation that does not end": "answer", "a user turn without text": "format"}
HEADER = {"seed", "temperature", "max_new_tokens"}  # keys of the first line of OUT.all.jsonl
MAX_LENGTH = 20_000                          # characters of a row
RUN, RUN_UNSPACED, INSTRUCTION = 13, 26, 20  # words; letters; questions that may share a run
NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|\\[A-Za-z]+|https?://\S+", re.DOTALL)
# Pieces of a loop: words (cut after 16 letters: hahaha), Chinese letters, rows of numbers.
PIECES = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\d_]{1,16}|\d(?:(?![^\W\d_])[^\n=]){0,15}")


def texts(document):
    """All texts of a document as a list, without control tokens."""
    turns = [Turn("user", document)] if isinstance(document, str) else document
    return [part for turn in turns for part in (turn.content, turn.think, turn.answer) if part]


@dataclass
class Row:
    """A line of the input. Plain text counts as an answer without a prompt."""
    keys: dict        # its JSON object
    turns: list       # of Turn, the last one the assistant's; [] if dropped before parsing
    reason: str = ""  # why it is dropped; "": it is kept
    of: str = ""      # FILE:LINE that it repeats
    place: str = ""   # FILE:LINE of this row

    def sides(self):
        """-> (prompt, answer) as texts. The prompt is all turns before the last, without system."""
        before = [turn for turn in self.turns[:-1] if turn.role != "system"]
        return "\n".join(texts(before)), "\n".join(texts(self.turns[-1:]))

    def replies(self):
        """-> the thoughts and answers of all assistant turns, as separate texts."""
        return texts([turn for turn in self.turns if turn.role == "assistant"])


def read_row(row, off):
    """JSON row -> Row, judged without other rows; None: a header of generate.py. Raises BadRow."""
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
    """True if a tag is opened and not closed."""
    return any(text.rfind(f"<{tag}>") > text.rfind(f"</{tag}>") for tag in ("think", "answer"))


def wrong(row):
    """True if a row of generate.py has another answer than "reference" and no verdict "ok"."""
    keys, reference = row.keys, row.keys.get("reference")
    ours = isinstance(reference, str) and {"operation", "source", "label"} <= keys.keys()
    if ours and keys.get("verdict") != "ok":
        last = row.turns[-1]
        answer = answer_in(last.content, reference) if last.answer is None else last.answer
        return verdict(reference, answer, True, True) != "ok"


def loops(row):
    """True if over half of the runs of four pieces are repeats, in a text or its last 64 pieces."""
    found = [PIECES.findall(text) for text in row.replies()]
    return any(max(repetition(p), repetition(p[-64:])) > 0.5 for p in found if len(p) >= 24)


def scripts(text):
    """Count letters by script, such as LATIN, without LaTeX, code and links, in the first 20,000
    characters. A Chinese, Japanese or Korean letter counts three, because it says as much."""
    found = Counter()
    for letter, n in Counter(NO_LANGUAGE.sub(" ", text[:20_000])).items():
        if letter.isalpha():
            script = unicodedata.name(letter, "").partition(" ")[0]
            found[script] += n * (3 if script in ("CJK", "HIRAGANA", "KATAKANA", "HANGUL") else 1)
    return found


def foreign(row):
    """True if under 20 % of the prompt is in a reply's script, and of the reply in the prompt's."""
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
    """-> [all user turns as one text, each user turn ...]. A plain text counts as one question."""
    turns = [] if isinstance(document, str) else document
    prompts = [turn.content for turn in turns if turn.role == "user"] or texts(document)
    return ["\n".join(prompts), *prompts]


def runs(found):
    """Words -> all runs of 13 words, as texts. In Chinese: of 26 letters (two are about a word)."""
    unspaced = len(re.findall(f"[{UNSPACED}]", "".join(found)))
    n = RUN_UNSPACED if 2 * unspaced > len(found) else RUN
    return [" ".join(found[i:i + n]) for i in range(len(found) - n + 1)]


def read_questions(paths):
    """Evaluation files -> {a question or one of its runs: [(FILE:LINE, the question's numbers)]}. A
    run of over 20 questions is left out: an instruction ("Let us think step by step ...")."""
    known = defaultdict(list)
    for path in paths:
        for place, document in read_documents(path):
            found = words(questions_in(document)[0])
            for piece in {" ".join(found), *runs(found)}:
                known[piece].append((place, numbers(found)))
    return {piece: asking for piece, asking in known.items() if len(asking) <= INSTRUCTION}


def leak(known, row):
    """-> FILE:LINE of an evaluation question that the row contains, or None. known: the above."""
    pieces = [(found, [" ".join(found)]) for found in map(words, questions_in(row.turns))]
    pieces += [(found, runs(found)) for found in map(words, row.sides())]
    for found, keys in pieces:
        own = numbers(found)
        for place, others in (held for key in keys for held in known.get(key, ())):
            if own in others or others in own:
                return place


def drop_copies(rows, off):
    """Set `reason` and `of` in rows that repeat an earlier one."""
    first = {}
    for row in rows if "exact" not in off else ():
        key = str([(turn.role, "\n".join(texts([turn])).casefold().split()) for turn in row.turns])
        before = first.setdefault(key, row)
        if before is not row:
            row.reason, row.of = "exact", Path(before.place).name
    rows, triples = [row for row in rows if not row.reason], []
    for row in rows:  # another system turn or operation: not a near copy
        system = [turn.content for turn in row.turns if turn.role == "system"]
        triples.append((str([row.keys.get("operation"), system]), *row.sides()))
    for copy, of in (find_copies(triples) if "near" not in off else {}).items():
        rows[copy].reason, rows[copy].of = "near", Path(rows[of].place).name


def write_all(cfg, rows, kept, counts, asked):
    """Write OUT.dropped.jsonl, OUT.card.md and last OUT: if OUT exists, all three are complete."""
    lines, dropped = {f"{show(file)}:{number}": line for file in data_files(cfg.input)
                      for number, line in enumerate(file.read_bytes().split(b"\n"), 1)}, []
    for row in (row for row in rows if row.reason):
        more = dict(dropped=row.reason) | (dict(of=row.of) if row.of else {})
        line = lines[row.place].strip().removeprefix(b"\xef\xbb\xbf")
        dropped.append(line[:-1] + b", " + json.dumps(more).encode()[1:] + b"\n")
    body = b"".join(lines[row.place] + b"\n" for row in kept)
    sizes = np.array([[len(side) for side in row.sides()] for row in kept]).T  # (2, N)
    lengths = [(name, *(f"{value:,.0f}" for value in np.percentile(column, [0, 50, 95, 100])))
               for name, column in zip(("prompt", "answer"), sizes)]
    shares = [(reason, f"{n:,}", f"{n / len(rows):.1%}") for reason, n in counts.items()]
    out = Path(cfg.out)
    made = out.exists() and not cfg.fresh
    check(not made or out.read_bytes() == body,
          f"{show(out)} exists with other rows; choose another --out, or --fresh")
    write_file(f"{out}.dropped.jsonl", b"".join(dropped))
    write_file(f"{out}.card.md", "\n\n".join([
        f"# {out.name}: {len(kept):,} of {len(rows):,} rows are kept",
        markdown("reason | dropped rows: | share:", shares),
        markdown("characters | shortest: | median: | 95 %: | longest:", lengths),
        f"Input: {show(cfg.input)}. Evaluation files: {asked or None}\n"]))
    write_file(out, body)
    print(f"{'already made' if made else 'made'}: {show(out)}, {len(kept):,} of {len(rows):,} rows")


def main(cfg):
    off, report, rows = set(filter(None, cfg.off.split(","))), {}, []
    check(off <= set(REASONS), f"--off {cfg.off}: must be one or more of {','.join(REASONS)}")
    for path in (cfg.input, cfg.out):
        check(not is_text(path), f"{show(path)}: plain text has no rows; name a .jsonl file")
    stories = [OUT / f"data/stories/{name}.jsonl" for name in ("val", "test")]
    against = cfg.against.split(",") if cfg.against else [path for path in stories if path.exists()]
    out = Path(cfg.out).resolve()
    places = {*out.parents, out, *(Path(f"{out}{end}") for end in (".dropped.jsonl", ".card.md"))}
    for path in (cfg.input, *against):
        check(Path(path).resolve() not in places, f"--out would replace a part of {show(path)}")
    known = read_questions(against if "overlap" not in off else [])
    for place, row in read_documents(cfg.input, cfg.skip_bad_lines, report,
                                     lambda keys: read_row(keys, off)):
        check(row or place.endswith(":1"), f"{place}: a header of generate.py; delete it")
        if row:
            row.place = place
            if not row.reason and (of := leak(known, row)):
                row.reason, row.of = "overlap", of
            rows.append(row)
    drop_copies([row for row in rows if not row.reason], off)
    found = Counter(row.reason for row in rows)
    counts = {reason: found[reason] for reason in REASONS if reason not in off}
    print(" | ".join([f"{reason} {n:,}" for reason, n in counts.items()]))
    if report:
        print(bad_lines_text(report))
    kept = [row for row in rows if not row.reason]
    check(kept, f"no row of {show(cfg.input)} is kept")
    write_all(cfg, rows, kept, counts, ", ".join(map(show, against)))
    script = "reason" if any(row.turns[-1].think for row in kept) else "responses"
    following = command(f"train_distill_{script}.py", name=f"student-{Path(cfg.out).stem}",
                        data=cfg.out, val="input" not in cfg.given and stories[0])
    text, model = "".join(sum((row.sides() for row in kept[:999]), ())), OUT / "tokenizer.model"
    # a tokenizer that spells most of a text in bytes has hardly more bytes than tokens
    if not model.exists() or len(text.encode()) < 1.3 * len(Tokenizer.load(model).encode(text)):
        following = command("tokenizer/train.py", cfg.out, out=OUT / f"{Path(cfg.out).stem}.model")
    if cfg.input.endswith(".all.jsonl"):  # raw rows are not for training
        following = command("blackbox/filter.py", input=cfg.input.removesuffix(".all.jsonl"))
    print("next:", following)


if __name__ == "__main__":
    run(main, Config)
