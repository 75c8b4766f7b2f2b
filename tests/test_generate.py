"""Claims about asking a teacher: what is kept is right, whole, distinct and in the teacher's words.

The teacher here is a script of replies (`says`); what it is asked, and what becomes of its answers, is
the real dataset/generate.py. Real kills: test_resume.py.
"""
import json
from collections import Counter

import pytest

import checkpoints
import dataset.generate as generation
from dataset.formats import encode_document, read_documents
from test_eval import say


@pytest.fixture
def ask(call, tiny_world, out_dir):
    """A function: `ask(*flags)` runs generate.py -> (kept rows, all rows with verdicts, printed)."""
    def run(*flags, status=0, name="traces.jsonl"):
        done = call("dataset.generate", f"--teacher={tiny_world.teacher}", f"--input={tiny_world.val}",
                    f"--out={out_dir / name}", "--batch=4", *flags)
        assert done.status == status, done.out + done.err
        if status:
            return done.err
        rows = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                for path in (out_dir / name, out_dir / f"{name}.all.jsonl")]
        return rows[0], [row for row in rows[1] if "verdict" in row], done.out
    return run


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
    said = says(lambda number: (lambda text, ended: (
        text.format(documents[order[number // 7]][-1].answer), ended))(*replies[number % 7]))
    kept, everything, printed = ask("--samples=7", "--batch=42")
    asked = [generation.prompt_ids(checkpoints.load_model(tiny_world.teacher)[1], documents[q])
             for q in order for _ in range(7)]
    assert [prompt for prompt, _ in said] == asked  # without the known answer
    counts = Counter(row["verdict"] for row in everything)
    assert counts == {"ok": 18, "wrong answer": 6, "truncated": 6, "format": 6, "no answer": 6}
    assert len(kept) == 12
    for words in ("ok 12", "said before 6", "wrong answer 6", "truncated 6", "format 6", "no answer 6",
                  "12 traces of 6 of 6 questions"):
        assert words in printed
    for row in kept:
        document = documents[row["source_line"] - 1]
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
    said = ask("--samples=1", status=2)
    assert "no answer of the teacher holds" in said and "'wrong answer': 6" in said


def test_sampling_is_seeded_and_its_knobs_reach_it(ask, says):
    """TRAPS 4's cousin: a temperature that is printed and not used; the same answers N times."""
    said = says(lambda number: ("<think>It is 3.</think><answer>3</answer>", True))
    ask("--samples=2", "--temperature=0.6", "--top-p=0.9")
    assert len(said) == 12
    assert all(sampling == dict(temperature=0.6, top_p=0.9) for _, sampling in said)


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


def test_a_torn_batch_is_cut_off_and_asked_again(ask, heard, out_dir):
    """A crash in the middle of a batch: its answers would stand there twice, or half, or others."""
    path = out_dir / "traces.jsonl.all.jsonl"
    real_rows(ask, "--samples=2")
    whole, first = path.read_bytes(), heard[:]
    lines = whole.split(b"\n")
    assert len(lines) == 1 + 12 + 3 + 1 and len(first) == 12  # header, answers, ends of batches, nothing
    for cut, missing in ((len(lines[0]) + 1, 12), (len(whole) // 2, 8), (len(whole) - 30, 4),
                         (len(whole) - 1, 4)):
        path.write_bytes(whole[:cut])
        heard.clear()
        real_rows(ask, "--samples=2")
        assert path.read_bytes() == whole and heard == first[-missing:], cut


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
    said = ask(*["--samples=2", "--max-new-tokens=6", *flags], status=2)
    assert words in said and "--fresh" in said
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
