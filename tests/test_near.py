"""Claims about blackbox/near.py: near copies are found, whatever is counted or named otherwise stays.

The oracle is brute force: all pairs, similarity with Python sets.
"""
import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest

from cli import ROOT
from blackbox import near
from dataset import stories, suites
from blackbox.near import (BANDS, THRESHOLD, find_copies, grams, hashed, jaccard, neighbours,
                          numbers, signature, similar, sketch, words)
from dataset.story_texts import NAMES

STORY = "Mia has 12 apples. She buys 5 more. Then she gives away 3. How many apples has Mia now?"


def gate(one):
    """As filter.py does it, but with Python's own sum of characters."""
    return int.from_bytes(one.numbers.encode()[:8].ljust(8), "big")


# --- words and numbers ----------------------------------------------------------------------------

@pytest.mark.parametrize("text, found", [
    ("Mia's 12 apples!", "mia s 12 apples"), ("MIA  \n has", "mia has"), ("１２３，ａｂ", "123 ab"),
    ("1,234.50 and 1,2", "1234.50 and 1,2"), ("50 % or 50%", "50 or 50%"), ("小红有5个", "小 红 有 5 个"),
    ("3-5 x+y = -2", "3 - 5 x + y = - 2"), ("e-mail, well-known - no", "e mail well known no"),
    ("x−1", "x - 1"), ("3½", "3 1 / 2"), ("5²", "5 ²"), ("😀 ok", "😀 ok"), ("H2O", "h 2 o"),
    ("Ünïcode straße", "ünïcode strasse"), ("שלום עולם", "שלום עולם"), ("สวัสดี", "ส ว ั ส ด ี"),
])
def test_words_are_without_case_punctuation_and_width_but_with_signs(text, found):
    """"2+3?" and "2-3?" as one question, or "apples." and "apples" as two words."""
    assert words(text) == found.split()


@pytest.mark.parametrize("text, expected", [
    (STORY, "12 5 3"), ("17-3=14", "17 - 3 = 14"), ("17 - 3", "17 - 3"), ("a 50% cut", "50%"),
    ("五个 and five", ""), ("", ""), ("!?", ""), ("- 5", "- 5"), ("1,000 is 1000", "1000 1000"),
])
def test_numbers_keep_their_order_and_signs(text, expected):
    """Sorted or unsigned, 5-3 is 3-5 is 3+5."""
    assert numbers(words(text)).split() == expected.split()


def test_a_text_without_words_is_itself():
    """Without a word, all of !!!, ??? and the empty text would be copies of each other."""
    assert words(" !!! ") == ["!!!"] and words("") == [""]
    sketches = [sketch("what?", text) for text in ("!!!", "???", "", "😀", "😂")]
    assert not any(similar(a, b) for a, b in itertools.combinations(sketches, 2))


def test_grams_are_equal_where_the_runs_are():
    """A hash that forgets the order makes "a b" the same pair as "b a"."""
    rng = random.Random(0)
    text = [rng.choice("abc") for _ in range(300)]
    for n in (1, 2, 3, 13):
        runs = [tuple(text[i:i + n]) for i in range(len(text) - n + 1)]
        found = grams(hashed(text), n).tolist()
        assert len(found) == len(runs) and len(set(found)) == len(set(runs)) == len(set(zip(runs, found)))
    assert len(grams(hashed(text[:2]), 3)) == 0 and len(grams(hashed([]), 1)) == 0


def test_jaccard_is_that_of_sets():
    """Intersection by the smaller set, or counted twice."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        a, b = (np.unique(rng.integers(0, 30, rng.integers(0, 30))) for _ in range(2))
        x, y = set(a.tolist()), set(b.tolist())
        assert jaccard(a, b) == (len(x & y) / len(x | y) if x | y else 0)


# --- what a near copy is --------------------------------------------------------------------------

COPIES = [
    STORY.upper(), STORY.replace(".", ""), STORY.replace("?", "!!"), "  " + STORY.replace(" ", "  "),
    STORY.replace("more", "moer"), STORY.replace("Then she", "She"), STORY.replace("buys", "gets"),
    STORY.replace("Mia has 12", "Mai has 12"), STORY.replace("gives away", "away gives"),
    STORY.replace("How", "Tell me: how"), STORY.replace("apples has Mia now", "apples does Mia have now"),
    STORY.replace("Mia", "Maia"), STORY.replace("apples", "aples"),  # twice the same typo
    STORY.replace("Mia has", "Ann has", 1),  # a name in one place of two: a slip
    "How many apples has Mia now? " + STORY.replace(" How many apples has Mia now?", ""),
]
OTHERS = [
    STORY.replace("12", "13"), STORY.replace("3", "4"), STORY.replace("5 more", "3 more").replace("away 3", "away 5"),
    STORY.replace("5", "five"), STORY.replace("Mia", "Tom"), STORY.replace("apples", "pears"),
    STORY.replace("Mia", "Tom").replace("She", "He").replace("she", "he"), STORY.replace("12", "-12"),
    STORY.replace("She buys 5 more. Then she gives away", "A friend takes 5 of them, a neighbor"),
    "", "12 5 3", STORY + " " + STORY,
]


@pytest.mark.parametrize("text, copy", [(t, True) for t in COPIES] + [(t, False) for t in OTHERS])
def test_a_near_copy_has_the_numbers_the_names_and_most_of_the_words(text, copy):
    """Either the filter eats the templates, or it finds nothing that was touched."""
    a, b = sketch(STORY, "12+5=17\n17-3=14\n14"), sketch(text, "12+5=17\n17-3=14\n14")
    assert similar(a, b) is similar(b, a) is copy


@pytest.mark.parametrize("prompt, a, b, copy", [
    ("Why is the sky blue at noon?", "Air scatters the short waves of the light more than the long ones.",
     "Air scatters the short waves of light more than the long ones!", True),
    ("Why is the sky blue at noon?", "Air scatters the short waves of the light more than the long ones.",
     "Blue light meets more of the air, and so it comes to us from everywhere.", False),
    ("Is the sky blue at noon?", "yes", "no", False), ("Is the sky blue at noon?", "Yes.", "yes", True),
    ("Who wrote the play that we saw on Monday?", "It was Shakespeare who wrote the play.",
     "It was Molière who wrote the play.", False),
])
def test_another_answer_to_the_same_prompt_is_no_copy(prompt, a, b, copy):
    """Best-of-n keeps several answers; and "no" is no copy of "yes", however long the question."""
    assert similar(sketch(prompt, a), sketch(prompt, b)) is copy


def test_a_pair_of_the_prompt_is_not_one_of_the_answer():
    """The signature takes both as one set; question and answer exchanged would look alike."""
    a, b = sketch("one two three four", "five six seven eight"), sketch("five six seven eight", "one two three four")
    assert (signature(a) == signature(b)).mean() < 0.1


# --- planted copies among thousands of stories ----------------------------------------------------

def planted(text, rng, row):
    """A near copy of an English story, as a careless hand or a second crawl would make it."""
    parts = text.split(" ")
    places = [i for i, word in enumerate(parts[:-1]) if word.isalpha() and word.islower()]
    i = rng.choice(places)
    kind = rng.choice(["typos", "upper", "no_punctuation", "order", "word", "swap", "insert", "delete"])
    if kind in ("typos", "upper", "no_punctuation", "order"):
        new = getattr(suites, kind)(rng, row, suites.drawn(row))
        return suites.text_of(new) if new else None
    other = rng.choice("really quickly old green today perhaps".split())
    parts[i:i + 1] = {"word": [other], "swap": [parts[i + 1], parts[i]], "insert": [parts[i], other],
                      "delete": []}[kind]
    if kind == "swap":
        del parts[i + 2]
    return " ".join(parts)


@pytest.fixture(scope="module")
def world():
    """4,000 English stories with their steps, 400 planted copies: sketches, {copy: original}."""
    rng, rows, copies = random.Random(3), [], {}
    while len(rows) < 4000:
        rows.append(stories.make_story(rng, "en", rng.randint(1, 4)))
    texts = [suites.text_of(row) for row in rows]
    for i in rng.sample(range(4000), 400):
        text = planted(texts[i], rng, rows[i])
        if text and text != texts[i]:
            copies[len(texts)] = i
            texts.append(text)
            rows.append(rows[i])
    answers = [row["conversations"][1] for row in rows]
    return [sketch(text, f"{a['reasoning_content']}\n{a['content']}")
            for text, a in zip(texts, answers)], copies


def search(sketches, verify=None):
    """find_copies -> what it found, how many questions it asked."""
    asked = []

    def ask(a, b):
        asked.append((a, b))
        return similar(sketches[a], sketches[b])
    signatures = np.array([signature(one) for one in sketches])
    gates = np.array([gate(one) for one in sketches], dtype=np.uint64)
    return find_copies(signatures, gates, verify or ask), asked


def test_planted_copies_are_found_and_clean_rows_are_kept(world):
    """Recall, precision and what is kept: each at least 95 %."""
    sketches, copies = world
    found, asked = search(sketches)
    assert len(copies) > 300
    right = sum(row in found for row in copies)
    assert right / len(copies) >= 0.95 and right / len(found) >= 0.95
    assert len([row for row in found if row not in copies]) <= 0.001 * 4000
    assert len(asked) == len(set(asked)) and all(a < b for a, b in asked)


def test_the_search_finds_what_brute_force_finds(world):
    """A band that is too long, or a bucket that is looked at in part, loses copies in silence."""
    sketches, _ = world
    found, _ = search(sketches)
    pairs = set(itertools.chain.from_iterable(
        itertools.combinations(group, 2) for group in groups(sketches).values()))
    copies = [(a, b) for a, b in pairs if similar(sketches[a], sketches[b])]
    assert len(copies) > 300
    assert sum(b in found or a in found for a, b in copies) >= 0.99 * len(copies)
    assert all(similar(sketches[a], sketches[b]) and a not in found for b, a in found.items())


def groups(sketches):
    """{numbers: rows}."""
    found = {}
    for i, one in enumerate(sketches):
        found.setdefault(one.numbers, []).append(i)
    return found


def test_the_same_story_with_other_numbers_or_another_name_is_kept():
    """Names are what the suites change: without them the student learns Mia by heart."""
    rng, kept = random.Random(4), {"numbers": 0, "name": 0}
    for _ in range(400):
        row = stories.make_story(rng, "en", rng.randint(1, 4))
        story, a = suites.drawn(row), row["conversations"][1]["content"]
        names = [name for name in NAMES["en"] if name[0] != story["name"][0]]
        renamed = stories.tell(**{**story, "name": rng.choice(names)})
        text = suites.text_of(row)
        counted = re.sub(r"\d+", lambda m: str(int(m[0]) + 1), text, count=1)
        for kind, other in (("name", suites.text_of(renamed)), ("numbers", counted)):
            kept[kind] += not similar(sketch(text, a), sketch(other, a))
    assert kept["numbers"] == 400 and kept["name"] >= 0.95 * 400


# --- candidates -----------------------------------------------------------------------------------

def test_signatures_agree_as_the_sets_do(world):
    """A hash family that is none: the agreement would not be the similarity."""
    sketches, copies = world
    rng, wrong = random.Random(0), []
    pairs = [*copies.items(), *((rng.randrange(4000), rng.randrange(4000)) for _ in range(300))]
    for a, b in pairs:
        both = [np.concatenate([sketches[i].prompt, sketches[i].answer]) for i in (a, b)]
        agree = (signature(sketches[a]) == signature(sketches[b])).mean()
        wrong.append(agree - jaccard(*map(np.sort, both)))
    assert max(map(abs, wrong)) < 0.17 and abs(np.mean(wrong)) < 0.01


def test_a_long_text_has_the_signature_of_all_its_words():
    """Cut into blocks for the memory: a block that is lost is a text that is cut off."""
    text = [f"w{i}" for i in range(5000)]
    whole, rest = (sketch("", " ".join(part)) for part in (text, text[1000:]))
    both = np.concatenate([whole.prompt, whole.answer])
    slow = ((both[None] * near.SLOPES + near.SHIFTS).min(1) >> np.uint64(16)).astype(np.uint8)
    assert (signature(whole) == slow).all()
    assert abs((signature(whole) == signature(rest)).mean() - 0.8) < 0.1


def test_candidates_share_a_gate_and_a_band_and_are_few():
    """A pair across gates is lost time, a row without its pair a lost copy; all pairs are too many."""
    rng = np.random.default_rng(0)
    signatures = rng.integers(0, 3, (300, 160), dtype=np.uint8)
    gates = rng.integers(0, 4, 300).astype(np.uint64)
    bands = signatures.reshape(300, BANDS, 4)
    pairs = neighbours(signatures, gates)
    assert (pairs[:, 0] < pairs[:, 1]).all() and (np.diff(pairs[:, 1]) >= 0).all()
    assert len(set(map(tuple, pairs.tolist()))) == len(pairs)
    assert np.bincount(pairs[:, 1]).max() <= 2 * BANDS
    for a, b in pairs:
        assert gates[a] == gates[b] and (bands[a] == bands[b]).all(1).any()
    for b in range(300):
        meets = (gates[:b] == gates[b]) & (bands[:b] == bands[b]).all(2).any(1)
        assert meets.any() == (b in pairs[:, 1])
        assert not meets.any() or [meets.argmax(), b] in pairs[pairs[:, 1] == b].tolist()
    assert len(neighbours(signatures[:0], gates[:0])) == len(neighbours(signatures[:1], gates[:1])) == 0


def test_ten_thousand_copies_cost_ten_thousand_questions():
    """Each with each would be fifty million; and all stand for the first."""
    one = np.tile(signature(sketch(STORY, "14")), (10_000, 1))
    asked = []
    found = find_copies(one, np.zeros(10_000, dtype=np.uint64), lambda a, b: asked.append((a, b)) or True)
    assert found == dict.fromkeys(range(1, 10_000), 0) and len(asked) == 9_999


def test_a_row_meets_the_row_before_it_and_what_that_one_copies():
    """In a bucket that begins with a stranger: the copies behind it would be lost, or kept in turns."""
    same = np.tile(signature(sketch(STORY, "14")), (5, 1))
    found = find_copies(same, np.zeros(5, dtype=np.uint64), lambda earlier, later: earlier == 1)
    assert found == {2: 1, 3: 1, 4: 1}


def test_a_row_is_compared_with_those_that_agree_best_and_with_few():
    """It may meet two others in each band: eighty comparisons a row are hours."""
    rng = np.random.default_rng(0)
    rows = np.tile(rng.integers(0, 256, 160, dtype=np.uint8), (31, 1))
    for i in range(30):  # each agrees with the last row in half of the bands, the one before in more
        changed = rng.permutation(BANDS)[:BANDS // (4 if i == 29 else 2)]
        rows[i].reshape(BANDS, 4)[changed] = i
    asked = []
    find_copies(rows, np.zeros(31, dtype=np.uint64), lambda *pair: asked.append(pair))
    last = [earlier for earlier, later in asked if later == 30]
    assert len(last) == near.QUESTIONS == 4 and last[0] == 29
    assert len(neighbours(rows, np.zeros(31, dtype=np.uint64))) > 31 * near.QUESTIONS


def test_rows_that_only_look_alike_cost_a_bounded_number_of_questions():
    """A template without numbers: everybody meets everybody, and nobody is a copy."""
    counts = []
    for n in (1000, 2000):
        same = np.tile(signature(sketch(STORY, "14")), (n, 1))
        asked = []
        assert find_copies(same, np.zeros(n, dtype=np.uint64), lambda *pair: asked.append(pair)) == {}
        counts.append(len(asked))
    assert counts[1] <= 2.3 * counts[0] and counts[1] <= near.QUESTIONS * 2000


def test_a_template_with_another_number_in_each_row_costs_nothing():
    """One row a hundred thousand times with a changed digit must not be compared at all."""
    sketches = [sketch(STORY.replace("12", str(100 + i)), str(114 + i)) for i in range(500)]
    gates = np.array([hash(one.numbers) % 2**62 for one in sketches], dtype=np.uint64)
    assert len(neighbours(np.array([signature(one) for one in sketches]), gates)) == 0


def test_twice_the_stories_are_at_most_2_3_times_the_candidates(world):
    """The time is in the candidates: were they quadratic, twice the rows would be four times."""
    sketches, _ = world
    signatures = np.array([signature(one) for one in sketches])
    gates = np.array([gate(one) for one in sketches], dtype=np.uint64)
    half, whole = (len(neighbours(signatures[:n], gates[:n])) for n in (len(sketches) // 2, len(sketches)))
    assert whole <= max(2.3 * half, 2 * BANDS * 20)


def test_a_process_finds_what_another_finds():
    """Python's hash() differs from process to process: another file each time."""
    code = ("import sys, json; from blackbox.near import *;"
            "print(json.dumps([signature(sketch(*json.loads(sys.argv[1]))).tolist(),"
            "grams(hashed(words(sys.argv[1])), 3).tolist()]))")
    said = [subprocess.run([sys.executable, "-c", code, json.dumps([STORY, "14 äpfel 苹果"])], cwd=ROOT,
                           env={"PYTHONHASHSEED": seed, "PATH": ""}, capture_output=True, check=True).stdout
            for seed in ("0", "1")]
    assert said[0] == said[1] and len(said[0]) > 500


@pytest.mark.parametrize("every, found", [(7, True), (6, False)])
def test_one_word_in_seven_may_be_another(every, found):
    """What the threshold means in words, as the top of near.py and --help tell it."""
    text = [chr(97 + i % 26) * (2 + i // 26) for i in range(50)]
    other = [word + word if i % every == 3 else word for i, word in enumerate(text)]
    a, b = (sketch("", " ".join(t)) for t in (text, other))
    assert THRESHOLD == 0.55 and similar(a, b) is found and similar(a, b, jaccard(a.answer, b.answer))
