"""Measure a distillation step here and in a checkout of minimind (commit d65ef2c), in turns.

    pip install datasets transformers
    GSM8K=FILE python runs/minimind.py CHECKOUT       kept as results/minimind.md

Each side distils a teacher of 33 M parameters into a student of 6 M, with random weights: they do
not change a step's time. Both read one file, ours its first 1,000 rows, 8 windows of 340 tokens a
step, with a vocabulary of 6,400. minimind's train_distillation.py puts one conversation in a
window. Here a window is packed. So compare rows a second, and tokens without padding.
"""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, ROOT, check, check_exists, run, versions, write_file
import numpy as np

from dataset.formats import encode_document, parse_row
from metrics import markdown
from runs.bench import take_turns
from runs.recipes import run as make
from tokenizer import Tokenizer

ROWS, TOKENIZER, WINDOW = OUT / "data" / "minimind.jsonl", OUT / "minimind.model", 340
DATA = f"--data {ROWS} --val {ROWS} --documents 1000 --window {WINDOW} --eval-windows 1"
TEACHER, CACHE = OUT / "minimind-teacher.pt", OUT / "data" / "minimind-cache"
STUDENT = f"train_distill_logits.py {DATA} --size 5m"
OURS = {f"here, {name}{more}": f"{STUDENT} {source} {flag}"
        for name, source in (("online", f"--teacher {TEACHER}"), ("cache", f"--cache {CACHE}"))
        for more, flag in (("", ""), (", compiled", "--compile"), (", float32", "--dtype float32"))}


@dataclass
class Config:
    checkout: list = None          # the folder of minimind
    turns: int = 2                 # how often each command is timed (2 to 10)
    steps: int = 40                # steps of a training run; the first ten are not timed


def their_seconds(folder, cfg):
    """-> seconds of each step of minimind's script, except the first ten."""
    sizes = "--student_hidden_size 256 --student_num_layers 5 --teacher_hidden_size 512 " \
            "--teacher_num_layers 9 --teacher_use_moe 0"
    words = ("train_distillation.py --from_student_weight none --from_teacher_weight none "
             f"--batch_size 8 --max_seq_len {WINDOW} --log_interval 1 --save_interval 1000000 "
             f"--num_workers 1 --device cpu --data_path {ROWS} --save_dir {OUT} {sizes}").split()
    process = subprocess.Popen([sys.executable, "-u", *words], cwd=folder / "trainer", text=True,
                               stdout=subprocess.PIPE, start_new_session=True)
    ends = []
    for line in process.stdout:
        if line.startswith("Epoch:[1/"):
            ends.append(time.perf_counter())
        if len(ends) == cfg.steps:
            break
    os.killpg(process.pid, signal.SIGKILL)  # also its workers
    check(len(ends) == cfg.steps, f"{folder}: train_distillation.py has failed")
    return np.diff(ends)[9:].tolist()


def main(cfg):
    os.chdir(ROOT)
    os.environ["MINIDISTILL_OUT"] = str(OUT)
    folder = Path(cfg.checkout[0] if cfg.checkout else ".").absolute()
    check_exists(folder / "trainer" / "train_distillation.py", "name the folder of minimind")
    rows = [json.loads(line) for line in open(os.environ["GSM8K"], encoding="utf-8")]
    chats = [dict(conversations=[dict(role="user", content=row["question"]),
                                 dict(role="assistant", content=row["answer"])]) for row in rows]
    write_file(ROWS, "".join(json.dumps(chat) + "\n" for chat in chats))
    for command in (
            f"tokenizer/train.py {ROWS} --vocab-size 6400 --out {TOKENIZER} --fresh",
            f"train_pretrain.py {DATA} --tokenizer {TOKENIZER} --size 30m --steps 1 --fresh "
            f"--name {TEACHER.stem}",
            f"dataset/teacher_cache.py --data {ROWS} --val {ROWS} --documents 1000 "
            f"--window {WINDOW} --teacher {TEACHER} --out {CACHE} --fresh"):
        make(command, {})
    from transformers import AutoTokenizer
    theirs, ours = AutoTokenizer.from_pretrained(folder / "model"), Tokenizer.load(TOKENIZER)
    sizes = [min(WINDOW, len(theirs.apply_chat_template(chat["conversations"], return_dict=False)))
             for chat in chats[:1000]]
    a_row = np.mean([len(encode_document(ours, parse_row(chat))[0]) for chat in chats[:1000]])
    seconds, steps = [], {}
    for _ in range(cfg.turns):
        seconds += their_seconds(folder, cfg)
        for name, found in take_turns(OURS, Config(turns=1, steps=cfg.steps)).items():
            steps.setdefault(name, []).append(found)
    # of each side: seconds of a step, its rows, tokens of a row
    found = {"minimind, online, float32": (np.median(seconds), 8, np.mean(sizes))}
    for name, medians in steps.items():
        step, tokens, _ = np.median(medians, axis=0)
        found[name] = step, tokens / a_row, a_row
    lines = [[name, f"{step:.2f}", f"{count:.1f}", f"{count / step:.1f}",
              f"{count / step * np.median(seconds) / 8:.1f}", f"{count * length / step:,.0f}"]
             for name, (step, count, length) in found.items()]
    v = versions()
    print(f"python runs/minimind.py CHECKOUT --turns {cfg.turns} --steps {cfg.steps}\n"
          f"{v['machine']}, {v['threads']} threads, torch {v['torch']}\n")
    print(markdown("distillation | s a step: | rows a step: | rows/s: | times: | tokens/s:", lines))


if __name__ == "__main__":
    run(main, Config)
