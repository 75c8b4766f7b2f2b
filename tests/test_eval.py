"""Claims about eval.py: every figure of the table equals a number computed in another way."""
import json
import math
from unittest.mock import Mock

import pytest
import torch
from torch.nn import functional as F

import checkpoints
import eval as evaluation
import speed
from dataset.formats import Turn, encode_document, read_documents
from conftest import say, write_checkpoint
from metrics import chrf, table, wilson


@pytest.fixture
def report(call, tiny_world, out_dir):
    """Returns a function: `report(checkpoints, *flags)` runs eval.py -> (results, OUT.md, rows of answers)."""
    def run(checkpoints, *flags):
        done = call("eval", *checkpoints, f"--data={tiny_world.val}", f"--out={out_dir / 'report'}",
                    "--no-speed", "--questions=6", "--max-new-tokens=12", *flags)
        assert done.status == 0, done.err
        figures, text, rows = ((out_dir / f"report.{end}").read_text(encoding="utf-8")
                               for end in ("json", "md", "answers.jsonl"))
        assert all(line in done.out for line in text.splitlines() if line.startswith("|"))
        return json.loads(figures)["results"], text, [*map(json.loads, rows.splitlines())]
    return run


@pytest.fixture
def written(monkeypatch):
    """Returns a function: after `written(ids)` every model writes these ids -> the mock with the calls."""
    def write(ids):
        asked = Mock(side_effect=lambda model, prompts, *_: [ids for _ in prompts])
        monkeypatch.setattr(evaluation, "generate", asked)
        return asked
    return write


def test_the_figures_equal_those_of_the_documents_one_by_one(report, tiny_world, tiny_tokenizer):
    """Packing, masks, batches or sums could change a figure. Bits are per byte of the counted text."""
    paths = [tiny_world.teacher, tiny_world.init]
    [itself, found], _, _ = report(paths)
    teacher, model = (checkpoints.load_model(path)[0] for path in paths)
    ce = kl = agree = tokens = size = 0
    bins = [0.0] * 15  # sum of hits - confidence
    for _, document in read_documents(tiny_world.val):
        ids, mask = encode_document(tiny_tokenizer, document)
        keep, x = torch.tensor(mask[1:]) > 0, torch.tensor([ids[:-1]])
        labels, logits, theirs = torch.tensor(ids[1:])[keep], model(x)[0][keep], teacher(x)[0][keep]
        log_q, log_p = F.log_softmax(logits, -1), F.log_softmax(theirs, -1)
        ce += F.nll_loss(log_q, labels, reduction="sum").item()
        kl += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
        agree += (logits.argmax(-1) == theirs.argmax(-1)).sum().item()
        for q, label in zip(log_q.exp().tolist(), labels.tolist()):
            bins[min(int(max(q) * 15), 14)] += (q.index(max(q)) == label) - max(q)
        tokens += len(labels)
        size += len(tiny_tokenizer.decode(labels).encode())
    assert found["counted_tokens"] == tokens and found["agreement"] == agree / tokens
    for key, value in dict(ce=ce / tokens, kl=kl / tokens, ece=sum(map(abs, bins)) / tokens,
                           bits_per_byte=ce / math.log(2) / size).items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    assert itself["kl"] == 0 and itself["agreement"] == 1  # the teacher against itself


def test_the_report_has_the_tables_and_the_answers(report, tiny_world):
    """A report needs a table for people, a file for programs, and the models' own answers."""
    results, text, rows = report([tiny_world.teacher, tiny_world.init])
    assert [(r["model"], r["parameters"], r["n"]) for r in results] == [("teacher", 63_744, 6), ("init", 63_744, 6)]
    assert text.count("### Question") == text.count("- teacher (") == 5
    documents = [document for _, document in read_documents(tiny_world.val)]
    assert documents[0][0].content in text and "Reference: **3**" in text
    assert [row["right"] for row in rows] == [document[-1].answer for document in documents]
    assert all(set(row["answers"]) == {"teacher", "init"} for row in rows)


def test_a_row_holds_what_a_claim_needs(report, call, tiny_world, out_dir):
    """A figure without its config, seed, data and machine cannot be reproduced. One seed must give the same samples."""
    call("train_pretrain", *tiny_world.flags("pretrain", name="student", seed=5, steps=2))
    rows = out_dir / "rows.jsonl"
    report([out_dir / "student.pt"], f"--row={rows}", "--recipe=alone")
    three, again, four = (report([out_dir / "student.pt"], f"--row={rows}", "--samples=2",
                                 "--temperature=1", f"--seed={seed}")[2] for seed in (3, 3, 4))
    for window, used in ((131, 131), (9999, 160)):  # the models' context is 160
        assert report([tiny_world.init], f"--window={window}")[0][0]["window"] == used
    assert three == again != four and len(three[0]["answers"]["student"]["samples"]) == 2
    first, second, *_ = map(json.loads, rows.read_text(encoding="utf-8").splitlines())
    assert first["recipe"] == "alone" and first["seed"] == 5 and first["config"]["steps"] == 2
    assert first["inputs"]["data_sha256"] and first["test_sha256"] and first["versions"]["torch"]
    assert first["tokens"] > first["supervised"] > 0 and first["metrics"]["window"] == 143
    assert all(first[key] > 0 for key in ("val_ce", "train_seconds", "best_step"))
    assert second["recipe"] == "student" and second["metrics"]["vote"]["samples"] == 2
    assert second["evaluation"] == first["evaluation"] | dict(temperature=1, seed=3)


def test_the_tables_by_hand():
    """Only 2 problems need an interval. A teacher has no KL with itself. The summary compares with the first model."""
    first = dict(model="teacher", teacher="teacher", kl=0.0, exact=0.8, parameters=1000, decode1=100,
                 decode32=500, suites=dict(clean=dict(n=2, exact=0.5, exact_interval=wilson(1, 2),
                                                      drop=0.25, p=1.0),
                                           hostile=dict(n=9, ended=8, refused=1)))
    other = dict(model="student", teacher="teacher", kl=0.5, exact=0.6, parameters=250, decode1=250, decode32=2000)
    assert evaluation.tables([first]).splitlines()[-6:-4] == [
        "| clean | 50.0% (9.5-90.5), -25.0, p 1 |", "| hostile | 8 of 9 ended, 1 too long |"]
    assert "chrF" not in evaluation.tables([first])  # only for open replies
    columns = [("KL:", evaluation.figure("kl", ".2f")), ("ce:", evaluation.figure("ce", ".2f"))]
    assert table([other, first | dict(ce=1)], columns).splitlines() == [
        "| KL | ce |", "|---:|---:|", "| 0.50 | - |", "| - | 1.00 |"]
    assert evaluation.summary([first, other]).splitlines()[1:-1] == [
        "teacher          80.0% right",
        "student          60.0% right, 25% of the parameters, 2.5 times as fast"]
    assert evaluation.summary([dict(model="prose")]) == ""


def test_models_of_other_tokenizers_have_no_kl(report, tiny_world, other_tokenizer, tmp_path):
    """TRAPS 18: a KL between distributions over different tokens is a number without a meaning."""
    results, _, _ = report([tiny_world.teacher, write_checkpoint(tmp_path / "other.pt", other_tokenizer)])
    assert "kl" in results[0] and "kl" not in results[1] and "agreement" not in results[1]
    assert results[1]["bits_per_byte"] > 0


def test_all_models_are_scored_at_the_smallest_trained_window(report, call, tiny_world, out_dir):
    """Beyond its training window a model has learned no positions, so the score would measure extrapolation."""
    for name, window in (("short", 100), ("long", 143)):
        call("train_pretrain", *tiny_world.flags("pretrain", name=name, window=window, steps=1))
    results, text, _ = report([out_dir / "long.pt", out_dir / "short.pt"])
    assert [r["window"] for r in results] == [100, 100] and "windows of 100" in text
    assert report([out_dir / "long.pt"])[0][0]["window"] == 143


def test_suites_are_paired_with_their_own_clean_problems(written, tiny_world, tiny_tokenizer):
    """Without pairing, a suite of fewer or easier problems would look like robustness."""
    def suite(answers, *sources, question="2 + 3?"):
        return [dict(question=question, answer=f"#### {answer}", source=source)
                for answer, source in zip(answers, sources)]
    written(say(tiny_tokenizer, "<think>So.</think><answer>7</answer>"))
    suites = dict(clean=suite("775", "a", "b", "c"), names=suite("59", "a", "b"),
                  typos=suite("75", "c", "a"),  # wrong -> right, right -> wrong
                  hostile=suite("00", "", "", question="Why? " * 99))
    model = checkpoints.load_model(tiny_world.teacher)[0]
    found = evaluation.robustness(model, tiny_tokenizer, suites, "cot", evaluation.Config())
    assert found["suites"]["clean"]["exact"] == 2 / 3
    for name, drop, p in (("clean", 0, 1), ("typos", 0, 1), ("names", 1, 0.5)):
        assert (found["suites"][name]["drop"], found["suites"][name]["p"]) == (drop, p)
    assert found["suites"]["hostile"] == dict(n=2, ended=0, refused=2) and found["suite_mean"] == 0.25
    assert found["suites_right"] == dict(clean="110", typos="0-1", names="00-")
    few = evaluation.robustness(model, tiny_tokenizer, suites, "cot", evaluation.Config(questions=2))
    assert few["suites_right"] == dict(clean="11", typos="0-", names="00")  # the same problems in each suite


def test_an_answer_is_judged_by_its_answer_and_its_end(tiny_tokenizer):
    """A cut-off answer is wrong, even with the right number. Answers without a number must be compared as text."""
    t = tiny_tokenizer
    for said, wanted, verdict in (("paris.", "Paris", "ok"), ("Rome", "Paris", "wrong answer"),
                                  ("It is Paris.", "Paris", "ok"), ("It is 14.", "14", "ok")):
        assert evaluation.judge(t, say(t, said), Turn("assistant", wanted), "cot")["verdict"] == verdict
    for text, end, verdict, well_formed in (
            ("<think>3 + 4 = 7.</think><answer>7</answer>", True, "ok", True),
            ("<think>3 + 4 = 7.</think><answer>7</answer>", False, "truncated", False),
            ("<think>3 + 4 = 8.</think><answer>8</answer>", True, "wrong answer", True),
            ("<answer>7</answer>", True, "ok", False), ("3 + 4 = 7", True, "ok", False),
            ("<think>3 + 4 = 7.</think><answer>7 or 8</answer>", True, "wrong answer", True),
            ("<think></think><answer></answer>", True, "no answer", True),
            ("<answer><answer><think></answer>", True, "no answer", False),
            ("", True, "no answer", False)):
        found = evaluation.judge(t, say(t, text, end), Turn("assistant", "", None, "7"), "cot")
        assert (found["verdict"], found["well_formed"], found["ended"]) == (verdict, well_formed, end)


def test_a_constant_or_endless_model_scores_so(written, report, tiny_world, tiny_tokenizer):
    """A constant model shows whether a score is always good, and an endless one whether the loop ends."""
    for end in (True, False):
        ids = say(tiny_tokenizer, "<think>So.</think><answer>7</answer>", end)
        written(ids)
        [result], _, _ = report([tiny_world.init])
        assert result["exact"] == pytest.approx(end / 6) and result["format"] == end
        assert result["exact_interval"] == pytest.approx(wilson(int(end), 6))
        assert result["verdicts"] == (dict(ok=1) | {"wrong answer": 5} if end else dict(truncated=6))
        assert result["limit"] == 1 - end and result["answer_tokens"] == len(ids)


def test_speed_and_memory_are_a_models_own(tiny_world, tmp_path):
    """A child inherits ru_maxrss: eval.py's own memory. FAULTS 11: one process killed for memory lost all figures."""
    ballast = torch.ones(400 * 2**20 // 4)  # 400 MB in this process
    questions = [document for _, document in read_documents(tiny_world.val)][:3]
    dead, one = speed.measure([tmp_path / "gone.pt", tiny_world.init], questions, rounds=1)
    assert dead == {} and set(one) == {"decode1", "decode32", "first_ms", "p50_ms", "peak_mb"}
    assert all(value > 0 for value in one.values())
    assert 50 < one["peak_mb"] < 1e-6 * speed.peak_memory() - 200 and len(ballast)


def test_the_report_is_there_before_speed_is_measured(call, tiny_world, out_dir, monkeypatch):
    """FAULTS 11: half an hour of answers was lost when the last, optional step was killed."""
    monkeypatch.setattr(speed, "measure", Mock(side_effect=KeyboardInterrupt))
    done = call("eval", tiny_world.init, f"--data={tiny_world.val}", f"--out={out_dir / 'report'}",
                "--max-new-tokens=4")
    assert done.status == 130 and (out_dir / "report.answers.jsonl").exists()
    [result] = json.loads((out_dir / "report.json").read_text(encoding="utf-8"))["results"]
    assert result["n"] == 6 and f"| {result['ce']:.4f} |" in (out_dir / "report.md").read_text()


def test_a_vote_by_hand(report, tiny_world, tiny_tokenizer, tmp_path, monkeypatch):
    """Of four samples to 3 questions, 2, 1 and 3 are right. Cut-off answers do not vote, but their tokens count."""
    right = "<think>So.</think><answer>7</answer>"
    wrong, other = right.replace("7", "8"), right.replace("7", "9")
    cut_off = say(tiny_tokenizer, wrong, end=False)
    samples = iter([cut_off, *(say(tiny_tokenizer, text) for text in (
        wrong, right, right, wrong, right, wrong, other, other, right, right, right))])

    def generate(model, prompts, *_, temperature=0, generator=None):
        return [next(samples) if temperature else say(tiny_tokenizer, right) for _ in prompts]
    monkeypatch.setattr(evaluation, "generate", generate)
    path = tmp_path / "test.jsonl"
    path.write_text('{"question": "3 + 4?", "answer": "#### 7"}\n' * 3, encoding="utf-8")
    [result], text, rows = report([tiny_world.init], f"--data={path}", "--samples=4", "--temperature=0.7")
    vote, size = result["vote"], len(say(tiny_tokenizer, right))
    assert result["exact"] == 1 and result["answer_tokens"] == size  # from greedy answers
    assert vote["majority"] == 2 / 3 and vote["majority_interval"] == pytest.approx(wilson(2, 3))
    assert dict(vote["best_of"]) == pytest.approx({1: 6 / 12, 2: (5 / 6 + 3 / 6 + 1) / 3, 4: 1})
    assert vote["tokens"] == pytest.approx((12 * size - 1) / 3)
    assert "| init | 100.0% (43.9-100.0) | 66.7% (20.8-93.9) | 50.0% | 77.8% | 100.0% | " in text
    assert rows[1]["answers"]["init"]["samples"] == ["8", "7", "8", "9"]


def test_open_replies_are_compared_with_the_reference_and_the_teacher(report, tiny_world, tiny_tokenizer,
                                                                      tmp_path, monkeypatch):
    """The last number of a Markdown list was its answer, so a chat about another topic had "exact 40 %"."""
    told = {tiny_world.teacher: "It is Rome.", tiny_world.init: "It is Rome!"}
    models = {checkpoints.load_model(path)[0].embed_tokens.weight.sum().item(): text for path, text in told.items()}
    monkeypatch.setattr(evaluation, "generate", lambda model, prompts, *_, **sampling: [
        say(tiny_tokenizer, models[model.embed_tokens.weight.sum().item()])] * len(prompts))
    path, steps = tmp_path / "test.jsonl", "1. Sit.\n2. Add 3"
    for rows, exact, flags in (([steps, "Rome", "Rome"], "100.0% (34.2-100.0) of 2", ["--samples=2", "--temperature=1"]),
                               ([steps], "-", [f"--teacher={tiny_world.teacher}"])):
        path.write_text("".join(json.dumps(dict(prompt="Go?", completion=text)) + "\n" for text in rows))
        results, text, _ = report([*told][-len(rows):], f"--data={path}", *flags)
        head, _, *lines = text.split("\n\n")[2].splitlines()
        cells = [dict(zip(head.split(" | "), line.split(" | "))) for line in lines]
        near = [chrf("It is Rome!", other) for other in (steps, "It is Rome.")]
        assert [results[-1][key] for key in ("chrf", "to_teacher")] == pytest.approx(near)
        assert cells[-1]["exact"] == exact and cells[-1]["chrF"] == f"{near[0]:.1f}"
        assert "to_teacher" not in results[0] or flags and "exact" not in results[0] and "ight" not in text


def test_flags_that_cannot_be_are_refused_before_the_work(call, tiny_world, tmp_path, monkeypatch):
    """A vote among equal greedy answers would look like a result. A report must not replace a user's own file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.json").write_text('{"mine": 1}', encoding="utf-8")
    for flag in ("--samples=4", "--temperature=0.7", "--batch=0", "--out=rows", "--recipe=mine",
                 "--window=-1"):
        assert call("eval", tiny_world.init, f"--data={tiny_world.val}", "--no-speed", flag).status == 2
    assert (tmp_path / "rows.json").read_text() == '{"mine": 1}'


def test_a_target_begins_the_response(report, written, tiny_world, tiny_tokenizer):
    """--target tells a model with two formats which one to use. The tag must count as a token of the answer."""
    ids = tiny_tokenizer.encode("7") + [tiny_tokenizer.end]
    asked = written(ids)
    for target, first in (("cot", "<think>"), ("answer", "<answer>"), ("full", "")):
        [result], _, rows = report([tiny_world.init], f"--target={target}")
        texts = [tiny_tokenizer.decode(prompt, show_control=True) for prompt in asked.call_args.args[1]]
        assert {text.rpartition("<assistant>")[2] for text in texts} == {first}
        assert all(row["answers"]["init"]["response"] == first + "7<end>" for row in rows)
        assert result["answer_tokens"] == len(ids) + bool(first)


def test_by_itself_a_model_is_scored_as_it_was_trained(report, call, tiny_world, out_dir):
    """A model trained on both formats must get the ce of chains, or it cannot be compared with others."""
    for trained, asked in (("answer", "answer"), ("multi", "cot")):
        call("train_distill_reason", *tiny_world.flags("distill_reason", name=trained, target=trained, steps=1))
        [found], [told], [other] = (report([out_dir / f"{trained}.pt"], *flag)[0] for flag in (
            [], [f"--target={asked}"], ["--target=full"]))
        assert found["ce"] == told["ce"] and found["counted_tokens"] == told["counted_tokens"]
        assert other["counted_tokens"] != found["counted_tokens"]


def test_an_answer_does_not_depend_on_its_neighbours(report, tiny_world, tmp_path):
    """One long question left no context for its batch: exact was 0 %. A question over the context counts as wrong."""
    path, answers = tmp_path / "test.jsonl", []
    long = [json.dumps({"question": "How many? " * n, "answer": "#### 5"}) for n in (24, 99)]
    path.write_text(tiny_world.val.read_text(encoding="utf-8") + "\n".join(long), encoding="utf-8")
    for batch in (1, 16):
        [result], _, rows = report([tiny_world.teacher], f"--data={path}", "--questions=8",
                                   f"--batch={batch}", "--max-new-tokens=60")
        assert result["n"] == 8 and result["verdicts"]["prompt too long"] == 1
        answers.append(rows)
    assert answers[0] == answers[1]


def test_two_models_of_one_file_name_are_told_apart(report, tiny_world, tmp_path):
    """Of a/m.pt and b/m.pt, one was missing among the answers, or was taken for the other's teacher."""
    paths = [tmp_path / "a/m.pt", tmp_path / "b/m.pt"]
    for path, source in zip(paths, (tiny_world.teacher, tiny_world.init)):
        path.parent.mkdir()
        path.write_bytes(source.read_bytes())
    [result], _, _ = report(paths[1:], f"--teacher={paths[0]}")
    assert result["model"] != result["teacher"] and result["kl"] > 0
    assert len(report(paths)[2][0]["answers"]) == 2
