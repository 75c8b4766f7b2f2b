"""Claims about dataset/stories.py: right answers, separate splits, nothing reserved in them."""
import json
import random
import re
from collections import Counter

import pytest

from common import UserError
from dataset import stories
from dataset.stories import (NAMES, OBJECTS, OPS, SHARES, TEMPLATES, Config, main, make_story, pool, split_of)

LANGS = ("en", "zh")
SMALL, COUNTS = (dict(zip(SHARES, n)) for n in ((20, 5, 5, 5), (1_000, 100, 100, 300)))


def make(out, **flags):
    main(Config(**{"out": str(out), "lang": "both", **flags}))
    return {split: [json.loads(line) for line in (out / f"{split}.jsonl").open(encoding="utf-8")] for split in SHARES}


def files(folder):  # without the lock file
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*.json*")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return [make(tmp_path_factory.mktemp(f"seed{seed}"), seed=seed, **COUNTS) for seed in (0, 1)]


@pytest.fixture(scope="module")
def many():
    rng = random.Random(0)
    return {lang: [make_story(rng, lang, 1 + i % 4) for i in range(2_000)] for lang in LANGS}


def texts(rows):
    return [row["conversations"][0]["content"] for row in rows]


def test_steps_chain_from_the_start_to_the_answer_through_small_numbers(many):
    """A wrong step would teach an error, or training would have the large numbers of a suite."""
    for row in many["en"] + many["zh"]:
        answer = row["conversations"][1]
        steps, total = answer["reasoning_content"].split("\n"), row["numbers"][0]
        assert len(steps) == row["ops"] and 2 <= total <= 20
        for step, n in zip(steps, row["numbers"][1:]):
            [sign], (a, b, c) = re.findall("[-+*/]", step), map(int, re.split("[-+*/=]", step))
            assert (a, b) == (total, n) and 1 <= c <= 99
            assert 2 <= b <= 5 if sign in "*/" else 1 <= b <= 20
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[sign]
            total = c
        assert answer["content"] == str(total)


def test_every_list_has_its_size_and_a_reserved_quarter():
    """With too few templates, the reserved quarter would not be a fair sample."""
    least = {"opening": 8, "question": 8, **{op: 16 for op in OPS}}
    for lang in LANGS:
        lists = {**TEMPLATES[lang], "names": NAMES[lang], "objects": OBJECTS[lang]}
        for kind, items in lists.items():
            assert least.get(kind, 32) <= len(items) == len(set(map(str, items))) == 4 * len(pool(items, True))
            assert [*pool(items, False), *pool(items, True)] == list(range(len(items)))


def test_texts_vary_and_guessing_does_not_pay(many):
    """Few templates are memorised. A frequent answer, or one that is in the text, needs no arithmetic."""
    for rows in many.values():
        assert len(set(texts(rows))) >= 1_980 and len({row["skeleton"] for row in rows}) >= 800
        answers = [int(row["conversations"][1]["content"]) for row in rows]
        assert Counter(answers).most_common(1)[0][1] < 0.06 * len(rows)
        for guess in (lambda n: n[0], lambda n: n[-1], max, sum):
            assert sum(guess(r["numbers"]) == a for r, a in zip(rows, answers)) < 0.12 * len(rows)
        ops = Counter(re.sub(r"\d", "", op) for r in rows for op in r["skeleton"].split()[2:-1])
        assert min(ops.values()) > 0.22 * sum(ops.values())


def test_no_question_occurs_in_two_splits_whatever_the_seed(made):
    """A test question would be in the training data, with other names or with another seed."""
    keys = {s: {(r["skeleton"], *r["numbers"]) for run in made for r in run[s]} for s in SHARES}
    assert all(a == b or not keys[a] & keys[b] for a in SHARES for b in SHARES)
    row = make_story(random.Random(4), "en", 3)  # names and objects do not matter
    assert split_of(row) == split_of({key: row[key] for key in ("skeleton", "numbers")})


def test_nothing_reserved_is_in_the_splits(made):
    """With reserved words in the training data, "unseen templates" would have been seen."""
    rows = [row for run in made for split in SHARES for row in run[split]]
    for lang in LANGS:
        mine = [row for row in rows if row["lang"] == lang]
        edge, blob = r"\b" if lang == "en" else "", "\n".join(texts(mine))
        assert max(map(int, re.findall(r"\d+", blob))) <= 20
        words = [name for name, _ in NAMES[lang][-8:]]
        words += [word for thing in OBJECTS[lang][-8:] for word in thing[lang == "zh":]]
        assert not re.search(f"{edge}({'|'.join(words)}){edge}", blob)
        for kind, i in re.findall(r"([a-z]+)(\d+)", "\n".join({row["skeleton"] for row in mine})):
            assert int(i) in pool(TEMPLATES[lang][kind], reserved=False)


def test_counts_are_kept_no_text_occurs_twice_and_distill_has_no_worked_steps(made, tmp_path):
    """A split that is short or has copies, steps in distill, or rows that depend on the clock or hash()."""
    for split, count in COUNTS.items():
        rows = made[0][split]
        assert len(rows) == count == len(set(texts(rows))) == len({row["id"] for row in rows})
        for row in rows:
            assert row["conversations"][1]["content"].isdigit() and row["ops"] <= 4
            assert ("reasoning_content" in row["conversations"][1]) == (split != "distill")
    assert 0.4 < sum(row["lang"] == "en" for row in made[0]["train"]) / 1_000 < 0.6
    assert len(set(texts(made[0]["train"])) & set(texts(made[1]["train"]))) < 20
    assert make(tmp_path, **COUNTS) == made[0]
    hashes = json.loads((tmp_path / "about.json").read_text())["sha256"]
    assert hashes["train"][:12] == "5bf7c07b7b98"  # as at commit 93452af


def test_finished_files_are_not_overwritten_unasked(tmp_path, capsys, monkeypatch):
    """A user's files would be replaced, or new stories would lie next to an old about.json."""
    make(tmp_path, **SMALL)
    before = files(tmp_path)
    make(tmp_path, **SMALL)
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed was 0, is 7"):
        make(tmp_path, seed=7, **SMALL)
    assert files(tmp_path) == before
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(stories, "sha256_file", lambda _: 1 / 0)  # stopped before the end
        make(tmp_path, seed=7, fresh=True, **SMALL)
    with pytest.raises(UserError, match="seed was 7, is 0"):
        make(tmp_path, **SMALL)
    make(tmp_path, seed=7, **SMALL)  # continues
    make(tmp_path / "whole", seed=7, **SMALL)
    assert files(tmp_path / "whole") == files(tmp_path) != before
    (tmp_path / "about.json").unlink()
    before = files(tmp_path)
    with pytest.raises(UserError):
        make(tmp_path, seed=7, **SMALL)
    with pytest.raises(UserError, match="no new story"):
        monkeypatch.setattr(stories, "make_story", lambda *_: make_story(random.Random(0), "en", 1))
        make(tmp_path, fresh=True)  # it would search forever for a new story
    assert files(tmp_path) == before


def test_long_chains_reach_only_the_test_split(tmp_path):
    """A reversed --ops would be accepted, or training data would have chains that only the test may have."""
    for flags in ({"train": 0}, {"ops": "0-4"}, {"ops": "4-1"}, {"ops": "5-6"}):
        with pytest.raises(UserError, match="--"):
            make(tmp_path, **flags)
    assert not list(tmp_path.iterdir())
    rows = make(tmp_path, ops="1-6", train=60, val=20, test=60, distill=30)
    longest = {split: max(row["ops"] for row in rows[split]) for split in SHARES}
    assert longest.pop("test") == 6 and max(longest.values()) <= 4
