"""Plumbing that every training script shares: device, ranks, flags, text, log. No training.

Checkpoints are in checkpoints.py. A run called NAME owns two files: out/NAME.pt and out/NAME.csv.
"""
import contextlib
import csv
import itertools
import math
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist

import cli
from cli import OUT, ROOT, check, fail, label, show
from dataset.batches import eval_batches, open_data
from dataset.prepare import summary
from losses import cross_entropy, forward_kl


# least and most of the flags that all loops share; 1e-9 stands for "more than 0". A huge --clip
# switches it off; a huge --lr shows what a loss that is not finite does
MANY = 10**9
RANGES = dict(steps=(1, MANY), batch=(1, 2**20), accumulate=(1, 2**20), window=(1, 2**16 - 1),
              context=(1, 2**20), lr=(1e-9, 1e30), clip=(1e-9, 1e30), weight_decay=(0, MANY),
              warmup=(0, MANY), documents=(0, MANY), eval_every=(1, MANY), eval_windows=(0, MANY),
              save_every=(1, MANY), log_every=(1, MANY), seed=(0, 2**32 - 1))


# --- device, precision, seeds, ranks --------------------------------------------------------------

def start(cfg):
    """Check the flags that all loops share, seed, join the ranks, pick device and precision.

    Returns env: device, dtype (its name), autocast (a fresh context manager a call), rank, world,
    stop.
    """
    cli.check_ranges(cfg, **{flag: RANGES[flag] for flag in RANGES if hasattr(cfg, flag)})
    env = device_and_dtype(cfg)
    env.world, env.rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    env.stop, env.began = False, time.time()
    if env.world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if env.device.type == "cuda" else "gloo")
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
    cli.check_ranges(cfg, alpha=(0, 1), temperature=(0.01, 1000), beta=(0, 1))
    check(0 <= cfg.skew < 1, "--skew", cfg.skew, "a number from 0, below 1")
    return cfg.beta if cfg.divergence == "jsd" else cfg.skew


def check_run_flags(cfg, env):
    """UserError for a batch that cannot be shared out, one's own training data with nobody's
    validation data, and for a run that would replace what it starts from."""
    check(cfg.batch % (cfg.accumulate * env.world) == 0,
          "--batch", cfg.batch, "a multiple of --accumulate times the number of processes")
    check("val" in cfg.given or cli.is_default(cfg, "data"), "--val", label(cfg.val),
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


def facts(model, tokenizer, train, val, cfg, env):
    """Lines of the self-check: what is read, and the loss before the first step."""
    return {"data": f"{train['name']}: {summary(train['meta'])}",
            "validation": summary(val["meta"]),
            "tokens a step": f"{cfg.batch * cfg.window:,} with padding",
            "ce at start": f"{validation_ce(model, val, cfg, env):.3f} nats; "
                           f"ln V = {math.log(tokenizer.vocab_size):.3f} is guessing"}


@torch.no_grad()
def teacher_facts(teacher, val, cfg, env):
    """Lines of the self-check: the teacher's own loss, and the mean KL between two of its passes,
    which is 0, or it is not deterministic (train mode). UserError where its logits are no numbers.
    """
    x, _, document, weight = next(eval_batches(val, cfg.batch, cfg.batch, env.device))
    with env.autocast():
        first, second = (teacher(x, document, weight > 0) for _ in range(2))  # (N, V)
    kl, ce = forward_kl(second, first).mean().item(), validation_ce(teacher, val, cfg, env)
    if not (math.isfinite(kl) and math.isfinite(ce)):
        fail("the teacher's logits are not finite", f"ce {ce}, KL(teacher||teacher) {kl}",
             fix=f"another --teacher, or another --dtype than {env.dtype}")
    return {"teacher's ce": f"{ce:.3f} nats", "KL(teacher||teacher)": f"{kl:.1e} must be 0"}


def first_rank_first(env, function):
    """Run `function` on rank 0 (it may write files), then on the others (they find them)."""
    if env.rank > 0:
        dist.barrier()
    result = function()
    if env.rank == 0 and env.world > 1:
        dist.barrier()
    return result


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
    if not cli.is_default(cfg, "val"):
        words += f" --data {show(cfg.val)}"
    return words + (f" --teacher {show(cfg.teacher)}" if getattr(cfg, "teacher", "") else "")


def end(cfg, env, progress):
    """Say what a whole run made and what to type next; leave the ranks."""
    say(env, f"{show(OUT / cfg.name)}.pt: validation ce {progress.best_ce:.4f} nats a token "
             f"at step {progress.best_step}, {progress.train_seconds:.0f} s of training\n"
             f"next: {next_command(cfg)}")
    finish(env)


def finish(env):
    """Leave the group of ranks, all together: who leaves first tears the others' connections."""
    if env.world > 1:
        dist.barrier()
        dist.destroy_process_group()


def should_stop(env):
    """True on every rank as soon as one of them got SIGINT or SIGTERM."""
    return sum_over_ranks([float(env.stop)], env)[0] > 0


def open_text(cfg, env, tokenizer):
    """(train, val, what the run remembers of them): the first rank prepares, the others find it.

    After the model, which may come from a checkpoint with a context of its own.
    """
    check(cfg.window <= cfg.context, "--window", cfg.window,
          f"1 to the context, {cfg.context} (--context sets a new model's)")
    options = dict(window=cfg.window, target=cfg.target, skip_bad_lines=cfg.skip_bad_lines,
                   loss_on=getattr(cfg, "loss_on", "response"))

    def both():
        """Training and validation windows, prepared where they are not there yet."""
        return (open_data(cfg.data, tokenizer, documents=cfg.documents,
                          long_frac=getattr(cfg, "long_frac", -1), **options),
                open_data(cfg.val, tokenizer, **options))
    train, val = first_rank_first(env, both)
    return train, val, dict(data_sha256=train["meta"]["source_sha256"],
                            val_sha256=val["meta"]["source_sha256"],
                            tokenizer_fingerprint=tokenizer.fingerprint)


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
