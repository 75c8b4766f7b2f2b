"""What every script shares: flags, errors, files that are whole or not there, device, ranks, log.

    @dataclass
    class Config:
        steps: int = 1000        # optimizer steps (300 to 5,000)

    if __name__ == "__main__":
        common.run(main, Config)        # python script.py --steps 500

One knob a line: its name is the flag, its type is checked, its comment is the help. A mistake of the
user raises UserError: one line on stderr, status 2, no traceback. A bug keeps its traceback.

torch takes two seconds to import, and half of the scripts do not need it: the functions that do
import it themselves.
"""
import argparse
import contextlib
import csv
import dataclasses
import difflib
import fcntl
import hashlib
import inspect
import json
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent
# Everything that a run writes, from any working directory.
OUT = Path(os.environ.get("MINIDISTILL_OUT") or ROOT / "out").resolve()


# --- errors and flags -----------------------------------------------------------------------------

class UserError(Exception):
    """A mistake that the user can mend: one sentence, exit status 2."""


def check(ok, message):
    """UserError(message) unless ok."""
    if not ok:
        raise UserError(message)


def between(cfg, least, most, *names):
    """UserError unless every named flag is from least to most. NaN is not."""
    for name in names:
        value = getattr(cfg, name)
        check(least <= value <= most,
              f"--{name.replace('_', '-')} {value}: must be {least:,} to {most:,}")


def positive(cfg, *names):
    """UserError unless every named flag is above 0. NaN is not."""
    for name in names:
        value = getattr(cfg, name)
        check(value > 0, f"--{name.replace('_', '-')} {value}: must be above 0")


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is a UserError."""

    def error(self, message):
        raise UserError(f"{message}; see --help")


def parse(Config, argv=None):
    """argv (None: the command line) -> a Config. `cfg.given` is the set of flags that were typed.

    A field of type list takes the words without a flag; a bool is --name or --no-name.
    """
    kinds, comments = typing.get_type_hints(Config), {}
    for parent in reversed(Config.__mro__[:-1]):  # a Config may inherit from another script's
        comments |= re.findall(r"^ +(\w+) *:[^#\n]+# *(.+)", inspect.getsource(parent), re.M)
    parser = Parser(description=inspect.getmodule(Config).__doc__, allow_abbrev=False,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in dataclasses.fields(Config):
        name, kind, choices = field.name, kinds[field.name], typing.get_args(kinds[field.name])
        shown = os.path.relpath(field.default) if isinstance(field.default, Path) else field.default
        more = dict(default=argparse.SUPPRESS,
                    help=f"{comments.get(name, '')} [{shown}]".replace("%", "%%"))
        if kind is list:
            parser.add_argument(name, nargs="*", **more)
        elif kind is bool:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name,
                                action=argparse.BooleanOptionalAction, **more)
        else:
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, choices=choices or None,
                                type=str if choices else kind,
                                metavar=None if choices else kind.__name__.upper(), **more)
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
        raise UserError(f"unknown argument {unknown[0]}; "
                        + (f"did you mean {near[0]}?" if near else "see --help"))
    values = {name: value for name, value in vars(values).items() if value != []}
    cfg = Config(**values)
    for name, value in vars(cfg).items():  # a default may be a Path, a typed value is a string
        setattr(cfg, name, str(value) if isinstance(value, Path) else value)
    cfg.given = frozenset(values)
    return cfg


def run(main, Config):
    """main(parse(Config)). A mistake of the user, a file that cannot be written or too little memory
    is one line and status 2; Ctrl-C is status 130."""
    for stream in (sys.stdout, sys.stderr):  # logs are followed live, in UTF-8, on every platform
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        main(parse(Config))
    except UserError as error:
        stop(" ".join(str(error).split()))
    except BrokenPipeError:  # `script.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno is None:  # a bug, or a library's own error
            raise
        stop(f"{error.filename or 'a file'}: {error.strerror}; what was there is as before")
    except (MemoryError, RuntimeError) as error:  # torch says RuntimeError
        if not isinstance(error, MemoryError) and "allocat" not in str(error):
            raise
        stop("not enough memory; try a smaller --batch, --window or --size, or a larger --accumulate")
    except KeyboardInterrupt:
        stop("stopped; the same command goes on where it was", 130)


def stop(message, status=2):
    """Print the message as an error and leave."""
    print(f"error: {message}" if status == 2 else message, file=sys.stderr)
    sys.exit(status)


def show(path):
    """A path as a user would type it here."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def command(script, *words, **flags):
    """A command that can be pasted: python SCRIPT WORDS --FLAG VALUE. Empty flags are left out."""
    for name, value in flags.items():
        if value not in ("", None, False):
            words += (f"--{name.replace('_', '-')}", *(() if value is True else (value,)))
    return shlex.join(["python", script, *(show(w) if os.path.exists(str(w)) else str(w)
                                           for w in words)])


# --- files ----------------------------------------------------------------------------------------

@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; rename it at the end. `path` is whole, or as it was."""
    path = Path(path).resolve()  # a link stays a link
    check(path.is_file() or not path.exists(), f"{path} is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = str(path)  # a failed write() does not name its file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, data):
    """Text or bytes as a file that is whole, or as it was before."""
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def json_lines(rows):
    """Rows as the text of a .jsonl file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def append_rows(path, rows):
    """Add rows to a .jsonl file, each a whole line. First cut off what a killed writer left of one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json_lines(rows).encode())
    except OSError as error:
        error.filename = str(path)
        raise


def already_made(path, settings, fresh=False):
    """Is `path` a JSON file that says it was made with these settings (a dict, as JSON has it)?

    False: there is no such file, or `fresh` replaces it. UserError if it was made with others.
    """
    if fresh or not Path(path).exists():
        return False
    try:
        made = json.loads(Path(path).read_text(encoding="utf-8"))
        made = {name: made.get(name) for name in settings}
    except (ValueError, AttributeError):
        raise UserError(f"{show(path)} is there and not of this script; choose another --out") from None
    refuse_others(Path(path).parent, made, json.loads(json.dumps(settings)))
    return True


def refuse_others(path, old, new):
    """UserError with what differs between the settings that made a file and those asked now."""
    differing = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted({*old, *new})
                 if old.get(k) != new.get(k)]
    check(not differing, f"{show(path)} was made with other settings ({', '.join(differing)}); "
                         "choose another name, or replace it with --fresh")


def lock(path, wait=False):
    """Hold .NAME.lock beside `path` as long as the returned file is open: one writer at a time.

    UserError if another process holds it, unless `wait`. A file system without locks is no error.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path.with_name(f".{path.name}.lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise UserError(f"another process is writing {show(path)}; wait for it, or choose another "
                        "name") from None
    except OSError as error:
        print(f"note: {path.parent} has no locks ({error.strerror}): start no other writer of "
              f"{path.name}", file=sys.stderr)
    return file


def sha256_file(path):
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def markdown(head, rows):
    """A Markdown table; head "model | steps: | verdict": a colon ends the name of a column of numbers."""
    names = head.split(" | ")
    lines = [[name.removesuffix(":") for name in names], *rows]
    text = ["| " + " | ".join(map(str, cells)) + " |" for cells in lines]
    text.insert(1, "".join("|---:" if name.endswith(":") else "|---" for name in names) + "|")
    return "\n".join(text)
