"""Claims about runs/recipes.py and runs/bench.py: the recipes make the committed rows."""
import importlib
import json
import os
import re
import subprocess

import numpy as np
import pytest

os.environ |= dict.fromkeys(("GSM8K", "SMOLLM2"), os.devnull)  # before recipes.py is imported: it has all recipes
import common
from common import ROOT
from runs import bench, recipes


@pytest.fixture
def dry_run(monkeypatch, capsys, tmp_path):
    """dry_run("white/c*", seeds="1") -> its commands, in an empty folder. root: where results/ is."""
    def run(*patterns, root=tmp_path, **flags):
        monkeypatch.setattr(recipes, "ROOT", root)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.setenv("MINIDISTILL_OUT", "")
        monkeypatch.chdir(tmp_path)
        recipes.main(recipes.Config(list(patterns), dry_run=True, **flags))
        return re.findall("^python (.*)", capsys.readouterr().out, re.M)
    return run


def test_the_recipes_make_the_rows_that_are_committed_and_none_of_them_again(dry_run):
    """A renamed recipe would be trained again for hours, although its row exists."""
    made = {(r.name, seed) for r in recipes.RECIPES for seed in r.seeds}
    for path in (ROOT / "results").glob("*.jsonl"):
        rows = {(row["recipe"], row["seed"] or 0) for row in map(json.loads, path.open())}
        if path.stem == "whitebox-times":
            assert {name for name, _ in rows} == set(bench.TIMED)
        elif path.stem not in ("students", "teachers", "speed"):  # several models in a recipe
            assert rows <= made, path
    assert dry_run(root=ROOT) == []


def test_every_command_is_one_that_its_script_understands(dry_run):
    """A renamed flag would stop a run of hours. Commands that differ only in paths and numbers are tried once."""
    different = {re.sub(r"\S*[/\d]\S*", "", command.split(" ", 1)[1]) + command.split()[0]: command
                 for command in dry_run()}
    for script, *words in (command.removesuffix(" &").split() for command in different.values()):
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        common.parse(module.Config, words)


def test_a_recipe_makes_what_it_needs_and_no_more(dry_run, tmp_path):
    """A recipe that makes what it does not read, a student scored untrained, or a trial with another learning rate."""
    assert dry_run("smollm2/teacher")[0].startswith("convert.py")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/smollm2.pt").touch()  # convert.py refuses to write it again
    assert dry_run("smollm2/teacher")[0].startswith("dataset/prose.py")
    for name, made in (("jsd", []), ("cached-two", ["teacher-1"]), ("written", ["documents 1600"])):
        commands = " ".join(dry_run(f"white/{name}", seeds="1"))
        assert "--name white-teacher-0" in commands
        assert [word for word in ("teacher-1", "documents 1600") if word in commands] == made
    commands = dry_run("blackbox/multi-bare", seeds="2")
    assert "--name blackbox-multi-2" in " ".join(commands) and commands[-1].startswith("eval.py")
    assert [c.split("/")[0] for c in commands[:3]] == ["dataset", "blackbox", "serve.py out"]
    train = " ".join(dry_run("trial/prose/alone/1000-decay-4-lr-1e-2"))
    assert "--steps 1000 --weight-decay 4 --lr 1e-2 --name trial-prose-alone-1000-decay-4" in train


def test_a_word_that_is_no_flag_or_seed_is_refused(dry_run):
    """`--fastX` and `--lang zh-foo` started the whole speedrun."""
    for words in ("--fastX", "--lang zh-foo", "--lang", "--fast zh"):
        assert os.system(f"timeout 9 bash '{ROOT}/speedrun.sh' {words}") >> 8 == 2
    with pytest.raises(common.UserError):
        dry_run(seeds="x")


def test_as_many_rows_of_each_and_a_problem_of_gsm8k_in_one_part(tmp_path, monkeypatch):
    """Compared files would differ in size, or a held-out problem of GSM8K would be in training."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("1\n2\n3\n"), (tmp_path / "b").write_text("4\n5\n")
    recipes.make("c", {"c": (recipes.MAKE[f"{recipes.BOX}-plain.jsonl"][0], "b", "a")})
    assert (tmp_path / "c").read_text() == "1\n2\n"
    parts = [recipes.MAKE[f"{recipes.MATH}/{part}.jsonl"][0](range(30)) for part in recipes.PARTS]
    assert sorted(sum(parts, [])) == list(range(30)) and parts[0] == [0, 10, 20]


def test_renormalised_lists_sum_to_one_and_have_an_empty_bucket(tmp_path):
    """TRAPS 13, on purpose: the experiment would measure nothing if the lists kept their tail."""
    (tmp_path / "lists").mkdir()
    np.save(tmp_path / "lists/log_p-0.npy", np.log(np.float16([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])))
    recipes.renormalised(tmp_path / "lists", tmp_path / "twin")
    found = np.exp(np.load(tmp_path / "twin/log_p-0.npy"))
    assert np.allclose(found, [[2 / 3, 1 / 3, 0], [0.5, 0.5, 0]], atol=1e-3)


def test_nothing_runs_while_the_code_is_not_committed(tmp_path, monkeypatch):
    """119 of 354 rows named a commit that was not their code. bench.py checked nothing."""
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    recipes.run("-c pass", {})
    (tmp_path / "new.py").write_text("")
    with pytest.raises(common.UserError, match="commit"):
        recipes.run("new.py", {})


@pytest.mark.slow
def test_the_benchmarks_run(call, tiny_world, out_dir, monkeypatch):
    """The benchmarks call functions and scripts. Changed parameters would break them unnoticed."""
    monkeypatch.chdir(ROOT)
    assert "128 of 128 greedy" in call("runs.bench", "decode", "--size=0.1m", "--turns=1").out
    command = (f"train_pretrain.py --data {tiny_world.train} --val {tiny_world.val} --window 143 "
               f"--tokenizer {tiny_world.tokenizer} --size 0.1m")
    [found] = bench.take_turns({"plain": command}, bench.Config(turns=1, steps=12)).values()
    assert found[0] > 0 and found[1] > found[2] > 0  # seconds; tokens; tokens that count
