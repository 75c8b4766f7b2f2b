"""What every script shares: flags, errors, files that are whole or not there, device, ranks, log.

    @dataclass
    class Config:
        steps: int = 1000        # optimizer steps (300 to 5,000)

    if __name__ == "__main__":
        common.run(main, Config)        # python script.py --steps 500

One knob a line: its name is the flag, its type is checked, its comment is the help. A mistake of
the user raises UserError: one line, status 2. A bug keeps its traceback. Only functions import
torch: it takes two seconds, and half of the scripts need none.
"""
import argparse
import contextlib
import dataclasses
import difflib
import errno
import fcntl
import functools
import hashlib
import inspect
import json
import math
import os
import platform
import re
import shlex
import shutil
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


def parse(Config, argv=None):
    """argv (None: the command line) -> a Config. `cfg.given` is the set of flags that were typed.

    A field of type list takes the words without a flag; a bool is --name or --no-name.
    """
    kinds, comments = typing.get_type_hints(Config), {}
    for parent in reversed(Config.__mro__[:-1]):  # a Config may inherit from another script's
        comments |= re.findall(r"^ +(\w+) *:[^#\n]+# *(.+)", inspect.getsource(parent), re.M)
    text = inspect.getmodule(Config).__doc__
    parser = argparse.ArgumentParser(description=text, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: check(False, f"{message}; see --help")
    for field in dataclasses.fields(Config):
        name, kind, choices = field.name, kinds[field.name], typing.get_args(kinds[field.name])
        flag, default = f"--{name.replace('_', '-')}", field.default
        shown = show(default) if isinstance(default, Path) else default
        more = dict(default=argparse.SUPPRESS,
                    help=f"{comments.get(name, '')} [{shown}]".replace("%", "%%"))
        if kind is list:
            parser.add_argument(name, nargs="*", **more)
        elif kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **more)
        elif choices:
            parser.add_argument(flag, choices=choices, **more)
        else:
            parser.add_argument(flag, type=kind, metavar=kind.__name__.upper(), **more)
    values, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        flags = [f"--{name.replace('_', '-')}" for name in kinds]
        near = difflib.get_close_matches(unknown[0].partition("=")[0], flags, 1)
        raise UserError(f"unknown argument {unknown[0]}; did you mean {near[0]}?" if near else
                        f"unknown argument {unknown[0]}; see --help")
    values = {name: value for name, value in vars(values).items() if value != []}
    cfg = Config(**values)
    for name, value in vars(cfg).items():  # a default may be a Path, a typed value is a string
        setattr(cfg, name, str(value) if isinstance(value, Path) else value)
    cfg.given = frozenset(values)
    return cfg


def run(main, Config):
    """main(parse(Config)). A user's mistake, a full disk and a full memory are one line and status
    2; Ctrl-C is status 130."""
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
        stop("not enough memory; try a smaller --batch, --window or --size, or more --accumulate")
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
    except OSError as error:  # a failed write() does not name its file, numpy's not even the reason
        error.filename, error.errno = str(path), error.errno or errno.ENOSPC
        error.strerror = error.strerror or str(error)
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


def append(path, lines):
    """Add whole lines to a text file. First cut off what a killed writer left of a line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines.encode())
    except OSError as error:
        error.filename = str(path)  # a failed write() does not name its file
        raise


def append_rows(path, rows):
    """Add rows to a .jsonl file."""
    append(path, json_lines(rows))


def refuse_others(path, old, new):
    """UserError with what differs between the settings that made a file and those asked now."""
    differing = [f"{k} was {old.get(k)!r}, is {new.get(k)!r}" for k in sorted({*old, *new})
                 if old.get(k) != new.get(k)]
    check(not differing, f"{show(path)} was made with other settings ({', '.join(differing)}); "
                         "choose another name, or replace it with --fresh")


def lock(path, wait=False):
    """Hold .NAME.lock beside `path` as long as the returned file is open: one writer at a time.

    UserError if another process holds it, unless `wait`. Without locks (some file systems) it goes
    on.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path.with_name(f".{path.name}.lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise UserError(f"another process is writing {show(path)}; wait for it") from None
    except OSError as error:
        print(f"note: no locks in {path.parent} ({error.strerror}): start no second writer",
              file=sys.stderr)
    return file


def sha256_file(path):
    """Hex SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# --- device, precision, ranks ---------------------------------------------------------------------

def start(cfg):
    """Check the flags that all training scripts share, seed, join the ranks, find the device.

    -> env: device, dtype (its name), autocast (makes a context manager), rank, world, stop,
    versions.
    """
    import torch
    positive(cfg, "steps", "batch", "accumulate", "window", "lr", "clip", "eval_every")
    between(cfg, 0, 2**32 - 1, "warmup", "weight_decay", "documents", "eval_windows", "seed")
    check(cfg.name == Path(cfg.name).name and cfg.name.strip("."),
          f"--name {cfg.name}: must be a plain file name")
    env = device_and_dtype(cfg)
    env.world, env.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    check(cfg.batch % (cfg.accumulate * env.world) == 0,
          f"--batch {cfg.batch}: must be a multiple of --accumulate times the number of processes")
    env.stop, env.began, env.versions = False, time.time(), versions()
    if env.world > 1:
        torch.distributed.init_process_group("nccl" if env.device.type == "cuda" else "gloo")
    torch.manual_seed(cfg.seed)  # CPU and all GPUs
    return env


def device_and_dtype(cfg):
    """CUDA, MPS or the CPU, in --dtype; auto is bf16 if the hardware multiplies in it, because
    emulated bf16 is far slower than float32."""
    import torch
    device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    fast = device.type == "cpu" and re.search("avx512_bf16|amx_bf16", cpu_info())
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    dtype = cfg.dtype if cfg.dtype != "auto" else "bf16" if fast else "float32"
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if dtype == "bf16" \
        else contextlib.nullcontext
    return SimpleNamespace(device=device, dtype=dtype, autocast=autocast)


def cpu_info():
    """What Linux says about the processor; elsewhere nothing."""
    return Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""


def check_loss_flags(cfg):
    """UserError for a wrong alpha, temperature, beta or skew -> the divergence's own parameter."""
    between(cfg, 0, 1, "alpha", "beta")
    between(cfg, 0.01, 1000, "temperature")
    check(0 <= cfg.skew < 1, f"--skew {cfg.skew}: must be at least 0 and below 1")
    check(cfg.divergence == "jsd" or "beta" not in cfg.given, "--beta needs --divergence jsd")
    check("skew" in cfg.divergence or "skew" not in cfg.given, "--skew needs a skewed --divergence")
    check(getattr(cfg, "fused", "") != "on" or not (cfg.cache or cfg.compile),
          "--fused on: not with --cache or --compile")
    return cfg.beta if cfg.divergence == "jsd" else cfg.skew


def sum_gradients(parameters, env):
    """Add up the gradients of all ranks, in one all-reduce.

    Each rank's loss is already divided by the n_valid of all ranks, so the plain sum is the
    gradient of one process. Averaging local means, as DDP does, would weigh short batches more.
    """
    if env.world == 1:
        return
    import torch
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for g, summed in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(summed.view_as(g))


def sum_over_ranks(values, env):
    """A list of floats, each added up over the ranks."""
    if env.world == 1:
        return values
    import torch
    summed = torch.tensor(values, dtype=torch.float64, device=env.device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def should_stop(env):
    """True on every rank as soon as one of them got a signal to stop."""
    return sum_over_ranks([float(env.stop)], env)[0] > 0


def finish(env):
    """Leave the group of ranks, all together: who leaves first tears the others' connections."""
    if env.world > 1:
        import torch
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


# --- log ------------------------------------------------------------------------------------------

@functools.cache
def versions():
    """What a result depends on: Python, torch, numpy, threads, commit, machine."""
    import numpy
    import torch
    commit = "unknown"
    if shutil.which("git") and (ROOT / ".git").exists():
        git = [subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True)
               for words in (["describe", "--always"], ["diff", "HEAD", "--quiet", "--", "*.py"])]
        commit = git[0].stdout.strip() + "-dirty" * (git[1].returncode == 1)
    name = re.search(r"model name\s*: (.*)", cpu_info())
    machine = name[1].strip() if name else platform.processor() or platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return dict(python=platform.python_version(), torch=str(torch.__version__),
                numpy=numpy.__version__, threads=torch.get_num_threads(), commit=commit,
                machine=f"{machine}, {os.cpu_count()} cores", gpu=gpu)


def begin(cfg, env, progress, facts):
    """Print the self-check: what runs, on what, numbers that must be right. Cut out/NAME.csv back
    to the checkpoint's step. From here on a signal to stop is obeyed after a step, once all is
    saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, lambda *_: setattr(env, "stop", True))
    if env.rank != 0:
        return
    v, path, rows = env.versions, OUT / f"{cfg.name}.csv", []
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    check(not old or old.startswith("step,"), f"--name {cfg.name}: {show(path)} is another's file")
    print(f"{cfg.name}: {env.device}, {env.dtype}, {env.world} process(es), "
          f"{v['threads']} threads, torch {v['torch']}, commit {v['commit']}")
    for name, value in facts.items():
        print(f"  {name:<20} {value}")
    if progress.step:
        print(f"resuming after step {progress.step}")
        rows = old.splitlines(keepends=True)  # a row cut off by a kill comes after the checkpoint
        rows = rows[:1] + [row for row in rows[1:] if row.endswith("\n")
                           and int(row.split(",")[0]) <= progress.step]
    write_file(path, "".join(rows))


def log(cfg, env, step, numbers, val_ce, seconds, counts):
    """A row of out/NAME.csv, and every 20 steps an aligned line on the screen (rank 0).

    numbers: the terms of this step, in nats; val_ce: after it, None if it was not measured;
    seconds, counts (of tokens): of this step.
    """
    if env.rank != 0:
        return
    row = dict(step=step, **numbers, val_ce="" if val_ce is None else val_ce,
               seconds=round(seconds, 4), **counts)
    path = OUT / f"{cfg.name}.csv"
    head = "" if path.stat().st_size else ",".join(row) + "\n"
    append(path, head + ",".join(map(str, row.values())) + "\n")
    if step % 20 == 0 or step in (1, cfg.steps) or val_ce is not None:
        left = int((cfg.steps - step) * seconds)
        terms = " | ".join(f"{k} {v:.1e}" if k == "lr" else f"{k} {v:.3f}"
                           for k, v in numbers.items())
        terms += f" | val ce {val_ce:.4f}" if val_ce is not None else ""
        print(f"step {step:>6}/{cfg.steps} | {terms} | {1000 * seconds:.0f} ms | "
              f"{counts['tokens'] / seconds / 1000:.1f}k tok/s | eta {left // 60}m{left % 60:02d}s")


def check_finite(loss, norm, step, cfg):
    """UserError at the first loss or gradient that is NaN or infinite: nothing after it can be
    right."""
    check(math.isfinite(loss) and math.isfinite(norm),
          f"{cfg.name}: the loss is not finite at step {step + 1} (loss {loss}, norm {norm}); "
          "try a lower --lr; the last checkpoint is as before")


def end(cfg, env, progress):
    """What a whole run made and what to type next; or, after a signal, how to go on, status 130."""
    path = OUT / f"{cfg.name}.pt"
    finish(env)
    if progress.step < cfg.steps:
        stop(f"stopped; {show(path)} is saved: the same command goes on from there", 130)
    elif env.rank == 0:
        own = dict(data=cfg.val) if "val" in cfg.given else {}
        print(f"{show(path)}: validation ce {progress.best_ce:.4f} nats a token at step "
              f"{progress.best_step}, {progress.train_seconds:.0f} s of training\n"
              "next: " + command("eval.py", path, **own, teacher=getattr(cfg, "teacher", "")))
