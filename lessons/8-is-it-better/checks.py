"""What lesson 8 checks. The grader runs this file, never the student's process."""
import json
import random
from pathlib import Path

TASKS = [("sign_flip_p", "an exact test over seeds", 4), ("verdict", "three claims, and more", 6)]
ROWS = [json.loads(line) for line in open(Path(__file__).parent / "rows.jsonl", encoding="utf-8")]
DIFFERENCES = [  # and p, counted in whole numbers
    ([1, 1, 1, 1], 2 / 16), ([0.037, 0.053, 0.060, 0.030], 2 / 16), ([5], 1), ([2] * 6, 2 / 64),
    ([3, -1, 2], 4 / 8), ([4, 3, 2, -1], 4 / 16),
    ([0.1, 0.2, -0.3, 0.3], 12 / 16), ([0.3, 0.1, 0.2, -0.3], 12 / 16),
    ([-3, 1, -2], 4 / 8), ([30, -10, 20], 4 / 8), ([0, 0, 0], 1)]
BASE = [0.6, 0.7, 0.8, 0.9]
VARIANTS = {  # better - than of seeds 1 to 4: equal tokens, equal wall-clock
    "clear": ([0.02, 0.03, 0.02, 0.03], [0.02, 0.03, 0.03, 0.02]),
    "wide": ([0.01, 0.02, 0.03, 0.055], [0.03, 0.03, 0.03, 0.031]),
    "worse": ([-0.02, -0.03, -0.02, -0.03], [0.02, 0.03, 0.02, 0.03]),
    "slow": ([0.02, 0.03, 0.02, 0.03], [-0.02, -0.03, -0.02, -0.03]),
    "even": ([0.02, 0.03, 0.02, 0.03], [0.01, -0.02, 0.03, 0.01])}


def made(wanted, files=("test", "test"), seeds=(1, 2, 3, 4), wall=(1, 2, 3, 4)):
    """-> rows of recipes a, b, b-wall, shuffled. files: of a and b; seeds: of b; wall: of b-wall"""
    found = []
    for seed, base, near, far in zip((1, 2, 3, 4), BASE, *VARIANTS[wanted]):
        for recipe, gain, file in (("a", 0, files[0]), ("b", near, files[1]),
                                   ("b-wall", far, "test")):
            if seed in {"a": (seed,), "b": seeds, "b-wall": wall}[recipe]:
                found.append(dict(recipe=recipe, seed=seed, data=f"{file}.jsonl",
                                  exact=base + gain))
    return random.Random(8).sample(found, len(found))


CASES = [  # rows, right verdict
    (made("clear", seeds=(1,)), "one seed"), (made("clear", seeds=(1, 2, 3)), "unpaired"),
    (made("clear", ("out/validation", "test")), "validation"),
    (made("clear", ("test", "latest")), "validation"),
    (made("clear"), "shown"), (made("wide"), "not seen"), (made("worse"), "not seen"),
    (made("slow"), "equal tokens only"), (made("even"), "equal tokens only"),
    (made("clear", wall=()), "equal tokens only"),
    (made("clear", wall=(1, 3, 4)), "equal tokens only")]
CLAIMS = [("few/logits", "few/alone"), ("few/reason", "few/alone"),
          ("sweep-alpha-0.9-tau-8", "sweep-alpha-0.9-tau-1")]


def calls():
    rows = random.Random(7).sample(ROWS, len(ROWS))
    return [("sign_flip_p", [differences]) for differences, _ in DIFFERENCES] + [
        ("verdict", [*claim, rows]) for claim in CLAIMS] + [
        ("verdict", ["b", "a", rows]) for rows, _ in CASES]


def judge(answers):
    p = [isinstance(found, float | int) and abs(found - right) < 1e-9
         for found, (_, right) in zip(answers, DIFFERENCES)]
    yield 1, all(p[:4]), "all seeds win: how many of the 2 ** n lists of signs are as extreme?"
    yield 1, all(p[4:6]), "are both directions counted, and the size of the differences?"
    yield 1, all(p[6:8]), "does a sum that is equal except for rounding count?"
    yield 1, all(p[8:]), \
        "should p change if A and B change places, or with the unit? And if all differences are 0?"
    claims, cases = answers[-len(CASES) - 3:-len(CASES)], answers[-len(CASES):]
    ok = [found == right for found, (_, right) in zip(cases, CASES)]
    yield 1, ok[0] and ok[1], "do both sides have the same seeds, and at least two?"
    yield 1, ok[2] and ok[3], "which data chose the settings, and which data may report?"
    yield 1, ok[4] and any(found != "shown" for found in cases), \
        "which rows belong together? The seeds differ more than the recipes do"
    yield 1, ok[5] and ok[6], "how wide is the interval of four seeds, and on which side of 0?"
    yield 1, all(ok[7:]), "a teacher costs time. Which rows had the same time, and are all there?"
    yield 1, claims == ["equal tokens only", "shown", "one seed"], \
        "the three claims of the text: read their rows. Which one is true?"
