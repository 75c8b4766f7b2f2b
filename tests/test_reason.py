"""Claims about the ways to learn a trace: both tasks, one form or the other, long and short ones by
share. Tag weight, gradient, ranks, kills: with those of the other scripts."""
import csv
import itertools
import json
from collections import Counter
from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

import checkpoints
from cli import UserError
from dataset import batches
from dataset.batches import open_data
from dataset.formats import (TARGETS, Turn, encode_document, forms, opening, prompt_ids,
                             read_documents)
from dataset.mixture import share_out


def chat(asked, thought, said):
    return {"conversations": [{"role": "user", "content": asked},
                              {"role": "assistant", "content": said, "reasoning_content": thought}]}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
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

def test_multi_learns_every_trace_as_a_chain_and_as_a_bare_answer(tiny_world, tiny_tokenizer,
                                                                  out_dir):
    """Two examples a question, apart: in one context the second could copy the first."""
    data = open_data(tiny_world.train, tiny_tokenizer, 143, "multi")
    expected = []
    for _, (asked, told) in read_documents(tiny_world.train):
        for said in (f"<think>{told.think}</think><answer>{told.answer}</answer><end>",
                     f"<answer>{told.answer}</answer><end>"):
            expected.append((f"<user>{asked.content}<end><assistant>{said}", said))
    assert sorted(documents_of(data, tiny_tokenizer)) == sorted(expected)
    assert data["meta"]["documents"] == len(expected) == 64


def test_mixed_learns_every_trace_once_half_of_the_questions_with_the_thought(
        tmp_path, tiny_tokenizer, out_dir):
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


def test_what_has_no_thought_is_learned_once_in_every_way(tiny_tokenizer):
    """The same example twice is a weight of two that nobody asked for."""
    for document in ("plain text", [Turn("user", "2 + 3?"), Turn("assistant", "", None, "5")],
                     [Turn("user", "Hi"), Turn("assistant", "Hello.")]):
        for target in TARGETS:
            assert len(forms(document, target)) == 1


def test_a_conversation_of_several_turns_has_one_form(tmp_path, tiny_tokenizer, out_dir):
    """A chain in the first turn and a bare answer in the second is a third task."""
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


def test_every_target_has_windows_of_its_own(tiny_world, tiny_tokenizer, out_dir):
    """TRAPS 17: a student of bare answers that finds the windows of the chains."""
    found = {target: open_data(tiny_world.train, tiny_tokenizer, 143, target) for target in TARGETS}
    assert len({data["name"] for data in found.values()}) == len(TARGETS)
    assert len({data["ids"].tobytes() for data in found.values()}) == len(TARGETS)
    for target, data in found.items():
        again = open_data(tiny_world.train, tiny_tokenizer, 143, target)
        assert again["name"] == data["name"] and (again["ids"] == data["ids"]).all()


# --- long and short -------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [Fraction(k, 10) for k in range(11)] + [Fraction(1, 3)], ids=str)
def test_the_most_rows_of_which_the_share_is_long(share):
    """Against all pairs: within half a row of the share; none that meets it exactly is larger."""
    for short, long in itertools.product(range(13), range(13)):
        a, b = share_out(short, long, float(share))
        assert 0 <= a <= short and 0 <= b <= long
        assert abs(b - share * (a + b)) <= Fraction(1, 2)
        exact = [x + y for x in range(short + 1) for y in range(long + 1) if y == share * (x + y)]
        assert a + b >= max(exact)


def traces(short, long):
    """Rows of which `long` have a longer thought, in a mixed order, every row unlike the others."""
    lengths = [3 + i % 4 for i in range(short)] + [20 + i % 7 for i in range(long)]
    order = sorted(range(len(lengths)), key=lambda i: (i * 7919) % 1009)
    return [chat(f"{i}?", "go " * lengths[i], f"{i}") for i in order]


def chosen(path, tokenizer, share, **more):
    """-> (the rows that a training gets, their lengths counted: short, long)."""
    data = open_data(path, tokenizer, 143, long_frac=share, **more)
    found = [(int(text.split("?")[0].removeprefix("<user>")), text.count("go"))
             for text, _ in documents_of(data, tokenizer)]
    return {n for n, _ in found}, (sum(g < 10 for _, g in found), sum(g > 10 for _, g in found))


@pytest.mark.parametrize("share, counts", [
    (0, (60, 0)), (0.2, (60, 15)), (0.25, (60, 20)), (0.5, (60, 60)), (0.75, (20, 60)),
    (1, (0, 60)), (-1, (60, 60))])
def test_long_frac_is_exact(share, counts, tmp_path, tiny_tokenizer, out_dir):
    """A share that is only met on average is another experiment with every seed."""
    path = write(tmp_path / "a.jsonl", traces(60, 60))
    assert chosen(path, tiny_tokenizer, share)[1] == counts


def test_the_chosen_rows_are_those_of_the_file_in_their_order(tmp_path, tiny_tokenizer, out_dir):
    """Rows written again could be read otherwise: bytes, other keys and all."""
    rows = [json.dumps(row | dict(source="é"), ensure_ascii=i % 2 == 0)
            for i, row in enumerate(traces(8, 8))]
    (tmp_path / "a.jsonl").write_text("\n\n".join(rows), encoding="utf-8")  # no last line end
    open_data(tmp_path / "a.jsonl", tiny_tokenizer, 143, long_frac=0.2)
    [path] = (out_dir / "data/windows").glob("a-*.jsonl")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 10 and path.read_bytes().endswith(b"}\n")
    places = [rows.index(line) for line in lines]
    assert places == sorted(places)


def test_a_larger_share_keeps_the_long_rows_of_a_smaller_one(tmp_path, tiny_tokenizer, out_dir):
    """Compared shares differ in what is added, not in everything."""
    path = write(tmp_path / "a.jsonl", traces(60, 60))
    found = [chosen(path, tiny_tokenizer, share)[0] for share in (0, 0.1, 0.2, 0.4)]
    assert all(a < b for a, b in itertools.pairwise(found))


def test_documents_are_counted_before_they_are_chosen(tmp_path, tiny_tokenizer, out_dir):
    """--documents N: the same N rows of the file as without --long-frac."""
    rows = traces(60, 60)
    path = write(tmp_path / "a.jsonl", rows)
    found, (short, long) = chosen(path, tiny_tokenizer, 0.5, documents=30)
    first = [int(row["conversations"][0]["content"][:-1]) for row in rows[:30]]
    assert found <= set(first) and 0 <= short - long <= 1
    assert chosen(path, tiny_tokenizer, -1, documents=30)[0] == set(first)


def test_what_was_chosen_is_found_again_and_never_for_another_share(tmp_path, tiny_tokenizer,
                                                                     out_dir, monkeypatch):
    """Chosen once, or two ranks and a resume might learn from other rows; but of this very file."""
    path = write(tmp_path / "a.jsonl", traces(20, 20))
    first = chosen(path, tiny_tokenizer, 0.2)
    calls, real = Counter(), batches.mixture.write_mixture
    monkeypatch.setattr(batches.mixture, "write_mixture",
                        lambda *rest: (calls.update(n=1), real(*rest)))
    assert chosen(path, tiny_tokenizer, 0.2) == first and not calls
    chosen(path, tiny_tokenizer, 0.3)
    write(path, traces(20, 21))
    assert chosen(path, tiny_tokenizer, 0.2) != first and calls["n"] == 2


def test_a_run_with_long_frac_is_resumed_with_the_same_rows_alone(call, tiny_world, tiny_tokenizer,
                                                                 tmp_path, out_dir):
    """The share is part of what a run is."""
    data = write(tmp_path / "a.jsonl", traces(30, 30))
    flags = tiny_world.flags("distill_reason", data=data, steps=2)
    assert call("train_distill_reason", *flags, "--long-frac=0.2").status == 0
    state = checkpoints.load(out_dir / "run.pt")
    assert state["run_config"]["long_frac"] == 0.2
    again = call("train_distill_reason", *flags, "--long-frac=0.2")
    assert again.status == 0 and "is finished" in again.out
    refused = call("train_distill_reason", *flags)
    assert refused.status == 2 and "long_frac was 0.2, is -1" in refused.err


@pytest.mark.parametrize("rows, words", [
    ([chat(f"{i}?", "go on", "1") for i in range(9)], "9 rows of at most"),  # all alike
    ([{"text": "a"}, {"question": "2?", "answer": "2"}], "2 rows of at most 0 tokens of thought")])
def test_a_file_that_cannot_be_divided_is_refused(rows, words, tmp_path, tiny_tokenizer, out_dir):
    """A share of nothing would train on all of it, or on none, without a word."""
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UserError, match=f"cannot be divided.*{words}.*fix: leave --long-frac out"):
        open_data(path, tiny_tokenizer, 143, long_frac=0.2)
    assert not list(out_dir.glob("data/windows/*"))


def test_long_frac_of_a_folder_of_windows_is_refused(call, tiny_world, tmp_path, out_dir):
    """Windows hold whole documents, long and short: there is nothing left to choose."""
    folder = tmp_path / "windows"
    call("dataset.prepare", f"--input={tiny_world.train}", f"--tokenizer={tiny_world.tokenizer}",
         f"--out={folder}", "--window=143")
    done = call("train_distill_reason", *tiny_world.flags("distill_reason", data=folder),
                "--long-frac=0.2")
    assert done.status == 2 and done.err.count("\n") == 1
    assert "is a folder; expected a file" in done.err


def test_bad_lines_are_named_or_counted_before_the_choice(call, tiny_world, tmp_path, out_dir):
    """The choice reads every line: what it leaves out must be said as everywhere."""
    path = tmp_path / "a.jsonl"
    write(path, traces(9, 9))
    path.write_text(path.read_text(encoding="utf-8") + '{"text": 5}\n', encoding="utf-8")
    flags = tiny_world.flags("distill_reason", data=path, steps=1, long_frac=0.25)
    done = call("train_distill_reason", *flags)
    assert done.status == 2 and "a.jsonl:19: content that is not a string" in done.err
    done = call("train_distill_reason", *flags, "--skip-bad-lines")
    assert done.status == 0 and "1 bad lines: content that is not a string" in done.out
    assert "9 of 9 short rows and 3 of 9 with over" in done.out and "12 documents" in done.out
