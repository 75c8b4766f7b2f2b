"""The recipes of every run behind RESULTS.md, and a program that runs those that are missing.

    python runs/recipes.py                            all, after bash speedrun.sh; a day on 2 cores
    python runs/recipes.py "white/c*" --seeds 1,2     only recipes of this pattern, only these seeds
    python runs/recipes.py "white/c*" --dry-run       print their commands without running them

A finished run is a row of results/*.jsonl, and it is not run again. So you may stop at any time. A
file in MAKE is made when a command needs it. Two need a file that the environment names:
GSM8K=FILE, its training set; SMOLLM2=FILE, the GGUF of SmolLM2-135M-Instruct.
"""
import atexit
import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import numpy as np

from common import ROOT, check


@dataclass
class Config:
    recipes: list = None           # patterns of names, such as "white/c*"; none: every recipe
    seeds: str = ""                # only these seeds, such as 1,2; empty: those of RESULTS.md
    dry_run: bool = False          # print the commands without running them


# In the commands, SEED is replaced by each seed. The last one adds a row to results/ROWS.jsonl.
Recipe = namedtuple("Recipe", "name seeds rows commands")


@dataclass
class Group:
    """Recipes with the same teacher, the same test data and the same file of rows."""
    name: str
    rows: str
    teacher: str
    data: str                      # a folder
    seeds: tuple = ()
    flags: str = ""                # more flags of eval.py
    test: str = "test"             # name of the test file in data; val for trials

    def run(self, name, train="", checkpoint=""):
        """Add a recipe: train the checkpoint and score it. Without `train`, score the teacher."""
        name = f"{self.name}/{name}".lstrip("/")
        out = f"out/{name.replace('/', '-')}-SEED"
        checkpoint = checkpoint or (f"{out}.pt" if train else self.teacher)
        evaluate = (f"eval.py {checkpoint} --teacher {self.teacher} --data "
                    f"{self.data}/{self.test}.jsonl --out {out} --no-speed --row "
                    f"results/{self.rows}.jsonl --recipe {name} {self.flags}")
        train = [f"{train} --name {Path(checkpoint).stem} --seed SEED"] if train else []
        RECIPES.append(Recipe(name, self.seeds if train else (0,), self.rows, [*train, evaluate]))

    def both(self, name, train, steps, wall):
        """Add two recipes: `steps` steps; `wall` steps, as long as `steps` without a teacher."""
        self.run(name, f"{train} --steps {steps}")
        self.run(f"{name}-wall", f"{train} --steps {wall}")

    def trials(self, name, train, changes):
        """Add trials, scored on validation data with a seed that no table on test data uses. Their
        names are their flags: 700-lr-1e-2-decay-.3 is --steps 700 --lr 1e-2 --weight-decay .3."""
        tried = replace(self, name=f"trial/{self.name}", seeds=(9,), flags="", test="val")
        flags = dict(decay="weight-decay", tau="temperature", weight="hidden-weight")
        for change in changes.split():
            found = re.findall(r"(?:([a-z]+)-)?(\.?\d[\d.]*(?:e-\d)?)", change)
            more = [f"--{flags.get(flag, flag or 'steps')} {value}" for flag, value in found]
            tried.run(f"{name}/{change}", " ".join([train, *more]))


def made_by(*commands):
    """Add commands to MAKE. The key is --out, or without it the checkpoint of --name."""
    for words in map(str.split, commands):
        after = dict(zip(words, words[1:]))
        MAKE[after.get("--out") or f"out/{after['--name']}.pt"] = " ".join(words)


# MAKE: {file, folder or server: command; or a function of lists of lines, and the files with them}
RECIPES, MAKE = [], {}

# --- scoreboard, stories: labels for 3 % of the teacher's stories, and 8,000 more questions
STORIES, TEACHER = "out/data/stories", "out/few-teacher-0.pt"
MAKE["out/data/few.jsonl"] = (lambda train: train[:1200], f"{STORIES}/train.jsonl")
SMALL = f"--size 0.4m --val {STORIES}/val.jsonl --lr 1e-2"
FEW = f"{SMALL} --data out/data/few.jsonl --eval-every 50"
SOFT_FEW = f"--teacher {TEACHER} --alpha 1 --temperature 2 {FEW}"
ALONE_FEW = f"train_pretrain.py {FEW} --tokenizer out/tokenizer.model"
reason, rich = (f"train_distill_reason.py {SMALL} --tokenizer out/tokenizer.model --data "
                f"out/data/few-{kind}.jsonl" for kind in ("plain", "rich"))  # rich: half disturbed
made_by(
    f"dataset/stories.py --out {STORIES}",
    f"tokenizer/train.py {STORIES}/train.jsonl --out out/tokenizer.model",
    f"dataset/suites.py --data {STORIES}/test.jsonl --problems 500 --out out/data/suites",
    f"blackbox/prompts.py --input {STORIES}/distill.jsonl --out out/data/prompts.jsonl",
    f"train_pretrain.py --data {STORIES}/train.jsonl --val {STORIES}/val.jsonl --tokenizer "
    "out/tokenizer.model --size 2m-deep --steps 1000 --name few-teacher-0 --seed 0",
    f"{rich} --steps 1600 --name few-reason-rich-1 --seed 1")
for kind, asked in (("plain", f"{STORIES}/distill.jsonl"), ("rich", "out/data/prompts.jsonl")):
    made_by(f"blackbox/generate.py --teacher {TEACHER} --input {asked} --questions 8000 "
            f"--out out/data/traces-{kind}.jsonl")
    MAKE[f"out/data/few-{kind}.jsonl"] = (
        lambda few, traces: few + traces, "out/data/few.jsonl", f"out/data/traces-{kind}.jsonl")
few = Group("few", "scoreboard", TEACHER, STORIES, (1, 2, 3, 4),
            "--questions 1000 --suites out/data/suites")
few.run("teacher")
few.run("alone", f"{ALONE_FEW} --steps 1600")
# a step takes 64 ms, with the teacher 145; 8,000 answers take 56 s, on disturbed questions 62
few.both("logits", f"train_distill_logits.py {SOFT_FEW}", 1600, 705)
few.both("reason", reason, 1600, 725)
few.both("reason-rich", rich, 1600, 630)
RECIPES.append(Recipe("few-teacher-0", (0,), "speed", [  # a row for each of the two models
    f"eval.py --questions 0 --row results/speed.jsonl {TEACHER} out/few-reason-rich-1.pt"]))

# --- scoreboard, prose: Python's documentation; students see a quarter of the documents
TEXT = "--data out/data/prose/train.jsonl --val out/data/prose/val.jsonl"
PROSE = f"{TEXT} --eval-windows 0"
PRETRAIN = f"train_pretrain.py {PROSE} --tokenizer out/prose.model"
QUARTER = "--size 0.4m --documents 533 --lr 6e-3"
made_by("dataset/prose.py --out out/data/prose",
        "tokenizer/train.py out/data/prose/train.jsonl --out out/prose.model",
        f"{PRETRAIN} --lr 3e-3 --steps 1500 --weight-decay 0.5 --name prose-teacher-0 --seed 0")
prose = Group("prose", "scoreboard", "out/prose-teacher-0.pt", "out/data/prose", (1, 2, 3, 4))
prose.run("teacher")
logits = f"train_distill_logits.py {PROSE} {QUARTER} --teacher {prose.teacher} --alpha 1"
prose.trials("alone", f"{PRETRAIN} {QUARTER}", "700-decay-.3 2000-decay-.6 1000-decay-.3 "
             "1000-decay-.6 1000-decay-4 1000-decay-4-lr-1e-2")
prose.trials("logits", f"{logits} --steps 1000", "tau-1 tau-2 tau-4 tau-2-decay-.3")
prose.run("alone", f"{PRETRAIN} {QUARTER} --steps 1000 --weight-decay 4 --lr 1e-2")
prose.both("logits", f"{logits} --temperature 2", 1000, 490)

# --- white box: every way to use the teacher's distribution, hidden states, relations, layers, text
WHITE = "out/white-teacher-0.pt"
WRITTEN, MIXED = "out/data/white-written.jsonl", "out/data/white-mixed.jsonl"
DEEP = f"{PRETRAIN} --size 3m-deep --lr 3e-3 --steps 1500"
THIRD = "--size 0.7m --documents 533 --lr 6e-3 --steps 1000"
SOFT = f"{PROSE} {THIRD} --weight-decay 0.6 --alpha 1 --temperature 2"
ALONE = f"{PRETRAIN} {THIRD} --weight-decay 4 --lr 1e-2"
LOGITS = f"train_distill_logits.py --teacher {WHITE} {SOFT}"
CACHED = f"train_distill_logits.py {SOFT} --cache out/data/white-cache"
FEATURES = f"train_distill_features.py --teacher {WHITE} {SOFT}"
INIT = "--init-from-teacher 1,8,14"
ONPOLICY = "train_distill_onpolicy.py --divergence forward_kl --on-policy-share 0.25"
LAST = f"{FEATURES} {INIT} --hidden-layers last"
CACHE = ("dataset/teacher_cache.py --data out/data/prose/train.jsonl --documents 533 "
         f"--val out/data/prose/val.jsonl --teacher {WHITE}")  # the same documents as the students'
made_by(*(f"{DEEP} --weight-decay 1 --name white-teacher-{seed} --seed {seed}" for seed in (0, 1)),
        *(f"{CACHE} --kind {kind} --out out/data/white-cache-{kind}"
          for kind in ("topk", "sampled", "hidden")),
        f"{CACHE} out/white-teacher-1.pt --kind topk --out out/data/white-cache-two",
        f"blackbox/generate.py --teacher {WHITE} --documents 1600 --out {WRITTEN}")
MAKE[MIXED] = (lambda prose, written: prose[:533] + written, "out/data/prose/train.jsonl", WRITTEN)
white = Group("white", "whitebox", WHITE, "out/data/prose", (1, 2))
white.run("teacher")
white.trials("alone", f"{ALONE} --lr 6e-3",
             "decay-.6 decay-1 decay-2 decay-4 decay-8 lr-1e-2 2000-decay-4")
white.trials("alone", f"{ALONE} --lr 6e-3 --weight-decay 0.6", "600")
white.trials("forward", f"{CACHED}-hidden", "decay-.3 decay-.6 decay-1")
white.trials("init", f"{LOGITS} {INIT}", "decay-.6")
white.trials("init-hidden", LAST, "weight-4 tau-1.5")
white.trials("init-hidden", f"{LAST} --steps 2000", "batch-4")
tried = replace(white, name="trial/white", seeds=(9,), test="val")
replace(tried, seeds=(0,)).run("teacher/decay-.5", f"{DEEP} --weight-decay .5")
tried.run("teacher/decay-1")  # it became the teacher
tried.run("init/1,8,14", f"{LOGITS} {INIT} --weight-decay 0.3")
tried.run("init-hidden/pairs", f"{FEATURES} {INIT} --hidden-layers 1:1,2:8,3:14")
WAYS = {  # other divergences read the cache of hidden states: same loss, less time
    "alone": ALONE, "init": f"{LOGITS} {INIT}",
    **{f"cached-{kind}": f"{CACHED}-{kind}" for kind in ("hidden", "topk", "two", "sampled")},
    "init-hidden": LAST, "written": f"{LOGITS} --data {MIXED} --documents 0",
    "init-hidden-written": f"{LAST} --data {MIXED} --documents 0",
    "jsd": f"{CACHED}-hidden --divergence jsd", "hidden": f"{FEATURES} --hidden-layers last",
    "skewed": f"{CACHED}-hidden --divergence skew_forward_kl",
    "reverse": f"{CACHED}-hidden --divergence reverse_kl",
    "total-variation": f"{CACHED}-hidden --divergence total_variation",
    "forward": LOGITS, "relations": f"{FEATURES} --hidden-weight 0 --relation-weight 1",
    # more steps, for a comparison at equal wall-clock
    **{f"alone-{steps}": f"{ALONE} --steps {steps}" for steps in (1400, 4000)},
    "init-on-policy": f"{ONPOLICY} --teacher {WHITE} {SOFT} {INIT}"}
for name, train in WAYS.items():
    white.run(name, train)
best = replace(white, name="best", seeds=(5, 6, 7, 8))
for name in ("alone alone-1400 alone-4000 init cached-hidden init-hidden written "
             "init-hidden-written hidden").split():
    best.run(name, WAYS[name] + ("" if name.startswith("alone") else " --temperature 1.5"))

# the same on the stories
story = Group("few-white", "whitebox", TEACHER, STORIES, (1, 2), "--suites out/data/suites")
story.run("teacher")
story.run("alone", f"{ALONE_FEW} --steps 1600")
story.both("logits", f"train_distill_logits.py {SOFT_FEW}", 1600, 780)
story.both("jsd", f"train_distill_logits.py {SOFT_FEW} --divergence jsd", 1600, 780)
story.both("hidden", f"train_distill_features.py {SOFT_FEW} --hidden-layers last", 1600, 780)
story.both("on-policy", f"{ONPOLICY} {SOFT_FEW}", 1600, 450)


def renormalised(source, cache):
    """Copy a cache of top-k lists. The k now sum to 1, and the bucket is empty (trap 13)."""
    shutil.copytree(source, cache, dirs_exist_ok=True)
    for path in Path(cache).glob("*log_p*.npy"):
        log_p = np.load(path)                                            # (tokens, k + 1)
        kept = log_p[:, :-1].astype(np.float64)                          # (tokens, k)
        log_p[:, :-1] = kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)
        log_p[:, -1] = -np.inf
        np.save(path, log_p)


LISTS = f"{TEXT} --documents 533 --size 0.7m --lr 6e-3 --steps 400 --alpha 1 --temperature 1"
for k in (2, 4, 8, 16, 32):  # with the bucket for all other tokens, and renormalised
    cache = f"out/data/topk-{k}"
    made_by(f"{CACHE} --k {k} --temperature 1 --out {cache}")
    MAKE[f"{cache}-renormalised"] = renormalised, cache
    for kind, lists in (("bucket", cache), ("renormalised", f"{cache}-renormalised")):
        Group(kind, "topk", WHITE, "out/data/prose", (9,), test="val").run(
            str(k), f"train_distill_logits.py {LISTS} --cache {lists}")

# --- black box: five targets of one teacher's text; other prompts, no verifier, errors, fewer rows
BOX, PORT = "out/data/blackbox", os.environ.get("PORT", "8124")
BOX_FLAGS = f"--val {BOX}-stories/val.jsonl --steps 1600 --lr 1e-2 --data {BOX}"
RICH = f"train_distill_reason.py {BOX_FLAGS}-rich.jsonl"
FULL = f"train_distill_responses.py {BOX_FLAGS}-rich.jsonl"
SERVER = f"http://127.0.0.1:{PORT}/v1"  # students never read the teacher's file
MAKE[SERVER] = f"serve.py out/teacher.pt --port {PORT} &"
made_by(f"dataset/stories.py --train 1 --test 2000 --out {BOX}-stories",
        *(f"dataset/suites.py --data {BOX}-stories/test.jsonl --out {BOX}-suites{more}"
          for more in ("", "-2000 --problems 2000")),
        f"blackbox/prompts.py --input {BOX}-stories/distill.jsonl --out {BOX}-rich-prompts.jsonl "
        "--operations typos,invented,no_punctuation,order,format_trap,boundary,deeper",
        *(f"runs/spoil.py --how {how} --input {BOX}-{rows}.jsonl --out {BOX}-{made}.jsonl"
          for how, rows, made in (("unjudged", "rich-raw.jsonl.all", "all"),
                                  ("shuffled", "rich", "shuffled"), ("wrong", "rich", "wrong"))))
for kind, asked in (("plain", "stories/distill.jsonl"), ("rich", "rich-prompts.jsonl")):
    made_by(f"blackbox/generate.py --input {BOX}-{asked} --out {BOX}-{kind}-raw.jsonl "
            f"--base-url {SERVER} --model teacher",
            f"blackbox/filter.py --input {BOX}-{kind}-raw.jsonl --out {BOX}-{kind}-kept.jsonl "
            f"--against {BOX}-stories/val.jsonl,{BOX}-stories/test.jsonl")
# equally many rows, though the teacher fails on more of the disturbed questions
for name, rows in (("rich", "rich-kept"), ("plain", "plain-kept"), ("unjudged", "all")):
    MAKE[f"{BOX}-{name}.jsonl"] = (lambda rich, lines: lines[:len(rich)],
                                   f"{BOX}-rich-kept.jsonl", f"{BOX}-{rows}.jsonl")
box = Group("blackbox", "blackbox", "out/teacher.pt", f"{BOX}-stories", (1, 2, 3, 4),
            f"--questions 2000 --suites {BOX}-suites")
thought, bare, large = (replace(box, flags=box.flags + more)
                        for more in (" --target cot", " --target answer", "-2000"))
plain = replace(box, flags="--questions 2000")
box.run("teacher")
box.trials("cot", RICH, "lr-6e-3 lr-1e-2")
box.trials("bare", f"{FULL} --target answer", "lr-6e-3 lr-1e-2 lr-6e-3-800")
box.run("cot", RICH)
box.run("bare", f"{FULL} --target answer")
box.run("full", FULL)
box.run("mixed", f"{RICH} --target mixed")
thought.run("multi", f"{RICH} --target multi")
thought.run("mixed-cot", f"{RICH} --target mixed", "out/blackbox-mixed-SEED.pt")
bare.run("multi-bare", f"{RICH} --target multi", "out/blackbox-multi-SEED.pt")
large.run("cot-2000", RICH, "out/blackbox-cot-SEED.pt")
for name, group in (("plain", box), ("unjudged", box), ("shuffled", plain), ("wrong", plain)):
    group.run(name, RICH.replace("-rich", f"-{name}"))
large.run("plain-2000", RICH.replace("-rich", "-plain"), "out/blackbox-plain-SEED.pt")
for percent, documents in ((1, 55), (3, 165), (10, 552), (30, 1658)):  # of the rows in RICH
    plain.run(f"rows-{percent}", f"{RICH} --documents {documents}")

# --- stories of the speedrun: tuning, all labels, chains of thought against bare answers
stories = Group("stories", "spine", "out/teacher.pt", STORIES, (1, 2, 3))
stories.run("teacher")
LABELS = "--documents 1200 --eval-every 50 --steps 800"  # 3 % of 40,000
stories.trials("alone", f"train_pretrain.py --size 0.4m {LABELS}", "lr-6e-3 lr-3e-3 lr-1e-2 "
               "lr-6e-3-decay-.3 lr-1e-2-decay-.3 lr-1.5e-2")
stories.trials("logits", f"train_distill_logits.py {LABELS} --lr 6e-3 --temperature 1",
               "alpha-.9 alpha-.5 alpha-1 alpha-1-tau-2 alpha-1-tau-2-lr-1e-2 "
               "alpha-1-tau-4-lr-1e-2")
seeds = Group("speedrun", "speedrun-seeds", "out/teacher.pt", STORIES, (0, 1, 2))
seeds.run("alone", f"train_pretrain.py --size 0.4m {LABELS} --lr 1e-2")
seeds.run("logits", f"train_distill_logits.py {LABELS}")
for kind in ("cot", "answer"):
    stories.trials(kind, f"train_distill_reason.py --target {kind}", "lr-6e-3 lr-1e-2")
ALL = "--lr 1e-2 --eval-every 50 --steps 800"
stories.run("all/alone", f"train_pretrain.py --size 0.4m {ALL}")
# a step with the teacher takes 1.55 times as long (Xeon with AMX): 800 / 1.55 = 516
stories.both("all/logits", f"train_distill_logits.py {ALL} --alpha 1 --temperature 2", 800, 516)
stories.run("reason/cot", "train_distill_reason.py")
stories.run("reason/answer", "train_distill_reason.py --target answer")
stories.run("reason/gold", f"train_distill_reason.py --data {STORIES}/train.jsonl "
            f"--val {STORIES}/val.jsonl --documents 7756")  # the generator's own steps

# Chinese stories: a teacher, its answers, a student
ZH = "--val out/data/stories-zh/val.jsonl --tokenizer out/zh.model"
zh = Group("stories-zh", "spine", "out/stories-zh-teacher-0.pt", "out/data/stories-zh", (0,))
made_by("dataset/stories.py --lang zh --out out/data/stories-zh",
        "tokenizer/train.py out/data/stories-zh/train.jsonl --vocab-size 2048 --out out/zh.model",
        f"train_pretrain.py --data {zh.data}/train.jsonl {ZH} --name stories-zh-teacher-0 --seed 0",
        f"blackbox/generate.py --teacher {zh.teacher} --input {zh.data}/distill.jsonl "
        "--out out/data/traces-zh.jsonl")
zh.run("teacher")
for kind in ("cot", "answer"):
    zh.run(kind, f"train_distill_reason.py --data out/data/traces-zh.jsonl {ZH} --target {kind}")

# each temperature with each alpha, on validation data
for alpha, tau in ((alpha, tau) for alpha in ("0.5", "0.9", "1") for tau in (1, 2, 4, 8)):
    Group("", "sweep", "out/teacher.pt", STORIES, (9,), test="val").run(
        f"sweep-alpha-{alpha}-tau-{tau}",
        f"train_distill_logits.py {LABELS} --alpha {alpha} --temperature {tau}")

# seven students of one teacher, three teachers of one student; one eval.py call for each table
SHAPES = ("0.1m", "0.2m", "0.4m", "0.4m-deep", "0.4m-wide", "0.9m", "2m")
TAUGHT = {"0.9m": "out/teacher-0.9m.pt", "2m": "out/teacher.pt", "5m": "out/teacher-5m.pt"}
made_by(*(f"train_distill_reason.py --size {size} --name size-{size}" for size in SHAPES),
        *(f"train_pretrain.py --size {size} --name teacher-{size}" for size in ("0.9m", "5m")),
        *(f"train_distill_logits.py --teacher {teacher} --documents 1200 --alpha 1 --temperature 2 "
          f"--steps 800 --name taught-by-{size}" for size, teacher in TAUGHT.items()))
students = " ".join(f"out/size-{size}.pt" for size in SHAPES)
teachers = " ".join(f"{teacher} out/taught-by-{size}.pt" for size, teacher in TAUGHT.items())
for name, rows, scored in (
        ("size-0.1m", "students", f"out/teacher.pt {students}"),
        ("taught-by-0.9m", "teachers", f"{teachers} --teacher out/teacher-5m.pt --no-speed")):
    RECIPES.append(Recipe(name, (0,), rows, [
        f"eval.py {scored} --out out/{rows} --row results/{rows}.jsonl"]))

# A real teacher, SmolLM2-135M-Instruct: half of its blocks are healed on prose. SMOLLM2=FILE.gguf
if "SMOLLM2" in os.environ:
    REAL, HALF, STATES = "out/smollm2.pt", "out/smollm2-half.pt", "out/data/smollm2-states"
    made_by(f"convert.py --from {os.environ['SMOLLM2']} --out {REAL}",
            f"runs/prune.py {REAL} --val out/data/prose/val.jsonl --keep 15 --out {HALF}",
            f"dataset/teacher_cache.py {TEXT} --teacher {REAL} --kind hidden --out {STATES}")
    HEAL = f"{TEXT} --init {HALF} --optimizer adamw --eval-every 100 --eval-windows 32"
    SOFT_HALF = f"train_distill_logits.py {HEAL} --lr 1e-3 --alpha 0.5 --temperature 1"
    smol = Group("smollm2", "smollm2", REAL, "out/data/prose", (1, 2, 3), "--batch 8 --window 256")
    smol.run("teacher")
    replace(smol, name="").run("smollm2-half", checkpoint=HALF)  # before any training
    smol.run("alone", f"train_pretrain.py {HEAL} --lr 6e-4 --steps 200")
    smol.run("logits", f"{SOFT_HALF} --cache {STATES} --steps 200")
    smol.run("logits-wall", f"{SOFT_HALF} --teacher {REAL} --steps 112")  # 3.3 s a step; alone 1.85

# GSM8K: worked solutions; a tenth is for validation, a tenth for the test
MATH, PARTS = "out/data/gsm8k", dict(val={0}, train=set(range(1, 9)), heldout={9})
if "GSM8K" in os.environ:
    for part, tenths in PARTS.items():
        MAKE[f"{MATH}/{part}.jsonl"] = (lambda lines, tenths=tenths: [
            line for n, line in enumerate(lines) if n % 10 in tenths], os.environ["GSM8K"])
    made_by(f"tokenizer/train.py {MATH}/train.jsonl --vocab-size 2048 --out out/gsm8k.model")
    solve = (f"train_distill_reason.py --data {MATH}/train.jsonl --val {MATH}/val.jsonl "
             "--eval-windows 0 --size 0.9m --window 512 --lr 4e-3 --steps 600 --tokenizer "
             "out/gsm8k.model --target")
    for kind in ("cot", "answer"):
        Group("gsm8k", "spine", f"out/gsm8k-{kind}-0.pt", MATH, (0,), "--max-new-tokens 256",
              "heldout").run(kind, f"{solve} {kind}")


def make(word, todo, dry_run=False):
    """Make the file or folder that a word of a command names, once. todo: what is left of MAKE."""
    name = word if word in todo else os.path.dirname(word)
    how = todo.pop(name, None)
    goes_on = re.search("train_|generate", str(how))  # these commands may be unfinished
    if how is None or os.path.isfile(name) and not goes_on:
        return
    if isinstance(how, str):
        return run(how, todo, dry_run)
    function, *files = how
    for file in files:
        make(file, todo, dry_run)
    print(f"# {name}: made from {', '.join(files)}")
    if not dry_run and function is renormalised:
        renormalised(*files, name)
    elif not dry_run:
        lines = [Path(file).read_bytes().splitlines(keepends=True) for file in files]
        common.write_file(name, b"".join(function(*lines)))


def run(command, todo, dry_run=False):
    """Make the files that a command reads, then run it. It continues if it was stopped before. A
    command with & at the end is a server. It runs until this program ends. UserError: it failed, or
    a .py file is not committed, because each row names its commit."""
    words = command.removesuffix("&").split()
    for word in words[1:]:
        make(word, todo, dry_run)
    print(f"python {command.strip()}")
    if dry_run:
        return
    changed = subprocess.run(["git", "status", "--porcelain", "*.py"], capture_output=True).stdout
    check(not changed, "commit your changes first: each row names its commit")
    if not command.endswith("&"):
        return check(subprocess.call([sys.executable, *words]) == 0, f"{words[0]} has failed")
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    atexit.register(server.terminate)
    check(server.stdout.readline().startswith("ready:"), "serve.py did not start")


def main(cfg):
    os.chdir(ROOT)
    os.environ["MINIDISTILL_OUT"] = "out"  # where the scripts write
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C: the script stops, then this
    wanted = [r for r in RECIPES if any(fnmatch.fnmatch(r.name, p) for p in cfg.recipes or ["*"])]
    check(wanted, f"no recipe matches {' or '.join(cfg.recipes or [])}")
    there = {(file.stem, row["recipe"], row["seed"] or 0)  # an imported model has no seed
             for file in Path("results").glob("*.jsonl") for row in map(json.loads, file.open())}
    check(re.fullmatch(r"(\d+(,\d+)*)?", cfg.seeds), f"--seeds {cfg.seeds}: must be like 1,2")
    seeds = [int(seed) for seed in cfg.seeds.split(",") if seed] or range(10)
    todo = dict(MAKE)
    for seed, recipe in [(seed, r) for seed in seeds for r in wanted
                         if seed in r.seeds and (r.rows, r.name, seed) not in there]:
        print(f"# {recipe.name}, seed {seed}")
        for command in recipe.commands:
            run(command.replace("SEED", str(seed)), todo, cfg.dry_run)
    print("next:", common.command("runs/render.py"))


if __name__ == "__main__":
    common.run(main, Config)
