"""Ask the teacher: sample its answers to prompts, keep those that hold.

    python blackbox/generate.py --teacher out/teacher.pt --input out/data/stories/distill.jsonl
    python blackbox/generate.py --base-url http://127.0.0.1:8000/v1 --model teacher --samples 4

Black box: what is kept is text. The teacher is a checkpoint, or a model behind an OpenAI-compatible
endpoint (key: OPENAI_API_KEY; faults: blackbox/endpoint.py; retries and budgets: blackbox/asking.py).
Each prompt (blackbox/questions.py) is asked --samples times; an answer is kept if it ended, has the
form (of a checkpoint: <think>...</think><answer>...</answer>), gives the known answer and was not
said before for the same prompt (rejection sampling: Yuan et al. 2023, 3.3). Where nobody knows the
answer, it is kept as "unverified".

Writes OUT.all.jsonl, every answer with all that is known about it (blackbox/answers.py), appended:
after a stop, or a kill, the same command asks for exactly what is missing (an endpoint may be asked
for more --questions or --samples then). And OUT, the kept rows, ready for train_distill_reason.py.
An endpoint's requests are counted in OUT.requests.jsonl.
Status 0: all answers are there; 1: some are missing (the same command asks for them again); 2: a
mistake; 130: stopped. Last line: next: python train_distill_reason.py ...
"""
import functools
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import checkpoints
import cli
import oldcommon as common
from cli import OUT, check, fail, show
from blackbox import answers, asking, endpoint
from dataset.formats import Turn, counted, prompt_ids
from blackbox.questions import asked, read_prompts
from decoding import generate
from tokenizer import check_unicode


@dataclass
class Config:
    teacher: str = OUT / "teacher.pt"  # checkpoint that is asked
    base_url: str = ""             # asked instead: an endpoint, such as http://127.0.0.1:8000/v1
    model: str = ""                # the teacher's name at the endpoint
    input: str = OUT / "data/stories/distill.jsonl"  # prompts, in any format of dataset/formats.py
    out: str = OUT / "data/traces.jsonl"  # the kept rows
    questions: int = 0             # ask only the first N; 0: all
    samples: int = 1               # answers a prompt (1 to 16)
    system: str = ""               # system turn before each prompt that has none of its own
    temperature: float = 0.7       # of sampling (0.5 to 1; above 1 the traces get worse)
    top_p: float = 1.0             # keep the smallest set of tokens with this mass (0.9 to 1)
    max_new_tokens: int = 128      # an answer that reaches this is rejected as truncated
    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # its name there
    batch: int = 128               # answers that a checkpoint writes together
    concurrency: int = 8           # requests under way at once (1 to 64)
    timeout: float = 120.0         # seconds for a whole answer of the endpoint
    retries: int = 6               # further requests for an answer that failed (about a minute)
    max_requests: int = 0          # never send more, over all runs of this --out; 0: no limit
    max_total_tokens: int = 0      # never take more tokens, prompts and answers; 0: no limit
    seed: int = 0                  # of the answers; -1: an endpoint that refuses a seed gets none
    skip_bad_lines: bool = False   # count bad lines of the input and go on
    fresh: bool = False            # ask everything again, and count the budgets anew


MANNERS = ("concurrency", "timeout", "retries", "max_requests", "max_total_tokens")
GROWING = ("questions", "samples")  # of an endpoint, too: what was paid for stays
ONLY_ENDPOINT = ("model", "limit_name", *MANNERS)  # MANNERS may change when a run goes on
MANY = 10**12
RANGES = dict(samples=(1, MANY), batch=(1, MANY), max_new_tokens=(1, MANY), questions=(0, MANY),
              concurrency=(1, 256), retries=(0, 100), timeout=(0.001, 86_400), top_p=(0, 1),
              max_requests=(0, MANY), max_total_tokens=(0, MANY))


def show_progress(tally, rows, total):
    """Count rows; every ten seconds, and with the last one, print how it goes."""
    tally.counts.update(row["verdict"] for row in rows)
    tally.tokens += sum(n or 0 for row in rows for n in row["usage"].values())
    now, n = time.monotonic(), sum(tally.counts.values())
    if now - tally.shown < 10 and not (rows and n == total):
        return
    tally.shown, rate = now, n / max(now - tally.began, 1e-9)
    left = (total - n) / rate if n else 0
    words = [f"{n:>6,}/{total:,} answers", f"{rate:.1f}/s",
             counted(tally.counts, ", ") or "none yet", f"{tally.tokens:,} tokens"]
    words += [f"faults: {counted(tally.faults, ', ')}"] if tally.faults else []
    words += [f"told to wait {tally.held_until - now:.0f} s"] if tally.held_until > now else []
    print(" | ".join([*words, f"eta {int(left // 60)}m{int(left % 60):02d}s"]))


# --- the two teachers: (prompts, fingerprint, a function that yields lists of missing rows) -------

def open_checkpoint(cfg):
    """The teacher is a file. Prompts that do not fit into its context are left out."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(cfg.teacher, device, "python train_pretrain.py")
    context = model.config.max_seq_len

    def tokens(prompt):
        """The ids that the model goes on from."""
        return prompt_ids(tokenizer, [*asked(cfg, prompt), Turn("assistant", "")])
    prompts = read_prompts(cfg, lambda prompt: len(tokens(prompt)) < context,
                           f"the teacher's context of {context} tokens")
    fingerprint = checkpoints.weights_fingerprint(model)
    return prompts, fingerprint, functools.partial(
        checkpoint_rows, cfg, model, fingerprint, tokenizer, prompts, [tokens(p) for p in prompts])


def checkpoint_rows(cfg, model, fingerprint, tokenizer, prompts, ids, jobs, done, _):
    """A list of rows a batch. A batch is written whole, whatever is there of it: its random
    numbers, and so its answers, are those of an undisturbed run."""
    jobs = sorted(jobs, key=lambda job: len(ids[job[0]]))  # prompts of about equal length together
    device = model.embed_tokens.weight.device
    for number, first in enumerate(range(0, len(jobs), cfg.batch)):
        batch, began = jobs[first:first + cfg.batch], time.monotonic()
        if done.issuperset(batch):
            continue
        seed = cfg.seed * 1_000_003 + number
        said = generate(model, [ids[q] for q, _ in batch], cfg.max_new_tokens, {tokenizer.end},
                        generator=torch.Generator(device).manual_seed(seed),
                        temperature=cfg.temperature, top_p=cfg.top_p)
        seconds = round((time.monotonic() - began) / len(batch), 3)
        yield [answers.row(cfg, prompts, job, model=fingerprint, seed=seed, seconds=seconds,
                           usage=dict(prompt_tokens=len(ids[job[0]]), completion_tokens=len(new)),
                           **answers.judge_ids(tokenizer, prompts[job[0]], new))
               for job, new in zip(batch, said) if job not in done]


def open_endpoint(cfg):
    """The teacher is a model behind an URL: its name is all that can be compared."""
    server = endpoint.parse_base_url(cfg.base_url, endpoint.read_key())
    prompts = read_prompts(cfg)
    return prompts, "", functools.partial(endpoint_rows, cfg, server, prompts)


def endpoint_rows(cfg, server, prompts, jobs, done, tally):
    """A list with one row as each comes, in between empty lists."""
    path = Path(cfg.out + ".requests.jsonl")
    books = asking.open_books(path, cfg.fresh, new=not done)
    jobs = [job for job in jobs if job not in done]
    tally.came = bool(done)
    common.catch_signals(tally)
    turns = [asked(cfg, prompt) for prompt in prompts]
    with cli.append(path) as books.file:
        for found in asking.ask_all(server, turns, jobs, cfg, books, tally):
            if found is None:
                yield []
                continue
            job, said = found
            said["model"] = said["model"] or cfg.model
            said.setdefault("verdict", answers.judge_text(prompts[job[0]], said))
            yield [answers.row(cfg, prompts, job, **said, seed=asking.seed_of(cfg.seed, *job))]


def next_command(cfg):
    """What to type after it; rows elsewhere than the default need to be named."""
    words = "python train_distill_reason.py"
    if not cli.is_default(cfg, "out"):
        val = show(OUT / "data/stories/val.jsonl") if cli.is_default(cfg, "input") else "..."
        words += f" --name student-{Path(cfg.out).stem} --data {show(cfg.out)} --val {val}"
    return words


def check_flags(cfg):
    """UserError for a wrong value, and for a flag that this teacher does not heed."""
    cli.check_ranges(cfg, **RANGES, seed=(-1 if cfg.base_url else 0, 2**32 - 1))
    check(cfg.temperature == 0 or 0.01 <= cfg.temperature <= 100, "--temperature", cfg.temperature,
          "0 (greedy), or 0.01 to 100")
    check_unicode(cfg.system + cfg.model + cfg.input + cfg.out)
    check(not cfg.base_url or cfg.model, "--model", cfg.model, "the teacher's name at --base-url")
    for flag in ("teacher", "batch") if cfg.base_url else ONLY_ENDPOINT:
        check(flag not in cfg.given, "--" + flag.replace("_", "-"), getattr(cfg, flag),
              "no --base-url beside it" if cfg.base_url else "a --base-url beside it")


def ask(cfg, path, prompts, fingerprint, missing_rows):
    """Append every missing answer to OUT.all.jsonl; returns in words what did not come, or ""."""
    changeable = (*MANNERS, *GROWING) if cfg.base_url else MANNERS
    header = {k: v for k, v in checkpoints.comparable(cfg).items() if k not in changeable}
    header |= dict(teacher=fingerprint, input=cli.sha256_file(cfg.input))
    key = endpoint.read_key() if cfg.base_url else ""
    jobs = [(q, s) for q in range(len(prompts)) for s in range(cfg.samples)]
    header = answers.hidden(header, key)  # as in the rows
    done = answers.open_answers(path, header, set(jobs), cfg.fresh,
                                more=bool(cfg.base_url))
    total = len(jobs) - len(done)
    if not total:
        print(f"{show(path)} is finished; --fresh asks again")
        return ""
    now = time.monotonic()
    tally = asking.new_state(counts=Counter(), tokens=0, began=now, shown=now)
    with cli.append(path) as file:
        for rows in missing_rows(jobs, done, tally):
            answers.append_rows(file, rows, key)
            show_progress(tally, rows, total)
    if tally.refused:
        (q, _), message = tally.refused
        answers.keep(path, cfg.out)  # what came before is paid for
        fail(f"{message} (asking {prompts[q].source})")
    missing = total - sum(tally.counts.values())
    if missing and tally.stop:
        raise KeyboardInterrupt  # cli.run says how to go on
    why = tally.why or f"given up after {1 + cfg.retries} requests each"
    return (f"{missing:,} answers are missing: {why}; faults: "
            f"{counted(tally.faults, ', ') or 'none'}; the same command asks for them again"
            if missing else "")


def main(cfg):
    """Ask what is missing, keep what holds."""
    check_flags(cfg)
    path = Path(cfg.out + ".all.jsonl")
    for out in (cfg.out, path, cfg.out + ".requests.jsonl"):
        cli.check_apart("--out", out, cfg.input, cfg.teacher)
    cli.need_file(cfg.input, "python dataset/stories.py")
    prompts, fingerprint, missing_rows = (open_endpoint if cfg.base_url else open_checkpoint)(cfg)
    if Path(cfg.out).exists() and not path.exists() and not cfg.fresh:
        fail(f"{show(cfg.out)} is there already",
             fix="choose another --out, or --fresh replaces it")
    lock = checkpoints.lock_file(path)  # held until this function ends  # noqa: F841
    missing = ask(cfg, path, prompts, fingerprint, missing_rows)
    if missing:
        print(missing, file=sys.stderr)
    counts, answered = answers.keep(path, cfg.out)
    if not answered and not missing:
        fail("no answer of the teacher holds", dict(counts), "some right ones",
             "a higher --max-new-tokens" if counts["truncated"] > sum(counts.values()) / 2
             else "a better teacher")
    print(counted(counts) or "no answer")
    if counts["truncated"] > sum(counts.values()) / 10:
        print("one in ten or more reached the limit: a higher --max-new-tokens, with --fresh")
    print(f"{show(cfg.out)}: {sum(counts[k] for k in answers.KEPT):,} traces of {answered:,} of "
          f"{len(prompts):,} questions\nnext: " +
          (next_command(cfg) if answered else "the same command"))
    if missing:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main, Config)
