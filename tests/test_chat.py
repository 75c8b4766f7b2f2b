"""Claims about chat.py: what a reader sees is what the evaluation measures."""
import re
from unittest.mock import Mock

import pytest
import torch

import checkpoints
from dataset.formats import Turn
from dataset.verify import prompt_ids
from decoding import generate, opening


@pytest.mark.parametrize("target", ["auto", "cot", "answer"])
@pytest.mark.parametrize("temperature", [0, 0.9])
def test_an_answer_is_what_the_model_generates(call, tiny_world, target, temperature):
    """With another prompt, opening or seed than eval.py, chat.py would show another model than was measured."""
    model, t, _ = checkpoints.load_model(tiny_world.init)
    done = call("chat", tiny_world.init, "--prompt=2 + 3?", "--max-new-tokens=30",
                f"--target={target}", "--seed=3", f"--temperature={temperature}")
    begun, generator = opening(t, target), torch.Generator().manual_seed(3)
    prompt = prompt_ids(t, [Turn("user", "2 + 3?")]) + begun
    [ids] = generate(model, [prompt], 30, {t.end}, temperature=temperature, generator=generator)
    limit = " (stopped at the limit)" if ids[-1] != t.end else ""
    assert done.status == 0 and done.out == t.decode(begun + ids, show_control=True) + limit + "\n"


def test_a_chat_keeps_the_conversation_until_an_empty_line_or_as_far_as_it_fits(call, tiny_world, monkeypatch):
    """A follow-up question was answered as if it were the first. A question that is too long ended the chat."""
    model, t, _ = checkpoints.load_model(tiny_world.teacher)
    lines, said, past = ["2 + 3?", "Why? " * 99, "And 4?", "", *["2 + 3?"] * 15], [], []
    for line in lines:
        past = past + [prompt_ids(t, [Turn("user", line)])] if line else []
        if line == lines[1]:
            del past[-1]
        elif line:
            while len(sum(past, [])) + 5 > 160:
                past, said = past[1:], [*said, "(the oldest"]
            [ids] = generate(model, [sum(past, [])], 5, {t.end})
            past[-1] += [i for i in ids if i != t.end] + [t.end]
            said.append(t.decode(ids, show_control=True))
    monkeypatch.setattr("builtins.input", Mock(side_effect=[*lines, EOFError]))
    done = call("chat", tiny_world.teacher, "--max-new-tokens=5")
    assert done.status == 0 and "(the oldest" in said and "error: " in done.out
    assert re.search(".*?\n".join(map(re.escape, said)), done.out, re.S)


def test_top_shows_twelve_places_unless_asked_for_more(call, tiny_world):
    """--top printed a line for each of 160 tokens, so the first places scrolled away."""
    for flags, places in ((["--prompt=a"], 12), (["--prompt=a", "--max-new-tokens=14"], 14)):
        assert call("chat", tiny_world.teacher, "--top=2", *flags).out.count("<-") == places


def test_the_likeliest_tokens_are_those_of_a_full_pass(call, tiny_world, tiny_tokenizer):
    """What a class sees as the teacher's distribution must be the teacher's distribution."""
    done = call("chat", tiny_world.teacher, "--complete=Mia has", "--max-new-tokens=3", "--top=2")
    model = checkpoints.load_model(tiny_world.teacher)[0]
    ids = tiny_tokenizer.encode("Mia has")
    lines = [line for line in done.out.splitlines() if "<-" in line]
    assert done.status == 0 and len(lines) == 3
    for line in lines:
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).topk(2)
        token = best.indices[0].item()
        name = repr(tiny_tokenizer.decode([token], show_control=True))
        assert line.split(" <- ")[0].strip() == name and f"{name} {best.values[0]:.3f}" in line
        ids.append(token)


@pytest.mark.parametrize("flags", [
    ["--prompt", "Why? " * 99], ["--complete=a", "--prompt=b"], ["--complete=a", "--target=cot"],
    ["--max-new-tokens=-1"], ["--top=-1"], ["another.pt"], ["--prompts=a"]], ids=lambda f: f[0][:20])
def test_a_mistake_is_one_line(call, tiny_world, flags):
    """A wrong flag could be silently ignored, or end in a traceback."""
    done = call("chat", tiny_world.teacher, *flags)
    assert done.status == 2 and done.err.count("\n") == 1 and done.out == ""
