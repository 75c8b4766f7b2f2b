"""Make the copy of the project that students get: without answers, without git history.

    python lessons/handout.py ../class          # after bash speedrun.sh --fast

The copy has the files that git knows, as they are on disk now, and what the speedrun left in out/.
Your own files (names, grades, other runs) are not copied. All files of the copy have one time.
"""
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import ROOT, check, run, show

# Answers, tests that need or show them, and what only an instructor uses
LEFT_OUT = ["lessons/solutions/*", "lessons/handout.py", "lessons/hunt.*", "tests/mutants.py",
            "tests/test_mutants.py", "tests/test_lessons.py", "tests/test_grader.py",
            "tests/test_hunt.py", "tests/test_docs.py", "docs/traps.md", "docs/deleted-tests.md",
            "docs/class.*", ".ci/*"]
SPEEDRUN = ["tokenizer.model", "teacher.*", *(f"student-{name}.*" for name in (
    "alone", "logits", "reason", "answer")), "report.*", "data/stories/[!.]*", "data/traces.*"]
WHEN = 1_767_225_600  # time of all files and folders of a copy: 1 January 2026, UTC


@dataclass
class Config:
    folder: list = None            # the copy, a new folder, without a flag
    out: str = ROOT / "out"        # folder in which the speedrun wrote


def without_dead_links(text, name, there):
    """Text of the document `name` -> the same, with words instead of links to files that the copy
    does not have. A parenthesis around such a link goes, too. there: all files and folders."""
    for link, words, target in re.findall(r"(\[([^]]*)]\((?!\w+:)([^)#]+)[^)]*\))", text):
        if os.path.normpath(os.path.join(os.path.dirname(name), target)) not in there:
            text = re.sub(rf" ?[(（][^()（）]*{re.escape(link)}[^()（）]*[)）]", "", text)
            text = text.replace(link, words)
    return text


def make_copy(folder, out, outs=("", "fast", "zh", "zh/fast"), left_out=(), changed=None):
    """Copy the project to a new folder -> number of files. outs: folders in `out` to copy from;
    left_out: patterns of more files to leave out; changed: {path: text} of other or new files."""
    folder, changed = Path(folder), changed or {}
    check(not folder.exists(), f"{show(folder)} exists; name a new folder")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    check(listed, f"{show(ROOT)} must be a git clone: git knows which files belong to the project")
    files = {name: ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()
             and not any(fnmatch(name, pattern) for pattern in [*LEFT_OUT, *left_out])}
    there = {str(place) for name in {**files, **changed} for place in (name, *Path(name).parents)}
    files |= {f"out/{path.relative_to(out)}": path
              for place in outs for some in SPEEDRUN for path in Path(out, place).glob(some)}
    check(any(name.endswith("/teacher.pt") for name in files),
          f"{show(out)} has no models; first: bash speedrun.sh --fast")
    for name in sorted({**files, **changed}):  # one pass: the order tells nothing either
        target, source = folder / name, files.get(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith((".md", ".py")) and not name.startswith("out/"):
            text = changed[name] if name in changed else source.read_text(encoding="utf-8")
            text = without_dead_links(text, name, there) if name.endswith(".md") else text
            target.write_text(text.replace(" (docs/traps.md)", ""), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
        target.chmod(source.stat().st_mode if source else 0o644)
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (WHEN, WHEN))
    return len(files | changed)


def main(cfg):
    check(len(cfg.folder or []) == 1, "name one new folder")
    print(f"{cfg.folder[0]}: {make_copy(cfg.folder[0], cfg.out):,} files, without answers")


if __name__ == "__main__":
    run(main, Config)
