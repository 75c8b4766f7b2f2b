"""Claims about asking a teacher: what is kept is right, whole, distinct and in the teacher's words.

The checkpoint here is a script of replies (`says`), the endpoint is tests/mock_endpoint.py; what they are
asked, and what becomes of their answers, is the real blackbox/generate.py. What can go wrong on the way to
an endpoint: test_endpoint.py. Real kills of a checkpoint's run: test_resume.py.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime

import pytest

import checkpoints
import cli
import blackbox.generate as generation
from cli import ROOT
from blackbox import asking
from blackbox.answers import keep
from dataset.formats import Turn, encode_document, prompt_ids, read_documents
from blackbox.questions import parse_prompt
from mock_endpoint import drawn, said, serving
from test_eval import say


@pytest.fixture
def ask(call, tiny_world, out_dir):
    """A function: `ask(*flags)` runs generate.py -> (kept rows, all rows with verdicts, printed)."""
    def run(*flags, status=0, name="traces.jsonl"):
        done = call("blackbox.generate", f"--teacher={tiny_world.teacher}", f"--input={tiny_world.val}",
                    f"--out={out_dir / name}", "--batch=4", *flags)
        assert done.status == status, done.out + done.err
        if status:
            return done.err
        return read(out_dir / name), read(out_dir / f"{name}.all.jsonl")[1:], done.out
    return run


def read(path):
    """The rows of a file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def timeless(rows):
    """Rows without what differs between two equal runs, in an order of their own."""
    rows = [{k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows]
    return sorted(rows, key=lambda row: (row["question"], row["sample"]))


@pytest.fixture
def says(monkeypatch, tiny_tokenizer):
    """A function: `says(reply)` makes the teacher say reply(number of the answer) -> (text, ended)."""
    def plan(reply):
        said = []

        def generate(model, prompts, limit, stop_ids, generator, **sampling):
            rows = []
            for prompt in prompts:
                rows.append(say(tiny_tokenizer, *reply(len(said))))
                said.append((prompt, sampling))
            return rows
        monkeypatch.setattr(generation, "generate", generate)
        return said
    return plan


RIGHT = "<think>I count {}.</think><answer>{}</answer>"


def test_only_right_whole_and_new_answers_are_kept_the_others_counted(ask, says, tiny_world):
    """A wrong answer that is kept teaches the error; a reason that is not counted hides a bad teacher."""
    replies = [("<think>I count {0}.</think><answer>{0}</answer>", True),   # right
               ("<think>I count {0}.</think><answer>{0}</answer>", True),   # the same again
               ("<think>Fingers: {0}.</think><answer>{0}</answer>", True),  # another way
               ("<think>I count {0}.</think><answer>99</answer>", True),
               ("<think>I count {0}.</think><answer>{0}</answer>", False),  # the limit
               ("<answer>{0}</answer>", True),
               ("<think>I count {0}.</think><answer> </answer>", True)]
    documents = [document for _, document in read_documents(tiny_world.val)]
    order = sorted(range(len(documents)), key=lambda q: len(documents[q][0].content))
    told = says(lambda number: (lambda text, ended: (
        text.format(documents[order[number // 7]][-1].answer), ended))(*replies[number % 7]))
    kept, everything, printed = ask("--samples=7", "--batch=42")
    asked = [prompt_ids(checkpoints.load_model(tiny_world.teacher)[1], documents[q])
             for q in order for _ in range(7)]
    assert [prompt for prompt, _ in told] == asked  # without the known answer
    counts = Counter(row["verdict"] for row in everything)
    assert counts == {"ok": 18, "wrong answer": 6, "truncated": 6, "format": 6, "no answer": 6}
    assert len(kept) == 12
    for words in ("ok 12", "said before 6", "wrong answer 6", "truncated 6", "format 6", "no answer 6",
                  "12 traces of 6 of 6 questions"):
        assert words in printed
    for row in kept:
        name, _, line = row["source"].partition(":")
        assert name == "val.jsonl" and row["operation"] == "none" and row["label"] == "kept"
        document = documents[int(line) - 1]
        answer = document[-1].answer
        assert row["conversations"] == [
            {"role": "user", "content": document[0].content},
            {"role": "assistant", "content": answer,
             "reasoning_content": row["conversations"][1]["reasoning_content"]}]
        assert row["conversations"][1]["reasoning_content"] in (f"I count {answer}.", f"Fingers: {answer}.")


def test_the_kept_rows_train_as_the_teacher_said_them(ask, says, call, tiny_world, tiny_tokenizer,
                                                      out_dir):
    """Text in a format that the next script reads otherwise would teach other tokens."""
    says(lambda number: ("<think>It is 3.</think><answer>3</answer>", True))
    kept, _, printed = ask("--samples=1")
    assert len(kept) == 1 and "next: python train_distill_reason.py" in printed
    [(_, document)] = read_documents(out_dir / "traces.jsonl")
    ids, mask = encode_document(tiny_tokenizer, document)
    learned = [i for i, m in zip(ids, mask) if m]
    assert learned == say(tiny_tokenizer, "<think>It is 3.</think><answer>3</answer>")
    flags = tiny_world.flags("distill_reason", data=out_dir / "traces.jsonl", batch=2, steps=1)
    assert call("train_distill_reason", *flags).status == 0


def test_a_teacher_that_is_never_right_is_an_error(ask, says):
    """An empty training file would fail later, with another message."""
    says(lambda number: ("<think>?</think><answer>99</answer>", True))
    error = ask("--samples=1", status=2)
    assert "no answer of the teacher holds" in error and "'wrong answer': 6" in error


def test_sampling_is_seeded_and_its_knobs_reach_it(ask, says):
    """TRAPS 4's cousin: a temperature that is printed and not used; the same answers N times."""
    told = says(lambda number: ("<think>It is 3.</think><answer>3</answer>", True))
    ask("--samples=2", "--temperature=0.6", "--top-p=0.9")
    assert len(told) == 12
    assert all(sampling == dict(temperature=0.6, top_p=0.9) for _, sampling in told)


def real_rows(ask, *flags):
    """What the untrained teacher really says: nothing to keep, but all is in the .all.jsonl."""
    return ask(*flags, "--max-new-tokens=6", status=2)


@pytest.fixture
def heard(monkeypatch):
    """The ids that the real teacher really said, answer after answer."""
    ids, generate = [], generation.generate

    def listen(*asked, **named):
        rows = generate(*asked, **named)
        ids.extend(map(tuple, rows))
        return rows
    monkeypatch.setattr(generation, "generate", listen)
    return ids


def test_exactly_the_missing_answers_are_written_again_with_the_same_random_numbers(ask, heard, out_dir):
    """A crash in the middle of a batch, or a line taken out: an answer that stands there twice, or another
    one than in an undisturbed run."""
    path = out_dir / "traces.jsonl.all.jsonl"
    real_rows(ask, "--samples=2")
    whole, rows, first = path.read_bytes(), timeless(read(path)[1:]), heard[:]
    lines = whole.split(b"\n")[:-1]
    assert len(lines) == 1 + 12 and len(first) == 12
    kept = [lines[:1], lines[:7], lines[:12], lines[:3] + lines[4:9] + lines[10:]]
    for some, batches in zip(kept, ([0, 1, 2], [1, 2], [2], [0, 2])):
        for torn in (b"", b'{"question": 1, "samp'):
            path.write_bytes(b"\n".join(some) + b"\n" + torn)
            heard.clear()
            real_rows(ask, "--samples=2")
            assert timeless(read(path)[1:]) == rows and path.read_bytes().split(b"\n")[:len(some)] == some
            assert heard == [ids for number in batches for ids in first[4 * number:4 * number + 4]]


def test_a_finished_file_is_not_asked_again(ask, heard, says, out_dir):
    """The same command is how one asks whether it is finished."""
    real_rows(ask, "--samples=2")
    before = (out_dir / "traces.jsonl.all.jsonl").read_bytes()
    heard.clear()
    real_rows(ask, "--samples=2")
    assert not heard and (out_dir / "traces.jsonl.all.jsonl").read_bytes() == before


@pytest.mark.parametrize("line", ["no", "[]", '{"question": 0}', '{"question": [], "sample": 0}', "twice 99"])
def test_a_line_that_is_no_answer_is_named_and_nothing_is_cut(line, ask, out_dir):
    """A raw file that was edited: the next thing that reads it would end in a traceback."""
    path = out_dir / "traces.jsonl.all.jsonl"
    real_rows(ask)
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[2] = lines[2].replace('"question": ', '"question": 99') if "twice" in line else line
    path.write_text("\n".join(lines) + "torn", encoding="utf-8")
    error = ask("--max-new-tokens=6", status=2)
    assert "traces.jsonl.all.jsonl:3: no answer of this script" in error
    assert path.read_text(encoding="utf-8").endswith("torn")


def test_a_foreign_file_is_not_touched(ask, out_dir):
    """Its last line may well lack a line end."""
    for text in ("my notes", "my notes\nof last year", "[1]\n", '{"a": 1}\n{"b": 2}', ""):
        (out_dir / "traces.jsonl.all.jsonl").write_text(text)
        assert "traces.jsonl.all.jsonl was " in ask("--max-new-tokens=6", status=2)
        assert (out_dir / "traces.jsonl.all.jsonl").read_text() == text


def test_a_seed_says_the_same_and_each_sample_something_else(ask, heard):
    """One stream for all the samples of a question would say the same N times."""
    for seed in (0, 0, 1):
        real_rows(ask, "--samples=4", "--temperature=1", f"--seed={seed}", "--fresh")
    first, again, other = heard[:24], heard[24:48], heard[48:]
    assert first == again and first != other
    assert all(len(set(first[i:i + 4])) > 1 for i in range(0, 24, 4))


@pytest.mark.parametrize("flags, words", [(["--temperature=0.5"], "temperature was 0.7, is 0.5"),
                                          (["--samples=3"], "samples was 2, is 3"),
                                          (["--seed=4"], "seed was 0, is 4")])
def test_another_command_on_the_same_file_is_refused(flags, words, ask, out_dir):
    """Half of the answers at one temperature, half at another, under one name."""
    real_rows(ask, "--samples=2")
    before = (out_dir / "traces.jsonl.all.jsonl").read_bytes()
    error = ask(*["--samples=2", "--max-new-tokens=6", *flags], status=2)
    assert words in error and "--fresh" in error
    assert (out_dir / "traces.jsonl.all.jsonl").read_bytes() == before


def test_another_teacher_or_changed_questions_are_refused(ask, call, tiny_world, out_dir, tmp_path):
    """The same path, other weights: only a fingerprint can tell."""
    data, teacher = tmp_path / "q.jsonl", tmp_path / "t.pt"
    teacher.write_bytes(tiny_world.teacher.read_bytes())
    data.write_bytes(tiny_world.val.read_bytes())
    flags = [f"--teacher={teacher}", f"--input={data}", "--max-new-tokens=6"]
    ask(*flags, status=2)
    teacher.write_bytes(tiny_world.init.read_bytes())
    assert "teacher was" in ask(*flags, status=2)
    teacher.write_bytes(tiny_world.teacher.read_bytes())
    data.write_bytes(tiny_world.train.read_bytes())
    assert "input was" in ask(*flags, status=2)


# --- prompts --------------------------------------------------------------------------------------

QUESTION = dict(role="user", content="2 and 3?")


@pytest.mark.parametrize("row, reference, label", [
    (dict(messages=[QUESTION]), None, "teacher"),
    (dict(conversations=[dict(role="system", content="Add!"), QUESTION]), None, "teacher"),
    (dict(conversations=[QUESTION, dict(role="assistant", content="5")]), "5", "kept"),
    (dict(messages=[QUESTION, dict(role="assistant", content="<answer>5 pears</answer>"), QUESTION]), None, "teacher"),
    (dict(question="2 and 3?", answer="2+3=5\n#### 5"), "5", "kept"),
    (dict(instruction="Add!", input="2 and 3?", output="so the answer is 5."), "5", "kept"),
    (dict(instruction="Add!", input="2 and 3?", output="Let me sing, in 3 ways."), None, "teacher")])
def test_a_row_of_any_format_is_a_prompt(row, reference, label):
    """A row that ends with the user asks for what nobody knows; its earlier turns are no answers to it."""
    prompt = parse_prompt(row)
    assert (prompt.reference, prompt.label, prompt.operation, prompt.source) == (reference, label, "none", "")
    assert prompt.turns[-1].role == "user" and prompt.turns[-1].content.endswith("2 and 3?")
    turns = row.get("messages") or row.get("conversations") or [0, 1]
    answered = turns[-1] == 1 or turns[-1]["role"] == "assistant"
    assert len(prompt.turns) == len(turns) - answered


def test_what_is_known_about_a_grown_prompt_is_kept_and_other_files_words_are_not():
    """Half of the public files have a "label" or a "source", of another kind."""
    row = dict(messages=[QUESTION], id=7, source="forum", label=1)
    prompt = parse_prompt(row)
    assert (prompt.operation, prompt.source, prompt.label) == ("none", "7", "teacher")
    prompt = parse_prompt(row | dict(operation="typo", source="seed-3", label="changed"))
    assert (prompt.operation, prompt.source, prompt.label) == ("typo", "seed-3", "changed")
    with pytest.raises(cli.UserError, match="a lone surrogate"):  # json.dumps writes it, the file cannot
        parse_prompt(row | dict(id="\ud800"))


@pytest.mark.parametrize("row, words", [
    (dict(messages=[dict(role="assistant", content="5")]), "no question"),
    (dict(messages=[QUESTION, dict(role="system", content="!"), dict(role="assistant", content="5")]), "no question"),
    (dict(text="2 and 3?"), "plain text"), ([QUESTION], "not a JSON object"), (dict(messages=[]), "an empty conv"),
    (dict(messages=[dict(role="user", content=5)]), "not a string"), (dict(messages=[5, QUESTION]), "not an object")])
def test_a_row_that_asks_nothing_is_refused(row, words):
    """An empty request ends the run at an endpoint, with the endpoint's words."""
    with pytest.raises(cli.UserError, match=words):
        parse_prompt(row)


def test_a_prompt_without_an_answer_is_kept_as_unverified_if_it_is_whole(ask, says, tiny_world, tmp_path, out_dir):
    """Nobody can say that it is right; that it was cut, anybody can."""
    path = tmp_path / "open.jsonl"
    path.write_text("".join(json.dumps(dict(messages=[dict(role="user", content=f"Why {i}?")])) + "\n"
                            for i in range(4)))
    replies = [("<think>So.</think><answer>3</answer>", True), ("<think>So.</think><answer>3</answer>", False),
               ("Because.", True), ("<think>So.</think><answer></answer>", True)]
    says(lambda number: replies[number])
    kept, rows, printed = ask(f"--input={path}")
    assert [row["verdict"] for row in rows] == ["unverified", "truncated", "format", "no answer"]
    assert rows[2]["content"] == "Because." and rows[1]["content"] == "<think>So.</think><answer>3</answer>"
    assert [(row["source"], row["label"], row["verdict"]) for row in kept] == [("open.jsonl:1", "teacher", "unverified")]
    assert "1 traces of 1 of 4 questions" in printed


def test_a_system_prompt_is_sent_where_a_prompt_has_none_and_not_kept(ask, says, tiny_tokenizer, tmp_path):
    """The student is to do without it; a prompt's own system turn is part of the prompt."""
    path = tmp_path / "q.jsonl"
    own = [dict(role="system", content="Be sad."), QUESTION]
    path.write_text(json.dumps(dict(messages=[QUESTION])) + "\n" + json.dumps(dict(messages=own)) + "\n")
    told = says(lambda number: ("<think>So.</think><answer>5</answer>", True))
    kept, rows, _ = ask(f"--input={path}", "--system=Be glad.")
    texts = [tiny_tokenizer.decode(prompt, show_control=True) for prompt, _ in told]
    assert sorted(texts) == [f"<system>{how}<end><user>2 and 3?<end><assistant>" for how in ("Be glad.", "Be sad.")]
    assert [row["conversations"][:-1] for row in kept] == [[QUESTION], own]
    assert all(row["parameters"]["system"] == "Be glad." for row in rows)


# --- an endpoint ----------------------------------------------------------------------------------

KEY = "sk-quite-a-secret-0123456789"


@pytest.fixture
def ask_mock(call, tiny_world, out_dir, monkeypatch):
    """A function: `ask_mock(mock, *flags)` runs generate.py against it -> kept rows, all rows, the run."""
    monkeypatch.setattr(asking, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(asking, "TICK", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(mock, *flags, status=0):
        done = call("blackbox.generate", f"--base-url={mock.url}", "--model=m", f"--input={tiny_world.val}",
                    f"--out={out_dir / 'kept.jsonl'}", *flags)
        assert done.status == status, done.out + done.err
        files = [out_dir / f"kept.jsonl{end}" for end in ("", ".all.jsonl")]
        kept, rows = [read(path) if path.exists() else [] for path in files]
        return kept, rows[1:], done
    return run


JOBS = [(q, s) for q in range(6) for s in range(5)]


def test_with_a_fifth_of_faults_exactly_the_rows_asked_for_come(ask_mock):
    """Missing ones bias the data towards the questions that were easy to send."""
    with serving(faults=0.2, seed=1) as mock:
        kept, rows, done = ask_mock(mock, "--samples=5", "--timeout=1", "--concurrency=4")
        assert len(mock.asked) > 30
        again = ask_mock(mock, "--samples=5", "--timeout=1")[2]
        assert sorted((row["question"], row["sample"]) for row in rows) == JOBS
        assert len(kept) == 30 and "30 traces of 6 of 6 questions" in done.out and "faults: " in done.out
        assert "is finished" in again.out and "30 traces of 6 of 6 questions" in again.out


@pytest.mark.parametrize("teacher", ["checkpoint", "endpoint"])
def test_a_row_keeps_all_that_is_known_about_an_answer(teacher, ask, ask_mock, says, tiny_world):
    """What is not written down when it happens cannot be put on a data card later."""
    flags = ["--questions=1", "--temperature=0.5", "--top-p=0.9", "--max-new-tokens=40", "--system=Add."]
    if teacher == "checkpoint":
        told = says(lambda number: ("<think>So.</think><answer>3</answer>", True))
        kept, [row], _ = ask(*flags)
        model, tokenizer, _ = checkpoints.load_model(tiny_world.teacher)
        usage = dict(prompt_tokens=len(told[0][0]), completion_tokens=len(
            say(tokenizer, "<think>So.</think><answer>3</answer>")))
        model, seed = checkpoints.weights_fingerprint(model), 0
    else:
        with serving(reply=lambda _: said("3", reasoning_content="So.")) as mock:
            kept, [row], _ = ask_mock(mock, *flags)
        usage = dict(prompt_tokens=len(json.dumps(mock.asked[0]["messages"])) // 4, completion_tokens=20)
        model, seed = "mock-1", asking.seed_of(0, 0, 0)
    asked = [json.loads(line) for line in tiny_world.val.read_text().splitlines()][0]["conversations"][:1]
    seconds, when = row.pop("seconds"), datetime.fromisoformat(row.pop("time"))
    assert row == dict(
        question=0, sample=0, conversations=asked, operation="none", source="val.jsonl:1", label="kept",
        reference="3", model=model, seed=seed, finish_reason="stop", usage=usage, verdict="ok",
        parameters=dict(temperature=0.5, top_p=0.9, max_new_tokens=40, system="Add."),
        reasoning_content="So.", content="3")
    assert 0 <= seconds and when.utcoffset().total_seconds() == 0
    said_by_it = dict(role="assistant", content="3", reasoning_content="So.")
    assert kept == [dict(conversations=[*asked, said_by_it], operation="none", source="val.jsonl:1", label="kept",
                         sample=0, verdict="ok", model=model, finish_reason="stop", usage=usage)]


def test_the_endpoint_is_asked_without_the_answer_and_with_every_knob(ask_mock, tiny_world):
    """A teacher that reads the answer gives it, with reasons."""
    with serving() as mock:
        ask_mock(mock, "--samples=2", "--temperature=0.5", "--top-p=0.9", "--max-new-tokens=40",
                 "--system=Add.", "--limit-name=max_completion_tokens", "--seed=3")
    questions = [document[0].content for _, document in read_documents(tiny_world.val)]
    asked = sorted(mock.asked, key=lambda a: a["seed"])
    assert asked == sorted([dict(
        model="m", temperature=0.5, top_p=0.9, max_completion_tokens=40, seed=asking.seed_of(3, q, s),
        messages=[dict(role="system", content="Add."), dict(role="user", content=questions[q])])
        for q in range(6) for s in range(2)], key=lambda a: a["seed"])


def test_the_same_seed_gives_the_same_rows_from_a_server_that_heeds_it(ask_mock, out_dir):
    """serve.py does; the order of arrival must not matter."""
    with serving() as mock:
        files = []
        for flags in (["--concurrency=1"], ["--concurrency=5", "--fresh"], ["--seed=1", "--fresh"]):
            _, rows, _ = ask_mock(mock, "--samples=3", *flags)
            files.append((timeless(rows), (out_dir / "kept.jsonl").read_bytes()))
    assert files[0] == files[1] != files[2]


WORDS = "Mia has 2 + 1 = 3 pears, so the answer is 3."


@pytest.mark.parametrize("content, more, verdict, turn", [
    ("<think>2+1</think><answer>3</answer>", {}, "ok", dict(reasoning_content="2+1", content="3")),
    ("2+1</think>\n\n3", {}, "ok", dict(reasoning_content="2+1", content="3")),
    ("3 pears", dict(reasoning_content="2+1"), "ok", dict(reasoning_content="2+1", content="3 pears")),
    ("So **3** pears.", dict(reasoning_content="2+1"), "ok", dict(reasoning_content="2+1", content="So **3** pears.")),
    (WORDS, {}, "ok", dict(reasoning_content=WORDS, content="3")),
    ("2+1=3\n#### 3", {}, "ok", dict(reasoning_content="2+1=3\n#### 3", content="3")),
    ("First 2, then \\boxed{3}.", {}, "ok", dict(reasoning_content="First 2, then \\boxed{3}.", content="3")),
    ("I count 1, 2, 3", {}, "ok", dict(reasoning_content="I count 1, 2, 3", content="3")),
    ("3", {}, "ok", dict(content="<answer>3</answer>")),
    ("3 pears\n", {}, "ok", dict(content="<answer>3 pears</answer>")),
    ("<answer>3</answer>", {}, "ok", dict(content="<answer>3</answer>")),
    ("<answer>2 or 3</answer>", {}, "wrong answer", None), ("So the answer is 4, not 3.", {}, "wrong answer", None),
    ("There are 3 pears and 4 apples.", {}, "wrong answer", None), ("No idea.", {}, "wrong answer", None),
    ("", {}, "no answer", None), (" \n", dict(reasoning_content="2+1=3"), "no answer", None),
    ("It is 2 or 3.", {}, "wrong answer", None), ("3 is wrong.", {}, "wrong answer", None),
    ("So 2 or 3 pears.", dict(reasoning_content="2+1"), "wrong answer", None),
    ("<answer>2, 3</answer>", {}, "wrong answer", None),  # what is tagged is all of the answer
    ("The answer is:\n$$\n2+1=3\n$$", {}, "ok", dict(reasoning_content="The answer is:\n$$\n2+1=3\n$$", content="3")),
    ("We use the <think> tag here: the answer is 3", {}, "format", None), ("\\boxed{3} </answer>", {}, "format", None),
    ("2+1=3 <answer>3</answer> Hope this helps!", {}, "format", None),
    ("2+1=3 <answer>", dict(finish_reason="length"), "truncated", None),
    ("<think>2+1=3", {}, "format", None), ("<answer>3</answer> or <answer>4</answer>", {}, "format", None),
    (WORDS, dict(finish_reason="length"), "truncated", None), ("<think>2+", dict(finish_reason="length"), "truncated", None),
    (None, dict(finish_reason="length", reasoning_content="2"), "truncated", None),
    (WORDS, dict(finish_reason="content_filter"), "truncated", None),
    (WORDS, dict(finish_reason="eos"), "ok", dict(reasoning_content=WORDS, content="3"))])
def test_an_endpoints_answer_needs_no_tags_but_the_right_end(content, more, verdict, turn, ask_mock):
    """A commercial model answers in prose: demanding tags keeps nothing, believing the last number whatever
    stands around it keeps errors. What was said stays whole in the raw row."""
    with serving(reply=lambda _: said(content, **more)) as mock:
        kept, [row], done = ask_mock(mock, "--questions=1", status=0 if turn else 2)
    assert row["verdict"] == verdict and row["content"] == (content or "")
    assert row["reasoning_content"] == more.get("reasoning_content")
    assert [k["conversations"][-1] for k in kept] == ([dict(role="assistant", **turn)] if turn else [])
    if not turn:
        assert f"no answer of the teacher holds; got {{'{verdict}': 1}}" in done.err


def test_free_answers_train_as_thought_and_answer(ask_mock, call, tiny_world, tiny_tokenizer, out_dir):
    """Text without marks would teach a student that eval.py finds no answer in."""
    with serving(reply=lambda _: said(WORDS)) as mock:
        ask_mock(mock, "--questions=1")
    [(_, document)] = read_documents(out_dir / "kept.jsonl")
    ids, mask = encode_document(tiny_tokenizer, document)
    assert [i for i, m in zip(ids, mask) if m] == say(tiny_tokenizer, f"<think>{WORDS}</think><answer>3</answer>")
    flags = tiny_world.flags("distill_reason", data=out_dir / "kept.jsonl", batch=2, steps=1)
    assert call("train_distill_reason", *flags).status == 0


def test_open_prompts_are_kept_as_the_endpoint_said_it(ask_mock, tmp_path):
    """Of an unverified text nobody knows which part is the answer."""
    path = tmp_path / "open.jsonl"
    path.write_text(json.dumps(dict(messages=[dict(role="user", content="Sing!")])) + "\n")
    with serving(reply=lambda _: said("La 1, la 2.\u2028La!")) as mock:
        [kept], [row], _ = ask_mock(mock, f"--input={path}")
    assert kept["conversations"][-1] == dict(role="assistant", content="La 1, la 2.\u2028La!")
    assert kept["verdict"] == row["verdict"] == "unverified" and row["reference"] is None


def test_no_row_is_kept_that_the_training_would_refuse(tmp_path):
    """A file of answers that an earlier version judged: one row with a stray tag ends both trainings."""
    known = dict(conversations=[QUESTION], operation="none", source="q:1", label="kept", reference="5", verdict="ok",
                 reasoning_content=None, model="m", finish_reason="stop", usage={})
    told = ["2+3=5", "In the <think> tag: the answer is 5", "2+3=5 <answer>5</answer> Bye!", "\\boxed{5} </answer>"]
    rows = [dict(known, question=0, sample=i, content=content) for i, content in enumerate(told)]
    rows.append(dict(rows[0], sample=9, content="A <think> tag opens a thought", reference=None, verdict="unverified"))
    raw, out = tmp_path / "raw.jsonl", tmp_path / "kept.jsonl"
    raw.write_text("{}\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert keep(raw, out) == ({"ok": 1, "format": 3, "unverified": 1}, 1)
    documents = [document[-1] for _, document in read_documents(out)]
    assert documents == [Turn("assistant", "", "2+3=5", "5"), Turn("assistant", "A <think> tag opens a thought")]


def test_answers_that_fail_for_good_are_counted_and_asked_again(ask_mock, tiny_world):
    """Status 0 for half of the data; or the other half thrown away for one prompt."""
    bad = [True]

    def plan(_, asked):
        return "500" if bad[0] and asked["messages"][-1]["content"].startswith("Mia has 4") else ""
    with serving(plan=plan) as mock:
        kept, rows, done = ask_mock(mock, "--retries=2", status=1)
        assert len(kept) == len(rows) == 5 and len(mock.asked) == 8
        assert done.err == ("1 answers are missing: given up after 3 requests each; faults: 500 3; the same "
                            "command asks for them again\n")
        assert "5 traces of 5 of 6 questions" in done.out and "next: " in done.out
        bad[0] = False
        kept, rows, done = ask_mock(mock, "--retries=0")  # how, not what: may change
        assert len(kept) == len(rows) == 6 and len(mock.asked) == 9


def test_the_budget_holds_over_runs_and_can_be_raised(ask_mock, out_dir):
    """What cannot be exceeded at night must be counted over all the restarts of that night."""
    with serving(plan=drawn(0.4, 5, ("429", "500", "dropped"))) as mock:
        for _ in range(3):
            _, rows, done = ask_mock(mock, "--samples=5", "--max-requests=20", status=1)
            assert len(mock.asked) == 20 and "--max-requests 20 is reached" in done.err
        (out_dir / "kept.jsonl.requests.jsonl").rename(out_dir / "away")
        assert "put it back" in ask_mock(mock, "--samples=5", "--max-requests=20", status=2)[2].err
        (out_dir / "away").rename(out_dir / "kept.jsonl.requests.jsonl")
        _, rows, _ = ask_mock(mock, "--samples=5", "--max-requests=200")
        assert sorted((row["question"], row["sample"]) for row in rows) == JOBS
        sent = len(mock.asked)
        ask_mock(mock, "--samples=5", "--max-requests=20", "--fresh", status=1)  # counts anew
        assert len(mock.asked) == sent + 20


def test_a_lost_line_of_the_raw_file_is_asked_again_alone(ask_mock, out_dir):
    """Exactly the missing rows: (question, sample) tells, not a count."""
    path = out_dir / "kept.jsonl.all.jsonl"
    with serving() as mock:
        _, rows, _ = ask_mock(mock, "--samples=5")
        lines = path.read_bytes().split(b"\n")[:-1]
        path.write_bytes(b"\n".join([*lines[:4], *lines[5:20], *lines[21:]])[:-9])  # two, and a torn one
        mock.asked.clear()
        again = ask_mock(mock, "--samples=5")[1]
        assert timeless(again) == timeless(rows) and len(mock.asked) == 3


@pytest.mark.parametrize("fault", ["401", "403", "400", "404", "302 Location: http://127.0.0.1:9/x"])
def test_a_refusal_is_one_line_that_names_the_prompt(fault, ask_mock, monkeypatch):
    """Seven tries with a wrong key; a traceback of http.client."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(plan=lambda *_: fault) as mock:
        kept, rows, done = ask_mock(mock, "--concurrency=2", status=2)
        assert done.err.startswith(f"error: {mock.url} says {fault[:3]}: ") and done.err.count("\n") == 1
        assert "(asking val.jsonl:" in done.err and not rows and not kept
        assert len(mock.asked) == (6 if fault == "400" else 2)  # it might be that prompt alone


def test_a_prompt_that_is_refused_is_a_row_and_the_others_are_kept(ask_mock, out_dir):
    """What was paid for before, and could not be written because of one that is too long."""
    with serving(plan=lambda number, _: "400" if number == 2 else "") as mock:
        kept, rows, done = ask_mock(mock, "--concurrency=1")
        assert [row["verdict"] for row in rows].count("refused") == 1 and len(kept) == 5 and "refused 1" in done.out
        assert "is finished" in ask_mock(mock)[2].out
    (out_dir / "kept.jsonl").unlink()
    with serving(plan=lambda number, _: "401" if number == 2 else "") as mock:
        assert len(ask_mock(mock, "--concurrency=1", "--fresh", status=2)[0]) == 2


def test_more_can_be_asked_of_an_endpoint_later(ask_mock):
    """To try 2 questions first, and to pay for them again, would be a strange rule."""
    with serving() as mock:
        first = ask_mock(mock, "--questions=2")[1]
        more = ask_mock(mock, "--questions=4", "--samples=2")[1]
        assert more[:2] == first and len(more) == 8 == len(mock.asked)
        assert len(ask_mock(mock, "--questions=1")[0]) == 8 == len(mock.asked)


def test_a_key_with_a_quote_in_it_is_hidden_as_well(ask_mock, monkeypatch, out_dir):
    """In JSON it is spelled otherwise; and a key that is the name of a field must not rename the field."""
    for key in ('sk-a"b\\c12345678', "question"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with serving(reply=lambda _: said(f"your {key} is here. The answer is 3.")) as mock:
            rows = ask_mock(mock, "--questions=1", "--fresh")[1]
            assert rows[0]["content"] == "your [key] is here. The answer is 3."


def test_the_key_is_nowhere_but_in_the_request(ask_mock, monkeypatch, out_dir):
    """Servers repeat what they were sent; files and logs are shared."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def reply(_):
        return said(f"I saw {KEY}, so the answer is 3.", reasoning_content=f"\u003d {KEY}") | dict(model=KEY)
    with serving(reply=reply, plan=lambda number, _: ("", "500", "401")[number % 3]) as mock:
        told = [ask_mock(mock, "--concurrency=1", "--questions=1", f"--system={KEY}")[2],
                ask_mock(mock, "--concurrency=1", "--questions=2", "--fresh", status=2)[2]]
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in mock.headers)
        assert not any(KEY in json.dumps(asked["messages"][1:]) for asked in mock.asked)
    assert "no, Bearer [key] at 401" in told[1].err
    for text in [run.out + run.err for run in told] + [p.read_text() for p in out_dir.rglob("*") if p.is_file()]:
        assert KEY not in text


@pytest.mark.parametrize("flags, words", [
    (["--base-url=http://u:pw@a.com/v1"], "--base-url has a wrong value"), (["--model="], "--model has a wrong value"),
    (["--timeout=0"], "--timeout"), (["--timeout=nan"], "--timeout"), (["--concurrency=0"], "--concurrency"),
    (["--concurrency=1000"], "1 to 256"), (["--retries=-1"], "--retries"), (["--max-requests=-1"], "--max-requests"),
    (["--max-total-tokens=-1"], "--max-total-tokens"), (["--batch=4"], "--batch has a wrong value"),
    (["--teacher=t.pt"], "no --base-url beside it"), (["--limit-name=n"], "one of max_tokens, max_completion_tokens"),
    (["--system=\udcff"], "a lone surrogate"), (["--input={here}"], "plain text")])
def test_a_wrong_flag_for_an_endpoint_is_named(flags, words, ask_mock, tmp_path):
    """A flag without effect is a setting that was never made."""
    (tmp_path / "q.txt").write_text("2 and 3?")
    flags = [flag.format(here=tmp_path / "q.txt") for flag in flags]
    with serving() as mock:
        error = ask_mock(mock, *flags, status=2)[2].err
        assert words in error and "pw" not in error and not mock.asked


@pytest.mark.parametrize("flag", ["--model=m", "--timeout=5", "--concurrency=2", "--retries=1", "--max-requests=9",
                                  "--max-total-tokens=9", "--limit-name=max_tokens"])
def test_a_checkpoint_heeds_no_flag_of_an_endpoint(flag, ask):
    """--max-requests with a checkpoint would promise a limit that is none."""
    assert "a --base-url beside it" in ask(flag, status=2)


def test_another_endpoint_model_or_kind_of_teacher_is_refused(ask_mock, ask, says, out_dir):
    """Half of the answers from one teacher, half from another, under one name."""
    with serving() as mock, serving() as other:
        ask_mock(mock, "--questions=1")
        assert "model was 'm', is 'n'" in ask_mock(mock, "--questions=1", "--model=n", status=2)[2].err
        assert "base_url was" in ask_mock(other, "--questions=1", status=2)[2].err
        assert "base_url was" in ask("--questions=1", status=2, name="kept.jsonl")


# --- stops ----------------------------------------------------------------------------------------

DRIVER = """import sys; sys.path.insert(0, sys.argv.pop(1)); import cli; from blackbox import asking, generate
asking.FIRST_PAUSE = asking.TICK = 0.01; cli.run(generate.main, generate.Config)"""


def start(mock, world, out, *flags):
    """generate.py as a process of its own, with short pauses."""
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(ROOT), f"--base-url={mock.url}", "--model=m", f"--input={world.train}",
         f"--out={out}", "--samples=4", "--timeout=1", *flags], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.mark.slow
def test_killed_at_random_moments_exactly_the_rows_asked_for_come_and_no_request_too_many(tiny_world, out_dir):
    """SIGKILL between the request and the row: it is paid for, and must be in the count."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random moments of seed {seed}")  # shown when the test fails
    rng, limit = random.Random(seed), 150
    out = out_dir / "kept.jsonl"
    raw, books = (out_dir / f"kept.jsonl.{end}.jsonl" for end in ("all", "requests"))

    def plan(number, asked):
        time.sleep(0.02)
        return faults(number, asked)
    faults = drawn(0.2, seed)
    with serving(plan=plan) as mock:
        for _ in range(4):
            process = start(mock, tiny_world, out, f"--max-requests={limit}")
            sent = len(mock.asked)
            while process.poll() is None and len(mock.asked) < sent + rng.randrange(1, 40):
                time.sleep(0.005)
            process.kill()
            process.communicate()
            assert len(mock.asked) <= limit
        process = start(mock, tiny_world, out, f"--max-requests={limit}")
        printed = process.communicate(timeout=300)[0]
        noted = sum(row["requests"] for row in read(books))
        assert process.returncode == 1 and "--max-requests 150 is reached" in printed
        assert len(mock.asked) <= noted == limit
        before = read(raw)[1:]
        process = start(mock, tiny_world, out, "--max-requests=2000")
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0, printed
    rows = read(raw)[1:]
    assert rows[:len(before)] == before
    assert sorted((row["question"], row["sample"]) for row in rows) == [(q, s) for q in range(32) for s in range(4)]
    assert len(read(out)) == 128
    assert len(mock.asked) <= sum(row["requests"] for row in read(books))


@pytest.mark.slow
def test_ctrl_c_ends_soon_and_loses_no_answer(tiny_world, out_dir):
    """What is under way is paid for: it is waited for a moment, and written down."""
    raw = out_dir / "kept.jsonl.all.jsonl"

    def plan(number, _):
        if number == 20:
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        return "timeout" if number == 21 else ""
    with serving(plan=plan) as mock:
        process = start(mock, tiny_world, out_dir / "kept.jsonl", "--concurrency=3")
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 130 and "stopped; the same command goes on" in printed
        answered, asked = read(raw)[1:], len(mock.asked)
        assert len(answered) >= asked - 1 and not (out_dir / "kept.jsonl").exists()
        process = start(mock, tiny_world, out_dir / "kept.jsonl")
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 0 and len(read(raw)) == 1 + 128, printed
        assert len(mock.asked) <= 128 + 1
