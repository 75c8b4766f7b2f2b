"""Prompts that cover more ground: seeds, and a share of them changed, each by one operation.

    python blackbox/prompts.py            # out/data/prompts.jsonl, as many questions, CPU, about 2 s
    python blackbox/prompts.py --input mine.jsonl --operations typos,injection,long

Last line: next: python blackbox/generate.py --input out/data/prompts.jsonl --out ...

A student is as robust as the text that it has seen, and a teacher will answer any question. Seeds
are the stories of the distill split, or your own prompts in any format of dataset/formats.py (of a
conversation the last user turn is changed); they may lack an answer. blackbox/operations.py lists
the operations. A row says its "operation" ("none": unchanged), its "source" (the seed's id, or
FILE:LINE) and its "label": the answer is "kept", or "changed" in a known way, and the last turn
gives it; or only the "teacher" can say, and the last turn is the user's. No row has worked steps:
the teacher writes them. For more prompts of the same seeds: --share 1 and several --seed.

Stories are changed by code. Of a free prompt, code can change the surface; the rest the teacher
rewrites itself (Evol-Instruct: Xu et al. 2023; Self-Instruct: Wang et al. 2022), in three commands:

    python blackbox/prompts.py --input mine.jsonl --operations deeper,broader --out m.jsonl
    python blackbox/generate.py --input m.jsonl.evolve.jsonl --out evolved.jsonl
    python blackbox/prompts.py --evolved evolved.jsonl

The first writes the seeds to OUT and, to OUT.evolve.jsonl, prompts that ask for a rewriting. The
last makes prompt rows of the replies (prompts-evolved.jsonl, label "teacher") and drops, with a
count of each reason, what is no prompt: see `fault`. Different from the papers: one round (its
output may be the next --input), fixed tasks and no examples, and rules that judge a reply where
they ask the teacher again.

Nothing that is reserved for the suites is used, and rows of a suite, of test or of val are refused
as seeds; but an operation that is used here is no longer a surprise in the suite of its name.
"""
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cli import (OUT, check, check_apart, check_ranges, fail, need_file, run, show,  # noqa: E402
                 write_file)
from dataset import stories, suites  # noqa: E402
from dataset.formats import (BadRow, Turn, bad_lines_text, counted, is_text,  # noqa: E402
                             json_lines, parse_response_text, read_documents, string, turn_row)
from blackbox.operations import LABEL, OF_ANY_PROMPT, OPERATIONS, is_story  # noqa: E402
from blackbox.prompt_texts import EVOLVE, LEAK, REFUSAL  # noqa: E402
from blackbox.questions import question_of  # noqa: E402

LONGEST = 4_000  # characters of a rewritten prompt, or twice its seed


@dataclass
class Config:
    input: str = OUT / "data/stories/distill.jsonl"  # seeds: stories, or prompts in any format
    out: str = ""            # prompt rows (out/data/prompts.jsonl; of --evolved: prompts-NAME)
    operations: str = "typos,invented,no_punctuation,order"  # drawn evenly; commas between
    share: float = 0.5       # of the questions that are changed (0.2 to 0.8)
    evolved: str = ""        # replies to OUT.evolve.jsonl: make prompts of these, not of --input
    seed: int = 0            # of everything that is drawn
    skip_bad_lines: bool = False  # count bad lines of the input and go on
    fresh: bool = False      # replace what is there


# --- seeds ----------------------------------------------------------------------------------------

@dataclass
class Seed:
    """A prompt to start from; `row` is the question and its reply alone, as the operations want."""
    row: dict
    story: dict      # what a story is drawn from; of a free prompt the language alone
    before: list     # turns before the question, as rows
    answered: bool   # the reply is a known answer
    source: str      # the seed's id, or FILE:LINE


def parse_seed(row):
    """A row, with an answer or without -> (row, turns, known answer); BadRow where nobody may ask
    that."""
    turns, answer = question_of(row)
    if "suite" in row or {"skeleton", "numbers"} <= row.keys() and (
            row.get("ops") in (5, 6) or stories.split_of(row) in ("val", "test")):
        raise BadRow("a question that is kept for the evaluation", expected="no row of val.jsonl, "
                     "test.jsonl or a suite: nobody may train on these")
    return row, turns, answer


def story_of(row):
    """What a row of dataset/stories.py is drawn from, or None."""
    try:
        return suites.drawn(row)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError):
        return None


def language(text):
    """"zh" where a text has more Chinese characters than Latin words, else "en"."""
    zh, en = (len(re.findall(some, text)) for some in ("[\u4e00-\u9fff]", "[A-Za-z]+"))
    return "zh" if zh > en else "en"


def read_seeds(cfg, report):
    """Yield every seed of --input; UserError for a bad line, or it is counted in `report`."""
    for number, found in read_documents(cfg.input, cfg.skip_bad_lines, report, parse=parse_seed):
        row, (*before, asked), answer = found
        name = row.get("id")
        source = str(name) if isinstance(name, (str, int)) else f"{Path(cfg.input).name}:{number}"
        if story := story_of(row):
            yield Seed(row, story, [], True, source)
            continue
        reply = turn_row(Turn("assistant", "", None, answer or ""))
        story = dict(lang=language(asked.content), name=("",))
        row = dict(conversations=[turn_row(asked), reply], id=source, lang=story["lang"])
        yield Seed(row, story, list(map(turn_row, before)), bool(answer), source)


# --- prompts --------------------------------------------------------------------------------------

def prompt_row(seed, new, operation):
    """The row of a seed after an operation (or "none"), which made `new`."""
    question, reply = new["conversations"]
    label = LABEL[operation] if seed.answered else "teacher"
    turns = [*seed.before, question]
    if label != "teacher":
        turns.append(dict(role="assistant", content=reply["content"]))  # no worked steps
    return {**new, "conversations": turns, "operation": operation, "source": seed.source,
            "label": label}


def changed(rng, seed, operations, share, said, missed):
    """A seed's row for OUT, with chance `share` after one operation, and its row for
    OUT.evolve.jsonl or None. An operation that does not apply, or says what was `said`, is counted
    in `missed`, and another one takes its place."""
    plain = prompt_row(seed, seed.row, "none")
    if rng.random() < share:
        for name in rng.sample(operations, len(operations)):
            text = suites.text_of(seed.row)
            if name in EVOLVE and not is_story(seed.story):
                asked = dict(role="user", content=EVOLVE[name] + text)
                return plain, dict(conversations=[*seed.before, asked], operation=name,
                                   source=seed.source, label="teacher")
            applies = is_story(seed.story) or name in OF_ANY_PROMPT
            new = OPERATIONS[name](rng, seed.row, seed.story) if applies else None
            if new and suites.text_of(new) != text and suites.text_of(new) not in said:
                said.add(suites.text_of(new))
                return prompt_row(seed, new, name), None
            missed[name] += 1
    return plain, None


# --- what the teacher has rewritten ---------------------------------------------------------------

def parse_reply(row):
    """A row that generate.py kept -> (row, turns before, the seed's text, reply or None)."""
    try:
        *told, reply = row["conversations"]
        before, asked, task = told[:-1], told[-1]["content"], EVOLVE[row["operation"]]
        ours = reply["role"] == "assistant" and asked.startswith(task)
        question_of(dict(conversations=told))
    except (TypeError, LookupError, AttributeError, ValueError):
        ours = False
    if not ours:
        raise BadRow("no reply to a row of OUT.evolve.jsonl", expected="what generate.py keeps")
    try:
        turn = parse_response_text(string(reply, "content"))
        return row, before, asked.removeprefix(task), turn.content + (turn.answer or "")
    except BadRow:  # a thought without an end
        return row, before, asked.removeprefix(task), None


def fault(reply, seed):
    """Why a reply is no prompt, or None: nothing in it, a refusal, words about the task, the seed
    again, too long. What the seed says itself is no fault."""
    if reply is None:
        return "broken tags"
    if not re.search(r"[^\W\d_]", reply):
        return "empty"
    if len(reply) > max(LONGEST, 2 * len(seed)):
        return "too long"
    if REFUSAL.match(reply.lstrip("\"'* ")) and not REFUSAL.match(seed):
        return "refusal"
    leak = LEAK.search(reply)
    if leak and leak[0].lower() not in seed.lower():
        return "prompt leak"
    return "same as before" if letters(reply) == letters(seed) else None


def letters(text):
    """What is left of a text without case, spaces and marks."""
    return re.sub(r"[\W_]+", "", text.casefold())


def read_replies(cfg, report, dropped):
    """Yield a prompt row for each reply that is a prompt; count the others in `dropped`."""
    said = set()
    for number, found in read_documents(cfg.evolved, cfg.skip_bad_lines, report, parse=parse_reply):
        row, before, seed, reply = found
        reason = fault(reply, seed) or ("said before" if letters(reply) in said else None)
        if reason:
            dropped[reason] += 1
            continue
        said.add(letters(reply))
        source = row.get("source") or f"{Path(cfg.evolved).name}:{number}"
        yield dict(conversations=[*before, dict(role="user", content=reply.strip())],
                   operation=row["operation"], source=source, label="teacher")


# --- files ----------------------------------------------------------------------------------------

def write(files, fresh):
    """{path: rows} -> files, those without rows not there; UserError, before any is written, where
    one is there and was made otherwise."""
    for path, rows in files.items():
        files[path] = data = json_lines(rows).encode(errors="replace")  # an id of half a letter
        if path.exists() and path.read_bytes() != data and not fresh:
            fail(f"{show(path)} is there, made otherwise", fix="choose another --out, or --fresh")
    for path, data in files.items():
        if data:
            write_file(path, data)
        else:
            path.unlink(missing_ok=True)


def from_seeds(cfg, report):
    """The rows of --input for OUT and for OUT.evolve.jsonl, and which operations did not apply."""
    operations = cfg.operations.split(",")
    unknown = [name for name in operations if name not in OPERATIONS]
    check(not unknown, "--operations", cfg.operations, "some of " + ",".join(OPERATIONS))
    check_ranges(cfg, share=(0, 1))
    need_file(cfg.input, "python dataset/stories.py")
    rng, said, missed = random.Random(cfg.seed), set(), Counter()
    made = [changed(rng, seed, operations, cfg.share, said, missed)
            for seed in read_seeds(cfg, report)]
    return [row for row, _ in made], [row for _, row in made if row], missed


def from_replies(cfg, report):
    """The rows of --evolved for OUT, none for OUT.evolve.jsonl, and why replies were dropped."""
    need_file(cfg.evolved, "python blackbox/generate.py --input OUT.evolve.jsonl")
    dropped = Counter()
    return list(read_replies(cfg, report, dropped)), [], dropped


def main(cfg):
    """Change a share of the seeds, write all of them; or make prompts of the teacher's replies."""
    read = Path(cfg.evolved or cfg.input)
    out = read.with_name("prompts-" + read.name) if cfg.evolved else OUT / "data/prompts.jsonl"
    out = Path(cfg.out) if cfg.out else out
    evolve, report = out.with_name(out.name + ".evolve.jsonl"), {}
    for path in (out, evolve):
        check_apart("--out", path, read)
    check(not is_text(read), "--evolved" if cfg.evolved else "--input", show(read),
          "prompts, one JSON object a line: see dataset/formats.py")
    rows, asked, missed = (from_replies if cfg.evolved else from_seeds)(cfg, report)
    if report:
        print(f"left out: {bad_lines_text(report)}")
    if missed:
        print(f"{'dropped' if cfg.evolved else 'did not apply'}: {counted(missed)}")
    if not rows:
        fail(f"{show(read)} gives no prompt", fix="another file: see dataset/formats.py")
    write({out: rows, evolve: asked}, cfg.fresh)
    distinct = {json.dumps([t for t in row["conversations"] if t["role"] != "assistant"])
                for row in rows}
    print(f"{counted(Counter(row['operation'] for row in rows))}\n"
          f"label: {counted(Counter(row['label'] for row in rows))}\n"
          f"{show(out)}: {len(rows):,} questions, {len(distinct):,} of them distinct")
    if asked:
        evolved = show(out.with_name("evolved-" + out.name))
        print(f"{show(evolve)}: {len(asked):,} for the teacher to rewrite: python "
              f"blackbox/generate.py --input {show(evolve)} --out {evolved}, then python "
              f"blackbox/prompts.py --evolved {evolved}")
    print(f"next: python blackbox/generate.py --input {show(out)} "
          f"--out {show(out.with_name('traces-' + out.name))}")


if __name__ == "__main__":
    run(main, Config)
