"""Prompts that cover more ground: seeds, a share of them changed, each by one operation.

    python blackbox/prompts.py            # out/data/prompts.jsonl, as many prompts, CPU, about 2 s
    python blackbox/prompts.py --input mine.jsonl --operations typos,injection,long

Last line: next: python blackbox/generate.py --input out/data/prompts.jsonl --out ...

A student is as robust as the text that it has seen. Seeds are the stories of the distill split, or
free prompts: yours, in any format of dataset/formats.py, with an answer or without.

    operation       the answer is  a story                                  a free prompt
    typos, upper, no_punctuation:  kept, as in dataset/suites.py            the same
    long            kept           after sentences that say nothing         the same, longer
    format_trap     kept           in code, JSON, Markdown, HTML, tags      the same
    injection       kept           with orders that somebody else gives     the same
    empty           unknown        white space, or a mark                   the same
    order           kept           the question first                       by the teacher
    paraphrase      kept           in other sentences                       by the teacher
    distractor      kept           one more sentence, with a number         by the teacher
    broader         kept           the same numbers, another topic          by the teacher
    other_language  kept           told in Chinese; Chinese in English      by the teacher
    negation        changed        one operation is taken back              by the teacher
    unit            changed        "how many grams?", "how many crates?"    by the teacher
    boundary        changed        a start of 1 or 50 to 99, n = 0, n = all by the teacher
    deeper          changed        one more operation                       by the teacher
    invented        kept           English, with made-up names and things   none

A row has its "operation" ("none": unchanged), its "source" (the seed's id, or FILE:LINE) and a
"label". kept, changed: the last turn is the known answer, without steps. teacher: nobody knows the
answer, and the last turn is the user's.

"By the teacher" (Evol-Instruct: Xu et al. 2023; Self-Instruct: Wang et al. 2022) takes three
commands. The last one drops replies that are no prompts, and counts why. For an endpoint, add
--base-url and --model to the second one. Different from the papers: one round, fixed tasks without
examples, and rules judge a reply, not the teacher.

    python blackbox/prompts.py --input mine.jsonl --operations deeper,broader --out m.jsonl
    python blackbox/generate.py --input m.jsonl.evolve.jsonl --out evolved.jsonl
    python blackbox/prompts.py --evolved evolved.jsonl

What dataset/suites.py tests stays unseen: no reserved sentence, name or object, at most 4
operations, totals to 99, no row of a suite, val or test as a seed. But an operation that is used
here is no surprise in the suite of its name.
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
from common import OUT, between, check, command, json_lines, run, show, write_file
from dataset import stories, suites
from dataset.formats import (BadRow, Turn, bad_lines_text, counted, is_text, parse_row,
                             read_documents, turn_row)
from dataset.stories import join, operands, running_totals, tell
from dataset.suites import kinds, reworded, sentences, text_of
from dataset.verify import question_of

with open(Path(__file__).parent / "texts" / "prompts.json", encoding="utf-8") as file:
    TEXTS = json.load(file)  # its first entry says what the others are
EVOLVE = {name: TEXTS["REWRITE"].replace("{task}", task) for name, task in TEXTS["TASKS"].items()}
REAL = {word.lower() for items in (stories.NAMES["en"], stories.OBJECTS["en"])
        for pair in items for word in pair}
PATIENCE = 500  # draws until a question of the distill split (16 in 100) is given up
LONGEST = 4_000  # characters of a rewritten prompt, or twice its seed
# Code, LaTeX, links, tables: with a letter changed they are another prompt.
FRAGILE = re.compile(r"[\\`{}<>|=@#_]|://|www\.")
# A reply that is no prompt: it refuses, or speaks of the task.
REFUSAL = re.compile(r"(?:i['’]?m|i am) (?:sorry|afraid|unable|not able)|sorry\b|unfortunately\b"
                     r"|i (?:can['’]?t|cannot|won['’]t|will not|must decline)|as an? (?:ai|lang)"
                     r"|很?抱歉|对不起|很遗憾|我(?:不能|无法|没有办法)|作为.{0,4}(?:AI|人工智能|语言模型)",
                     re.I)
LEAK = re.compile(r"^(?:sure|certainly|of course|okay)\b[,.!:]|^[#* ]*prompt\b[* ]*:|below the line"
                  r"|\b(?:new|rewritten|revised|rephrased|evolved|given|original|old) prompt\b|={5}"
                  r"|\b(?:rewritten|revised|rephrased|evolved) (?:question|version)\b"
                  r"|(?:改写|重写|修改)后的|新的?(?:提示|问题)[:：]", re.I)


@dataclass
class Config:
    input: str = OUT / "data/stories/distill.jsonl"  # seeds: stories, or prompts in any format
    out: str = ""            # prompts (out/data/prompts.jsonl; of --evolved NAME: prompts-NAME)
    operations: str = "typos,invented,no_punctuation,order"  # drawn evenly; commas between
    share: float = 0.5       # of the prompts that are changed (0.2 to 0.8)
    evolved: str = ""        # replies to OUT.evolve.jsonl: make prompts of these, not of --input
    seed: int = 0            # of everything that is drawn
    skip_bad_lines: bool = False  # count bad lines of the input and go on
    fresh: bool = False      # replace what is there


# --- operations: (rng, row, story) -> row, or None if it does not apply ---------------------------
# row: a question and its reply. story: see parse_seed.

def long(rng, row, story):
    """Behind filler. A story still fits into 512 tokens, a free prompt becomes a few pages."""
    length = rng.randint(300, 650) if "key" in story else rng.randint(3_000, 10_000)
    told, gap = [], " " if "key" in story else "\n\n"
    while sum(map(len, told)) < length:
        told.append(rng.choice([s for s in TEXTS["FILLER"][story["lang"]] if s not in told[-3:]]))
    return reworded(row, join(story["lang"], told) + gap + text_of(row))


def format_trap(rng, row, story):
    """Between marks that elsewhere begin or end an answer, a code block or a conversation."""
    frame, text = rng.choice(TEXTS["FORMATS"]), text_of(row)
    if "{json}" in frame:
        return reworded(row, frame.replace("{json}", json.dumps(text, ensure_ascii=False)))
    return reworded(row, frame.replace("{text}", text))


def injection(rng, row, story):
    """With somebody else's orders, which must not be followed."""
    frame = rng.choice(TEXTS["INJECTIONS"][story["lang"]])
    orders = frame.replace("{n}", str(rng.randint(2, 99)))
    return reworded(row, orders.replace("{text}", text_of(row)))


def invented_word(rng):
    """Two or three syllables, such as "tiblin", that are no name or object of the stories."""
    while True:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") +
                       rng.choice(["", "", "b", "l", "n", "r", "s"])
                       for _ in range(rng.choice([2, 2, 3])))
        if word not in REAL and word + "s" not in REAL:
            return word


def invented(rng, row, story):
    """Zavo has 3 tiblins (Berko 1958 asked children about "wugs")."""
    if story["lang"] == "en":
        thing = invented_word(rng)
        name = invented_word(rng).title(), rng.choice(["he", "she"])
        return tell(**{**story, "name": name, "thing": (thing, thing + "s")})


def with_sentences(row, told, answer):
    """A row of sentences that are not of the templates: without skeleton and numbers."""
    new = reworded(row, join(row["lang"], told))
    reply = dict(role="assistant", content=str(answer))
    return dict(conversations=[new["conversations"][0], reply], id=new["id"], lang=row["lang"])


def filled(story, text, kind, n):
    """The text with the name, the thing and the number n in its fields."""
    return text.format(**stories.fields(story["lang"], story["name"], story["thing"], kind, n))


def paraphrase(rng, row, story):
    """Every sentence in words that the templates do not have."""
    wordings = TEXTS["WORDINGS"][story["lang"]]
    told = [filled(story, rng.choice(wordings[kind]), kind, n)
            for kind, n in zip(kinds(story), [*story["numbers"], 0])]
    return with_sentences(row, told, row["conversations"][1]["content"])


def broader(rng, row, story):
    """The same numbers where nobody has things: passengers, points, liters, members."""
    topic = rng.choice(TEXTS["TOPICS"][story["lang"]])
    told = [filled(story, topic[kind], kind, n)
            for kind, n in zip(kinds(story), [*story["numbers"], 0])]
    return with_sentences(row, told, row["conversations"][1]["content"])


def deeper(rng, row, story):
    """One more operation at the end, if there are at most three."""
    for _ in range(PATIENCE if row["ops"] < stories.LONGEST_TRAINED else 0):
        new = suites.longer(rng, row, story, row["ops"] + 1)
        if stories.split_of(new) == "distill":  # no test question under another name
            return new


def boundary(rng, row, story):
    """The same sentences with numbers of which one is at an edge."""
    for _ in range(PATIENCE):
        if numbers := edge_numbers(rng, kinds(story)[1:-1]):
            new = tell(**{**story, "numbers": numbers})
            if "are 1 " not in text_of(new) and stories.split_of(new) == "distill":
                return new  # and not "There are 1 pear"


def edge_numbers(rng, ops):
    """A start of 1 or of 50 to 99, or one number 0, or one as large as the total; or None."""
    edge, place = rng.choice(["zero", "one", "equal", "huge"]), rng.randrange(len(ops))
    numbers = [rng.randint(*{"one": (1, 1), "huge": (50, 99)}.get(edge, (2, 20)))]
    for i, op in enumerate(ops):
        total = running_totals(ops[:i], numbers)[-1]
        choices = operands(op, total, large=False)
        if i == place and edge in ("zero", "equal"):
            n = 0 if edge == "zero" else total
            choices = [n] if op in ("add", "sub") and n <= 20 else []
        if not choices:
            return None
        numbers.append(rng.choice(choices))
    return numbers


def negation(rng, row, story):
    """One operation is told and taken back; the others must still give whole numbers to 99."""
    *told, question = sentences(row)
    ops, (start, *numbers) = kinds(story)[1:-1], story["numbers"]
    for i in rng.sample(range(len(ops)), len(ops)):
        left, kept = ops[:i] + ops[i + 1:], numbers[:i] + numbers[i + 1:]
        totals = running_totals(left, [start, *kept])
        if all(n in operands(op, total, large=False) for op, total, n in zip(left, totals, kept)):
            told.insert(i + 2, rng.choice(TEXTS["TAKEN_BACK"][story["lang"]]))
            return with_sentences(row, [*told, question], totals[-1])


def unit(rng, row, story):
    """The question asks for grams or crates: one more operation, if there are at most three."""
    total = running_totals(kinds(story)[1:-1], story["numbers"])[-1]
    fitting = [(op, n) for op in ("mul", "div") for n in operands(op, total, large=False)]
    if fitting and row["ops"] < stories.LONGEST_TRAINED:
        op, n = rng.choice(fitting)
        question = filled(story, rng.choice(TEXTS["UNITS"][story["lang"]][op]), op, n)
        answer = running_totals([op], [total, n])[-1]
        return with_sentences(row, [*sentences(row)[:-1], question], answer)


OF_LETTERS = dict(typos=suites.typos, no_punctuation=suites.no_punctuation, upper=suites.upper)
OF_ANY_PROMPT = dict(OF_LETTERS, long=long, format_trap=format_trap, injection=injection,
                     empty=lambda rng, row, story: reworded(row, rng.choice(TEXTS["EMPTY"])))
OPERATIONS = dict(OF_ANY_PROMPT, invented=invented, order=suites.order, paraphrase=paraphrase,
                  distractor=partial(suites.distractor, texts=TEXTS["ASIDES"]), broader=broader,
                  other_language=partial(suites.other_language, split="distill"),
                  negation=negation, unit=unit, boundary=boundary, deeper=deeper)
LABEL = dict.fromkeys(["none", *OPERATIONS], "kept") | dict.fromkeys(
    ["negation", "unit", "boundary", "deeper"], "changed") | dict(empty="teacher")


# --- seeds become prompts -------------------------------------------------------------------------

def parse_seed(row):
    """A row of any format -> (row, story, earlier turns, known answer or None); or BadRow.

    The new row is the question and its reply. story is what `tell` makes it of; of a free prompt
    it has only the language.
    """
    (*before, question), answer = question_of(row)
    if row.get("suite") or row.get("skeleton") and row.get("numbers") and (
            row.get("ops") in (5, 6) or stories.split_of(row) in ("val", "test")):
        raise BadRow("a question of val.jsonl, test.jsonl or a suite, which nobody may train on")
    try:
        if story := suites.drawn(row):
            return row, story, [], answer
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        pass  # it only looks like a story
    chinese = len(re.findall("[\u4e00-\u9fff]", question.content))
    lang = "zh" if chinese > len(re.findall("[A-Za-z]+", question.content)) else "en"
    reply = turn_row(Turn("assistant", "", None, answer or ""))
    row = dict(conversations=[turn_row(question), reply], id=row.get("id"), lang=lang)
    return row, dict(lang=lang, name=("",)), [turn_row(turn) for turn in before], answer


def change(rng, row, story, operations, seen, missed):
    """(name, new row) after one operation, (name, None) if the teacher must do it, ("none", row).

    An operation that does not apply, or whose text was `seen`, is counted in `missed`.
    """
    text = text_of(row)
    for name in rng.sample(operations, len(operations)):
        if name in EVOLVE and "key" not in story:
            return name, None
        applies = "key" in story or name in OF_ANY_PROMPT and not (
            name in OF_LETTERS and FRAGILE.search(text))
        new = OPERATIONS[name](rng, row, story) if applies else None
        if new and text_of(new) != text and text_of(new) not in seen:
            seen.add(text_of(new))
            return name, new
        missed[name] += 1
    return "none", row


def from_seeds(cfg, report):
    """--input -> rows for OUT, rows for OUT.evolve.jsonl, a Counter of what did not apply."""
    operations = cfg.operations.split(",")
    check(set(operations) <= set(OPERATIONS),
          f"--operations {cfg.operations}: must be some of {','.join(OPERATIONS)}")
    between(cfg, 0, 1, "share")
    rng, seen, missed, rows, requests = random.Random(cfg.seed), set(), Counter(), [], []
    for number, found in read_documents(cfg.input, cfg.skip_bad_lines, report, parse=parse_seed):
        row, story, before, answer = found
        if not isinstance(row["id"], (str, int)):
            row["id"] = f"{Path(cfg.input).name}:{number}"
        source = row["id"] = str(row["id"])
        name, new = "none", row
        if rng.random() < cfg.share:
            name, new = change(rng, row, story, operations, seen, missed)
        if not new:
            request = dict(role="user", content=EVOLVE[name] + text_of(row))
            requests.append(dict(conversations=[*before, request], operation=name, source=source,
                                 label="teacher"))
            name, new = "none", row
        label = LABEL[name] if answer else "teacher"
        question, reply = new["conversations"]
        turns = [*before, question]
        if label != "teacher":
            turns.append(dict(role="assistant", content=reply["content"]))  # without steps
        rows.append({**new, "conversations": turns, "operation": name, "source": source,
                     "label": label})
    return rows, requests, missed


# --- replies of the teacher become prompts --------------------------------------------------------

def parse_reply(row):
    """A row that generate.py kept -> (row, earlier turns, seed's text, reply), or BadRow."""
    turns, task = parse_row(row), EVOLVE.get(str(row.get("operation")))
    if not task or not turns[-2].content.startswith(task):
        raise BadRow("no reply to a row of OUT.evolve.jsonl")
    *before, request, reply = turns
    text = reply.content + (reply.answer or "")
    return row, [turn_row(turn) for turn in before], request.content.removeprefix(task), text


def letters(text):
    """The text without case, spaces and marks."""
    return re.sub(r"[\W_]+", "", text.casefold())


def fault(reply, seed, seen=()):
    """Why a reply is no prompt, or None. What the seed says itself is no fault."""
    leak = LEAK.search(reply)
    faults = {
        "empty": not re.search(r"[^\W\d_]", reply),
        "too long": len(reply) > max(LONGEST, 2 * len(seed)),
        "refusal": REFUSAL.match(reply.lstrip("\"'* ")) and not REFUSAL.match(seed),
        "prompt leak": leak and leak[0].lower() not in seed.lower(),
        "same as before": letters(reply) == letters(seed),
        "given twice": letters(reply) in seen}
    return next((reason for reason, found in faults.items() if found), None)


def from_replies(cfg, report):
    """--evolved -> rows for OUT, no rows for OUT.evolve.jsonl, a Counter of dropped replies."""
    rows, seen, dropped = [], set(), Counter()
    for number, found in read_documents(cfg.evolved, cfg.skip_bad_lines, report, parse=parse_reply):
        row, before, seed, reply = found
        if reason := fault(reply, seed, seen):
            dropped[reason] += 1
            continue
        seen.add(letters(reply))
        source = row.get("source") or f"{Path(cfg.evolved).name}:{number}"
        rows.append(dict(conversations=[*before, dict(role="user", content=reply.strip())],
                         operation=row["operation"], source=source, label="teacher"))
    return rows, [], dropped


def main(cfg):
    """Change a share of the seeds, or make prompts of the teacher's replies."""
    check(not cfg.evolved or not cfg.given & {"input", "operations", "share", "seed"},
          "--evolved: leave --input, --operations, --share and --seed out")
    source = Path(cfg.evolved or cfg.input)
    out = source.with_name("prompts-" + source.name) if cfg.evolved else OUT / "data/prompts.jsonl"
    out, report = Path(cfg.out or out), {}
    evolve = out.with_name(out.name + ".evolve.jsonl")
    check(source.resolve() not in (out.resolve(), evolve.resolve()), "--out must not be the input")
    check(not is_text(source), f"{show(source)} is plain text; prompts are rows of a .jsonl file")
    rows, requests, dropped = (from_replies if cfg.evolved else from_seeds)(cfg, report)
    if report:
        print(f"left out: {bad_lines_text(report)}")
    if dropped:
        print(f"{'dropped' if cfg.evolved else 'did not apply'}: {counted(dropped)}")
    check(rows, f"{show(source)} gives no prompt")
    files = {path: json_lines(some).encode(errors="replace")  # an id may have half a letter
             for path, some in ((out, rows), (evolve, requests))}
    for path, data in files.items():
        check(cfg.fresh or not path.exists() or path.read_bytes() == data,
              f"{show(path)} is there with other rows; choose another --out, or --fresh")
    for path, data in files.items():
        if data:
            write_file(path, data)
        else:
            path.unlink(missing_ok=True)  # requests of another run
    for key in ("operation", "label"):
        print(f"{key}: {counted(Counter(row[key] for row in rows))}")
    print(f"{show(out)}: {len(rows):,} prompts")
    if requests:
        evolved = show(out.with_name("evolved-" + out.name))
        print(f"{show(evolve)}: {len(requests):,} prompts for the teacher to rewrite:",
              command("blackbox/generate.py", input=evolve, out=evolved),
              command("blackbox/prompts.py", evolved=evolved), sep="\n    ")
    traces = show(out.with_name("traces-" + out.name))
    print("next:", command("blackbox/generate.py", input=out, out=traces))


if __name__ == "__main__":
    run(main, Config)
