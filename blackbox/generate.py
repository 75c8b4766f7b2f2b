"""Sample the teacher's answers to prompts, and keep the right ones.

    python blackbox/generate.py --teacher out/teacher.pt --input out/data/stories/distill.jsonl
    python blackbox/generate.py --base-url http://127.0.0.1:8000/v1 --model teacher --samples 4
    python blackbox/generate.py --documents 1000 --teacher out/prose-teacher.pt --temperature 1 \\
        --max-new-tokens 250 --out out/data/written.jsonl

Black box: only text is kept. The teacher is a checkpoint, or a model behind an OpenAI-compatible
endpoint. An answer is kept if it is complete, right and new for its prompt (rejection sampling:
Yuan et al. 2023, 3.3). If the right answer is unknown, it is kept as "unverified". A checkpoint's
answer must also have the format <think>...</think><answer>...</answer>. With --documents a
checkpoint writes plain text, for a student with too little text (Kim & Rush 2016).

OUT has the kept rows. OUT.all.jsonl has a header and all rows: prompt (without --system), verdict
and full text. After a stop or a kill, the same command asks only for missing answers. A higher
--max-new-tokens asks again for truncated ones. With an endpoint you may also raise --questions or
--samples, or add lines to --input. Exit status 1 means that some answers are missing.
"""
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common
import torch

import checkpoints
from blackbox.client import Client, finished
from blackbox.prompts import question_of
from common import OUT, UserError, between, check, show
from dataset.formats import (TAGS, BadRow, Turn, bad_lines_text, is_text, parse_response_text,
                             read_documents)
from dataset.verify import answer_in, parse_response, prompt_ids, turn_row, verdict
from decoding import generate
from metrics import append_rows, counted, json_lines


@dataclass
class Config:
    teacher: str = OUT / "teacher.pt"  # the teacher, a checkpoint
    base_url: str = ""             # or an OpenAI-compatible endpoint: http://127.0.0.1:8000/v1
    model: str = ""                # the teacher's name at the endpoint (its key: OPENAI_API_KEY)
    input: str = OUT / "data/stories/distill.jsonl"  # prompts, in any format of dataset/formats.py
    out: str = OUT / "data/traces.jsonl"  # the kept rows
    questions: int = 0             # ask only the first N questions; 0: all
    samples: int = 1               # answers to each prompt (1 to 16)
    system: str = ""               # system turn for each prompt that has none
    documents: int = 0             # write N documents of plain text instead of answers
    temperature: float = 0.7       # for sampling (0.5 to 1; above 1 the answers get worse)
    max_new_tokens: int = 128      # an answer or document that is longer is rejected as truncated
    batch: int = 128               # answers that a checkpoint writes at the same time
    dtype: Literal["auto", "float32", "bf16"] = "float32"  # precision of a checkpoint's math
    concurrency: int = 8           # requests at the same time (1 to 64)
    timeout: float = 120.0         # seconds that the endpoint may be silent
    retries: int = 6               # more tries for a failed request (6 take about a minute)
    max_requests: int = 0          # limit of requests in all runs of this --out; 0: none
    max_total_tokens: int = 0      # limit of tokens in prompts and answers; 0: none; 1: ask nothing
    seed: int = 0                  # random seed; -1: send none, for endpoints that refuse it
    skip_bad_lines: bool = False   # count bad lines of the input and go on
    fresh: bool = False            # ask everything again; the budgets start at 0


ENDPOINT = {"model", "concurrency", "timeout", "retries", "max_requests", "max_total_tokens"}
CHECKPOINT = {"teacher", "batch", "dtype", "documents"}
PROMPTS = {"input", "questions", "samples", "system", "skip_bad_lines"}
PARAMETERS = ("temperature", "max_new_tokens", "system")
KEPT_KEYS = "conversations operation source label sample verdict model finish_reason usage".split()
MIN_CHARS = 100  # minimum for a document


def read_prompts(cfg):
    """--input -> [(turns to send, dict of what is known about them)]; UserError if it is empty."""
    check(not is_text(cfg.input), f"{show(cfg.input)}: plain text has no rows; name a .jsonl file")
    prompts, report = [], {}
    for place, (row, turns, known) in read_documents(
            cfg.input, cfg.skip_bad_lines, report, lambda row: (row, *question_of(row, report))):
        own = row if "operation" in row else dict(source=row.get("id"))  # a row of prompts.py?
        source = own.get("source") or Path(place).name
        label = own.get("label", "teacher" if known is None else "kept")
        about = dict(conversations=list(map(turn_row, turns)), source=str(source),
                     operation=str(own.get("operation", "none")), label=str(label), reference=known)
        if cfg.system and all(turn.role != "system" for turn in turns):
            turns = [Turn("system", cfg.system), *turns]
        prompts.append((turns, about))
    if report:
        print(f"note: {bad_lines_text(report)}")
    check(prompts, f"{show(cfg.input)} has no question to ask")
    return prompts


def judge_ids(tokenizer, about, ids):
    """Ids of an answer -> dict(verdict, reasoning_content, content); document: (verdict, text)."""
    found = parse_response(tokenizer, ids)
    if not about:
        length = "too short" if len(found["text"]) < MIN_CHARS else "ok"
        return dict(verdict=length if found["ended"] else "truncated", text=found["text"])
    thought, content = found["think"], found["answer"]
    shown = tokenizer.decode([i for i in ids if i not in tokenizer.stop_ids], show_control=True)
    if not tokenizer.tag_ids:  # an imported model, which need not use tags: judge it as text
        said = dict(content=shown, reasoning_content=None, usage=dict(completion_tokens=None),
                    finish_reason="stop" if found["ended"] else "length")
        return dict(verdict=judge_text(about["reference"], said, 0), reasoning_content=None,
                    content=shown)
    if not found["well_formed"]:  # keep it all, with its control tokens
        thought, content = None, shown
    decision = verdict(about["reference"], found["answer"], found["ended"], found["well_formed"])
    return dict(verdict=decision, reasoning_content=thought, content=content)


def judge_text(reference, found, limit):
    """Verdict on an endpoint's answer. Without <answer>, answer_in finds the part to compare."""
    ended = finished(found["finish_reason"], found["usage"]["completion_tokens"] or 0, limit)
    try:
        turn = parse_response_text(found["content"], found["reasoning_content"])
    except BadRow:  # tags that do not match
        return verdict(reference, None, ended, False)
    answer = turn.content if turn.answer is None else turn.answer
    if reference is not None and "<answer>" not in found["content"]:
        answer = answer_in(answer, reference)
    tagged = reference is not None and any(tag in turn.content for tag in TAGS)
    return verdict(reference, answer, ended, not tagged)


def keep(rows):
    """Rows of OUT.all.jsonl -> (counts by verdict, rows of OUT: the complete, right, new ones)."""
    counts, seen, kept = Counter(), set(), []
    for row in sorted(rows, key=lambda row: (row["question"], row["sample"])):
        found = row["verdict"]
        key = row["question"], row.get("reasoning_content"), row.get("content")
        if "text" in row:  # a document
            kept += [dict(text=row["text"])] * (found == "ok")
        elif found in ("ok", "unverified") and key in seen:
            found = "said before"
        elif found in ("ok", "unverified"):
            turn = parse_response_text(row["content"], row["reasoning_content"])
            if turn.answer is None and found == "ok":  # free text becomes thought and answer
                text = turn.content.strip()
                answer = answer_in(turn.content, row["reference"]).strip()
                turn = Turn("assistant", "", None if answer == text else text, answer)
            seen.add(key)
            kept.append({name: row[name] for name in KEPT_KEYS}
                        | dict(conversations=[*row["conversations"], turn_row(turn)]))
        counts[found] += 1
    return counts, kept


class Answers:
    """OUT.all.jsonl: a header, then all rows as they came. UserError if another command made it."""
    def __init__(self, cfg, header, prompts, wanted):
        self.cfg, self.path, self.prompts = cfg, Path(cfg.out + ".all.jsonl"), prompts
        self.began = self.shown = time.monotonic()
        self.wanted = wanted  # how many rows there will be, if no request fails
        if cfg.fresh or not self.path.exists():
            common.write_file(self.path, json_lines([header]))
        try:  # a killed run may leave half a line
            old, *self.rows = map(json.loads, self.path.read_bytes().split(b"\n")[:-1])
            old = {name: old.get(name) for name in header}
        except (ValueError, AttributeError):
            raise UserError(f"{show(self.path)} exists and is not a file of this script") from None
        old["max_new_tokens"] = max(old["max_new_tokens"] or 0, cfg.max_new_tokens)  # it may grow
        common.refuse_others(self.path, old, header)
        for row in self.rows:
            for _, about in prompts[row["question"]:][:1]:
                check(all(row[name] == about[name] for name in ("conversations", "reference")),
                      f"{show(cfg.input)} has other questions than {show(self.path)}; "
                      "choose another --out, or --fresh")
        self.before = len(self.rows)

    def settled(self):
        """-> {(question, sample): row} of the answers that need not be asked again."""
        answered = any(row["verdict"] not in ("failed", "refused") for row in self.rows)
        limit = self.cfg.max_new_tokens
        return {(row["question"], row["sample"]): row for row in self.rows if not dict(
            failed=True, refused=not answered and not row["finish_reason"],
            truncated=row["parameters"]["max_new_tokens"] < limit).get(row["verdict"])}

    def add(self, job, found):
        """Append what came for job (question, sample). Print the progress every ten seconds."""
        about = self.prompts[job[0]][1] if self.prompts else {}
        row = dict(question=job[0], sample=job[1], **about,
                   parameters={name: getattr(self.cfg, name) for name in PARAMETERS},
                   time=datetime.now(timezone.utc).isoformat(timespec="seconds"), **found)
        append_rows(self.path, [row])
        self.rows.append(row)
        if time.monotonic() - self.shown > 10:
            self.shown, rows = time.monotonic(), len(self.rows)
            each = (self.shown - self.began) / (rows - self.before)  # seconds
            print(f"{rows:>6,} of {self.wanted:,} rows |", counted(Counter(
                r["verdict"] for r in self.rows)), "|", common.eta(each * (self.wanted - rows)))


def ask_checkpoint(cfg, teacher, answers, prompts, jobs):
    """Append the missing rows. If a row of a batch is missing, the whole batch is generated again.
    Its random numbers depend on --seed and its number: the answers are as without a stop."""
    model, tokenizer, env, fingerprint = teacher
    jobs = sorted(jobs, key=lambda job: len(prompts[job[0]][0]))  # batches of similar length
    batches = (jobs[i:i + cfg.batch] for i in range(0, len(jobs), cfg.batch))
    if cfg.documents:  # until enough are complete
        batches = ([(i + n, 0) for n in range(cfg.batch)] for i in itertools.count(0, cfg.batch))
    done = answers.settled().keys()
    for number, batch in enumerate(batches):
        whole = sum(row["verdict"] == "ok" and row["question"] < number * cfg.batch
                    for row in answers.rows)
        if cfg.documents and whole >= cfg.documents:
            return
        check(whole or number < 3 or not cfg.documents, f"none of {3 * cfg.batch} documents ended "
              f"and had {MIN_CHARS} characters; raise --max-new-tokens or use another teacher")
        if done >= set(batch):
            continue
        asked = [([tokenizer.text_end], {}) if cfg.documents else prompts[q] for q, _ in batch]
        began, seed = time.monotonic(), cfg.seed * 1_000_003 + number
        with env.autocast():
            replies = generate(model, [ids for ids, _ in asked], cfg.max_new_tokens,
                               tokenizer.stop_ids, temperature=cfg.temperature,
                               generator=torch.Generator(env.device).manual_seed(seed))
        seconds = round((time.monotonic() - began) / len(batch), 3)
        for job, (ids, about), reply in zip(batch, asked, replies):
            if job not in done:
                answers.add(job, dict(
                    model=fingerprint, seed=seed, seconds=seconds,
                    finish_reason="stop" if tokenizer.stop_ids & {*reply} else "length",
                    usage=dict(prompt_tokens=len(ids), completion_tokens=len(reply)),
                    **judge_ids(tokenizer, about, reply)))


def ask_endpoint(cfg, answers, prompts, jobs):
    """Append a row for each try, until all answers are there or the client stops -> the Client."""
    def write(job, found):
        found["model"] = found["model"] or cfg.model
        if "verdict" not in found:
            reference = prompts[job[0]][1]["reference"]
            found["verdict"] = judge_text(reference, found, cfg.max_new_tokens)
        answers.add(job, found)
    client, done = Client(cfg, answers.rows, write), answers.settled()
    # Earlier answers are sent without their thought: some servers refuse it.
    messages = [[dict(role=turn.role, content=turn.content if turn.answer is None else turn.answer)
                 for turn in turns] for turns, _ in prompts]
    missing = [job for job in jobs if job not in done]
    # A token of a request has at least one byte. Its other fields have fewer than 200 bytes.
    most = sum(200 + cfg.max_new_tokens + len(json.dumps(messages[q], ensure_ascii=False).encode())
               for q, _ in missing)
    print(f"{len(jobs) - len(missing):,} of {len(jobs):,} answers are there; to ask: "
          f"{len(missing):,} requests, at most {most:,} tokens (without retries)")
    client.ask_all(missing, messages)
    return client


def check_flags(cfg):
    """UserError for a wrong value, a flag without effect, or a file that would be replaced."""
    between(cfg, 0.01, 10**12, "samples", "max_new_tokens", "batch", "concurrency", "timeout")
    between(cfg, 0, 10**12, "questions", "documents", "retries", "max_requests", "max_total_tokens")
    between(cfg, 0, 100, "temperature")
    between(cfg, -1 if cfg.base_url else 0, 2**32 - 1, "seed")
    check(cfg.model or not cfg.base_url, "--base-url needs --model, the teacher's name there")
    idle = cfg.given & (CHECKPOINT if cfg.base_url else ENDPOINT)
    idle |= cfg.given & PROMPTS if cfg.documents else set()
    kind = "--base-url" if cfg.base_url else "--documents" if cfg.documents else "a checkpoint"
    check(not idle, f"--{min(idle, default='').replace('_', '-')} has no effect with {kind}")
    out = Path(cfg.out).resolve()
    check(Path(cfg.input).resolve() not in (out, *out.parents), "--out would be a part of --input")
    check(cfg.fresh or Path(cfg.out + ".all.jsonl").exists() or not Path(cfg.out).exists(),
          f"{show(cfg.out)} is there already; choose another --out, or --fresh")


def conclude(cfg, answers, jobs, client):
    """Write OUT; print what it has, what is missing and the next command. Status 1: incomplete."""
    settled = answers.settled()
    counts, kept = keep(settled.values())
    kept, missing = kept[:cfg.documents or None], len(set(jobs) - settled.keys())
    if kept:
        common.write_file(cfg.out, json_lines(kept))
    if len(answers.rows) == answers.before and not missing:
        print(f"{show(answers.path)} is finished; --fresh starts again")
    print(f"{counted(counts) or 'no answer yet'}\n{show(cfg.out)}: {len(kept):,} rows")
    if 2 * counts["format"] > len(settled):
        example = next(r["content"] for r in settled.values() if r["verdict"] == "format")
        print(f"most answers have the wrong format, such as {example[:300]!r}")
    if missing:
        words = f"{missing:,} answers are missing: {client.why}"
        check(not client.error, words)
        faults = counted(Counter(dict(client.faults.most_common(3))), ", ") or "none"
        again = "raise it" if client.why[:2] == "--" else "the same command asks for them again"
        common.stop(f"{words}; faults: {faults}; {again}", 1)
    cut = 2 * counts["truncated"] > len(settled)
    check(kept, f"no answer is kept ({counted(counts, ', ')}): "
          f"{'raise --max-new-tokens' if cut else 'try another teacher'}")
    script, flags = "train_distill_responses.py", {}
    if cfg.documents:
        script, flags = "train_distill_logits.py", dict(teacher=cfg.teacher)
    elif any("reasoning_content" in row["conversations"][-1] for row in kept):
        script = "train_distill_reason.py"
    if cfg.documents or "out" in cfg.given:
        flags |= dict(name=f"student-{Path(cfg.out).stem}", data=cfg.out,
                      val="" if cfg.documents else OUT / "data/stories/val.jsonl")
    if "input" in cfg.given:  # it looks for copies, and for a tokenizer that fits
        script, flags = "blackbox/filter.py", dict(
            input=cfg.out, out=Path(cfg.out).with_suffix(".filtered.jsonl"))
    print(f"next: {common.command(script, **flags)}")


def main(cfg):
    """Ask for the missing answers, then write OUT with those to keep."""
    check_flags(cfg)
    held = common.lock(cfg.out + ".all.jsonl")  # until this function ends  # noqa: F841
    prompts = [] if cfg.documents else read_prompts(cfg)
    header = {k: getattr(cfg, k) for k in ("model", "seed", *PARAMETERS)} | dict(teacher="")
    if not cfg.base_url:
        env = common.device_and_dtype(cfg)
        model, tokenizer, _ = checkpoints.load_model(cfg.teacher, env.device)
        teacher = model, tokenizer, env, checkpoints.weights_fingerprint(model)
        count, context = len(prompts), model.config.max_seq_len
        prompts = [(prompt_ids(tokenizer, turns), about) for turns, about in prompts]
        prompts = [(ids, about) for ids, about in prompts if len(ids) < context]
        if len(prompts) < count:
            print(f"left out: {count - len(prompts):,} questions of {context} tokens or more")
        check(prompts or not count, f"no question fits into the teacher's {context} tokens")
        header |= {k: getattr(cfg, k) for k in ("batch", "samples", "questions")} | dict(
            teacher=teacher[-1], input="" if cfg.documents else common.sha256_file(cfg.input))
    prompts = prompts[:cfg.questions or None]
    jobs = [(q, s) for q in range(len(prompts)) for s in range(cfg.samples)]
    answers = Answers(cfg, header, prompts, cfg.documents or len(jobs))
    client = ask_endpoint(cfg, answers, prompts, jobs) if cfg.base_url else \
        ask_checkpoint(cfg, teacher, answers, prompts, jobs)
    conclude(cfg, answers, jobs, client)


if __name__ == "__main__":
    common.run(main, Config)
