"""Claims about the ways to learn a trace: both tasks, or one form or the other. Tag weight, gradient,
ranks, kills: with those of the other scripts."""
import csv
import json

import pytest
import torch
from torch.nn import functional as F

import checkpoints
from dataset.windows import open_data
from dataset.formats import TARGETS, Turn, encode_document, forms, prompt_ids, read_documents
from dataset.verify import opening


def chat(asked, thought, said):
    return {"conversations": [{"role": "user", "content": asked},
                              {"role": "assistant", "content": said, "reasoning_content": thought}]}


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def documents_of(data, tokenizer):
    """Every document of all windows as (text, learned text), marks by name."""
    found = []
    for ids, mask, document in zip(data["ids"], data["mask"], data["document"]):
        for number in range(1, document.max() + 1):
            here = document == number
            found.append((tokenizer.decode(ids[here], show_control=True),
                          tokenizer.decode(ids[here & (mask > 0)], show_control=True)))
    return found


# --- two tasks, or one of two forms ---------------------------------------------------------------

def test_multi_learns_every_trace_as_a_chain_and_as_a_bare_answer(tiny_world, tiny_tokenizer, out_dir):
    """Two examples a question, apart: in one context the second could copy the first."""
    data = open_data(tiny_world.train, tiny_tokenizer, 143, "multi")
    expected = []
    for _, (asked, told) in read_documents(tiny_world.train):
        for said in (f"<think>{told.think}</think><answer>{told.answer}</answer><end>",
                     f"<answer>{told.answer}</answer><end>"):
            expected.append((f"<user>{asked.content}<end><assistant>{said}", said))
    assert sorted(documents_of(data, tiny_tokenizer)) == sorted(expected)
    assert data["meta"]["documents"] == len(expected) == 64


def test_mixed_learns_half_of_the_questions_with_the_thought(tmp_path, tiny_tokenizer, out_dir):
    """All answers to a question in one form, or the form says nothing about the question."""
    rows = [chat(f"{n} + {n}?", f"{n} + {n}, try {sample}", f"{2 * n}")
            for n in range(300) for sample in range(2)]
    data = open_data(write(tmp_path / "a.jsonl", rows), tiny_tokenizer, 143, "mixed")
    thinks = {}
    for text, learned in documents_of(data, tiny_tokenizer):
        thinks.setdefault(text.split("?")[0], []).append(learned.startswith("<think>"))
        assert learned.count("<answer>") == 1 and learned.endswith("</answer><end>")
    assert len(thinks) == 300
    assert all(len(pair) == 2 and len(set(pair)) == 1 for pair in thinks.values())
    assert 120 < sum(pair[0] for pair in thinks.values()) < 180  # 150 of 300, three deviations 26
    even = [thinks[f"<user>{n} + {n}"][0] for n in range(0, 300, 2)]
    assert 45 < sum(even) < 105  # nor do the even numbers alone think


def test_a_conversation_of_several_turns_has_one_form(tmp_path, tiny_tokenizer, out_dir):
    """A chain in the first turn and a bare answer in the second is a third task. Without a thought, the
    same example twice is a weight of two that nobody asked for."""
    for document in ("plain text", [Turn("user", "2 + 3?"), Turn("assistant", "", None, "5")],
                     [Turn("user", "Hi"), Turn("assistant", "Hello.")]):
        assert [len(forms(document, target)) for target in TARGETS] == [1] * len(TARGETS)
    row = {"messages": chat("2 + 3?", "two, three", "5")["conversations"] +
           chat("and 1?", "one more", "6")["conversations"]}
    data = open_data(write(tmp_path / "a.jsonl", [row]), tiny_tokenizer, 143, "multi")
    assert sorted(learned for _, learned in documents_of(data, tiny_tokenizer)) == [
        "<answer>5</answer><end><answer>6</answer><end>",
        "<think>two, three</think><answer>5</answer><end>"
        "<think>one more</think><answer>6</answer><end>"]


def test_the_loss_of_two_tasks_has_one_normaliser(call, tiny_world, tiny_tokenizer, out_dir):
    """Every token weighs the same, whichever task it is of: by hand, document by document."""
    flags = tiny_world.flags("distill_reason", init=tiny_world.init, target="multi", batch=32,
                             steps=1)
    assert call("train_distill_reason", *flags).status == 0
    model, t, _ = checkpoints.load_model(tiny_world.init)
    total, count = 0.0, 0
    for _, (asked, told) in read_documents(tiny_world.train):
        prompt, thought, said = map(t.encode, (asked.content, told.think, told.answer))
        for response in ([6, *thought, 7, 8, *said, 9, 2], [8, *said, 9, 2]):
            ids = torch.tensor([4, *prompt, 2, 5, *response])
            logits = model(ids[None, :-1])[0, -len(response):]
            total += F.cross_entropy(logits, ids[-len(response):], reduction="sum").item()
            count += len(response)
    with (out_dir / "run.csv").open(newline="") as file:
        [row] = csv.DictReader(file)
    assert float(row["ce"]) == pytest.approx(total / count, rel=1e-5)
    assert int(row["supervised"]) == count


@pytest.mark.parametrize("target", ["cot", "answer", "full"])
def test_a_begun_response_is_the_beginning_of_what_was_learned(target, tiny_tokenizer, tiny_world):
    """A prompt that differs from training by one token costs accuracy in silence."""
    for _, document in read_documents(tiny_world.train):
        ids, mask = encode_document(tiny_tokenizer, document, target)
        begun = prompt_ids(tiny_tokenizer, document, target) + opening(tiny_tokenizer, target)
        assert ids[:len(begun)] == begun
        assert sum(mask[:len(begun)]) == (0 if target == "full" else 1)
