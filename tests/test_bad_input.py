"""What a user can do wrong: one clear line on stderr, status 2, no traceback, nothing lost.

Each case runs a whole script inside this process: an exception that is no UserError fails the test.
What prepare.py, the readers and the tokenizer refuse is in their own tests; here it is seen through
the scripts. Full disks and other runs under the same name: test_resume.py.
"""
import json

import pytest
import torch

import checkpoints
from model import build, config_dict
from tokenizer import Tokenizer
from tokenizer.train import train

SCRIPTS = ("pretrain", "distill_logits", "distill_reason", "distill_features",
           "distill_onpolicy", "distill_responses")
all_scripts = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture
def refused(call):
    """A function: `refused("eval", *flags)` -> the one line that the script says; status 2."""
    def run(name, *flags):
        done = call(name, *flags)
        assert done.status == 2, done.out
        assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
        return done.err
    return run


@pytest.fixture(scope="session")
def other_tokenizer():
    """As large as the tiny one, of other text: only the fingerprint can tell."""
    return Tokenizer(train(["Hugo cooks rice and beans with kale; 14 jugs fill up, 29 do not."] * 9, 320))


def write_checkpoint(path, tokenizer, change=lambda state: None, vocab_size=None):
    """A small untrained checkpoint, after `change(state)`."""
    model = build("0.1m", vocab_size or tokenizer.vocab_size, max_seq_len=160)
    state = dict(model=model.state_dict(), model_config=config_dict(model),
                 tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8))
    change(state)
    checkpoints.save(path, state)
    return path


# --- flags ----------------------------------------------------------------------------------------

@all_scripts
@pytest.mark.parametrize("flag, words", [
    ("--stepz=3", "unknown flag --stepz; fix: did you mean --steps?"),
    ("--steps=1e3", "--steps has a wrong value; got '1e3'; expected a whole number"),
    ("--steps=0", "--steps has a wrong value; got 0"),
    ("--lr=0", "--lr"), ("--lr=nan", "--lr"), ("--lr=-1", "--lr"),
    ("--size=7b", "--size has a wrong value; got '7b'; expected one of 0.1m, 0.2m"),
    ("--dtype=fp8", "expected one of auto, float32, bf16"),
    ("--window=0", "--window"), ("--window=161", "--window has a wrong value; got 161"),
    ("--batch=0", "--batch"), ("--accumulate=3", "a multiple of --accumulate"),
    ("--accumulate=0", "--accumulate"),
    ("--save-every=0", "--save-every"), ("--eval-every=0", "--eval-every"),
    ("--log-every=0", "--log-every"), ("--clip=0", "--clip"), ("--clip=-1", "--clip"),
    ("--warmup=-1", "--warmup"), ("--weight-decay=-1", "--weight-decay"), ("--seed=-1", "--seed"),
    ("--documents=-1", "--documents"), ("--eval-windows=-1", "--eval-windows"),
    ("--name=a/b", "--name has a wrong value; got 'a/b'; expected a plain file name"),
    ("--name=", "--name"), ("--fresh=maybe", "--fresh has a wrong value; got 'maybe'"),
    ("--lr", "--lr needs a value"), ("word", "a word without a flag")])
def test_a_wrong_flag_or_value_is_named(script, flag, words, refused, tiny_world):
    """A value that passes here divides by zero, climbs the loss or fails an hour later."""
    assert words in refused(f"train_{script}", *tiny_world.flags(script), flag)


@pytest.mark.parametrize("script, flag", [
    ("distill_logits", "--alpha=1.5"), ("distill_logits", "--alpha=-0.1"),
    ("distill_logits", "--temperature=0"), ("distill_logits", "--temperature=nan"),
    ("distill_logits", "--alpha=nan"), ("distill_logits", "--beta=1.1"), ("distill_logits", "--skew=1"),
    ("distill_onpolicy", "--on-policy-share=1.1"), ("distill_onpolicy", "--max-new-tokens=0"),
    ("distill_onpolicy", "--sample-temperature=-1"), ("distill_features", "--hidden-weight=-1"), ("distill_features", "--relation-weight=nan"),
    ("distill_reason", "--tag-weight=0"),
    ("distill_reason", "--tag-weight=-2"), ("distill_reason", "--long-frac=1.1"),
    ("distill_reason", "--long-frac=-0.5"), ("distill_reason", "--long-frac=nan"),
    ("distill_reason", "--target=full"), ("distill_responses", "--target=cot")])
def test_a_wrong_value_of_a_knob_of_distillation_is_named(script, flag, refused, tiny_world):
    """An alpha over 1 pushes away from the labels; a temperature of 0 divides by it."""
    said = refused(f"train_{script}", *tiny_world.flags(script), flag)
    assert f"{flag.partition('=')[0]} has a wrong value" in said


@pytest.mark.parametrize("flag", ["--samples=0", "--batch=0", "--temperature=-1",
                                  "--max-new-tokens=0", "--questions=-1", "--seed=x"])
def test_a_wrong_value_of_generate_is_named(flag, refused, tiny_world, out_dir):
    """--questions -1 would leave one question out without a word."""
    said = refused("blackbox.generate", f"--teacher={tiny_world.teacher}", f"--input={tiny_world.train}",
                   f"--out={out_dir / 'traces.jsonl'}", flag)
    assert f"{flag.partition('=')[0]} has a wrong value" in said


@pytest.mark.parametrize("flag", ["--questions=-1", "--batch=0", "--max-new-tokens=0",
                                  "--window=161", "--think-budget=-1", "--samples=-1",
                                  "--target=multi"])
def test_a_wrong_value_of_eval_is_named(flag, refused, tiny_world, out_dir):
    """0 new tokens score every model as wrong, and the table shows it as a result."""
    said = refused("eval", tiny_world.teacher, f"--data={tiny_world.val}", f"--out={out_dir / 'e'}", flag)
    assert f"{flag.partition('=')[0]} has a wrong value" in said


# --- files that are not there, empty, or something else -------------------------------------------

@pytest.mark.parametrize("script, flag, command", [
    ("pretrain", "data", "speedrun.sh"), ("pretrain", "val", "speedrun.sh"),
    ("pretrain", "tokenizer", "python tokenizer/train.py"), ("pretrain", "init", "make it with"),
    ("distill_logits", "teacher", "python train_pretrain.py --name teacher"),
    ("distill_logits", "data", "speedrun.sh"), ("distill_logits", "init", "make it with"),
    ("distill_reason", "data", "speedrun.sh"),
    ("distill_reason", "tokenizer", "tokenizer/train.py"),
    ("distill_responses", "data", "speedrun.sh"), ("distill_responses", "val", "speedrun.sh")])
@pytest.mark.parametrize("what", ["does not exist", "is empty"])
def test_a_missing_or_empty_file_says_which_command_makes_it(script, flag, command, what, refused,
                                                            tiny_world, tmp_path):
    """The first thing that a new user meets: it must say what to do."""
    path = tmp_path / f"{flag}.jsonl"
    if what == "is empty":
        path.touch()
    said = refused(f"train_{script}", *tiny_world.flags(script, **{flag: path}))
    assert f"{flag}.jsonl {what}; fix: " in said and command in said


def spoiled_checkpoints(folder, tokenizer):
    """{kind: path} of files that are no checkpoint, or no longer."""
    whole = write_checkpoint(folder / "whole.pt", tokenizer).read_bytes()
    contents = {"cut off": whole[:len(whole) // 2], "one byte": b"x", "text": b"no checkpoint\n" * 99,
                "middle gone": whole[:5000] + bytes(3000) + whole[8000:]}
    for name, content in contents.items():
        (folder / f"{name}.pt").write_bytes(content)
    torch.save([1, 2], folder / "list.pt")
    torch.save({"state_dict": {}, "epoch": 3}, folder / "other project.pt")
    torch.save({"model": {}, "model_config": 1, "tokenizer": 2}, folder / "same keys.pt")
    torch.save(torch.nn.Linear(2, 2), folder / "pickled module.pt")  # would run code
    write_checkpoint(folder / "wrong vocabulary.pt", tokenizer, vocab_size=400)
    return [p for p in sorted(folder.glob("*.pt")) if p.name != "whole.pt"]


def test_truncated_or_foreign_checkpoints_are_refused_everywhere(refused, tiny_world, tmp_path,
                                                                 tiny_tokenizer, out_dir):
    """A zip error's traceback helps nobody; a half-read checkpoint trains from noise."""
    paths = spoiled_checkpoints(tmp_path, tiny_tokenizer)
    assert len(paths) == 9
    for path in paths:
        for said in (refused("train_pretrain", *tiny_world.flags("pretrain", init=path)),
                     refused("train_distill_logits", *tiny_world.flags("distill_logits", teacher=path)),
                     refused("eval", path, f"--data={tiny_world.val}", f"--out={out_dir / 'e'}"),
                     refused("blackbox.generate", f"--teacher={path}", f"--input={tiny_world.train}",
                             f"--out={out_dir / 'traces.jsonl'}")):
            assert path.name in said, said
    assert not (out_dir / "e.md").exists() and not (out_dir / "traces.jsonl").exists()


def test_a_spoiled_checkpoint_of_the_run_itself_is_kept_and_refused(refused, tiny_world, tmp_path,
                                                                   tiny_tokenizer, out_dir):
    """To start afresh over a damaged file would destroy what may still be saved from it."""
    for path in spoiled_checkpoints(tmp_path, tiny_tokenizer):
        (out_dir / "run.pt").write_bytes(path.read_bytes())
        assert "--fresh" in refused("train_pretrain", *tiny_world.flags("pretrain"))
        assert (out_dir / "run.pt").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change, words", [
    (lambda state: state["model"].pop("norm.weight"), "norm.weight"),
    (lambda state: state["model"].update(extra=torch.ones(1)), "extra"),
    (lambda state: state["model"].update({"norm.weight": torch.ones(65)}), "norm.weight"),
    (lambda state: state.update(model={f"module.{k}": v for k, v in state["model"].items()}), "module."),
    (lambda state: state["model_config"].update(dim=96), "64"),
    (lambda state: state["model_config"].update(n_kv_heads=3), "n_kv_heads"),
    (lambda state: state["model_config"].update(rope="linear"), "rope")])
def test_weights_that_do_not_fit_their_config_are_refused(change, words, refused, tiny_world, tmp_path,
                                                          tiny_tokenizer, out_dir):
    """TRAPS 26: with strict=False nothing is loaded and the student trains from a random teacher."""
    path = write_checkpoint(tmp_path / "changed.pt", tiny_tokenizer, change)
    for said in (refused("train_distill_logits", *tiny_world.flags("distill_logits", teacher=path)),
                 refused("train_pretrain", *tiny_world.flags("pretrain", init=path)),
                 refused("eval", path, f"--data={tiny_world.val}", f"--out={out_dir / 'e'}")):
        assert "changed.pt" in said and words in said


# --- text -----------------------------------------------------------------------------------------

BAD_LINES = {
    "broken JSON": '{"conversations": [{"role": "user"',
    "a lone surrogate": '{"text": "half a pair: \\ud83d"}',
    "unknown role": '{"messages": [{"role": "tool", "content": "x"}]}',
    "no response token": json.dumps({"messages": [{"role": "user", "content": "Hi?"},
                                                  {"role": "assistant", "content": " "}]}),
    "without an assistant turn": '{"messages": [{"role": "user", "content": "Hi?"}]}',
    "not a string": '{"text": 5}',
    "unknown keys": '{"prompt": "a", "completion": "b"}',
    "invalid UTF-8": b'{"text": "\xff"}'}


@pytest.mark.parametrize("words", BAD_LINES)
def test_a_bad_line_is_named_by_file_and_line_in_every_script(words, refused, tiny_world, tmp_path,
                                                              out_dir):
    """A bad line in the middle of a million: without its number nobody finds it."""
    good, line = tiny_world.val.read_bytes().splitlines()[:2], BAD_LINES[words]
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([*good, line if isinstance(line, bytes) else line.encode(), good[0]]))
    asking = [] if words == "without an assistant turn" else [  # there it is a prompt
        refused("blackbox.generate", f"--teacher={tiny_world.teacher}", f"--input={path}",
                f"--out={out_dir / 'traces.jsonl'}")]
    for said in (refused("train_pretrain", *tiny_world.flags("pretrain", data=path)),
                 refused("train_distill_logits", *tiny_world.flags("distill_logits", data=path)),
                 refused("train_distill_reason", *tiny_world.flags("distill_reason", val=path)),
                 refused("eval", tiny_world.teacher, f"--data={path}", f"--out={out_dir / 'e'}"),
                 refused("tokenizer.train", path, f"--out={out_dir / 't.model'}"), *asking):
        assert "bad.jsonl:3: " in said and words in said and "--skip-bad-lines" in said
    assert not list(out_dir.glob("*.pt")) and not (out_dir / "traces.jsonl").exists()


def test_bad_lines_can_be_counted_and_left_out(call, tiny_world, tmp_path, out_dir):
    """--skip-bad-lines goes on, and says how many it lost and where."""
    good = tiny_world.train.read_text(encoding="utf-8").splitlines()
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([*good, *(v for v in BAD_LINES.values() if isinstance(v, str))]),
                    encoding="utf-8")
    done = call("train_distill_reason", *tiny_world.flags("distill_reason", data=path),
                "--skip-bad-lines")
    assert done.status == 0 and "1 bad lines: unknown role" in done.out and "bad.jsonl:35" in done.out


@pytest.mark.parametrize("size, words", [(5, "too small"), (300_000, "too large"), (-1, "--vocab-size")])
def test_a_vocabulary_size_that_cannot_be_says_what_can(size, words, refused, tiny_world, out_dir):
    """The library raises an INTERNAL error with a C++ file name."""
    said = refused("tokenizer.train", tiny_world.train, f"--vocab-size={size}",
                   f"--out={out_dir / 't.model'}")
    assert words in said and "INTERNAL" not in said and not (out_dir / "t.model").exists()


# --- two that do not fit together -----------------------------------------------------------------

def test_a_student_of_another_tokenizer_is_refused_with_both_fingerprints(
        refused, tiny_world, tiny_tokenizer, other_tokenizer, tmp_path):
    """TRAPS 17 and 18: equal sizes, other pieces: the teacher speaks of other words."""
    assert other_tokenizer.vocab_size == tiny_tokenizer.vocab_size
    student = write_checkpoint(tmp_path / "student.pt", other_tokenizer)
    said = refused("train_distill_logits", *tiny_world.flags("distill_logits", init=student))
    for words in ("student.pt", tiny_tokenizer.fingerprint, other_tokenizer.fingerprint, "fix: "):
        assert words in said


@all_scripts
def test_windows_of_another_tokenizer_are_refused_with_both_fingerprints(
        script, call, refused, tiny_world, tiny_tokenizer, other_tokenizer, tmp_path):
    """TRAPS 17: ids of another tokenizer train without an error, to nonsense."""
    other_tokenizer.save(tmp_path / "other.model")
    folder = tmp_path / "windows"
    done = call("dataset.prepare", f"--input={tiny_world.train}", f"--tokenizer={tmp_path}/other.model",
                f"--out={folder}", "--window=143")
    assert done.status == 0, done.err
    said = refused(f"train_{script}", *tiny_world.flags(script, data=folder))
    assert "windows" in said and tiny_tokenizer.fingerprint in said
    assert other_tokenizer.fingerprint in said


@all_scripts
@pytest.mark.parametrize("changes, words", [(dict(window=100), "window"), (dict(target="answer"), "target"),
                                            (dict(documents=3), "documents")])
def test_windows_made_with_other_settings_are_refused(script, changes, words, call, refused, tiny_world,
                                                      tmp_path):
    """A folder of prepare.py is as it is: --window, --target or --documents beside it would be dead."""
    folder, target = tmp_path / "windows", "full" if script == "distill_responses" else "cot"
    done = call("dataset.prepare", f"--input={tiny_world.train}", f"--tokenizer={tiny_world.tokenizer}",
                f"--out={folder}", "--window=143", f"--target={target}")
    assert done.status == 0, done.err
    flags = tiny_world.flags(script, steps=1, data=folder)
    assert call(f"train_{script}", *flags).status == 0
    said = refused(f"train_{script}", *tiny_world.flags(script, name="other", data=folder, **changes))
    assert words in said


@pytest.mark.parametrize("script", ["pretrain", "distill_logits"])
def test_a_window_over_the_context_of_a_checkpoint_is_refused(script, refused, tiny_world,
                                                              tiny_tokenizer, tmp_path):
    """No script asks for a size that a checkpoint knows, so the flag must fit it."""
    def shorten(state):
        state["model_config"]["max_seq_len"] = 64
    path = write_checkpoint(tmp_path / "short.pt", tiny_tokenizer, shorten)
    changes = dict(init=path) if script == "pretrain" else dict(teacher=path)
    flags = [flag for flag in tiny_world.flags(script, **changes) if "--context" not in flag]
    said = refused(f"train_{script}", *flags)
    assert "--window" in said and "64" in said


@pytest.mark.parametrize("script, changes", [("pretrain", ["init"]), ("distill_logits", ["teacher", "init"]),
                                             ("distill_logits", ["teacher", "init_from_teacher"])])
def test_a_window_may_fill_the_context_of_a_checkpoint(script, changes, call, tiny_world, tiny_tokenizer,
                                                       out_dir):
    """It was compared with the default --context, 512, although the start's context is longer."""
    def lengthen(state):
        state["model_config"]["max_seq_len"] = 600
    path = write_checkpoint(out_dir / "long.pt", tiny_tokenizer, lengthen)
    changes = {name: "1" if name == "init_from_teacher" else path for name in changes}
    flags = tiny_world.flags(script, steps=1, window=600, batch=1, **changes)
    done = call(f"train_{script}", *[f for f in flags if "--context" not in f and "--size" not in f])
    assert done.status == 0, done.err
    assert checkpoints.load(out_dir / "run.pt")["run_config"]["context"] == 600


def test_a_prompt_longer_than_the_context_is_refused(refused, tiny_world, tmp_path, out_dir):
    """It would be cut, silently, or fail in the attention."""
    said = refused("eval", tiny_world.teacher, "--prompt", "Why? " * 99)
    assert "the prompt is longer than the context" in said and "at most 159" in said
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"question": "Why? " * 99, "answer": "#### 5"}), encoding="utf-8")
    said = refused("blackbox.generate", f"--teacher={tiny_world.teacher}", f"--input={path}",
                   f"--out={out_dir / 'traces.jsonl'}")
    assert "1 questions longer than the teacher's context of 160 tokens" in said


def test_a_document_longer_than_the_window_says_which_window_would_do(refused, call, tiny_world):
    """Nothing is cut and nothing is lost without a word."""
    said = refused("train_pretrain", *tiny_world.flags("pretrain", window=40))
    assert "longer than the window" in said and "--window 7" in said
    done = call("train_pretrain", *tiny_world.flags("pretrain", window=60, val=tiny_world.train))
    assert done.status == 0 and "documents left out: too long (--window" in done.out


def test_plain_text_is_no_question(refused, tiny_world, tmp_path, out_dir):
    """There is nobody to answer."""
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"text": "plain"}) + "\n", encoding="utf-8")
    said = refused("blackbox.generate", f"--teacher={tiny_world.teacher}", f"--input={path}",
                   f"--out={out_dir / 'traces.jsonl'}")
    assert "q.jsonl:1: " in said and "plain text" in said


@pytest.mark.parametrize("script", ["distill_logits", "distill_features", "distill_onpolicy"])
def test_a_teacher_whose_logits_overflow_is_named(script, refused, tiny_world, monkeypatch):
    """Its weights are finite; a lower learning rate is no remedy."""
    real = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: real(self, x) * (
        1 if self.weight.requires_grad else float("inf")))
    assert "the teacher's logits are not finite" in refused(f"train_{script}", *tiny_world.flags(script))


def test_a_shape_beside_the_teachers_layers_is_refused(refused, tiny_world):
    """--size 0.4m that trains something else, without a word."""
    for changes in (dict(size="0.4m"), dict(context=150)):
        said = refused("train_distill_logits", *tiny_world.flags("distill_logits", init_from_teacher="1", **changes))
        assert "has a shape of its own" in said and f"--{next(iter(changes))}" in said


def test_features_of_no_weight_are_refused(refused, tiny_world):
    """It would train to the end, on nothing."""
    flags = tiny_world.flags("distill_features", logits_weight=0, hidden_weight=0, relation_weight=0)
    assert "another weight above 0" in refused("train_distill_features", *flags)


# --- from anywhere --------------------------------------------------------------------------------

def from_elsewhere(script, run_script, world, folder):
    """Run a script in another working directory, its files named relative to it."""
    for path in world.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    name = script.removesuffix(".py").removeprefix("train_")
    if script.startswith("train_"):
        flags = [flag.replace(f"{world.folder}/", "") for flag in world.flags(name, steps=2)]
    elif script == "eval.py":
        flags = ["teacher.pt", "--data=val.jsonl", "--out=report", "--speed=false", "--questions=2"]
    elif script == "dataset/prepare.py":
        flags = ["--input=train.jsonl", "--tokenizer=tiny.model", "--out=windows", "--window=143"]
    else:
        flags = ["train.jsonl", "--vocab-size=300", "--out=new.model"]
    assert not any("/" in flag for flag in flags)
    return run_script(script, *flags, cwd=folder)


def test_a_training_script_runs_from_any_working_directory(run_script, tiny_world, tmp_path, out_dir):
    """Imports and defaults found only from the project's folder."""
    assert "run.pt: validation ce" in from_elsewhere("train_pretrain.py", run_script, tiny_world,
                                                     tmp_path).stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_distill_logits.py", "train_distill_reason.py", "eval.py",
                                    "dataset/prepare.py", "tokenizer/train.py"])
def test_every_script_runs_from_any_working_directory(script, run_script, tiny_world, tmp_path, out_dir):
    """The same, for all of them: a process costs three seconds."""
    from_elsewhere(script, run_script, tiny_world, tmp_path)


# --- what the user did not mean -------------------------------------------------------------------

@all_scripts
def test_own_data_need_own_validation_data(script, refused, tiny_world, monkeypatch):
    """A run on one's own text that is judged, silently, by stories."""
    flags = [f for f in tiny_world.flags(script) if not f.startswith("--val=")]
    said = refused(f"train_{script}", *flags)
    assert "--val has a wrong value" in said and "hold some lines back" in said


@all_scripts
def test_two_processes_cannot_train_one_name(script, refused, tiny_world, out_dir, monkeypatch):
    """Their checkpoints and rows would mix without a word."""
    monkeypatch.setattr(checkpoints, "locks", {})
    other = checkpoints.lock_file(out_dir / "run.pt")
    assert "another process is writing" in refused(f"train_{script}", *tiny_world.flags(script))
    other.close()
    checkpoints.lock_file(out_dir / "run.pt").close()


@pytest.mark.parametrize("change", [
    dict(n_layers=10**6), dict(n_heads=0), dict(dim=-3), dict(head_dim="8"), dict(vocab_size=2**40),
    dict(rope_theta=float("nan")), dict(norm_eps=-1.0), dict(max_seq_len=1.5), dict(qk_norm="yes"),
    dict(surprise=1), dict(ffn_dim=2**20, dim=2**20)])
def test_a_hostile_shape_is_refused_before_memory_is_taken(change, refused, tiny_tokenizer, tmp_path):
    """A stranger's checkpoint must not fill the memory or end in a traceback."""
    path = write_checkpoint(tmp_path / "x.pt", tiny_tokenizer,
                            lambda state: state["model_config"].update(change))
    assert "weights do not fit its own config" in refused("eval", path, "--prompt", "Hi")


@pytest.mark.parametrize("key, value", [("model", 5), ("tokenizer", 5), ("model_config", [1])])
def test_a_checkpoint_of_other_types_is_refused(key, value, refused, tiny_tokenizer, tmp_path):
    """The right keys with the wrong things behind them."""
    path = write_checkpoint(tmp_path / "x.pt", tiny_tokenizer, lambda s: s.update({key: value}))
    assert "x.pt" in refused("eval", path, "--prompt", "Hi")


def test_no_output_replaces_an_input(refused, tiny_world, tmp_path, out_dir):
    """`--out` typed where `--data` was meant: the user's file is gone."""
    data = tmp_path / "test.json"
    data.write_bytes(tiny_world.val.read_bytes())
    before = data.read_bytes()
    said = refused("eval", tiny_world.teacher, f"--data={data}", f"--out={tmp_path / 'test'}")
    assert "--out has a wrong value" in said
    assert "--row" in refused("eval", tiny_world.teacher, f"--data={data}", f"--row={data}",
                              f"--out={out_dir / 'e'}")
    assert "--out" in refused("tokenizer.train", data, f"--out={data}", "--fresh")
    assert data.read_bytes() == before


def test_a_damaged_cache_is_made_again(call, tiny_world, out_dir):
    """It is the project's own: nobody should have to find and delete it."""
    assert call("train_pretrain", *tiny_world.flags("pretrain")).status == 0
    for folder in (out_dir / "data/windows").iterdir():
        (folder / "ids.bin").write_bytes(b"x")
    assert call("train_pretrain", *tiny_world.flags("pretrain", name="again")).status == 0


def test_reports_rows_and_logs_replace_nothing_of_others(refused, tiny_world, tmp_path, out_dir):
    """--out notes, where notes.md is one's own; --row model.pt; a CSV that happens to be there."""
    for name in ("notes.md", "notes.json", "rows.jsonl"):
        (tmp_path / name).write_text("mine\n", encoding="utf-8")
    (out_dir / "run.csv").write_text("my,log\n", encoding="utf-8")
    for flags in (["--out", tmp_path / "notes"],
                  ["--out", out_dir / "e", "--row", tmp_path / "rows.jsonl"]):
        said = refused("eval", tiny_world.teacher, f"--data={tiny_world.val}", *flags)
        assert "is there and not of this script" in said
    assert "no log of this script" in refused("train_pretrain", *tiny_world.flags("pretrain"))
    assert (tmp_path / "notes.md").read_text() == (tmp_path / "rows.jsonl").read_text() == "mine\n"
    assert (out_dir / "run.csv").read_text() == "my,log\n"


@all_scripts
def test_a_run_cannot_replace_what_it_starts_from(script, call, refused, tiny_world, out_dir):
    """--name x --init out/x.pt --fresh: the checkpoint would be gone after the first save."""
    (out_dir / "run.pt").write_bytes(tiny_world.init.read_bytes())
    said = refused(f"train_{script}", *tiny_world.flags(script, init=out_dir / "run.pt"), "--fresh")
    assert "--name has a wrong value" in said


@all_scripts
def test_a_run_from_a_checkpoint_says_the_truth_about_its_shape(script, call, refused, tiny_world, out_dir):
    """--size and --context mean nothing then; rows must not repeat their defaults."""
    checkpoints.save(out_dir / "a.pt", checkpoints.load(tiny_world.init) | dict(tokens=1000))
    for changes in (dict(size="10m"), dict(context=4096)):
        flags = tiny_world.flags(script, init=out_dir / "a.pt", steps=1, **changes)
        assert "has a shape of its own" in refused(f"train_{script}", *flags)
    flags = [f for f in tiny_world.flags(script, init=out_dir / "a.pt", steps=1) if "size" not in f and "context" not in f]
    assert call(f"train_{script}", *flags).status == 0
    state = checkpoints.load(out_dir / "run.pt")
    assert state["run_config"]["size"] == "" and state["run_config"]["context"] == 160
    assert state["inputs"]["init_tokens"] == 1000
