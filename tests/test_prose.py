"""Claims about dataset/prose.py: a module has one split, nothing is quoted across or imported."""
import json
import sys

import pytest

from cli import UserError
from dataset import prose
from dataset.prose import Config, collect, docstrings, main, split_of

LONG = "A paragraph that is long enough to be kept, and says the same wherever it stands. "


@pytest.fixture
def tiny_python(tmp_path, monkeypatch):
    """A standard library of 100 modules with one docstring each, and two topics."""
    lib = tmp_path / "lib"
    for i in range(100):
        folder = lib / f"package{i}"
        folder.mkdir(parents=True)
        (folder / "module.py").write_text(f'"""Module {i}. {LONG * 3}{i}"""\n')
    for hidden in ("site-packages", "test", "package1/tests"):
        (lib / hidden).mkdir(parents=True, exist_ok=True)
        (lib / hidden / "hidden.py").write_text(f'"""Hidden. {LONG * 3}"""\n')
    (lib / "broken.py").write_text('print "Python 2"\n')
    (lib / "explodes.py").write_text(f'"""Explodes. {LONG * 3}"""\nraise SystemExit("imported")\n')
    monkeypatch.setattr(prose.sysconfig, "get_paths", lambda: {"stdlib": str(lib)})
    monkeypatch.setattr(prose, "topics", lambda: iter([("topic:if", f"If. {LONG * 3}")]))
    return lib


def read(out):
    return {split: [json.loads(line) for line in (out / f"{split}.jsonl").open(encoding="utf-8")]
            for split in prose.SPLITS}


def test_no_module_stands_in_two_splits(tiny_python, tmp_path):
    """Docstrings of one module repeat each other: split by text, the test split is half known."""
    main(Config(out=str(tmp_path / "out")))
    rows = read(tmp_path / "out")
    modules = {split: {row["module"] for row in rows[split]} for split in rows}
    assert all(modules.values())
    assert not modules["train"] & modules["val"] | modules["train"] & modules["test"]
    assert not modules["val"] & modules["test"]
    assert all(split_of(m) == split for split in modules for m in modules[split])


def test_tests_and_site_packages_are_left_out_and_nothing_is_imported(tiny_python):
    """Third-party text that differs between machines; a module whose import has side effects."""
    found = dict(docstrings(tiny_python))
    assert not any("Hidden" in text for text in found.values())
    assert "Explodes" in found["explodes"] and "broken" not in found


def test_a_paragraph_is_kept_once_in_all():
    """The topic "compound" quotes all of "if", indented: test text would stand in train."""
    first = f"One. {LONG}\n\n{LONG * 2}"
    second = f"Two. {LONG}\n\n   {LONG * 2}\n\n{LONG * 3} end"
    rows = sum(collect([("a", first), ("b", second)], 50).values(), [])
    assert sum(row["text"].count((LONG * 2).strip() + "\n") for row in rows) == 0
    assert [row["text"] for row in rows if row["module"] == "b"] == [
        f"Two. {LONG}\n\n{LONG * 3} end"]


def test_short_texts_are_left_out_and_indentation_is_cleaned():
    """Thousands of "Return self." and the margins of class bodies drown the prose."""
    rows = collect([("a", "Return self."), ("b", f"Title.\n\n        {LONG * 3}")], 200)
    texts = [row["text"] for split in rows.values() for row in split]
    assert texts == [f"Title.\n\n{LONG * 3}".strip()]


def test_the_real_standard_library_gives_enough_in_every_split(tmp_path, capsys, monkeypatch):
    """A Python without .py files or topics gives an almost empty corpus, silently."""
    real = prose.docstrings  # a part of it, for speed
    monkeypatch.setattr(prose, "docstrings", lambda lib: real(lib / "email"))
    main(Config(out=str(tmp_path)))
    about = json.loads((tmp_path / "about.json").read_text())
    assert sum(about["characters"].values()) > 100_000
    assert set(about["sha256"]) == {"train", "val", "test"}
    assert about["settings"]["python"] == sys.version.split()[0].rstrip("+")
    assert about["sha256"]["test"][:12] in capsys.readouterr().out


def test_same_python_same_bytes_and_no_overwriting(tiny_python, tmp_path, capsys):
    """An order that comes from the file system; a corpus replaced by another Python's, unasked."""
    for name in ("a", "b"):
        main(Config(out=str(tmp_path / name)))
    for file in sorted(p.name for p in (tmp_path / "a").iterdir()):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    capsys.readouterr()
    main(Config(out=str(tmp_path / "a")))
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="min_chars was 200, is 100.*--fresh"):
        main(Config(out=str(tmp_path / "a"), min_chars=100))


def test_a_failure_half_way_leaves_the_old_corpus(tiny_python, tmp_path, monkeypatch):
    """New training text beside an old test split: what stood in one may stand in the other."""
    main(Config(out=str(tmp_path / "out")))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    bad = dict(train=[dict(text="new")], val=[dict(text="new")], test=[dict(text={"no JSON"})])
    monkeypatch.setattr(prose, "collect", lambda *_: bad)
    with pytest.raises(TypeError):
        main(Config(out=str(tmp_path / "out"), fresh=True))
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_missing_topics_are_a_note_not_an_error(monkeypatch, capsys):
    """Some distributions ship Python without pydoc_data: an ImportError in the first lesson."""
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    assert list(prose.topics()) == []
    assert "no pydoc_data.topics" in capsys.readouterr().out
