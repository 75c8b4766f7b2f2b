"""Checkpoints: what a run leaves, and what makes a resumed run equal an undisturbed one.

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
import dataclasses
import hashlib
import math
import os
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch

import cli
import oldcommon as common
from cli import OUT, check, fail, label, show
from model import SIZES, ModelConfig, Transformer, build, config_dict, with_layers
from tokenizer import Tokenizer, check_fingerprint


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


def load_teacher(cfg, device):
    """(teacher, its tokenizer, what the run remembers of it); its context must hold a window."""
    teacher, tokenizer, _ = load_model(cfg.teacher, device,
                                       "python train_pretrain.py --name teacher")
    room = teacher.config.max_seq_len
    check(cfg.window <= room, "--window", cfg.window, f"1 to the teacher's context, {room}")
    return teacher, tokenizer, dict(teacher_fingerprint=weights_fingerprint(teacher))


def take_shape(cfg, model):
    """The start's shape replaces the flags; UserError where --size or --context was typed beside it
    and is another one."""
    own = vars(model.config)
    for flag, wanted in (("size", SIZES.get(cfg.size, {})),
                         ("context", dict(max_seq_len=cfg.context))):
        check(flag not in cfg.given or wanted.items() <= own.items(), f"--{flag}",
              getattr(cfg, flag), f"none: the student's start has a shape of its own, {own}")
    cfg.size, cfg.context = "", model.config.max_seq_len


def init_inputs(model, state):
    """What a run that starts from a checkpoint remembers of it."""
    tokens = state.get("tokens", 0) + state.get("inputs", {}).get("init_tokens", 0)
    return dict(init_fingerprint=weights_fingerprint(model), init_tokens=tokens)


def start_model(cfg):
    """(model, tokenizer, what the run remembers of them): of --init, or --size and --tokenizer.

    A checkpoint has a shape and a tokenizer of its own: these flags become its, or empty.
    """
    if cfg.init:
        model, tokenizer, start = load_model(cfg.init)
        take_shape(cfg, model)
        cfg.tokenizer = ""
        return model, tokenizer, init_inputs(model, start)
    tokenizer = Tokenizer.load(cfg.tokenizer)
    return build(cfg.size, tokenizer.vocab_size, max_seq_len=cfg.context), tokenizer, {}


def make_student(cfg, teacher, tokenizer):
    """(model, what the run remembers of its start): of --init, --init-from-teacher, or --size."""
    check(not (cfg.init and cfg.init_from_teacher), "--init", cfg.init, "no --init-from-teacher")
    if cfg.init:
        model, own_tokenizer, start = load_model(cfg.init)
        check_fingerprint(own_tokenizer.fingerprint, tokenizer.fingerprint, cfg.init,
                          "a student made with the teacher's tokenizer")
        take_shape(cfg, model)
        return model, init_inputs(model, start)
    if not cfg.init_from_teacher:
        return build(cfg.size, tokenizer.vocab_size, max_seq_len=cfg.context), {}
    check(teacher is not None, "--init-from-teacher", cfg.init_from_teacher,
          "no --cache: the layers are in the teacher's file")
    layers = teacher.config.n_layers
    numbers = teacher_layers(cfg.init_from_teacher, layers)
    check(numbers, "--init-from-teacher", cfg.init_from_teacher,
          f"every-other, or some of its blocks in order, such as 1,3 (it has 1 to {layers})")
    model = with_layers(teacher, numbers)
    take_shape(cfg, model)
    return model, {}


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
    cli.refuse_others(path, before, now, "run", "--name")
    check(isinstance(state.get("step"), int) and state["step"] >= 0, "--name", show(path),
          "the checkpoint of a run, with its step")
    if state["step"] >= cfg.steps:
        common.say(env, f"{show(path)} is finished ({state['step']} steps); "
                        "--fresh trains it again")
        common.finish(env)
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
        versions=common.versions(),
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
    common.say(env, f"resuming after step {progress.step}")
    return progress
