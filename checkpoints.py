"""Checkpoints: what a run leaves, and what makes a resumed run equal an undisturbed one.

A run called NAME owns two files: out/NAME.pt and out/NAME.csv. The checkpoint holds

    model, best         weights now, and those of the best validation loss (what eval.py loads)
    optimizers, rng     to go on as if nothing had happened: a resumed run equals an undisturbed one
    step, tokens, ...   how far it is; the step is the whole data cursor
    model_config        the shape: no script asks for a size that a checkpoint knows
    run_config, inputs  flags; fingerprints of data, tokenizer, teacher: what a resume must match
    versions            Python, torch, commit, machine
    tokenizer           the SentencePiece model itself, as bytes: one file is all that eval.py needs

and is read with weights_only=True: opening a stranger's file runs none of its code.
"""
import dataclasses
import errno
import hashlib
import math
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch

import common
from common import OUT, UserError, check, show
from model import SIZES, ModelConfig, Transformer, build, with_layers
from tokenizer import Tokenizer

# What these flags name is compared by its content (inputs), wherever it lies now.
PATHS = ("data", "val", "tokenizer", "teacher", "init", "cache", "fresh")
FOREIGN = {".safetensors": "safetensors", ".gguf": "GGUF", ".pth": "another project's",
           ".bin": "Hugging Face's"}


def save(path, state):
    """Write a checkpoint whole or not at all: temporary file, fsync, rename."""
    with common.atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(errno.ENOSPC, f"could not be written ({str(error)[:60]})") from None


def load(path):
    """The dict of a checkpoint of this project, or UserError: missing, damaged, foreign."""
    path = Path(path)
    check(path.exists(), f"{show(path)} does not exist; bash speedrun.sh makes the default ones")
    kind = "a folder" if path.is_dir() else FOREIGN.get(path.suffix)
    check(kind is None, f"{show(path)} is {kind}; a checkpoint of this project is needed")
    try:
        damaged = zipfile.ZipFile(path).testzip()  # torch does not look at the checksums
        check(damaged is None, f"wrong checksum of {damaged}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        for key in ("model", "model_config", "tokenizer"):
            check(key in state, f"no key {key!r}")
        return state
    except Exception as error:  # a damaged file fails in as many ways as there are bytes in it
        raise UserError(f"{show(path)}: not a readable checkpoint of this project "
                        f"({type(error).__name__}: {str(error).splitlines()[0][:100]})") from None


def load_model(path, device="cpu"):
    """Checkpoint -> (frozen model in eval mode, tokenizer, the checkpoint's dict); the
    validation-best weights if the run kept them. strict: a missing or extra key is refused."""
    state = load(path)
    try:
        with torch.random.fork_rng(devices=[]):  # a teacher must not change the student's init
            model = Transformer(ModelConfig(**state["model_config"]))
        model.load_state_dict(state.get("best") or state["model"], strict=True)
        tokenizer = Tokenizer(state["tokenizer"].numpy().tobytes())
    except (RuntimeError, TypeError, AssertionError, UserError) as error:
        raise UserError(f"{show(path)}: its weights do not fit its own config "
                        f"({str(error).splitlines()[-1].strip()[:200]})") from None
    check(tokenizer.vocab_size == model.config.vocab_size,
          f"{show(path)}: its tokenizer has {tokenizer.vocab_size} pieces and its model "
          f"{model.config.vocab_size}")
    return model.to(device).eval().requires_grad_(False), tokenizer, state


def weights_fingerprint(model):
    """16 hex digits of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def load_teacher(cfg, env):
    """(teacher, its tokenizer, what the run remembers of it); its context must hold a window."""
    teacher, tokenizer, _ = load_model(cfg.teacher, env.device)
    room = teacher.config.max_seq_len
    check(cfg.window <= room, f"--window {cfg.window}: the teacher's context is {room}")
    return teacher, tokenizer, dict(teacher_fingerprint=weights_fingerprint(teacher))


def start_model(cfg, env, teacher=None, tokenizer=None, inputs=None):
    """(model to train, tokenizer, what the run remembers): from --init, from blocks of the teacher
    (--init-from-teacher 1,3), or fresh, of --size.

    The tokenizer is the teacher's; without a teacher --init's own, or --tokenizer.
    """
    blocks, inputs = getattr(cfg, "init_from_teacher", ""), inputs or {}
    check(not (cfg.init and blocks), "--init and --init-from-teacher: choose one")
    if cfg.init:
        model, own, state = load_model(cfg.init)
        check(tokenizer is None or own.fingerprint == tokenizer.fingerprint,
              f"--init {cfg.init}: has another tokenizer than the teacher")
        tokenizer, tokens = own, state.get("inputs", {}).get("init_tokens", 0)
        tokens += state.get("tokens", 0)
        inputs |= dict(init_fingerprint=weights_fingerprint(model), init_tokens=tokens)
    elif blocks:
        check(teacher is not None, "--init-from-teacher needs --teacher: a cache has no blocks")
        layers = teacher.config.n_layers
        numbers = [int(word) if word.isdecimal() else 0 for word in blocks.split(",")]
        check(numbers == sorted({*numbers} & {*range(1, layers + 1)}),
              f"--init-from-teacher {blocks}: blocks in order, such as 1,3, of 1 to {layers}")
        model = with_layers(teacher, numbers)
    else:
        tokenizer = tokenizer or Tokenizer.load(cfg.tokenizer)
        # room for a prompt and its answer; positions beyond the window are never trained
        model = build(cfg.size, tokenizer.vocab_size, max_seq_len=max(512, 2 * cfg.window))
    if cfg.init or blocks:
        own = vars(model.config)
        check("size" not in cfg.given or SIZES[cfg.size].items() <= own.items(),
              f"--size {cfg.size}: the start has a shape of its own, {own}")
        cfg.size = ""
        room = model.config.max_seq_len
        check(cfg.window <= room, f"--window {cfg.window}: the start's context is {room}")
    return model.to(env.device).train().requires_grad_(True), tokenizer, inputs


def open_run(cfg, env, inputs, model, optimizers):
    """-> (progress, the checkpoint or None): a new run, or out/NAME.pt put back into model,
    optimizers and random streams. Leaves with status 0 if the run is finished.

    The same name with other flags or inputs is a UserError that lists what differs: nothing is
    overwritten unasked. --fresh replaces.
    """
    path = OUT / f"{cfg.name}.pt"
    progress = SimpleNamespace(step=0, best_step=0, best_ce=math.inf, best=None, seconds=0.0,
                               train_seconds=0.0, tokens=0, supervised=0)  # saved in the checkpoint
    sources = [cfg.init, getattr(cfg, "teacher", "")]
    check(path not in [Path(source).absolute() for source in sources if source],
          f"--name {cfg.name}: would replace what the run starts from")
    if env.rank == 0:
        env.lock = common.lock(path)
    if cfg.fresh or not path.exists():
        return progress, None
    state = load(path)
    before = state.get("run_config", {}) | state.get("inputs", {})
    check(before.get("loss_on", "response") == "response" and before.get("long_frac", -1) == -1,
          f"{show(path)} used --loss-on all or --long-frac, which are gone; --fresh replaces it")
    now = {k: v for k, v in (dataclasses.asdict(cfg) | inputs).items() if k not in PATHS}
    common.refuse_others(path, {k: before.get(k) for k in now}, now)
    if state["step"] >= cfg.steps:
        if env.rank == 0:
            print(f"{show(path)} is finished ({state['step']} steps); --fresh trains it again, "
                  f"--name NEW --init {show(path)} goes on from it")
        common.finish(env)
        sys.exit(0)
    model.load_state_dict(state["model"], strict=True)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"]["torch"])
    if torch.cuda.is_available() and state["rng"]["cuda"]:
        torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    return SimpleNamespace(**{name: state[name] for name in vars(progress)}), state


def count_step(progress, counts, seconds):
    """Count one optimizer step; counts as step_batches gives them."""
    progress.step += 1
    progress.tokens += counts["tokens"]
    progress.supervised += counts["supervised"]
    progress.train_seconds += seconds


def keep_best(progress, model, ce):
    """Remember the weights of the lowest validation cross-entropy so far."""
    if ce < progress.best_ce:
        progress.best = {k: v.clone() for k, v in model.state_dict().items()}
        progress.best_step, progress.best_ce = progress.step, ce


def save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more):
    """Write out/NAME.pt: all that a resume and an evaluation need, and `more`: a script's own."""
    if env.rank != 0:
        return
    now = time.time()
    progress.seconds, env.began = progress.seconds + now - env.began, now
    rng = dict(torch=torch.get_rng_state(),
               cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])
    save(OUT / f"{cfg.name}.pt", dict(
        model=model.state_dict(), **vars(progress), optimizers=[o.state_dict() for o in optimizers],
        rng=rng, model_config=vars(model.config), run_config=dataclasses.asdict(cfg), inputs=inputs,
        tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8),
        versions=env.versions, **more))
