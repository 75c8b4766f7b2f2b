"""One request to an OpenAI-compatible endpoint, and all that can become of it.

    server = parse_base_url("http://127.0.0.1:8000/v1", read_key())
    attempt(server, body, timeout)        a POST -> Reply: an answer, a fault, or why to stop

Faults, which may pass when asked again: 408, 429, 5xx, a timeout, a dropped connection, cut or
invalid JSON, no choice, no content. Every other refusal will be the same next time. Of one prompt
(400, 413, 422: too long, filtered) it becomes a row, where others are answered; 401, 404, a
redirect, an untrusted certificate stop the run with one line that gives the server's words. An
error inside of a 200, as routers send it, counts as its code.

The key is sent to the host of --base-url alone: no redirect is followed, no proxy used, and in the
clear it goes to this machine alone. What a server repeats of it is hidden.
"""
import contextlib
import functools
import http.client
import ipaddress
import json
import math
import os
import re
import socket
import ssl
import threading
import time
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Optional

from cli import fail
from dataset.formats import MAX_LINE

KINDS = {ConnectionRefusedError: "connection refused", socket.gaierror: "unknown host",
         ssl.SSLError: "no TLS"}  # faults that have a name of their own
certificates = functools.cache(ssl.create_default_context)  # reading them takes a while
URL = re.compile(r"(https?)://((?:[\w-]{1,63}\.)*[\w-]{1,63}|\[[0-9a-f:.]+\])(?::(\d{1,5}))?"
                 r"(/[\w./~%+:=,-]*)?", re.ASCII | re.I)


@dataclass
class Server:
    """Where to ask, and with which key."""
    url: str                      # --base-url, as error messages show it
    secure: bool                  # https
    host: str
    port: int
    key: str = field(repr=False)  # "": none


@dataclass
class Reply:
    """What became of a request: an answer, a fault that may pass, or why to stop."""
    answer: Optional[dict] = None  # content, reasoning_content, finish_reason, usage, model
    fault: str = ""                # kind of fault
    wait: float = 0.0              # seconds that the server asks to wait
    stop: str = ""                 # the message where asking again cannot help
    of_prompt: bool = False        # it may be this prompt alone that is refused


def read_key():
    """OPENAI_API_KEY, or "" where it is not set."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not re.fullmatch("[!-~]*", key):
        fail("OPENAI_API_KEY holds a space, a line end or another character that no key has",
             fix="set it again, or unset it")
    return key


def parse_base_url(url, key):
    """--base-url -> Server, or UserError (one that shows no URL which may hold a secret).

    A key does not travel in the clear: whoever reads it on the way keeps it, and a warning would
    come too late. A server on another machine without TLS: unset the key, or tunnel to loopback.
    """
    match = URL.fullmatch(url)
    if not match or int(match[3] or 0) > 65535:
        fail("--base-url has a wrong value", None if re.search("[@?#]", url) else repr(url),
             "http(s)://HOST[:PORT]/PATH, often ending in /v1, without user, password or ?query",
             "a key goes into OPENAI_API_KEY")
    scheme, host = match[1].lower(), match[2].strip("[]").lower()
    if key and scheme == "http" and not is_loopback(host):
        fail("a key would travel in the clear", f"OPENAI_API_KEY and {url}", "https, or no key",
             "unset OPENAI_API_KEY, or tunnel to 127.0.0.1")
    return Server(url.rstrip("/"), scheme == "https", host,
                  int(match[3] or dict(http=80, https=443)[scheme]), key)


def is_loopback(host):
    """Is it this machine?"""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def hide(text, key, at_least=1):
    """The text without the key; a server may repeat it. Keys below `at_least` are left alone: a
    local server's "test" or "EMPTY" is no secret, and may be a word of an answer."""
    return text.replace(key, "[key]") if len(key) >= at_least else text


def post(server, body, timeout):
    """(status, headers, body) of a POST; OSError or HTTPException where the line breaks.

    A socket's timeout starts anew with each byte. So at the end of the time for the whole answer
    another thread shuts the line, whatever it was waiting for.
    """
    began = time.monotonic()
    line = socket.create_connection((server.host, server.port), timeout)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # head and body are sent apart
    if server.secure:
        line = certificates().wrap_socket(line, server_hostname=server.host,
                                          do_handshake_on_connect=False)
    clock = threading.Timer(began + timeout - time.monotonic(), shut, [line])
    clock.daemon = True
    clock.start()
    try:
        if server.secure:
            line.do_handshake()
        place, path = re.fullmatch("https?://([^/]+)(.*)", server.url, re.I).groups()
        headers = {"Host": place, "Content-Type": "application/json", "User-Agent": "minidistill",
                   "Connection": "close"}
        headers |= {"Authorization": f"Bearer {server.key}"} if server.key else {}
        connection = http.client.HTTPConnection(server.host, server.port)
        connection.sock = line
        connection.request("POST", f"{path}/chat/completions", body, headers)
        response = connection.getresponse()
        data = response.read(MAX_LINE)  # what is longer would be no line of a data file
        if response.length or time.monotonic() - began >= timeout:
            raise http.client.IncompleteRead(data)  # cut short, too long, or shut by the clock
        return response.status, response.headers, data
    finally:
        clock.cancel()
        line.close()


def shut(line):
    """End a connection from another thread: whoever waits for it wakes up."""
    with contextlib.suppress(OSError):  # over already
        socket.socket.shutdown(line, socket.SHUT_RDWR)


def attempt(server, body, timeout):
    """One request -> Reply, whatever network and server do; timeout: seconds for all of it."""
    began = time.monotonic()
    try:
        status, headers, data = post(server, body, timeout)
    except ssl.SSLCertVerificationError as error:
        return Reply(stop=f"{server.url}: its certificate is not trusted ({error.verify_message})")
    except (OSError, http.client.HTTPException) as error:
        late = time.monotonic() - began >= timeout
        return Reply(fault="timeout" if late else KINDS.get(type(error), "dropped connection"))
    reply = parse_answer(data) if status < 300 else None
    code = error_code(data) if reply and reply.fault == "empty choices" else None
    return reply if reply and not code else parse_refusal(server, code or status, headers, data)


def error_code(data):
    """The code of an error that came as a 200, such as 402; None where there is none."""
    found = json.loads(data)
    error = found.get("error") if isinstance(found, dict) else None
    if not isinstance(error, dict):
        return None
    code = error.get("code")
    return code if type(code) is int and 400 <= code < 600 else 500


def parse_answer(data):
    """The body of a 200 -> Reply."""
    try:
        found = json.loads(data)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError):
        return Reply(fault="invalid JSON")
    try:
        choice = found["choices"][0]
        said = choice["message"]
        thought = said.get("reasoning_content") or said.get("reasoning")  # vLLM and OpenRouter
        content, finish = said.get("content"), choice.get("finish_reason")
    except (LookupError, TypeError, AttributeError):
        return Reply(fault="empty choices")
    if content is None and finish in ("length", "content_filter"):
        content = ""  # the limit came before the end of the thought, or a filter
    if isinstance(content, list):  # parts, as some servers send them
        content = "".join(part["text"] for part in content if isinstance(part, dict)
                          and isinstance(part.get("text"), str)) or None
    if not isinstance(content, str):
        return Reply(fault="missing content")
    usage = found["usage"] if isinstance(found.get("usage"), dict) else {}
    counts = {k: usage.get(k) for k in ("prompt_tokens", "completion_tokens")}
    counts = {k: n if type(n) is int and 0 <= n < 2**40 else None for k, n in counts.items()}
    model = found.get("model")
    return Reply(dict(content=content, reasoning_content=thought if isinstance(thought, str) else
                      None, finish_reason=finish if isinstance(finish, str) else None,
                      usage=counts, model=model if isinstance(model, str) else None))


def parse_refusal(server, status, headers, data):
    """Another status than 200 -> Reply: a fault that may pass, or the one line to stop with."""
    try:
        found = json.loads(data)
        error = found.get("error", found) if isinstance(found, dict) else found
        error = error if isinstance(error, dict) else dict(message=error)
    except (ValueError, RecursionError):
        error = dict(message=data.decode(errors="replace"))
    no_credit = "insufficient_quota" in (error.get("code"), error.get("type"))
    if (status in (408, 429) or status >= 500) and not no_credit:
        return Reply(fault=str(status), wait=retry_after(headers.get("Retry-After", "")))
    message = str(error.get("message") or error.get("detail") or "nothing more")
    fix = {401: "check OPENAI_API_KEY", 403: "check OPENAI_API_KEY",
           404: "check --base-url and --model", 429: "check the account"}
    if status < 400:
        message = "ask " + headers.get("Location", "elsewhere").partition("?")[0]
        fix[status] = "the key was not sent there; if you trust it, pass it as --base-url"
    message = hide(message, server.key)[:300]  # in this order: half a key is a secret, too
    fix = fix.get(status, "change what it names")
    return Reply(stop=f"{server.url} says {status}: {message}; fix: {fix}",
                 of_prompt=status in (400, 413, 422))


def retry_after(text):
    """Seconds that a Retry-After header asks for, as a number or a date; 0 for anything else."""
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return seconds if 0 < seconds < math.inf else 0.0
