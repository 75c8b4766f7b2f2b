"""Claims about blackbox/write.py: the teacher's documents, as many as asked for, the same after a stop."""
import json

import pytest

from blackbox import write


@pytest.fixture
def wrote(call, tiny_world, out_dir):
    """A function: run the script with a tiny teacher -> (done, texts of OUT)."""
    def run(**changes):
        flags = dict(teacher=tiny_world.teacher, out=out_dir / "written.jsonl", documents=10, batch=4,
                     max_new_tokens=12, min_chars=1, dtype="float32") | changes
        done = call("blackbox.write", *(f"--{k.replace('_', '-')}={v}" for k, v in flags.items()))
        path = out_dir / "written.jsonl"
        return done, [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.exists() else None
    return run


def test_a_killed_writer_goes_on_to_the_same_documents(wrote, out_dir, monkeypatch):
    """A batch that is written twice, a torn line that is kept, a stream that begins anew."""
    done, whole = wrote()
    assert done.status == 0 and len(whole) == 10 and "10 documents" in done.out
    parts = out_dir / "written.jsonl.parts.jsonl"
    lines = parts.read_bytes().splitlines(keepends=True)
    parts.write_bytes(b"".join(lines[:2]) + lines[2][:5])  # killed in the middle of the second batch
    (out_dir / "written.jsonl").unlink()
    calls, batch = [], write.write_batch
    monkeypatch.setattr(write, "write_batch", lambda *a: (calls.append(a[3]), batch(*a))[1])
    assert wrote()[1] == whole and calls[0] == 1
    more = wrote(documents=14)[1]
    assert more[:10] == whole and len(more) == 14


def test_the_documents_are_the_teachers_draws(wrote, tiny_world):
    """Another seed, other documents; greedy would write one again and again."""
    assert len(set(wrote()[1])) > 5
    assert wrote()[1] != wrote(seed=1, fresh="true")[1]


@pytest.mark.parametrize("changes, words", [
    (dict(seed=1), "seed was 0, is 1"), (dict(temperature=2), "temperature was 1.0, is 2.0"),
    (dict(documents=0), "--documents"), (dict(temperature=0), "--temperature"),
    (dict(min_chars=10_000, fresh="true"), "nothing that is long enough")])
def test_what_cannot_be_is_one_line(changes, words, wrote):
    """Two commands mixed in one file; a loop without an end."""
    wrote()
    done, _ = wrote(**changes)
    assert done.status == 2 and words in done.err and done.err.count("\n") == 1


def test_a_teacher_that_writes_nothing_long_is_said_again_and_again(wrote):
    """The second time the file is there: a check of the first batches alone loops for ever."""
    for _ in range(2):
        done, _ = wrote(min_chars=10_000)
        assert done.status == 2 and "nothing that is long enough" in done.err


def test_a_file_of_somebody_else_is_not_replaced(wrote, out_dir):
    """The user's own text under the name of the output."""
    (out_dir / "written.jsonl").write_text('{"text": "mine"}\n')
    done, texts = wrote()
    assert done.status == 2 and "is there already" in done.err and texts == ["mine"]
