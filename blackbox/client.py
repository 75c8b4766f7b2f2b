"""A client of an OpenAI-compatible endpoint: many requests at once, tried again, within a budget.

    client = Client(cfg, rows, write)    rows: those of earlier runs, which the budgets count
    client.ask_all(jobs, messages)       calls write(job, found) for each try, one at a time

What may pass is asked again, up to --retries times: 408, 429, 5xx, a broken connection, invalid
JSON. A Retry-After holds everybody back, because it is the key that is limited. 400, 413 and 422
refuse one prompt (too long, filtered). Anything else, such as 401 or a redirect, stops the run.

Each try is a row, also one that failed, and the budgets count the rows. So a kill -9 forgets at
most --concurrency requests. --timeout is seconds without a byte: a slow drip may last longer.
The key comes from OPENAI_API_KEY; without TLS it goes to this machine only. No proxy is used.
"""
import hashlib
import http.client
import json
import math
import os
import random
import re
import ssl
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor, as_completed

from common import check

FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete")  # in any case
URL = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?(/[\w./~%+:=,-]*)?", re.A | re.I)
LONGEST_PAUSE = 60  # seconds; the first is 1, then 2, 4, 8 ...
PATIENCE = 600      # seconds: a longer Retry-After ends the run
GIVE_UP = 10        # answers in a row that no try brought: it is the server, or a flag
NO_USAGE = dict(prompt_tokens=None, completion_tokens=None)


def finished(reason, tokens=0, limit=math.inf):
    """Is an answer whole? Only these finish_reasons say so, or none at all below the limit."""
    return tokens < limit if reason is None else str(reason).lower() in FINISHED


class Fault(Exception):
    """No answer. kind: its name; words: the server's; then: "again" if it may pass, "refused" if it
    is this prompt's, "stop" if it is everybody's; wait: seconds that the server asks for."""
    def __init__(self, kind, words="", then="again", wait=0.0):
        self.kind, self.words, self.then, self.wait = kind, words, then, wait
        super().__init__(f"{kind}: {words}" if words else kind)


class AsItCame(urllib.request.HTTPErrorProcessor):
    """Returns every status, a redirect too: following one would carry the key elsewhere."""
    def http_response(self, request, response):
        return response
    https_response = http_response


opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), AsItCame)


def read_endpoint(url):
    """--base-url -> (url, key or ""), or UserError, which does not show what may be a secret."""
    key, match = os.environ.get("OPENAI_API_KEY", "").strip(), URL.fullmatch(url)
    check(re.fullmatch("[!-~]*", key), "OPENAI_API_KEY has a character that no key has")
    check(match, "--base-url must be http(s)://HOST[:PORT]/PATH, often ending in /v1, without "
                 "user, password or ?query; a key goes into OPENAI_API_KEY")
    here = re.fullmatch(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]", match[1], re.A | re.I)
    check(not key or here or url.lower().startswith("https:"),
          f"OPENAI_API_KEY would be readable on its way to {url}; use https, or unset it")
    return url.rstrip("/"), key


def post(url, key, body, timeout):
    """Send a request (bytes) -> what parse_answer returns, or Fault."""
    headers = {"Content-Type": "application/json", "User-Agent": "minidistill"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{url}/chat/completions", body, headers)
    try:
        with opener.open(request, timeout=timeout) as reply:
            status, headers = reply.status, reply.headers
            data = reply.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        error = getattr(error, "reason", error)
        then = "stop" if isinstance(error, ssl.SSLCertVerificationError) else "again"
        raise Fault(type(error).__name__, str(error), then) from None
    data = f"ask {headers['Location'].partition('?')[0]}" if "Location" in headers else data
    if len(key) >= 8:  # a server may repeat it; "EMPTY" or "test" is no secret
        data = data.replace(key, "[key]")
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        found = data
    if status == 200 and not (isinstance(found, dict) and found.get("error")):
        return parse_answer(found)
    raise parse_error(status, headers.get("Retry-After", ""), found)


def parse_error(status, wait, found):
    """A reply that is no answer -> Fault. An error inside a 200 counts as its code."""
    error = found.get("error", found) if isinstance(found, dict) else found
    error = error if isinstance(error, dict) else dict(message=error)
    code = error.get("code")
    if status == 200:
        status = code if type(code) is int and 400 <= code < 600 else "error"
    words = str(error.get("message") or error.get("detail") or error)[:300]
    words = "".join(c if c.isprintable() else " " for c in words)
    then = "stop"
    if status in (400, 413, 422):
        then = "refused"
    elif status in (408, 429, "error") or status >= 500:
        then = "stop" if "insufficient_quota" in (code, error.get("type")) else "again"
    wait = float(wait) if re.fullmatch(r"\d{1,9}(\.\d+)?", wait) else 0.0
    return Fault(str(status), words, then, wait)


def parse_answer(found):
    """The JSON of a 200 -> dict(content, reasoning_content, finish_reason, usage, model), with a
    verdict if it is a refusal; or Fault. Null content is an empty answer: it would stay so."""
    try:
        choice = found["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        thought = message.get("reasoning_content") or message.get("reasoning")
    except (LookupError, TypeError, AttributeError):
        kind = "invalid JSON" if isinstance(found, str) else "no choices"
        raise Fault(kind, str(found)[:100]) from None
    if choice.get("error") or reason in ("error", "abort"):  # the server's own trouble
        raise Fault(f"finish_reason {reason}", str(choice.get("error") or "")[:300])
    if isinstance(content, list):
        content, thought = join_parts(content, thought)
    usage = found["usage"] if isinstance(found.get("usage"), dict) else {}
    usage = {k: usage[k] if type(usage.get(k)) is int and usage[k] >= 0 else None for k in NO_USAGE}
    answer = dict(content=content or refusal or "", reasoning_content=thought or None,
                  finish_reason=reason, model=found.get("model"))
    if not all(isinstance(text, str) or text is None for text in answer.values()):
        raise Fault("an answer that is no text", str(answer)[:200], "refused")
    return answer | dict(usage=usage) | (dict(verdict="refused") if refusal and not content else {})


def join_parts(parts, thought=None):
    """Content as a list of parts -> (text, thought); Fault for a part of another type."""
    texts = dict(text="", thinking="")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        kind = "thinking" if kind == "reasoning" else kind
        text = part.get(kind, part.get("text")) if kind in texts else None
        text = join_parts(text)[0] if isinstance(text, list) else text
        if not isinstance(text, str):
            raise Fault("content with a part of unknown type", str(part)[:100], "refused")
        texts[kind] += text
    return texts["text"], texts["thinking"] or thought


def seed_of(seed, question, sample):
    """The seed of one answer, below 2^31: the same in every run, another one for each sample."""
    digest = hashlib.sha256(f"{seed} {question} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Client:
    """An endpoint, its budgets, and what the threads that ask it share."""

    def __init__(self, cfg, rows, write):
        self.cfg, self.write = cfg, write
        self.url, self.key = read_endpoint(cfg.base_url)
        self.limit = "max_tokens"  # or "max_completion_tokens", if a server asks for that name
        self.changed = threading.Condition()
        self.requests, self.under_way, self.held_until = len(rows), 0, 0.0
        self.tokens = sum(row["tokens"] if "tokens" in row else
                          sum(filter(None, row["usage"].values())) for row in rows)
        self.answered = any(row["verdict"] not in ("failed", "refused") for row in rows)
        self.gave_up = 0                # answers in a row
        self.why = self.error = ""      # why no more is sent; what the user has to mend

    def ask_all(self, jobs, messages):
        """Ask for every job, (question, sample), with messages[question]. Returns when all have
        come or no more is sent. What is under way is paid for, so it is waited for."""
        pool = ThreadPoolExecutor(self.cfg.concurrency)
        try:
            for done in as_completed([pool.submit(self.ask, job, messages) for job in jobs]):
                done.result()
        finally:
            with self.changed:
                self.stop(f"none of {1 + self.cfg.retries} tries brought them")
            pool.shutdown(cancel_futures=True)

    def ask(self, job, messages):
        """A thread: one answer, in at most 1 + --retries tries."""
        cfg, wait = self.cfg, 0.0
        body = dict(model=cfg.model, messages=messages[job[0]], temperature=cfg.temperature)
        seed = None if cfg.seed < 0 else seed_of(cfg.seed, *job)
        body |= {} if seed is None else dict(seed=seed)
        for tried in range(cfg.retries + 1):
            limit = self.limit
            data = json.dumps(body | {limit: cfg.max_new_tokens}, ensure_ascii=False).encode()
            most = len(data) + cfg.max_new_tokens  # tokens: one of the prompt is a byte or more
            if not self.begin(most, wait):
                return
            began, fault = time.monotonic(), None
            try:
                found = post(self.url, self.key, data, cfg.timeout)
            except Fault as error:
                fault = error
                if limit == "max_tokens" and "max_completion_tokens" in fault.words:
                    self.limit, fault.then = "max_completion_tokens", "again"
                found = dict(content=str(fault), reasoning_content=None, finish_reason=None,
                             usage=NO_USAGE, model=None,
                             verdict="refused" if fault.then == "refused" else "failed")
            found |= dict(seed=seed, seconds=round(time.monotonic() - began, 3))
            with self.changed:
                self.end(job, found, most, fault, tried == cfg.retries)
            if not fault or fault.then != "again":
                return
            wait = min(LONGEST_PAUSE, 2 ** tried) * random.uniform(0.5, 1)  # no crowd comes back

    def begin(self, most, wait):
        """Wait until a request of at most so many tokens may be sent; False if none is any more."""
        due, cfg = time.monotonic() + wait, self.cfg
        with self.changed:
            while not self.why:
                over = (0 < cfg.max_requests <= self.requests
                        or 0 < cfg.max_total_tokens < self.tokens + most)
                seconds = max(due, self.held_until) - time.monotonic()
                if over and not self.under_way:  # one under way may take less than was set aside
                    self.stop("--max-requests or --max-total-tokens is reached")
                elif over or seconds > 0:
                    self.changed.wait(None if over else seconds)
                else:
                    self.requests, self.tokens = self.requests + 1, self.tokens + most
                    self.under_way += 1
                    return True
        return False

    def end(self, job, found, most, fault, last):
        """Write the row of a try, set free what it did not take, decide how to go on."""
        used = found["usage"].values()
        found["tokens"] = sum(used) if all(used) else 0 if fault and fault.kind == "429" else most
        self.tokens, self.under_way = self.tokens + found["tokens"] - most, self.under_way - 1
        self.changed.notify_all()
        self.write(job, found)
        if not fault:
            self.answered, self.gave_up = True, 0
            return
        self.held_until = max(self.held_until, time.monotonic() + fault.wait)
        self.gave_up += last if fault.then == "again" else not self.answered
        if fault.then == "stop" or fault.kind == "error" and not self.answered:
            self.error = f"{self.url} says {fault}"
            self.stop(self.error)
        elif fault.wait > PATIENCE:
            self.stop(f"the server asks to wait {fault.wait:,.0f} s")
        elif self.gave_up == GIVE_UP:
            self.stop(f"{GIVE_UP} answers in a row failed")

    def stop(self, why):
        """Send no more; the first reason counts. The lock is held."""
        self.why = self.why or why
        self.changed.notify_all()
