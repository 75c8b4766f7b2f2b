"""Claims about dataset/stories.py: right answers, splits apart, nothing reserved leaks."""
import functools
import json
import random
import re
from collections import Counter

import pytest

from cli import UserError
from dataset import stories
from dataset.stories import OPS, SHARES, Config, main, make_story, split_of
from dataset.story_texts import NAMES, OBJECTS, TEMPLATES

LANGS = ("en", "zh")


def make(out, **flags):
    """The four splits of one small run: {split: rows}."""
    counts = {"train": 2_000, "val": 150, "test": 150, "distill": 400}
    main(Config(**{**counts, "out": str(out), "lang": "both", **flags}))
    return {split: [json.loads(line) for line in (out / f"{split}.jsonl").open(encoding="utf-8")]
            for split in SHARES}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two runs that differ in their seed alone."""
    return [make(tmp_path_factory.mktemp(f"seed{seed}"), seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module")
def ten_thousand():
    """10,000 stories a language."""
    rng = random.Random(0)
    return {lang: [make_story(rng, lang, 1 + i % 4) for i in range(10_000)] for lang in LANGS}


def texts(rows):
    return [row["conversations"][0]["content"] for row in rows]


def key(row):
    return row["skeleton"], tuple(row["numbers"])


@functools.cache
def pattern(template):
    """The regular expression of all that a template can become."""
    numbers = {"{n}": r"\d+", "{c}": r"\d+\w", "{k}": r"\d+[^\W\d][\w ]*|\d+ \w+"}
    parts = [f"(?:{numbers.get(part, '[^0-9.。]+?')})" if part.startswith("{") else re.escape(part)
             for part in re.split(r"(\{\w+\})", template)]
    return re.compile("".join(parts))


def spoken(text, lang):
    """(operation, operand) of each sentence after the opening, read from the text alone."""
    words = {"doubles": 2, "triples": 3, "quadruples": 4, "quintuples": 5, "to half": 2,
             "only half": 2, "a third": 3, "a quarter": 4, "a fifth": 5, "两倍": 2, "三倍": 3,
             "四倍": 4, "五倍": 5, "一半": 2, "三分之一": 3, "四分之一": 4, "五分之一": 5}
    found = []
    for sentence in re.split(r"(?<=[.。])", text)[1:]:
        for op in OPS:
            if any(pattern(t).fullmatch(sentence.strip()) for t in TEMPLATES[lang][op]):
                number = re.search(r"\d+", sentence)
                word = next((n for w, n in words.items() if w in sentence), None)
                found.append((op, int(number[0]) if number else word))
    return found


@pytest.mark.parametrize("lang", LANGS)
def test_the_text_alone_gives_the_answer(lang):
    """A sentence whose operation or operand the text does not tell: no reader could solve it."""
    rng = random.Random(2)
    for i in range(400):
        row = make_story(rng, lang, 1 + i % 6)
        text = texts([row])[0]
        total = int(re.search(r"\d+", text)[0])
        for op, n in spoken(text, lang):
            assert op != "div" or total % n == 0
            total = {"add": total + n, "sub": total - n, "mul": total * n, "div": total // n}[op]
        assert str(total) == row["conversations"][1]["content"], text
        assert len(spoken(text, lang)) == row["ops"], text


def test_steps_chain_from_the_start_to_the_answer(ten_thousand):
    """A worked step that is wrong, or does not go on from the one before, teaches nonsense."""
    for row in ten_thousand["en"] + ten_thousand["zh"]:
        answer = row["conversations"][1]
        steps, total = answer["reasoning_content"].split("\n"), row["numbers"][0]
        assert len(steps) == row["ops"]
        for step, n in zip(steps, row["numbers"][1:]):
            left, sign, right, result = re.fullmatch(r"(\d+)([-+*/])(\d+)=(\d+)", step).groups()
            a, b, c = int(left), int(right), int(result)
            assert (a, b) == (total, n)
            assert {"+": a + b == c, "-": a - b == c, "*": a * b == c, "/": a == b * c}[sign]
            total = c
        assert answer["content"] == str(total)


def test_training_numbers_stay_small(ten_thousand):
    """Large numbers in the training data: the robustness suite would measure nothing new."""
    for row in ten_thousand["en"] + ten_thousand["zh"]:
        start, *operands = row["numbers"]
        signs = re.findall(r"[-+*/]", row["conversations"][1]["reasoning_content"])
        assert 2 <= start <= 20
        assert all(2 <= n <= 5 if sign in "*/" else 1 <= n <= 20
                   for sign, n in zip(signs, operands))
        totals = re.findall(r"=(\d+)", row["conversations"][1]["reasoning_content"])
        assert all(1 <= int(total) <= 99 for total in totals)


@pytest.mark.parametrize("lang", LANGS)
def test_every_list_has_its_size_and_a_reserved_quarter(lang):
    """Too few templates to reserve a quarter: what is held out would not be a fair sample."""
    least = {"opening": 8, "question": 8, **{op: 16 for op in OPS}}
    for kind, templates in TEMPLATES[lang].items():
        assert len(templates) >= least[kind] and len(templates) % 4 == 0
        assert len(set(templates)) == len(templates)
        assert len(stories.pool(templates, True)) * 4 == len(templates)
        assert not set(stories.pool(templates, True)) & set(stories.pool(templates, False))
    for items in (NAMES[lang], OBJECTS[lang]):
        assert len(items) >= 32 and len(items) % 4 == 0 and len(set(items)) == len(items)


@pytest.mark.parametrize("lang", LANGS)
def test_texts_and_skeletons_vary(ten_thousand, lang):
    """A generator with few forms: the student memorises them, and every score is 100 %."""
    rows = ten_thousand[lang]
    assert len(set(texts(rows))) >= 9_900
    assert len({row["skeleton"] for row in rows}) >= 1_000


@pytest.mark.parametrize("lang", LANGS)
def test_guessing_does_not_pay(ten_thousand, lang):
    """A common answer, or an answer that stands in the text, scores without any arithmetic."""
    rows = ten_thousand[lang]
    answers = [int(row["conversations"][1]["content"]) for row in rows]
    assert Counter(answers).most_common(1)[0][1] < 0.06 * len(rows)
    for guess in (lambda n: n[0], lambda n: n[-1], max, sum):
        assert sum(guess(r["numbers"]) == a for r, a in zip(rows, answers)) < 0.12 * len(rows)
    ops = Counter(re.sub(r"\d", "", op) for row in rows for op in row["skeleton"].split()[2:-1])
    assert min(ops.values()) > 0.22 * sum(ops.values())


def test_no_question_stands_in_two_splits_whatever_the_seed(made):
    """Trap: a test question under other names, or of another seed, in the training data."""
    keys = {split: {key(r) for run in made for r in run[split]} for split in SHARES}
    for a in SHARES:
        for b in SHARES:
            assert a == b or not keys[a] & keys[b]
    assert all(split_of(row) == split for run in made for split in SHARES for row in run[split])


def test_the_split_ignores_names_and_objects():
    """A split that depends on the name: the same sum, renamed, crosses from train to test."""
    row = make_story(random.Random(4), "en", 3)
    assert split_of(row) == split_of({"skeleton": row["skeleton"], "numbers": row["numbers"]})
    assert len({split_of(make_story(random.Random(i), "en", 2)) for i in range(200)}) == 4


def test_nothing_reserved_is_in_the_splits(made):
    """Reserved words in the training data: "unseen templates" would have been seen."""
    rows = [row for run in made for split in SHARES for row in run[split]]
    assert max(row["ops"] for row in rows) == 4
    for lang in LANGS:
        mine = texts(row for row in rows if row["lang"] == lang)
        blob = "\n".join(mine)
        assert max(map(int, re.findall(r"\d+", blob))) <= 20
        edge = r"\b" if lang == "en" else ""
        for name, _ in NAMES[lang][-len(NAMES[lang]) // 4:]:
            assert not re.search(edge + name + edge, blob)
        for thing in OBJECTS[lang][-len(OBJECTS[lang]) // 4:]:
            nouns = thing if lang == "en" else thing[1:]
            assert not any(re.search(edge + noun + edge, blob) for noun in nouns)
        sentences = set(re.findall(r"[^.?。？\n]+[.?。？]", blob))
        for kind, templates in TEMPLATES[lang].items():
            for template in templates[-len(templates) // 4:]:
                form = pattern(template)
                assert not [s for s in sentences if form.fullmatch(s.strip())], template


def test_long_chains_reach_the_test_split_alone(tmp_path):
    """--ops 1-6 that trains on the chains which are to test whether a student can go further."""
    make(tmp_path, ops="1-6", train=60, val=20, test=60, distill=30)
    longest = {}
    for split in SHARES:
        lines = (tmp_path / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        longest[split] = max(json.loads(line)["ops"] for line in lines)
    assert longest.pop("test") == 6
    assert max(longest.values()) <= 4


def test_distill_has_answers_but_no_worked_steps(made):
    """Worked steps in distill: somebody trains on them, and the teacher's traces mean nothing."""
    for split in SHARES:
        for row in made[0][split]:
            assert row["conversations"][1]["content"].isdigit()
            assert ("reasoning_content" in row["conversations"][1]) == (split != "distill")


def test_counts_are_kept_and_no_text_stands_twice(made):
    """A split that is short, or padded with copies, changes what "1,000 questions" means."""
    for split, count in zip(SHARES, (2_000, 150, 150, 400)):
        assert len(made[0][split]) == count == len(set(texts(made[0][split])))
        assert len({row["id"] for row in made[0][split]}) == count
    assert 0.4 < sum(row["lang"] == "en" for row in made[0]["train"]) / 2_000 < 0.6


def test_same_seed_same_bytes_other_seed_other_stories(made, tmp_path):
    """A generator that reads the clock, a set's order or hash(): no result can be repeated."""
    small = dict(train=100, val=10, test=10, distill=10)
    for name in ("a", "b"):
        make(tmp_path / name, **small)
    for file in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(set(texts(made[0]["train"])) & set(texts(made[1]["train"]))) < 20


def test_finished_files_are_not_overwritten_unasked(tmp_path, capsys):
    """An hour of runs on files that a stray command has replaced."""
    small = dict(train=20, val=5, test=5, distill=5)
    make(tmp_path, **small)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    capsys.readouterr()
    make(tmp_path, **small)
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed was 0, is 7.*--fresh"):
        make(tmp_path, seed=7, **small)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    make(tmp_path, seed=7, fresh=True, **small)
    assert (tmp_path / "train.jsonl").read_bytes() != before["train.jsonl"]
    (tmp_path / "about.json").unlink()
    with pytest.raises(UserError, match="no about.json"):
        make(tmp_path, seed=7, **small)


def test_a_stopped_run_does_not_pass_for_a_finished_one(tmp_path, monkeypatch):
    """New stories beside the old about.json: "already made" for files of other settings."""
    small = dict(train=20, val=5, test=5, distill=5)
    make(tmp_path, **small)

    def stopped(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(stories, "write_file", stopped)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, seed=7, fresh=True, **small)
    with pytest.raises(UserError, match="no about.json"):
        make(tmp_path, **small)


def test_an_impossible_split_is_an_error_and_leaves_the_old_files(tmp_path, monkeypatch):
    """A generator that looks for ever for stories that do not exist, or leaves half a file."""
    make(tmp_path, train=20, val=5, test=5, distill=5)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(stories, "PATIENCE", 500)
    few = [json.dumps(make_story(random.Random(i), "en", 1)) for i in range(300)]
    monkeypatch.setattr(stories, "make_story", lambda rng, *_: json.loads(rng.choice(few)))
    with pytest.raises(UserError, match="no new story in 500 draws, still missing"):
        make(tmp_path, fresh=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("flags", [{"train": 0}, {"val": -1}, {"ops": "0-4"}, {"ops": "4-1"},
                                   {"ops": "1-7"}, {"ops": "5-6"}, {"ops": "two"}])
def test_a_wrong_flag_is_an_error(tmp_path, flags):
    """A reversed range, or the suites' long chains in training data, found out after an hour."""
    with pytest.raises(UserError, match="--"):
        make(tmp_path, **flags)
    assert not list(tmp_path.iterdir())
