"""Claims about eval.py: every figure of the table against a number made another way."""
import json
import math

import pytest
import torch
from torch.nn import functional as F

import common
import eval as evaluation
from dataset.formats import Turn, encode_document, read_documents
from eval import judge, tally, wilson


@pytest.fixture
def report(call, tiny_world, out_dir):
    """A function: `report(checkpoints, *flags)` runs eval.py -> (OUT.json, OUT.md, what it printed)."""
    def run(checkpoints, *flags):
        done = call("eval", *checkpoints, f"--data={tiny_world.val}", f"--out={out_dir / 'report'}",
                    "--speed=false", "--questions=6", "--max-new-tokens=12", *flags)
        assert done.status == 0, done.err
        return (json.loads((out_dir / "report.json").read_text(encoding="utf-8")),
                (out_dir / "report.md").read_text(encoding="utf-8"), done.out)
    return run


def test_the_figures_equal_those_of_the_documents_one_by_one(report, tiny_world, tiny_tokenizer):
    """Packing, masks, batches and sums must not reach the table; bits are per byte of counted text."""
    results = report([tiny_world.teacher, tiny_world.init])[0]["results"]
    teacher, model = (common.load_model(path)[0] for path in (tiny_world.teacher, tiny_world.init))
    ce = kl = agree = tokens = size = 0
    for _, document in read_documents(tiny_world.val):
        ids, mask = encode_document(tiny_tokenizer, document)
        keep, x = torch.tensor(mask[1:]) > 0, torch.tensor([ids[:-1]])
        labels, logits, theirs = torch.tensor(ids[1:])[keep], model(x)[0][keep], teacher(x)[0][keep]
        log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(theirs, -1)
        ce += F.nll_loss(log_q, labels, reduction="sum").item()
        kl += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
        agree += (logits.argmax(-1) == theirs.argmax(-1)).sum().item()
        tokens += len(labels)
        size += len(tiny_tokenizer.decode(labels).encode())
    assert results[1]["counted_tokens"] == tokens
    assert results[1]["ce"] == pytest.approx(ce / tokens, rel=1e-5)
    assert results[1]["kl"] == pytest.approx(kl / tokens, rel=1e-5)
    assert results[1]["agreement"] == agree / tokens
    assert results[1]["bits_per_byte"] == pytest.approx(ce / math.log(2) / size, rel=1e-5)
    assert results[0]["kl"] == 0 and results[0]["agreement"] == 1  # the teacher against itself


def test_the_table_the_json_and_the_answers_are_written(report, tiny_world):
    """One table for people, one file for programs, and what the models really said."""
    found, text, printed = report([tiny_world.teacher, tiny_world.init], "--samples=2")
    assert [r["model"] for r in found["results"]] == ["teacher", "init"]
    assert all(r["parameters"] == 63_744 and r["n"] == 6 for r in found["results"])
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4 and all(row in printed for row in rows)
    assert text.count("### Question") == 2 and text.count("- teacher (") == 2
    question = next(read_documents(tiny_world.val))[1][0].content
    assert question in text and "Right answer: **3**" in text


def test_a_row_holds_what_a_claim_needs(report, call, tiny_world, out_dir):
    """A figure without its config, seed, data and machine cannot be made again."""
    call("train_pretrain", *tiny_world.flags("pretrain", name="student", seed=5, steps=2))
    rows = out_dir / "rows.jsonl"
    for _ in range(2):
        report([out_dir / "student.pt"], f"--row={rows}", "--recipe=alone")
    first, second = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    assert first["recipe"] == "alone" and first["seed"] == 5 and first["config"]["steps"] == 2
    assert first["inputs"]["data_sha256"] and first["test_sha256"] and first["versions"]["torch"]
    assert first["tokens"] > first["supervised"] > 0 and first["train_seconds"] > 0
    assert first["metrics"]["window"] == 143
    assert first["metrics"]["ce"] == second["metrics"]["ce"] and first["val_ce"] > 0


def test_models_of_other_tokenizers_have_no_kl(report, tiny_world, tmp_path):
    """TRAPS 18: a KL between distributions over different pieces is a number without a meaning."""
    from test_bad_input import write_checkpoint
    from tokenizer import Tokenizer
    from tokenizer.train import train
    other = Tokenizer(train(["Hugo cooks rice and beans; 14 jugs fill up, 29 do not."] * 9, 310))
    path = write_checkpoint(tmp_path / "other.pt", other)
    results = report([tiny_world.teacher, path])[0]["results"]
    assert "kl" in results[0] and "kl" not in results[1] and "agreement" not in results[1]
    assert results[1]["bits_per_byte"] > 0


def test_all_models_are_scored_at_the_smallest_window_that_one_was_trained_at(report, call, tiny_world,
                                                                             out_dir):
    """Beyond its window a model has learned no position: the score would be of extrapolation."""
    for name, window in (("short", 100), ("long", 143)):
        call("train_pretrain", *tiny_world.flags("pretrain", name=name, window=window, steps=1))
    found, text, _ = report([out_dir / "long.pt", out_dir / "short.pt"])
    assert [r["window"] for r in found["results"]] == [100, 100] and "windows of 100" in text
    assert report([out_dir / "long.pt"])[0]["results"][0]["window"] == 143
    assert report([out_dir / "long.pt"], "--window=120")[0]["results"][0]["window"] == 120


def test_every_answer_of_every_model_is_kept(report, tiny_world, out_dir):
    """The exercise "by number of operations" needs them one by one."""
    report([tiny_world.teacher, tiny_world.init])
    rows = [json.loads(line) for line in (out_dir / "report.answers.jsonl").open(encoding="utf-8")]
    assert len(rows) == 6 and all(set(row["answers"]) == {"teacher", "init"} for row in rows)
    assert [row["right"] for row in rows] == [d[-1].answer for _, d in read_documents(tiny_world.val)]


# --- answers --------------------------------------------------------------------------------------

@pytest.mark.parametrize("right, n, low, high", [
    (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (90, 100, 0.8256, 0.9448),
    (1, 1, 0.2065, 1.0), (0, 0, 0.0, 1.0), (920, 1000, 0.9015, 0.9353)])
def test_wilson_intervals_equal_the_published_formula(right, n, low, high):
    """The normal interval of 10 right of 10 is 100 % to 100 %: no uncertainty left, and wrong."""
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def say(tokenizer, text, end=True):
    """Ids of a response whose tags are control pieces."""
    ids = []
    for part in text.replace("<", "\n<").replace(">", ">\n").split("\n"):
        tags = {"<think>": tokenizer.think, "</think>": tokenizer.end_think,
                "<answer>": tokenizer.answer, "</answer>": tokenizer.end_answer}
        ids += [tags[part]] if part in tags else tokenizer.encode(part)
    return ids + [tokenizer.end] * end


@pytest.mark.parametrize("text, end, verdict, well_formed", [
    ("<think>3 + 4 = 7.</think><answer>7</answer>", True, "ok", True),
    ("<think>3 + 4 = 7.</think><answer>7</answer>", False, "truncated", False),
    ("<think>3 + 4 = 8.</think><answer>8</answer>", True, "wrong answer", True),
    ("<answer>7</answer>", True, "ok", False),
    ("3 + 4 = 7", True, "ok", False),
    ("<think>3 + 4 = 7.</think><answer>7 or 8</answer>", True, "wrong answer", True),
    ("<think>7</think><answer></answer>", True, "no answer", True),
    ("", True, "no answer", False)])
def test_an_answer_is_judged_by_its_answer_and_its_end(text, end, verdict, well_formed, tiny_tokenizer):
    """An answer that ran into the limit is wrong, even where the right number stands in it."""
    found = judge(tiny_tokenizer, say(tiny_tokenizer, text, end), Turn("assistant", "", None, "7"), "cot")
    assert (found["verdict"], found["well_formed"], found["ended"]) == (verdict, well_formed, end)


@pytest.mark.parametrize("reply, end, exact, form", [
    ("<think>So.</think><answer>7</answer>", True, 1 / 6, 1.0),   # always the same
    ("<think>So.</think><answer>7</answer>", False, 0.0, 0.0)])   # never ends
def test_a_model_that_always_says_the_same_or_never_ends_scores_so(reply, end, exact, form, report,
                                                                  tiny_world, tiny_tokenizer,
                                                                  monkeypatch):
    """Constant models are where a score that is always good, or a loop that never ends, shows."""
    answers = [document[-1].answer for _, document in read_documents(tiny_world.val)]
    assert answers.count("7") == 1 and len(answers) == 6
    ids = say(tiny_tokenizer, reply, end)
    monkeypatch.setattr(evaluation, "generate", lambda model, prompts, *_: [ids for _ in prompts])
    [result] = report([tiny_world.init])[0]["results"]
    assert result["exact"] == pytest.approx(exact) and result["format"] == form
    assert result["exact_interval"] == pytest.approx(wilson(round(6 * exact), 6))
    assert result["verdicts"] == ({"ok": 1, "wrong answer": 5} if end else {"truncated": 6})


def test_a_question_longer_than_the_context_is_wrong_and_said_so(report, tiny_world, tmp_path):
    """Cut or left out, it would change n: every model is asked all the questions."""
    path = tmp_path / "test.jsonl"
    long = {"question": "How many? " * 99, "answer": "#### 5"}
    path.write_text(tiny_world.val.read_text(encoding="utf-8") + json.dumps(long) + "\n",
                    encoding="utf-8")
    [result] = report([tiny_world.init], f"--data={path}", "--questions=7")[0]["results"]
    assert result["n"] == 7 and result["verdicts"]["prompt too long"] == 1


def test_tally_counts(tiny_tokenizer):
    """The sums under the table, by hand."""
    replies = [dict(verdict=v, well_formed=w, tokens=t) for v, w, t in
               (("ok", True, 10), ("ok", False, 20), ("truncated", False, 60), ("ok", True, 10))]
    found = tally(replies)
    assert (found["n"], found["exact"], found["format"], found["answer_tokens"]) == (4, 0.75, 0.5, 25)
    assert found["verdicts"] == {"ok": 3, "truncated": 1}


def test_speed_is_measured_for_every_model(tiny_world):
    """A prompt or an answer longer than the smallest context would fail in the attention."""
    models = [common.load_model(path)[0] for path in (tiny_world.teacher, tiny_world.init)]
    found = evaluation.speeds(models, rounds=1, new_tokens=8)
    assert len(found) == 2 and all(f["prefill"] > 0 and f["decode"] > 0 for f in found)


# --- talking --------------------------------------------------------------------------------------

def test_prompt_answers_once_and_chat_goes_on_after_a_long_question(call, tiny_world, monkeypatch):
    """--chat must survive a question that does not fit, and end with the input."""
    done = call("eval", tiny_world.teacher, "--prompt", "2 + 3?", "--max-new-tokens", 5)
    assert done.status == 0 and done.out
    lines = iter(["Why? " * 99, "2 + 3?", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    done = call("eval", tiny_world.teacher, "--chat", "--max-new-tokens", 5)
    assert done.status == 0 and "error: the prompt is longer than the context" in done.out
    assert next(lines, None) is None


def test_the_likeliest_tokens_are_those_of_a_full_pass(call, tiny_world, tiny_tokenizer):
    """What a class sees as the teacher's distribution must be the teacher's distribution."""
    done = call("eval", tiny_world.teacher, "--complete", "Mia has", "--max-new-tokens", 3, "--top", 2)
    assert done.status == 0
    model = common.load_model(tiny_world.teacher)[0]
    ids = tiny_tokenizer.encode("Mia has")
    lines = [line for line in done.out.splitlines() if "<-" in line]
    for line in lines:
        best = model(torch.tensor([ids]))[0, -1].softmax(-1).topk(2)
        token = best.indices[0].item()
        name = repr(tiny_tokenizer.decode([token], show_control=True))
        assert line.split(" <- ")[0].strip() == name and f"{name} {best.values[0]:.3f}" in line
        ids.append(token)
    assert len(lines) == 3
