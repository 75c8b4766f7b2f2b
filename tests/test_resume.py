"""Claims about stopping and resuming: nothing is lost or done twice, and only --fresh overwrites."""
import csv
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import checkpoints
import common
from common import ROOT
from test_cache import make

SCRIPTS = ("pretrain", "distill_logits", "distill_reason", "distill_features", "distill_onpolicy", "distill_responses")
all_scripts = pytest.mark.parametrize("script", SCRIPTS)
KILLS = int(os.environ.get("KILLS", 3))  # kills of each command
CLOCKS = {"seconds", "train_seconds", "writing"}  # these may differ between equal runs


class Crash(Exception):
    """Simulates a power cut: the run executes nothing after it."""


@pytest.fixture
def at_step(monkeypatch):
    """A function: `at_step(5, action)` calls action() in the middle of step 5, once."""
    def plan(number, action):
        log, done = common.log, []

        def log_then_act(cfg, env, step, *rest):
            log(cfg, env, step, *rest)
            if step == number and not done:
                done.append(step)
                action()
        monkeypatch.setattr(common, "log", log_then_act)
    return plan


def crash():
    raise Crash


def bits(value):
    """A checkpoint, or a part of it -> what is == only if all is equal to the bit, except CLOCKS and run_config."""
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items() if key not in {*CLOCKS, "run_config"}}
    if isinstance(value, (list, tuple)):
        return type(value)(map(bits, value))
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, hashlib.sha256(value.numpy().tobytes()).hexdigest()
    return value


def read_log(path):
    """CSV log of a run -> its rows, without CLOCKS."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCKS} for row in csv.DictReader(file)]


def assert_same_run(out, name, other):
    assert bits(checkpoints.load(out / f"{name}.pt")) == bits(checkpoints.load(out / f"{other}.pt"))
    assert read_log(out / f"{name}.csv") == read_log(out / f"{other}.csv")


@all_scripts
def test_a_stopped_and_a_crashed_run_go_on_to_the_same_bits(script, train, out_dir, at_step):
    """TRAPS 26: a resume forgets optimizer, draws, data or best weights. "1" of a torn "12,..." looks like step 1."""
    flags = dict(script=script, steps=8, eval_every=3, batch=6, lr=2, warmup=4, weight_decay=0)
    assert train(name="whole", **flags)["best_step"] == 3  # with this lr, later steps are worse
    flags["name"] = "broken"

    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert train(status=130, **flags).count("\n") == 1
    assert checkpoints.load(out_dir / "broken.pt")["step"] == 2

    at_step(5, crash)  # the last checkpoint has step 3: a resume removes two rows of the log
    with pytest.raises(Crash):
        train(**flags)
    assert checkpoints.load(out_dir / "broken.pt")["step"] == 3
    assert len(read_log(out_dir / "broken.csv")) == 5
    with open(out_dir / "broken.csv", "a") as file:
        file.write("1")

    at_step(7, lambda: os.kill(os.getpid(), signal.SIGINT))
    train(status=130, **flags)
    assert "resuming after step 3" in train.said
    train(**flags)
    assert "resuming after step 7" in train.said
    assert_same_run(out_dir, "broken", "whole")
    assert [row["step"] for row in read_log(out_dir / "broken.csv")] == list("12345678")


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("c++"), reason="--compile needs a C++ compiler")
def test_a_compiled_run_is_nearly_the_eager_one_and_goes_on_to_the_same_bits(train, out_dir, at_step):
    """The compiled blocks could be another model, and a resume could compile them in another way."""
    flags = dict(script="distill_logits", steps=4)
    eager = train(name="eager", **flags)["model"]
    whole = train(name="whole", compile=True, **flags)["model"]
    for name, weights in eager.items():
        assert 0 < (whole[name] - weights).norm() <= 1e-3 * weights.norm()
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(name="broken", compile=True, status=130, **flags)
    train(name="broken", compile=True, **flags)
    assert_same_run(out_dir, "broken", "whole")


@pytest.mark.parametrize("kind", ["topk", "sampled", "hidden", "fused"])
def test_a_run_from_a_cache_or_with_the_fused_loss_goes_on_to_the_same_bits(kind, train, make, out_dir, at_step):
    """A resumed run would read the cache from its beginning again, or no longer use the fused loss."""
    flags = dict(script="distill_logits", steps=6, accumulate=2, fused="on")
    if kind != "fused":
        flags |= dict(fused=None, cache=make(kind=kind, temperature=None))
    train(name="whole", **flags)
    assert ("fused" in train.said) == (kind == "fused")
    at_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    train(name="broken", status=130, **flags)
    at_step(5, crash)
    with pytest.raises(Crash):
        train(name="broken", **flags)
    train(name="broken", **flags)
    assert "resuming after step 4" in train.said
    assert_same_run(out_dir, "broken", "whole")


def test_a_stop_signal_in_the_last_step_is_a_finished_run(train, at_step):
    """After Ctrl-C in the last step, a finished run would be reported as stopped."""
    at_step(4, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert train("pretrain")["step"] == 4


@all_scripts
def test_a_finished_run_says_so_and_stays_as_it_is(script, train, out_dir):
    """The same command again would repeat the training or change the finished files."""
    train(script, steps=1)
    before = (out_dir / "run.pt").read_bytes(), (out_dir / "run.csv").read_bytes()
    train(script, steps=1)
    assert "is finished (1 steps)" in train.said and "--init" in train(script, status=2, steps=9)  # FAULTS 22
    assert before == ((out_dir / "run.pt").read_bytes(), (out_dir / "run.csv").read_bytes())


@pytest.mark.parametrize("script, changes, words", [
    ("pretrain", dict(lr=0.5), ["lr was 0.003, is 0.5"]),
    ("pretrain", dict(steps=9, seed=3), ["seed was 0, is 3", "steps was 4, is 9"]),
    ("distill_logits", dict(alpha=0.25), ["alpha was 0.9, is 0.25"]),
    ("distill_logits", dict(teacher="init"), ["--teacher is "]),
    ("distill_reason", dict(tag_weight=2), ["tag_weight was 1.0, is 2.0"]),
    ("distill_reason", dict(data="val"), ["--data is "])])
def test_another_run_under_the_same_name_is_refused_with_the_differences(
        script, changes, words, train, tiny_world, out_dir):
    """A run that goes on with other flags or another teacher is a result of no setting at all."""
    train(script)
    before = (out_dir / "run.pt").read_bytes()
    changes = {k: getattr(tiny_world, v) if isinstance(v, str) else v for k, v in changes.items()}
    refused = train(script, status=2, **changes)
    assert refused.count("\n") == 1 and refused.count(" is ") == len(words)  # and no hash
    assert all(word in refused for word in words) and (out_dir / "run.pt").read_bytes() == before


@pytest.mark.parametrize("old", [dict(loss_on="all"), dict(long_frac=0.3), dict(clip=0.1)], ids=str)
def test_a_run_with_a_flag_that_is_gone_is_refused(old, train, out_dir):
    """A run of an old version with another loss, or another clip, would silently continue with today's."""
    state = train("pretrain")
    checkpoints.save(out_dir / "run.pt", state | dict(step=2, run_config=state["run_config"] | old))
    train("pretrain", status=2)
    assert checkpoints.load(out_dir / "run.pt")["step"] == 2


def test_other_data_under_the_same_path_are_refused(train, tiny_world, tmp_path):
    """With other data a resumed run takes other windows. Only a hash shows it, not the path."""
    data, rows = tmp_path / "data.jsonl", tiny_world.train.read_text().splitlines(keepends=True)
    data.write_text("".join(rows))
    train("pretrain", data=data)
    data.write_text("".join(rows[1:]))
    assert "--data is" in train("pretrain", status=2, data=data)


def test_fresh_replaces_a_run(train):
    """After --fresh, the weights, the flags or the log of the old run would still be used."""
    train("pretrain")
    state = train("pretrain", steps=2, lr=0.01, fresh=True)
    assert state["step"] == 2 and state["run_config"]["lr"] == 0.01 and "resuming" not in train.said
    assert [row["step"] for row in train.rows] == ["1", "2"]


def test_a_write_that_fails_half_way_leaves_the_old_checkpoint(train, out_dir, at_step):
    """If a checkpoint is overwritten in place and the disk is full, hours of training are lost."""
    at_step(3, crash)
    with pytest.raises(Crash):
        train("pretrain", steps=6)
    before = (out_dir / "run.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))  # like a disk quota
    try:
        failed = train("pretrain", status=2, steps=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.count("\n") == 1 and "run.pt" in failed, failed
    assert (out_dir / "run.pt").read_bytes() == before
    assert sorted(p.name for p in out_dir.glob("*run*")) == [".run.pt.lock", "run.csv", "run.pt"]


def test_a_log_on_a_full_disk_stops_with_one_line(train, out_dir, at_step):
    """On a full disk the log fails first. That would show a traceback or lose the last checkpoint."""
    def fill():
        (out_dir / "run.csv").unlink()
        (out_dir / "run.csv").symlink_to("/dev/full")  # every write to it fails with ENOSPC
    at_step(2, fill)
    failed = train("pretrain", status=2)
    assert failed.count("\n") == 1 and "No space" in failed
    assert checkpoints.load(out_dir / "run.pt")["step"] == 2


@all_scripts
def test_a_loss_that_is_not_finite_stops_the_run_with_the_last_good_checkpoint(script, train, out_dir, monkeypatch):
    """NaN weights would replace the last good checkpoint. Nothing would be left to go back to."""
    whole = train(script, status=2, steps=6, lr=1e30, warmup=0)
    assert whole.count("\n") == 1
    assert "not finite at step 2" in whole and not list(out_dir.glob("*.pt"))
    finite = common.check_finite
    monkeypatch.setattr(common, "check_finite", lambda loss, norm, step, cfg: finite(
        loss if step < 4 else float("nan"), norm, step, cfg))
    assert "not finite at step 5" in train(script, status=2, steps=6)
    state = checkpoints.load(out_dir / "run.pt")
    assert state["step"] == 4 and all(w.isfinite().all() for w in state["model"].values())


def start(script, *flags, cwd=None, **env):
    """Start a script in a new process with one thread -> the process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **env}
    return subprocess.Popen([sys.executable, str(ROOT / script), *map(str, flags)], env=env, cwd=cwd,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    """Wait for the end -> what it printed. The status must be 0."""
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said
    return said


def wait_for_growth(path, process, timeout=120):
    """Wait until a file has grown, the process has ended or `timeout` seconds have passed."""
    size, began = path.stat().st_size if path.exists() else 0, time.time()
    while process.poll() is None and time.time() - began < timeout:
        if path.exists() and path.stat().st_size > size:
            return
        size = min(size, path.stat().st_size) if path.exists() else 0  # a resume shortens the log
        time.sleep(0.005)


@pytest.mark.slow
@all_scripts
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(script, tiny_world, out_dir):
    """SIGKILL leaves no time to save. If the files on the disk lack something, the run ends differently."""
    def begin(name):
        return start(f"train_{script}.py", *tiny_world.flags(script, name=name, steps=240, eval_every=7, batch=6))
    finish(begin("whole"))
    longest = 0.6 * checkpoints.load(out_dir / "whole.pt")["train_seconds"] / KILLS
    seed = int.from_bytes(os.urandom(4), "big")
    rng = random.Random(seed)
    print(f"random moments of seed {seed}")  # shown when the test fails
    for _ in range(KILLS):
        process = begin("broken")
        wait_for_growth(out_dir / "broken.csv", process)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        said = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, f"it ended before it was killed:\n{said}"
    assert "resuming after step" in finish(begin("broken"))
    assert_same_run(out_dir, "broken", "whole")
    assert [int(row["step"]) for row in read_log(out_dir / "broken.csv")] == list(range(1, 241))
    left = [p.name for p in out_dir.iterdir() if p.name.endswith(".tmp")]
    assert not left, "what a killed write left behind"


@pytest.mark.slow
def test_killed_at_random_moments_any_command_leaves_the_same_files(tiny_world, tmp_path):
    """The next command would use a half-written data set, cache or report as if it were complete."""
    data, seed = "out/data/stories", int.from_bytes(os.urandom(4), "big")
    rng, chats = random.Random(seed), tmp_path / "chats.jsonl"
    print(f"random moments of seed {seed}")
    chats.write_text(tiny_world.train.read_text(encoding="utf-8") * 100, encoding="utf-8")
    commands = [
        "dataset/stories.py --train 4000 --val 300 --test 300 --distill 300",
        "tokenizer/train.py --vocab-size 400", "dataset/suites.py --problems 100",
        f"dataset/teacher_cache.py --teacher {tiny_world.teacher} --data {chats} --window 143",
        f"eval.py {tiny_world.teacher} --data {chats} --no-speed --questions 40",
        f"blackbox/prompts.py --input {data}/distill.jsonl --out out/prompts.jsonl",
        f"blackbox/filter.py --input {data}/train.jsonl --out out/kept.jsonl"]
    def begin(folder, command):
        (tmp_path / folder).mkdir(exist_ok=True)
        return start(*command.split(), cwd=tmp_path / folder, MINIDISTILL_OUT="out")

    for command in commands:
        began = time.time()
        finish(begin("whole", command))
        seconds = time.time() - began
        for _ in range(KILLS):
            process = begin("broken", command)
            time.sleep(rng.uniform(0, seconds))
            process.kill()
            process.communicate()
        finish(begin("broken", command))
        whole, broken = ({p.relative_to(tmp_path / folder): p.read_bytes() for p in (tmp_path / folder).rglob("*")
                          if p.is_file() and not p.name.endswith(".lock")} for folder in ("whole", "broken"))
        assert whole == broken and whole, command
