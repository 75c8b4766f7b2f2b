"""Claims about blackbox/overlap.py: what gives a question away is found, what shares a template is not."""
import json
import random

import pytest

from cli import UserError
from dataset import stories, suites
from dataset.formats import parse_row
from blackbox.overlap import leak, read_questions, runs
from blackbox.near import words

CLIPS = ("Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
         "May. How many clips did Natalia sell in both months?")
NILE = ("Which of the long rivers of the world flows through the desert to the sea and feeds a whole "
        "country on its way?")
SHORT = "What is 2+3?"


def question(text, answer="#### 5"):
    return {"question": text, "answer": answer}


@pytest.fixture
def known(tmp_path):
    """A function: `known(text, ...)` -> the Questions of a file that asks them."""
    def make(*texts):
        path = tmp_path / "test.jsonl"
        path.write_text("".join(json.dumps(question(text)) + "\n" for text in texts), encoding="utf-8")
        return read_questions([path])
    return make


def leaks(known, row):
    """The index of the question that a row gives away, or None."""
    document = parse_row(row)
    sides = ["\n".join(t.content for t in document[:-1]),
             "\n".join(part or "" for part in (document[-1].think, document[-1].answer, document[-1].content))]
    return leak(known, document, sides)


def piece(text, first, count):
    return " ".join(text.split()[first:first + count])


@pytest.mark.parametrize("row, asked", [
    (question(CLIPS), 0), (question(CLIPS.upper().replace(",", "")), 0), (question(f"Solve this. {CLIPS} Think!"), 0),
    (question("What did she ask?", f"She asked: {CLIPS}\n#### 72"), 0),
    (question("A rather different start, but then she " + piece(CLIPS, 9, 30)), 0),
    (question("Well: " + piece(CLIPS, 1, 13)), 0),               # a piece with a part of the numbers
    (question("Well: " + piece(CLIPS, 1, 12)), None),            # 12 words
    (question(CLIPS.replace("48", "52")), None),                 # another problem of that template
    (question("Well: " + piece(NILE, 3, 13)), 1), (question("Well: " + piece(NILE, 3, 12)), None),
    (question("In 1902 somebody asked me: " + piece(NILE, 3, 13)), 1),
    (question("what is 2 + 3"), 2), (question(SHORT.replace("+", "-")), None),
    (question("Please tell me, what is 2+3?"), None),            # short: the whole question alone
    ({"messages": [{"role": "user", "content": "Ask me!"}, {"role": "assistant", "content": SHORT}]}, None),
    ({"conversations": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": SHORT},
                        {"role": "assistant", "content": "5"}]}, 2),
    ({"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."},
                   {"role": "user", "content": SHORT}, {"role": "assistant", "content": "5"}]}, 2),
    ({"messages": [{"role": "user", "content": piece(NILE, 0, 7)},
                   {"role": "assistant", "content": piece(NILE, 7, 9)}]}, None),  # across two turns
])
def test_a_question_is_given_away_by_itself_or_by_13_words_of_it(row, asked, known):
    """Twelve words are chance, a changed number is another problem, a prefix hides nothing."""
    assert leaks(known(CLIPS, NILE, SHORT), row) == asked


def test_a_row_and_a_text_are_questions_too(tmp_path):
    """Evaluation files come in every format; a plain text is one long question."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": NILE}) + "\n\n" + json.dumps(
        {"instruction": "Sum up.", "input": CLIPS, "output": "She sells clips."}) + "\n")
    known = read_questions([tmp_path / "a.jsonl"])
    assert leaks(known, question("Look: " + piece(NILE, 5, 14))) == 0
    assert leaks(known, question("Look: " + CLIPS)) == 1
    assert known.asked[1][0].endswith("a.jsonl:3")
    assert leak(known, parse_row({"text": NILE}), ["", NILE]) == 0


def test_an_instruction_that_all_questions_share_is_no_leak(known):
    """"Please reason step by step ..." behind each question: everything would be dropped."""
    rng = random.Random(0)
    how = "Please think about it step by step and write the final answer into a box at the end."
    asked = [" ".join(rng.choices("abcdefgh", k=9)) + "? " + how for _ in range(21)]
    row = question("Why is grass green? " + how)
    assert leaks(known(*asked[:20]), row) is not None and leaks(known(*asked), row) is None
    assert leaks(known(*asked), question("So: " + asked[7])) == 7


def test_chinese_has_runs_of_26_letters(known):
    """13 letters are six or seven words: one sentence of a template."""
    rng = random.Random(0)
    letters = "".join(rng.sample([chr(0x4E00 + i) for i in range(3000)], 60))
    assert leaks(known(letters), question("说" + letters[10:36])) == 0
    assert leaks(known(letters), question("说" + letters[10:35])) is None
    assert len(runs(words(letters))) == 60 - 25 and len(runs(words("a " * 20))) == 8


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_clean_stories_are_kept_and_copied_ones_are_found(lang, known):
    """13 words in a row are shared by one clean story in nine: a filter that eats the templates."""
    rng, rows, seen = random.Random(1), {"train": [], "test": []}, set()
    while len(rows["test"]) < 300:
        row = stories.make_story(rng, lang, rng.randint(1, 4))
        split = stories.split_of(row)
        if split in rows and row["id"] not in seen:
            rows[split].append(row)
            seen.add(row["id"])
    found = known(*map(suites.text_of, rows["test"]))
    clean = [leaks(found, row) is None for row in rows["train"][:3000]]
    assert len(clean) == 3000 and sum(clean) >= 0.98 * len(clean)
    for i, row in enumerate(rows["test"]):
        text = suites.text_of(row)
        assert leaks(found, question(text.lower())) is not None
        if len(words(text)) >= (30 if lang == "zh" else 15):
            assert leaks(found, question("Hm. " + text + " Well?")) is not None


def test_a_bad_line_of_an_evaluation_file_is_an_error(tmp_path):
    """Half of the questions read, and the rest leak."""
    (tmp_path / "test.jsonl").write_text(json.dumps(question(SHORT)) + "\n{\n")
    with pytest.raises(UserError, match="test.jsonl:2: broken JSON"):
        read_questions([tmp_path / "test.jsonl"])
