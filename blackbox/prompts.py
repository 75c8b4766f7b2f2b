"""Make more varied prompts: change a share of the seed prompts, each by one operation.

    python blackbox/prompts.py           # out/data/prompts.jsonl, one for each seed, CPU, about 2 s
    python blackbox/prompts.py --input mine.jsonl --operations typos,injection,long

A student is only as robust as the text that it has seen. Seeds are the stories of the distill split
or your own prompts, in any format of dataset/formats.py, with or without an answer.

    typos, upper, no_punctuation    as in dataset/suites.py
    long                            sentences that do not matter come first
    format_trap                     the prompt is inside code, JSON, Markdown, HTML or tags
    injection                       the prompt contains instructions of somebody else
    empty                           only white space or a punctuation mark; the answer is unknown
                                    Only for stories:
    invented                        made-up names and things (English)
    order, paraphrase               the question comes first; other sentences
    distractor, broader             one more sentence, with a number; another topic, such as points
    other_language                  Chinese instead of English, English instead of Chinese
                                    Only for stories, and the answer changes:
    negation                        one operation is taken back
    unit                            the question asks for another unit, such as grams or crates
    boundary                        the start is 1 or 50 to 99, or one number is 0 or the total
    deeper                          one more operation

Each row has an "operation" ("none": unchanged), a "source" (the seed's id, or FILE:LINE) and a
"label". With "kept" and "changed" the last turn is the right answer, without steps. With "teacher"
the answer is unknown, and the last turn is the user's.
What the suites test stays unseen: no reserved sentence, name or object, at most 4 operations, no
total above 99, no seed from a suite, val or test. Only some kinds of change are the same.
"""
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, between, check, command, lock, run, show, write_file
from dataset import stories, suites
from dataset.formats import BadRow, Turn, bad_lines_text, is_text, parse_row, read_documents
from dataset.stories import SPACE, fields, kinds_of, operands, running_totals, tell
from dataset.suites import reworded, sentences, text_of
from dataset.verify import known_answer, turn_row
from metrics import counted, json_lines

TEXTS = json.loads((Path(__file__).parent / "texts/prompts.json").read_text(encoding="utf-8"))
REAL = {word.lower() for pair in stories.NAMES["en"] + stories.OBJECTS["en"] for word in pair}
PATIENCE = 500  # draws at most to find a question of the distill split (16 in 100 are)
# Code, LaTeX, links, tables: one changed letter makes another prompt.
FRAGILE = re.compile(r"[\\`{}<>|=@#_]|://|www\.")


@dataclass
class Config:
    input: str = OUT / "data/stories/distill.jsonl"  # seeds: stories, or prompts in any format
    out: str = OUT / "data/prompts.jsonl"  # the new prompts, one for each seed
    operations: str = "typos,invented,no_punctuation,order"  # from the list above; equally likely
    share: float = 0.5       # share of the prompts to change (0.2 to 0.8)
    seed: int = 0            # random seed
    skip_bad_lines: bool = False  # count bad lines of the input and go on
    fresh: bool = False      # replace existing files


def question_of(row, report=None):
    """A row of any format -> (turns up to the user's last one, known answer or None), or BadRow."""
    turns = parse_row(row, need_reply=False, report=report)
    if isinstance(turns, str):
        raise BadRow("plain text is no prompt", turns)
    known = known_answer(turns.pop()) if turns[-1].role == "assistant" else None
    if not turns or turns[-1].role != "user":
        raise BadRow("no question: a user's turn must be the last")
    return turns, known


# Operations: (rng, row, story) -> row, or None. row: question and reply; story: see parse_seed.

def long(rng, row, story):
    """Put filler first. A story still fits into 512 tokens. Other prompts become pages long."""
    length = rng.randint(300, 650) if "key" in story else rng.randint(3_000, 10_000)
    told, gap = [], " " if "key" in story else "\n\n"
    while sum(map(len, told)) < length:
        told.append(rng.choice([s for s in TEXTS["FILLER"][story["lang"]] if s not in told[-3:]]))
    return reworded(row, SPACE[story["lang"]].join(told) + gap + text_of(row))


def format_trap(rng, row, story):
    frame, text = rng.choice(TEXTS["FORMATS"]), text_of(row)
    values = dict(text=text, json=json.dumps(text, ensure_ascii=False))
    return reworded(row, re.sub(r"\{(text|json)\}", lambda match: values[match[1]], frame))


def injection(rng, row, story):
    frame = rng.choice(TEXTS["INJECTIONS"][story["lang"]]).replace("{n}", str(rng.randint(2, 99)))
    return reworded(row, frame.replace("{text}", text_of(row)))


def invented_word(rng):
    """A word of two or three syllables, such as "tiblin", that the stories do not have."""
    syllable = "bdfgklmnprstvz", "aeiou", ["", "", "b", "l", "n", "r", "s"]
    while True:
        word = "".join(map(rng.choice, syllable * rng.choice([2, 2, 3])))
        if word not in REAL and word + "s" not in REAL:
            return word


def invented(rng, row, story):
    """Made-up name and thing: Zavo has 3 tiblins (Berko 1958 asked children about "wugs")."""
    if story["lang"] == "en":
        thing = invented_word(rng)
        name = invented_word(rng).title(), rng.choice(["he", "she"])
        return tell(**{**story, "name": name, "thing": (thing, thing + "s")})


def with_sentences(row, told, answer):
    """A row of these sentences and answer. It lacks skeleton and numbers: it fits no template."""
    new = reworded(row, SPACE[row["lang"]].join(told))
    reply = dict(role="assistant", content=str(answer))
    return dict(conversations=[new["conversations"][0], reply], id=new["id"], lang=row["lang"])


def paraphrase(rng, row, story, broader=False):
    """Tell every sentence in words that the templates do not have, or in those of a topic."""
    told, wordings = [], TEXTS["WORDINGS"][story["lang"]]
    topic = rng.choice(TEXTS["TOPICS"][story["lang"]]) if broader else None
    for kind, n in zip(kinds_of(story["key"]), [*story["numbers"], 0]):
        text = topic[kind] if topic else rng.choice(wordings[kind])
        told.append(text.format(**fields(story["lang"], story["name"], story["thing"], kind, n)))
    return with_sentences(row, told, row["conversations"][1]["content"])


def deeper(rng, row, story):
    """Add an operation at the end, if the story has at most three."""
    for _ in range(PATIENCE if row["ops"] < stories.LONGEST_TRAINED else 0):
        new = suites.longer(rng, row, story, row["ops"] + 1)
        if stories.split_of(new) == "distill":  # not a test question with other names
            return new


def boundary(rng, row, story):
    """Other numbers: the start is 1 or 50 to 99, or another one is 0 or equals the total."""
    ops = kinds_of(story["key"][1:-1])
    for _ in range(PATIENCE):
        edge, place = rng.choice(["zero", "one", "equal", "huge"]), rng.randrange(len(ops))
        numbers = [rng.randint(*{"one": (1, 1), "huge": (50, 99)}.get(edge, (2, 20)))]
        for i, op in enumerate(ops):
            total = running_totals(ops[:i], numbers)[-1]
            choices = operands(op, total, large=False)
            if i == place and edge in ("zero", "equal"):
                n = 0 if edge == "zero" else total
                choices = [n] if op in ("add", "sub") and n <= 20 else []
            if not choices:
                break
            numbers.append(rng.choice(choices))
        else:
            new = tell(**{**story, "numbers": numbers})
            if "are 1 " not in text_of(new) and stories.split_of(new) == "distill":
                return new  # never "There are 1 pear"


def negation(rng, row, story):
    """Take back one operation after it is told. The others must still give whole numbers to 99."""
    *told, question = sentences(row)
    ops, (start, *numbers) = kinds_of(story["key"][1:-1]), story["numbers"]
    for i in rng.sample(range(len(ops)), len(ops)):
        left, kept = ops[:i] + ops[i + 1:], numbers[:i] + numbers[i + 1:]
        totals = running_totals(left, [start, *kept])
        if all(n in operands(op, total, large=False) for op, total, n in zip(left, totals, kept)):
            told.insert(i + 2, rng.choice(TEXTS["TAKEN_BACK"][story["lang"]]))
            return with_sentences(row, [*told, question], totals[-1])


def unit(rng, row, story):
    """Ask for grams or crates. That is one more operation; the story may have at most three."""
    total = int(row["conversations"][1]["content"])
    fitting = [(op, n) for op in ("mul", "div") for n in operands(op, total, large=False)]
    if fitting and row["ops"] < stories.LONGEST_TRAINED:
        op, n = rng.choice(fitting)
        question = rng.choice(TEXTS["UNITS"][story["lang"]][op])
        question = question.format(**fields(story["lang"], story["name"], story["thing"], op, n))
        answer = running_totals([op], [total, n])[-1]
        return with_sentences(row, [*sentences(row)[:-1], question], answer)


OF_LETTERS = {name: suites.CHANGES[name] for name in ("typos", "no_punctuation", "upper")}
OF_ANY_PROMPT = dict(OF_LETTERS, long=long, format_trap=format_trap, injection=injection,
                     empty=lambda rng, row, story: reworded(row, rng.choice(TEXTS["EMPTY"])))
OPERATIONS = dict(OF_ANY_PROMPT, invented=invented, order=suites.order, paraphrase=paraphrase,
                  distractor=partial(suites.distractor, texts=TEXTS["ASIDES"]),
                  broader=partial(paraphrase, broader=True),
                  other_language=partial(suites.other_language, split="distill"),
                  negation=negation, unit=unit, boundary=boundary, deeper=deeper)
LABEL = dict.fromkeys(["none", *OPERATIONS], "kept") | dict.fromkeys(
    ["negation", "unit", "boundary", "deeper"], "changed") | dict(empty="teacher")


def parse_seed(row):
    """A row of any format -> (row of question and reply, story, earlier turns, right answer or
    None), or BadRow. story: the arguments of `tell`; else the language, an empty name."""
    (*before, question), answer = question_of(row)
    if row.get("suite") or row.get("skeleton") and row.get("numbers") and (
            row.get("ops") in (5, 6) or stories.split_of(row) in ("val", "test")):
        raise BadRow("a question of val.jsonl, test.jsonl or a suite: it is for evaluation only")
    if story := suites.drawn(row):
        return row, story, [], answer
    chinese = len(re.findall("[\u4e00-\u9fff]", question.content))
    lang = "zh" if chinese > len(re.findall("[A-Za-z]+", question.content)) else "en"
    reply = turn_row(Turn("assistant", "", None, answer or ""))
    row = dict(conversations=[turn_row(question), reply], id=row.get("id"), lang=lang)
    return row, dict(lang=lang, name=("",)), [turn_row(turn) for turn in before], answer


def change(rng, row, story, operations, seen, missed):
    """Try operations until one changes the row -> (its name, new row), or ("none", row). `missed`
    counts those that did not apply or gave a text that is already in `seen`."""
    text = text_of(row)
    for name in rng.sample(operations, len(operations)):
        applies = "key" in story or name in OF_ANY_PROMPT and not (
            name in OF_LETTERS and FRAGILE.search(text))
        new = OPERATIONS[name](rng, row, story) if applies else None
        if new and text_of(new) != text and text_of(new) not in seen:
            seen.add(text_of(new))
            return name, new
        missed[name] += 1
    return "none", row


def main(cfg):
    operations, out, report = cfg.operations.split(","), Path(cfg.out), {}
    check(set(operations) <= set(OPERATIONS),
          f"--operations {cfg.operations}: must be one or more of {','.join(OPERATIONS)}")
    between(cfg, 0, 1, "share")
    check(Path(cfg.input).resolve() not in (out.resolve(), *out.resolve().parents),
          "--out must not be a part of the input")
    check(not is_text(cfg.input), f"{show(cfg.input)}: plain text has no rows; name a .jsonl file")
    rng, seen, missed, rows = random.Random(cfg.seed), set(), Counter(), []
    for place, found in read_documents(cfg.input, cfg.skip_bad_lines, report, parse=parse_seed):
        row, story, before, answer = found
        known = isinstance(row["id"], (str, int))
        source = row["id"] = str(row["id"]) if known else Path(place).name
        drawn = operations if rng.random() < cfg.share else []
        name, row = change(rng, row, story, drawn, seen, missed)
        label = LABEL[name] if answer else "teacher"
        question, reply = row["conversations"]
        right = dict(role="assistant", content=reply["content"])  # without steps
        turns = [*before, question] + [right] * (label != "teacher")
        rows.append(dict(row, conversations=turns, operation=name, source=source, label=label))
    if report:
        print(f"left out: {bad_lines_text(report)}")
    if missed:
        print(f"did not apply: {counted(missed)}")
    check(rows, f"{show(cfg.input)} contains no prompt")
    data = json_lines(rows).encode(errors="replace")  # an id may have half a surrogate pair
    with lock(out, wait=True):
        check(cfg.fresh or not out.exists() or out.read_bytes() == data,
              f"{show(out)} exists with other rows; choose another --out, or --fresh")
        write_file(out, data)
    for key in ("operation", "label"):
        print(f"{key}: {counted(Counter(row[key] for row in rows))}")
    traces = show(out.with_name("traces-" + out.name))
    print(f"{show(out)}: {len(rows):,} prompts\nnext:",
          command("blackbox/generate.py", input=out, out=traces))


if __name__ == "__main__":
    run(main, Config)
