"""Limits for the size of the project. If you raise one, give the reason in the commit message."""
import ast
import difflib
import statistics
import tokenize

import pytest

from common import ROOT

ROOMS = {room: [path for path in sorted(ROOT.glob(f"{room}/*.py")) if path.stat().st_size]
         for room in (".", "tokenizer", "dataset", "blackbox", "runs", "tests")}
CODE = [path for room in ROOMS if room != "tests" for path in ROOMS[room]]
SHELL = [*ROOT.glob("*.sh"), *ROOT.glob("runs/*.sh")]
# A file imports only from its own level or an earlier one.
LEVELS = ["model moe losses optim decoding metrics fused fast_decode".split(), ["common", "tokenizer"],
          ["checkpoints"], ["dataset"], ["blackbox"], [path.stem for path in ROOMS["."]], ["runs"]]


def lines(paths):
    return [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def level(path):
    name = path.stem if path.parent == ROOT else path.parent.name
    return next(number for number, names in enumerate(LEVELS) if name in names)


def imports(path):
    """Returns the project's files that a file imports, at its top or inside functions."""
    names = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    files = {name.replace(".", "/") + end for name in names for end in (".py", "/__init__.py")}
    return {ROOT / file for file in files} & set(CODE)


@pytest.mark.parametrize("room, most", [(".", 3798), ("tokenizer", 390), ("dataset", 1632),
                                        ("blackbox", 1210), ("runs", 1637), ("all", 8666), ("tests", 8992)])
def test_no_room_grows(room, most):
    """The first version grew to 12,700 lines in three days, and nobody noticed."""
    paths = {**ROOMS, "runs": ROOMS["runs"] + SHELL, "all": CODE + SHELL}[room]
    assert len(lines(paths)) <= most
    assert len(paths) <= {".": 22, "dataset": 8}.get(room, 99)


def test_the_course_and_the_page_stay_small():
    """An instructor reads all of it before the first class."""
    course = ROOT / "lessons"
    assert len(lines(course.rglob("*.py"))) <= 2000 and len(lines([ROOT / "page.html"])) <= 350
    for name in ("README.md", "README.zh.md"):
        assert len(lines(course.rglob(name))) <= 950
    assert len(lines([ROOT / "serve.py"])) <= 400


def test_a_reader_of_one_script_has_little_to_read():
    """To understand train_distill_logits.py, a reader had to open 15 files with 3,108 lines."""
    imported = {ROOT / "moe.py", ROOT / "tokenizer" / "real.py"}  # read only for an imported model
    seen, queue = set(), {ROOT / "train_distill_logits.py"}
    while queue:
        seen |= queue
        queue = {file for path in queue for file in imports(path)} - seen - imported
    assert len(seen) <= 11 and sum(len(lines([path])) for path in seen) <= 2089


def test_no_import_runs_upwards():
    """common.py imported dataset/, and dataset/ imports common.py."""
    assert [f"{a} imports {b}" for a in CODE for b in imports(a) if level(b) > level(a)] == []


def test_code_is_short_and_no_denser_than_losses_py():
    """Fewer but denser lines are not simpler. The limits are the values of the first losses.py, plus 5 %."""
    lengths, nodes, code = [], 0, (tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING)
    for path in CODE:
        docstrings, used, text = set(), set(), lines([path])
        for node in ast.walk(tree(path)):
            nodes += 1
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                docstrings |= set(range(node.lineno, node.end_lineno + 1))
            if isinstance(node, ast.FunctionDef) and node.name != "main":
                assert node.end_lineno - node.lineno < 40, f"{path}: {node.name}"
        with open(path, "rb") as file:
            for token in tokenize.tokenize(file.readline):
                if token.type in code:
                    used |= set(range(token.start[0], token.end[0] + 1))
        assert max(map(len, text)) <= 100, path
        lengths += [len(text[number - 1]) for number in used - docstrings]
    assert statistics.median(lengths) <= 1.05 * 64.0 and nodes / len(lengths) <= 1.05 * 14.34


def test_the_difference_between_two_scripts_is_distillation():
    """If two scripts write one loop in different ways, their diff hides what the teacher changes."""
    mains = [ast.get_source_segment((ROOT / name).read_text(encoding="utf-8"), node).splitlines()
             for name in ("train_pretrain.py", "train_distill_logits.py")
             for node in tree(ROOT / name).body if getattr(node, "name", "") == "main"]
    assert sum(line[0] in "+-" for line in list(difflib.unified_diff(*mains, n=0))[2:]) <= 40
