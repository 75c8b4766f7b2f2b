"""Claims about dataset/stories.py: right answers, splits apart, nothing reserved leaks."""
import json
import random
import re
from collections import Counter

import pytest

from common import UserError
from dataset import stories
from dataset.stories import (NAMES, OBJECTS, OPS, SHARES, TEMPLATES, Config, main, make_story,
                             pool, split_of)

LANGS = ("en", "zh")
SMALL = dict(train=20, val=5, test=5, distill=5)
COUNTS = dict(train=1_000, val=100, test=100, distill=300)


def make(out, **flags):
    """The four splits of one small run: {split: rows}."""
    main(Config(**{"out": str(out), "lang": "both", **flags}))
    return {split: [json.loads(line) for line in (out / f"{split}.jsonl").open(encoding="utf-8")]
            for split in SHARES}


def files(folder):
    """{name: bytes} of the data; the lock is no data."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.json*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs that differ only in their seed."""
    return [make(tmp_path_factory.mktemp(f"seed{seed}"), seed=seed, **COUNTS) for seed in (0, 1)]


@pytest.fixture(scope="module")
def many():
    """{language: 2,000 rows}."""
    rng = random.Random(0)
    return {lang: [make_story(rng, lang, 1 + i % 4) for i in range(2_000)] for lang in LANGS}


def texts(rows):
    return [row["conversations"][0]["content"] for row in rows]


def test_steps_chain_from_the_start_to_the_answer_through_small_numbers(many):
    """A wrong step teaches nonsense; large numbers in training are what the suite wants to test."""
    for row in many["en"] + many["zh"]:
        answer = row["conversations"][1]
        steps, total = answer["reasoning_content"].split("\n"), row["numbers"][0]
        assert len(steps) == row["ops"] and 2 <= total <= 20
        for step, n in zip(steps, row["numbers"][1:]):
            left, sign, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
            a, b, c = int(left), int(right), int(result)
            assert (a, b) == (total, n) and 1 <= c <= 99
            assert 2 <= b <= 5 if sign in "*/" else 1 <= b <= 20
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[sign]
            total = c
        assert answer["content"] == str(total)


def test_every_list_has_its_size_and_a_reserved_quarter():
    """Too few templates to reserve a quarter: what is held out would not be a fair sample."""
    least = {"opening": 8, "question": 8, **{op: 16 for op in OPS}}
    for lang in LANGS:
        lists = {**TEMPLATES[lang], "names": NAMES[lang], "objects": OBJECTS[lang]}
        for kind, items in lists.items():
            assert len(items) >= least.get(kind, 32) and len(set(map(str, items))) == len(items)
            assert len(pool(items, True)) * 4 == len(items)
            assert [*pool(items, False), *pool(items, True)] == list(range(len(items)))


def test_texts_vary_and_guessing_does_not_pay(many):
    """Few forms are memorised; a common answer, or one that the text shows, needs no arithmetic."""
    for rows in many.values():
        assert len(set(texts(rows))) >= 1_980 and len({row["skeleton"] for row in rows}) >= 800
        answers = [int(row["conversations"][1]["content"]) for row in rows]
        assert Counter(answers).most_common(1)[0][1] < 0.06 * len(rows)
        for guess in (lambda n: n[0], lambda n: n[-1], max, sum):
            assert sum(guess(r["numbers"]) == a for r, a in zip(rows, answers)) < 0.12 * len(rows)
        ops = Counter(re.sub(r"\d", "", op) for r in rows for op in r["skeleton"].split()[2:-1])
        assert min(ops.values()) > 0.22 * sum(ops.values())


def test_no_question_occurs_in_two_splits_whatever_the_seed(made):
    """Trap: a test question under other names, or of another seed, in the training data."""
    keys = {split: {(r["skeleton"], tuple(r["numbers"])) for run in made for r in run[split]}
            for split in SHARES}
    assert all(a == b or not keys[a] & keys[b] for a in SHARES for b in SHARES)
    row = make_story(random.Random(4), "en", 3)  # names and objects do not matter
    assert split_of(row) == split_of({"skeleton": row["skeleton"], "numbers": row["numbers"]})


def test_nothing_reserved_is_in_the_splits(made):
    """Reserved words in the training data: "unseen templates" would have been seen."""
    rows = [row for run in made for split in SHARES for row in run[split]]
    for lang in LANGS:
        mine = [row for row in rows if row["lang"] == lang]
        edge, blob = r"\b" if lang == "en" else "", "\n".join(texts(mine))
        assert max(map(int, re.findall(r"\d+", blob))) <= 20
        words = [name for name, _ in NAMES[lang][-8:]]
        words += [word for thing in OBJECTS[lang][-8:] for word in thing[lang == "zh":]]
        assert not re.search(f"{edge}({'|'.join(words)}){edge}", blob)
        for kind, i in {tuple(re.findall(r"[a-z]+|\d+", template))
                        for row in mine for template in row["skeleton"].split()[1:]}:
            assert int(i) in pool(TEMPLATES[lang][kind], reserved=False)


def test_counts_are_kept_no_text_occurs_twice_and_distill_has_no_worked_steps(made, tmp_path):
    """A short split, copies that pad it, or steps in distill that somebody would train on. A
    generator that reads the clock, a set's order or hash(): no result can be repeated."""
    for split, count in COUNTS.items():
        rows = made[0][split]
        assert len(rows) == count == len(set(texts(rows))) == len({row["id"] for row in rows})
        for row in rows:
            assert row["conversations"][1]["content"].isdigit() and row["ops"] <= 4
            assert ("reasoning_content" in row["conversations"][1]) == (split != "distill")
    assert 0.4 < sum(row["lang"] == "en" for row in made[0]["train"]) / 1_000 < 0.6
    assert len(set(texts(made[0]["train"])) & set(texts(made[1]["train"]))) < 20
    assert make(tmp_path, **COUNTS) == made[0]
    about = json.loads((tmp_path / "about.json").read_text(encoding="utf-8"))
    assert about["sha256"]["train"][:12] == "5bf7c07b7b98"  # commit 93452af; rows name it


def test_finished_files_are_not_overwritten_unasked(tmp_path, capsys, monkeypatch):
    """An hour of runs on files that a stray command has replaced; somebody's own train.jsonl; new
    stories beside the old about.json after a stop, and "already made" for other settings."""
    make(tmp_path, **SMALL)
    before = files(tmp_path)
    make(tmp_path, **SMALL)
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed was 0, is 7"):
        make(tmp_path, seed=7, **SMALL)
    assert files(tmp_path) == before
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stories, "sha256_file", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        make(tmp_path, seed=7, fresh=True, **SMALL)
    with pytest.raises(UserError, match="seed was 7, is 0"):
        make(tmp_path, **SMALL)
    make(tmp_path, seed=7, **SMALL)  # goes on
    make(tmp_path / "whole", seed=7, **SMALL)
    assert files(tmp_path / "whole") == files(tmp_path) != before
    (tmp_path / "about.json").unlink()
    with pytest.raises(UserError, match="other settings"):
        make(tmp_path, **SMALL)


def test_an_impossible_split_is_an_error_and_leaves_the_old_files(tmp_path, monkeypatch):
    """A generator that looks for ever for stories that do not exist, or leaves half a file."""
    make(tmp_path, **SMALL)
    before = files(tmp_path)
    row = make_story(random.Random(0), "en", 1)
    monkeypatch.setattr(stories, "make_story", lambda *_: row)
    with pytest.raises(UserError, match="no new story"):
        make(tmp_path, fresh=True)
    assert files(tmp_path) == before


def test_long_chains_reach_only_the_test_split(tmp_path):
    """A reversed range, found out after an hour; training on the chains which are to test whether
    a student can go further."""
    for flags in ({"train": 0}, {"ops": "0-4"}, {"ops": "4-1"}, {"ops": "5-6"}):
        with pytest.raises(UserError, match="--"):
            make(tmp_path, **flags)
    assert not list(tmp_path.iterdir())
    rows = make(tmp_path, ops="1-6", train=60, val=20, test=60, distill=30)
    longest = {split: max(row["ops"] for row in rows[split]) for split in SHARES}
    assert longest.pop("test") == 6 and max(longest.values()) <= 4
