"""Claims about train_distill_responses.py. Other files test its gradient, ranks and kills."""
import pytest
import torch

from metrics import json_lines
from eval import judge
from dataset.windows import eval_batches, open_data
from dataset.formats import Turn, encode_document, parse_row
from dataset.verify import extract_answer


@pytest.mark.parametrize("target, second", [("full", "It is 5 + 2.\n#### 7<end>"),
                                            ("answer", "<answer>7</answer><end>")])
def test_every_assistant_turn_counts_and_no_prompt(target, second, tmp_path, tiny_tokenizer, out_dir):
    """TRAPS 9 and 25: of several turns only the last is learned, its first or last token is not, or tags are added."""
    turns = [dict(role="system", content="Be short."), dict(role="user", content="2 + 3?"),
             dict(role="assistant", content="5 pears, <b>."), dict(role="user", content="And 2 more?"),
             dict(role="assistant", content="7", reasoning_content="It is 5 + 2."),
             dict(role="user", content="Thanks"), dict(role="assistant", content="Bye.")]
    path, text = tmp_path / "chat.jsonl", "Mia has 3 pears."  # plain text may be in the same file
    path.write_text(json_lines([dict(conversations=turns), dict(text=text)]), encoding="utf-8")
    [(_, y, _, weight)] = eval_batches(open_data(path, tiny_tokenizer, 143, target), batch=2)
    counted, other = (tiny_tokenizer.decode(y[part & (y != tiny_tokenizer.pad)], show_control=True)
                      for part in (weight > 0, weight == 0))
    rest = tiny_tokenizer.decode(tiny_tokenizer.encode(text)[1:])  # the first is never predicted
    assert counted == f"5 pears, <b>.<end>{second}Bye.<end>{rest}<end>"
    assert other == "Be short.<end><user>2 + 3?<end><assistant><user>And 2 more?<end><assistant>" \
                    "<user>Thanks<end><assistant>"  # nor is <system>


@pytest.mark.parametrize("think, answer", [
    ("13+14=27\n27*2=54", "54"), ("So 5 or 6? The answer is 6, no: 7.", "7"), ("a\n\nb", "Paris"),
    ("Half of it.", "-1/2"), ("See #### 3 above", "4"), ("3 is it, 5 is not", "14 apples")])
def test_a_full_answer_gives_its_answer_back(think, answer, tiny_tokenizer):
    """If the final answer of a full reply cannot be found, a right reply is scored as wrong."""
    def reply(*said):
        ids, _ = encode_document(tiny_tokenizer, [Turn("assistant", "", *said)], "full")
        return tiny_tokenizer.decode(ids[1:-1])
    text = reply(think, answer)
    assert extract_answer(text) == answer
    assert parse_row({"question": "?", "answer": text})[1] == Turn("assistant", "", think, answer)
    assert reply(None, answer) == answer
    assert reply(think, "So:\nit is 7.") == f"{think}\nSo:\nit is 7."  # "#### So:" would be a heading


@pytest.mark.parametrize("said, wanted, verdict", [
    ("3 + 4 = 7\n#### 7", "7", "ok"), ("3 + 4 = 7", "7", "ok"), ("so the answer is 7.", "7", "ok"),
    ("3 + 4 = 7\n#### 8", "7", "wrong answer"), ("so many", "7", "no answer"),
    ("He lives there.\n#### Paris", "Paris", "ok"), ("Paris", "Paris", "ok"),
    ("He lives there.\n#### Rome", "Paris", "wrong answer"), ("", "Paris", "no answer")])
def test_a_full_answer_is_scored_by_its_last_line_or_number(said, wanted, verdict, tiny_tokenizer):
    """A student of full replies writes no <answer> tag. Scored only by that tag, it would get 0 %."""
    t, turn = tiny_tokenizer, Turn("assistant", "", "x", wanted)
    found = judge(t, [*t.encode(said), t.end], turn, "full")
    assert found["verdict"] == verdict and found["well_formed"] == bool(said)
    for ids in ([*t.answer, *t.encode(said), *t.end_answer, t.end], t.encode(said)):  # with tags; without <end>
        assert not judge(t, ids, turn, "full")["well_formed"]


def test_bare_answers_are_one_run_in_both_black_box_scripts(train):
    """If the same flags gave another student in each script, results could not be compared."""
    states = [train(script, name=script, target="answer", steps=2)
              for script in ("distill_responses", "distill_reason")]
    assert all(torch.equal(weight, states[1]["model"][name]) for name, weight in states[0]["model"].items())
