"""Finished runs as rows: .jsonl files that are only added to, and that show a change by hand."""
import hashlib
import json
from pathlib import Path

import cli
from cli import fail, show


def read(path, *keys):
    """The rows of a file, dicts with these keys at least; UserError with the line where not."""
    found = []
    for number, line in enumerate(cli.need_file(path, "bash runs/results.sh, or another of runs/")
                                  .read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        try:
            row = json.loads(line)
            [row[key] for key in ("recipe", *keys)]
            found.append(row)
        except (ValueError, TypeError, KeyError):
            fail(f"{show(path)}:{number} is no row", line[:40], f"JSON with {', '.join(keys)}",
                 "delete the line")
    return found


def append(path, row):
    """Add a finished run to a .jsonl file as one line, written whole and never changed after."""
    check_file(path)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with cli.append(path) as file:
        file.write(json.dumps({**row, "digest": digest(row)}, ensure_ascii=False) + "\n")


def check_file(path):
    """UserError where a row would be added to a file of another kind."""
    if Path(path).exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.read(10) not in ('{"recipe":', ""):
                fail(f"{show(path)} is there and not of this script", fix="choose another --row")


def digest(row):
    """16 hex digits of a row without its "digest": a figure changed by hand no longer fits."""
    rest = {key: value for key, value in row.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]
