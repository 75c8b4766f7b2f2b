"""What renormalising a top-k list does to a student (TRAPS 13), made visible: results/topk.jsonl.

    python runs/topk_bias.py     after bash runs/whitebox.sh, which makes the teacher

For some k, two students on prose learn from the same cached lists. One has the bucket for all other
tokens, as dataset/cache_teacher.py keeps it; for the other the cache is doctored: the k log-
probabilities are made to sum to 1, the bucket is emptied, which is what public code has done. Both are
scored on the validation data: how sure they are, how often they are right, cross-entropy. `python
plot.py` draws it. Rows that are there are skipped.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import cli
import rowfile
from cli import OUT, ROOT
from dataset.teacher_cache import open_arrays


@dataclass
class Config:
    teacher: str = OUT / "white-teacher-0.pt"      # of runs/whitebox.sh
    data: str = OUT / "data/prose/train.jsonl"     # what both students read
    val: str = OUT / "data/prose/val.jsonl"        # on which they are scored
    documents: int = 533           # of the data
    steps: int = 400               # of each student
    size: str = "0.7m"             # of each student
    ks: str = "2,4,8,16,32"        # lengths of the lists; commas between
    row: str = ROOT / "results/topk.jsonl"         # the rows are added to this file


def renormalised(source, target):
    """A copy of a cache of top-k lists whose k sum to 1 and whose bucket is empty."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    about = json.loads((target / "about.json").read_text(encoding="utf-8"))
    log_p = open_arrays(target, about, "r+")["log_p"]                    # (tokens, k + 1)
    kept = np.array(log_p[:, :-1], dtype=np.float64)                     # (tokens, k)
    log_p[:, :-1] = kept - np.logaddexp.reduce(kept, axis=1, keepdims=True)
    log_p[:, -1] = -np.inf
    log_p.flush()
    about["sha256"]["log_p.bin"] = cli.sha256_file(target / "log_p.bin")
    (target / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def script(*words):
    """Run one of this project's scripts; its own message is the error."""
    if subprocess.run([sys.executable, *map(str, words)], cwd=ROOT).returncode:
        cli.fail(f"{words[0]} did not end well", fix="see above")


def main(cfg):
    """A cache, its doctored twin, and a student of each, for every k."""
    cli.check(re.fullmatch(r"([1-9]\d{0,5},)+", cfg.ks + ","), "--ks", cfg.ks,
              "whole numbers from 1, commas between")
    there = {row["recipe"] for row in rowfile.read(cfg.row)} if os.path.exists(cfg.row) else set()
    data = ["--data", cfg.data, "--documents", cfg.documents]
    for k in map(int, cfg.ks.split(",")):
        folder = OUT / f"data/topk-{k}"
        twin = OUT / f"data/topk-{k}-renormalised"
        recipes = {folder: f"bucket/{k}", twin: f"renormalised/{k}"}
        if not set(recipes.values()) - there:
            continue
        script("dataset/cache_teacher.py", "--teacher", cfg.teacher, *data, "--k", k,
               "--temperature", 1, "--out", folder)
        renormalised(folder, twin)
        for cache, recipe in recipes.items():
            name = recipe.replace("/", "-")
            script("train_distill_logits.py", "--name", name, "--cache", cache, *data, "--val", cfg.val,
                   "--alpha", 1, "--temperature", 1, "--size", cfg.size, "--steps", cfg.steps,
                   "--lr", 6e-3, "--seed", 9)
            if recipe not in there:
                script("eval.py", OUT / f"{name}.pt", "--teacher", cfg.teacher, "--data", cfg.val,
                       "--speed", "false", "--out", OUT / name, "--row", cfg.row, "--recipe", recipe)


if __name__ == "__main__":
    cli.run(main, Config)
