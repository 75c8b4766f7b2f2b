"""Claims about runs/spoil.py: what it spoils is spoiled, and nothing else is."""
import json

import pytest

from runs import spoil
from dataset.formats import Turn


def asked(*replies):
    """Rows of one question each -> lists of turns."""
    return [[Turn("user", f"question {i}"), Turn("assistant", "", think, answer)]
            for i, (think, answer) in enumerate(replies)]


CHAINS = asked(("3+19=22\n22+18=40\n40-20=20", "20"), ("14/2=7", "7"), ("5+5=10\n10*2=20", "20"), ("1+1=2", "3"))


def test_shuffled_steps_are_the_same_steps_in_another_order():
    """A shuffle that may give the old order back, or that touches the answer."""
    for seed in range(20):
        rows, count = spoil.spoil(CHAINS, spoil.shuffled, 1, seed)
        assert count == 2 and rows[1] == CHAINS[1] and rows[3] == CHAINS[3]
        for before, after in zip(CHAINS, rows):
            old, new = before[-1], after[-1]
            assert sorted(new.think.split("\n")) == sorted(old.think.split("\n")) and new.answer == old.answer
            assert ("\n" in old.think) == (new.think != old.think) and after[0] == before[0]


def test_wrong_chains_end_wrong_and_begin_right():
    """An answer that does not follow from its chain would be another experiment."""
    for seed in range(20):
        rows, count = spoil.spoil(CHAINS, spoil.wrong, 1, seed)
        assert count == 3 and rows[3] == CHAINS[3]  # its chain did not end with its answer before
        for before, after in list(zip(CHAINS, rows))[:3]:
            old, new = before[-1], after[-1]
            assert new.answer != old.answer and new.think.endswith(f"={new.answer}")
            assert new.think.split("\n")[:-1] == old.think.split("\n")[:-1]
            assert new.think.rpartition("=")[0] == old.think.rpartition("=")[0]


def test_the_share_is_met():
    """Of 1,000 rows that can be spoiled, half: within five standard deviations."""
    rows = asked(*[(f"{i}+1={i + 1}", str(i + 1)) for i in range(1000)])
    assert abs(spoil.spoil(rows, spoil.wrong, 0.5, 0)[1] - 500) < 80
    assert spoil.spoil(rows, spoil.wrong, 0.5, 0) == spoil.spoil(rows, spoil.wrong, 0.5, 0)


def line(thought, content, verdict, ended="stop"):
    """An answer as OUT.all.jsonl has it."""
    return dict(conversations=[dict(role="user", content="q")], reasoning_content=thought, content=content,
                finish_reason=ended, verdict=verdict)


@pytest.mark.parametrize("how, rows, words", [
    ("unjudged", [dict(conversations=[])], "x.jsonl:1: no answer of blackbox/generate.py"),
    ("shuffled", [dict(text="plain")], "rows of plain text"),
    ("wrong", [dict(conversations=[dict(role="user", content="q"), dict(role="assistant", content="a")])],
     "no row can be spoiled"),
])
def test_what_cannot_be_spoiled_is_said(call, out_dir, how, rows, words):
    """One line, status 2, no file."""
    path, out = out_dir / "x.jsonl", out_dir / "y.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call("runs.spoil", "--input", path, "--how", how, "--out", out)
    assert done.status == 2 and words in done.err and not out.exists()


def test_unjudged_keeps_right_and_wrong_alike(call, out_dir):
    """All that a student can read, the header and what is cut left out, the verdict unread."""
    path, out = out_dir / "x.all.jsonl", out_dir / "y.jsonl"
    rows = [dict(teacher=""), line("1+1=2", "2", "ok"), line("1+1=3", "3", "wrong answer"),
            line(None, "<think>", "format"), line("1+1", "", "truncated", "length"),
            line(None, "<think>2+2=4</think><answer>4</answer>", "ok"), line(None, "4", "ok")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = call("runs.spoil", "--input", path, "--how", "unjudged", "--out", out)
    assert done.status == 0 and "3 of 3 rows unjudged" in done.out and "3 answers are left out" in done.out
    replies = [json.loads(text)["conversations"][-1] for text in out.read_text().splitlines()]
    assert [r["content"] for r in replies] == ["2", "3", "4"]
    assert call("runs.spoil", "--input", path, "--how", "unjudged", "--out", out).status == 2  # it is there
