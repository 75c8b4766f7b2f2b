"""Arithmetic stories: short, endless, verifiable. They stand in for GSM8K on a laptop.

    Mia has 12 apples. She buys 5 more. Then she gives away 3. How many apples does Mia have now?
    reasoning 12+5=17, 17-3=14      answer 14

One running total, four operations (+ - * /), 1 to 4 of them a story, totals from 1 to 99.

    python dataset/stories.py                    # 50,000 English stories, CPU, about 7 s
    python dataset/stories.py --lang both --seed 1 --out out/data/stories_both

Last line: next: python tokenizer/train.py

Four splits, train / val / test / distill. A story's split is a hash of its skeleton (the templates
in their order) and its numbers, so no question stands in two splits under other names, whatever
the seed. distill's rows carry a question and an answer, no worked steps: the teacher writes them.

Never in the default splits, kept for dataset/suites.py: the last quarter of all templates, names
and objects, totals above 99, operands above 20, and chains of 5 or 6 operations.
"""
import contextlib
import hashlib
import json
import random
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import (OUT, atomic_write, check, check_ranges, fail, refuse_others, run,  # noqa: E402
                 sha256_file, show, write_file)
from dataset.story_texts import NAMES, OBJECTS, TEMPLATES, WORDS  # noqa: E402

OPS = ("add", "sub", "mul", "div")
SIGN = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
SHARES = {"train": 76, "val": 4, "test": 4, "distill": 16}  # of 100 hash buckets: never change
LONGEST_TRAINED = 4  # operations; longer chains occur in no training data
PATIENCE = 20_000  # draws without a new story until a split is called impossible


@dataclass
class Config:
    train: int = 40_000      # stories with worked steps to train on (1,000 to 200,000)
    val: int = 1_000         # stories that choose between runs
    test: int = 1_000        # stories that report, once
    distill: int = 8_000     # questions with an answer only: the teacher writes the worked steps
    ops: str = "1-4"         # operations a story, lowest-highest (1 to 6; 5 and 6 in test alone)
    lang: Literal["en", "zh", "both"] = "en"  # language: en, zh or both (half and half)
    seed: int = 0            # another seed, other stories; splits stay apart across seeds
    out: str = OUT / "data" / "stories"  # folder of the four .jsonl files and about.json
    fresh: bool = False      # replace what is there


# --- one story ------------------------------------------------------------------------------------

def pool(items, reserved):
    """The indices to draw from: the last quarter of a list where reserved, else the rest."""
    cut = len(items) - len(items) // 4
    return range(cut, len(items)) if reserved else range(cut)


def operands(op, total, large):
    """Every operand that keeps the total a whole number in its range."""
    highest = 999 if large else 99
    if op == "add":
        return range(21 if large else 1, min(200 if large else 20, highest - total) + 1)
    if op == "sub":
        return range(21 if large else 1, min(200 if large else 20, total - 1) + 1)
    if op == "mul":
        return [n for n in range(2, 6) if total * n <= highest]
    return [n for n in range(2, 6) if total % n == 0]


def running_totals(ops, numbers):
    """The total after the start and after each operation."""
    totals = [numbers[0]]
    for op, n in zip(ops, numbers[1:]):
        total = totals[-1]
        totals.append({"add": total + n, "sub": total - n,
                       "mul": total * n, "div": total // (n or 1)}[op])  # add may add 0
    return totals


def draw_numbers(rng, ops, large=False):
    """The start and an operand for each operation, or None where this draw found none that fits.

    large: a start from 100 to 500, totals to 999, add and sub by 21 to 200.
    """
    numbers = [rng.randint(100, 500) if large else rng.randint(2, 20)]
    for i, op in enumerate(ops):
        choices = operands(op, running_totals(ops[:i], numbers)[-1], large)
        if not choices:
            return None
        numbers.append(rng.choice(choices))
    # small answers are what divisions leave: thin them out, or guessing "2" pays
    fits = large or rng.random() * 12 < running_totals(ops, numbers)[-1]
    return numbers if fits else None


def draw_ops(rng, n_ops):
    """(ops, numbers): operations are drawn first and uniformly, then numbers that fit: drawing both
    together would give few divisions, because most totals cannot be divided."""
    while True:
        ops = [rng.choice(OPS) for _ in range(n_ops)]
        for _ in range(40):
            numbers = draw_numbers(rng, ops)
            if numbers:
                return ops, numbers


def draw_templates(rng, lang, kinds, reserved=False, before=()):
    """`before` and a template of each kind, as "add3"; none twice while there are others."""
    key = list(before)
    for kind in kinds:
        candidates = pool(TEMPLATES[lang][kind], reserved)
        i = rng.choice([i for i in candidates if f"{kind}{i}" not in key] or candidates)
        key.append(f"{kind}{i}")
    return key


def kind_of(template):
    """"add3" is an "add"."""
    return template.rstrip("0123456789")


def fields(lang, name, thing, op, n):
    """What a template may ask for: see the top of story_texts.py."""
    word = WORDS.get((lang, op), {}).get(n, "")
    if lang == "zh":
        (name, he), (measure, noun) = name, thing
        return dict(name=name, he=he, him=he, his=he, n=n, m=measure, c=f"{n}{measure}",
                    k=f"{n}{measure}{noun}", things=noun, word=word)
    (name, he), (singular, plural) = name, thing
    him, his = ("her", "her") if he == "she" else ("him", "his")
    return dict(name=name, he=he, him=him, his=his, He=he.title(), His=his.title(), n=n,
                k=f"{n} {singular if n == 1 else plural}", things=plural, word=word)


def person_and_thing(rng, lang, reserved=False):
    """A name and an object, of the reserved quarter or of the rest."""
    return {field: items[lang][rng.choice(pool(items[lang], reserved))]
            for field, items in (("name", NAMES), ("thing", OBJECTS))}


def make_story(rng, lang, n_ops):
    """One row, with worked steps; nothing in it is reserved."""
    ops, numbers = draw_ops(rng, n_ops)
    who = person_and_thing(rng, lang)
    key = draw_templates(rng, lang, ["opening", *ops, "question"])
    return tell(lang, key, numbers, **who)


def tell(lang, key, numbers, name, thing):
    """The row of a story that is drawn; `key`: its templates, from the opening to the question."""
    sentences = []
    for template, n in zip(key, [*numbers, 0]):
        kind = kind_of(template)
        text = TEMPLATES[lang][kind][int(template[len(kind):])]
        sentences.append(text.format(**fields(lang, name, thing, kind, n)))
    ops = [kind_of(template) for template in key[1:-1]]
    totals = running_totals(ops, numbers)
    steps = [f"{a}{SIGN[op]}{n}={b}" for a, op, n, b in zip(totals, ops, numbers[1:], totals[1:])]
    text = join(lang, sentences)
    return {"conversations": [
                {"role": "user", "content": text},
                {"role": "assistant", "reasoning_content": "\n".join(steps),
                 "content": str(totals[-1])}],
            "id": text_id(lang, text),
            "ops": len(ops), "skeleton": " ".join([lang, *key]), "numbers": numbers, "lang": lang}


def join(lang, sentences):
    """Sentences as one text; Chinese has no spaces."""
    return ("" if lang == "zh" else " ").join(sentences)


def text_id(lang, text):
    """A name for a text: equal texts have equal ids."""
    return f"{lang}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def split_of(row):
    """"train", "val", "test" or "distill": a hash of the skeleton and the numbers, nothing else."""
    digest = hashlib.sha256(f"{row['skeleton']}|{row['numbers']}".encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    for split, share in SHARES.items():
        bucket -= share
        if bucket < 0:
            return split


# --- four files -----------------------------------------------------------------------------------

def generate(cfg, low, high):
    """Yield (split, row) until every split has its count; UserError where one cannot be filled."""
    rng, seen, idle = random.Random(cfg.seed), set(), 0
    left = {split: getattr(cfg, split) for split in SHARES}
    langs = ("en", "zh") if cfg.lang == "both" else (cfg.lang,)
    while any(left.values()):
        row = make_story(rng, rng.choice(langs), rng.randint(low, high))
        split, idle = split_of(row), idle + 1
        if row["ops"] > LONGEST_TRAINED:
            split = "test"  # long chains are for testing alone, whatever their hash
        if idle > PATIENCE:
            missing = ", ".join(f"{n} of {split}" for split, n in left.items() if n)
            fail(f"no new story in {PATIENCE} draws, still missing {missing}",
                 fix="ask for fewer stories or a wider --ops")
        if left[split] and row["id"] not in seen:  # the id is a hash of the text: no text twice
            seen.add(row["id"])
            left[split], idle = left[split] - 1, 0
            if split == "distill":
                del row["conversations"][1]["reasoning_content"]
            yield split, row


def already_made(out, names, settings, fresh):
    """True, and said, where these settings made each NAME.jsonl; UserError where others did."""
    check(not out.exists() or out.is_dir(), "--out", show(out), "a folder, or a new name")
    found = [path for name in names if (path := out / f"{name}.jsonl").exists()]
    if fresh or not found:
        return False
    fix = "--fresh replaces them, --out DIR leaves them"
    if not (out / "about.json").exists():
        fail(f"{show(out)} holds {found[0].name} but no about.json", fix=fix)
    try:
        about = json.loads((out / "about.json").read_text(encoding="utf-8"))
        old, hashes = dict(about["settings"]), dict(about["sha256"])
    except (ValueError, KeyError, TypeError):
        fail(f"{show(out / 'about.json')} is not of this script", fix=fix)
    refuse_others(out, old, settings)
    for path in found:
        if sha256_file(path) != hashes.get(path.stem):
            fail(f"{show(path)} was changed since", fix=fix)
    if len(found) == len(names):
        print(f"already made: {show(out)} (--fresh makes it again)")
        return True
    return False


def write_set(out, names, rows, settings, **more):
    """Stream (name, row) pairs into NAME.jsonl, all files or none, then write about.json with
    `more`; returns {name: sha256}."""
    hashes = {name: hashlib.sha256() for name in names}
    with contextlib.ExitStack() as stack:
        files = {n: stack.enter_context(atomic_write(out / f"{n}.jsonl")) for n in names}
        for name, row in rows:
            line = json.dumps(row, ensure_ascii=False) + "\n"
            line = line.encode(errors="replace")  # a docstring of prose.py may hold half a letter
            files[name].write(line)
            hashes[name].update(line)
        (out / "about.json").unlink(missing_ok=True)  # written last: without it, not finished
    hashes = {name: digest.hexdigest() for name, digest in hashes.items()}
    about = dict(settings=settings, sha256=hashes, **more)
    write_file(out / "about.json", json.dumps(about, indent=2) + "\n")
    return hashes


def noted(rows, skeletons, characters):
    """The same (split, row) pairs; skeletons and characters of all questions are noted."""
    for split, row in rows:
        skeletons.add(row["skeleton"])
        characters[split] += len(row["conversations"][0]["content"])
        yield split, row


def main(cfg):
    """Make the four splits, or say that they are there."""
    check_ranges(cfg, **dict.fromkeys(SHARES, (1, 5_000_000)))
    match = re.fullmatch(r"([1-4])(?:-([1-6]))?", cfg.ops)
    check(match and match[1] <= (match[2] or match[1]), "--ops", cfg.ops,
          "lowest-highest, such as 1-4; up to 1-6, where 5 and 6 reach the test split alone")
    out = Path(cfg.out)
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("out", "fresh")}
    if not already_made(out, SHARES, settings, cfg.fresh):
        skeletons, characters = set(), Counter()
        rows = generate(cfg, int(match[1]), int(match[2] or match[1]))
        hashes = write_set(out, SHARES, noted(rows, skeletons, characters), settings)
        for split in SHARES:
            count = getattr(cfg, split)
            print(f"{split:<8} {count:>9,} stories | {characters[split] / count:5.1f} characters a "
                  f"question | sha256 {hashes[split][:12]} | {show(out / f'{split}.jsonl')}")
        print(f"{sum(settings[s] for s in SHARES):,} distinct texts, {len(skeletons):,} skeletons")
    print("next: python tokenizer/train.py")


if __name__ == "__main__":
    run(main, Config)
