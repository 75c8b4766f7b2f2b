"""Claims about blackbox/filter.py: each row is kept unchanged, or dropped for one reason."""
import json
import os
import random
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import common
from blackbox.filter import REASONS, leak, read_questions, read_row, runs
from blackbox.near import words
from dataset import stories
from dataset.formats import read_documents

ASKED = "Mia has 12 apples and buys 5 more. How many apples does she have now?"
GOOD = {"question": ASKED, "answer": "She has 12+5=17 apples.\n#### 17"}
OWN = dict(operation="none", source="x:1", label="kept")  # keys of generate.py's rows
RAW = dict(OWN, conversations=[dict(role="user", content=ASKED)], reference="17", model="teacher-1",
           finish_reason="stop", verdict="ok", seed=7, reasoning_content="12+5=17", content="17")


def turns(question, answer, **keys):
    pair = zip(("user", "assistant"), (question, answer))
    return {"messages": [dict(role=role, content=text) for role, text in pair], **keys}


def write_rows(path, *rows):
    path.write_bytes(b"".join(row if isinstance(row, bytes) else
                              (json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows))
    return path


@pytest.fixture
def sift(call, tmp_path):
    """Returns a function: `sift(rows, *flags)` -> status, kept lines, dropped rows, reasons, card, output."""
    write_rows(tmp_path / "none.jsonl", turns("Which?", "That."))

    def run(rows, *flags, name="in.jsonl", out="out.jsonl", against=tmp_path / "none.jsonl"):
        path, out = tmp_path / name, tmp_path / out
        if rows is not None:
            write_rows(path, *rows)
        done = call("blackbox.filter", f"--input={path}", f"--out={out}", *flags,
                    *([f"--against={against}"] if against else []))
        files = [Path(f"{out}{end}") for end in ("", ".dropped.jsonl", ".card.md")]
        kept, dropped, card = (file.read_bytes() if file.exists() else b"" for file in files)
        dropped = [*map(json.loads, dropped.splitlines())]
        return SimpleNamespace(
            status=done.status, words=done.out + done.err, path=path, out=out, dropped=dropped,
            kept=kept.splitlines(True), card=card.decode(), reasons=[row.get("dropped") for row in dropped])
    return run


LOOP = "So the answer is 17, and so "
PROSE = ("The sky is blue because the air scatters short waves of light far more than long ones, and "
         "so blue light comes to us from every part of it, not from the sun alone.")
TABLE = "+----+-------+\n| id | value |\n+----+-------+\n{}+----+-------+".format(
    "".join(f"| {i:2} | {i * 37 % 101:5} |\n" for i in range(12)))
MATRIX = "\n".join(" ".join("01"[i == j] for j in range(8)) for i in range(8))
LATEX = "\\begin{pmatrix} 1 & 0 & 0 \\\\ 0 & 1 & 0 \\\\ 0 & 0 & 1 \\end{pmatrix}"
SCRIPTS = ("Հայերեն գրված պատասխան", "ქართულად დაწერილი პასუხი", "আমি বাংলায় গান গাই, আমি বাংলার গান গাই",
           "나는 사과를 좋아합니다", "אני אוהב תפוחים מאוד")
BAD = {
    "truncation": [
        turns(ASKED, "She has 12+", finish_reason="length"), turns(ASKED, "<think>She has 12+"),
        turns(ASKED, "She has 12+", finish_reason="abort"),  # a reason that is not known
        turns(ASKED, "She has 12+", verdict="truncated"), turns(ASKED, "<think>She has 17</think><answer>1"),
        {**RAW, "content": None, "verdict": "failed", "finish_reason": "length"}],
    "format": [turns(ASKED, "17", verdict="format"),
               turns(ASKED, "<think>a</think><answer>17</answer> and more")],
    "answer": [
        turns(ASKED, "18", verdict="wrong answer"), turns(ASKED, "It is 18.", reference="17", **OWN),
        {**RAW, "content": None, "verdict": "refused", "finish_reason": None}, turns(ASKED, ""),
        {**RAW, "content": "18", "verdict": None}, turns(ASKED, " \n"), {"question": ASKED, "answer": ""},
        turns(ASKED, "<think>17</think><answer>17 or 18</answer>", reference="17", **OWN),
        turns("Where?", "In Rome", reference="Paris", verdict="unverified", **OWN)],
    "length": [turns(ASKED, " ".join(map(str, range(5000)))), turns("y" * 20_001, "17"),
               {"text": " ".join(map(str, range(6000)))}],
    "repetition": [
        turns(ASKED, LOOP * 20), turns(ASKED, PROSE + " " + LOOP * 12), turns(ASKED, "ha" * 300),
        turns(ASKED, " ".join(map(str, range(500))) + LOOP * 12),  # only the end is a loop
        turns(ASKED, "<think>" + LOOP * 20 + "</think><answer>17</answer>"), turns(ASKED, "17, " * 120),
        turns(ASKED, "12+5=17\n" * 30), turns("笑一笑吧，好吗", "哈" * 100)],
    "language": [
        turns(ASKED, "她现在一共有十七个苹果"), *[turns(ASKED, text) for text in SCRIPTS],
        turns(ASKED, f"<think>{PROSE}</think><answer>她现在一共有十七个苹果</answer>"),
        turns("小红有12个苹果，又买了5个，一共几个？", "She has 17 apples in all.")],
    "overlap": [turns("which", "A stranger.")],
    "exact": [{"question": " " + ASKED.upper(), "answer": "she has  12+5=17 APPLES.\n#### 17"}],
    "near": [{"question": ASKED.replace("more", "moer"), "answer": "She has 12+5=17 apples\n#### 17"}],
}
FINE = [
    turns(ASKED, "She has 17.", finish_reason="stop", verdict="ok"), turns(ASKED, "It is <b>17</b>."),
    turns(ASKED, "17 of them", verdict="unverified", finish_reason="EOS"), turns(ASKED, PROSE),
    turns(ASKED, "So 17", verdict="a new word", finish_reason=None), turns("<answer>", "What is <br> for?"),
    turns("What is <think>?", "It opens a thought."), turns(ASKED, "It is 17", reference="17.0", **OWN),
    turns(ASKED, "See there", reference="https://example.org"),  # somebody else's column of that name
    turns("Where?", "In Paris.", reference="Paris", **OWN), turns("A?", "Yes.", reference="yes", **OWN),
    turns(ASKED, "It is 18", reference="17", verdict="ok", **OWN),  # a verdict is trusted
    turns("Count.", " ".join(map(str, range(1, 200)))), turns("Sing.", "la la la la"),
    turns("Show the table.", TABLE), turns("The unit matrix?", MATRIX), turns("In LaTeX?", LATEX * 2),
    turns("A line?", "-" * 300 + "\n" + "- " * 99), turns(ASKED, "十七"),
    turns("用Python写一个函数", "```python\ndef add(first, second):\n    return first + second\n```"),
    turns("求和", "\\frac{1}{2} + \\sqrt{x} = \\text{sum}"), turns("2+3=?", "五，因为二加三等于五"),
    turns("Translate 你好 for me", "你好 means hello, or good day"), turns("In Greek", "ναι"),
    turns("我喜欢苹果: I like pears and apples?", "我喜欢吃梨，也喜欢吃苹果，谢谢你们"),
    turns("Explain machine learning to me", "机器学习 (machine learning) 是一种方法"),
    turns("これは何ですか、教えてください", "本当 です。林檎 と 梨 があります"),
    *[turns(text, text + " (English)") for text in SCRIPTS],
    {"text": PROSE}, {"text": "短文。"}, turns("😀", "😀😂"), turns("😀", "😂😂"), RAW,
    # other people's data: a label that is a list, no letters in a text
    *[turns(f"{key} {value}?", f"{i}.", **{key: value}) for i, value in enumerate((5, "", [], {"a": [1]}))
      for key in ("operation", "verdict", "reference", "source")],
    *[turns(text, text + "!") for text in ("\x00", "\u202eabc", "é" * 50, "1/0", "９" * 99)],
    {"question": "Who asked?", "answer": "I.", "seed": 5, "temperature": 36.6, "max_new_tokens": 1},
]


def test_a_bad_row_is_dropped_for_its_reason_and_not_for_another(sift):
    """A wrong reason would lead the user to a wrong fix."""
    done = sift([GOOD, *sum(BAD.values(), [])])
    assert done.reasons == [reason for reason, rows in BAD.items() for _ in rows]
    assert done.kept == [(json.dumps(GOOD) + "\n").encode()]


def test_good_rows_stay_and_a_rule_that_is_off_drops_nothing(sift):
    """A filter that is too strict loses hard and unusual rows, or mistakes the first row for a header."""
    off = [*BAD["length"], *BAD["repetition"], *BAD["language"]]
    for rows, flags in ((FINE[::-1], ()), (off, ["--fresh", "--off=length,repetition,language"])):
        done = sift([*rows, GOOD], *flags)
        assert done.status == 0 and done.dropped == [], done.dropped
        assert len(done.kept) == len(rows) + 1
    assert sift([GOOD], "--off=nearly").status == 2


def test_a_row_has_only_the_first_reason(sift):
    """If a row counted twice, there would be more reasons than dropped rows."""
    loop = turns("which", LOOP * 20, reference="1", **OWN)
    rows = [dict(loop, finish_reason="length", verdict="wrong answer"), dict(loop, verdict="format"), loop,
            turns("which", LOOP * 1000), turns("which", LOOP * 20), turns("which", "她现在一共有十七个苹果" * 2)]
    assert sift([GOOD, *rows]).reasons == [*REASONS[:5], "overlap"]  # "which" has too few letters


def test_the_first_good_row_is_kept_and_named(sift):
    """Chance must not decide which copy stays. A copy of a row dropped for another reason must stay."""
    rows = [turns(ASKED, GOOD["answer"], finish_reason="length"), GOOD, turns("Other?", "Yes."), GOOD,
            {**GOOD, "question": ASKED.replace("?", "!")}, GOOD]
    done = sift(rows)
    assert [json.loads(line) for line in done.kept] == rows[1:3]
    assert [(row["dropped"], row.get("of")) for row in done.dropped] == [
        ("truncation", None), ("exact", "in.jsonl:2"), ("near", "in.jsonl:2"), ("exact", "in.jsonl:2")]


def test_a_changed_prompt_or_system_turn_is_no_copy_of_its_seed(sift):
    """prompts.py makes typos on purpose, and the filter would drop these rows as copies."""
    typo, system = ASKED.replace("apples", "aplpes"), [dict(role="system", content="Be kind.")]
    rows = [turns(ASKED, "It is 17.", operation="none"), turns(typo, "It is 17.", operation="typos"),
            {"messages": system + turns(typo, "It is 17.")["messages"], "operation": "none"},
            turns(ASKED.replace("buys", "bysu"), "It is 17.", operation="none")]
    assert sift(rows).dropped == [{**rows[3], "dropped": "near", "of": "in.jsonl:1"}]


def test_every_format_is_read_and_its_lines_stay_as_they_were(sift):
    """A row that is parsed and written again can change its spaces, escapes or key order."""
    lines = [b'\xef\xbb\xbf{"text":  "One \\u00e9 text, about the sky and the sea."}\r\n', b'\n',
             b'  {"conversations": [{"role":"user","content":"A question?"},{"role":"assistant",'
             b'"content":"<think>t</think><answer>An answer.</answer>"}] , "n": 1.0, "n": 2} \n', b" \n",
             '{"messages": [{"role": "user", "content": "你好吗"}, '
             '{"role": "assistant", "content": "我很好"}], "half": "\\ud83d"}\n'.encode(),
             b'{"instruction": "Add 2 and 3", "input": "", "output": "5"}\n',
             b'{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\\n#### 4"}']
    done = sift(lines)
    assert b"".join(done.kept) == b"".join(line for line in lines if line.strip()) + b"\n"
    assert len(list(read_documents(done.out))) == 5
    done = sift([lines[0], lines[2], *lines[:3]], "--fresh")
    assert done.reasons == ["exact"] * 2 and done.kept == [lines[0], lines[2]]
    raw = (done.out.parent / "out.jsonl.dropped.jsonl").read_bytes().splitlines(keepends=True)
    assert raw[0] == lines[0].strip()[3:-1] + b', "dropped": "exact", "of": "in.jsonl:1"}\n'


def test_the_raw_file_of_generate_is_read(sift):
    """The raw file's first line has the settings, not a row, and its conversations end with the question."""
    header = {"model": "", "system": "", "temperature": 0.7, "max_new_tokens": 128, "seed": 0}
    rows = [header, RAW, {**RAW, "content": None, "verdict": "truncated", "finish_reason": "length"},
            {**RAW, "content": "18", "verdict": "wrong answer"}]
    done = sift(rows, name="t.jsonl.all.jsonl")
    assert done.status == 0 and done.reasons == ["truncation", "answer"]
    assert [json.loads(line) for line in done.kept] == [RAW]
    assert re.search(r"next: python blackbox/filter.py --input \S+/t.jsonl$", done.words.strip())
    assert sift([RAW, header], out="2.jsonl").status == 2  # in another line, a row could be lost


def test_a_bad_line_is_named_or_counted(sift):
    """A line that is neither kept nor dropped would be silently lost."""
    done = sift([GOOD, b"{}\n", turns("Other?", "Yes.")])
    assert done.status == 2 and f"{done.path}:2: " in done.words and not done.kept
    done = sift(None, "--skip-bad-lines")
    assert done.status == 0 and len(done.kept) == 2 and done.dropped == [] and ": 1 (" in done.words


def test_every_row_is_in_one_of_the_two_files_and_counted_on_the_card(sift):
    """A row could be lost, or the counts on the card could differ from the files."""
    rng, bad = random.Random(0), sum(BAD.values(), [])
    rows = [rng.choice([turns(f"Q {i % 40}?", f"A {i % 30}."), rng.choice(bad)]) for i in range(300)]
    done = sift(rows)
    back = [{k: v for k, v in row.items() if k not in ("dropped", "of")} for row in done.dropped]
    back += [json.loads(line) for line in done.kept]
    assert sorted(map(json.dumps, rows)) == sorted(map(json.dumps, back))
    for reason in REASONS:
        assert re.search(rf"^\| {reason} \| {done.reasons.count(reason)} \|", done.card, re.M)
    card = sift([turns("abc", "<think>t</think>78"), turns("abcdefg", "One.")], "--fresh").card
    assert "| prompt | 3 | 5 | 7 | 7 |" in card and "| answer | 4 | 4 | 4 | 4 |" in card


def test_the_same_command_again_is_finished_and_another_is_refused(sift, tiny_tokenizer, out_dir):
    """Another command's file could pass for this one's. A student without a fitting tokenizer was the next command."""
    question = "How many pears has she now?"
    assert "next: python tokenizer/train.py" in sift([turns(question, "Yes.")], out="1.jsonl").words
    tiny_tokenizer.save(out_dir / "tokenizer.model")
    assert "next: python tokenizer/train.py" in sift([turns("她有多少梨？", "七个。")], out="2.jsonl").words
    thought = turns(question, "<think>a</think><answer>b</answer>")
    done = sift([thought])
    assert "next: python train_distill_reason.py --name student-out --data" in done.words
    assert "already made" in sift(None).words
    again = sift([turns(question, "b")])
    assert again.status == 2 and again.kept == done.kept and again.dropped == done.dropped
    assert "train_distill_responses.py" in sift(None, "--fresh").words  # no thoughts
    done.out.write_text("mine\n")
    assert sift(None).status == 2 and done.out.read_text() == "mine\n"


@pytest.mark.parametrize("end", ["", ".dropped.jsonl", ".card.md"])
def test_a_run_that_was_killed_between_its_files_goes_on(end, sift, monkeypatch):
    """After a kill, filter.py always refused its own output: "is there, without a card"."""
    replace = os.replace

    def killed(source, target):
        if str(target).endswith("out.jsonl" + end):
            raise KeyboardInterrupt
        replace(source, target)
    monkeypatch.setattr(common.os, "replace", killed)
    assert sift([GOOD, GOOD]).status == 130
    monkeypatch.undo()
    done = sift(None)
    assert done.status == 0 and len(done.kept) == 1 and done.reasons == ["exact"] and done.card


def test_several_evaluation_files_count_and_by_default_those_of_the_stories(sift, out_dir, tmp_path):
    """A leak in the second file could be missed, and without --against no leak was looked for."""
    rows = [GOOD, turns("Who was the first?", "I."), turns("Who was the second?", "You.")]
    a, b = (write_rows(tmp_path / f"{name}.jsonl", row) for name, row in zip("ab", rows[1:]))
    done = sift(rows, against=f"{a},{b}")
    assert [row["of"].rpartition("/")[2] for row in done.dropped] == ["a.jsonl:1", "b.jsonl:1"]
    assert len(sift(rows, "--fresh", against=None).kept) == 3
    (out_dir / "data/stories").mkdir(parents=True)
    b.rename(out_dir / "data/stories/test.jsonl")
    assert sift(rows, "--fresh", against=None).reasons == ["overlap"]


def test_a_mistake_costs_no_file(sift, tmp_path):
    """An output could replace an input, or an empty training file could be written if no row is kept."""
    for name in ("out.jsonl", "out.jsonl.dropped.jsonl", "out.jsonl.card.md"):
        assert sift([GOOD], name=name).status == 2
        assert json.loads((tmp_path / name).read_bytes()) == GOOD
        (tmp_path / name).unlink()
    done = sift([turns(ASKED, "18", verdict="wrong answer")] * 3)
    assert done.status == 2 and "answer 3" in done.words and not done.out.exists()
    assert sift([PROSE.encode()], name="in.txt").status == 2


CLIPS = ("Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
         "May. How many clips did Natalia sell in both months?")
NILE = ("Which of the long rivers of the world flows through the desert to the sea and feeds a whole "
        "country on its way?")
SHORT = "What is 2+3?"


def question(text, answer="#### 5"):
    return {"question": text, "answer": answer}


def piece(text, first, count):
    return " ".join(text.split()[first:first + count])


@pytest.fixture
def leaks(tmp_path):
    """Returns a function: `leaks(questions, row)` -> line number of the question that a row leaks, or None."""
    def run(questions, row):
        path = write_rows(tmp_path / "test.jsonl", *map(question, questions))
        row = question(row) if isinstance(row, str) else row
        place = leak(read_questions([path]), read_row(row, REASONS))
        return int(place.rpartition(":")[2]) if place else None
    return run


@pytest.mark.parametrize("row, line", [
    (CLIPS, 1), (CLIPS.upper().replace(",", ""), 1), (f"Solve this. {CLIPS} Think!", 1), ({"text": NILE}, 2),
    (question("What did she ask?", f"She asked: {CLIPS}\n#### 72"), 1),
    ("A rather different start, but then she " + piece(CLIPS, 9, 30), 1),
    ("Well: " + piece(CLIPS, 1, 13), 1), ("Well: " + piece(CLIPS, 1, 12), None),  # only some of the numbers
    (CLIPS.replace("48", "52"), None),                                # another problem from that template
    ("Well: " + piece(NILE, 3, 13), 2), ("Well: " + piece(NILE, 3, 12), None),
    ("In 1902 somebody asked me: " + piece(NILE, 3, 13), 2), ("what is 2 + 3", 3),
    (SHORT.replace("+", "-"), None), ("Please tell me, what is 2+3?", None),  # too short for a part
    ({"messages": turns("Hello!", "Hi.")["messages"] + turns(SHORT, "5")["messages"]}, 3),
    (turns(piece(NILE, 0, 7), piece(NILE, 7, 9)), None)])              # across two turns
def test_a_question_is_given_away_by_itself_or_by_13_words_of_it(row, line, leaks):
    """Twelve shared words are chance, and a changed number is another problem. A prefix must not hide a leak."""
    assert leaks([CLIPS, NILE, SHORT], row) == line


def test_an_instruction_that_all_questions_share_is_no_leak(leaks):
    """If many questions end with "Please reason step by step ...", every row with that text would be dropped."""
    how = "Please think about it step by step and write the final answer into a box at the end."
    asked = [" ".join(random.Random(i).choices("abcdefgh", k=9)) + "? " + how for i in range(21)]
    row = "Why is grass green? " + how
    assert leaks(asked[:20], row) and leaks(asked, row) is None and leaks(asked, "So: " + asked[7]) == 8


def test_chinese_has_runs_of_26_letters(leaks):
    """In Chinese, 13 letters are only six or seven words: every sentence of a template would be a leak."""
    letters = "".join(random.Random(0).sample([chr(0x4E00 + i) for i in range(3000)], 60))
    assert leaks([letters], "说" + letters[10:36]) == 1 and leaks([letters], "说" + letters[10:35]) is None
    assert len(runs(words(letters))) == 60 - 25 and len(runs(words("a " * 20))) == 8


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_stories_of_the_training_split_are_kept_and_leaked_ones_are_found(lang, sift, tmp_path):
    """One story in nine shares 13 words in a row with another: they would be dropped for their template."""
    stories.main(stories.Config(train=800, val=1, test=100, distill=1, lang=lang, out=str(tmp_path)))
    train, test = ([*map(json.loads, open(tmp_path / f"{name}.jsonl", "rb"))] for name in ("train", "test"))
    asked = [row["conversations"][0]["content"] for row in test]
    leaked = [question(text.upper()) for text in asked]
    leaked += [question(f"Hm. {text} Well?") for text in asked if len(words(text)) >= 30]
    done = sift([*train, *leaked], against=tmp_path / "test.jsonl")
    clean = [row for row in done.dropped if "conversations" in row]
    assert len(done.dropped) - len(clean) == len(leaked) > 120 and len(clean) <= 0.02 * 800
