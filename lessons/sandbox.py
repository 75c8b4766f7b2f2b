"""Run a submission in a process of its own. Only data come back. Used by check.py, see there.

    python lessons/sandbox.py FOLDER     runs FOLDER/exercise.py with FOLDER/calls.pt
"""
import contextlib
import copy
import ctypes
import importlib.util
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from pathlib import Path

import numpy as np
import torch

SECONDS = 6          # for all calls of a lesson, see `wait`
LARGEST = 2**22      # bytes of a submission, and of the answer to a call
ELEMENTS = 100_000   # numbers and characters in an answer
DTYPES = (torch.bool, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32,
          torch.float64)


def load(path):
    """Import a Python file -> module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def plain(value, depth=0, size=None):
    """A copy of None, numbers, text, lists, dicts and tensors on the CPU; a tuple becomes a list.
    TypeError for other types and for subclasses: their == may lie. ValueError if it is large."""
    size, kind = size or [0], type(value)
    size[0] += value.numel() if kind is torch.Tensor else len(value) if kind is str else 1
    if size[0] > ELEMENTS or depth > 8 or kind is int and abs(value) >= 2**63:
        raise ValueError("the answer is too large")
    if isinstance(value, np.generic):  # a number of numpy
        return value.item()
    if kind in (list, tuple):
        return [plain(item, depth + 1, size) for item in value]
    if kind is dict:
        return {plain(key, 8, size): plain(item, depth + 1, size) for key, item in value.items()}
    if kind is torch.Tensor and value.dtype in DTYPES and value.device.type == "cpu" \
            and value.layout == torch.strided:
        return value.detach().clone()
    if value is None or kind in (bool, int, float, str):
        return value
    raise TypeError(f"the answer contains a {kind.__name__}; see the docstring")


def answer(path, calls):
    """Import an exercise and call it -> for each call [True, answer] or [False, error, text].
    A generator, so that the answers before a crash can be saved."""
    try:
        module, broken = load(path), None
    except BaseException as error:  # also SystemExit
        module, broken = None, error
    for name, arguments in calls:
        try:
            if broken:
                raise broken
            torch.manual_seed(0)
            with torch.no_grad():
                yield [True, plain(getattr(module, name)(*copy.deepcopy(arguments)))]
        except BaseException as error:
            frames = traceback.extract_tb(error.__traceback__)
            lines = [frame.lineno for frame in frames if frame.filename == str(path)]
            text = ""
            with contextlib.suppress(BaseException):  # a str() of the submission's own
                text = str(error)[:200] + (f" (line {lines[-1]})" if lines else "")
            yield [False, type(error).__name__[:50], text]


def run_calls(folder):
    """In the process of its own: limit it, call the submission, save each answer at once."""
    save, leave = torch.save, os._exit  # the submission may replace them
    calls = torch.load(folder / "calls.pt", weights_only=True)
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on this system
        import resource
        limits = dict(FSIZE=LARGEST, CORE=0, CPU=int(time.process_time()) + SECONDS + 2)
        if tasks := len(list(Path("/proc").glob("[0-9]*/task/*"))):  # Linux: of all users
            limits |= dict(NPROC=tasks + 100, DATA=2**32)
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most + 1))
    (folder / "ready").touch()
    for i, row in enumerate(answer(folder / "exercise.py", calls)):
        with contextlib.suppress(BaseException):
            save(row, folder / f"{i}.pt")
    leave(0)  # without what the submission has registered for the end


def run(submission, calls, output=subprocess.DEVNULL):
    """Run the calls of a submission -> list of answers; an Exception object for each that failed.
    calls: list of (function name, arguments). output: where the submission's prints go."""
    with contextlib.suppress(AttributeError, OSError):  # Linux: its orphans become our children
        ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    before = children()
    with tempfile.TemporaryDirectory(prefix="lesson-", ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        shutil.copyfile(submission, folder / "exercise.py")
        torch.save([list(call) for call in calls], folder / "calls.pt")
        env = {k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH", "LANG") if k in os.environ}
        env |= dict.fromkeys(("HOME", "TMPDIR", "MINIDISTILL_OUT"), str(folder))
        env |= dict(OMP_NUM_THREADS="1", PYTHONHASHSEED="0", PYTHONDONTWRITEBYTECODE="1",
                    PYTHONPATH=str(Path(__file__).resolve().parent.parent))
        process = subprocess.Popen([sys.executable, __file__, str(folder)], env=env, cwd=folder,
                                   stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                                   start_new_session=True)
        try:
            wait(process, folder / "ready")
        finally:
            late = process.poll() in (None, -signal.SIGXCPU)
            kill(process, before)
        missing = TimeoutError("took too long") if late else RuntimeError("the process ended")
        return [read(folder / f"{i}.pt", missing) for i in range(len(calls))]


def wait(process, ready):
    """Until the process has ended or its time is over. The file `ready` says that torch is imported
    and the calls begin. They have SECONDS, or three times what the import took: a busy or slow
    computer must not cost points."""
    start, limit = time.monotonic(), 300
    while process.poll() is None and (passed := time.monotonic() - start) < limit:
        if limit == 300 and ready.exists():
            limit = passed + max(SECONDS, 3 * passed)
        time.sleep(0.02)


def children():
    """Ids of the processes that this one is the parent of (Linux; elsewhere none)."""
    files = Path("/proc/self/task").glob("*/children")
    return {int(pid) for file in files for pid in file.read_text().split()}


def kill(process, before):
    """Kill the process with its group, then those that left the group: on Linux they become our
    children when their parent dies. before: children that are not the submission's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while strays := children() - before:
        for pid in strays:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def read(path, missing):
    """A file of run_calls -> the answer or an Exception object; no file: `missing`. The submission
    may have written it: it may be a pipe, a link, a bomb."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("not a regular file")
            data = io.BytesIO(file.read(LARGEST))
        if sum(entry.file_size for entry in zipfile.ZipFile(data).infolist()) > LARGEST:
            raise ValueError("the answer is too large")
        data.seek(0)
        return unpack(plain(torch.load(data, weights_only=True)))
    except FileNotFoundError:
        return missing
    except Exception as error:
        return RuntimeError(f"no answer: {type(error).__name__}")


def unpack(row):
    """A row of `answer` -> what judge sees: the answer, or an Exception object."""
    ok, *found = row
    if ok is True:
        return found[0]
    kind = NotImplementedError if found[0] == "NotImplementedError" else RuntimeError
    return kind(": ".join(found))


if __name__ == "__main__":
    run_calls(Path(sys.argv[1]))
