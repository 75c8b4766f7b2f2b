"""Many requests: --concurrency at once, tried again after pauses, within a budget that holds.

    for found in ask_all(server, prompts, jobs, cfg, books, state): ...    answers as they come

A fault is asked again up to --retries times. The pauses are 1, 2, 4 ... 60 s, each shortened at
random by up to half (or a crowd that failed together comes back together), and never shorter than
Retry-After. That one holds back all requests: it is the key that is limited, not the prompt.

The books (OUT.requests.jsonl): a line before each request, with the most tokens that it can take,
and another when its answer says what it did take. What was sent just before a kill is in them, so
the sums stay within --max-requests and --max-total-tokens over all runs. A token of the prompt is
counted as one byte of the request until the answer tells. The only way past the budget is a server
that reads more than it was sent, or writes more than it was allowed.
"""
import hashlib
import json
import math
import operator
import os
import queue
import random
import threading
import time
from collections import Counter, deque
from types import SimpleNamespace

import cli
from cli import fail, show
from blackbox.endpoint import attempt

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before the second request for an answer, the last
PATIENCE = 600.0  # seconds: a Retry-After above it ends the run
GIVE_UP = 10      # answers in a row that no retry brought: the server is down; or as many prompts
                  # refused before the first answer: it is not the prompts
GRACE = 5.0       # seconds in which a run that ends takes in what is under way
TICK = 0.1        # seconds after which a pause, a signal or the clock is looked at


def open_books(path, fresh, new):
    """Sums of OUT.requests.jsonl so far: .requests and .tokens. `note` needs .file, too."""
    if fresh or new and not path.exists():
        cli.write_file(path, '{"requests": 0, "tokens": 0}\n')
    cli.need_file(path, "it counts what was sent before: put it back, or --fresh")
    books = SimpleNamespace(requests=0, tokens=0, file=None)
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            for key in ("requests", "tokens"):
                vars(books)[key] += operator.index(row[key])  # no 0.5, no NaN
        except (ValueError, TypeError, LookupError):
            fail(f"{show(path)}:{number}: no line of the requests that were sent",
                 expected='{"requests": 1, "tokens": 300}', fix="mend the line, or --fresh")
    cli.cut_torn_line(path)
    return books


def note(books, requests, tokens):
    """Write down what is about to be sent, or what came back; on the disk before it returns."""
    books.file.write(json.dumps(dict(requests=requests, tokens=tokens)) + "\n")
    books.file.flush()
    os.fsync(books.file.fileno())
    books.requests, books.tokens = books.requests + requests, books.tokens + tokens


def passed(cfg, books, tokens):
    """The budget that one more request of at most so many tokens could pass, or ""."""
    if cfg.max_requests and books.requests >= cfg.max_requests:
        return f"--max-requests {cfg.max_requests}"
    over = cfg.max_total_tokens and books.tokens + tokens > cfg.max_total_tokens
    return f"--max-total-tokens {cfg.max_total_tokens}" if over else ""


def seed_of(seed, question, sample):
    """The seed of one answer, below 2^31: the same in every run, another one for each sample.

    None, which is not sent, of --seed -1: some servers refuse the word.
    """
    if seed < 0:
        return None
    digest = hashlib.sha256(f"{seed} {question} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def request_body(cfg, turns, seed):
    """The request as bytes. Of earlier assistant turns the answer alone: some refuse thoughts."""
    said = [dict(role=t.role, content=t.content if t.answer is None else t.answer) for t in turns]
    body = {"model": cfg.model, "messages": said, "temperature": cfg.temperature,
            cfg.limit_name: cfg.max_new_tokens}
    body |= {} if seed is None else {"seed": seed}
    body |= {"top_p": cfg.top_p} if cfg.top_p < 1 else {}  # some refuse it beside a temperature
    return json.dumps(body, ensure_ascii=False).encode()


def pause(times, wait):
    """Seconds before an answer is asked for again: exponential, with jitter, at least `wait`."""
    return max(wait, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** times) * random.uniform(0.5, 1))


def work(server, timeout, orders, replies):
    """A thread: send what is ordered, hand back the reply (or the bug), until the order None."""
    while order := orders.get():
        began = time.monotonic()
        try:
            reply = attempt(server, order.body, timeout)
        except Exception as error:  # raised again by the main thread
            reply = error
        order.seconds = round(time.monotonic() - began, 3)
        replies.put((order, reply))


def new_state(**more):
    """What the threads' chief knows; the first five, and `more`, are for the caller, too."""
    return SimpleNamespace(
        stop=False,        # set by a signal: end soon
        why="",            # why answers are missing in the end, where the tries are not the reason
        refused=None,      # (job, message) of a reply that asking again cannot mend
        faults=Counter(),  # by kind
        held_until=0.0,    # Retry-After: nothing is sent before
        waiting=[],        # [(when, times asked before, (question, sample))]
        flying=0,          # requests under way
        in_a_row=0,        # answers given up since the last one that came
        came=False,        # has any answer come, in this run or before?
        aside=[],          # [(order, message)] of refused prompts, until one has
        **more)


def ask_all(server, prompts, jobs, cfg, books, state):
    """Yield (job, answer) as they come, in between None: time for a look at the clock.

    A refused prompt is an answer, too, with the server's words and the verdict "refused". jobs:
    [(question, sample)]; prompts[question] are turns. An answer in its pause keeps its place
    among the --concurrency ones: a server that is down gets few requests, not all of them. Nobody
    but this function's thread sends orders, keeps the books and writes rows.
    """
    orders, replies = queue.SimpleQueue(), queue.SimpleQueue()
    threads = [threading.Thread(target=work, args=(server, cfg.timeout, orders, replies),
                                daemon=True) for _ in range(min(cfg.concurrency, len(jobs)))]
    for thread in threads:
        thread.start()
    fresh, last_call = deque(jobs), math.inf
    while fresh or state.waiting or state.flying:
        while fresh and len(state.waiting) + state.flying < cfg.concurrency:
            state.waiting.append((0.0, 0, fresh.popleft()))
        if state.stop or state.why or state.refused:
            last_call = min(last_call, time.monotonic() + GRACE)
            if not state.flying or time.monotonic() > last_call:
                break
        else:
            send_due(orders, prompts, cfg, books, state)
        try:
            order, reply = replies.get(timeout=TICK)
        except queue.Empty:
            yield None
            continue
        state.flying -= 1
        if isinstance(reply, Exception):
            raise reply
        settle(order, reply, cfg, books, state)
        if reply.answer:
            yield order.job, dict(reply.answer, seconds=order.seconds)
        if state.came:
            yield from refusals(state)
    if state.aside and not state.came:
        state.refused = (state.aside[0][0].job, state.aside[0][1])
    for _ in threads:
        orders.put(None)


def refusals(state):
    """(job, answer) of the prompts that were refused; they are settled then."""
    for order, message in state.aside:
        nothing = dict(prompt_tokens=None, completion_tokens=None)
        yield order.job, dict(content=message, reasoning_content=None, finish_reason=None,
                              usage=nothing, model=None, seconds=order.seconds, verdict="refused")
    state.aside.clear()


def send_due(orders, prompts, cfg, books, state):
    """Send what waits no longer and no budget forbids."""
    for entry in sorted(state.waiting):
        when, times, job = entry
        if max(when, state.held_until) > time.monotonic():
            return
        body = request_body(cfg, prompts[job[0]], seed_of(cfg.seed, *job))
        most = len(body) + cfg.max_new_tokens  # tokens: one of the prompt is a byte or more
        over = passed(cfg, books, most)
        if over:
            if not state.flying:  # else an answer under way may take less than was set aside
                state.why = f"{over} is reached"
            return
        note(books, 1, most)  # first: a kill between the two lines must not forget a request
        orders.put(SimpleNamespace(body=body, most=most, times=times, job=job))
        state.waiting.remove(entry)
        state.flying += 1


def settle(order, reply, cfg, books, state):
    """Books and plans after a reply: what it took, or when to ask again."""
    if reply.answer:
        state.in_a_row, state.came = 0, True
        taken = reply.answer["usage"].values()
        if all(taken):  # else nobody knows: what was set aside counts
            note(books, 0, sum(taken) - order.most)
        return
    state.faults[reply.fault or "refused"] += 1
    if reply.fault == "429":  # not even begun
        note(books, 0, -order.most)
    if reply.stop and reply.of_prompt and (state.came or len(state.aside) < GIVE_UP - 1):
        state.aside.append((order, reply.stop))
        return
    if reply.stop:
        state.refused = state.refused or (order.job, reply.stop)
        return
    state.held_until = max(state.held_until, time.monotonic() + reply.wait)
    if reply.wait > PATIENCE:
        state.why = f"the server asks to wait {reply.wait:,.0f} s"
    elif order.times < cfg.retries:
        when = time.monotonic() + pause(order.times, reply.wait)
        state.waiting.append((when, order.times + 1, order.job))
    else:
        state.in_a_row += 1
        if state.in_a_row == GIVE_UP:
            state.why = f"{GIVE_UP} in a row failed: is the server well?"
