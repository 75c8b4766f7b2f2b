"""Claims about blackbox/prompts.py: new wording, right labels, nothing that is reserved."""
import hashlib
import json
import random
import re
from collections import Counter, defaultdict

import pytest

from blackbox import prompts
from blackbox.prompts import LABEL, OF_ANY_PROMPT, OPERATIONS, TEXTS, Config, invented_word, main
from common import UserError
from dataset import stories, suites
from dataset.formats import parse_row
from dataset.stories import DISTRACTORS, NAMES, OBJECTS, TEMPLATES, kinds_of
from dataset.suites import text_of as text
from dataset.verify import same_answer

DEFAULT = Config().operations
OF_STORIES = [name for name in OPERATIONS if name not in OF_ANY_PROMPT]


@pytest.fixture(scope="module")
def distill(tmp_path_factory):
    """Path of 400 questions in both languages, made by dataset/stories.py."""
    out = tmp_path_factory.mktemp("stories")
    stories.main(stories.Config(train=10, val=10, test=10, distill=400, lang="both", out=str(out)))
    return out / "distill.jsonl"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """{operation: [(new row, its seed)]}, made of 3,200 seeds."""
    out = tmp_path_factory.mktemp("many")
    stories.main(stories.Config(train=1, val=1, test=1, distill=3200, lang="both", out=str(out)))
    found, source = defaultdict(list), out / "distill.jsonl"
    rows = make(source, out / "p.jsonl", share=1, operations=",".join(OPERATIONS))
    for row, seed in zip(rows, lines_of(source), strict=True):
        found[row["operation"]].append((row, seed))
    return found


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make(source, out, **flags):
    main(Config(**{"input": str(source), "out": str(out), "share": 0.8, **flags}))
    return lines_of(out)


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def turns(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def answer(row):
    return row["conversations"][-1]["content"]


# An independent reader: the first pattern found in a sentence says what it does. It knows only verbs.
READER = {"en": dict(
    nothing="lives in house|has rained|feet high|^bus .* goes by|radio plays|would like|does not buy",
    undo="does not happen|is not true|never comes to this|is not so",
    div="every (?!single)|divide|split|equal|a third|a quarter|a fifth|half|crate takes|one pound|one dollar",
    mul="times|multipl|doubles|triples|quadruples|quintuples|each one|every single|grams|dollars|seconds",
    sub="gives away|loses|sells|gives .* to |throws away|takes .* of them|(?<!aunt )sends|uses up|hands .* to a"
        "|removes|gives up|parts with|forgets|breaks|runs off|hand over|lets out|costs the player"
        "|donates|steals|passes|drops",
    add="more|finds|earns|gift|aunt|hands (him|her)|adds|is given|is handed",
), "zh": dict(
    nothing="楼。|雨下了|米高|路车|首歌|想要|没有买", undo="没有发生|不是真的|没有这回事",
    div=r"平均|平分|除以|一半|分之一|同样多|一样多|每\d+.*(换成一|换回一|合成了一|里|装一|重一|值一)",
    mul=r"倍|乘以|每[^\d一]都|每[^\d一]去?换[来回]|原来的每一|用一.换|克|元|秒",
    sub="送走|丢了|卖掉|给了朋友|送给弟弟|用掉|减少|拿走|扔掉|(?<!姑姑)寄给|分给|卖给|少了|让出|送了人|弄坏|叼走|忘在|下去|被扣|漏掉|[天]走了|捐出|偷走|交给老师|掉进",
    add="买了|送来|寄给|挣到|放进|捡到|送给[他她]|给了[他她]|又给|得|增加|礼物|又找|又赢|添了|又领|又拿|又发现|多了|又分|又做|上来|加进|新加入",
)}
NUMBERS = {word: n for n, words in enumerate(("double half 两倍 一半", "triple third 三倍 三分之一",
           "quadruple quarter 四倍 四分之一", "quintuple fifth 五倍 五分之一"), 2) for word in words.split()}


def told(row):
    return [s.strip() for s in re.findall(r"[^.?。？]+[.?。？]", text(row))]


def read_totals(row):
    """Row of a story -> [start, total after each operation that counts], read from its text."""
    totals = []
    for sentence in map(str.lower, told(row)):
        op = next((op for op, verbs in READER[row["lang"]].items() if re.search(verbs, sentence)), None)
        n = [int(digits) for digits in re.findall(r"\d+", sentence)]
        n = (n or [n for word, n in NUMBERS.items() if word in sentence] or [None])[0]
        if op == "undo":
            totals.pop()
        elif op == "nothing" or n is None:
            continue  # this also skips the question
        elif not totals:
            totals.append(n)
        else:
            total = totals[-1]
            assert op != "div" or total % n == 0, text(row)  # a KeyError in the next line: no verb was found
            totals.append(dict(add=total + n, sub=total - n, mul=total * n, div=total // (n or 1))[op])
    return totals


@pytest.mark.parametrize("operation", ["none", *OF_STORIES])
def test_the_text_alone_gives_the_answer(many, operation, distill, tmp_path):
    """If a label is not the answer of its text, the teacher's right answers are thrown away."""
    rows = [row for row, _ in many[operation]] or make(distill, tmp_path / "p.jsonl", share=0)
    assert len(rows) > 100
    for row in rows:
        if operation == "order":
            question, *story = told(row)
            row = {**row, "conversations": turns(" ".join([*story, question]), answer(row))}
        assert str(read_totals(row)[-1]) == answer(row), text(row)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_does_to_the_answer_what_its_label_says(many, operation):
    """The label "kept" although the question changed, or a change of spelling that loses a digit."""
    found = many[operation]
    for row, seed in found:
        assert row["label"] == LABEL[operation] and row["source"] == seed["id"] and text(row) != text(seed)
        assert len(row["conversations"]) == (1 if row["label"] == "teacher" else 2)
        assert row["label"] != "kept" or answer(row) == answer(seed)
        if operation in ("long", "format_trap", "injection"):
            assert text(seed) in text(row) or json.dumps(text(seed), ensure_ascii=False) in text(row)
        elif operation in ("order", "typos", "upper", "no_punctuation"):
            assert Counter(re.findall(r"\d+", text(row))) == Counter(re.findall(r"\d+", text(seed)))
    if LABEL[operation] == "changed":
        assert sum(answer(row) != answer(seed) for row, seed in found) > 0.7 * len(found)
    assert len(found) > (5 if operation == "empty" else 80)
    assert len({text(row) for row, _ in found}) == len(found), "the teacher is paid for one answer twice"


def totals_of(row):
    return stories.running_totals(kinds_of(row["skeleton"].split()[2:-1]), row["numbers"])


def words(lang, *texts):
    """Texts -> set of English words. Chinese has no spaces: there, all pairs of neighbouring characters."""
    text = re.sub(r"\{\w+\}", " ", " ".join(texts)).lower()
    if lang == "en":
        return set(re.findall("[a-z]+", text))
    return {a + b for part in re.findall("[\u4e00-\u9fff]+", text) for a, b in zip(part, part[1:])}


@pytest.mark.parametrize("lang, known", [("en", {"thief", "hugo", "lemons"}), ("zh", {"仙女", "丝带"})])
def test_no_prompt_has_a_word_that_the_suites_keep_for_themselves(many, lang, known):
    """A suite would test nothing new if its names, sentences or distractors were in a prompt, with any numbers."""
    found = {True: set(), False: set()}
    for items in (*TEMPLATES[lang].values(), NAMES[lang], OBJECTS[lang]):
        for reserved in (True, False):
            for item in [items[i] for i in stories.pool(items, reserved)]:
                found[reserved] |= words(lang, *([item] if isinstance(item, str) else item))
    kept = found[True] - found[False] - {"on", "that", "their", "was", "me"}  # words of many sentences
    assert known <= kept
    for row, _ in sum(many.values(), []):
        assert row["lang"] != lang or not words(lang, text(row)) & kept, text(row)
        assert text(row) not in suites.HOSTILE.values()
    theirs = words(lang, *DISTRACTORS[lang]) - words(lang, *sum(map(list, TEMPLATES[lang].values()), []))
    ours = words(lang, *TEXTS["ASIDES"][lang], *TEXTS["TAKEN_BACK"][lang], *sum(TEXTS["UNITS"][lang].values(), []))
    assert len(theirs) > 10 and not theirs & ours - {"for", "is", "it", "to", "s"}


def test_no_prompt_is_as_large_as_the_suites_or_of_another_split(many):
    """Chains of 5 or numbers of three digits would not be new in the suites. A test question would be trained on."""
    for row, _ in sum(many.values(), []):
        assert all(int(n) <= 99 for n in re.findall(r"\d+", text(row))), text(row)
        assert row["label"] == "teacher" or 0 <= int(answer(row)) <= 99
        assert row["operation"] in (*OF_ANY_PROMPT, "order") or len(read_totals(row)) <= 1 + 4
        if "skeleton" in row:
            assert max(totals_of(row)) <= 99 and max(row["numbers"][1:]) <= 20
            assert row["ops"] == len(row["numbers"]) - 1 <= 4 and stories.split_of(row) == "distill"
        assert "skeleton" in row or row["operation"] not in ("deeper", "boundary", "other_language")


@pytest.mark.parametrize("split", ["val", "test", "large", "hostile"])
def test_what_the_evaluation_asks_is_no_seed(distill, tmp_path, split):
    """A student would look robust on the suites only because it was trained on them."""
    path = distill.with_name(f"{split}.jsonl")
    if not path.exists():
        suites.main(suites.Config(problems=10, data=str(path.with_name("test.jsonl")), out=str(tmp_path)))
        path = tmp_path / f"{split}.jsonl"
    with pytest.raises(UserError, match=f"{split}.jsonl:1: "):
        make(path, tmp_path / "p.jsonl")
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_bytes(path.read_bytes() + distill.read_bytes())
    assert len(make(mixed, tmp_path / "p.jsonl", skip_bad_lines=True)) == 400


def test_the_operations_of_the_published_rows_do_what_they_did(distill, tmp_path):
    """Rows in results/ used these operations. With other random draws nobody could repeat them."""
    for flags, digest in ((dict(share=0.5), "2aa7963f5f276784"),
                          (dict(share=0.8, seed=3, operations=DEFAULT + ",upper"), "f4cf06aaaef0432b"),
                          (dict(share=1, operations=",".join(sorted(OPERATIONS))), "668aa9e29e237d83")):
        rows = make(distill, tmp_path / "p.jsonl", fresh=True, **flags)
        kept = [[row["id"], row["operation"], row["conversations"]] for row in rows]
        assert hashlib.sha256(json.dumps(kept, ensure_ascii=False).encode()).hexdigest()[:16] == digest


def test_every_question_is_there_once_with_its_answer_and_no_steps(distill, tmp_path):
    """A lost question, a changed answer, worked steps in the output, or a --share without effect."""
    for source, share, low, high in ((distill, 0, 0, 0), (distill, 0.5, 160, 240), (distill, 1, 400, 400),
                                     (distill.with_name("train.jsonl"), 1, 10, 10)):  # it has steps
        rows = make(source, tmp_path / "p.jsonl", share=share, operations=DEFAULT + ",upper", fresh=True)
        for new, old in zip(rows, lines_of(source), strict=True):
            assert new["source"] == old["id"] and new["label"] == "kept" and answer(new) == answer(old)
            assert (text(new) == text(old)) == (new["operation"] == "none")
            assert all(set(turn) == {"role", "content"} for turn in new["conversations"])
        assert low <= sum(row["operation"] != "none" for row in rows) <= high


def test_an_invented_story_is_about_nobody_known(many, monkeypatch):
    """An invented name that is a real one, or so few invented words that a student memorises them."""
    known = {word.lower() for pair in (*NAMES["en"], *OBJECTS["en"]) for word in pair} - {"he", "she"}
    for row, _ in many["invented"]:
        assert row["lang"] == "en" and not known & set(re.findall("[a-z]+", text(row).lower()))
    drawn = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert len(set(drawn)) > 900
    monkeypatch.setattr(prompts, "REAL", {drawn[0], drawn[1] + "s"})
    again = [invented_word(random.Random(seed)) for seed in range(1000)]
    assert again[2:] == drawn[2:] and again[0] != drawn[0] and again[1] != drawn[1]


def test_boundary_numbers_are_at_a_boundary(many):
    """Without real edge cases a student never learns what "0 more" or "all of them" mean."""
    edges = Counter()
    for row, _ in many["boundary"]:
        start, *rest = row["numbers"]
        steps = zip(row["skeleton"].split()[2:-1], rest, totals_of(row))
        equal = any(op[:3] in ("add", "sub") and n == total for op, n, total in steps)
        found = dict(one=start == 1, huge=start >= 50, zero=0 in rest, equal=equal)
        assert any(found.values()) and not re.search(r"\bare 1 ", text(row)), row
        edges.update(edge for edge in found if found[edge])
    assert len(edges) == 4 and min(edges.values()) > 20
    assert any(answer(row) == "0" for row, _ in many["boundary"])


def test_what_is_added_to_a_story_stands_where_it_should(many):
    """A missing operation, one that is taken back and counts, numbers in filler, or a distractor that could count."""
    for row, seed in many["deeper"]:
        assert row["ops"] == seed["ops"] + 1 and row["numbers"][:-1] == seed["numbers"]
        assert told(row)[:-2] == told(seed)[:-1] and told(row)[-1] == told(seed)[-1]
    for row, seed in many["negation"] + many["distractor"]:
        extra, = [s for s in told(row) if s not in told(seed)]
        assert [s for s in told(row) if s != extra] == told(seed) and told(row)[-1] == told(seed)[-1]
        if row["operation"] == "negation":
            assert len(read_totals(row)) == seed["ops"] and told(row).index(extra) >= 2
        else:
            people = [name for name, _ in NAMES[row["lang"]] if name in extra]
            assert re.search(r"\d", extra) and not any(name in text(seed) for name in people)
    for row, seed in many["long"]:  # a teacher of stories has a context of 512 tokens
        filler = text(row).removesuffix(text(seed)).strip()
        assert 300 <= len(filler) < 800 and not re.search(r"\d", filler)


def test_what_makes_no_sense_is_left_out_and_counted(distill, tmp_path, capsys):
    """Capitals in Chinese, or rows that stay unchanged without a message."""
    rows = make(distill, tmp_path / "p.jsonl", share=1, operations="upper,typos,invented")
    chinese = [row["operation"] for row in rows if row["lang"] == "zh"]
    assert set(chinese) == {"none"} and len(chinese) > 100
    printed = re.search("did not apply: .*", capsys.readouterr().out)[0]
    assert all(f"{name} {len(chinese)}" in printed for name in ("upper", "typos", "invented"))


@pytest.mark.parametrize("row, known", [
    ({"question": "What is 3 times 4?", "answer": "3*4=<<3*4=12>>12\n#### 12"}, "12"),
    ({"instruction": "Name a river.", "input": "In Egypt.", "output": "The Nile."}, None),
    ({"instruction": "Tell of Rome.", "output": "In 753 it began."}, None),  # a number in an essay is no answer
    ({"messages": [dict(role="system", content="Short!"), *turns("Hi.", "So?", "3+4?", "\\boxed{7}")]}, "7"),
    ({"id": "w", "conversations": [*turns("Is water wet?"), dict(
        role="assistant", reasoning_content="Well.", content="yes")]}, "yes"),
    ({"question": "Print {text}, {json}, {n}, {x} and {}.", "answer": ""}, None),
    ({"messages": turns("Hello there.", "Hi.", "And now what?")}, None)])
def test_a_prompt_of_any_format_becomes_a_prompt_row(tmp_path, row, known):
    """The wrong turn is changed, an answer is lost or invented, or a row does not name its source."""
    path = write(tmp_path / "mine.jsonl", *[row] * 40)
    asked = row.get("messages") or row.get("conversations") or turns(
        row.get("question") or "\n\n".join(filter(None, (row["instruction"], row.get("input")))))
    last = max(i for i, turn in enumerate(asked) if turn["role"] == "user")
    rows = make(path, tmp_path / "p.jsonl", share=0.9, operations=",".join([*OF_ANY_PROMPT, "deeper"]))
    assert {"long", "format_trap", "injection", "empty"} <= {r["operation"] for r in rows}
    assert "deeper" not in {r["operation"] for r in rows}  # only for stories
    for i, new in enumerate(rows):
        assert new["source"] == row.get("id", f"mine.jsonl:{i + 1}")
        assert new["conversations"][:last] == asked[:last]
        question, *reply = new["conversations"][last:]
        before, after = asked[last]["content"], question["content"]
        assert question["role"] == "user" and (before == after) == (new["operation"] == "none")
        if new["operation"] in ("long", "format_trap", "injection"):
            assert before in after or json.dumps(before)[1:-1] in after  # braces stay text
        assert new["label"] == ("kept" if known and new["operation"] != "empty" else "teacher")
        assert len(reply) == (new["label"] == "kept")
        assert not reply or same_answer(parse_row(new)[-1].answer, known)


def test_a_prompt_of_code_is_not_misspelled(tmp_path):
    """`pritn(x)`, a link in capitals or 1 234 5 for 1,234.5 is another question with the old answer."""
    texts = ["What does `print(len(word))` show?", "Open https://site.org/page", "\\frac{1}{2}"]
    path = write(tmp_path / "code.jsonl", *[dict(question=text, answer="") for text in texts])
    rows = make(path, tmp_path / "p.jsonl", share=1, operations="typos,upper,no_punctuation")
    assert [text(row) for row in rows] == texts
    path = write(tmp_path / "plain.jsonl", dict(question="Is 1,234.5 more than 2, or less than 3.7?"))
    row, = make(path, tmp_path / "q.jsonl", share=1, operations="no_punctuation")
    assert text(row) == "Is 1,234.5 more than 2 or less than 3.7"


def test_rows_that_only_look_like_stories_are_prompts(distill, tmp_path):
    """A row that looks like a story but divides by 0, or has an odd id, would stop the run."""
    seed = lines_of(distill)[0]
    odd = [{**seed, "skeleton": "en opening0 div0 question0", "numbers": [3, 0], "id": "\ud800"},
           {**seed, "skeleton": [], "id": [1]}, {**seed, "skeleton": "en x", "numbers": {}}]
    rows = make(write(tmp_path / "odd.jsonl", *odd), tmp_path / "p.jsonl", share=1)
    assert [row["label"] for row in rows] == ["kept"] * 3


def test_wrong_flags_are_refused_and_nothing_is_lost(distill, tmp_path):
    """The output would replace the seeds, or a misspelled operation or a flag would have no effect."""
    out, before = tmp_path / "p.jsonl", distill.read_bytes()
    (tmp_path / "x.txt").write_text("Once upon a time.")
    made = make(distill, out)
    assert made == make(distill, out)
    for source, target, flags in (
            (tmp_path / "x.txt", out, {}), (distill, distill, {}), (distill, out, dict(share=float("nan"))),
            (distill, out, dict(operations="")), (distill, out, dict(operations="typos,tipos")),
            (distill, out, dict(seed=1, fresh=False))):
        with pytest.raises(UserError):
            make(source, target, **{"fresh": True, **flags})
    assert lines_of(out) == made and distill.read_bytes() == before
    assert make(distill, out, seed=1, fresh=True) != made
