"""Plumbing that every training script shares: device, ranks, checkpoints, resume, log. No training.

A run called NAME owns two files: out/NAME.pt and out/NAME.csv. The checkpoint holds

    model, best         weights now, and those of the best validation loss (what eval.py loads)
    optimizers, rng     to go on as if nothing had happened: a resumed run equals an undisturbed one
    step, tokens, ...   how far it is (new_progress); the step alone is the data cursor
    model_config        the shape: no script asks for a size that a checkpoint knows
    run_config, inputs  flags; fingerprints of data, tokenizer, teacher: what a resume must match
    versions            Python, torch, commit, machine
    tokenizer           the SentencePiece model itself, as bytes: one file is all that eval.py needs

and is read with weights_only=True: opening a stranger's file runs none of its code.
"""
import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import platform
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

import cli
from cli import OUT, ROOT, check, fail, label, show
from dataset.batches import eval_batches
from losses import cross_entropy, forward_kl
from model import ModelConfig, Transformer, build, config_dict, with_layers
from tokenizer import Tokenizer, check_fingerprint


# smallest sensible values; 1e-9 stands for "more than 0"
SHARED_FLAGS = dict(steps=1, batch=1, accumulate=1, window=1, context=1, lr=1e-9, clip=1e-9,
                    weight_decay=0, warmup=0, documents=0, eval_every=1, eval_windows=0,
                    save_every=1, log_every=1, seed=0)
LARGEST = dict(window=2**16 - 1, context=2**20, batch=2**20, seed=2**32 - 1)  # more: a mistake


# --- device, precision, seeds, ranks --------------------------------------------------------------

def start(cfg):
    """Check the flags that all loops share, seed, join the ranks, pick device and precision.

    Returns env: device, dtype (its name), autocast (a fresh context manager a call), rank, world,
    stop.
    """
    for flag, at_least in SHARED_FLAGS.items():
        value, at_most = getattr(cfg, flag, at_least), LARGEST.get(flag, math.inf)
        check(math.isfinite(value) and at_least <= value <= at_most,
              "--" + flag.replace("_", "-"), value, f"a number of at least {at_least}" +
              (f" and at most {at_most:,}" if at_most < math.inf else ""))
    env = device_and_dtype(cfg)
    env.world, env.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    env.stop, env.began = False, time.time()
    if env.world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if env.device.type == "cuda" else "gloo")
    random.seed(cfg.seed)
    np.random.seed(cfg.seed)
    torch.manual_seed(cfg.seed)  # CPU and all GPUs
    return env


def device_and_dtype(cfg):
    """What was found, or asked for with --dtype: device, dtype (its name), autocast."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        device = torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    dtype = cfg.dtype if cfg.dtype != "auto" else "bf16" if fast_bf16(device) else "float32"
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if dtype == "bf16" \
        else contextlib.nullcontext
    return SimpleNamespace(device=device, dtype=dtype, autocast=autocast)


def check_loss_flags(cfg):
    """UserError for a wrong alpha, temperature, beta or skew -> the divergence's own parameter."""
    check(0 <= cfg.alpha <= 1, "--alpha", cfg.alpha, "a number from 0 to 1")
    check(0.01 <= cfg.temperature <= 1000, "--temperature", cfg.temperature, "0.01 to 1,000")
    check(0 <= cfg.beta <= 1, "--beta", cfg.beta, "a number from 0 to 1")
    check(0 <= cfg.skew < 1, "--skew", cfg.skew, "a number from 0, below 1")
    return cfg.beta if cfg.divergence == "jsd" else cfg.skew


def check_data_flags(cfg):
    """UserError for one's own training data with nobody's validation data, and for a run that would
    replace what it starts from."""
    default = {field.name: field.default for field in dataclasses.fields(cfg)}
    own = os.path.abspath(cfg.data) != str(default["data"])
    check("val" in cfg.given or not own, "--val", label(cfg.val),
          "validation text of the same kind as --data: hold some lines back (a tenth, say), "
          "or a file of another source")
    cli.check_apart("--name", OUT / f"{cfg.name}.pt", cfg.init, getattr(cfg, "teacher", ""))


def catch_signals(env):
    """From here on SIGINT and SIGTERM ask the loop to save and stop after its step."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: setattr(env, "stop", True))


def fast_bf16(device):
    """True where bfloat16 matmuls run in hardware: emulated ones are far slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        return any(f in Path("/proc/cpuinfo").read_text() for f in ("avx512_bf16", "amx_bf16"))
    return False


def sum_gradients(parameters, env):
    """Add up the gradients of all ranks, in one all-reduce.

    Each rank's loss is already divided by the n_valid of all ranks, so the plain sum is the
    gradient of one process; averaging local means (what DDP does) would weigh short batches more.
    """
    if env.world == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(flat, op=dist.ReduceOp.SUM)
    for g, summed in zip(grads, flat.split([g.numel() for g in grads])):
        g.copy_(summed.view_as(g))


def sum_over_ranks(values, env):
    """A list of floats, each added up over the ranks."""
    if env.world == 1:
        return values
    summed = torch.tensor(values, dtype=torch.float64, device=env.device)
    dist.all_reduce(summed)
    return summed.tolist()


@torch.no_grad()
def validation_ce(model, val, cfg, env):
    """Cross-entropy on validation data, nats a counted token; each rank reads its share."""
    was_training = model.training
    model.eval()
    ce_sum = count = 0.0
    batches = eval_batches(val, cfg.batch, cfg.eval_windows, env.device)
    for x, y, document, weight in itertools.islice(batches, env.rank, None, env.world):  # (B, T)
        keep = weight > 0                      # (B, T) the N tokens that count
        with env.autocast():
            logits = model(x, document, keep)  # (N, V)
        ce_sum += cross_entropy(logits, y[keep]).sum().item()
        count += keep.sum().item()
    model.train(was_training)
    ce_sum, count = sum_over_ranks([ce_sum, count], env)
    check(count > 0, "--val", cfg.val, "a file with at least one counted token")
    return ce_sum / count


@torch.no_grad()
def teacher_facts(teacher, val, cfg, env):
    """Lines of the self-check: the teacher's own loss, and the mean KL between two of its passes,
    which is 0, or it is not deterministic (train mode)."""
    x, _, document, weight = next(eval_batches(val, cfg.batch, cfg.batch, env.device))
    first, second = (teacher(x, document, weight > 0) for _ in range(2))  # (N, V)
    kl = forward_kl(second, first).mean().item()
    return {"teacher's ce": f"{validation_ce(teacher, val, cfg, env):.3f} nats",
            "KL(teacher||teacher)": f"{kl:.1e} must be 0"}


def first_rank_first(env, function):
    """Run `function` on rank 0 (it may write files), then on the others (they find them)."""
    if env.rank > 0:
        dist.barrier()
    result = function()
    if env.rank == 0 and env.world > 1:
        dist.barrier()
    return result


# --- checkpoints ----------------------------------------------------------------------------------

def save(path, state):
    """Write a checkpoint whole or not at all: temporary file, fsync, rename."""
    with cli.atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch reports a full disk as an error of its own zip writer
            raise OSError(28, f"the checkpoint could not be written ({str(error)[:60]})",
                          str(path)) from None


def load(path, made_by="bash speedrun.sh"):
    """The dict of a checkpoint of this project, or UserError: missing, truncated, foreign."""
    path = cli.need_file(path, f"make it with: {made_by}")
    try:
        damaged = zipfile.ZipFile(path).testzip()  # torch does not look at the checksums
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes in it
        fail(f"{show(path)} is not a readable checkpoint ({type(error).__name__})",
             expected="a whole file written by this project", fix=f"make it again: {made_by}")
    needed = {"model", "model_config", "tokenizer"}
    if not isinstance(state, dict) or not needed <= set(state):
        fail(f"{show(path)} is not a checkpoint of this project",
             sorted(state)[:5] if isinstance(state, dict) else type(state).__name__,
             f"the keys {', '.join(sorted(needed))}", f"make one: {made_by}")
    kinds = dict(run_config=dict, inputs=dict, tokens=int, model=dict, model_config=dict)
    wrong = [k for k, kind in kinds.items() if k in state and not isinstance(state[k], kind)]
    if wrong:
        fail(f"{show(path)} is not a checkpoint of this project", f"a strange {wrong[0]}",
             fix=f"make one: {made_by}")
    return state


def load_model(path, device="cpu", made_by="bash speedrun.sh"):
    """Checkpoint -> (model in eval mode without gradients, tokenizer, checkpoint dict).

    The validation-best weights where the run kept them. strict=True: a missing or extra key is
    refused.
    """
    state = load(path, made_by)
    try:
        check_config(state["model_config"])
        with torch.random.fork_rng(devices=[]):  # a teacher must not change the student's init
            model = Transformer(ModelConfig(**state["model_config"]))
        model.load_state_dict(state.get("best") or state["model"], strict=True)
        tokenizer = Tokenizer(state["tokenizer"].numpy().tobytes())
    except cli.UserError as error:
        raise cli.UserError(f"{show(path)}: {error}") from None
    except (RuntimeError, TypeError, AssertionError, AttributeError, ValueError) as error:
        fail(f"{show(path)}: its weights do not fit its own config",
             (str(error).splitlines() or [""])[-1].strip()[:200],
             fix="use the file that training wrote")
    if tokenizer.vocab_size != model.config.vocab_size:
        fail(f"{show(path)}: tokenizer and model differ in vocabulary",
             f"{tokenizer.vocab_size} and {model.config.vocab_size}")
    if not all(p.isfinite().all() for p in model.parameters()):
        fail(f"{show(path)} holds weights that are no numbers", fix=f"make it again: {made_by}")
    return model.to(device).eval().requires_grad_(False), tokenizer, state


def init_inputs(cfg, model, state):
    """What a run that starts from a checkpoint remembers of it; its shape replaces the flags."""
    cfg.size, cfg.context = "", model.config.max_seq_len
    tokens = state.get("tokens", 0) + state.get("inputs", {}).get("init_tokens", 0)
    return dict(init_fingerprint=weights_fingerprint(model), init_tokens=tokens)


def make_student(cfg, teacher, tokenizer):
    """(model, what the run remembers of its start): of --init, --init-from-teacher, or --size."""
    check(not (cfg.init and cfg.init_from_teacher), "--init", cfg.init, "no --init-from-teacher")
    if cfg.init:
        model, own_tokenizer, start = load_model(cfg.init)
        check_fingerprint(own_tokenizer.fingerprint, tokenizer.fingerprint, cfg.init,
                          "a student made with the teacher's tokenizer")
        return model, init_inputs(cfg, model, start)
    if not cfg.init_from_teacher:
        return build(cfg.size, tokenizer.vocab_size, max_seq_len=cfg.context), {}
    check(teacher is not None, "--init-from-teacher", cfg.init_from_teacher,
          "no --cache: the layers are in the teacher's file")
    layers = teacher.config.n_layers
    numbers = teacher_layers(cfg.init_from_teacher, layers)
    check(numbers, "--init-from-teacher", cfg.init_from_teacher,
          f"every-other, or some of its blocks in order, such as 1,3 (it has 1 to {layers})")
    cfg.size, cfg.context = "", teacher.config.max_seq_len
    return with_layers(teacher, numbers), {}


def teacher_layers(rule, layers):
    """The blocks that --init-from-teacher names, or None. every-other: the last, and every second
    one before it."""
    if rule == "every-other":
        return list(range(2 - layers % 2, layers + 1, 2))
    try:
        numbers = [int(word) for word in rule.split(",")]
    except ValueError:
        return None
    rising = all(a < b for a, b in zip(numbers, numbers[1:]))
    return numbers if rising and 1 <= numbers[0] and numbers[-1] <= layers else None


def check_config(config):
    """ValueError for a shape that no training script wrote, before any memory is taken for it."""
    for field in dataclasses.fields(ModelConfig):
        value = config.get(field.name, field.default)
        largest = 1000 if field.name == "n_layers" else 2**20
        ok = isinstance(value, field.type) and (field.type is bool or 0 < value < math.inf) and \
            (field.type is not int or value <= largest)
        if not ok:
            raise ValueError(f"{field.name} is {value!r}")


def weights_fingerprint(model):
    """16 hex digits of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def open_run(cfg, env, inputs):
    """Look at out/NAME.pt: None for a new run, its state to resume, or exit where it is finished.

    The same name with other flags or inputs is refused with the differing keys: nothing is
    overwritten unasked. `--fresh` replaces.
    """
    path = OUT / f"{cfg.name}.pt"
    check(cfg.name == Path(cfg.name).name and cfg.name.strip("."), "--name", cfg.name,
          "a plain file name")
    if env.rank == 0 and cfg.name not in locks:
        locks[cfg.name] = lock_file(path)
    if cfg.fresh or not path.exists():
        return None
    state = load(path, made_by="the same command with --fresh")
    now = {**comparable(cfg), **inputs}
    before = {**state.get("run_config", {}), **state.get("inputs", {})}
    differing = [f"{k} was {before.get(k)!r}, is {now.get(k)!r}"
                 for k in sorted(set(now) | set(before)) if now.get(k) != before.get(k)]
    if differing:
        fail(f"{show(path)} was made by another run: " + ", ".join(differing),
             fix="choose another --name, or replace it with --fresh")
    check(isinstance(state.get("step"), int) and state["step"] >= 0, "--name", show(path),
          "the checkpoint of a run, with its step")
    if state["step"] >= cfg.steps:
        say(env, f"{show(path)} is finished ({state['step']} steps); --fresh trains it again")
        finish(env)
        sys.exit(0)
    return state


locks = {}  # the open files: a lock lasts as long as its file is open


def lock_file(path):
    """Hold .NAME.lock beside a file as long as this is open: two writers of one file would mix."""
    if os.name != "posix":
        return None
    import fcntl
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path.with_name(f".{path.name}.lock"), "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"another process is writing {show(path)}", fix="wait for it, or choose another name")
    return file


def comparable(cfg):
    """The flags that make a run what it is, paths alike from every working directory."""
    flags = {f.name: getattr(cfg, f.name) for f in dataclasses.fields(cfg) if f.name != "fresh"}
    paths = ("data", "val", "tokenizer", "teacher", "init", "input", "out", "cache")
    return {k: label(v) if k in paths and v else v for k, v in flags.items()}


def new_progress():
    """What a run knows besides weights and optimizers; saved in the checkpoint."""
    return SimpleNamespace(step=0, best_step=0, best_ce=math.inf, best=None, seconds=0.0,
                           train_seconds=0.0, tokens=0, supervised=0)


def save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more):
    """Write out/NAME.pt: all that a resume and an evaluation need (see the top of this file), and
    `more`: what else a script wants back when it resumes."""
    if env.rank != 0:
        return
    now = time.time()
    progress.seconds, env.began = progress.seconds + now - env.began, now
    rng = dict(torch=torch.get_rng_state(),
               cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    save(OUT / f"{cfg.name}.pt", dict(
        model=model.state_dict(), **vars(progress), optimizers=[o.state_dict() for o in optimizers],
        rng=rng, model_config=config_dict(model), run_config=comparable(cfg), inputs=inputs, **more,
        versions=versions(),
        tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8)))


def restore(state, model, optimizers, env):
    """Put a checkpoint back into model, optimizers and random streams -> progress."""
    progress = new_progress()
    if state is None:
        return progress
    try:
        model.load_state_dict(state["model"], strict=True)
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        torch.set_rng_state(state["rng"]["torch"])
        if torch.cuda.is_available() and state["rng"]["cuda"]:
            torch.cuda.set_rng_state_all(state["rng"]["cuda"])
        for name in vars(progress):
            setattr(progress, name, state[name])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        fail("the checkpoint of this run cannot be resumed", f"{type(error).__name__}: {error}",
             "one that this script saved", "--fresh trains it again")
    say(env, f"resuming after step {progress.step}")
    return progress


def advance(progress, counts, seconds):
    """Count one optimizer step; counts as step_batches gives them."""
    progress.step += 1
    progress.tokens += counts["tokens"]
    progress.supervised += counts["supervised"]
    progress.train_seconds += seconds


def check_finite(loss, norm, step, cfg):
    """UserError at the first loss or gradient that is no number: nothing after it can be right."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        path = OUT / f"{cfg.name}.pt"
        fail(f"the loss is not finite at step {step + 1}", f"loss {loss}, gradient norm {norm}",
             fix="a lower --lr; the last good checkpoint is "
                 + (show(path) if path.exists() else "not there yet"))


def say(env, text):
    """Print once, not once a rank."""
    if env.rank == 0:
        print(text)


def keep_best(progress, model, ce):
    """Remember the weights of the lowest validation cross-entropy so far."""
    if ce < progress.best_ce:
        progress.best = {k: v.clone() for k, v in model.state_dict().items()}
        progress.best_step, progress.best_ce = progress.step, ce


def stop_signal(env, cfg):
    """After a save: say how to go on. Status 130, as shells expect of an interrupted program."""
    if env.rank == 0:
        print(f"stopped; {show(OUT / cfg.name)}.pt is saved: the same command goes on from there",
              file=sys.stderr)
    finish(env)
    sys.exit(130)


def next_command(cfg):
    """What to type after a run: its evaluation, on text of the kind that it was trained on."""
    words = f"python eval.py {show(OUT / cfg.name)}.pt"
    default = {field.name: str(field.default) for field in dataclasses.fields(cfg)}
    if os.path.abspath(cfg.val) != default["val"]:
        words += f" --data {show(cfg.val)}"
    return words + (f" --teacher {show(cfg.teacher)}" if getattr(cfg, "teacher", "") else "")


def finish(env):
    """Leave the group of ranks, all together: who leaves first tears the others' connections."""
    if env.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def should_stop(env):
    """True on every rank as soon as one of them got SIGINT or SIGTERM."""
    return sum_over_ranks([float(env.stop)], env)[0] > 0


# --- log ------------------------------------------------------------------------------------------

def versions():
    """What a result depends on: Python, torch, numpy, threads, commit, machine."""
    try:
        git = [subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
               for words in (["describe", "--always"], ["diff", "HEAD", "--quiet", "--", "*.py"])]
        commit = git[0].stdout.strip() + "-dirty" * (git[1].returncode == 1) or "unknown"
    except OSError:  # no git on this machine
        commit = "unknown"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return dict(python=platform.python_version(), torch=str(torch.__version__),
                numpy=np.__version__, threads=torch.get_num_threads(), commit=commit,
                machine=cpu_name(), gpu=gpu)


def cpu_name():
    """The processor's own name and its number of cores."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((l.split(":")[1].strip() for l in lines if l.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def append_row(path, row):
    """Add a finished run to a .jsonl file as one line, written whole and never changed after."""
    check_rows_file(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with cli.append(path) as file:
        file.write(json.dumps({**row, "digest": digest(row)}, ensure_ascii=False) + "\n")


def check_rows_file(path):
    """UserError where a row would be added to a file of another kind."""
    if Path(path).exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.read(10) not in ('{"recipe":', ""):
                fail(f"{show(path)} is there and not of this script", fix="choose another --row")


def digest(row):
    """16 hex digits of a row without its "digest": a figure changed by hand no longer fits."""
    rest = {key: value for key, value in row.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def print_start(cfg, env, facts):
    """The self-check at the top of a log: what runs, on what, and numbers that must be right."""
    if env.rank == 0:
        v = versions()
        print(f"{cfg.name}: {env.device}, {env.dtype}, {env.world} process(es), "
              f"{v['threads']} threads, torch {v['torch']}, commit {v['commit']}")
        for name, value in facts.items():
            print(f"  {name:<20} {value}")


def open_log(cfg, env, step):
    """out/NAME.csv, cut back to the checkpoint's step: a resumed run writes each row once."""
    path = OUT / f"{cfg.name}.csv"
    if env.rank == 0:
        rows = []
        if step == 0 and path.exists() and path.stat().st_size \
                and not path.read_bytes().startswith(b"step,"):
            fail(f"{show(path)} is there and no log of this script", fix="choose another --name")
        if step > 0 and path.exists():
            # a row cut off by a kill is after the checkpoint
            with open(path, newline="", encoding="utf-8", errors="replace") as file:
                rows = [r for r in csv.DictReader(file) if (r.get("step") or "").isdigit()
                        and r.get("supervised") and int(r["step"]) <= step]
        with cli.atomic_write(path, "w") as file:
            if rows:
                writer = csv.DictWriter(file, [k for k in rows[0] if k], extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
    return path


def log(path, env, cfg, step, numbers, val_ce, seconds, counts):
    """One aligned line on the screen and the same numbers as a row of the CSV (rank 0).

    numbers: the terms of this step, in nats; val_ce: after it, None where it was not measured;
    seconds, counts (of tokens): of this step.
    """
    due = step % cfg.log_every == 0 or step in (1, cfg.steps) or val_ce is not None
    if env.rank != 0 or not due:
        return
    left = (cfg.steps - step) * seconds
    terms = " | ".join(f"{k} {v:.1e}" if k == "lr" else f"{k} {v:.3f}" for k, v in numbers.items())
    terms += f" | val ce {val_ce:.4f}" if val_ce is not None else ""
    print(f"step {step:>6}/{cfg.steps} | {terms} | {1000 * seconds:.0f} ms | "
          f"{counts['tokens'] / seconds / 1000:.1f}k tok/s | "
          f"eta {int(left // 60)}m{int(left % 60):02d}s")
    row = dict(step=step, **numbers, val_ce="" if val_ce is None else val_ce,
               seconds=round(seconds, 4), **counts)
    with cli.append(path) as file:
        writer = csv.DictWriter(file, row.keys())
        if file.tell() == 0:
            writer.writeheader()
        writer.writerow(row)
