"""What all scripts share: flags, errors, safe file writes, device, processes (ranks), log.

    @dataclass
    class Config:
        steps: int = 1000        # optimizer steps (300 to 5,000)
    common.run(main, Config)     # python script.py --steps 500

A field's name is the flag and its comment the help text. A user's mistake raises UserError: one
line, status 2. A bug keeps its traceback. Only functions import torch: it takes two seconds.
"""
import argparse
import contextlib
import ctypes
import errno
import fcntl
import functools
import hashlib
import inspect
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
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
OUT = Path(os.environ.get("MINIDISTILL_OUT") or ROOT / "out").resolve()  # all output files
CPU = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""  # Linux only
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # before torch: its idle threads leave a core soon


class UserError(Exception):
    """A mistake that the user can fix: its message is one line, the exit status 2."""


def check(ok, message):
    if not ok:
        raise UserError(message)


def between(cfg, least, most, *names):
    """UserError if a named flag is below least, above most, or NaN."""
    for name in names:
        value, flag = getattr(cfg, name), name.replace("_", "-")
        check(least <= value <= most, f"--{flag} {value}: must be from {least:,} to {most:,}")


def parse(Config, argv=None):
    """argv (None: the command line) -> a Config. `cfg.given` is the set of flags that were typed.
    A field of type list takes the words without a flag. A bool is set by --name or --no-name. The
    flag of a field `from_` is --from, which Python reserves for itself."""
    kinds, comments = typing.get_type_hints(Config), {}
    for parent in reversed(Config.__mro__[:-1]):  # a Config may extend another script's
        comments |= re.findall(r"^ +(\w+) *:[^#\n]+# *(.+)", inspect.getsource(parent), re.M)
    parser = argparse.ArgumentParser(description=inspect.getmodule(Config).__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False, argument_default=argparse.SUPPRESS,
                                     epilog="(...) usual values, not limits. [...] the default.")
    parser.error = lambda message: check(False, f"{message}; see --help")
    for name, kind in kinds.items():
        default, choices = getattr(Config, name), typing.get_args(kind)
        shown = show(default) if isinstance(default, Path) else "" if default is None else default
        text = f"{comments.get(name, '')} [{shown}]".removesuffix(" []").replace("%", "%%")
        how = dict(choices=choices) if choices else dict(type=kind, metavar=kind.__name__.upper())
        special = {list: dict(nargs="*"), bool: dict(action=argparse.BooleanOptionalAction)}
        flag = name if kind is list else f"--{name.strip('_').replace('_', '-')}"
        parser.add_argument(flag, **special.get(kind, how | dict(dest=name)), help=text)
    typed = {k: v for k, v in vars(parser.parse_intermixed_args(argv)).items() if v != []}
    paths = {k: str(getattr(Config, k)) for k in kinds if isinstance(getattr(Config, k), Path)}
    cfg = Config(**paths | typed)
    cfg.given = frozenset(typed)
    return cfg


def run(main, Config):
    """Run main(parse(Config)). A user's mistake prints one line, status 2; Ctrl-C is status 130."""
    for stream in (sys.stdout, sys.stderr):  # print line by line, in UTF-8, on every platform
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        main(parse(Config))
    except UserError as error:
        stop(" ".join(str(error).split()))
    except ModuleNotFoundError as error:
        if error.name not in ("gguf", "jinja2", "safetensors", "tokenizers"):  # of imported models
            raise
        stop(f"{error.name} is not installed; first: pip install -r requirements-real.txt")
    except BrokenPipeError:  # the reader stopped: `script.py | head`
        os._exit(1)
    except (OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or " allocate " in str(error):  # torch's message
            stop("not enough memory: lower --batch, --window or --size, or raise --accumulate")
        if not getattr(error, "errno", None):  # a bug, or a library's own error
            raise
        stop(f"{error.filename or 'a file'}: {error.strerror}; what was saved before is kept")
    except KeyboardInterrupt:
        stop("stopped; to go on, run the same command again", 130)


def stop(message, status=2):
    print(f"error: {message}" if status == 2 else message, file=sys.stderr)
    sys.exit(status)


def show(path):
    """A path as a user types it: relative if it is inside the current folder."""
    return str(Path(path).absolute()).removeprefix(f"{Path.cwd()}/")


for package in ("torch", "numpy", "sentencepiece"):  # so scripts import this file first
    if not find_spec(package):
        made = any(ROOT.glob(f".venv/lib*/*/site-packages/{package}"))
        how, file = ("source", ".venv/bin/activate") if made else ("bash", "speedrun.sh")
        stop(f"{package} is not installed here; first: {shlex.join([how, show(ROOT / file)])}")


def check_exists(path, advice):
    """UserError if a file is missing: it says where a file of this name is in out/, or advice."""
    if not Path(path).exists():
        for found in sorted((p for p in OUT.rglob("*") if p.name == Path(path).name),
                            key=lambda p: len(p.parts))[:1]:
            advice = f"{shlex.quote(show(found))} does"
        raise UserError(f"{Path(path).absolute()} does not exist; {advice}")


def command(script, *words, **flags):
    """A command to paste: python SCRIPT WORDS --FLAG VALUE. Empty flags are left out."""
    for name, value in flags.items():
        if value not in ("", None, False):
            words += (f"--{name.replace('_', '-')}", *(() if value is True else (value,)))
    return shlex.join(["python", show(ROOT / script), *(
        show(w) if isinstance(w, Path) or os.path.exists(str(w)) else str(w) for w in words)])


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary file; at the end it replaces `path`. After an error `path` is unchanged."""
    path = Path(path).resolve()  # a link is kept; its target is replaced
    check(path.is_file() or not path.exists(), f"{path} is no regular file")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a failed write() does not name its file; numpy's gives no reason
        raise OSError(error.errno or errno.ENOSPC, error.strerror or str(error), path) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path, data):
    with atomic_write(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


def refuse_others(path, old, new, flag="--out"):
    """UserError that lists the differences, if a file's `old` settings are not the `new` ones."""
    differing = [re.sub("^([a-z]+).* '[0-9a-f]{16}.*", r"--\1 is not the same as before",  # a hash
                        f"{k} was {old.get(k)!r}, is {new.get(k)!r}")
                 for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    check(not differing, f"{show(path)}: {', '.join(differing)}; choose another {flag} or --fresh")


def lock(path, wait=False):
    """Hold .NAME.lock next to `path` while the returned file is open: only one process writes. If
    another one holds it, wait (if `wait`) or raise UserError. No locks here: print a note."""
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path.with_name(f".{path.name}.lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise UserError(f"another process is writing {show(path)}; wait for it") from None
    except OSError:
        print("note: no locks on this file system: do not start a second writer", file=sys.stderr)
    return file


def eta(seconds):
    return "eta {}m{:02d}s".format(*divmod(max(int(seconds), 0), 60))


def progress(what, items, whole=None, size=lambda item: 1):
    """Yield the items. Print how much of `whole` (default: their number) is done, and the time that
    the rest takes: on a terminal in one place, in a file or pipe as a line every ten seconds."""
    began = shown = time.monotonic()
    done, whole, live = 0, len(items) if whole is None else whole, sys.stdout.isatty()
    for item in items:
        done += size(item)
        yield item
        now = time.monotonic()
        if now - shown > (0.2 if live else 10):
            shown, left = now, (now - began) * (whole / done - 1)
            print(f"{what} {done:,.0f}/{whole:,.0f} | {eta(left)}", end=" \r" if live else "\n",
                  flush=True)
    print(end=" " * 79 + "\r" if live else "")  # the next line is not written over this one


def data_files(path):
    """A data file, or the .txt and .jsonl files of a folder, by name -> list of Path."""
    files = sorted(p for p in Path(path).glob("[!.]*") if p.suffix.lower() in (".txt", ".jsonl"))
    check(files or not Path(path).is_dir(), f"{show(path)} has no .txt and no .jsonl file")
    return files or [Path(path)]


def sha256_file(path):
    """Of a file: its content. Of a folder: names and contents of its data files."""
    digest = hashlib.sha256()
    for part in data_files(path):
        digest.update(f"{part.name} {part.stat().st_size} ".encode() * Path(path).is_dir())
        with open(part, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def start(cfg):
    """Check the flags that training scripts share, find the device, join the ranks, set the seed ->
    env: device, dtype (a name), autocast (makes a context), rank, world, stop, versions."""
    import torch
    between(cfg, 1, 2**32 - 1, "steps", "batch", "accumulate", "eval_every")
    between(cfg, 1e-9, math.inf, "lr")
    between(cfg, 1, 2**16 - 1, "window")  # documents in a window have 16-bit numbers
    between(cfg, 0, 2**32 - 1, "warmup", "weight_decay", "documents", "eval_windows", "seed")
    check(cfg.data and cfg.val, "--data and --val must each name a file")
    check("/" not in cfg.name and cfg.name.strip("."), f"--name {cfg.name}: must be a file name")
    env = device_and_dtype(cfg)
    env.world, env.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    check(cfg.batch % (cfg.accumulate * env.world) == 0,
          f"--batch {cfg.batch}: must be a multiple of --accumulate times the number of processes")
    env.stop, env.versions = False, versions()
    if env.world > 1:
        torch.distributed.init_process_group("nccl" if env.device.type == "cuda" else "gloo")
    torch.manual_seed(cfg.seed)  # CPU and all GPUs
    return env


def device_and_dtype(cfg):
    """Use CUDA, MPS or the CPU. auto is bf16 only if the hardware has it: emulation is slow."""
    import torch
    if platform.libc_ver()[0] == "glibc":  # malloc keeps all freed blocks: up to twice as fast
        for option, value in ((-1, 2**31 - 1), (-2, 2**28), (-4, 0)):  # trim, top pad, mmap
            ctypes.CDLL(None).mallopt(option, value)
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
        fast = device.type == "cpu" and re.search("avx512_bf16|amx_bf16", CPU)
    dtype = cfg.dtype if cfg.dtype != "auto" else "bf16" if fast else "float32"
    autocast = functools.partial(torch.autocast, device.type, torch.bfloat16, dtype == "bf16")
    return argparse.Namespace(device=device, dtype=dtype, autocast=autocast)


def check_loss_flags(cfg):
    """UserError if a loss flag is wrong or has no effect -> mix: beta for jsd, otherwise skew."""
    between(cfg, 0, 1, "alpha", "beta")
    between(cfg, 0.01, 1000, "temperature")
    check(0 <= cfg.skew < 1, f"--skew {cfg.skew}: must be at least 0 and below 1")
    logits, hidden, relation = (vars(cfg).get(f"{name}_weight", 1)  # 1: a script without this flag
                                for name in ("logits", "hidden", "relation"))
    own = vars(cfg).get("on_policy_share", 0)
    for there, needed, flags in (
            (logits, "--logits-weight above 0", "alpha temperature divergence beta skew"),
            (cfg.divergence == "jsd", "--divergence jsd", "beta"),
            ("skew" in cfg.divergence, "a skew_* --divergence", "skew"),
            (logits and cfg.alpha or own, "--alpha above 0", "temperature divergence"),
            (hidden, "--hidden-weight above 0", "hidden_loss hidden_layers"),
            (relation, "--relation-weight above 0", "relation_heads relation_layers"),
            (own, "--on-policy-share above 0", "max_new_tokens sample_temperature")):
        for flag in cfg.given & {*flags.split()}:
            check(there, f"--{flag.replace('_', '-')} has no effect: it needs {needed}")
    return cfg.beta if cfg.divergence == "jsd" else cfg.skew


def sum_gradients(parameters, env):
    """Add up the gradients of all ranks. Each loss is already divided by n_valid of all ranks."""
    if env.world == 1:
        return
    import torch
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    torch.distributed.all_reduce(flat)
    for g, summed in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(summed.view_as(g))


def sum_over_ranks(values, env):
    """A list of floats -> each one summed over the ranks."""
    if env.world == 1:
        return values
    import torch
    summed = torch.tensor(values, dtype=torch.float64, device=env.device)
    torch.distributed.all_reduce(summed)
    return summed.tolist()


def finish(env):
    """Leave the ranks, all at the same time: the first to leave would break the connections."""
    if env.world > 1:
        import torch
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


@functools.cache
def versions():
    """What a result depends on: Python, torch, numpy, threads, commit, machine."""
    import numpy
    import torch
    git = [subprocess.run(f"git --git-dir=.git {words}", cwd=ROOT, shell=True, capture_output=True,
                          text=True) for words in ("describe --always", "diff HEAD --quiet '*.py'")]
    found = git[0].stdout.strip()  # empty without git
    commit = found and found + "-dirty" * (git[1].returncode == 1) or "unknown"
    machine = (re.search(r"model name\s*: (.*\S)", CPU) or [0, platform.machine()])[1]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return dict(python=platform.python_version(), torch=str(torch.__version__),
                numpy=numpy.__version__, threads=torch.get_num_threads(), commit=commit,
                machine=f"{machine}, {os.cpu_count()} cores", gpu=gpu)


def begin(cfg, env, progress, facts):
    """Print the self-check: the run, its machine, and `facts` (numbers to check). Cut out/NAME.csv
    back to the checkpoint's step. After this, a stop signal waits until the step is saved."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda *_: setattr(env, "stop", True))
    if env.rank != 0:
        return
    v, path = env.versions, OUT / f"{cfg.name}.csv"
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    check(not old or old.startswith("step,"), f"--name {cfg.name}: {show(path)} is no training log")
    print(f"{cfg.name}: {env.device}, {env.dtype}, {env.world} process(es), "
          f"{v['threads']} threads, torch {v['torch']}, commit {v['commit']}")
    print(*(f"  {name:<20} {value}" for name, value in facts.items()), sep="\n")
    if progress.step:
        print(f"resuming after step {progress.step}")
    rows = re.split(rf"(?m)^{progress.step + 1},", old)[0] if progress.step else ""
    write_file(path, rows[:rows.rfind("\n") + 1])  # without half a row of a killed run


def log(cfg, env, step, numbers, val_ce, seconds, counts):
    """Add a row to out/NAME.csv; print every 20th, and those with a val_ce (None: not measured)."""
    if env.rank != 0:
        return
    row = dict(step=step, **numbers, val_ce="" if val_ce is None else val_ce,
               seconds=round(seconds, 4), **counts)
    with open(OUT / f"{cfg.name}.csv", "a") as file:
        if not file.tell():
            print(*row, sep=",", file=file)
        print(*row.values(), sep=",", file=file)
    if step % 20 == 0 or step in (1, cfg.steps) or val_ce is not None:
        left = eta((cfg.steps - step) * seconds)
        terms = [f"{k} {v:{'.1e' if k == 'lr' else '.3f'}}" for k, v in numbers.items()]
        terms += [f"val ce {val_ce:.4f}"] if val_ce is not None else []
        print(f"step {step:>6}/{cfg.steps} | {' | '.join(terms)} | {1000 * seconds:.0f} ms | "
              f"{counts['tokens'] / seconds / 1000:.1f}k tok/s | {left}")


def check_finite(loss, norm, step, cfg):
    """UserError if loss or gradient norm is inf or NaN: all later steps would be wrong."""
    check(math.isfinite(loss + norm), f"{cfg.name}: the loss is not finite at step {step + 1}; "
          "try a lower --lr; the last checkpoint is kept")


def end(cfg, env, progress):
    """Print the result and the next command. After a stop signal: how to go on, status 130."""
    path = OUT / f"{cfg.name}.pt"
    finish(env)
    if progress.step < cfg.steps:
        stop(f"stopped; {show(path)} is saved: the same command goes on from there", 130)
    elif env.rank == 0:
        following = command("chat.py", path, complete="The" if cfg.data.endswith(".txt") else "")
        if "val" in cfg.given or "data" not in cfg.given:  # else no file is left for eval.py
            following = command("eval.py", path, data=cfg.val if "val" in cfg.given else "",
                                teacher=not vars(cfg).get("cache") and vars(cfg).get("teacher"))
        print(f"{show(path)}: validation ce {progress.best_ce:.4f} nats a token at step "
              f"{progress.best_step}, {progress.train_seconds:.0f} s of training\n"
              f"next: {following}")
