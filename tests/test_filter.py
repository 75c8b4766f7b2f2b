"""Claims about blackbox/filter.py and blackbox/rules.py: each row is kept as it was, or dropped for one reason.

`sift(rows, *flags)` runs the script in this process on a file of these rows.
"""
import hashlib
import json
import random
import re
from collections import Counter
from types import SimpleNamespace

import pytest

from blackbox import near, overlap, prompts
from dataset import stories
from blackbox.filter import REASONS
from dataset.formats import parse_row, read_documents

ASKED = "Mia has 12 apples and buys 5 more. How many apples does she have now?"
GOOD = {"question": ASKED, "answer": "She has 12+5=17 apples.\n#### 17"}


def turns(question, answer, **keys):
    """A row of `messages`."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **keys}


@pytest.fixture
def sift(call, out_dir, tmp_path):
    """A function: `sift(rows, *flags)` -> status, kept and dropped (lines), reasons, card, printed."""
    (tmp_path / "none.jsonl").write_text(json.dumps(turns("Which?", "That.")) + "\n")

    def run(rows, *flags, name="in.jsonl", out="out.jsonl", against=tmp_path / "none.jsonl"):
        path, out = tmp_path / name, tmp_path / out
        if rows is not None:
            path.write_bytes(b"".join(row if isinstance(row, bytes) else
                                      (json.dumps(row, ensure_ascii=False) + "\n").encode() for row in rows))
        done = call("blackbox.filter", f"--input={path}", f"--out={out}", *flags,
                    *([f"--against={against}"] if against else []))
        dropped, card = (tmp_path / f"{out}{end}" for end in (".dropped.jsonl", ".card.md"))
        rows = [json.loads(line) for line in dropped.read_bytes().splitlines()] if dropped.exists() else []
        return SimpleNamespace(
            status=done.status, said=done.out + done.err, path=path, out=out, dropped=rows,
            kept=out.read_bytes().splitlines(keepends=True) if out.exists() else [],
            reasons=[row.get("dropped") for row in rows],
            card=card.read_text(encoding="utf-8") if card.exists() else "")
    return run


# --- one row --------------------------------------------------------------------------------------

LOOP = "So the answer is 17, and so "
PROSE = ("The sky is blue because the air scatters short waves of light far more than long ones, and so "
         "blue light comes to us from every part of it, not from the sun alone.")
BAD = [
    ("truncation", turns(ASKED, "She has 12+", finish_reason="length")),
    ("truncation", turns(ASKED, "She has 12+", verdict="truncated")),
    ("truncation", turns(ASKED, "<think>She has 12+")),
    ("truncation", turns(ASKED, "Let me see. <think>She has 12+")),
    ("truncation", turns(ASKED, "<think>She has 17</think><answer>1")),
    ("truncation", turns(ASKED, "<think>She has 17</think><think>or")),
    ("truncation", turns(ASKED, "I will not", finish_reason="content_filter")),
    ("truncation", {"conversations": [{"role": "user", "content": ASKED}], "content": None,
                    "reasoning_content": "She has", "finish_reason": "length"}),
    ("format", turns(ASKED, "17", verdict="format")),
    ("format", turns(ASKED, "<think>a</think><answer>17</answer> and more")),
    ("format", turns(ASKED, "<think>a</think>b</think><answer>17</answer>")),
    ("answer", turns(ASKED, "18", verdict="wrong answer")), ("answer", turns(ASKED, "", verdict="no answer")),
    ("answer", turns(ASKED, "")), ("answer", turns(ASKED, " \n")),
    ("answer", turns(ASKED, "It is 18.", reference="17")), ("answer", turns(ASKED, "It is 18.", reference=17)),
    ("answer", turns(ASKED, "<think>17</think><answer>17 or 18</answer>", reference="17")),
    ("answer", turns(ASKED, "It is 18.", reference="17", verdict="unverified")),
    ("answer", turns(ASKED, "17 is wrong", reference="17")), ("answer", turns(ASKED, "16 or 17", reference="17")),
    ("answer", turns("Where?", "In Rome", reference="Paris")), ("answer", turns("Where?", "It is A.", reference="A")),
    ("answer", {"conversations": [{"role": "user", "content": ASKED}], "content": "18", "reference": "17"}),
    ("length", turns(ASKED, " ".join(map(str, range(5000))))), ("length", turns("y" * 20_001, "17")),
    ("length", {"text": " ".join(map(str, range(6000)))}),
    ("repetition", turns(ASKED, LOOP * 20)), ("repetition", turns(ASKED, PROSE + " " + LOOP * 12)),
    ("repetition", turns(ASKED, " ".join(map(str, range(500))) + LOOP * 12)),  # the end alone
    ("repetition", turns(ASKED, "<think>" + LOOP * 20 + "</think><answer>17</answer>")),
    ("repetition", turns(ASKED, "ha" * 300)), ("repetition", turns("笑一笑吧，好吗", "哈" * 100)),
    ("repetition", turns(ASKED, "!" * 100)), ("repetition", {"text": LOOP * 20}),
    ("language", turns(ASKED, "她现在一共有十七个苹果")),
    ("language", turns(ASKED, "<think>她有十二个，又买了五个，所以是十七个</think><answer>17</answer>")),
    ("language", turns(ASKED, f"<think>{PROSE}</think><answer>她现在一共有十七个苹果</answer>")),
    ("language", turns("小红有12个苹果，又买了5个，一共几个？", "She has 17 apples in all.")),
    ("language", turns("Сколько яблок у Маши теперь?", "She has seventeen apples now.")),
    ("language", turns("How many apples?", "כמה תפוחים יש לה עכשיו")),
    ("overlap", turns("which", "A stranger.")), ("exact", {"question": " " + ASKED.upper(), "answer": "she has  12+5=17 APPLES.\n#### 17"}),
    ("near", {"question": ASKED.replace("more", "moer"), "answer": "She has 12+5=17 apples\n#### 17"}),
]
FINE = [
    turns(ASKED, "She has 17.", finish_reason="stop", verdict="ok"), turns(ASKED, "17 of them", verdict="unverified"),
    turns(ASKED, "So 17", verdict="a new word"), turns(ASKED, "It is <b>17</b> now."),
    turns("What does a <think> tag do?", "It opens a thought."), turns("<answer>", "What is <br> for?"),
    turns("Where?", "Paris", reference="Paris"), turns("Really?", "Yes.", reference="yes"),
    turns("Where to?", "New York", reference="new york"), turns("Where is it?", "The answer is Rome.", reference="Rome"),
    turns("x+1=18?", "So \\boxed{x=17}.", reference="17"), turns(ASKED, "It is 17", reference="17.0"), turns(ASKED, "<answer>17 apples</answer>", reference=17),
    turns(ASKED, "<think>so 17</think><answer>\\boxed{17}</answer>", reference="17"),
    turns(ASKED, "It is 18", reference="17", verdict="ok"),  # a verdict is believed
    turns(ASKED, "What do I know", reference=None), turns(ASKED, "Many of them", reference=["17"]),
    turns("Count.", " ".join(map(str, range(1, 200)))), turns("Sing.", "la la la la"), turns(ASKED, PROSE),
    turns("用Python写一个函数", "```python\ndef add(first, second):\n    return first + second\n```"),
    turns("求和", "\\frac{1}{2} + \\sqrt{x} = \\text{sum}"), turns("2+3=?", "五，因为二加三等于五"),
    turns("Translate 你好 for me", "你好 means hello, or good day"), turns(ASKED, "十七"),
    turns("Write a text with 早上好 in it", "早上好，大家好，欢迎你们来这里"),
    turns("Explain machine learning to me", "机器学习 (machine learning) 是一种方法"),
    turns("これは何ですか、教えてください", "本当 です。林檎 と 梨 があります"), turns("Say it in Greek", "ναι"),
    turns("Which one?", "That."), {"text": PROSE}, {"text": "短文。"}, turns("😀", "😀😂"), turns("😀", "😂😂"),
    {"conversations": [{"role": "user", "content": ASKED}], "content": "17", "reasoning_content": "12+5=17",
     "reference": "17", "verdict": "ok", "finish_reason": "stop"},
]


@pytest.mark.parametrize("reason, row", BAD)
def test_a_bad_row_is_dropped_for_its_reason_and_not_for_another(reason, row, sift):
    """A reason that is wrong leads to the wrong cure; with the filter off, the row must come through."""
    done = sift([GOOD, row])
    assert done.status == 0 and done.reasons == [reason], done.said
    assert done.kept == [(json.dumps(GOOD) + "\n").encode()] and f"{reason} 1" in done.said
    off = sift(None, "--off", reason, "--fresh")
    if off.status == 2:  # formats.py cannot read it: a bad line
        assert reason in ("truncation", "format", "answer") and f"{off.path}:2: " in off.said
    else:  # kept, or another filter sees something
        assert reason not in off.reasons and len(off.kept) + len(off.dropped) == 2
        assert len(off.kept) == 2 or reason in ("truncation", "exact")


def test_good_rows_stay(sift):
    """A filter that is too eager costs the hard and the unusual rows."""
    done = sift([*FINE, GOOD])
    assert done.status == 0 and done.dropped == [], done.dropped
    assert len(done.kept) == len(FINE) + 1


def test_a_row_has_the_first_reason_alone(sift):
    """Counted twice, the reasons are more than the rows."""
    rows = [turns("which", LOOP * 20, finish_reason="length", verdict="wrong answer", reference="1"),
            turns("which", LOOP * 20, verdict="format", reference="1"), turns("which", LOOP * 20, reference="1"),
            turns("which", LOOP * 1000), turns("which", LOOP * 20), turns("which", "她现在一共有十七个苹果" * 2),
            turns("which", "A stranger."), turns("which", "A stranger.")]
    done = sift([GOOD, *rows])
    assert done.reasons == ["truncation", "format", "answer", "length", "repetition", "overlap", "overlap",
                            "overlap"]  # "which" is too short to have a language
    assert sift([GOOD, *rows], "--off=" + ",".join(REASONS), "--fresh").reasons == []


def test_a_row_that_is_dropped_takes_nobody_with_it(sift):
    """The good row behind a broken one is no duplicate of anything that is kept."""
    cut = turns(ASKED, "She has 12+5=17 apples now.", finish_reason="length")
    done = sift([cut, turns(ASKED, "She has 12+5=17 apples now."), turns(ASKED, "She has 12+5=17 apples now!")])
    assert done.reasons == ["truncation", "near"] and len(done.kept) == 1
    assert done.dropped[1]["of"] == "in.jsonl:2"


def test_the_first_of_several_rows_is_kept_and_named(sift):
    """Which row stays must not be chance; who was dropped must be found again."""
    rows = [GOOD, turns("Other?", "Yes."), GOOD, {**GOOD, "question": ASKED.replace("?", "!")}, GOOD]
    done = sift(rows)
    assert [json.loads(line) for line in done.kept] == rows[:2]
    assert [(row["dropped"], row["of"]) for row in done.dropped] == [
        ("exact", "in.jsonl:1"), ("near", "in.jsonl:1"), ("exact", "in.jsonl:1")]
    assert "exact duplicates: 2 copies of 1 rows, at most 2 of one." in done.card


def test_a_changed_prompt_or_system_turn_is_no_copy_of_its_seed(sift):
    """prompts.py makes typos on purpose; the filter would undo its work."""
    seed = turns(ASKED, "It is 17.", operation="none")
    typo = ASKED.replace("apples", "aplpes")
    other = {"messages": [{"role": "system", "content": "Be kind."}, *turns(typo, "It is 17.")["messages"]],
             "operation": "none"}
    rows = [seed, turns(typo, "It is 17.", operation="typos"), other]
    assert sift(rows).dropped == []
    assert sift([seed, turns(typo, "It is 17.", operation="none")], "--fresh").reasons == ["near"]


def test_several_answers_to_one_prompt_stay(sift):
    """Best-of-n: another way to the same answer is what was asked for."""
    rows = [turns(ASKED, answer) for answer in (
        "<think>12+5=17</think><answer>17</answer>",
        "<think>First 12, then 5 more, which makes 17.</think><answer>17</answer>",
        "<think>12 and 5: I count on, 13, 14, 15, 16, 17.</think><answer>17</answer>")]
    assert len(sift(rows).kept) == 3


@pytest.mark.parametrize("flags, kept", [
    (["--min-length=3"], ["abc", "abcd", "abcdefghij"]), (["--max-length=8"], ["a", "abc", "abcd"]),
    (["--min-length=4", "--max-length=8"], ["abcd"])])
def test_lengths_are_those_of_the_answer_and_of_the_row(flags, kept, sift):
    """Off by one, or the prompt counted as an answer."""
    rows = [turns("why?", answer) for answer in ("a", "abc", "abcd", "abcdefghij")]
    assert [parse_row(json.loads(line))[1].content for line in sift(rows, *flags).kept] == kept


def test_with_a_tokenizer_lengths_are_tokens(sift, tiny_world, tiny_tokenizer):
    """A window holds tokens; a limit in characters means something else in every language."""
    rows = [turns("Why?", "She buys 4 more."), turns("Why?", "她买了四个"), turns("Why?", "She.")]
    from dataset.formats import encode_document
    sizes = [len(encode_document(tiny_tokenizer, parse_row(row))[0]) for row in rows]
    assert sizes[1] > sizes[0] > sizes[2]
    done = sift(rows, f"--tokenizer={tiny_world.tokenizer}", f"--max-length={sizes[0]}", "--off=language")
    assert done.reasons == ["length"] and done.dropped[0]["messages"][1]["content"] == "她买了四个"
    assert "in tokens" in done.card


# --- files ----------------------------------------------------------------------------------------

def test_every_format_is_read_and_its_lines_stay_as_they_were(sift):
    """A row that is parsed and written again has other spaces, escapes, key orders: another file."""
    lines = [b'\xef\xbb\xbf{"text":  "One \\u00e9 text, about the sky and the sea."}\r\n',
             b'\n', b'  {"conversations": [{"role":"user","content":"A question?"},{"role":"assistant",'
             b'"content":"<think>t</think><answer>An answer.</answer>","x":1}] , "n": 1.0, "n": 2} \n', b" \n",
             '{"messages": [{"role": "user", "content": "你好吗"}, {"role": "assistant", "content": "我很好"}]}\n'.encode(),
             b'{"instruction": "Add 2 and 3", "input": "", "output": "5"}\n',
             b'{"question": "Two and two?", "answer": "2+2=<<2+2=4>>4\\n#### 4"}']
    done = sift(lines)
    assert done.status == 0 and b"".join(done.kept) == b"".join(line for line in lines if line.strip())
    assert len(list(read_documents(done.out))) == 5
    done = sift([lines[0], lines[2], *lines[:3]], "--fresh")
    assert done.reasons == ["exact"] * 2 and done.kept == [lines[0], lines[2]]
    raw = (done.out.parent / "out.jsonl.dropped.jsonl").read_bytes().splitlines(keepends=True)
    assert raw[0] == lines[0].strip()[3:-1] + b', "dropped": "exact", "of": "in.jsonl:1"}\n'


def test_a_text_file_is_documents(sift):
    """A .txt is a format, too: kept as it is, or refused for its reason."""
    text = (PROSE + "\r\n").encode()
    done = sift([text], name="in.txt", out="out.txt")
    assert done.status == 0 and b"".join(done.kept) == text
    done = sift([(LOOP * 20).encode()], name="in.txt", out="out2.txt")
    assert done.status == 2 and "no row" in done.said and "'repetition': 1" in done.said
    assert sift([text], name="in.txt").status == 2  # rows are expected in a .jsonl


def test_the_raw_file_of_generate_is_read(sift):
    """Its first line is the command, and its conversations end with the question."""
    raw = {"question": 0, "sample": 1, "conversations": [{"role": "user", "content": ASKED}], "operation": "none",
           "label": "kept", "reference": "17", "model": "teacher-1", "parameters": {}, "seed": 7,
           "finish_reason": "stop", "usage": {"prompt_tokens": 20, "completion_tokens": 8}, "verdict": "ok",
           "reasoning_content": "12+5=17", "content": "17"}
    rows = [{"teacher": "", "seed": 0, "temperature": 0.7}, raw,
            {**raw, "content": None, "reasoning_content": None, "verdict": "truncated", "finish_reason": "length"},
            {**raw, "content": "18", "verdict": "wrong answer"}]
    done = sift(rows, name="t.jsonl.all.jsonl")
    assert done.status == 0 and done.reasons == ["truncation", "answer"] and len(done.kept) == 1
    assert "next: python blackbox/filter.py --input" in done.said and "t.jsonl\n" in done.said
    for words in ("| teacher-1 | 3 | 1 (33.3%) |", "prompt_tokens: 60", "| wrong answer | 1 | 0 (0.0%) |"):
        assert words in done.card


@pytest.mark.parametrize("line, words", [
    (b"{\n", "broken JSON"), (b"[1]\n", "a JSON array"), (b"{}\n", "unknown keys"), (b"null\n", "not a JSON object"),
    (b'{"text": 5}\n', "not a string"), (b'{"text": "\xff"}\n', "invalid UTF-8"), (b'{"text": "\\ud800"}\n', "surrogate"),
    (b'{"samples": 1, "seed": 2}\n', "unknown keys"), (b"[" * 10**5 + b"\n", "a JSON array"),
    (b'{"text": "a", "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}\n", "broken JSON"),
    (b'{"messages": [{"role": "user", "content": "?"}]}\n', "without an assistant turn"),
    (b"x" * (8 * 2**20 + 1) + b"\n", "too long"),
], ids=lambda value: str(value)[:30])
def test_a_bad_line_is_named_or_counted(line, words, sift):
    """A line that is neither kept nor dropped would be lost in silence."""
    done = sift([GOOD, line, turns("Other?", "Yes.")])
    assert done.status == 2 and f"{done.path}:2: " in done.said and words in done.said and not done.kept
    assert done.said.count("\n") == 1 and "--skip-bad-lines" in done.said
    done = sift(None, "--skip-bad-lines")
    assert done.status == 0 and len(done.kept) == 2 and done.dropped == []
    assert "1 bad lines: " in done.said and "1 bad lines: " in done.card


def test_every_row_is_in_one_of_the_two_files(sift):
    """The counts of the card are those of the files."""
    rng = random.Random(0)
    rows = [rng.choice([turns(f"Question {i % 40}?", f"Answer {i % 30}."), rng.choice(BAD)[1]]) for i in range(300)]
    done = sift(rows)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    back = [json.dumps({k: v for k, v in row.items() if k not in ("dropped", "of")}, ensure_ascii=False)
            for row in done.dropped]
    assert Counter(lines) == Counter([line.decode().strip() for line in done.kept] + back)
    for reason in REASONS:
        assert f"{reason} {done.reasons.count(reason):,}" in done.said
        assert re.search(rf"^\| {reason} \| {done.reasons.count(reason)} \(", done.card, re.M)


def test_several_evaluation_files_count_and_by_default_those_of_the_stories(sift, out_dir, tmp_path):
    """A leak in the second file; no leak looked for where no flag was given."""
    for name, asked in (("a", "Who was the first?"), ("b", "Who was the second?")):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(turns(asked, "Nobody.")) + "\n")
    rows = [GOOD, turns("Who was the first?", "I."), turns("Who was the second?", "You.")]
    done = sift(rows, tmp_path / "b.jsonl", against=tmp_path / "a.jsonl")
    assert [row["of"].rpartition("/")[2] for row in done.dropped] == ["a.jsonl:1", "b.jsonl:1"]
    assert len(sift(rows, "--fresh", against=None).kept) == 3
    (out_dir / "data/stories").mkdir(parents=True)
    (tmp_path / "b.jsonl").rename(out_dir / "data/stories/test.jsonl")
    assert sift(rows, "--fresh", against=None).reasons == ["overlap"]
    done = sift(rows, tmp_path / "gone.jsonl", against=tmp_path / "a.jsonl")
    assert done.status == 2 and "gone.jsonl does not exist" in done.said


# --- the stories ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of stories in both languages."""
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=2000, val=100, test=200, distill=400, lang="both", out=str(out)))
    return out


def test_clean_stories_are_kept(sift, world):
    """95 % at least; they share every sentence with each other, and with the evaluation files."""
    rows = [json.loads(line) for line in (world / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    done = sift(rows, world / "val.jsonl", against=world / "test.jsonl")
    assert len(done.kept) >= 0.99 * 2000 and set(done.reasons) <= {"overlap", "near"}


def test_the_evaluation_questions_are_dropped_under_any_operation_that_keeps_their_words(sift, world, tmp_path):
    """A test split in the training data, in capital letters or with its question first."""
    operations = "upper,no_punctuation,order,typos"
    questions = world / "distill.jsonl"  # prompts.py refuses those of test.jsonl as seeds
    prompts.main(prompts.Config(input=str(questions), out=str(tmp_path / "p.jsonl"), operations=operations, share=1))
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    done = sift([GOOD, *rows], against=questions)
    found = Counter(row["operation"] for row in done.dropped if row["dropped"] == "overlap")
    asked = Counter(row["operation"] for row in rows)
    for operation, least in (("none", 1), ("upper", 1), ("no_punctuation", 1), ("order", 0.4)):
        assert found[operation] >= least * asked[operation], (operation, found, asked)


# --- the command ----------------------------------------------------------------------------------

def test_the_same_command_again_is_finished_and_another_is_refused(sift):
    """A file that was filtered otherwise under the name of this one."""
    assert "next: python train_distill_reason.py --name student-out --data" in sift([GOOD, GOOD]).said
    done = sift(None)
    assert done.status == 0 and "already made" in done.said and "next: " in done.said
    for flags, words in ((["--off=near"], "off was '', is 'near'"), (["--near=0.7"], "near was 0.55, is 0.7"),
                         (["--max-length=50"], "max_length was 20000, is 50")):
        done = sift(None, *flags)
        assert done.status == 2 and words in done.said and "--fresh" in done.said
    assert "input was" in sift([GOOD]).said
    assert sift(None, "--fresh").status == 0
    done.out.write_text("mine\n")
    assert "output was" in sift(None).said and done.out.read_text() == "mine\n"
    (done.out.parent / "out.jsonl.card.md").unlink()
    assert "without a card" in sift(None).said
    assert sift(None, "--fresh").status == 0


@pytest.mark.parametrize("flags, words", [
    (["--off=nearly"], "some of truncation,format"), (["--near=0.1"], "0.3 to 1"), (["--near=nan"], "0.3 to 1"),
    (["--min-length=-1"], "--min-length"), (["--max-length=0"], "--max-length"), (["--ofs=near"], "did you mean --off?"),
    (["--tokenizer=gone.model"], "gone.model does not exist"), (["--out=."], "expected a file"),
    (["--input=gone.jsonl"], "gone.jsonl does not exist; fix: python blackbox/generate.py")])
def test_a_wrong_flag_is_one_line(flags, words, sift):
    """A misspelt filter that stays on in silence."""
    done = sift([GOOD], *flags)
    assert done.status == 2 and words in done.said and done.said.count("\n") == 1


def test_a_word_without_a_flag_is_no_input(sift):
    """`filter.py my.jsonl` would filter other rows than mine."""
    done = sift([GOOD], "my.jsonl", against=None)
    assert done.status == 2 and "a word without a flag; got 'my.jsonl'; expected --input FILE" in done.said


def test_no_output_replaces_an_input(sift, tmp_path):
    """--input X.dropped.jsonl --out X: the file would be gone before it is read."""
    for name in ("out.jsonl", "out.jsonl.dropped.jsonl", "out.jsonl.card.md"):
        done = sift([GOOD], name=name)
        assert done.status == 2 and "a file that is not read" in done.said
        assert json.loads((tmp_path / name).read_bytes()) == GOOD


def test_nothing_kept_is_an_error(sift):
    """An empty training file fails later, with another message."""
    done = sift([turns(ASKED, "18", reference="17")] * 3)
    assert done.status == 2 and "'answer': 3" in done.said and not done.out.exists()


def test_without_a_flag_it_filters_what_the_speedrun_left(run_script, out_dir):
    """The lesson's command is the bare one."""
    (out_dir / "data/stories").mkdir(parents=True)
    said = run_script("blackbox/filter.py", check=False)
    assert said.returncode == 2 and "traces.jsonl does not exist; fix: python blackbox/generate.py" in said.stderr
    (out_dir / "data/traces.jsonl").write_text(json.dumps(GOOD) + "\n")
    (out_dir / "data/stories/val.jsonl").write_text(json.dumps(turns("Which?", "That.")) + "\n")
    said = run_script("blackbox/filter.py").stdout
    assert re.fullmatch(r"next: python train_distill_reason.py --name student-filtered --data \S+/filtered.jsonl "
                        r"--val \S+/val.jsonl",
                        said.splitlines()[-1])
    assert (out_dir / "data/filtered.jsonl").read_bytes() == (out_dir / "data/traces.jsonl").read_bytes()
    assert "val.jsonl sha256" in (out_dir / "data/filtered.jsonl.card.md").read_text()


def test_another_process_makes_the_same_files(run_script, sift, tmp_path, world):
    """Sets of strings and hash() differ from process to process."""
    made = []
    for seed in ("1", "2"):
        run_script("blackbox/filter.py", f"--input={world / 'distill.jsonl'}", f"--out={tmp_path / 'x.jsonl'}",
                   f"--against={world / 'test.jsonl'}", "--fresh", PYTHONHASHSEED=seed)
        made.append([hashlib.sha256((tmp_path / f"x.jsonl{end}").read_bytes()).hexdigest()
                     for end in ("", ".dropped.jsonl", ".card.md")])
    assert made[0] == made[1]


# --- hostile rows ---------------------------------------------------------------------------------

def test_hostile_rows_are_rows(sift):
    """Other people's data: wrong types, no letters, no sense, and never a traceback."""
    deep = json.loads("[" * 300 + "]" * 300)
    odd = [None, True, 5, -1.5, "", "x" * 500, "\x00|`\n<!-- -->", [], {}, deep, {"a": deep}, "😀\u202e"]
    keys = ("operation", "label", "verdict", "model", "finish_reason", "usage", "reference", "source", "text")
    rows = [turns(f"Question {i}?", f"Say {i}.", **{key: value}) for i, (key, value) in
            enumerate((key, value) for key in keys for value in odd)]
    rows += [turns(text, text + "!") for text in ("\x00", "مرحبا", "\u202eabc", "é" * 50, "1/0", "９" * 99, "<|im_end|>")]
    done = sift([GOOD, *rows])
    assert done.status == 0, done.said
    assert set(done.reasons) <= {"answer", "exact", "near"} and len(done.kept) > 90


def test_ten_thousand_equal_rows_are_one(sift, monkeypatch):
    """Each compared with each is fifty million comparisons."""
    asked, similar = [], near.similar
    monkeypatch.setattr(near, "similar", lambda *pair: asked.append(1) or similar(*pair))
    typo = json.dumps(turns(ASKED.replace("buys", "biys"), "12+5=17. It is 17.", x=0)) + "\n"
    rows = [GOOD] + [typo.replace('"x": 0', f'"x": {i}').encode() for i in range(1000)]
    rows += [typo.replace("biys", f"b{c}{d}ys").encode() for c in "acdefghjkl" for d in "acdefghjkl"]
    done = sift(rows)
    assert len(done.kept) == 2 and Counter(done.reasons) == {"exact": 999, "near": 100}
    assert len(asked) <= 2 * 101


def test_a_changed_digit_in_each_row_costs_no_comparison(sift, monkeypatch):
    """One template, a thousand problems: all are kept, none is compared."""
    monkeypatch.setattr(near, "similar", None)
    rows = [turns(ASKED.replace("12", str(i)), f"It is {i + 5}.") for i in range(100, 1100)]
    assert len(sift(rows).kept) == 1000


def test_evaluation_runs_are_looked_up_and_not_searched(sift, tmp_path, monkeypatch):
    """Each row against each question would be quadratic; a row costs its own runs."""
    looked = []

    class Counted(dict):
        def get(self, key, default=None):
            looked.append(key)
            return dict.get(self, key, default)
    read = overlap.read_questions

    def counted(paths):
        known = read(paths)
        known.holders = Counted(known.holders)
        return known
    monkeypatch.setattr(overlap, "read_questions", counted)
    (tmp_path / "test.jsonl").write_text("".join(
        json.dumps(turns(f"{PROSE} {i}", "Yes.")) + "\n" for i in range(200)))
    sift([GOOD, turns("Why is it blue?", PROSE.replace("blue", "red"))], against=tmp_path / "test.jsonl")
    assert len(looked) < 100
