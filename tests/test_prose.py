"""Claims about dataset/prose.py: a module is in one split, no text repeats, nothing is imported."""
import json

import pytest

from dataset import prose
from dataset.prose import SPLITS, Config, collect, main, sources

LONG = "A paragraph that is long enough to be kept, and says the same wherever it stands. "


@pytest.fixture
def tiny_python(tmp_path, monkeypatch):
    """A standard library of 100 modules with one docstring each."""
    lib = tmp_path / "lib"
    texts = {f"package{i}/module.py": f'"""Module {i}. {LONG * 3}{i}"""\n' for i in range(100)}
    for folder in ("site-packages", "test", "package1/tests"):
        texts[f"{folder}/hidden.py"] = f'"""Hidden. {LONG * 3}"""\n'
    texts["broken.py"] = 'print "Python 2"\n'
    texts["explodes.py"] = f'"""Explodes. {LONG * 3}"""\nraise SystemExit("imported")\n'
    for name, text in texts.items():
        (lib / name).parent.mkdir(parents=True, exist_ok=True)
        (lib / name).write_text(text)
    monkeypatch.setattr(prose.sysconfig, "get_paths", lambda: {"stdlib": str(lib)})
    return lib


def test_no_module_is_in_two_splits_and_the_order_is_ours(tiny_python, tmp_path):
    """Docstrings of one module are alike. If each had its own split, half of the test would be known."""
    for name in "ab":
        main(Config(out=str(tmp_path / name)))
    modules = {}
    for split in SPLITS:
        data = (tmp_path / f"a/{split}.jsonl").read_bytes()
        assert data == (tmp_path / f"b/{split}.jsonl").read_bytes()
        modules[split] = [json.loads(line)["module"] for line in data.splitlines()]
        assert modules[split] != sorted(modules[split])
    everything = sum(modules.values(), [])
    assert len(set(everything)) == sum(len(set(some)) for some in modules.values())


def test_tests_and_site_packages_are_left_out_and_nothing_is_imported(tiny_python):
    """Third-party text would differ between machines, or importing a module would have side effects."""
    found = dict(sources(tiny_python))
    assert not any("Hidden" in text for text in found.values())
    assert "Explodes" in found["explodes"] and "broken" not in found
    assert sum(name.startswith("topic:") for name in found) > 50


def test_a_long_paragraph_is_kept_once_short_texts_never_and_margins_go():
    """The topic "compound" contains all of "if", indented. Test text would be in the training data."""
    texts = [f"One. {LONG}\n\n{LONG * 2}", f"Two. {LONG}\n\n   {LONG * 2}\n\n{LONG * 3} end",
             "Return self.", f"Title.\n\n        {LONG * 3}"]
    fill = [(module, f"{module} {LONG * 3}") for module in map(str, range(100))]
    kept = {row["text"] for _, row in collect([("a", text) for text in texts] + fill) if row["module"] == "a"}
    assert kept == {f"One. {LONG}\n\n{LONG * 2}".strip(), f"Two. {LONG}\n\n{LONG * 3} end",
                    f"Title.\n\n{LONG * 3}".strip()}
