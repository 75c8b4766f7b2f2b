"""Claims about the targets of train_distill_reason.py. Other files test its gradient, ranks and kills."""
import json

import pytest
import torch
from torch.nn import functional as F

import checkpoints
from conftest import tiny_stories
from dataset.windows import open_data
from dataset.formats import Turn, forms, read_documents


def chat(asked, thought, said):
    return {"conversations": [{"role": "user", "content": asked},
                              {"role": "assistant", "content": said, "reasoning_content": thought}]}


@pytest.fixture
def documents_of(tmp_path, tiny_tokenizer, out_dir):
    """A function: rows, target -> (text, text that is learned) of each document, with control tokens."""
    def read(rows, target):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        data = open_data(tmp_path / "a.jsonl", tiny_tokenizer, 143, target)
        for ids, mask, document in zip(data["ids"], data["mask"], data["document"]):
            for number in range(1, document.max() + 1):
                yield tuple(tiny_tokenizer.decode(ids[place], show_control=True) for place in (
                    document == number, (document == number) & (mask > 0)))
    return read


def test_multi_learns_every_trace_as_a_chain_and_as_a_bare_answer(tiny_world, documents_of):
    """Both examples of a question must be separate. In one context the second could copy the first."""
    expected = []
    for _, (asked, told) in read_documents(tiny_world.train):
        for said in (f"<think>{told.think}</think><answer>{told.answer}</answer><end>",
                     f"<answer>{told.answer}</answer><end>"):
            expected.append((f"<user>{asked.content}<end><assistant>{said}", said))
    assert len(expected) == 64 and sorted(documents_of(tiny_stories(32), "multi")) == sorted(expected)


def test_mixed_learns_half_of_the_questions_with_the_thought(documents_of):
    """If answers to one question had different targets, mixed would learn both, as multi does."""
    rows = [chat(f"{n} + {n}?", f"{n} + {n}, try {sample}", f"{2 * n}") for n in range(300) for sample in range(2)]
    thinks = {}
    for text, learned in documents_of(rows, "mixed"):
        thinks.setdefault(text.split("?")[0], []).append(learned.startswith("<think>"))
        assert learned.count("<answer>") == 1 and learned.endswith("</answer><end>")
    assert len(thinks) == 300
    assert all(len(pair) == 2 and len(set(pair)) == 1 for pair in thinks.values())
    assert 120 < sum(pair[0] for pair in thinks.values()) < 180  # 150 expected; 3 standard deviations are 26
    even = [thinks[f"<user>{n} + {n}"][0] for n in range(0, 300, 2)]
    assert 45 < sum(even) < 105  # even numbers are nothing special


def test_a_conversation_of_several_turns_has_one_form(documents_of):
    """A chain in one turn, a bare answer in the next: a third task. A reply without a thought would come twice."""
    for document in ("plain text", [Turn("user", "2 + 3?"), Turn("assistant", "", None, "5")],
                     [Turn("user", "Hi"), Turn("assistant", "Hello.")]):
        assert all(len(forms(document, target)) == 1 for target in ("cot", "answer", "full", "multi", "mixed"))
    row = {"messages": chat("2 + 3?", "two, three", "5")["conversations"] +
           chat("and 1?", "one more", "6")["conversations"]}
    assert sorted(learned for _, learned in documents_of([row], "multi")) == [
        "<answer>5</answer><end><answer>6</answer><end>",
        "<think>two, three</think><answer>5</answer><end><think>one more</think><answer>6</answer><end>"]


def test_the_loss_of_two_tasks_has_one_normaliser(train, tiny_world):
    """Tokens of one task would weigh more than those of the other. Oracle: one document at a time."""
    train("distill_reason", init=tiny_world.init, target="multi", batch=32, steps=1)
    model, t, _ = checkpoints.load_model(tiny_world.init)
    total, count = 0.0, 0
    for _, (asked, told) in read_documents(tiny_world.train):
        prompt, thought, said = map(t.encode, (asked.content, told.think, told.answer))
        for response in ([6, *thought, 7, 8, *said, 9, 2], [8, *said, 9, 2]):
            ids = torch.tensor([4, *prompt, 2, 5, *response])
            logits = model(ids[None, :-1])[0, -len(response):]
            total += F.cross_entropy(logits, ids[-len(response):], reduction="sum").item()
            count += len(response)
    [row] = train.rows
    assert float(row["ce"]) == pytest.approx(total / count, rel=1e-5)
    assert int(row["supervised"]) == count


@pytest.mark.parametrize("target", ["cot", "multi", "answer"])
def test_rows_without_a_thought_are_refused_except_for_answers(target, call, tiny_world, tmp_path):
    """FAULTS 3: with the thoughts under an unknown key, a reasoning run learned bare answers and said nothing."""
    (tmp_path / "a.jsonl").write_text(json.dumps(chat("2 + 2?", None, "4")), encoding="utf-8")
    flags = tiny_world.flags("distill_reason", data=tmp_path / "a.jsonl", steps=1, target=target)
    assert call("train_distill_reason", *flags).status == (0 if target == "answer" else 2)
