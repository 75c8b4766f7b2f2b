"""Claims about dataset/suites.py: right labels, paired rows, nothing from the training data."""
import json
import random
import re
from collections import Counter

import pytest

from common import UserError, sha256_file
from dataset import stories, suites
from dataset.formats import Turn, parse_row
from dataset.stories import NAMES, OBJECTS, TEMPLATES, make_story, split_of
from dataset.verify import prompt_ids
from dataset.suites import CHANGES, SUITES, Config, drawn, main, read_suites, sentences, text_of
from test_prompts import read_totals, turns


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=1_500, val=50, test=240, distill=50, lang="both", out=str(out)))
    return out


def make(data, out, **flags):
    main(Config(**{"problems": 240, "data": str(data / "test.jsonl"), "out": str(out), **flags}))
    return read_suites(out)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    return make(data, tmp_path_factory.mktemp("suites"))


def rows_of(data, *splits):
    return [json.loads(line) for split in splits for line in (data / f"{split}.jsonl").open(encoding="utf-8")]


def by_source(made, suite):
    clean = {row["id"]: row for row in made["clean"]}
    return [(row, clean[row["source"]]) for row in made[suite]]


def templates(row):  # [(kind, number)] of its sentences
    return re.findall(r"\b([a-z]+)(\d+)", row["skeleton"])


def test_the_text_alone_gives_the_answer(made):
    """With wrong labels in a suite, a model with right answers would look weak."""
    for suite in set(SUITES) - {"typos", "upper", "no_punctuation", "hostile"}:
        for row, clean in by_source(made, suite):
            told = sentences(row)
            if suite in ("order", "distractor"):
                told = [s for s in sentences(clean) if s in told]
            whole = turns(stories.SPACE[row["lang"]].join(told))
            totals = read_totals({**row, "conversations": whole})
            assert min(totals) >= 1 and len(totals) == 1 + row["ops"]
            assert str(totals[-1]) == row["conversations"][1]["content"], row


def test_every_row_has_its_clean_one_and_none_is_missing(data, made):
    """The score of a suite and the clean score would come from different problems."""
    for row, test in zip(made["clean"], rows_of(data, "test"), strict=True):
        assert row == {**test, "suite": "clean", "source": row["id"]}
    languages = Counter(row["lang"] for row in made["clean"])
    assert set(made) == set(SUITES) and min(languages.values()) > 80
    for suite in CHANGES:
        assert len({row["source"] for row in made[suite]}) == len(made[suite])
        for row, clean in by_source(made, suite):
            assert row["suite"] == suite and text_of(row) != text_of(clean)
            if suite not in ("large", "longer"):  # these two change the answer
                assert row["conversations"][1] == clean["conversations"][1]
                assert (row["numbers"], row["ops"]) == (clean["numbers"], clean["ops"])
    assert set(SUITES) - set(suites.IN_MEAN) == {"clean", "other_language", "hostile"}
    count = {suite: len(made[suite]) for suite in CHANGES}
    assert count.pop("typos") == count.pop("upper") == languages["en"]
    assert count.pop("large") >= 235 and count.pop("order") > 120 and set(count.values()) == {240}


def test_same_seed_same_bytes_other_seed_other_rows(data, made, tmp_path, monkeypatch):
    """Suites would differ between machines, or all of them would change if one is removed."""
    main(Config(problems=100, data=str(data / "test.jsonl"), out=str(tmp_path / "again")))
    assert sha256_file(tmp_path / "again/typos.jsonl")[:12] == "514e6acf2e0f"  # as at commit 93452af
    (tmp_path / "again/typos.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="typos.jsonl"):  # otherwise a mean over half a file
        read_suites(tmp_path / "again")
    other = make(data, tmp_path / "other", seed=1, problems=100)
    for suite in set(CHANGES) - {"order", "upper", "no_punctuation"}:
        assert other[suite] != made[suite][:len(other[suite])], suite
    monkeypatch.delitem(CHANGES, "typos")
    for suite, row in suites.make_suites([(row, drawn(row)) for row in rows_of(data, "test")], 0):
        assert row in made[suite]


def test_reserved_material_is_where_it_was_promised_and_nowhere_else(made):
    """An "unseen sentence" would be in the training data, or a suite would change two things at once."""
    for suite in ("clean", *CHANGES):
        for row in made[suite]:
            for kind, i in templates(row):
                reserved = int(i) in stories.pool(TEMPLATES[row["lang"]][kind], True)
                assert reserved == (suite == "paraphrase"), row
            lang, lower, edge = row["lang"], text_of(row).lower(), r"\b" * (row["lang"] == "en")
            for items, column in ((NAMES, 0), (OBJECTS, 1)):
                words = "|".join(item[column].lower() for item in items[lang][-8:])
                assert bool(re.search(f"{edge}({words}){edge}", lower)) == (suite == "names"), row


def test_typos_leave_digits_name_and_operands_alone(made):
    """A misspelled "half", or "ten" for "then", changes the sum. A misspelled name changes the person."""
    kept = "half third quarter fifth doubles triples quadruples quintuples".split()
    forbidden = """one two three four five six seven eight nine ten zero plus minus times half double
        triple sell give lose add""".split()
    shares = []
    for row, clean in by_source(made, "typos"):
        pairs = list(zip(text_of(clean).split(), text_of(row).split(), strict=True))
        changed = [(a, b) for a, b in pairs if a != b]
        shares.append(len(changed) / len(pairs))
        assert changed and re.findall(r"\d", text_of(row)) == re.findall(r"\d", text_of(clean))
        for a, b in changed:
            letters, typed = re.match("[A-Za-z]+", a)[0], re.match("[A-Za-z]+", b)[0]
            assert a.removeprefix(letters) == b.removeprefix(typed)  # punctuation is unchanged
            assert letters.lower() not in kept and letters not in dict(NAMES["en"])
            assert typed.lower() not in forbidden and set(typed) <= set(letters)
            assert letters[0] + letters[-1] == typed[0] + typed[-1] and abs(len(a) - len(b)) <= 1
    assert 0.08 < sum(shares) / len(shares) < 0.13
    assert not {"ten", "then", "pies", "cars"} & {*sum(map(suites.misspelled, ["then", "piles", "cards"]), [])}
    assert {"appels", "aples", "appples"} <= set(suites.misspelled("apples"))


def test_a_distractor_is_one_sentence_that_changes_nothing(made):
    """After the new sentence, "he" could mean its person, or "the number" its number of minutes."""
    places = Counter()
    for row, clean in by_source(made, "distractor"):
        told, before, gender = sentences(row), sentences(clean), dict(NAMES[row["lang"]])
        [(place, extra)] = [(i, s) for i, s in enumerate(told) if s not in before]
        places[place == 0] += 1
        assert [*told[:place], *told[place + 1:]] == before
        assert place < len(told) - 1 and len(re.findall(r"\d+", extra)) == 1
        people = {gender[name] for name in gender if name in text_of(clean)}
        assert len(people) == 1 and not people & {gender[n] for n in gender if n in extra}
        counts = any(noun in extra for _, noun in OBJECTS[row["lang"]])
        assert (place in (0, len(told) - 2) if counts else
                not re.search("the number|the total|数", told[place + 1].lower()))
    assert min(places.values()) > 20


def test_every_other_change_keeps_what_it_promises(data, made):
    """A lost sentence, 乘以3。5个人 that becomes 乘以35个人, a "large" problem with small numbers, or a row of train."""
    for row, clean in by_source(made, "upper"):
        assert text_of(row) == text_of(clean).upper()
    for row, clean in by_source(made, "no_punctuation"):
        assert text_of(row).split() == re.sub(r"[.,?。，？]", " ", text_of(clean)).split()
    for row, clean in by_source(made, "order"):
        assert sentences(row) == [sentences(clean)[-1], *sentences(clean)[:-1]]
        assert any(name in sentences(row)[0] for name, _ in NAMES[row["lang"]])
    for row, clean in by_source(made, "large"):
        assert row["skeleton"] == clean["skeleton"] and 100 <= row["numbers"][0] <= 500
        steps = zip(templates(row)[1:-1], row["numbers"][1:])
        assert all(n > 20 for (op, _), n in steps if op in ("add", "sub"))
    for row, clean in by_source(made, "longer"):
        (*told, question), (*before, last) = sentences(row), sentences(clean)
        assert (told[:len(before)], question) == (before, last)
        assert row["numbers"][:len(before)] == clean["numbers"]
    assert {row["ops"] for row in made["longer"]} == {5, 6}
    for row, clean in by_source(made, "other_language"):
        assert {row["lang"], clean["lang"]} == {"en", "zh"} and split_of(row) == "test"
        assert [k for k, _ in templates(row)] == [k for k, _ in templates(clean)]
    trained = {text_of(row) for row in rows_of(data, "train", "val", "distill")}
    assert not trained & {text_of(row) for suite in CHANGES for row in made[suite]}


def test_hostile_rows_are_read_and_stay_text(made, tiny_tokenizer):
    """A hostile text would crash the evaluation, or its <end> would become a control token."""
    marks, lengths = [*tiny_tokenizer.user, tiny_tokenizer.end, *tiny_tokenizer.assistant], {}
    for row in made["hostile"]:
        turns = [Turn("user", text_of(row)), Turn("assistant", "none")]
        assert not text_of(row).strip() or parse_row(row) == turns  # parse_row refuses a blank question
        ids = prompt_ids(tiny_tokenizer, turns)
        assert [i for i in ids if i in tiny_tokenizer.control_ids] == marks, row["hostile"]
        lengths[row["hostile"]] = len(ids)
    assert len(lengths) >= 10 and lengths["ten contexts"] > 10 * 512


def test_a_story_is_known_by_its_row_and_nothing_else_is_a_story():
    """If an edited row counted as a story, a suite would change it wrongly and give a wrong answer."""
    rng = random.Random(5)
    for i, lang in enumerate(["en", "zh"] * 200):
        key = stories.draw_templates(rng, lang, ["opening", "add", "div", "question"], i % 3 == 0)
        story = dict(stories.person_and_thing(rng, lang, i % 5 == 0), lang=lang, key=key, numbers=[6, 2, 4])
        assert drawn(stories.tell(**story)) == story
    row = stories.tell(**story)
    for other in ({}, [1], "x", {**row, "numbers": [6, 2, 2]}, {**row, "skeleton": "en"},
                  {**row, "conversations": [row["conversations"][0], {"content": "0"}]}):
        assert drawn(other) is None


def test_data_that_is_no_test_split_is_an_error(data, tmp_path):
    """With --data train.jsonl, every suite would measure what a model has memorised."""
    good, trained = (json.dumps(rows_of(data, split)[0]) for split in ("test", "train"))
    many = (make_story(random.Random(i), "en", 5) for i in range(1_000))
    long = json.dumps(next(row for row in many if split_of(row) == "test"))
    for bad in (trained, long, good.replace('"content": "', '"content": "1', 1)):
        (tmp_path / "test.jsonl").write_text(f"{good}\n{bad}\n", encoding="utf-8")
        with pytest.raises(UserError, match="test.jsonl:2: "):
            make(tmp_path, tmp_path / "out", problems=2)
    with pytest.raises(UserError, match="--problems"):
        make(data, tmp_path / "out", problems=300)
    assert not (tmp_path / "out").exists()
