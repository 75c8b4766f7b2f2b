"""Flags, errors and files: what every script does with them."""
import dataclasses
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import common
from common import ROOT, UserError, append_rows, atomic_write, parse, write_file


@dataclasses.dataclass
class Config:
    """What follows is told apart from code: not_a_field: int = 3  # not a comment of a knob"""
    words: list = None       # files to read
    steps: int = 1000        # optimizer steps (300 to 5,000); 50 % more is fine
    lr: float = 1e-3         # learning rate
    kind: Literal["a", "b"] = "a"  # one of two
    long_name: str = "x"     # two words
    fast: bool = False       # a switch
    path: str = ROOT / "x"   # a path


@dataclasses.dataclass
class Other(Config):
    steps: int = 5           # fewer steps


# --- flags ----------------------------------------------------------------------------------------

def test_without_flags_the_config_is_its_defaults():
    """Every script runs with no flags; a default path must not be of another type than a flag's."""
    cfg = parse(Config, [])
    assert vars(cfg) == vars(Config()) | dict(path=str(ROOT / "x"), given=frozenset())
    assert parse(Other, []).steps == 5


@pytest.mark.parametrize("words, name, value", [
    (["--steps", "3"], "steps", 3), (["--steps=3"], "steps", 3), (["--lr", "1e-2"], "lr", 0.01),
    (["--lr", "-1"], "lr", -1.0), (["--kind=b"], "kind", "b"), (["--long-name", "a b"], "long_name", "a b"),
    (["--fast"], "fast", True), (["--fast", "--no-fast"], "fast", False), (["--long-name="], "long_name", ""),
    (["a", "b"], "words", ["a", "b"]), (["a", "--steps", "1", "b"], "words", ["a", "b"]),
    (["--steps", "1", "a"], "words", ["a"])])
def test_a_flag_becomes_a_value_of_its_type(words, name, value):
    """"0.001" as a string compares wrongly with numbers, hours later."""
    cfg = parse(Config, words)
    assert getattr(cfg, name) == value and type(getattr(cfg, name)) is type(value) and name in cfg.given


@pytest.mark.parametrize("words, part", [
    (["--stesp", "3"], "--steps"), (["--step", "3"], "--steps"), (["--steps", "x"], "--steps"),
    (["--steps"], "--steps"), (["--steps", "--lr", "1"], "--steps"), (["--kind", "c"], "'a', 'b'"),
    (["--steps", "1.5"], "--steps"), (["--zzz"], "--zzz")])
def test_a_wrong_flag_or_value_is_one_sentence_with_its_name(words, part):
    """A misspelt knob that is ignored is a run with other settings than its log says."""
    with pytest.raises(UserError, match=re.escape(part)):
        parse(Config, words)


def test_help_shows_every_knob_with_its_comment_and_default(capsys):
    """The comment is the help: a knob whose comment is not found has none."""
    with pytest.raises(SystemExit) as end:
        parse(Other, ["--steps", "3", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "fewer steps [5]" in text and "one of two [a]" in text
    assert "--long-name" in text and "not a comment" not in text and "a switch [False]" in text


def modules():
    """Every script that makes its flags from a Config."""
    for path in sorted([*ROOT.glob("*.py"), *ROOT.glob("[!.]*/*.py")]):
        if re.search(r"^class Config\b", path.read_text(encoding="utf-8"), re.M) and path.parent.name != "tests":
            yield str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")


@pytest.mark.parametrize("name", list(modules()))
def test_every_knob_of_every_script_is_explained(name, capsys):
    """A knob without meaning; a comment that breaks --help."""
    module = importlib.import_module(name)
    parse(module.Config, [])
    with pytest.raises(SystemExit):
        parse(module.Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(module.Config):
        assert not re.search(rf"--{field.name.replace('_', '-')} [A-Z]+ \[", text), field.name
    assert module.__doc__


def test_ranges_are_checked_and_nan_is_in_none():
    """A comparison with NaN is False: `value < 0` lets it pass."""
    common.positive(parse(Config, []), "steps", "lr")
    common.between(parse(Config, []), 0, 1000, "steps", "lr")
    for flag in ("--lr=0", "--lr=-1", "--lr=nan"):
        with pytest.raises(UserError, match="--lr"):
            common.positive(parse(Config, [flag]), "lr")
    for flag in ("--lr=1.1", "--lr=-1", "--lr=nan"):
        with pytest.raises(UserError, match="--lr"):
            common.between(parse(Config, [flag]), 0, 1, "lr")


def test_a_printed_command_can_be_pasted(tmp_path, monkeypatch):
    """FAULTS 17: `my data.jsonl` without quotes is two words."""
    (tmp_path / "my data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    text = common.command("eval.py", tmp_path / "my data.jsonl", data="a'b", target="", batch_size=3, fast=True)
    assert text == """python eval.py 'my data.jsonl' --data 'a'"'"'b' --batch-size 3 --fast"""


# --- errors ---------------------------------------------------------------------------------------

SCRIPT = '''"""What this script does."""
import os
import sys
sys.path.insert(0, {root!r})
from dataclasses import dataclass
import common


@dataclass
class Config:
    steps: int = 3     # how many steps
    how: str = "fine"  # what happens
    out: str = ""      # a file to write


def main(cfg):
    if cfg.how == "user":
        raise common.UserError("it is\\n wrong")
    if cfg.how == "bug":
        1 / 0
    if cfg.how == "memory":
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
    if cfg.how == "interrupt":
        raise KeyboardInterrupt
    if cfg.how == "many":
        for i in range(100_000):
            print(i)
    if cfg.how in ("killed", "write"):
        with common.atomic_write(cfg.out) as file:
            file.write(b"new" * 10_000)
            if cfg.how == "killed":
                file.flush()
                os._exit(9)
    print("steps", cfg.steps, "out", common.OUT, "\\u4f60\\u597d", "\\ud800")


if __name__ == "__main__":
    common.run(main, Config)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(root=str(ROOT)), encoding="utf-8")
    return path


@pytest.mark.parametrize("words, status", [
    (["--stesp", "3"], 2), (["--steps", "x"], 2), (["5"], 2), (["--how", "user"], 2),
    (["--how", "memory"], 2), (["--how", "write", "--out", "/proc/no/x"], 2),
    (["--how", "interrupt"], 130)])
def test_a_users_mistake_is_one_line_and_status_2(script, run_script, words, status):
    """A traceback hides the line that helps; status 0 or 1 misleads the shell script around it."""
    done = run_script(script, *words, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1)
    assert done.stderr.startswith("error: ") == (status == 2)


def test_a_bug_keeps_its_traceback(script, run_script):
    """An error of ours, dressed as the user's, can never be found."""
    done = run_script(script, "--how", "bug", check=False)
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_a_script_runs_from_anywhere_and_prints_utf8(script, run_script, out_dir, tmp_path):
    """A C locale or a lone surrogate in a text must not stop a log; OUT is not the cwd."""
    done = run_script(script, cwd=tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stdout == f"steps 3 out {out_dir} 你好 \\ud800\n" and done.stderr == ""


def test_a_closed_pipe_is_no_error(script):
    """`script.py | head -1`: BrokenPipeError is an OSError; caught as one it is a traceback."""
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, str(script), "--how", "many"], stdout=writer,
                               stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert "Traceback" not in process.communicate(timeout=60)[1]


# --- files that are whole or not there ------------------------------------------------------------

@pytest.fixture
def old(tmp_path):
    """A folder of its own with one file in it."""
    path = tmp_path / "folder" / "model.pt"
    write_file(path, b"old")
    return path


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_whole(old):
    """Until the last byte is on the disk, a reader sees the old file."""
    with atomic_write(old) as file:
        file.write(b"new")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new" and names(old.parent) == ["model.pt"]
    write_file(old, "你好")
    assert old.read_bytes().decode() == "你好"


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1),
                                   OSError(28, "No space left on device")])
def test_an_error_leaves_the_old_file_and_no_other(old, error):
    """Ctrl-C in the middle of a save: the checkpoint of an hour is half a file."""
    with pytest.raises(type(error)) as raised:
        with atomic_write(old) as file:
            file.write(b"new")
            raise error
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]
    if isinstance(error, OSError):  # a failed write() does not say which file
        assert raised.value.filename == str(old)


def test_a_disk_that_is_full_at_the_last_flush_is_noticed(old):
    """Ten bytes wait in Python's buffer: without a flush before the rename they are lost."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
        with pytest.raises(OSError):
            write_file(old, b"0123456789")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]


def test_bytes_are_on_the_disk_before_the_name(old, monkeypatch):
    """A rename may reach the disk before the data: after a power cut the file is empty."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    write_file(old, b"new")
    assert order == ["fsync", "replace"]


def test_a_killed_process_leaves_the_old_file_and_the_next_write_no_leftover(script, run_script, old):
    """kill -9 runs no clean-up: only the order of the steps protects the file."""
    done = run_script(script, "--how", "killed", "--out", old, check=False)
    assert done.returncode == 9 and old.read_bytes() == b"old" and len(names(old.parent)) == 2
    run_script(script, "--how", "write", "--out", old)
    assert old.read_bytes() == b"new" * 10_000 and names(old.parent) == ["model.pt"]


def test_a_link_is_followed_and_a_device_refused(old, tmp_path):
    """FAULTS 33: out/NAME.pt as a link to a larger disk became a file; /dev/null, as root, too."""
    link = tmp_path / "link.pt"
    link.symlink_to(old)
    write_file(link, b"new")
    assert link.is_symlink() and old.read_bytes() == b"new"
    with pytest.raises(UserError, match="no regular file"):
        write_file("/dev/null", b"x")
    assert not Path("/dev/null").is_file()


def test_rows_are_whole_lines_after_a_kill(tmp_path):
    """Half a row of a killed writer, and the next row behind it on the same line: two are lost."""
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, [{"a": 1}, {"a": "é"}])
    with open(path, "ab") as file:
        file.write(b'{"a": 3')
    append_rows(path, [{"a": 4}])
    assert path.read_bytes().decode() == '{"a": 1}\n{"a": "é"}\n{"a": 4}\n'


def test_what_was_made_with_other_settings_is_refused(tmp_path):
    """A file replaced unasked is lost; one that is taken for another is worse."""
    path, settings = tmp_path / "about.json", dict(seed=1, langs=("en", "zh"))
    assert not common.already_made(path, settings)
    write_file(path, '{"seed": 1, "langs": ["en", "zh"], "more": 2}')
    assert common.already_made(path, settings) and not common.already_made(path, settings, fresh=True)
    with pytest.raises(UserError, match="seed was 1, is 2"):
        common.already_made(path, settings | dict(seed=2))
    write_file(path, "[]")
    with pytest.raises(UserError, match="not of this script"):
        common.already_made(path, settings)


def test_one_writer_at_a_time(tmp_path, monkeypatch, capsys):
    """Two runs of one name mix their checkpoints; a file system without locks is no traceback (FAULTS 13)."""
    with common.lock(tmp_path / "x.pt"):
        with pytest.raises(UserError, match="another process"):
            common.lock(tmp_path / "x.pt")
    common.lock(tmp_path / "x.pt").close()

    def no_locks(*_):
        raise OSError(38, "Function not implemented")
    monkeypatch.setattr(common.fcntl, "flock", no_locks)
    common.lock(tmp_path / "x.pt").close()
    assert "no locks" in capsys.readouterr().err
