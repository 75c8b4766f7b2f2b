"""Claims about train_distill_responses.py: which words of the teacher the student learns, and that
the loop is the one of pretraining. Its gradient, ranks, kills: with those of the other scripts."""
import csv
import inspect
import json
import random

import pytest
import torch
from torch.nn import functional as F

import checkpoints
import train_distill_responses
import train_pretrain
from eval import judge
from dataset.windows import eval_batches, open_data
from dataset.formats import Turn, encode_document, parse_row, plain_reply, read_documents
from dataset.windows import Packed
from dataset.verify import extract_answer

# the formats of dataset/formats.py, each as a file may hold it
FORMATS = [
    {"text": "Mia has 3 pears."},
    {"conversations": [{"role": "user", "content": "3 + 4?"},
                       {"role": "assistant", "content": "7", "reasoning_content": "3 + 4 = 7"}]},
    {"messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "3 + 4?"},
                  {"role": "assistant", "content": "<think>3 + 4</think><answer>7</answer>"}]},
    {"instruction": "Add.", "input": "3 4", "output": "7"},
    {"question": "3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def learned_and_not(data, tokenizer):
    """The text that counts and the text that does not, of all windows, marks by name."""
    counted = other = ""
    for x, y, document, weight in eval_batches(data, batch=2):
        document = torch.ones_like(x) if document is None else document
        counted += tokenizer.decode(y[weight > 0], show_control=True)
        other += tokenizer.decode(y[(weight == 0) & (y != tokenizer.pad)], show_control=True)
    return counted, other


@pytest.mark.parametrize("target, second", [("full", "It is 5 + 2.\n#### 7<end>"),
                                            ("answer", "<answer>7</answer><end>")],
                         ids=["full", "answer"])
def test_every_assistant_turn_counts_and_no_prompt(target, second, tmp_path, tiny_tokenizer,
                                                   out_dir):
    """TRAPS 9 and 25: of several turns the last alone, or without its first or last token."""
    turns = [dict(role="system", content="Be short."), dict(role="user", content="2 + 3?"),
             dict(role="assistant", content="5 pears."), dict(role="user", content="And 2 more?"),
             dict(role="assistant", content="7", reasoning_content="It is 5 + 2."),
             dict(role="user", content="Thanks"), dict(role="assistant", content="Bye.")]
    path = write(tmp_path / "chat.jsonl", [dict(conversations=turns)])
    data = open_data(path, tiny_tokenizer, 143, target)
    counted, other = learned_and_not(data, tiny_tokenizer)
    assert counted == f"5 pears.<end>{second}Bye.<end>"
    assert other == "Be short.<end><user>2 + 3?<end><assistant><user>And 2 more?<end><assistant>" \
                    "<user>Thanks<end><assistant>"  # <system>, the first token, is nobody's target


@pytest.mark.parametrize("think, answer", [
    ("13+14=27\n27*2=54", "54"), ("So 5 or 6? The answer is 6, no: 7.", "7"), ("a\n\nb", "Paris"),
    ("Half of it.", "-1/2"), ("See #### 3 above", "4"), ("3 is it, 5 is not", "14 apples")])
def test_a_full_answer_gives_its_answer_back(think, answer):
    """A whole reply whose final answer cannot be told from its steps would be scored as wrong."""
    text = plain_reply(Turn("assistant", "", think, answer))
    assert extract_answer(text) == answer
    assert parse_row({"question": "?", "answer": text})[1] == Turn("assistant", "", think, answer)


@pytest.mark.parametrize("turn, text", [
    (Turn("assistant", "", None, "7"), "7"),
    (Turn("assistant", "", "3 + 4.", "So:\nit is 7."), "3 + 4.\nSo:\nit is 7.")])
def test_a_full_answer_without_thought_or_of_several_lines_has_no_mark(turn, text):
    """"#### So:" would be a heading."""
    assert plain_reply(turn) == text


@pytest.mark.parametrize("target", ["full", "answer"])
def test_a_reply_without_thought_and_answer_is_learned_as_it_stands(target, tiny_tokenizer):
    """Chat data know no tags: nothing may be added to them."""
    document = parse_row({"instruction": "Add.", "output": "3 + 4 = 7, <b>."})
    ids, mask = encode_document(tiny_tokenizer, document, target)
    said = [i for i, m in zip(ids, mask) if m]
    assert tiny_tokenizer.decode(said, show_control=True) == "3 + 4 = 7, <b>.<end>"


def test_full_answers_hold_no_tag(tiny_world, tiny_tokenizer):
    """Plain text is what a teacher behind an API says; tags are the other script's."""
    for _, document in read_documents(tiny_world.train):
        ids, _ = encode_document(tiny_tokenizer, document, "full")
        assert not set(ids) & tiny_tokenizer.tag_ids


@pytest.mark.parametrize("said, wanted, verdict", [
    ("3 + 4 = 7\n#### 7", "7", "ok"), ("3 + 4 = 7", "7", "ok"), ("so the answer is 7.", "7", "ok"),
    ("3 + 4 = 7\n#### 8", "7", "wrong answer"), ("so many", "7", "no answer"),
    ("He lives there.\n#### Paris", "Paris", "ok"), ("Paris", "Paris", "ok"),
    ("He lives there.\n#### Rome", "Paris", "wrong answer"), ("", "Paris", "no answer")])
def test_a_full_answer_is_scored_by_its_last_line_or_number(said, wanted, verdict, tiny_tokenizer):
    """Scored by the <answer> span alone, a student of full answers knows nothing."""
    ids = [*tiny_tokenizer.encode(said), tiny_tokenizer.end]
    found = judge(tiny_tokenizer, ids, Turn("assistant", "", "x", wanted), "full")
    assert found["verdict"] == verdict and found["well_formed"] == bool(said)


def test_a_tag_is_no_form_of_a_full_answer(tiny_tokenizer):
    """The format rate says whether the student does what it was taught."""
    t = tiny_tokenizer
    for ids in ([t.answer, *t.encode("7"), t.end_answer, t.end], [*t.encode("7")], [t.end]):
        assert not judge(t, ids, Turn("assistant", "", None, "7"), "full")["well_formed"]


def test_every_format_is_trained_on(call, tiny_world, tmp_path, out_dir):
    """Real files come in each of these; the loss of the first step, by hand."""
    path = write(tmp_path / "all.jsonl", FORMATS)
    flags = tiny_world.flags("distill_responses", data=path, init=tiny_world.init, batch=2, steps=1)
    done = call("train_distill_responses", *flags)  # two windows: conversations, text
    assert done.status == 0 and "2 windows of 143 | 5 documents" in done.out, done.err
    model, t, _ = checkpoints.load_model(tiny_world.init)
    sums = torch.zeros(2)
    for asked, said in (([], "Mia has 3 pears."), ([4, "3 + 4?"], "3 + 4 = 7\n#### 7"),
                        ([3, "Be short.", 2, 4, "3 + 4?"], "3 + 4\n#### 7"),
                        ([4, "Add.\n\n3 4"], "7"), ([4, "3 + 4?"], "3 + 4 = 7\n#### 7")):
        asked = asked + [2, 5] if asked else []
        prompt = []
        for part in asked:
            prompt += [part] if isinstance(part, int) else t.encode(part)
        ids = torch.tensor(prompt + t.encode(said) + [2])
        first = max(len(prompt), 1)
        logits = model(ids[None, :-1])[0, first - 1:]
        ce = F.cross_entropy(logits, ids[first:], reduction="sum")
        sums += torch.tensor([ce, len(ids) - first])
    with (out_dir / "run.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["ce"]) == pytest.approx((sums[0] / sums[1]).item(), rel=1e-5)
    assert int(row["supervised"]) == sums[1]


def test_bare_answers_are_one_run_in_both_black_box_scripts(call, tiny_world, out_dir):
    """Two ways to the same student that differ would be two experiments of one name."""
    for script in ("distill_responses", "distill_reason"):
        flags = tiny_world.flags(script, name=script, target="answer", steps=2)
        assert call(f"train_{script}", *flags).status == 0
    states = [checkpoints.load(out_dir / f"distill_{name}.pt") for name in ("responses", "reason")]
    for name, weight in states[0]["model"].items():
        assert torch.equal(weight, states[1]["model"][name]), name


def test_the_loop_is_that_of_pretraining():
    """`diff` is the lesson: who wrote the text makes the difference, not the loop."""
    ours = inspect.getsource(train_distill_responses.main)
    assert ours == inspect.getsource(train_pretrain.main)


def test_without_its_data_it_says_what_makes_them(call, tiny_world, out_dir):
    """The first command of a new reader."""
    done = call("train_distill_responses")
    assert done.status == 2
    assert "tokenizer.model does not exist; tokenizer/train.py" in done.err
    done = call("train_distill_responses", f"--tokenizer={tiny_world.tokenizer}")
    assert done.status == 2 and "does not exist; bash speedrun.sh" in done.err


def test_long_and_short_replies_are_packed_with_little_padding():
    """Batches of like lengths pad 2 to 3 % of such lengths; whole replies in windows pad no more.

    At least so many windows are needed as there are replies of more than half a window."""
    rng = random.Random(3)
    lengths = [max(20, min(513, round(rng.lognormvariate(5.1, 0.6)))) for _ in range(4000)]
    for size in (513, 1025):
        packed = Packed(size)
        for n in lengths:
            packed.add([1] * n, [1] * n)
        _, _, document = packed.arrays(0)
        padding = (document == 0).mean()
        least = max(sum(n > size / 2 for n in lengths), -(-sum(lengths) // size))
        assert (document > 0).sum() == sum(lengths)
        assert padding < 0.05 and len(document) <= 1.02 * least
