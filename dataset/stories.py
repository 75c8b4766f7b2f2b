"""Arithmetic stories: short, unlimited, easy to check. They replace GSM8K on a laptop.

    Mia has 12 apples. She buys 5 more. Then she gives away 3. How many apples does Mia have now?
    reasoning 12+5=17, 17-3=14      answer 14

    python dataset/stories.py        # 50,000 English stories, CPU, about 7 s

A hash of the templates and the numbers gives the split. So no question is in two splits, even with
other names or another seed. Only dataset/suites.py uses the last quarter of templates, names and
objects, totals above 99 and operands above 20. No training data has more than 4 operations.
"""
import contextlib
import hashlib
import json
import random
import re
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import (OUT, atomic_write, between, check, command, lock, refuse_others, run,
                    sha256_file, show, write_file)
from metrics import json_lines

TEXTS = json.loads((Path(__file__).parent / "texts/stories.json").read_text(encoding="utf-8"))
NAMES, OBJECTS, WORDS = TEXTS["NAMES"], TEXTS["OBJECTS"], TEXTS["WORDS"]  # "ABOUT" explains them
TEMPLATES, DISTRACTORS = TEXTS["TEMPLATES"], TEXTS["DISTRACTORS"]
SIGN = {"add": "+", "sub": "-", "mul": "*", "div": "/"}
OPS = tuple(SIGN)
SPACE = {"en": " ", "zh": ""}  # between two sentences
SHARES = {"train": 76, "val": 4, "test": 4, "distill": 16}  # of 100 hash buckets; never change them
BUCKETS = [split for split, share in SHARES.items() for _ in range(share)]
LONGEST_TRAINED = 4  # operations; no training data has longer chains
PATIENCE = 20_000  # draws without a new story before draw_splits gives up


@dataclass
class Config:
    train: int = 40_000      # stories with worked steps to train on (1,000 to 200,000)
    val: int = 1_000         # stories to choose between runs
    test: int = 1_000        # stories for the final report only
    distill: int = 8_000     # questions with only an answer; the teacher writes the steps
    ops: str = "1-4"         # operations in a story, lowest-highest (1 to 6; 5 and 6 only in test)
    lang: Literal["en", "zh", "both"] = "en"  # language: en, zh or both (half and half)
    seed: int = 0            # random seed; no question is in two splits, even across seeds
    out: str = OUT / "data" / "stories"  # folder of the four .jsonl files and about.json
    fresh: bool = False      # replace existing files


def pool(items, reserved):
    """Indices to draw from: the last quarter of a list if reserved, otherwise the rest."""
    cut = len(items) - len(items) // 4
    return range(cut, len(items)) if reserved else range(cut)


def operands(op, total, large):
    """The allowed operands. They keep the total a whole number from 1 to 99 (large: to 999)."""
    highest = 999 if large else 99
    if op == "mul":
        return [n for n in range(2, 6) if total * n <= highest]
    if op == "div":
        return [n for n in range(2, 6) if total % n == 0]
    limit = highest - total if op == "add" else total - 1
    return range(21, min(200, limit) + 1) if large else range(1, min(20, limit) + 1)


def running_totals(ops, numbers):
    """[start, total after the first operation, total after the second one, ...]"""
    totals = [numbers[0]]
    for op, n in zip(ops, numbers[1:]):
        total = totals[-1]  # n or 1: all four are computed, and n may be 0
        totals.append(dict(add=total + n, sub=total - n, mul=total * n, div=total // (n or 1))[op])
    return totals


def draw_numbers(rng, ops, large=False):
    """[start, operands...]. The start is 2 to 20 (large: 100 to 500). None means: try again."""
    numbers = [rng.randint(100, 500) if large else rng.randint(2, 20)]
    for op in ops:
        choices = operands(op, running_totals(ops, numbers)[-1], large)
        if not choices:
            return None
        numbers.append(rng.choice(choices))
    # divisions give many small answers: drop some of them, or guessing "2" would pay
    if large or rng.random() * 12 < running_totals(ops, numbers)[-1]:
        return numbers


def draw_templates(rng, lang, kinds, reserved=False, before=()):
    """`before` and one template name ("add3") for each kind. A name repeats only if it must."""
    key = list(before)
    for kind in kinds:
        some = [f"{kind}{i}" for i in pool(TEMPLATES[lang][kind], reserved)]
        key.append(rng.choice([template for template in some if template not in key] or some))
    return key


def kinds_of(key):
    """The kinds of template names: ["opening", "add"] for ["opening7", "add3"]."""
    return [template.rstrip("0123456789") for template in key]


def fields(lang, name, thing, op, n):
    """A dict with the values of a template's fields. texts/stories.json explains them."""
    (name, he), (one, many) = name, thing
    him, his = dict(she=("her", "her"), he=("him", "his")).get(he, (he, he))  # one word in Chinese
    k = f"{n}{one}{many}" if lang == "zh" else f"{n} {one if n == 1 else many}"
    return dict(name=name, he=he, him=him, his=his, He=he.title(), His=his.title(), n=n, k=k, m=one,
                c=f"{n}{one}", things=many, word=WORDS[lang].get(op, {}).get(str(n), ""))


def person_and_thing(rng, lang, reserved=False):
    """A random name and object, from the reserved quarter or from the rest."""
    return {field: items[lang][rng.choice(pool(items[lang], reserved))]
            for field, items in (("name", NAMES), ("thing", OBJECTS))}


def make_story(rng, lang, n_ops):
    """A random row with worked steps. It uses no reserved template, name or object."""
    numbers = None  # operations first; otherwise few of them would be divisions
    while not numbers:
        ops = [rng.choice(OPS) for _ in range(n_ops)]
        numbers = next(filter(None, (draw_numbers(rng, ops) for _ in range(40))), None)
    who = person_and_thing(rng, lang)
    return tell(lang, draw_templates(rng, lang, ["opening", *ops, "question"]), numbers, **who)


def tell(lang, key, numbers, name, thing):
    """The row of a story. key: template names, opening to question; numbers: start, operands."""
    sentences, kinds = [], kinds_of(key)
    for kind, template, n in zip(kinds, key, [*numbers, 0]):
        text = TEMPLATES[lang][kind][int(template[len(kind):])]
        sentences.append(text.format(**fields(lang, name, thing, kind, n)))
    ops = kinds[1:-1]
    totals = running_totals(ops, numbers)
    steps = [f"{a}{SIGN[op]}{n}={b}" for a, op, n, b in zip(totals, ops, numbers[1:], totals[1:])]
    text = SPACE[lang].join(sentences)
    reply = {"role": "assistant", "reasoning_content": "\n".join(steps), "content": str(totals[-1])}
    return {"conversations": [{"role": "user", "content": text}, reply], "id": text_id(lang, text),
            "ops": len(ops), "skeleton": " ".join([lang, *key]), "numbers": numbers, "lang": lang}


def text_id(lang, text):
    """A short hash of a text, as its id: equal texts have equal ids."""
    return f"{lang}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def split_of(row):
    """"train", "val", "test" or "distill", by a hash of only the skeleton and the numbers."""
    digest = hashlib.sha256(f"{row['skeleton']}|{row['numbers']}".encode()).digest()
    return BUCKETS[int.from_bytes(digest[:8], "big") % 100]


def draw_splits(cfg, low, high):
    """Yield (split, row) until every split is full. UserError if one cannot be filled."""
    rng, seen, idle = random.Random(cfg.seed), set(), 0
    left = {split: getattr(cfg, split) for split in SHARES}
    langs = ("en", "zh") if cfg.lang == "both" else (cfg.lang,)
    while any(left.values()):
        row = make_story(rng, rng.choice(langs), rng.randint(low, high))
        split = split_of(row) if row["ops"] <= LONGEST_TRAINED else "test"
        idle += 1
        check(idle <= PATIENCE, f"no new story in {PATIENCE} draws; missing: {left}; widen --ops")
        if left[split] and row["id"] not in seen:  # the id is a hash of the text: no text twice
            seen.add(row["id"])
            left[split], idle = left[split] - 1, 0
            if split == "distill":
                del row["conversations"][1]["reasoning_content"]
            yield split, row


def write_set(out, names, rows, settings, fresh=False):
    """Write (name, row) pairs to OUT/NAME.jsonl, and the files' SHA-256 to about.json. A finished
    set of the same settings stays as it is. UserError for any other files, unless `fresh`."""
    about = Path(out) / "about.json"
    paths = {name: Path(out) / f"{name}.jsonl" for name in names}
    with lock(about):
        there = [path for path in (about, *paths.values()) if path.exists()]
        if there and not fresh:  # files without about.json are somebody else's
            made = json.loads(about.read_text(encoding="utf-8")) if about in there else {}
            refuse_others(out, made.get("settings", {}), settings)
            if "sha256" in made and len(there) > len(paths):
                return print(f"already made: {show(out)} (--fresh makes it again)")
        with contextlib.ExitStack() as stack:
            files = {n: stack.enter_context(atomic_write(path)) for n, path in paths.items()}
            for name, row in rows:  # "replace": prose.py may find half of a surrogate pair
                files[name].write(json_lines([row]).encode(errors="replace"))
            write_file(about, json.dumps(dict(settings=settings)))  # no SHA-256: not finished yet
        hashes = {name: sha256_file(path) for name, path in paths.items()}
        write_file(about, json.dumps(dict(settings=settings, sha256=hashes), indent=2) + "\n")
    for name, path in paths.items():
        print(f"{path.stat().st_size:>14,} bytes | sha256 {hashes[name][:12]} | {show(path)}")


def main(cfg):
    """Make the four splits."""
    between(cfg, 1, 2**32 - 1, *SHARES)
    match = re.fullmatch("([1-4])-([1-6])", cfg.ops)
    check(match and match[1] <= match[2], f"--ops {cfg.ops}: must be LOWEST-HIGHEST, up to 4-6")
    settings = {k: v for k, v in asdict(cfg).items() if k not in ("out", "fresh")}
    write_set(cfg.out, SHARES, draw_splits(cfg, *map(int, match.groups())), settings, cfg.fresh)
    own, model = Path(cfg.out) != OUT / "data/stories", OUT / f"{Path(cfg.out).name}.model"
    print("next:", command("tokenizer/train.py", *[f"{cfg.out}/train.jsonl"] * own,
                           out=own and model))


if __name__ == "__main__":
    run(main, Config)
