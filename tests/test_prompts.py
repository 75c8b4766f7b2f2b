"""Claims about dataset/prompts.py: other words, the same answer, nothing reserved."""
import json
import random
import re

import pytest

from cli import UserError
from dataset import prompts, stories
from dataset.prompts import OPERATIONS, Config, invented_word, main
from dataset.story_texts import NAMES, OBJECTS
from test_stories import spoken


@pytest.fixture(scope="module")
def distill(tmp_path_factory):
    """Questions in both languages, as a user would have made them."""
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=10, val=10, test=10, distill=400, lang="both", out=str(out)))
    return out / "distill.jsonl"


def make(distill, out, **flags):
    main(Config(**{"input": str(distill), "out": str(out), "share": 0.8, **flags}))
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


def text(row):
    return row["conversations"][0]["content"]


def test_every_question_is_there_once_with_its_answer_and_no_steps(distill, tmp_path):
    """A lost question, a changed answer, or worked steps that nobody may train on."""
    rows = make(distill, tmp_path / "p.jsonl", operations=",".join(OPERATIONS))
    before = [json.loads(line) for line in distill.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(before)
    for new, old in zip(rows, before):
        assert new["conversations"][1] == old["conversations"][1]
        assert "reasoning_content" not in new["conversations"][1]
        assert (text(new) == text(old)) == (new["operation"] == "none")
    assert {row["operation"] for row in rows} == {"none", *OPERATIONS}


def test_the_share_is_the_share(distill, tmp_path):
    """All changed: the student forgets clean text; none: a dead knob."""
    for share, low, high in ((0, 0, 0), (0.5, 160, 240), (1, 400, 400)):
        rows = make(distill, tmp_path / f"{share}.jsonl", share=share)
        assert low <= sum(row["operation"] != "none" for row in rows) <= high


def test_an_invented_story_is_the_same_problem_about_nobody_known(distill, tmp_path):
    """A reserved name among the invented ones would train on the suite "names"."""
    rows = [r for r in make(distill, tmp_path / "p.jsonl") if r["operation"] == "invented"]
    known = {word.lower() for items in (NAMES["en"], OBJECTS["en"]) for pair in items for word in pair}
    assert len(rows) > 20 and {row["lang"] for row in rows} == {"en"}
    for row in rows:
        assert not (known - {"he", "she"}) & set(re.findall("[a-z]+", text(row).lower()))
        total = int(re.search(r"\d+", text(row))[0])
        for op, n in spoken(text(row), "en"):
            total = {"add": total + n, "sub": total - n, "mul": total * n, "div": total // n}[op]
        assert str(total) == row["conversations"][1]["content"]


def test_invented_words_are_many_and_no_real_ones(monkeypatch):
    """A handful of words would be learned by heart; a real one is drawn again."""
    words = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert len(set(words)) > 900
    monkeypatch.setattr(prompts, "REAL", {words[0], words[1] + "s"})
    again = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert again[2:] == words[2:] and again[0] != words[0] and again[1] != words[1]


def test_the_same_seed_gives_the_same_file_and_another_seed_another(distill, tmp_path):
    """A recipe that cannot be repeated."""
    rows = make(distill, tmp_path / "a.jsonl")
    assert rows == make(distill, tmp_path / "a.jsonl") == make(distill, tmp_path / "b.jsonl")
    assert rows != make(distill, tmp_path / "c.jsonl", seed=1)
    with pytest.raises(UserError, match="made otherwise"):
        make(distill, tmp_path / "a.jsonl", seed=1)
    assert rows != make(distill, tmp_path / "a.jsonl", seed=1, fresh=True)


@pytest.mark.parametrize("flags, message", [
    (dict(operations="typos,tipos"), "some of typos,invented"), (dict(operations=""), "some of"),
    (dict(share=1.5), "0 to 1"), (dict(share=float("nan")), "0 to 1")], ids=str)
def test_wrong_values_are_refused(distill, tmp_path, flags, message):
    """A misspelled operation that is silently left out."""
    with pytest.raises(UserError, match=message):
        make(distill, tmp_path / "p.jsonl", **flags)


@pytest.mark.parametrize("line", ['{"question": "1+1?", "answer": "#### 2"}', "{", "[]", "null", "7"])
def test_a_line_of_another_kind_is_named(tmp_path, line):
    """A traceback, or questions that were quietly left as they are."""
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="x.jsonl:1: no question"):
        make(tmp_path / "x.jsonl", tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="does not exist.*stories.py"):
        make(tmp_path / "y.jsonl", tmp_path / "p.jsonl")
    with pytest.raises(UserError, match="--out"):
        make(tmp_path / "x.jsonl", tmp_path / "x.jsonl")
