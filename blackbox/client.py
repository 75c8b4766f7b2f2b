"""A client for an OpenAI-compatible endpoint. It sends many requests at once, within a budget.

After 408, 429, 5xx, a broken connection or invalid JSON, it sends a request again, at most
--retries times. A Retry-After makes all requests wait. 400, 413 and 422 refuse one prompt, for
example because it is too long. Any other status, such as 401 or a redirect, stops the run.

Each try is written as a row, and the budgets count these rows. So after a kill -9, at most
--concurrency requests are not counted. The client follows no redirect and uses no proxy, because
both would see the key. Without TLS the key is sent only to this machine.
"""
import hashlib
import http.client
import json
import os
import random
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from urllib.parse import urlsplit

from common import check

FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete")  # in lower case
URL = re.compile(r"https?://([\w.-]+|\[[\da-f:.]+\])(:\d{1,5})?(/[\w./~%+:=,-]*)?", re.A | re.I)
LONGEST_PAUSE = 60  # seconds between two tries of a request: about 1, then 2, 4, 8 ... up to this
PATIENCE = 600      # seconds: a longer Retry-After ends the run
GIVE_UP = 10        # the run also ends after GIVE_UP * (1 + --retries) faults in a row
NO_USAGE = dict(prompt_tokens=None, completion_tokens=None)


def finished(reason, tokens=0, limit=float("inf")):
    """True if an answer is complete, by its finish_reason or (if None) because tokens < limit."""
    return tokens < limit if reason is None else str(reason).lower() in FINISHED


class Fault(Exception):
    """A try without an answer. then: "again", "refused" (this prompt) or "stop"; wait: seconds."""
    def __init__(self, kind, words="", then="again", wait=0.0):
        super().__init__(f"{kind}: {words}" if words else kind)
        self.kind, self.words, self.then, self.wait = kind, words, then, wait


def read_endpoint(url):
    """--base-url -> (url, key or ""). UserError if one is wrong; its text contains no secret."""
    key, match = os.environ.get("OPENAI_API_KEY", "").strip(), URL.fullmatch(url)
    check(re.fullmatch("[!-~]*", key), "OPENAI_API_KEY has a character that no key can have")
    check(match, "--base-url must be http(s)://HOST[:PORT]/PATH, often ending in /v1, without "
                 "user, password or ?query; put the key into OPENAI_API_KEY")
    here = re.fullmatch(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]", match[1], re.A | re.I)
    check(not key or here or url.lower().startswith("https:"),
          f"OPENAI_API_KEY would be sent to {url} without encryption; use https, or unset it")
    return url.rstrip("/"), key


def post(url, key, body, timeout):
    """POST body (JSON, bytes) -> what parse_answer returns, or Fault. timeout: silent seconds."""
    headers = {"Content-Type": "application/json", "User-Agent": "minidistill"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.netloc, timeout=timeout)
    try:
        connection.request("POST", f"{parts.path}/chat/completions", body, headers)
        reply = connection.getresponse()
        data = reply.read().decode(errors="replace")
    except ConnectionRefusedError:
        raise Fault("no server", f"nothing listens at {url}; is the server running?") from None
    except (OSError, http.client.HTTPException) as error:
        raise Fault(type(error).__name__, str(error)) from None
    finally:
        connection.close()
    data = data.replace(key, "[key]") if len(key) >= 8 else data  # a server may repeat the key
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # fails for half of a surrogate pair
    except (ValueError, RecursionError):
        found = data
    if reply.status == 200 and not (isinstance(found, dict) and found.get("error")):
        return parse_answer(found)
    error = found.get("error", found) if isinstance(found, dict) else found  # a 200 may have one
    error = error if isinstance(error, dict) else dict(message=error)
    code, words = error.get("code"), str(error.get("message") or error.get("detail") or error)
    words = "".join(c if c.isprintable() else " " for c in words[:300])
    status = code if reply.status == 200 and code in range(400, 600) else reply.status
    words += "; is OPENAI_API_KEY set?" if status == 401 and not key else ""
    empty = "insufficient_quota" in (code, error.get("type"))  # a retry would not help
    then = "again" if not empty and (status in (200, 408, 429) or status >= 500) else "stop"
    wait = reply.headers.get("Retry-After", "")
    raise Fault(str(status), words, "refused" if status in (400, 413, 422) else then,
                float(wait) if re.fullmatch(r"\d{1,9}(\.\d+)?", wait) else 0.0)


def parse_answer(found):
    """The JSON of a 200 -> dict(content, reasoning_content, finish_reason, model, usage). A refusal
    has a verdict, too. Raises Fault. Null content is not a Fault, since a retry gives it again."""
    try:
        choice = found["choices"][0]
        reply, reason = choice["message"], choice.get("finish_reason")
        content, thought = join_parts(reply.get("content"))
        own = reply.get("reasoning_content") or reply.get("reasoning") or reply.get("thinking")
        thought, refusal = thought or join_parts(own)[0], reply.get("refusal")
    except (LookupError, TypeError, AttributeError):
        raise Fault("invalid JSON" if isinstance(found, str) else "no choices", str(found)[:100])
    if choice.get("error") or reason in ("error", "abort"):  # the server failed
        raise Fault(f"finish_reason {reason}", str(choice.get("error") or "")[:300])
    usage = found["usage"] if isinstance(found.get("usage"), dict) else {}
    usage = {k: usage[k] if type(usage.get(k)) is int and usage[k] >= 0 else None for k in NO_USAGE}
    answer = dict(content=content or refusal or "", reasoning_content=thought or None,
                  finish_reason=reason, model=found.get("model"), usage=usage)
    return answer | (dict(verdict="refused") if refusal and not content else {})


def join_parts(content):
    """Text, None or a list of parts -> (text, thought). Fault for a part of an unknown type."""
    if content is None or isinstance(content, str):
        return content or "", ""
    texts = dict(text="", thinking="", reasoning="")
    for part in content:
        kind = part["type"]
        if kind not in texts:
            raise Fault(f"a part of type {kind}", str(part)[:100], "refused")
        texts[kind] += join_parts(part.get(kind, part.get("text")))[0]
    return texts["text"], texts["thinking"] + texts["reasoning"]


def seed_of(seed, question, sample):
    """The seed of one answer, below 2^31: the same in every run, and different for each sample."""
    digest = hashlib.sha256(f"{seed} {question} {sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


class Client:
    """An endpoint, its budgets, and what its request threads share. rows: the rows of earlier runs,
    which the budgets count. write(job, found) is called after each try, never two at once."""
    def __init__(self, cfg, rows, write):
        self.cfg, self.write, self.changed = cfg, write, threading.Condition()
        self.url, self.key = read_endpoint(cfg.base_url)
        self.limit = "max_tokens"       # OpenAI's newer models ask for "max_completion_tokens"
        self.requests, self.tokens = len(rows), sum(row.get("tokens", 0) for row in rows)
        self.answered = any(row["verdict"] not in ("failed", "refused") for row in rows)
        self.held_until, self.in_a_row, self.faults = 0.0, 0, Counter()  # faults: {text: count}
        self.why = self.error = ""      # why no more is sent; what the user must fix

    def ask_all(self, jobs, messages):
        """Ask for every job (question, sample). After a stop, wait for the requests under way."""
        with ThreadPoolExecutor(self.cfg.concurrency) as pool:
            try:
                for done in as_completed([pool.submit(self.ask, job, messages) for job in jobs]):
                    done.result()
            finally:
                with self.changed:
                    self.stop(f"no answer in {1 + self.cfg.retries} tries")

    def ask(self, job, messages):
        """Run in a thread: get one answer, in at most 1 + --retries tries."""
        cfg, wait = self.cfg, 0.0
        body = dict(model=cfg.model, messages=messages[job[0]], temperature=cfg.temperature)
        body |= dict(seed=seed_of(cfg.seed, *job)) if cfg.seed >= 0 else {}
        for tried in range(cfg.retries + 1):
            data = json.dumps(body | {self.limit: cfg.max_new_tokens}, ensure_ascii=False).encode()
            most = len(data) + cfg.max_new_tokens  # tokens: one of the prompt has 1 byte or more
            if not self.begin(most, wait):
                return
            began, fault = time.monotonic(), None
            try:
                found = post(self.url, self.key, data, cfg.timeout)
            except Fault as error:
                fault = error
                if "max_completion_tokens" in fault.words:
                    self.limit, fault.then = "max_completion_tokens", "again"
                found = dict(content=str(fault), reasoning_content=None, finish_reason=None,
                             usage=NO_USAGE, model=None,
                             verdict="refused" if fault.then == "refused" else "failed")
            found |= dict(seed=body.get("seed"), seconds=round(time.monotonic() - began, 3))
            with self.changed:
                self.end(job, found, most, fault)
            if not fault or fault.then != "again":
                return
            wait = min(LONGEST_PAUSE, 2 ** tried) * random.uniform(0.5, 1)  # not all at once

    def begin(self, most, wait):
        """Wait `wait` seconds or longer, then reserve `most` tokens -> True. None: send no more."""
        due, cfg = time.monotonic() + wait, self.cfg
        with self.changed:
            while not self.why:
                seconds = max(due, self.held_until) - time.monotonic()
                if seconds > 0:
                    self.changed.wait(seconds)
                elif 0 < cfg.max_requests <= self.requests:
                    self.stop("--max-requests is reached")
                elif 0 < cfg.max_total_tokens < self.tokens + most:
                    self.stop("--max-total-tokens is reached")
                else:
                    self.requests, self.tokens = self.requests + 1, self.tokens + most
                    return True

    def end(self, job, found, most, fault):
        """Write the row of a try, give back the tokens it did not use, decide whether to stop."""
        used = found["usage"].values()
        found["tokens"] = sum(used) if all(used) else 0 if fault and fault.kind == "429" else most
        self.tokens += found["tokens"] - most
        self.write(job, found)
        if not fault:
            self.answered, self.in_a_row = True, 0
            return
        self.held_until = max(self.held_until, time.monotonic() + fault.wait)
        self.faults[str(fault)] += 1
        self.in_a_row += fault.then == "again" or not self.answered
        if fault.then == "stop" or fault.kind in ("200", "no server") and not self.answered:
            self.error = f"{self.url} says {fault}" if fault.kind.isdigit() else fault.words
            self.stop(self.error)
        elif fault.wait > PATIENCE:
            self.stop(f"the server asks to wait {fault.wait:,.0f} s")
        elif self.in_a_row == GIVE_UP * (1 + self.cfg.retries):
            self.stop(f"{self.in_a_row} tries in a row failed")

    def stop(self, why):
        """Send no more requests. The first reason is kept. The caller holds the lock."""
        self.why = self.why or why
        self.changed.notify_all()
