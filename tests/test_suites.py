"""Claims about dataset/suites.py: labels stay right, rows are paired, nothing was trained on."""
import json
import random
import re
from collections import Counter

import pytest

from cli import UserError
from dataset import stories, suites
from dataset.formats import Turn, prompt_ids, read_documents
from dataset.stories import split_of
from dataset.story_texts import NAMES, OBJECTS, TEMPLATES, WORDS
from dataset.suites import CHANGES, IN_MEAN, SUITES, Config, main, read_suites
from test_stories import spoken

SAME_ANSWER = [suite for suite in CHANGES if suite not in ("large", "longer")]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Stories in both languages, as a user would have made them."""
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=4_000, val=50, test=300, distill=50, lang="both",
                                out=str(out)))
    return out


def make(data, out, **flags):
    main(Config(**{"problems": 240, "data": str(data / "test.jsonl"), "out": str(out), **flags}))
    return read_suites(out)


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    return make(data, tmp_path_factory.mktemp("suites"))


def text(row):
    return row["conversations"][0]["content"]


def answer(row):
    return row["conversations"][1]["content"]


def told(row):
    """The sentences of a row."""
    return [s.strip() for s in re.findall(r"[^.?。？]+[.?。？]", text(row))]


def by_source(made, suite):
    """(row, its clean row) of a suite."""
    clean = {row["id"]: row for row in made["clean"]}
    return [(row, clean[row["source"]]) for row in made[suite]]


def solved(sentences, lang):
    """The answer and the number of operations, read from the text alone."""
    whole = ("" if lang == "zh" else " ").join(sentences)
    total = int(re.search(r"\d+", whole)[0])
    for op, n in spoken(whole, lang):
        assert op != "div" or total % n == 0
        total = {"add": total + n, "sub": total - n, "mul": total * n, "div": total // n}[op]
        assert total >= 1
    return str(total), len(spoken(whole, lang))


def templates(row):
    return [re.fullmatch(r"([a-z]+)(\d+)", key).groups() for key in row["skeleton"].split()[1:]]


def test_clean_is_the_test_split_as_it_is(data, made):
    """Scores on `clean` and on test.jsonl that differ, or a clean problem that was trained on."""
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()[:240]
    for line, row in zip(lines, made["clean"], strict=True):
        assert {**json.loads(line), "suite": "clean", "source": row["id"]} == row
        assert split_of(row) == "test"


@pytest.mark.parametrize("suite", ["clean", "paraphrase", "names", "large", "longer", "order",
                                   "distractor", "other_language"])
def test_the_text_alone_gives_the_answer(made, suite):
    """A suite with wrong labels: what looks like a weak model is a wrong key."""
    for row, clean in by_source(made, suite):
        sentences = told(row)
        if suite == "order":
            sentences = [*sentences[1:], sentences[0]]
        if suite == "distractor":
            sentences = [s for s in sentences if s in told(clean)]
        assert solved(sentences, row["lang"]) == (answer(row), row["ops"]), text(row)


@pytest.mark.parametrize("suite", SAME_ANSWER)
def test_the_answer_is_the_clean_one(made, suite):
    """A change that touches the label: pairs would compare two problems."""
    for row, clean in by_source(made, suite):
        assert answer(row) == answer(clean) and row["numbers"] == clean["numbers"]
        assert row["ops"] == clean["ops"] and text(row) != text(clean)


def test_every_row_has_its_clean_one_and_none_is_missing(made):
    """Pairs that are lost in silence: a suite's score and the clean one's are of other problems."""
    languages = Counter(row["lang"] for row in made["clean"])
    assert set(made) == set(SUITES) and min(languages.values()) > 80
    for suite in CHANGES:
        sources = [row["source"] for row in made[suite]]
        assert len(sources) == len(set(sources)) == len(by_source(made, suite))
        assert all(row["suite"] == suite for row in made[suite])
        assert len({row["id"] for row in made[suite]}) == len(sources)
    assert len(made["typos"]) == len(made["upper"]) == languages["en"]
    for suite in ("paraphrase", "distractor", "names", "longer", "no_punctuation",
                  "other_language"):
        assert len(made[suite]) == 240, suite
    assert len(made["large"]) >= 235 and len(made["order"]) > 120


def test_the_mean_is_over_disturbances_alone():
    """A mean that a language nobody taught, or hostile text, pulls down; or clean pulls up."""
    assert set(SUITES) - set(IN_MEAN) == {"clean", "other_language", "hostile"}


def test_same_seed_same_bytes_other_seed_other_rows(data, made, tmp_path, monkeypatch):
    """Suites that differ from machine to machine, or that all change when one is taken away."""
    assert make(data, tmp_path / "again") == made
    other = make(data, tmp_path / "other", seed=1)
    for suite in ("typos", "paraphrase", "distractor", "names", "large", "longer",
                  "other_language"):
        assert other[suite] != made[suite], suite
    monkeypatch.delitem(suites.CHANGES, "typos")
    base = suites.read_clean(data / "test.jsonl", 240)
    assert all(rows == made[suite] for suite, rows in suites.make_suites(base, 0).items())


def test_reserved_material_is_where_it_was_promised_and_nowhere_else(made):
    """An "unseen sentence" that was trained on; or two disturbances in a suite that names one."""
    for suite in ("clean", *CHANGES):
        for row in made[suite]:
            for kind, i in templates(row):
                reserved = int(i) in stories.pool(TEMPLATES[row["lang"]][kind], True)
                assert reserved == (suite == "paraphrase"), row
            lang, lower = row["lang"], text(row).lower()
            edge = r"\b" if lang == "en" else ""
            for items, column in ((NAMES, 0), (OBJECTS, 1)):
                words = "|".join(item[column].lower() for item in items[lang][-8:])
                found = re.search(f"{edge}({words}){edge}", lower) is not None
                assert found == (suite == "names"), row


def test_typos_leave_digits_name_and_operands_alone(made):
    """A misspelled "half" or "then" -> "ten" changes the sum; a misspelled name, the person."""
    kept = set("half third quarter fifth doubles triples quadruples quintuples".split())
    forbidden = set("""one two three four five six seven eight nine ten zero plus minus times half
        double triple sell give lose add""".split())
    shares = []
    for row, clean in by_source(made, "typos"):
        pairs = list(zip(text(clean).split(), text(row).split(), strict=True))
        changed = [(a, b) for a, b in pairs if a != b]
        shares.append(len(changed) / len(pairs))
        assert changed and re.findall(r"\d", text(row)) == re.findall(r"\d", text(clean))
        for a, b in changed:
            letters, typed = re.match("[A-Za-z]+", a)[0], re.match("[A-Za-z]+", b)[0]
            assert a.removeprefix(letters) == b.removeprefix(typed)  # marks are as they were
            assert letters.lower() not in kept and letters not in dict(NAMES["en"])
            assert typed.lower() not in forbidden
            assert letters[0] == typed[0] and letters[-1] == typed[-1]
            assert abs(len(letters) - len(typed)) <= 1
            assert set(typed) <= set(letters)
    assert 0.08 < sum(shares) / len(shares) < 0.13


def test_no_mistake_makes_another_word_of_the_stories():
    """"piles" -> "pies" is readable and says something else; so does the number in "then"."""
    assert not {"ten", "then"} & set(suites.misspelled("then"))
    assert not {"three", "there"} & set(suites.misspelled("there"))
    assert "pies" not in suites.misspelled("piles") and "cars" not in suites.misspelled("cards")
    assert {"appels", "aples", "appples"} <= set(suites.misspelled("apples"))


def test_a_distractor_is_one_sentence_that_changes_nothing(made):
    """A second person called "he", or minutes that "the number" of the next sentence could mean."""
    places = Counter()
    for row, clean in by_source(made, "distractor"):
        sentences = told(row)
        extra, = [s for s in sentences if s not in told(clean)]
        place = sentences.index(extra)
        places[place == 0] += 1
        assert [*sentences[:place], *sentences[place + 1:]] == told(clean)
        assert place < len(sentences) - 1, "behind the question"
        assert len(re.findall(r"\d+", extra)) == 1
        gender = dict(NAMES[row["lang"]])
        people = {gender[n] for n in gender if n in text(clean)} if row["lang"] == "zh" else \
            {gender[n] for n in gender if re.search(rf"\b{n}\b", text(clean))}
        others = {gender[n] for n in gender if n in extra}
        assert len(people) == 1 and not people & others
        following = sentences[place + 1].lower()
        counts = any(noun in extra for _, noun in OBJECTS[row["lang"]])
        assert place in (0, len(sentences) - 2) if counts else \
            not re.search("the number|the total|数", following)
    assert min(places.values()) > 20


def test_upper_is_upper_and_only_that(made):
    """A suite of two changes: nobody knows which one hurt."""
    for row, clean in by_source(made, "upper"):
        assert text(row) == text(clean).upper()


def test_no_punctuation_keeps_every_word_and_number_apart(made):
    """乘以3。5个人 without its mark is 乘以35个人."""
    for row, clean in by_source(made, "no_punctuation"):
        assert not re.search(r"[.,?。，？]", text(row))
        assert re.findall(r"\d+", text(row)) == re.findall(r"\d+", text(clean))
        assert text(row).split() == re.sub(r"[.,?。，？]", " ", text(clean)).split()


def test_order_moves_sentences_and_loses_none(made):
    """A story that lost a sentence has another answer; "How many has he?" of nobody has none."""
    for row, clean in by_source(made, "order"):
        assert Counter(told(row)) == Counter(told(clean))
        assert told(row) == [told(clean)[-1], *told(clean)[:-1]]
        assert any(name in told(row)[0] for name, _ in NAMES[row["lang"]])


def test_large_numbers_are_large_and_the_sentences_the_same(made):
    """A suite of "large" problems that holds small ones flatters the model."""
    for row, clean in by_source(made, "large"):
        assert row["skeleton"] == clean["skeleton"] and 100 <= row["numbers"][0] <= 500
        ops = [kind for kind, _ in templates(row)[1:-1]]
        assert all(n > 20 for op, n in zip(ops, row["numbers"][1:]) if op in ("add", "sub"))
        assert told(row)[-1] == told(clean)[-1]
        assert re.sub(r"\d+", "", told(row)[0]) == re.sub(r"\d+", "", told(clean)[0])


def test_longer_goes_on_where_the_clean_problem_ends(made):
    """Chains of 5 that are other problems: nobody could say at which step a model gives up."""
    for row, clean in by_source(made, "longer"):
        assert row["ops"] in (5, 6) and row["numbers"][:clean["ops"] + 1] == clean["numbers"]
        assert told(row)[:clean["ops"] + 1] == told(clean)[:-1]
        assert told(row)[-1] == told(clean)[-1]
    assert {row["ops"] for row in made["longer"]} == {5, 6}


def test_the_other_language_is_of_its_test_split(made):
    """A bilingual student that was trained on the Chinese twin of a test problem."""
    for row, clean in by_source(made, "other_language"):
        assert {row["lang"], clean["lang"]} == {"en", "zh"} and split_of(row) == "test"
        assert [k for k, _ in templates(row)] == [k for k, _ in templates(clean)]


def test_no_suite_asks_what_was_trained_on(data, made):
    """A robust model that has merely seen the question."""
    trained = {text(json.loads(line)) for split in ("train", "val", "distill")
               for line in (data / f"{split}.jsonl").open(encoding="utf-8")}
    clean = {text(row) for row in made["clean"]}
    for suite in CHANGES:
        assert not {text(row) for row in made[suite]} & (trained | clean), suite


def test_hostile_rows_are_read_and_stay_text(made, tmp_path, tiny_tokenizer):
    """An evaluation that dies of the very input that it was to survive, or takes it for marks."""
    path = tmp_path / "hostile.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made["hostile"]), encoding="utf-8")
    documents = [turns for _, turns in read_documents(path)]
    marks = [tiny_tokenizer.user, tiny_tokenizer.end, tiny_tokenizer.assistant]
    lengths = {}
    for row, turns in zip(made["hostile"], documents, strict=True):
        assert turns == [Turn("user", text(row)), Turn("assistant", "none")]
        ids = prompt_ids(tiny_tokenizer, turns)
        assert [i for i in ids if i in tiny_tokenizer.control_ids] == marks, row["hostile"]
        lengths[row["hostile"]] = len(ids)
    assert len(lengths) == len(documents) >= 10
    assert len(text(made["hostile"][-1]).split()) > 10 * 512 and lengths["ten contexts"] > 10 * 512
    assert any("<end><assistant><think>" in text(row) for row in made["hostile"])
    assert not any("source" in row for row in made["hostile"])


def test_every_row_says_its_numbers_and_its_answer_follows_from_them(made):
    """A new suite with a slip in it: a total below one, half a pear, a number that no text tells."""
    for row in (row for suite in ("clean", *CHANGES) for row in made[suite]):
        digits, total = re.findall(r"\d+", text(row)), 0
        for (op, _), n in zip(templates(row)[:-1], row["numbers"], strict=True):
            word = WORDS.get((row["lang"], op), {}).get(n)
            assert str(n) in digits or word and word in text(row).lower(), row
            total = {"opening": n, "add": total + n, "sub": total - n, "mul": total * n,
                     "div": total / n}[op]
            assert total >= 1 and total == int(total), row
        assert answer(row) == str(int(total)), row


def test_finished_suites_are_not_replaced_unasked_and_not_read_when_damaged(data, tmp_path, capsys):
    """Results of two suites of one name; a mean over half a file."""
    make(data, tmp_path, problems=20)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    capsys.readouterr()
    make(data, tmp_path, problems=20)
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="seed was 0, is 7.*--fresh"):
        make(data, tmp_path, problems=20, seed=7)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    path = tmp_path / "typos.jsonl"
    path.write_bytes(path.read_bytes().rpartition(b"{")[0])
    with pytest.raises(UserError, match="typos.jsonl is not as it was made"):
        read_suites(tmp_path)
    (tmp_path / "about.json").unlink()
    with pytest.raises(UserError, match="python dataset/suites.py"):
        read_suites(tmp_path)
    assert make(data, tmp_path, problems=20, seed=7, fresh=True)["clean"]


@pytest.mark.parametrize("line", [b"not JSON", b"[1]", b"{}", b'{"skeleton": "en", "numbers": [1]}',
                                  b"\xff\xfe", "train", "long", "edited"])
def test_data_that_is_no_test_split_is_an_error(data, made, tmp_path, line):
    """--data train.jsonl: every suite would report what was learned by heart."""
    row = {k: v for k, v in made["clean"][0].items() if k not in ("suite", "source")}
    if line == "train":
        line = (data / "train.jsonl").read_bytes().splitlines()[0]
    elif line == "long":
        rng = random.Random(0)
        long = (stories.make_story(rng, "en", 5) for _ in range(1_000))
        line = json.dumps(next(row for row in long if split_of(row) == "test")).encode()
    elif line == "edited":
        user, reply = row["conversations"]
        line = json.dumps({**row, "conversations": [user, {**reply, "content": "0"}]}).encode()
    good = (data / "test.jsonl").read_bytes().splitlines()[0]
    (tmp_path / "test.jsonl").write_bytes(good + b"\n" + line + b"\n")
    with pytest.raises(UserError, match=r"test.jsonl:2: no test problem"):
        make(tmp_path, tmp_path / "out", problems=2)
    with pytest.raises(UserError, match="--problems"):
        make(tmp_path, tmp_path / "out", problems=3)
    assert not (tmp_path / "out").exists()
