"""Claims about cli.py: flags from a dataclass, errors of one line, files that are whole."""
import dataclasses
import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

import cli
from cli import ROOT, UserError, atomic_write, check, fail, need_file, parse, usage

SIZES = {"0.2m": None, "2m": None}


@dataclass
class Config:
    """What follows is told apart from code: not_a_field: int = 3  # not a comment of a knob"""
    name: str = "run"              # the run: writes out/NAME.pt
    steps: int = 100               # optimizer steps (10 to 5,000)
    lr: float = 4e-3               # peak learning rate: half of it is safer
    size: Literal[tuple(SIZES)] = "2m"  # shape of the model
    loss_on: Literal["response", "all"] = "response"  # which tokens count
    compile: bool = False          # torch.compile
    speed: bool = True             # measure speed
    teacher: str = ROOT / "out" / "teacher.pt"  # checkpoint of the teacher
    files: list = None             # words without a flag


def got(*words):
    return parse(Config, [str(w) for w in words])


def error_of(*words):
    """The one line that the user sees."""
    with pytest.raises(UserError) as error:
        got(*words)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- flags ----------------------------------------------------------------------------------------

def test_without_flags_the_config_is_its_defaults():
    """Every script runs with no flags; a default path must not be of another type than a flag's."""
    expected = dataclasses.asdict(Config()) | dict(teacher=str(ROOT / "out" / "teacher.pt"))
    assert dataclasses.asdict(got()) == expected


@pytest.mark.parametrize("words, name, value", [
    (["--steps", 7], "steps", 7),
    (["--steps=7"], "steps", 7),
    (["--lr", "1e-3"], "lr", 0.001),
    (["--lr", "-0.5"], "lr", -0.5),               # a negative number is a value, not a flag
    (["--lr", 3], "lr", 3.0),
    (["--size", "0.2m"], "size", "0.2m"),
    (["--loss-on", "all"], "loss_on", "all"),     # dash for underscore
    (["--loss_on", "all"], "loss_on", "all"),     # and as the field is written
    (["--name="], "name", ""),
    (["--name", "-x"], "name", "-x"),
    (["--name=--odd=name"], "name", "--odd=name"),
    (["--name", "true"], "name", "true"),         # only a bool eats true as a bool
    (["--compile"], "compile", True),
    (["--compile", "true"], "compile", True),
    (["--speed", "false"], "speed", False),
    (["--speed=false"], "speed", False),
    (["--steps", 1, "--steps", 2], "steps", 2),   # the last one holds
    (["--teacher", "t.pt"], "teacher", "t.pt"),
    (["a.pt", "b.pt"], "files", ["a.pt", "b.pt"]),
    (["a.pt", "--steps", 3, "b.pt"], "files", ["a.pt", "b.pt"]),
    (["--compile", "a.pt"], "files", ["a.pt"]),   # the next word is not its value
], ids=str)
def test_a_flag_becomes_a_value_of_its_type(words, name, value):
    """"0.001" as a string compares wrongly with numbers, hours later."""
    config = got(*words)
    assert getattr(config, name) == value and type(getattr(config, name)) is type(value)
    for field in dataclasses.fields(Config):  # and nothing else changed
        if field.name not in (name, *[w[2:].replace("-", "_") for w in map(str, words)]):
            assert getattr(config, field.name) == getattr(got(), field.name)


@pytest.mark.parametrize("word, suggestion", [
    ("--step", "--steps"), ("--stpes", "--steps"), ("--loss-one", "--loss-on"),
    ("--learning-rate", None), ("--x", None), ("--", None)])
def test_an_unknown_flag_gets_a_suggestion(word, suggestion):
    """A misspelt knob that is ignored is a run with other settings than its log says."""
    message = error_of(word, 5)
    assert f"unknown flag {word};" in message
    assert message.endswith(f"did you mean {suggestion}?" if suggestion else "see --help")


@pytest.mark.parametrize("words, value, expected", [
    (["--steps", "1e3"], "'1e3'", "a whole number"),
    (["--steps", "2.5"], "'2.5'", "a whole number"),
    (["--steps="], "''", "a whole number"),
    (["--lr", "fast"], "'fast'", "a number"),
    (["--lr", "1,5"], "'1,5'", "a number"),
    (["--size", "3m"], "'3m'", "one of 0.2m, 2m"),
    (["--loss-on", "All"], "'All'", "one of response, all"),
    (["--compile=yes"], "'yes'", "true or false")])
def test_a_wrong_value_says_got_expected_and_fix(words, value, expected):
    """A ValueError's traceback tells a student nothing that helps."""
    message = error_of(*words)
    flag = words[0].split("=")[0]
    assert message.startswith(f"{flag} has a wrong value; got {value}; expected {expected}; fix: ")


@pytest.mark.parametrize("words", [["--steps"], ["--steps", "--lr", "1"], ["--lr", "1", "--name"]],
                         ids=str)
def test_a_missing_value_is_named(words):
    """`--steps --lr 1` must not read "--lr" as the number of steps."""
    missing = "--name" if "--name" in words else "--steps"
    assert error_of(*words).startswith(f"{missing} needs a value; fix: {missing} VALUE")


def test_a_word_without_a_flag_is_refused_where_none_is_expected():
    """`--compile yes` would be silently true, and "yes" lost."""
    @dataclass
    class Strict:
        compile: bool = False

    with pytest.raises(UserError, match="a word without a flag; got 'yes'"):
        parse(Strict, ["--compile", "yes"])


def test_a_suggestion_is_a_flag_that_works():
    """`--files a.pt`: "unknown flag --files; did you mean --files?" """
    assert "did you mean --files" not in error_of("--files", "a.pt")


def test_help_shows_every_knob_with_its_comment_and_default():
    """The comment is the help: a knob whose comment is not found has none."""
    text = usage(Config, "What the script does.")
    assert text.startswith("What the script does.\n")
    for knob in ("--name", "--steps", "--lr", "--size", "--loss-on", "--compile", "--teacher"):
        [line] = [l for l in text.splitlines() if l.strip().split()[:1] == [knob]]
        comment = {"--steps": "optimizer steps (10 to 5,000)", "--size": "shape of the model",
                   "--lr": "peak learning rate: half of it is safer"}.get(knob, "")
        assert comment in line and line.endswith("]")
    assert "[100]" in text and "[0.004]" in text and "['2m']" in text and "teacher.pt]" in text
    assert "not_a_field" not in text


def test_help_prints_and_ends_with_status_0(capsys):
    """`script.py --help` must not start a run, whatever stands before it."""
    for words in (["--help"], ["-h"], ["--steps", "3", "--help"]):
        with pytest.raises(SystemExit) as end:
            got(*words)
        assert end.value.code == 0 and "optimizer steps" in capsys.readouterr().out


def configs():
    """Every file that makes its flags from a Config."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("dataset/*.py"), *ROOT.glob("tokenizer/*.py")]
    return [p for p in sorted(paths) if "\nclass Config:" in p.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", configs(), ids=lambda p: str(p.relative_to(ROOT)))
def test_every_knob_of_every_script_is_explained(path):
    """A knob without meaning, or a name that -- turned into a flag -- is another one's."""
    if path.parent == ROOT:
        module = importlib.import_module(path.stem)
    else:
        module = importlib.import_module(f"{path.parent.name}.{path.stem}")
    explained = cli.comments(module.Config)
    names = [f.name for f in dataclasses.fields(module.Config)]
    assert [n for n in names if len(explained.get(n, "")) < 8] == []
    assert module.__doc__ and all(n == n.lower() and "-" not in n for n in names)
    parse(module.Config, [])  # the defaults fit their types' conversion


# --- errors ---------------------------------------------------------------------------------------

SCRIPT = '''"""What this script does."""
import sys
sys.path.insert(0, {root!r})
from dataclasses import dataclass
import cli


@dataclass
class Config:
    steps: int = 3     # how many steps
    how: str = "fine"  # what happens
    out: str = ""      # a file to write


def main(cfg):
    if cfg.how == "user":
        cli.check(cfg.steps > 5, "--steps", cfg.steps, "more than 5")
    if cfg.how == "bug":
        1 / 0
    if cfg.how == "missing":
        open("/nowhere/at/all")
    if cfg.how == "interrupt":
        raise KeyboardInterrupt
    if cfg.how == "many":
        for i in range(100_000):
            print(i)
    if cfg.how in ("full", "killed", "write"):
        with cli.atomic_write(cfg.out) as file:
            file.write(b"new" * 10_000)
            if cfg.how == "full":
                raise OSError(28, "No space left on device")
            if cfg.how == "killed":
                file.flush()
                import os
                os._exit(9)
    print("steps", cfg.steps, "out", cli.OUT, "\\u4f60\\u597d", "\\ud800")


if __name__ == "__main__":
    cli.run(main, Config)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.py"
    path.write_text(SCRIPT.format(root=str(ROOT)), encoding="utf-8")
    return path


@pytest.mark.parametrize("words, says", [
    (["--stesp", "3"], "error: unknown flag --stesp; fix: did you mean --steps?"),
    (["--steps", "x"], "error: --steps has a wrong value; got 'x'; expected a whole number;"),
    (["--steps"], "error: --steps needs a value"),
    (["5"], "error: a word without a flag; got '5'"),
    (["--how", "user"], "error: --steps has a wrong value; got 3; expected more than 5"),
], ids=lambda w: str(w) if isinstance(w, list) else "")
def test_a_users_mistake_is_one_line_and_status_2(script, run_script, words, says):
    """A traceback hides the line that helps; status 0 or 1 misleads the shell script around it."""
    done = run_script(script, *words, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(script, run_script):
    """An error of ours, dressed as the user's, can never be found."""
    for how, name in (("bug", "ZeroDivisionError"), ("missing", "FileNotFoundError")):
        done = run_script(script, "--how", how, check=False)
        assert done.returncode == 1 and "Traceback" in done.stderr and name in done.stderr


def test_an_interrupt_says_how_to_go_on(script, run_script):
    """130 is what a shell expects of Ctrl-C."""
    done = run_script(script, "--how", "interrupt", check=False)
    assert done.returncode == 130 and "Traceback" not in done.stderr and "goes on" in done.stderr


def test_a_script_runs_from_anywhere_and_prints_utf8(script, run_script, out_dir, tmp_path):
    """A C locale or a lone surrogate in a text must not stop a log; OUT is not the cwd."""
    done = run_script(script, cwd=tmp_path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.stdout == f"steps 3 out {out_dir} 你好 \\ud800\n" and done.stderr == ""
    assert "--steps" in run_script(script, "--help").stdout


def test_without_the_variable_out_is_in_the_project():
    """Whatever the working directory."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import cli; print(cli.OUT)"
    environment = {k: v for k, v in os.environ.items() if k != "MINIDISTILL_OUT"}
    done = subprocess.run([sys.executable, "-c", code], cwd="/", env=environment,
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(ROOT / "out")


def test_a_closed_pipe_is_no_error(script):
    """`script.py | head -1`: BrokenPipeError is an OSError; caught as one it is a traceback."""
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, str(script), "--how", "many"], stdout=writer,
                               stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    assert "Traceback" not in process.communicate(timeout=60)[1]


def test_fail_says_what_it_knows_and_no_more():
    """"got None; expected None" is noise; a got of 0 or "" is not None."""
    with pytest.raises(UserError, match=r"^it broke$"):
        fail("it broke")
    with pytest.raises(UserError, match=r"^it broke; got 0; fix: mend it$"):
        fail("it broke", got=0, fix="mend it")
    check(True, "--steps", 1, "anything")
    with pytest.raises(UserError, match=r"--lr.*got 'x'.*expected y"):
        check(False, "--lr", "x", "y")


def test_a_missing_or_empty_file_names_the_command_that_makes_it(tmp_path):
    """A run that stopped at the wrong moment left an empty file: torch.load's words help nobody."""
    with pytest.raises(UserError, match="does not exist; fix: python make.py"):
        need_file(tmp_path / "no.pt", "python make.py")
    (tmp_path / "empty.pt").touch()
    with pytest.raises(UserError, match="is empty; fix: python make.py"):
        need_file(str(tmp_path / "empty.pt"), "python make.py")
    with pytest.raises(UserError, match="is a folder; expected a file; fix: python make.py"):
        need_file(tmp_path, "python make.py")
    assert need_file(str(tmp_path), "python make.py", folder=True) == tmp_path


# --- files that are whole or not there ------------------------------------------------------------

def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    """A folder of its own with one file in it."""
    path = tmp_path / "folder" / "model.pt"
    path.parent.mkdir()
    path.write_bytes(b"old")
    return path


def test_a_file_is_replaced_whole(old):
    """Until the last byte is on the disk, a reader sees the old file."""
    with atomic_write(old) as file:
        file.write(b"new")
        file.flush()
        assert old.read_bytes() == b"old"
    assert old.read_bytes() == b"new" and names(old.parent) == ["model.pt"]


def test_text_is_written_as_utf8_and_folders_are_made(tmp_path):
    """A Windows code page cannot write Chinese; a first run has no out/."""
    path = tmp_path / "a" / "b" / "t.json"
    with atomic_write(str(path), "w") as file:
        file.write("你好\n")
    assert path.read_bytes() == "你好\n".encode()


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt(), SystemExit(1),
                                   OSError(errno.EIO, "Input/output error")], ids=repr)
def test_an_error_leaves_the_old_file_and_no_other(old, error):
    """Ctrl-C in the middle of a save: the checkpoint of an hour is half a file."""
    with pytest.raises(type(error)):
        with atomic_write(old) as file:
            file.write(b"half of the n")
            raise error
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]


class SmallDisk:
    """A real file on a disk with room for 10 bytes."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.file.write(data[:10])
        self.file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_names_it(old, monkeypatch):
    """A failed write() does not say which file: "cannot write : No space left" helps nobody."""
    monkeypatch.setattr(cli, "open", lambda *a, **k: SmallDisk(open(*a, **k)), raising=False)
    with pytest.raises(OSError) as error:
        with atomic_write(old) as file:
            file.write(b"new" * 100)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(old)
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_disk_that_is_full_at_the_last_flush_is_noticed(old, monkeypatch, size):
    """Ten bytes wait in Python's buffer: without a flush before the rename they are lost."""
    monkeypatch.setattr(cli, "open", lambda _, *a, **k: open("/dev/full", *a, **k), raising=False)
    with pytest.raises(OSError) as error:
        with atomic_write(old) as file:
            file.write(b"x" * size)
    assert error.value.errno == errno.ENOSPC
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]


def test_bytes_are_on_the_disk_before_the_name(old, monkeypatch):
    """A rename may reach the disk before the data: after a power cut the file is empty."""
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("fsync"), fsync(f)))
    monkeypatch.setattr(os, "replace", lambda *a: (order.append("replace"), replace(*a)))
    with atomic_write(old) as file:
        file.write(b"new")
    assert order[:2] == ["fsync", "replace"] and order.count("replace") == 1


def test_a_full_disk_is_one_line_and_status_2(script, run_script, old):
    """The old checkpoint is what the user wants to hear about, not a traceback."""
    done = run_script(script, "--how", "full", "--out", old, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{old}: No space left on device" in done.stderr
    assert old.read_bytes() == b"old" and names(old.parent) == ["model.pt"]


def test_a_killed_process_leaves_the_old_file(script, run_script, old):
    """kill -9 runs no clean-up: only the order of the steps protects the file."""
    assert run_script(script, "--how", "killed", "--out", old, check=False).returncode == 9
    assert old.read_bytes() == b"old"
    run_script(script, "--how", "write", "--out", old)
    assert old.read_bytes() == b"new" * 10_000


def test_a_place_that_is_no_folder_is_one_line_and_status_2(script, run_script, old):
    """--out model.pt/new.pt: a traceback of mkdir."""
    for out in (old / "new.pt", old / "deeper" / "new.pt"):
        done = run_script(script, "--how", "write", "--out", out, check=False)
        assert done.returncode == 2 and "Traceback" not in done.stderr


def test_sha256_is_that_of_the_whole_file(tmp_path):
    """Read in pieces: the last, short one counts too."""
    path = tmp_path / "data.bin"
    for data in (b"", b"abc", bytes(range(256)) * 8192 + b"tail"):  # 2 MiB and a bit
        path.write_bytes(data)
        assert cli.sha256_file(path) == hashlib.sha256(data).hexdigest()


def test_the_next_write_removes_what_a_killed_writer_left(tmp_path):
    """Half a checkpoint for every kill: a week of stops fills the disk."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / f".a.pt.{dead.pid}.tmp").write_bytes(b"half")
    (tmp_path / f".a.pt.x.{dead.pid}.tmp/in").mkdir(parents=True)
    (tmp_path / f".a.pt.{os.getppid()}.tmp").write_bytes(b"alive")
    (tmp_path / f".b.pt.{dead.pid}.tmp").write_bytes(b"of another file")
    with cli.atomic_write(tmp_path / "a.pt") as file:
        file.write(b"whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["a.pt", f".a.pt.{os.getppid()}.tmp", f".b.pt.{dead.pid}.tmp"])
