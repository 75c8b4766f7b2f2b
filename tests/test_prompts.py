"""Claims about blackbox/prompts.py: other words, a known answer, nothing reserved."""
import hashlib
import json
import random
import re
from collections import Counter, defaultdict

import pytest

from blackbox import prompts
from blackbox.prompts import (EVOLVE, LABEL, OF_ANY_PROMPT, OPERATIONS, TEXTS, Config, fault,
                              format_trap, injection, invented_word, main)
from common import UserError
from dataset import stories, suites
from dataset.formats import parse_row
from dataset.stories import NAMES, OBJECTS, TEMPLATES
from dataset.suites import DISTRACTORS, kind_of
from dataset.verify import same_answer

DEFAULT = Config().operations
OF_STORIES = [name for name in OPERATIONS if name not in OF_ANY_PROMPT]
WRAPPED = ("long", "format_trap", "injection")  # the seed stands in it, letter by letter


@pytest.fixture(scope="module")
def distill(tmp_path_factory):
    """Questions in both languages, as a user would have made them."""
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=10, val=10, test=10, distill=400, lang="both", out=str(out)))
    return out / "distill.jsonl"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Thousands of rows of every operation: ({operation: rows}, {id: seed})."""
    out = tmp_path_factory.mktemp("many")
    stories.main(stories.Config(train=1, val=1, test=1, distill=4000, lang="both", out=str(out)))
    seeds = lines_of(out / "distill.jsonl")
    found = defaultdict(list)
    for row in make(out / "distill.jsonl", out / "p.jsonl", share=1, operations=",".join(OPERATIONS)):
        found[row["operation"]].append(row)
    return found, {row["id"]: row for row in seeds}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(source, out, **flags):
    main(Config(**{"input": str(source), "out": str(out), "share": 0.8, **flags}))
    return lines_of(out)


def grow(path, out="", **flags):
    """prompts.py --evolved PATH."""
    cfg = Config(evolved=str(path), out=str(out), **flags)
    cfg.given = {"evolved", "out", *flags}
    main(cfg)
    return lines_of(out or path.with_name("prompts-" + path.name))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*texts):
    """A conversation: user, assistant, user, ..."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def text(row):
    return row["conversations"][0]["content"]


def answer(row):
    return row["conversations"][-1]["content"]


# --- an independent reader ------------------------------------------------------------------------

# What a sentence does, in the order in which a reader would try. It knows no template, only verbs.
READER = {"en": dict(
    nothing="lives in house|has rained|feet high|^bus .* goes by|radio plays|would like|does not buy",
    undo="does not happen|is not true|never comes to this|is not so",
    div="every|divide|split|equal|a third|a quarter|a fifth|half|crate takes|one pound|one dollar",
    mul="times|multipl|doubles|triples|quadruples|quintuples|each one|grams|dollars|seconds",
    sub="gives away|loses|sells|gives .* to |throws away|takes .* of them|sends|uses up|hands .* to a"
        "|removes|gives up|parts with|forgets|breaks|runs off|hand over|lets out|costs the player",
    add="more|finds|gift|hands (him|her)|adds|is given|is handed",
), "zh": dict(
    nothing="楼。|雨下了|米高|路车|首歌|想要|没有买", undo="没有发生|不是真的|没有这回事",
    div=r"平均|平分|除以|一半|分之一|同样多|一样多|每\d+.*(换成一|合成了一|里|装一|重一|值一)",
    mul=r"倍|乘以|每[^\d一]都|每[^\d一]换来|原来的每一|用一.换|克|元|秒",
    sub="送走|丢了|卖掉|给了朋友|送给弟弟|用掉|减少|拿走|扔掉|寄给|分给|卖给|少了|让出|送了人|弄坏|叼走"
        "|忘在|下去|被扣|漏掉|[天]走了",
    add="买了|捡到|送给[他她]|给了[他她]|又给|得|增加|礼物|又找|又赢|添了|又领|又拿|又发现|多了|又分|又做"
        "|上来|加进|新加入",
)}
NUMBERS = {"double": 2, "triple": 3, "quadruple": 4, "quintuple": 5, "half": 2, "a third": 3,
           "a quarter": 4, "a fifth": 5, "两倍": 2, "三倍": 3, "四倍": 4, "五倍": 5, "一半": 2,
           "三分之一": 3, "四分之一": 4, "五分之一": 5}


def told(row):
    """The sentences of a row."""
    return [s.strip() for s in re.findall(r"[^.?。？]+[.?。？]", text(row))]


def solved(row):
    """(answer, operations that count) of a story, read from its text alone."""
    totals = []
    for sentence in map(str.lower, told(row)):
        op = next((op for op, words in READER[row["lang"]].items()
                   if re.search(words, sentence)), None)
        number = re.search(r"\d+", sentence)
        n = int(number[0]) if number else next(
            (n for word, n in NUMBERS.items() if word in sentence), None)
        if op == "undo":
            totals.pop()
        elif op == "nothing" or n is None:
            continue  # or the question
        elif not totals:
            totals.append(n)
        else:
            assert op, f"nothing that a reader would understand: {sentence}"
            assert op != "div" or totals[-1] % n == 0, text(row)
            totals.append({"add": totals[-1] + n, "sub": totals[-1] - n, "mul": totals[-1] * n,
                           "div": totals[-1] // (n or 1)}[op])
    return str(totals[-1]), len(totals) - 1


@pytest.mark.parametrize("operation", ["none", *OF_STORIES])
def test_the_text_alone_gives_the_answer(many, operation, distill, tmp_path):
    """A label that the text does not say: the teacher's right answers are thrown away."""
    rows = many[0][operation] or make(distill, tmp_path / "p.jsonl", share=0)
    assert len(rows) > 100
    for row in rows:
        if operation == "order":
            question, *story = told(row)
            row = {**row, "conversations": turns(" ".join([*story, question]), answer(row))}
        assert solved(row)[0] == answer(row), text(row)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_to_the_answer_what_its_label_says(many, operation):
    """"kept" where the question is another one, or an answer where nobody knows it."""
    found, seeds = many
    for row in found[operation]:
        seed = seeds[row["source"]]
        assert row["label"] == LABEL[operation] and text(row) != text(seed)
        roles = [turn["role"] for turn in row["conversations"]]
        assert roles == ["user", "assistant"][:1 if row["label"] == "teacher" else 2]
        assert all(set(turn) == {"role", "content"} for turn in row["conversations"]), "steps"
        if row["label"] == "kept":
            assert answer(row) == answer(seed)
    if LABEL[operation] == "changed":
        other = sum(answer(row) != answer(seeds[row["source"]]) for row in found[operation])
        assert other > 0.7 * len(found[operation])
    assert len(found[operation]) > (5 if operation == "empty" else 80)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if LABEL[name] == "kept"])
def test_what_keeps_the_answer_keeps_the_numbers(many, operation):
    """A surface that swallows a digit: the answer is kept and no longer right."""
    found, seeds = many
    for row in found[operation]:
        seed = seeds[row["source"]]
        whole = text(seed)
        if operation in WRAPPED:
            assert whole in text(row) or json.dumps(whole, ensure_ascii=False) in text(row)
        elif operation in OF_ANY_PROMPT or operation == "order":
            assert Counter(re.findall(r"\d+", text(row))) == Counter(re.findall(r"\d+", whole))


def test_every_prompt_is_another_one(many):
    """A thousand prompts that are ten: the teacher is paid for the same answer again."""
    rows = [row for found in many[0].values() for row in found]
    assert len({text(row) for row in rows}) == len(rows) == 4000
    for operation in ("paraphrase", "broader", "negation", "unit", "format_trap", "injection"):
        shapes = {re.sub(r"\d+", "0", text(row)) for row in many[0][operation]}
        assert len(shapes) > 0.6 * len(many[0][operation]), operation


# --- nothing that is reserved ---------------------------------------------------------------------

def words(lang, text):
    """English words; of Chinese, which has no spaces, the pairs of characters."""
    text = re.sub(r"\{\w+\}", " ", text).lower()
    if lang == "en":
        return set(re.findall("[a-z]+", text))
    return {a + b for part in re.findall("[\u4e00-\u9fff]+", text) for a, b in zip(part, part[1:])}


def reserved_words(lang):
    """What stands in reserved templates, names and objects alone."""
    found = {True: set(), False: set()}
    for items in (*TEMPLATES[lang].values(), NAMES[lang], OBJECTS[lang]):
        for reserved in (True, False):
            for i in stories.pool(items, reserved):
                found[reserved] |= words(lang, items[i] if isinstance(items[i], str)
                                         else " ".join(items[i]))
    return found[True] - found[False] - {"on", "that", "their", "was", "me"}  # no style of its own


def test_no_prompt_has_a_word_that_the_suites_keep_for_themselves(many):
    """A reserved sentence in the training data: "unseen sentences" that the student has seen."""
    kept = {lang: reserved_words(lang) for lang in ("en", "zh")}
    assert {"thief", "river", "hugo", "lemons"} <= kept["en"] and {"仙女", "丝带"} <= kept["zh"]
    for rows in many[0].values():
        for row in rows:
            assert not words(row["lang"], text(row)) & kept[row["lang"]], text(row)
            assert text(row) not in suites.HOSTILE.values()


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_our_sentences_that_do_not_matter_are_not_those_of_the_suite(lang):
    """A suite of distractors that were in the training data, each with other numbers."""
    usual = {word for block in TEMPLATES[lang].values() for line in block
             for word in words(lang, line)}
    theirs = {word for line in DISTRACTORS[lang] for word in words(lang, line)} - usual
    texts = TEXTS["ASIDES"][lang] + TEXTS["TAKEN_BACK"][lang] + sum(TEXTS["UNITS"][lang].values(), [])
    ours = {word for line in texts for word in words(lang, line)}
    assert len(theirs) > 10 and not theirs & ours - {"for", "is", "it", "to", "s"}


def test_no_prompt_is_as_large_as_the_suites_or_of_another_split(many):
    """Chains of 5 and numbers of three digits are surprises of the suites; a test question under
    another name has been trained on."""
    for operation, rows in many[0].items():
        for row in rows:
            assert all(int(n) <= 99 for n in re.findall(r"\d+", text(row))), text(row)
            if row["label"] != "teacher":
                assert 0 <= int(answer(row)) <= 99
            if operation in OF_STORIES and operation != "order":
                assert solved(row)[1] <= 4
            if "skeleton" in row:
                ops = [kind_of(template) for template in row["skeleton"].split()[2:-1]]
                totals = stories.running_totals(ops, row["numbers"])
                assert max(totals) <= 99 and max(row["numbers"][1:]) <= 20
                assert row["ops"] == len(ops) <= 4 and stories.split_of(row) == "distill", operation
    for operation in ("deeper", "boundary", "other_language"):
        assert all("skeleton" in row for row in many[0][operation])


@pytest.mark.parametrize("split", ["val", "test", "large", "hostile"])
def test_what_the_evaluation_asks_is_no_seed(distill, tmp_path, split):
    """A student that is robust on the suites because it was trained on them."""
    path = distill.with_name(f"{split}.jsonl")
    if not path.exists():
        suites.main(suites.Config(problems=10, data=str(distill.with_name("test.jsonl")),
                                  out=str(tmp_path / "suites")))
        path = tmp_path / "suites" / f"{split}.jsonl"
    with pytest.raises(UserError, match=f"{split}.jsonl:1: "):
        make(path, tmp_path / "p.jsonl")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(path.read_bytes() + distill.read_bytes())
    assert len(make(mixed, tmp_path / "p.jsonl", skip_bad_lines=True)) == 400


# --- single operations ----------------------------------------------------------------------------

def test_the_operations_of_the_published_rows_do_what_they_did(distill, tmp_path):
    """results/ has rows that were made with these: another draw, and they cannot be repeated."""
    for flags, digest in (
            (dict(share=0.5), "2aa7963f5f276784ef5b943c4f5e6033d1226018aeb22064f0cc446cda8b7818"),
            (dict(share=0.8, seed=3, operations=DEFAULT + ",upper"),
             "f4cf06aaaef0432bd3620317e6f99abc298336b1e81bc867d6c97e028191a323")):
        rows = make(distill, tmp_path / "p.jsonl", fresh=True, **flags)
        kept = [[row["id"], row["operation"], row["conversations"]] for row in rows]
        assert hashlib.sha256(json.dumps(kept, ensure_ascii=False).encode()).hexdigest() == digest


def test_every_question_is_there_once_with_its_answer_and_no_steps(distill, tmp_path):
    """A lost question, a changed answer, or worked steps that nobody may train on."""
    before = lines_of(distill)
    rows = make(distill, tmp_path / "p.jsonl", operations=DEFAULT + ",upper")
    assert [row["source"] for row in rows] == [row["id"] for row in before]
    for new, old in zip(rows, before):
        assert new["conversations"][1] == old["conversations"][1] and new["label"] == "kept"
        assert (text(new) == text(old)) == (new["operation"] == "none")
    for row in make(distill.with_name("train.jsonl"), tmp_path / "t.jsonl"):  # these have steps
        assert all("reasoning_content" not in turn for turn in row["conversations"])


def test_the_share_is_the_share(distill, tmp_path):
    """All changed: the student forgets clean text; none: a dead knob."""
    for share, low, high in ((0, 0, 0), (0.5, 160, 240), (1, 400, 400)):
        rows = make(distill, tmp_path / f"{share}.jsonl", share=share)
        assert low <= sum(row["operation"] != "none" for row in rows) <= high


def test_an_invented_story_is_about_nobody_known(many, monkeypatch):
    """A reserved name among the invented ones; a handful of words, which would be learned by heart."""
    known = {word.lower() for pair in (*NAMES["en"], *OBJECTS["en"]) for word in pair}
    assert {row["lang"] for row in many[0]["invented"]} == {"en"}
    for row in many[0]["invented"]:
        assert not (known - {"he", "she"}) & set(re.findall("[a-z]+", text(row).lower()))
    drawn = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert len(set(drawn)) > 900
    monkeypatch.setattr(prompts, "REAL", {drawn[0], drawn[1] + "s"})
    again = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert again[2:] == drawn[2:] and again[0] != drawn[0] and again[1] != drawn[1]


def test_boundary_numbers_are_at_a_boundary(many):
    """Edge cases that are not: nobody learns what 0 more and all of them mean."""
    edges = Counter()
    for row in many[0]["boundary"]:
        start, *rest = row["numbers"]
        ops = [kind_of(template) for template in row["skeleton"].split()[2:-1]]
        totals = stories.running_totals(ops, row["numbers"])
        equal = any(op in ("add", "sub") and n == total for op, n, total in zip(ops, rest, totals))
        edge = "one" if start == 1 else "huge" if start >= 50 else "zero" if 0 in rest else \
            "equal" if equal else None
        assert edge, row
        edges[edge] += 1
        assert not re.search(r"\bare 1 ", text(row))
    assert set(edges) == {"one", "huge", "zero", "equal"} and min(edges.values()) > 20
    assert any(answer(row) == "0" for row in many[0]["boundary"])


def test_deeper_is_one_step_more(many):
    """The same problem, or one that begins as another."""
    found, seeds = many
    for row in found["deeper"]:
        seed = seeds[row["source"]]
        assert row["ops"] == seed["ops"] + 1 and row["numbers"][:-1] == seed["numbers"]
        assert told(row)[:seed["ops"] + 1] == told(seed)[:-1] and told(row)[-1] == told(seed)[-1]


def test_a_negated_sentence_is_told_and_does_not_count(many):
    """An operation that was taken back and is computed all the same."""
    found, seeds = many
    places = Counter()
    for row in found["negation"]:
        seed = seeds[row["source"]]
        extra, = [s for s in told(row) if s not in told(seed)]
        assert [s for s in told(row) if s != extra] == told(seed)
        assert solved(row)[1] == seed["ops"] - 1
        places[told(row).index(extra)] += 1
    assert set(places) == {2, 3, 4, 5}


def test_a_number_that_does_not_matter_comes_with_another_person(many):
    """"She would like 3 pears" of the person herself could be meant to count."""
    found, seeds = many
    for row in found["distractor"]:
        seed = seeds[row["source"]]
        extra, = [s for s in told(row) if s not in told(seed)]
        people = [name for name, _ in NAMES[row["lang"]] if name in extra]
        assert re.search(r"\d", extra) and not any(name in text(seed) for name in people)
        assert told(row)[-1] == told(seed)[-1]


def test_long_prompts_fit_into_the_window_of_the_stories_and_mean_the_same(many):
    """Left out by generate.py one and all, because the teacher holds 512 tokens."""
    found, seeds = many
    for row in found["long"]:
        filler = text(row).removesuffix(text(seeds[row["source"]])).strip()
        assert 300 <= len(filler) < 800 and not re.search(r"\d", filler)


def test_what_makes_no_sense_is_left_out_and_counted(distill, tmp_path, capsys):
    """Chinese in capitals; or rows that are quietly left as they were."""
    rows = make(distill, tmp_path / "p.jsonl", share=1, operations="upper,typos,invented")
    printed, chinese = capsys.readouterr().out, [row for row in rows if row["lang"] == "zh"]
    assert {row["operation"] for row in chinese} == {"none"} and len(chinese) > 100
    for name in ("upper", "typos", "invented"):
        assert f"{name} {len(chinese)}" in re.search("did not apply: .*", printed)[0]
    rows = make(distill, tmp_path / "e.jsonl", share=1, operations="empty")
    assert sum(row["operation"] == "empty" for row in rows) == len(TEXTS["EMPTY"])  # each only once


@pytest.mark.parametrize("operation", [format_trap, injection])
def test_a_word_in_braces_is_text(operation):
    """A prompt about templates: what stands in braces would be replaced, or stop the script."""
    seed = dict(conversations=turns("{n} {text} {json} {x} {}", ""), lang="en")
    for i in range(50):
        assert text(seed) in text(operation(random.Random(i), seed, dict(lang="en")))


# --- free prompts ---------------------------------------------------------------------------------

FREE = {
    "GSM8K": ({"question": "What is 3 times 4?", "answer": "3*4=<<3*4=12>>12\n#### 12"}, "12"),
    "Alpaca": ({"instruction": "Name a river.", "input": "In Egypt.", "output": "The Nile."}, None),
    "Alpaca without an answer": ({"instruction": "Name a river.", "output": ""}, None),
    "an essay with a number": ({"instruction": "Tell of Rome.", "output": "In 753 it began."}, None),
    "messages": ({"messages": [{"role": "system", "content": "Be short."}, *turns(
        "Hello there.", "Hi.", "What is half of 14?", "\\boxed{7}")]}, "7"),
    "conversations": ({"conversations": [*turns("Is water wet?"), {
        "role": "assistant", "reasoning_content": "Well.", "content": "yes"}], "id": "w"}, "yes"),
    "the user's turn last": ({"messages": turns("Hello there.", "Hi.", "And now what?")}, None),
    "Chinese": ({"question": "三乘以四，等于多少？", "answer": "#### 12"}, "12"),
}


@pytest.mark.parametrize("name", FREE)
def test_a_prompt_of_any_format_becomes_a_prompt_row(tmp_path, name):
    """Another turn changed, an answer lost or invented, a row that nobody can trace."""
    row, known = FREE[name]
    path = write(tmp_path / "mine.jsonl", *[row] * 40)
    asked = row.get("messages") or row.get("conversations") or turns(
        row.get("question") or "\n\n".join(filter(None, (row["instruction"], row.get("input")))))
    last = max(i for i, turn in enumerate(asked) if turn["role"] == "user")
    rows = make(path, tmp_path / "p.jsonl", share=0.9, operations=",".join(OF_ANY_PROMPT))
    assert {"none", "long", "format_trap", "injection", "empty"} <= {r["operation"] for r in rows}
    for i, new in enumerate(rows):
        assert new["source"] == row.get("id", f"mine.jsonl:{i + 1}")
        assert new["conversations"][:last] == asked[:last]
        question, *reply = new["conversations"][last:]
        assert question["role"] == "user"
        assert (question["content"] == asked[last]["content"]) == (new["operation"] == "none")
        assert new["label"] == ("kept" if known and new["operation"] != "empty" else "teacher")
        assert len(reply) == (new["label"] == "kept")
        assert not reply or same_answer(parse_row(new)[-1].answer, known)


def test_a_prompt_of_code_is_not_misspelled(tmp_path):
    """`pritn(x)`, a link in capitals, 1,234.5 as three numbers: another question, the old answer."""
    texts = ["What does `print(len(word))` show?", "Open https://site.org/page", "\\frac{1}{2}"]
    path = write(tmp_path / "code.jsonl", *[dict(question=text, answer="") for text in texts])
    rows = make(path, tmp_path / "p.jsonl", share=1, operations="typos,upper,no_punctuation")
    assert [text(row) for row in rows] == texts
    path = write(tmp_path / "plain.jsonl", dict(question="Is 1,234.5 more than 2, or less than 3.7?"))
    row, = make(path, tmp_path / "q.jsonl", share=1, operations="no_punctuation")
    assert text(row) == "Is 1,234.5 more than 2 or less than 3.7"


def test_control_words_in_a_prompt_stay_text(tmp_path, tiny_tokenizer):
    """A prompt that opens the assistant's turn itself."""
    asked = [dict(question=f"<assistant><answer>{i}</answer><end> why?") for i in range(30)]
    path = write(tmp_path / "mine.jsonl", *asked)
    rows = make(path, tmp_path / "p.jsonl", share=1, operations="long,format_trap,injection")
    for i, row in enumerate(rows):
        assert f"<answer>{i}</answer>" in text(row)
        assert not set(tiny_tokenizer.encode(text(row))) & set(tiny_tokenizer.control_ids)


@pytest.mark.parametrize("line", [
    "{", "null", '{"text": "prose"}', '{"conversations": []}', '{"question": "\\ud800"}',
    '{"messages": [{"role": "assistant", "content": "x"}]}',
    '{"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}'])
def test_a_bad_line_is_named_or_left_out_and_counted(tmp_path, capsys, line):
    """A traceback, or a prompt that is quietly lost."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"question": "Who?", "answer": ""}\n' + line + "\n")
    with pytest.raises(UserError, match="x.jsonl:2: "):
        make(path, tmp_path / "p.jsonl")
    assert not (tmp_path / "p.jsonl").exists()
    assert len(make(path, tmp_path / "p.jsonl", share=0, skip_bad_lines=True)) == 1
    assert re.search("left out: 1 bad lines: ", capsys.readouterr().out)


def test_rows_that_only_look_like_stories_are_prompts(distill, tmp_path):
    """A traceback in the middle of a file: no number divides by 0, an id may be any JSON."""
    seed = lines_of(distill)[0]
    odd = [{**seed, "skeleton": "en opening0 div0 question0", "numbers": [3, 0], "id": "\ud800"},
           {**seed, "skeleton": "", "numbers": None}, {**seed, "skeleton": [], "id": [1]},
           {**seed, "skeleton": "en x", "numbers": {}}, {**seed, "skeleton": "fr a"}]
    odd = [row for row in odd if stories.split_of(row) not in ("val", "test")]
    rows = make(write(tmp_path / "odd.jsonl", *odd), tmp_path / "p.jsonl", share=1)
    assert len(rows) == len(odd) >= 3 and all(row["label"] == "kept" for row in rows)


def test_wrong_flags_are_refused_and_nothing_is_lost(distill, tmp_path):
    """The seeds replaced by what was made of them; a misspelled operation, or a flag, without effect."""
    (tmp_path / "x.txt").write_text("Once upon a time.")
    for source, out, flags in (
            (tmp_path / "none.jsonl", "p.jsonl", {}), (distill, distill, dict(fresh=True)),
            (tmp_path / "x.jsonl.evolve.jsonl", "x.jsonl", {}), (tmp_path / "x.txt", "p.jsonl", {}),
            *[(distill, "p.jsonl", flags) for flags in (
                dict(operations="typos,tipos"), dict(operations=""), dict(share=float("nan")))]):
        with pytest.raises(UserError):
            make(source, tmp_path / out, **flags)
    with pytest.raises(UserError, match="--evolved"):
        grow(write(tmp_path / "e.jsonl"), tmp_path / "p.jsonl", share=1)
    assert not (tmp_path / "p.jsonl").exists() and len(lines_of(distill)) == 400


def test_the_same_seed_gives_the_same_file_and_another_seed_another(distill, tmp_path):
    """A recipe that cannot be repeated."""
    rows = make(distill, tmp_path / "a.jsonl")
    assert rows == make(distill, tmp_path / "a.jsonl") == make(distill, tmp_path / "b.jsonl")
    with pytest.raises(UserError, match="--fresh"):
        make(distill, tmp_path / "a.jsonl", seed=1)
    assert rows != make(distill, tmp_path / "a.jsonl", seed=1, fresh=True)


# --- rewritten by the teacher ---------------------------------------------------------------------

def asked_and_replied(tmp_path, *replies, seeds=None):
    """A teacher that gives these replies to the rewriting prompts of a file of seeds."""
    seeds = seeds or [dict(question=f"What is {i} plus {i}?", answer="") for i in range(len(replies))]
    write(tmp_path / "mine.jsonl", *seeds)
    make(tmp_path / "mine.jsonl", tmp_path / "p.jsonl", share=1, operations=",".join(EVOLVE))
    asked = lines_of(tmp_path / "p.jsonl.evolve.jsonl")
    rows = [{**row, "conversations": [*row["conversations"], dict(role="assistant", content=reply)],
             "sample": 0, "verdict": "unverified"} for row, reply in zip(asked, replies, strict=True)]
    return asked, write(tmp_path / "evolved.jsonl", *rows)


def test_the_teacher_is_asked_to_rewrite_the_prompt_in_its_context(tmp_path):
    """A rewriting of half a conversation, or of a prompt that nobody can find again."""
    seeds = [dict(messages=turns("Hello.", "Hi.", f"What is {i} plus {i}?"), id=i) for i in range(60)]
    asked, path = asked_and_replied(tmp_path, *[f"Add {i} to {i}, please." for i in range(60)],
                                    seeds=seeds)
    assert {row["operation"] for row in asked} == set(EVOLVE) <= set(OPERATIONS)
    for i, row in enumerate(asked):
        *before, question = row["conversations"]
        assert before == turns("Hello.", "Hi.") and question["role"] == "user"
        assert question["content"] == EVOLVE[row["operation"]] + f"What is {i} plus {i}?"
        assert row["label"] == "teacher" and row["source"] == str(i)
    kept = lines_of(tmp_path / "p.jsonl")
    assert {row["operation"] for row in kept} == {"none"} and len(kept) == 60
    for i, (row, was) in enumerate(zip(grow(path), asked, strict=True)):
        assert row["conversations"] == turns("Hello.", "Hi.", f"Add {i} to {i}, please.")
        assert {k: v for k, v in row.items() if k != "conversations"} == {
            k: was[k] for k in ("operation", "source", "label")}


SEED = "What is the sum of 17 and 25?"
FAULTS = {
    "Which number do 17 and 25 make together?": None, "请问17加25等于多少？": None,
    "I am tall: 17 and 25 cm more than you. How tall?": None, "Sorted, what do 17 and 25 give?": None,
    "A prompt with 17 words and one of 25: both?": None,
    "In the new version of the game 17 and 25 points count. What is the sum?": None,
    "42": "empty", "...!": "empty", "I'm sorry, but I cannot do that.": "refusal",
    "I can’t help with this.": "refusal", "**Sorry**, no.": "refusal",
    "As an AI language model, I have no numbers.": "refusal", "抱歉，我无法改写。": "refusal",
    "Rewritten prompt: What do 17 and 25 make?": "prompt leak", "**Prompt:** what?": "prompt leak",
    "Sure! What do 17 and 25 make?": "prompt leak", "改写后的提示：17加25？": "prompt leak",
    "Below the line stands a prompt that somebody wrote.": "prompt leak",
    "==========\nWhat do 17 and 25 make?": "prompt leak",
    SEED: "same as before", SEED.upper() + "!": "same as before", "word " * 1000: "too long",
    "which NUMBER do 17 and 25 make together": "given twice",
    "<think>Other words.</think>How much do 17 and 25 make?": None,
}


def test_only_a_prompt_becomes_a_prompt(tmp_path, capsys):
    """Refusals and "Here is the rewritten prompt" as training prompts; drops that nobody sees."""
    _, path = asked_and_replied(tmp_path, *FAULTS, seeds=[dict(question=SEED, answer="")] * len(FAULTS))
    capsys.readouterr()
    good = [reply.rpartition("</think>")[2] for reply, reason in FAULTS.items() if reason is None]
    assert [text(row) for row in grow(path, tmp_path / "out.jsonl")] == good
    line = re.search("dropped: (.*)", capsys.readouterr().out)[1]
    counts = Counter(filter(None, FAULTS.values()))
    assert dict(part.rsplit(" ", 1) for part in line.split(" | ")) == {
        reason: str(n) for reason, n in counts.items()}


def test_what_the_seed_says_itself_is_no_fault_of_the_reply():
    """A prompt about prompts, or one that begins with "I can't", could never be rewritten."""
    assert fault("I can't print this file.", "I can't open my file.") is None
    assert fault("Is a given prompt long?", "How long is a given prompt?") is None
    assert fault("Is a given prompt long?", "How long is it?") == "prompt leak"
    assert fault("word " * 1500, "a very long " * 500) is None


@pytest.mark.parametrize("change", [
    dict(operation="none"), dict(operation=["deeper"]), dict(operation=None),
    dict(conversations=turns("Who?", "I.")), dict(conversations=turns("Who?"))], ids=str)
def test_rows_that_are_no_replies_are_refused(tmp_path, change):
    """Answers taken for prompts: --evolved with the traces, or with the file of all samples."""
    _, path = asked_and_replied(tmp_path, "How much?")
    write(path, {**lines_of(path)[0], **change})
    with pytest.raises(UserError, match="evolved.jsonl:1: "):
        grow(path, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_rewriting_prompts_of_another_run_do_not_stay(tmp_path):
    """The replies to them would be of operations that this run never drew."""
    asked_and_replied(tmp_path, "How much?", "How much is it?")
    flags = dict(share=1, operations="long")
    with pytest.raises(UserError, match="--fresh"):
        make(tmp_path / "mine.jsonl", tmp_path / "p.jsonl", **flags)
    assert (tmp_path / "p.jsonl.evolve.jsonl").exists()
    make(tmp_path / "mine.jsonl", tmp_path / "p.jsonl", fresh=True, **flags)
    assert not (tmp_path / "p.jsonl.evolve.jsonl").exists()


def test_a_story_is_never_sent_to_be_rewritten(many, distill, tmp_path):
    """An answer that code can compute, given away."""
    make(distill, tmp_path / "p.jsonl", operations=",".join(EVOLVE))
    assert not (tmp_path / "p.jsonl.evolve.jsonl").exists()
