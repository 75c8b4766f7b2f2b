"""Flags, errors and safe files: what every script needs before torch is even imported.

    @dataclass
    class Config:
        steps: int = 1000        # optimizer steps (300 to 5,000)
        teacher: str = OUT / "teacher.pt"   # checkpoint of the teacher

    if __name__ == "__main__":
        run(main, Config)        # python script.py --steps 500

One knob a line: its name is the flag, its type the check, its comment the help. There is nothing
else to keep in step. A mistake of the user raises `UserError`: one line on stderr, status 2, no
traceback. A bug keeps its traceback.
"""
import contextlib
import dataclasses
import difflib
import errno
import glob
import hashlib
import inspect
import os
import re
import shutil
import sys
import typing
from pathlib import Path

from common import UserError

ROOT = Path(__file__).resolve().parent
# Everything a run writes, whatever the working directory. Tests point it elsewhere.
OUT = Path(os.environ.get("MINIDISTILL_OUT") or ROOT / "out").resolve()


FILE_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS,
               errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EIO,
               errno.ENAMETOOLONG)


def fail(what, got=None, expected=None, fix=None):
    """Raise UserError with the four things a reader needs: what, got, expected, how to fix."""
    parts = [what]
    parts += [f"got {got}"] if got is not None else []
    parts += [f"expected {expected}"] if expected is not None else []
    parts += [f"fix: {fix}"] if fix is not None else []
    raise UserError("; ".join(parts))


def check(ok, flag, value, expected):
    """`check(cfg.steps > 0, "--steps", cfg.steps, "a positive whole number")` or UserError."""
    if not ok:
        fail(f"{flag} has a wrong value", repr(value), expected, f"pass another {flag}")


def check_ranges(cfg, **ranges):
    """UserError for a flag outside its (least, most), both allowed; NaN is outside, too."""
    for name, (least, most) in ranges.items():
        value = getattr(cfg, name)
        check(least <= value <= most, "--" + name.replace("_", "-"), value,
              f"{least:,} to {most:,}")


def check_apart(flag, out, *sources):
    """UserError where an output would replace one of the inputs."""
    same = [s for s in sources if s and os.path.abspath(s) == os.path.abspath(out)]
    check(not same, flag, str(out), "a file that is not read")


def refuse_others(path, old, new, by="command", flag="--out"):
    """UserError with what differs between what made a file and what is asked now, two dicts."""
    differing = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted({*old, *new})
                 if old.get(k) != new.get(k)]
    if differing:
        fail(f"{show(path)} was made by another {by}: " + ", ".join(differing),
             fix=f"choose another {flag}, or replace it with --fresh")


def need_file(path, made_by, folder=False):
    """Path of an existing, non-empty file (or folder), or UserError with what makes it."""
    path = Path(path)
    if not path.exists():
        fail(f"{show(path)} does not exist", fix=made_by)
    if not (path.is_file() or path.is_dir()):
        fail(f"{show(path)} is no regular file", fix="write it to disk first")
    if path.is_dir() and not folder:
        fail(f"{show(path)} is a folder", expected="a file", fix=made_by)
    if path.is_file() and path.stat().st_size == 0:
        fail(f"{show(path)} is empty", fix=made_by)
    return path


def show(path):
    """A path as the user would type it here: relative to the working directory, or whole."""
    path = Path(os.path.abspath(path))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def label(path):
    """A path as files and comparisons keep it, the same from everywhere: out/NAME, or relative to
    the project, or whole."""
    path = Path(os.path.abspath(path))
    if path.is_relative_to(OUT):
        return str("out" / path.relative_to(OUT))
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


# --- flags from a dataclass -----------------------------------------------------------------------

def comments(config_class):
    """{field: comment} read from the source of the dataclass: the comment is the help."""
    found = {}
    for line in inspect.getsource(config_class).splitlines():
        match = re.match(r"\s+(\w+)\s*:[^#]+#\s*(.+)", line)
        if match:
            found[match[1]] = match[2].strip()
    return found


def convert(flag, text, kind):
    """The string of a flag as a value of the field's type, or UserError with got and expected."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        check(text in choices, flag, text, "one of " + ", ".join(choices))
        return text
    if kind is bool:
        check(text in ("true", "false"), flag, text, "true or false")
        return text == "true"
    try:
        return kind(text)
    except ValueError:
        name = {int: "a whole number", float: "a number"}[kind]
        fail(f"{flag} has a wrong value", repr(text), name, f"for example {flag} 1")


def usage(config_class, doc):
    """The text of --help: the script's docstring, then a line for each knob."""
    lines, helps = [(doc or "").strip(), "", "flags:"], comments(config_class)
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        default = label(field.default) if isinstance(field.default, Path) else repr(field.default)
        flag = "--" + field.name.replace("_", "-")
        if types[field.name] is list:
            flag, default = field.name.upper() + " ...", "none"
        choices = typing.get_args(types[field.name])  # of a Literal
        words = " (" + ", ".join(choices) + ")" if choices else ""
        lines.append(f"  {flag:<20} {helps.get(field.name, '')}{words} [{default}]")
    lines.append("a flag that is true or false: --flag, --flag=true or --flag=false")
    return "\n".join(lines)


def parse(config_class, argv=None, doc=None):
    """argv -> an instance of the dataclass. `--flag value`, `--flag=value`; a bool may stand alone.

    A field of type `list` takes the words that stand without a flag. Raises UserError.
    """
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    types = typing.get_type_hints(config_class)
    bare = next((n for n, t in types.items() if t is list), None)
    values, words = {}, list(sys.argv[1:] if argv is None else argv)
    while words:
        word = words.pop(0)
        if word in ("-h", "--help"):
            print(usage(config_class, doc))
            sys.exit(0)
        if not word.startswith("--"):
            if bare is None:
                fail("a word without a flag", repr(word), "--flag value", "see --help")
            values.setdefault(bare, []).append(word)
            continue
        flag, has_value, text = word.partition("=")
        name = flag[2:].replace("-", "_")
        if name not in fields or name == bare:
            near = difflib.get_close_matches(name, set(fields) - {bare}, 1)
            hint = f"did you mean --{near[0].replace('_', '-')}?" if near else "see --help"
            hint = f"write the {bare} without a flag" if name == bare else hint
            fail(f"unknown flag {flag}", fix=hint)
        if not has_value:
            if types[name] is bool and not (words and words[0] in ("true", "false")):
                text = "true"
            elif words and not words[0].startswith("--"):
                text = words.pop(0)
            else:
                fail(f"{flag} needs a value", fix=f"{flag} VALUE; see --help")
        values[name] = convert(flag, text, types[name])
    config = config_class(**values)
    for name, value in vars(config).items():  # default paths are Paths, flags are strings: one type
        setattr(config, name, str(value) if isinstance(value, Path) else value)
    config.given = frozenset(values)  # what was typed; no field, so not part of a run's config
    return config


def run(main, config_class):
    """`main(parse(config_class))`, with the user's mistakes as one line and status 2."""
    for stream in (sys.stdout, sys.stderr):  # logs are followed live, in UTF-8, on every platform
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")  # a chat may hold any byte
    try:
        main(parse(config_class, doc=inspect.getmodule(config_class).__doc__))
    except UserError as error:
        text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))  # one line
        print(f"error: {text}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `script.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in FILE_ERRORS:
            raise
        full = error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
        print(f"error: {error.filename or 'a file'}: {error.strerror}; the files that were there "
              f"are as before; fix: {'make room, or ' if full else ''}choose another place",
              file=sys.stderr)
        sys.exit(2)
    except MemoryError:
        print("error: not enough memory; fix: smaller numbers, or more memory", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        sys.exit(130)


def is_default(cfg, name):
    """Does a flag hold its default? Of a path: the same file, however it is written."""
    default = next(f.default for f in dataclasses.fields(cfg) if f.name == name)
    value = getattr(cfg, name)
    if isinstance(default, Path):
        return os.path.abspath(value) == os.path.abspath(default)
    return value == default


# --- files that are whole or not there ------------------------------------------------------------

@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; fsync and rename, or on error leave `path` as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write() does not name its file
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, data):
    """Text or bytes as a file that is whole, or as it was before."""
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def remove_leftovers(path):
    """Remove the temporary files and folders of killed writers of `path`; a living writer keeps
    its own."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        writer = old.name.split(".")[-2]
        if os.name == "posix" and writer.isdigit():
            try:
                os.kill(int(writer), 0)  # signal 0: is it alive?
            except ProcessLookupError:
                if old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
                else:
                    old.unlink(missing_ok=True)
            except PermissionError:
                pass


@contextlib.contextmanager
def append(path):
    """Open a text file to append whole lines; an error names the file."""
    try:
        with open(path, "a", encoding="utf-8", newline="") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write() does not name its file
        raise


def cut_torn_line(path):
    """Cut off what a killed writer left of its last line; whole lines stay."""
    with open(path, "r+b") as file:
        whole = 0
        for line in file:
            whole += len(line) if line.endswith(b"\n") else 0
        file.truncate(whole)


def sha256_file(path):
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
