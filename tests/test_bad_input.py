"""A user's mistake ends in one clear line on stderr and status 2, without a traceback or lost files."""
import pytest
import torch

import checkpoints
import common
from conftest import write_checkpoint


@pytest.fixture
def refused(call):
    """Returns a function: `refused("eval", *flags)` runs a script, checks status 2 -> its one error line."""
    def run(name, *flags):
        done = call(name, *flags)
        assert done.status == 2 and done.err.startswith("error: ") and done.err.count("\n") == 1, done
        return done.err
    return run


@pytest.mark.parametrize("flag", [
    "--stepz=3", "--steps=0", "--lr=0", "--lr=nan", "--size=7b", "--dtype=fp8", "--window=161", "--batch=0",
    "--accumulate=3", "--accumulate=0", "--eval-every=0", "--warmup=-1", "--weight-decay=-1",
    "--seed=-1", "--documents=-1", "--eval-windows=-1", "--alpha=1.5", "--temperature=0", "--beta=1.1", "--val=",
    "--skew=1", "--beta=0.3", "--skew=0.3",
    *(f"--init-from-teacher={blocks}" for blocks in ("0,1", "1,5", "3,1", "1,1", "x", "1,"))])
def test_a_wrong_flag_or_value_is_named(flag, refused, tiny_world):
    """A wrong value divides by zero, raises the loss, fails an hour later, or orders a student's blocks wrongly."""
    assert flag.partition("=")[0] in refused("train_distill_logits", *tiny_world.flags("distill_logits"), flag)


@pytest.mark.parametrize("script, flag", [
    ("onpolicy", "--on-policy-share=1.1"), ("onpolicy", "--max-new-tokens=0"), ("reason", "--tag-weight=0"),
    ("onpolicy", "--sample-temperature=-1"), ("features", "--hidden-weight=-1"),
    ("features", "--relation-weight=nan"), ("reason", "--target=full"), ("responses", "--target=cot"),
    *(("features", f"--relation-heads={heads}") for heads in (5, 0, -1))])  # 64 channels are not five heads
def test_a_wrong_value_of_a_scripts_own_knob_is_named(script, flag, refused, tiny_world):
    """A share of 1.1 is more than all windows; a weight below 0 pushes the student away from the teacher."""
    flags = tiny_world.flags(f"distill_{script}")
    assert flag.partition("=")[0] in refused(f"train_distill_{script}", *flags, flag)
    flags = tiny_world.flags("distill_features", logits_weight=0, hidden_weight=0, relation_weight=0, relation_heads=None)
    assert "weights are 0" in refused("train_distill_features", *flags)  # it would train on no loss
    assert "65,535" in refused("train_pretrain", *tiny_world.flags("pretrain"), "--window=65536")


@pytest.mark.parametrize("script, off, flag", [
    ("logits", "alpha", "temperature=2"), ("logits", "alpha", "divergence=jsd"), ("features", "logits_weight", "alpha=1"),
    ("features", "hidden_weight", "hidden-loss=mse"), ("features", "hidden_weight", "hidden-layers=last"),
    ("features", "relation_weight", "relation-heads=2"), ("features", "relation_weight", "relation-layers=last"),
    ("onpolicy", "on_policy_share", "max-new-tokens=9"), ("onpolicy", "on_policy_share", "sample-temperature=1")])
def test_a_flag_of_a_part_that_is_off_is_named(script, off, flag, refused, tiny_world):
    """FAULTS 35: whoever tunes a flag that has no effect measures only noise."""
    changes = {off: 0, "relation_heads": None, "max_new_tokens": None}
    said = refused(f"train_distill_{script}", *tiny_world.flags(f"distill_{script}", **changes), f"--{flag}")
    assert f"--{flag.partition('=')[0]} " in said and f"--{off.replace('_', '-')} above 0" in said


@pytest.mark.parametrize("script, flag, command", [
    ("pretrain", "data", "speedrun.sh"), ("pretrain", "val", "speedrun.sh"), ("pretrain", "init", "speedrun.sh"),
    ("pretrain", "tokenizer", "tokenizer/train.py"), ("distill_logits", "teacher", "speedrun.sh"),
    ("distill_logits", "cache", "teacher_cache.py")])
def test_a_missing_file_says_which_command_makes_it(script, flag, command, refused, tiny_world, tmp_path):
    """A missing file is often a new user's first error. The message must say what to do."""
    path = tmp_path / f"{flag}.jsonl"
    text = refused(f"train_{script}", *tiny_world.flags(script, **{flag: path}))
    assert f"{flag}.jsonl" in text and command in text
    if flag in ("data", "val"):
        path.touch()
        assert f"{flag}.jsonl is empty" in refused(f"train_{script}", *tiny_world.flags(script, **{flag: path}))


def test_truncated_or_foreign_checkpoints_are_refused_and_kept(refused, tiny_world, tmp_path, tiny_tokenizer, out_dir):
    """A traceback helps nobody, a half-read file is random weights, a new run destroys what could be recovered."""
    whole = write_checkpoint(tmp_path / "whole.pt", tiny_tokenizer).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for name, content in {"cut off.pt": whole[:len(whole) // 2], "text.pt": b"no checkpoint\n" * 99,
                          "a bit flipped.pt": flipped, "model.gguf": b"x"}.items():  # FAULTS 28
        (tmp_path / name).write_bytes(content)
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "other project.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled module.pt")  # loading it would run code
    (tmp_path / "huggingface").mkdir()
    write_checkpoint(tmp_path / "wrong vocabulary.pt", tiny_tokenizer, vocab_size=400)
    paths = [p for p in sorted(tmp_path.iterdir()) if p.name not in ("whole.pt", "out")]
    assert len(paths) == 8
    for path in paths:
        assert path.name in refused("train_pretrain", *tiny_world.flags("pretrain", init=path))
        assert path.name in refused("train_distill_logits", *tiny_world.flags("distill_logits", teacher=path))
        if path.suffix == ".pt" and path.name != "wrong vocabulary.pt":
            (out_dir / "run.pt").write_bytes(path.read_bytes())
            refused("train_pretrain", *tiny_world.flags("pretrain"))
            assert (out_dir / "run.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change, words", [
    (lambda state: state["model"].pop("norm.weight"), "norm.weight"),
    (lambda state: state["model"].update(extra=torch.ones(1)), "extra"),
    (lambda state: state["model"].update({"norm.weight": torch.ones(65)}), "norm.weight"),
    (lambda state: state["model_config"].update(n_kv_heads=3), "[96, 64]"),
    (lambda state: state["model_config"].update(rope="linear"), "rope"),
    (lambda state: state.update(tokenizer="text"), "numpy")])
def test_weights_that_do_not_fit_their_config_are_refused(change, words, refused, tiny_world, tmp_path, tiny_tokenizer):
    """TRAPS 26: with strict=False nothing is loaded, and the student learns from a random teacher."""
    path = write_checkpoint(tmp_path / "changed.pt", tiny_tokenizer, change)
    for text in (refused("train_distill_logits", *tiny_world.flags("distill_logits", teacher=path)),
                 refused("train_pretrain", *tiny_world.flags("pretrain", init=path))):
        assert "changed.pt" in text and words in text


@pytest.mark.parametrize("script, flag", [("pretrain", "data"), ("distill_reason", "val")])
def test_a_bad_line_is_named_by_file_and_line(script, flag, refused, call, tiny_world, tmp_path):
    """Nobody finds a bad line among a million if the error does not give its number."""
    lines = tiny_world.train.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*lines[:9], '{"messages": [{"role": "narrator"}]}', *lines[9:]]), encoding="utf-8")
    flags = tiny_world.flags(script, **{flag: path})
    text = refused(f"train_{script}", *flags)
    assert "bad.jsonl:10: " in text and "--skip-bad-lines" in text
    done = call(f"train_{script}", *flags, "--skip-bad-lines")
    assert done.status == 0 and "unknown role: 1 (" in done.out and "bad.jsonl:10" in done.out


def test_a_student_of_another_tokenizer_is_refused(refused, tiny_world, tiny_tokenizer, other_tokenizer, tmp_path):
    """TRAPS 17 and 18: vocabularies of one size can have different tokens, so the ids mean different text."""
    assert other_tokenizer.vocab_size == tiny_tokenizer.vocab_size
    flags = tiny_world.flags("distill_logits", init=write_checkpoint(tmp_path / "student.pt", other_tokenizer))
    assert "has another tokenizer" in refused("train_distill_logits", *flags)


def test_the_window_must_fit_the_context_of_a_checkpoint_and_may_fill_it(refused, call, tiny_world,
                                                                         tiny_tokenizer, tmp_path, out_dir):
    """The checkpoint decides the context: a longer window must be refused, an equal one accepted."""
    paths = [write_checkpoint(tmp_path / f"{n}.pt", tiny_tokenizer, lambda state: state["model_config"].update(
        max_seq_len=n)) for n in (64, 600)]
    for script, flag in (("pretrain", "init"), ("distill_logits", "teacher")):
        text = refused(f"train_{script}", *tiny_world.flags(script, **{flag: paths[0]}))
        assert "--window" in text and "64" in text
        flags = tiny_world.flags(script, name=script, steps=1, batch=1, window=600, **{flag: paths[1]})
        assert call(f"train_{script}", *flags).status == 0
    assert checkpoints.load(out_dir / "pretrain.pt")["model_config"]["max_seq_len"] == 600
    assert checkpoints.load(out_dir / "distill_logits.pt")["model_config"]["max_seq_len"] == 1200


@pytest.mark.parametrize("script", ["distill_logits", "distill_features", "distill_onpolicy"])
def test_a_teacher_whose_logits_overflow_is_named(script, refused, tiny_world, monkeypatch):
    """The weights can be finite while the logits are not. Advice to lower the learning rate would not help."""
    real = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: real(self, x) * (
        1 if self.weight.requires_grad else float("inf")))
    assert "the teacher's logits are not finite" in refused(f"train_{script}", *tiny_world.flags(script))


def test_one_name_has_one_process(refused, tiny_world, out_dir):
    """Two processes with one name would silently mix their checkpoints and rows."""
    flags = tiny_world.flags("pretrain")
    with common.lock(out_dir / "run.pt"):
        assert "another process is writing" in refused("train_pretrain", *flags)


def test_no_output_replaces_an_input_or_another_file(refused, tiny_world, tmp_path, out_dir):
    """With --name x --init out/x.pt --fresh the first save would overwrite the input checkpoint."""
    (out_dir / "run.pt").write_bytes(tiny_world.init.read_bytes())
    assert "--name" in refused("train_pretrain", *tiny_world.flags("pretrain", init=out_dir / "run.pt", fresh=True))
    (out_dir / "a.csv").write_text("my,log\n", encoding="utf-8")
    assert "a.csv" in refused("train_pretrain", *tiny_world.flags("pretrain", name="a"))
    assert (out_dir / "a.csv").read_text() == "my,log\n"
    data = tmp_path / "test.jsonl"
    data.write_bytes(tiny_world.val.read_bytes())
    assert "--out" in refused("tokenizer.train", data, f"--out={data}", "--fresh")
    assert data.read_bytes() == tiny_world.val.read_bytes()


@pytest.mark.parametrize("script, start", [("pretrain", "init"), ("distill_logits", "init"),
                                           ("distill_logits", "init_from_teacher")])
def test_a_run_from_a_checkpoint_says_the_truth_about_its_shape(script, start, call, refused, tiny_world, out_dir):
    """The checkpoint decides the shape, so --size has no effect and rows must not show its default."""
    checkpoints.save(out_dir / "a.pt", checkpoints.load(tiny_world.init) | dict(tokens=1000))
    changes = {start: out_dir / "a.pt" if start == "init" else "1"}
    flags = [f for f in tiny_world.flags(script, steps=1, **changes) if "--size" not in f]
    assert "shape of its own" in refused(f"train_{script}", *flags, "--size=10m")
    assert call(f"train_{script}", *flags).status == 0
    state = checkpoints.load(out_dir / "run.pt")
    assert state["run_config"]["size"] == "" and state["inputs"].get("init_tokens", 1000) == 1000
