"""Claims about blackbox/generate.py: kept answers are right, complete, new and in the teacher's words."""
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter

import pytest

import blackbox.generate as generation
from blackbox import client
from blackbox.prompts import question_of
from common import ROOT, UserError
from conftest import say
from dataset.formats import encode_document, read_documents
from dataset.verify import prompt_ids
from mock_endpoint import drawn, said, serving

KEY = "sk-quite-a-secret-0123456789"
QUESTION = dict(role="user", content="2 and 3?")


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]] if path.exists() else []


def timeless(rows):
    """Rows without their times, which differ between equal runs, sorted by question and sample."""
    return sorted(({k: v for k, v in row.items() if k not in ("time", "seconds")} for row in rows),
                  key=lambda row: (row["question"], row["sample"]))


@pytest.fixture
def ask(call, tiny_world, out_dir, monkeypatch):
    """Returns a function: `ask(*flags)` runs generate.py -> (kept rows, all rows, printed). mock: the endpoint."""
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    def run(*flags, mock=None, status=0, out="kept.jsonl", input=tiny_world.val):
        teacher = [f"--base-url={mock.url}", "--model=m"] if mock else [f"--teacher={tiny_world.teacher}", "--batch=4"]
        done = call("blackbox.generate", *teacher, *([f"--input={input}"] if input else []), f"--out={out_dir / out}", *flags)
        assert done.status == status, done.out + done.err
        return read(out_dir / out), read(out_dir / f"{out}.all.jsonl")[1:], done.out + done.err
    return run


@pytest.fixture
def says(monkeypatch, tiny_tokenizer):
    """Returns a function: after `says(reply)` the teacher's answer n is reply(n) -> (text, ended)."""
    def plan(reply):
        told = []
        def generate(model, prompts, limit, stop_ids, generator, **sampling):
            told.extend((prompt, sampling) for prompt in prompts)
            return [say(tiny_tokenizer, *reply(n)) for n in range(len(told) - len(prompts), len(told))]
        monkeypatch.setattr(generation, "generate", generate)
        return told
    return plan


@pytest.fixture
def heard(monkeypatch):
    """A list of the answers (tuples of ids) that the real, untrained teacher gave."""
    ids, generate = [], generation.generate
    def listen(*asked, **named):
        rows = generate(*asked, **named)
        ids.extend(map(tuple, rows))
        return rows
    monkeypatch.setattr(generation, "generate", listen)
    return ids


def test_only_right_whole_and_new_answers_are_kept_the_others_counted(ask, says, tiny_world, tiny_tokenizer, out_dir):
    """A wrong answer that is kept teaches the error. The next script must read exactly what the teacher wrote."""
    right = "<think>I count {0}.</think><answer>{0}</answer>"  # below: twice the same, another thought, cut off
    replies = [(right, True), (right, True), ("<think>Fingers: {0}.</think><answer>{0}</answer>", True), (right, False),
               ("<think>I count {0}.</think><answer>99</answer>", True), ("<answer>{0}</answer>", True),
               ("<think>I count {0}.</think><answer> </answer>", True)]
    documents = [document for _, document in read_documents(tiny_world.val)]
    order = sorted(range(len(documents)), key=lambda q: len(documents[q][0].content))
    told = says(lambda n: (replies[n % 7][0].format(documents[order[n // 7]][-1].answer), replies[n % 7][1]))
    kept, everything, printed = ask("--samples=7", "--batch=42", "--temperature=0.6")
    assert [prompt for prompt, _ in told] == [prompt_ids(tiny_tokenizer, documents[q]) for q in order for _ in range(7)]
    assert all(sampling == dict(temperature=0.6) for _, sampling in told)
    assert Counter(row["verdict"] for row in everything) == {
        "ok": 18, "wrong answer": 6, "truncated": 6, "format": 6, "no answer": 6}
    assert len(kept) == 12 and "ok 12" in printed and "said before 6" in printed
    assert "next: python blackbox/filter.py --input " in printed
    for row, (_, document) in zip(kept, read_documents(out_dir / "kept.jsonl"), strict=True):
        name, _, line = row["source"].partition(":")
        question, answer = documents[int(line) - 1]
        assert (name, row["operation"], row["label"]) == ("val.jsonl", "none", "kept")
        thought = row["conversations"][1].pop("reasoning_content")
        turns = [dict(role="user", content=question.content), dict(role="assistant", content=answer.answer)]
        assert row["conversations"] == turns and thought in (f"I count {answer.answer}.", f"Fingers: {answer.answer}.")
        learned = [i for i, counts in zip(*encode_document(tiny_tokenizer, document)) if counts]
        assert learned == say(tiny_tokenizer, f"<think>{thought}</think><answer>{answer.answer}</answer>")


def test_exactly_the_missing_answers_are_written_again_with_the_same_random_numbers(ask, heard, out_dir):
    """After a kill in the middle of a batch, an answer could come twice, or differ from an undisturbed run."""
    path, flags = out_dir / "kept.jsonl.all.jsonl", ("--samples=2", "--max-new-tokens=6")
    ask(*flags, status=2)  # the teacher is untrained: nothing to keep
    lines, rows, first = path.read_bytes().split(b"\n")[:-1], timeless(read(path)[1:]), heard[:]
    assert all(one != other for one, other in zip(first[::2], first[1::2]))  # the two samples differ
    kept = [lines[:1], lines[:7], lines[:12], lines[:3] + lines[4:9] + lines[10:], lines]
    for some, batches in zip(kept, ([0, 1, 2], [1, 2], [2], [0, 2], [])):
        path.write_bytes(b"\n".join(some) + b'\n{"question": 1, "samp')
        heard.clear()
        ask(*flags, status=2)
        assert timeless(read(path)[1:]) == rows and path.read_bytes().split(b"\n")[:len(some)] == some
        assert heard == [ids for number in batches for ids in first[4 * number:4 * number + 4]]


def test_another_command_on_the_same_file_is_refused(ask, call, out_dir, tiny_world):
    """One file could mix temperatures or teachers, or a user's own text could be replaced."""
    path = out_dir / "kept.jsonl.all.jsonl"
    ask("--max-new-tokens=6", status=2)
    before = path.read_bytes()
    for flag in ("--temperature=0.5", "--samples=3", "--seed=4", "--max-new-tokens=5", "--system=x",
                 f"--teacher={tiny_world.init}", f"--input={tiny_world.train}"):
        assert "--fresh" in ask("--max-new-tokens=6", flag, status=2)[2] and path.read_bytes() == before
    for text in ("my notes", "my notes\nof last year\n", '{"a": 1}\n{"b": 2}\n', ""):
        path.write_text(text)
        teacher, input = f"--teacher={tiny_world.teacher}", f"--input={tiny_world.val}"
        assert call("blackbox.generate", teacher, input, f"--out={out_dir}/kept.jsonl").status == 2
        assert path.read_text() == text
    (out_dir / "mine.jsonl").write_text("mine")
    assert "is there already" in ask(status=2, out="mine.jsonl")[2]


def test_a_row_of_any_format_is_a_prompt_if_it_asks_something():
    """The answer to a last user turn is unknown: an earlier assistant turn must not be taken for it."""
    tagged, alpaca = dict(role="assistant", content="<answer>5 pears</answer>"), dict(instruction="Add!", input="2 and 3?")
    for row, reference in (
            (dict(messages=[QUESTION]), None), (dict(text=None, messages=[QUESTION]), None),
            (dict(conversations=[dict(role="system", content="Add!"), QUESTION]), None),
            (dict(conversations=[QUESTION, dict(role="assistant", content="5")]), "5"),
            (dict(messages=[QUESTION, tagged, QUESTION]), None), (dict(question="2 and 3?", answer="2+3=5\n#### 5"), "5"),
            (dict(alpaca, output="so the answer is 5."), "5"), (dict(alpaca, output="I sing 3."), None),
            *[(dict(alpaca, output=text), text) for text in ("Rome", "罗马", "B. Paris", "14 pears")],  # FAULTS 26
            *[(dict(alpaca, output=text), None) for text in ("Thanks!", "I took 3", "1. Sit.\n2. Add 3", "我觉得这是个好主意",
                                                             "The answer is that it depends on what you want.")],
            *[(dict(question="2 and 3?", answer=text), text) for text in ("Rome.", "x^2 - 2x + 1 = 0")],
            *[(dict(question="2 and 3?", answer=text), None) for text in ("1. Sit.\n2. Go", "Do it in one of many ways.")]):
        turns, known = question_of(row)
        assert known == reference and turns[-1].role == "user" and turns[-1].content.endswith("2 and 3?")
    for row in (dict(messages=[tagged]), dict(text="2 and 3?"), [QUESTION], dict(messages=[])):
        with pytest.raises(UserError):
            question_of(row)


def test_what_is_known_about_a_prompt_is_kept_and_the_system_turn_is_not(ask, says, tiny_tokenizer, tmp_path):
    """Kept rows must not contain --system. In many public files "label" or "source" means something else."""
    own = [dict(role="system", content="Be sad."), QUESTION]
    grown = dict(operation="typos", source="seed-3", label="changed")
    rows = [dict(messages=[QUESTION], id=7, source="forum", label=1), dict(messages=own, **grown)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = says(lambda number: ("<think>So.</think><answer>5</answer>", True))
    kept, rows, _ = ask("--system=Be glad.", input=tmp_path / "q.jsonl")
    texts = [tiny_tokenizer.decode(prompt, show_control=True) for prompt, _ in told]
    assert sorted(texts) == [f"<system>{how}<end><user>2 and 3?<end><assistant>" for how in ("Be glad.", "Be sad.")]
    assert [row["conversations"][:-1] for row in kept] == [[QUESTION], own]
    assert [(row["operation"], row["source"], row["label"], row["verdict"]) for row in kept] == [
        ("none", "7", "teacher", "unverified"), ("typos", "seed-3", "changed", "unverified")]
    assert all(row["parameters"]["system"] == "Be glad." for row in rows)


WORDS = "Mia has 2 + 1 = 3 pears, so the answer is 3."
CUT = dict(finish_reason="length")


@pytest.mark.parametrize("content, more, verdict, turn", [
    ("<think>2+1</think><answer>3</answer>", {}, "ok", ("2+1", "3")), (WORDS, {}, "ok", (WORDS, "3")),
    ("3 pears", dict(reasoning_content="2+1"), "ok", ("2+1", "3 pears")), ("3", {}, "ok", (None, "<answer>3</answer>")),
    ("<answer>3</answer><end>", {}, "ok", (None, "<answer>3</answer>")), (None, {}, "no answer", None),
    ("<answer>3</answer>", dict(reasoning_content="Use <answer>."), "ok", ("Use <answer>.", "3")),
    ("<answer>2 or 3</answer>", {}, "wrong answer", None), ("So the answer is 4, not 3.", {}, "wrong answer", None),
    ("We use the <think> tag here: the answer is 3", {}, "format", None), (WORDS, CUT, "truncated", None),
    ("2+1=3 <answer>3</answer> Hope this helps!", {}, "format", None),
    (None, dict(CUT, reasoning_content="2"), "truncated", None), (WORDS, dict(finish_reason=None), "ok", (WORDS, "3")),
    (WORDS, dict(finish_reason="content_filter"), "truncated", None)])
def test_an_endpoints_answer_needs_no_tags_but_the_right_end(content, more, verdict, turn, ask):
    """Commercial models answer in prose. To require tags keeps nothing; to trust any last number keeps errors."""
    with serving(reply=lambda _: said(content, **more)) as mock:
        kept, [row], printed = ask("--questions=1", mock=mock, status=0 if turn else 2)
    said_so = row["verdict"], row["content"], row["reasoning_content"]
    assert said_so == (verdict, content or "", more.get("reasoning_content"))
    last = [(k["conversations"][-1].get("reasoning_content"), k["conversations"][-1]["content"]) for k in kept]
    assert last == ([turn] if turn else []) and (verdict != "format" or content in printed)
    assert (verdict == "truncated") == ("--max-new-tokens" in printed)  # not "try another teacher"


def test_a_row_keeps_all_that_is_known_about_an_answer(ask, tiny_world):
    """A fact that is not stored with the answer cannot be added to a data card later."""
    with serving(reply=lambda _: said("3", reasoning_content="So.")) as mock:
        kept, [row], _ = ask("--questions=1", "--temperature=0.5", "--max-new-tokens=40", "--system=Add.", mock=mock)
    asked, seed = read(tiny_world.val)[0]["conversations"][:1], client.seed_of(0, 0, 0)
    assert mock.headers[0]["path"] == "/v1/chat/completions" and "Authorization" not in mock.headers[0]
    assert mock.asked == [dict(model="m", temperature=0.5, max_tokens=40, seed=seed,
                               messages=[dict(role="system", content="Add."), *asked])]
    usage = dict(prompt_tokens=len(json.dumps(mock.asked[0]["messages"])) // 4, completion_tokens=20)
    assert row.pop("seconds") >= 0 and row.pop("time").endswith("+00:00")
    assert row == dict(
        question=0, sample=0, conversations=asked, operation="none", source="val.jsonl:1", label="kept",
        reference="3", model="mock-1", seed=seed, finish_reason="stop", usage=usage, tokens=sum(usage.values()),
        verdict="ok", parameters=dict(temperature=0.5, max_new_tokens=40, system="Add."),
        reasoning_content="So.", content="3")
    told = dict(role="assistant", content="3", reasoning_content="So.")
    assert kept == [dict(conversations=[*asked, told], operation="none", source="val.jsonl:1", label="kept",
                         sample=0, verdict="ok", model="mock-1", finish_reason="stop", usage=usage)]


def test_faults_are_asked_again_shown_with_their_words_and_never_kept(ask, out_dir):
    """Half of the data gave status 0, and "500 82" was printed without the server's words."""
    with serving(plan=lambda _, asked: "500 no system role" if "has 4" in str(asked) else "") as mock:
        kept, rows, printed = ask("--retries=2", mock=mock, status=1)
        assert len(kept) == 5 and len(rows) == len(mock.asked) == 8 and "500: no system role 3" in printed
    with serving() as mock:  # a new port is not a new teacher
        kept, rows, _ = ask("--retries=0", mock=mock)
        assert len(kept) == 6 and len(mock.asked) == 1


def test_the_same_seed_gives_the_same_rows_in_any_order_with_any_faults(ask, out_dir):
    """The order in which answers arrive could change the rows."""
    files = []
    for flags in (["--concurrency=1"], ["--concurrency=5", "--fresh"], ["--seed=1", "--fresh"]):
        with serving(faults=0.2, seed=len(files)) as mock:
            rows = ask("--samples=3", "--timeout=0.2", *flags, mock=mock)[1]
        files.append((timeless(row for row in rows if row["verdict"] == "ok"), (out_dir / "kept.jsonl").read_bytes()))
    assert files[0] == files[1] != files[2] and len(files[0][0]) == 18


def test_more_can_be_asked_later_and_only_what_is_new_or_was_truncated_is(ask, tmp_path, tiny_world):
    """Complete answers were paid for twice when the limit was raised or a prompt was added."""
    path, lines = tmp_path / "q.jsonl", tiny_world.val.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]))
    def reply(asked):
        return said(WORDS, "length" if asked["max_tokens"] == 10 and "has 2" in str(asked) else "stop")
    with serving(reply=reply) as mock:
        ask("--questions=2", "--max-new-tokens=10", mock=mock, input=path, status=2)
        assert len(mock.asked) == 2
        kept = ask("--max-new-tokens=50", mock=mock, input=path)[0]
        assert len(mock.asked) == 2 + 1 + 2 and len(kept) == 1
        path.write_text("".join(lines))
        ask("--max-new-tokens=50", "--samples=2", mock=mock, input=path)
        assert len(mock.asked) == 5 + 4 + 4
        path.write_text("".join(lines[::-1]))
        assert "other questions" in ask("--max-new-tokens=50", mock=mock, input=path, status=2)[2]


def test_before_the_first_request_it_says_what_is_there_and_what_is_asked(ask):
    """A command could cost a hundred times what its user expected."""
    with serving(reply=lambda _: said("3") | dict(usage=None)) as mock:
        printed = ask("--questions=2", "--max-total-tokens=1", mock=mock, status=1)[2]
        *counts, most = map(int, re.findall(r"\d+", printed.split("\n")[0]))
        assert counts == [0, 2, 2] and not mock.asked
        rows = ask("--questions=2", mock=mock)[1]
        assert most / 2 < sum(row["tokens"] for row in rows) <= most
        assert re.findall(r"\d+", ask(mock=mock)[2])[:3] == ["2", "6", "4"] and len(mock.asked) == 6


def test_a_refused_prompt_is_a_row_unless_all_are_refused(ask):
    """Because of one prompt that was too long, answers that were already paid for were not written."""
    with serving(plan=lambda *_: "400") as mock:
        assert "400: no" in ask(mock=mock, status=1)[2] and len(mock.asked) == 6
    with serving(plan=lambda number, _: "400" if number == 2 else "") as mock:
        kept, rows, printed = ask("--concurrency=1", mock=mock)
        assert len(kept) == 5 and "refused 1" in printed and len(mock.asked) == 6
        assert "is finished" in ask(mock=mock)[2]
    with serving(plan=lambda number, _: "401" if number == 2 else "") as mock:
        kept, _, printed = ask("--concurrency=1", "--fresh", mock=mock, status=2)
        assert len(kept) == 2 and "401: no" in printed


def test_the_key_is_nowhere_but_in_the_request(ask, monkeypatch, out_dir):
    """Servers repeat what they were sent, and files and logs are shared, so the key could leak."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    faults = ["", "500", "307 Location: http://127.0.0.1/" + KEY]
    with serving(reply=lambda _: said(f"I saw {KEY}, so the answer is 3.") | dict(model=KEY),
                 plan=lambda number, _: faults[number % 3]) as mock:
        printed = ask("--concurrency=1", mock=mock, status=2)[2]
        assert all(headers["Authorization"] == f"Bearer {KEY}" for headers in mock.headers)
    texts = [printed, *(path.read_text() for path in out_dir.rglob("*") if path.is_file())]
    assert "[key]" in "".join(texts) and KEY not in "".join(texts)


def test_a_flag_without_effect_or_sense_is_refused(ask):
    """--max-requests with a checkpoint has no effect, but looks like a limit."""
    for flag in ("--model=m", "--timeout=5", "--max-requests=9", "--temperature=nan", "--samples=0"):
        assert flag[:6] in ask(flag, status=2)[2]
    with serving() as mock:
        for flag in ("--batch=4", "--documents=3", "--model="):
            assert flag[:6] in ask(flag, mock=mock, status=2)[2] and not mock.asked


def test_documents_that_are_cut_off_are_left_out_and_a_killed_writer_goes_on(ask, monkeypatch, out_dir):
    """Cut-off documents were stored as complete: a student learned to end in the middle of a sentence."""
    monkeypatch.setattr(generation, "MIN_CHARS", 1)
    flags = ("--documents=4", "--max-new-tokens=20", "--temperature=2")
    texts, rows, printed = ask(*flags, input=None)
    whole = [row["text"] for row in rows if row["usage"]["completion_tokens"] < 20 and row["text"]]
    assert texts == [dict(text=text) for text in whole[:4]] and len(texts) == 4 and len(rows) % 4 == 0
    assert len({row["text"] for row in rows}) > 4 and "train_distill_logits.py" in printed
    path = out_dir / "kept.jsonl.all.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:5])  # killed in the middle of a batch
    (out_dir / "kept.jsonl").unlink()
    again, new, _ = ask(*flags, input=None)
    assert again == texts and timeless(new) == timeless(rows)
    assert ask("--documents=6", *flags[1:], input=None)[0][:4] == texts


DRIVER = """import sys; sys.path.insert(0, sys.argv.pop(1)); import common; from blackbox import client, generate
client.LONGEST_PAUSE = 0.01; common.run(generate.main, generate.Config)"""


@pytest.mark.slow
def test_killed_at_random_moments_exactly_the_rows_asked_for_come_and_the_budget_holds(tiny_world, out_dir):
    """After a SIGKILL between a request and its row, only the open requests may be sent again."""
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"random moments of seed {seed}")  # shown when the test fails
    rng, faults, kills, out = random.Random(seed), drawn(0.2, seed), 0, out_dir / "kept.jsonl"
    raw = out_dir / "kept.jsonl.all.jsonl"
    def start(mock, out, *flags):
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(ROOT), f"--base-url={mock.url}", "--model=m", f"--out={out}",
             f"--input={tiny_world.train}", "--samples=4", "--timeout=1", "--concurrency=4", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    def plan(number, asked):
        time.sleep(0.02)
        return faults(number, asked)
    with serving(plan=plan) as mock:
        while kills < 10:
            process, sent = start(mock, out, "--max-requests=150"), len(mock.asked)
            enough = sent + rng.randrange(1, 14)
            while process.poll() is None and len(mock.asked) < enough:
                time.sleep(0.005)
            kills += process.poll() is None
            process.kill()
            process.communicate()
            assert len(mock.asked) <= 150 + 4 * kills and len(mock.asked) <= len(read(raw)) - 1 + 4 * kills
        printed = start(mock, out, "--max-requests=2000").communicate(timeout=300)[0]
    with serving() as mock:
        assert "next: " in start(mock, out_dir / "whole.jsonl").communicate(timeout=300)[0], printed
    rows = [row for row in read(raw)[1:] if row["verdict"] != "failed"]
    assert sorted((row["question"], row["sample"]) for row in rows) == [(q, s) for q in range(32) for s in range(4)]
    assert timeless(rows) == timeless(read(out_dir / "whole.jsonl.all.jsonl")[1:])
    assert out.read_bytes() == (out_dir / "whole.jsonl").read_bytes() and len(read(out)) == 128
