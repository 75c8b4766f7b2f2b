"""Checkpoints: save and load a run. A resumed run gives the same weights as an uninterrupted one.

A run called NAME writes out/NAME.csv and out/NAME.pt. A checkpoint is read with weights_only=True,
so a stranger's file cannot run code. It holds
    model, best         weights of the last step, and of the best validation loss (for eval.py)
    optimizers, rng     states of the optimizers and random generators, for an exact resume
    step, tokens, ...   progress; the step number says which data come next
    model_config        shape of the model, which no script has to be told again
    run_config, inputs  flags; fingerprints of data, tokenizer, teacher: a resume must match both
    tokenizer           its file, as bytes: eval.py needs no other file
    source              only of an imported model: where it comes from (see convert.py)
"""
import dataclasses
import hashlib
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import torch

import common
from common import OUT, UserError, check, show
from model import SIZES, ModelConfig, Transformer, build, with_layers
from tokenizer import Tokenizer, load_bytes

# A resume does not compare these flags: `inputs` has fingerprints of what they name.
PATHS = ("data", "val", "tokenizer", "teacher", "init", "cache", "fresh")
FOREIGN = (".gguf", ".pth", ".safetensors", ".bin")  # files of other code


def save(path, state):
    """Write a checkpoint: temporary file, fsync, rename. An error leaves the old file unchanged."""
    with common.atomic_write(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # how torch's zip writer reports a full disk
            raise OSError(str(error)[:60]) from None


def load(path):
    """A checkpoint -> its dict. UserError if it is missing, damaged or written by other code."""
    common.check_exists(path, "the project's speedrun.sh makes the default models")
    path = Path(path).absolute()
    if path.is_dir() or path.suffix in FOREIGN:
        whole = path.parent if path.suffix in FOREIGN[2:] else path  # these are part of a folder
        first = common.command("convert.py", **{"from": whole}, out=OUT / "imported.pt")
        raise UserError(f"{show(path)} is a model of other code; first: {first}")
    return read(path)


def read(path):
    """A file of torch.save -> its content. UserError if it is damaged or would run code."""
    try:
        check(zipfile.ZipFile(path).testzip() is None, "wrong checksum")  # torch checks none
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can raise almost any error
        raise UserError(f"{show(path)} is damaged, or no checkpoint") from None


def load_model(path, device="cpu"):
    """Checkpoint -> (frozen model in eval mode, best weights if saved; tokenizer; the dict)."""
    state = load(path)
    try:
        with torch.random.fork_rng(devices=[]):  # loading must not change the student's init
            model = Transformer(ModelConfig(**state["model_config"]))
        model.load_state_dict(state.get("best") or state["model"], strict=True)
        tokenizer = load_bytes(state["tokenizer"].numpy().tobytes())
        check(tokenizer.vocab_size == model.config.vocab_size, "the tokenizer has another size")
        model.n_tokens = tokenizer.n_tokens
    except (RuntimeError, LookupError, TypeError, AttributeError, UserError) as error:
        raise UserError(f"{show(path)} is damaged, or no checkpoint "
                        f"({str(error).splitlines()[-1].strip()[:200]})") from None
    return model.to(device).eval().requires_grad_(False), tokenizer, state


def weights_fingerprint(model):
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def parent(state):
    """-> dict(source=...) for a run's inputs, or {}. A licence also holds for later students."""
    found = state.get("source") or state.get("inputs", {}).get("source")
    return dict(source=found) if found else {}


def load_teacher(cfg, env):
    """-> (teacher, its tokenizer, its fingerprint as a dict to save with the run)"""
    teacher, tokenizer, state = load_model(cfg.teacher, env.device)
    inputs = dict(teacher_fingerprint=weights_fingerprint(teacher)) | parent(state)
    return teacher, tokenizer, inputs


def start_model(cfg, env, teacher=None, tokenizer=None, inputs=None):
    """-> (model, tokenizer, inputs to save). The model is --init, or some blocks of the teacher, or
    new, of --size. The tokenizer is the teacher's; without one --init's, else --tokenizer."""
    blocks, inputs = getattr(cfg, "init_from_teacher", ""), inputs or {}
    check(not blocks or teacher and not cfg.init, "--init-from-teacher: use no --cache or --init")
    if cfg.init:
        check("tokenizer" not in cfg.given, "--tokenizer has no effect: --init has its own")
        model, own, state = load_model(cfg.init)
        check(tokenizer is None or own.fingerprint == tokenizer.fingerprint,
              f"--init {cfg.init}: has another tokenizer than the teacher")
        tokenizer = own
        tokens = state.get("inputs", {}).get("init_tokens", 0) + state.get("tokens", 0)
        inputs |= dict(init_fingerprint=weights_fingerprint(model), init_tokens=tokens)
        inputs |= parent(state)
    elif blocks:
        numbers = [int(word) if word.isdecimal() else 0 for word in blocks.split(",")]
        check(numbers == sorted({*numbers} & {*range(1, teacher.config.n_layers + 1)}),
              f"--init-from-teacher {blocks}: must be blocks of 1 to {teacher.config.n_layers}, "
              "in order, such as 1,3")
        model = with_layers(teacher, numbers)
    else:
        tokenizer = tokenizer or Tokenizer.load(cfg.tokenizer)
        # space for a prompt and its answer; positions after the window are not trained
        model = build(cfg.size, tokenizer.vocab_size, max_seq_len=max(512, 2 * cfg.window))
    if cfg.init or blocks:
        check("size" not in cfg.given or SIZES[cfg.size].items() <= vars(model.config).items(),
              f"--size {cfg.size}: the checkpoint has a shape of its own; leave out --size")
        cfg.size = ""
    check(not model.config.n_experts, "routed experts can only teach: no student can have them")
    context = min(m.config.max_seq_len for m in (model, teacher) if m)
    check(cfg.window <= context, f"--window {cfg.window}: the checkpoint's context is {context}")
    model = model.to(env.device).train().requires_grad_(True)
    model.n_tokens = tokenizer.n_tokens
    if getattr(cfg, "compile", False):
        check(env.device.type != "cpu" or any(map(shutil.which, ("c++", "g++", "clang++"))),
              "--compile needs a C++ compiler, and there is none")
        for one in filter(None, (model, teacher)):
            for part in (*one.layers[:-1], one.layers[-1].self_attn):  # the blocks share one code
                part.compile(dynamic=False)
    return model, tokenizer, inputs


def open_run(cfg, env, inputs, model, optimizers):
    """Start a run, or load out/NAME.pt into model, optimizers and random generators -> (progress,
    the checkpoint or None). Exit if the run is finished. UserError if flags or inputs differ."""
    path = OUT / f"{cfg.name}.pt"
    progress = SimpleNamespace(step=0, best_step=0, best_ce=float("inf"), best=None, tokens=0,
                               supervised=0, train_seconds=0.0)  # saved in the checkpoint
    sources = Path(cfg.init).absolute(), Path(getattr(cfg, "teacher", "")).absolute()
    check(path not in sources, f"--name {cfg.name}: would replace its own --init or --teacher")
    if env.rank == 0:
        env.lock = common.lock(path)
    if cfg.fresh or not path.exists():
        return progress, None
    state = load(path)
    gone = dict(loss_on="response", long_frac=-1, clip=1.0)  # old flags, with the value of today
    before = gone | state.get("run_config", {}) | state.get("inputs", {})
    now = gone | {k: v for k, v in (dataclasses.asdict(cfg) | inputs).items() if k not in PATHS}
    finished = (f"{show(path)} is finished ({state.get('step')} steps); --fresh trains it again, "
                f"--name NEW --init {show(path)} trains it further")
    differing = {key for key in now if before.get(key) != now[key]}
    check(differing != {"steps"} or state["step"] < before["steps"], finished)
    common.refuse_others(path, {k: before.get(k) for k in now}, now, "--name")
    if state["step"] >= cfg.steps:
        if env.rank == 0:
            print(finished)
        common.finish(env)
        raise SystemExit(0)
    model.load_state_dict(state["model"], strict=True)
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    torch.set_rng_state(state["rng"]["torch"])
    torch.cuda.set_rng_state_all(state["rng"]["cuda"])
    return SimpleNamespace(**{name: state[name] for name in vars(progress)}), state


def count_step(progress, counts, seconds):
    """Add one optimizer step to progress; counts come from step_batches."""
    progress.step += 1
    progress.tokens += counts["tokens"]
    progress.supervised += counts["supervised"]
    progress.train_seconds += seconds


def keep_best(progress, model, ce):
    """Copy the weights if ce is the lowest validation cross-entropy so far."""
    if ce < progress.best_ce:
        progress.best = {k: v.clone() for k, v in model.state_dict().items()}
        progress.best_step, progress.best_ce = progress.step, ce


def save_run(cfg, env, model, optimizers, tokenizer, progress, inputs, **more):
    """Write out/NAME.pt: all that a resume and an evaluation need. `more`: extras of a script."""
    if env.rank != 0:
        return
    rng = dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all())  # no GPU: []
    save(OUT / f"{cfg.name}.pt", dict(
        model=model.state_dict(), **vars(progress), optimizers=[o.state_dict() for o in optimizers],
        rng=rng, model_config=vars(model.config), run_config=dataclasses.asdict(cfg), inputs=inputs,
        tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8),
        versions=env.versions, **more))
