"""Flags, errors and files: what every script does with them."""
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal
from unittest.mock import Mock

import pytest

import common
from common import ROOT, UserError, atomic_write, parse, write_file
from metrics import append_rows


@dataclasses.dataclass
class Config:
    """This text looks like code but is not: not_a_field: int = 3  # not a comment of a flag"""
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


@pytest.mark.parametrize("words, name, value", [
    ("--steps 3", "steps", 3), ("--steps=3", "steps", 3), ("--lr 1e-2", "lr", 0.01), ("--lr -1", "lr", -1.0),
    ("--kind=b", "kind", "b"), ("--long-name a", "long_name", "a"), ("--long-name=", "long_name", ""),
    ("--fast", "fast", True), ("--fast --no-fast", "fast", False), ("--path=y", "path", "y"),
    ("a b", "words", ["a", "b"]), ("a --steps 1 b", "words", ["a", "b"]), ("--steps 1 a", "words", ["a"])])
def test_a_flag_becomes_a_value_of_its_type(words, name, value):
    """The string "0.001" compares wrongly with numbers, hours later. All other flags keep their defaults."""
    cfg = parse(Config, words.split())
    assert getattr(cfg, name) == value and type(getattr(cfg, name)) is type(value) and name in cfg.given
    expected = vars(Config()) | dict(path=str(ROOT / "x"), given=cfg.given) | {n: vars(cfg)[n] for n in cfg.given}
    assert vars(cfg) == expected


@pytest.mark.parametrize("words, part", [
    ("--stesp 3", "--stesp"), ("--step 3", "--step"), ("--steps 1.5", "--steps"), ("--steps", "--steps"),
    ("--steps --lr 1", "--steps"), ("--kind c", "--kind")])
def test_a_wrong_flag_or_value_is_one_sentence_with_its_name(words, part):
    """If a misspelt flag is ignored, the run has other settings than its command says."""
    with pytest.raises(UserError, match=re.escape(part)):
        parse(Config, words.split())


def test_help_shows_every_knob_with_its_comment_and_default(capsys):
    """A field's comment is its help text: if the comment is not found, the flag has no help."""
    with pytest.raises(SystemExit) as end:
        parse(Other, ["--steps", "3", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0 and "fewer steps [5]" in text and "one of two [a]" in text
    assert "--long-name" in text and "not a comment" not in text and "a switch [False]" in text


SCRIPTS = [path for path in sorted(ROOT.glob("[!.]*/*.py")) + sorted(ROOT.glob("*.py"))
           if "\nclass Config" in path.read_text(encoding="utf-8") and path.parent.name != "tests"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_knob_of_every_script_is_explained(path, capsys):
    """A flag could have no explanation, or its comment could break --help."""
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    with pytest.raises(SystemExit):
        parse(module.Config, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for field in dataclasses.fields(module.Config):
        assert not re.search(rf"--{field.name.replace('_', '-')} [A-Z]+ \[", text), field.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_without_the_environment_a_script_says_how_to_get_it(path):
    """A new user who forgets `source .venv/bin/activate` saw a traceback that ends in: No module named torch."""
    done = subprocess.run([sys.executable, "-S", "-E", path], capture_output=True, text=True)  # no packages
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert re.search("activate|speedrun.sh", done.stderr)


def test_a_missing_file_is_looked_for_in_out(out_dir, tmp_path, monkeypatch):
    """`out/teacher.pt` typed in another folder was answered with "bash speedrun.sh", although it is there."""
    monkeypatch.chdir(tmp_path.parent)
    for place in ("fast/teacher.pt", "teacher.pt"):  # the second is nearer to what was typed
        write_file(out_dir / place, b"x")
        with pytest.raises(UserError, match=f"{Path.cwd()}/out/teacher.pt .* {tmp_path.name}/out/{place} "):
            common.check_exists("out/teacher.pt", "")
    with pytest.raises(UserError, match="student.pt .*: make it"):
        common.check_exists("student.pt", ": make it")


def test_ranges_are_checked_and_nan_is_in_none():
    """A comparison with NaN is False, so the check `value < 0` lets NaN pass."""
    common.between(Config(), 0, 1000, "steps", "lr")
    for lr in (0.0, -1.0, float("nan"), 1.1):
        with pytest.raises(UserError, match="--lr"):
            common.between(Config(lr=lr), 0.1, 1, "lr")


def test_a_printed_command_can_be_pasted(tmp_path, monkeypatch):
    """FAULTS 17: without quotes, the shell reads `my data.jsonl` as two words. In another folder there is no eval.py."""
    (tmp_path / "my data.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    text = common.command("eval.py", tmp_path / "my data.jsonl", data="a'b", target="", batch_size=3, fast=True)
    assert text == f"""python {ROOT}/eval.py 'my data.jsonl' --data 'a'"'"'b' --batch-size 3 --fast"""


SCRIPT = '''"""What this script does."""
import sys
sys.path.insert(0, {root!r})
from dataclasses import dataclass
import common


@dataclass
class Config:
    steps: int = 3
    how: str = "fine"
    out: str = ""


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
        print(*range(100_000), sep="\\n")
    if cfg.out:
        common.write_file(cfg.out, "x")
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
    ("--stesp 3", 2), ("5", 2), ("--how user", 2), ("--how memory", 2), ("--out /proc/no/x", 2),
    ("--how interrupt", 130), ("--how bug", 1)])
def test_a_users_mistake_is_one_line_and_a_bug_a_traceback(script, run_script, words, status):
    """A traceback hides the line that helps. A bug that is reported as the user's mistake is never found."""
    done = run_script(script, *words.split(), check=False)
    assert (done.returncode, done.stdout) == (status, "")
    assert (done.stderr.count("\n") > 3) == ("ZeroDivisionError" in done.stderr) == (status == 1)
    assert done.stderr.startswith("error: ") == (status == 2)


def test_a_script_runs_from_anywhere_and_prints_utf8(script, run_script, out_dir, tmp_path):
    """A C locale or half a surrogate pair must not stop a log. OUT must not depend on the working directory."""
    done = run_script(script, cwd=tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stdout == f"steps 3 out {out_dir} 你好 \\ud800\n" and done.stderr == ""


def test_a_closed_pipe_is_no_error(script):
    """With `script.py | head -1`, the BrokenPipeError of the closed pipe would be shown as an error."""
    done = subprocess.run(f"'{sys.executable}' '{script}' --how many | head -1", shell=True,
                          capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.fixture
def old(tmp_path):
    write_file(tmp_path / "folder" / "model.pt", b"old")
    return tmp_path / "folder" / "model.pt"


def test_a_file_is_replaced_whole(old, monkeypatch):
    """Readers must see the old file until the new one is complete: without fsync, the rename may come first."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), replace(a, b)))
    with atomic_write(old) as file:
        file.write("你好".encode())
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_text(encoding="utf-8") == "你好" and os.listdir(old.parent) == ["model.pt"]
    assert order == ["fsync", "replace"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_error_leaves_the_old_file_and_no_other(old, error):
    """Ctrl-C or a full disk during a save would leave half a file in place of the old checkpoint."""
    with pytest.raises(type(error)) as raised, atomic_write(old) as file:
        file.write(b"new")
        raise error
    assert old.read_bytes() == b"old" and os.listdir(old.parent) == ["model.pt"]
    assert getattr(raised.value, "filename", old) == old  # a failed write() does not say which file


def test_a_link_is_followed_and_a_device_refused(old, tmp_path):
    """FAULTS 33: a file replaced the link out/NAME.pt to a larger disk and, for root, also /dev/null."""
    link = tmp_path / "link.pt"
    link.symlink_to(old)
    write_file(link, b"new")
    assert link.is_symlink() and old.read_bytes() == b"new"
    with pytest.raises(UserError, match="no regular file"):
        write_file("/dev/null", b"x")
    assert not Path("/dev/null").is_file()


def test_rows_are_whole_lines_after_a_kill(tmp_path):
    """A killed writer leaves half a row. If the next row follows on the same line, both are lost."""
    path = tmp_path / "new" / "rows.jsonl"
    append_rows(path, [{"a": 1}, {"a": "é"}])
    with open(path, "ab") as file:
        file.write(b'{"a": 3')
    append_rows(path, [{"a": 4}])
    assert path.read_bytes().decode() == '{"a": 1}\n{"a": "é"}\n{"a": 4}\n'


def test_one_writer_at_a_time(tmp_path, monkeypatch, capsys):
    """Two runs of one name mix their checkpoints. FAULTS 13: file systems without locks gave a traceback."""
    with common.lock(tmp_path / "x.pt"):
        with pytest.raises(UserError, match="another process"):
            common.lock(tmp_path / "x.pt")
    common.lock(tmp_path / "x.pt").close()
    monkeypatch.setattr(common.fcntl, "flock", Mock(side_effect=OSError(38, "Function not implemented")))
    common.lock(tmp_path / "x.pt").close()
    assert "no locks" in capsys.readouterr().err


@pytest.mark.parametrize("live", [False, True])
def test_long_work_says_how_far_it_is(live, monkeypatch, capsys):
    """On a terminal in one place, in a file a line every ten seconds: a log of 10,000 lines helps nobody."""
    clock = iter(range(0, 600, 6))  # each item takes six seconds
    monkeypatch.setattr(common.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: live, raising=False)
    assert list(common.progress("files:", [3, 1, 4, 2], 10, lambda n: n)) == [3, 1, 4, 2]
    said = capsys.readouterr().out
    assert said.split(" \r")[0] == "files: 3/10 | eta 0m14s" if live else said == (
        "files: 4/10 | eta 0m18s\nfiles: 10/10 | eta 0m00s\n")
