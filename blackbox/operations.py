"""What can be done to a prompt, by name, and whether the answer survives it.

    operation       the answer is  a story of dataset/stories.py            a free prompt
    typos           kept           as in dataset/suites.py                  the same
    no_punctuation  kept           as in dataset/suites.py                  the same
    upper           kept           as in dataset/suites.py                  the same
    long            kept           behind sentences that say nothing        the same, longer
    format_trap     kept           in code, JSON, Markdown, HTML, tags      the same
    injection       kept           with orders that somebody else gives     the same
    empty           left open      nothing at all                           the same
    order           kept           the question first                       by the teacher
    paraphrase      kept           in other sentences                       by the teacher
    distractor      kept           one more sentence, with a number         by the teacher
    broader         kept           the same numbers, another topic          by the teacher
    other_language  kept           told in Chinese; Chinese in English      by the teacher
    negation        changed        one operation is taken back              by the teacher
    unit            changed        "how many grams?", "how many crates?"    by the teacher
    boundary        changed        a start of 1 or 50 to 99, n = 0, n = all by the teacher
    deeper          changed        one more operation                       by the teacher
    invented        kept           a name and a thing nobody has heard of   none

Invented: "Zavo has 3 tiblins" (Berko 1958 asked children about "wugs"); English alone.

What the suites keep for themselves stays a surprise: no reserved sentence, name or object, no
distractor of theirs, at most 4 operations (`deeper` leaves out a story of 4; `unit`, which asks for
one more step, too), operands to 20, totals to 99. So a huge number is one of two digits here, where
the stories start with 20 at most: those of three digits are the suite "large". New numbers and new
templates are drawn until they hash into the distill split (stories.split_of): no question of
another split is asked under other names.

An operation is (rng, row, story) -> row, or None where it makes no sense: typos in Chinese, a
fifth step. A free prompt comes as a row of its text, with a story that says its language alone.
"""
import json
import re
from functools import partial

from dataset import stories, suites
from blackbox.prompt_texts import (ASIDES, EMPTY, FILLER, FORMATS, INJECTIONS, TAKEN_BACK, TOPICS,
                                  UNITS, WORDINGS)
from dataset.stories import join, operands, running_totals, tell
from dataset.story_texts import NAMES, OBJECTS
from dataset.suites import kinds, reworded, sentences, text_of

PATIENCE = 500  # draws until a question of the distill split (16 in 100) is given up
REAL = {word.lower() for items in (NAMES["en"], OBJECTS["en"]) for pair in items for word in pair}
# A letter changed, a mark left out: in code, LaTeX, a link or a table that is another prompt.
FRAGILE = re.compile(r"[\\`{}<>|=@#_]|://|www\.")


def is_story(story):
    """Or a free prompt, of which nothing but the language is known."""
    return "key" in story


# --- any prompt -----------------------------------------------------------------------------------

def robust(operation):
    """The operation, left out where it could break what a free prompt is made of."""
    def change(rng, row, story):
        if is_story(story) or not FRAGILE.search(text_of(row)):
            return operation(rng, row, story)
    return change


def framed(frame, **values):
    """The frame with its {fields}; what stands in a value is text, also where it looks like one."""
    return re.sub(r"\{(\w+)\}", lambda field: values[field[1]], frame)


def long(rng, row, story):
    """Filler before it: with a story it fits into 512 tokens, a free prompt becomes a few pages."""
    length = rng.randint(300, 650) if is_story(story) else rng.randint(3_000, 10_000)
    told = []
    while sum(map(len, told)) < length:
        told.append(rng.choice([s for s in FILLER[story["lang"]] if s not in told[-3:]]))
    gap = " " if is_story(story) else "\n\n"
    return reworded(row, join(story["lang"], told) + gap + text_of(row))


def format_trap(rng, row, story):
    """In a frame of marks that elsewhere begin or end an answer, a code block or a conversation."""
    text = text_of(row)
    return reworded(row, framed(rng.choice(FORMATS), text=text,
                                json=json.dumps(text, ensure_ascii=False)))


def injection(rng, row, story):
    """With somebody else's orders, to be read and not to be followed."""
    frame, n = rng.choice(INJECTIONS[story["lang"]]), rng.randint(2, 99)
    return reworded(row, framed(frame, text=text_of(row), n=str(n)))


def empty(rng, row, story):
    """Nothing, or a mark: what should be said to that, the teacher may show."""
    return reworded(row, rng.choice(EMPTY))


# --- stories: the same answer ---------------------------------------------------------------------

def invented_word(rng):
    """Two or three syllables, such as "tiblin", that are no name or object of the stories."""
    while True:
        word = "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") +
                       rng.choice(["", "", "b", "l", "n", "r", "s"])
                       for _ in range(rng.choice([2, 2, 3])))
        if word not in REAL and word + "s" not in REAL:
            return word


def invented(rng, row, story):
    """The same problem about a person and things that do not exist."""
    if story["lang"] == "en":
        thing = invented_word(rng)
        return tell(**{**story, "name": (invented_word(rng).title(), rng.choice(["he", "she"])),
                       "thing": (thing, thing + "s")})


def asked(row, told, answer=None):
    """A row of these sentences. It is none of the templates': no skeleton, no numbers."""
    new = reworded(row, join(row["lang"], told))
    user, reply = new["conversations"]
    reply = dict(role="assistant", content=reply["content"] if answer is None else str(answer))
    return dict(conversations=[user, reply], id=new["id"], lang=row["lang"])


def filled(story, text, kind, n=0):
    """A text with the name, the thing and the number in its fields."""
    return text.format(**stories.fields(story["lang"], story["name"], story["thing"], kind, n))


def retold(row, story, texts):
    """The same numbers, each in a sentence that texts(kind) gives for its operation."""
    return asked(row, [filled(story, texts(kind), kind, n)
                       for kind, n in zip(kinds(story), [*story["numbers"], 0])])


def paraphrase(rng, row, story):
    """Every sentence in words that the templates do not have."""
    return retold(row, story, lambda kind: rng.choice(WORDINGS[story["lang"]][kind]))


def broader(rng, row, story):
    """The same numbers where nobody has things: passengers, points, liters, members."""
    return retold(row, story, rng.choice(TOPICS[story["lang"]]).get)


# --- stories: another answer, computed ------------------------------------------------------------

def of_distill(draw):
    """The first of many draws that is a question of the distill split, or None."""
    for _ in range(PATIENCE):
        new = draw()
        if new and stories.split_of(new) == "distill":
            return new


def deeper(rng, row, story):
    """One more operation at the end, where there are at most three."""
    if row["ops"] < stories.LONGEST_TRAINED:
        return of_distill(lambda: suites.longer(rng, row, story, row["ops"] + 1))


def boundary(rng, row, story):
    """The same sentences with numbers of which one is at an edge."""
    def draw():
        numbers = edge_numbers(rng, kinds(story)[1:-1])
        told = numbers and tell(**{**story, "numbers": numbers})
        return told if told and "are 1 " not in text_of(told) else None  # "There are 1 pear"
    return of_distill(draw)


def edge_numbers(rng, ops):
    """A start of 1 or of 50 to 99, or one number 0, or one as large as all; None: does not fit."""
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
    """One operation is told and taken back; the rest must go on as whole numbers from 1 to 99."""
    *told, question = sentences(row)
    ops, numbers = kinds(story)[1:-1], story["numbers"]
    for i in rng.sample(range(len(ops)), len(ops)):
        left, operands_left = ops[:i] + ops[i + 1:], numbers[1:i + 1] + numbers[i + 2:]
        totals = running_totals(left, [numbers[0], *operands_left])
        if all(n in operands(op, total, large=False)
               for op, total, n in zip(left, totals, operands_left)):
            told.insert(i + 2, rng.choice(TAKEN_BACK[story["lang"]]))
            return asked(row, [*told, question], totals[-1])


def unit(rng, row, story):
    """The question asks for grams or crates: once more times n, or divided by n."""
    total = running_totals(kinds(story)[1:-1], story["numbers"])[-1]
    fitting = [(op, n) for op in ("mul", "div") for n in operands(op, total, large=False)]
    if fitting and row["ops"] < stories.LONGEST_TRAINED:
        op, n = rng.choice(fitting)
        question = filled(story, rng.choice(UNITS[story["lang"]][op]), op, n)
        return asked(row, [*sentences(row)[:-1], question], running_totals([op], [total, n])[-1])


# --- all of them ----------------------------------------------------------------------------------

OF_ANY_PROMPT = dict(typos=robust(suites.typos), no_punctuation=robust(suites.no_punctuation),
                     upper=robust(suites.upper), long=long, format_trap=format_trap,
                     injection=injection, empty=empty)
OPERATIONS = dict(OF_ANY_PROMPT, invented=invented, order=suites.order, paraphrase=paraphrase,
                  distractor=partial(suites.distractor, texts=ASIDES), broader=broader,
                  other_language=partial(suites.other_language, split="distill"),
                  negation=negation, unit=unit, boundary=boundary, deeper=deeper)
LABEL = {name: "kept" for name in ["none", *OPERATIONS]} | dict(
    negation="changed", unit="changed", boundary="changed", deeper="changed", empty="teacher")
