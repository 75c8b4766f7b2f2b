"""Claims about blackbox/near.py: near copies are found, rows with other numbers or names are not."""
import itertools
import random
import re

import pytest

from blackbox import near
from blackbox.near import find_copies, numbers, similar, words
from dataset import stories

STORY = "Mia has 12 apples. She buys 5 more. Then she gives away 3. How many apples has Mia now?"


@pytest.mark.parametrize("text, found", [
    ("Mia's 12 apples!", "mia s 12 apples"), ("MIA  \n has", "mia has"), ("１２３，ａｂ", "123 ab"),
    ("1,234.50 and 1,2", "1234.50 and 1,2"), ("50 % or 50%", "50 or 50%"), ("小红有5个", "小 红 有 5 个"),
    ("3-5 x+y = -2", "3 - 5 x + y = - 2"), ("e-mail, well-known - no", "e mail well known no"),
    ("x−1", "x - 1"), ("3½", "3 1 / 2"), ("5²", "5 ²"), ("😀 ok", "😀 ok"), ("H2O", "h 2 o"),
    ("Ünïcode straße", "ünïcode strasse"), ("שלום עולם", "שלום עולם"), ("สวัสดี", "ส ว ั ส ด ี"),
    (" !!! ", "!!!"), ("", None)])
def test_words_are_without_case_punctuation_and_width_but_with_signs(text, found):
    """2+3 and 2-3 would be one question, "apples." and "apples" two words, and !!! and ??? copies."""
    assert words(text) == ([""] if found is None else found.split())


@pytest.mark.parametrize("text, expected", [
    (STORY, "12 5 3"), ("17-3=14", "17 - 3 = 14"), ("17 - 3", "17 - 3"), ("a 50% cut", "50%"),
    ("五个 and five", ""), ("", ""), ("!?", ""), ("- 5", "- 5"), ("1,000 is 1000", "1000 1000")])
def test_numbers_keep_their_order_and_signs(text, expected):
    """If numbers were sorted or had no signs, 5-3, 3-5 and 3+5 would be the same."""
    assert numbers(words(text)).split() == expected.split()


COPIES = [
    STORY.upper(), STORY.replace(".", ""), STORY.replace("?", "!!"), "  " + STORY.replace(" ", "  "),
    STORY.replace("more", "moer"), STORY.replace("Then she", "She"), STORY.replace("buys", "gets"),
    STORY.replace("Mia has 12", "Mai has 12"), STORY.replace("gives away", "away gives"),
    STORY.replace("How", "Tell me: how"), STORY.replace("apples has Mia now", "apples does Mia have now"),
    STORY.replace("Mia", "Mai"), STORY.replace("apples", "aplpes"),  # the same typo twice
    STORY.replace("Mia has", "Ann has", 1),  # a name changed in one of two places: a typo
    "How many apples has Mia now? " + STORY.replace(" How many apples has Mia now?", "")]
OTHERS = [
    STORY.replace("12", "13"), STORY.replace("3", "4"), STORY.replace("5 more", "3 more").replace("away 3", "away 5"),
    STORY.replace("5", "five"), STORY.replace("Mia", "Tom"), STORY.replace("apples", "pears"),
    STORY.replace("Mia", "Tom").replace("She", "He").replace("she", "he"), STORY.replace("12", "-12"),
    STORY.replace("She buys 5 more. Then she gives away", "A friend takes 5 of them, a neighbor"),
    "", "12 5 3", STORY + " " + STORY]


def copies(*rows):
    return find_copies([("", *row) for row in rows])


@pytest.mark.parametrize("text, copy", [(t, True) for t in COPIES] + [(t, False) for t in OTHERS])
def test_a_near_copy_has_the_numbers_the_names_and_most_of_the_words(text, copy):
    """The filter would drop other problems of the same template, or miss every copy that was edited."""
    a, b = (STORY, "12+5=17\n17-3=14\n14"), (text, "12+5=17\n17-3=14\n14")
    assert copies(a, b) == copies(b, a) == ({1: 0} if copy else {})


@pytest.mark.parametrize("prompt, a, b, copy", [
    ("Why is the sky blue at noon?", "Air scatters the short waves of the light more than the long ones.",
     "Air scatters the short waves of light more than the long ones!", True),
    ("Why is the sky blue at noon?", "Air scatters the short waves of the light more than the long ones.",
     "Blue light meets more of the air, and so it comes to us from everywhere.", False),
    ("Is the sky blue at noon?", "yes", "no", False), ("Is the sky blue at noon?", "Yes.", "yes", True),
    ("Who wrote the play that we saw on Monday?", "It was Shakespeare who wrote the play.",
     "It was Molière who wrote the play.", False), ("what?", "!!!", "???", False),
    ("what?", "😀", "😂", False)])
def test_another_answer_to_the_same_prompt_is_no_copy(prompt, a, b, copy):
    """Best-of-n would lose answers: "no" would be a copy of "yes" if the question is long."""
    assert copies((prompt, a), (prompt, b)) == ({1: 0} if copy else {})


@pytest.mark.parametrize("every, found", [(7, True), (6, False)])
def test_one_word_in_seven_may_be_another(every, found):
    """near.py says that about one word in seven may differ. Another threshold would make that wrong."""
    text = [chr(97 + i % 26) * (2 + i // 26) for i in range(50)]
    other = [word + word if i % every == 3 else word for i, word in enumerate(text)]
    assert similar(("", " ".join(text)), ("", " ".join(other))) is found


def planted(text, rng):
    """An English story -> a near copy of it: one word changes, or all of its case or punctuation."""
    parts = text.split(" ")
    i = rng.choice([i for i, word in enumerate(parts[:-1]) if word.isalpha() and word.islower()])
    other = rng.choice("really quickly old green today perhaps".split())
    parts_for = dict(typo=[parts[i][1:] + parts[i][0]], word=[other], insert=[parts[i], other], delete=[],
                     swap=[parts[i + 1], parts[i]])
    kind = rng.choice(["upper", "no punctuation", *parts_for])
    if kind in parts_for:
        parts[i:i + 1 + (kind == "swap")] = parts_for[kind]
        return " ".join(parts)
    return text.upper() if kind == "upper" else re.sub(r"[.,?!]", "", text)


def test_the_search_finds_planted_copies_and_what_brute_force_finds():
    """A bucket that is searched only in part would lose copies. Oracle: brute force over rows with equal numbers."""
    rng, rows, originals = random.Random(3), [], {}
    while len(rows) < 2000:
        story, answer = stories.make_story(rng, "en", rng.randint(1, 4))["conversations"][:2]
        rows.append((story["content"], f"{answer['reasoning_content']}\n{answer['content']}"))
    for i in rng.sample(range(2000), 300):
        text = planted(rows[i][0], rng)
        if text != rows[i][0]:
            originals[len(rows)] = i
            rows.append((text, rows[i][1]))
    found, groups = copies(*rows), {}
    assert len(found.keys() & originals) >= 0.95 * max(len(originals), len(found)) > 0.95 * 280
    for i, row in enumerate(rows):
        groups.setdefault(numbers(words(row[0]) + words(row[1])), []).append(i)
    pairs = [(a, b) for group in groups.values() for a, b in itertools.combinations(group, 2)
             if similar(rows[a], rows[b])]
    assert len(pairs) > 280 and sum(b in found or a in found for a, b in pairs) >= 0.99 * len(pairs)
    assert all(a < b and similar(rows[a], rows[b]) and a not in found for b, a in found.items())


def test_the_number_of_exact_comparisons_is_bounded(monkeypatch):
    """A hundred thousand rows of one template would take hours if all pairs were compared."""
    assert copies(*[(STORY, "14")] * 500) == dict.fromkeys(range(1, 500), 0)  # one comparison a row, not all pairs
    pairs = []
    monkeypatch.setattr(near, "similar", lambda *pair: pairs.append(pair))
    assert copies(*[(STORY.replace("12", str(i)), "14") for i in range(100, 400)]) == {}
    assert find_copies([(i, STORY, "14") for i in range(300)]) == {} and not pairs
    rng = random.Random(0)
    alike = [(" ".join(rng.choices("abcdef", k=12)), "Yes.") for _ in range(200)]
    assert copies(*alike) == {} and 200 < len(pairs) <= near.QUESTIONS * 200


def test_a_process_finds_what_another_finds():
    """Python's hash() differs from process to process. With it, each run would write another file."""
    assert near.bands("Mia has 12 apples.", "14 äpfel 苹果")[7] == (
        7, 2139934098939880219, 332186625349450576, 1175562194961059754)
