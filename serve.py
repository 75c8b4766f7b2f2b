"""A teacher that gives only text: a small OpenAI-compatible server for a checkpoint, on loopback.

    python serve.py                                   # out/teacher.pt, on port 8000, CPU
    python serve.py --checkpoint out/student-reason.pt --port 0      # on any free port

Prints one line when it is ready, and goes on until Ctrl-C or SIGTERM (status 0):
    ready: http://127.0.0.1:8000/v1 serves teacher; next: python blackbox/generate.py --base-url ...

The wall of the black-box lesson: whoever asks gets text and counts, never weights, probabilities or
ids. GET /v1/models, and POST /v1/chat/completions with model, messages, n, stop, max_tokens (or
max_completion_tokens), temperature, top_p, seed, stream and stream_options, as any client of
OpenAI's chat API sends them. Where MINIDISTILL_API_KEY is set, it must come as a bearer token.
The log (stderr) has a line a request: time, status, path, tokens in and out, ms; no text, no key.

What is special here (the words are in chat_api.py, the sockets in this file):
1. What the model says between <think> and </think> is reasoning_content, everything else content:
   an answer that is cut off inside its thought has no content. The marks are no text.
2. What a client writes is text: a spelled <think> or <end> never becomes a mark. The thought of an
   earlier answer goes back into that message's reasoning_content, as it came.
3. A stop string counts in the content alone: a thought may well spell it (vllm-project/vllm#52393).
4. One request is answered after the other, its n answers in one batch: no continuous batching.
   A connection carries one request.
5. An answer that is not done after --seconds ends there, with finish_reason "length".
6. A temperature below 0.01 is greedy.
"""
import contextlib
import hmac
import io
import ipaddress
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import torch

import checkpoints
import cli
from chat_api import Refusal, check_model, chunks, error_body, read_request, whole, write
from cli import OUT, fail

MAX_HEAD = 16_384      # bytes of request line and headers
MAX_CONNECTIONS = 512  # a thread each; most of so many can only be slow or idle
CHAT, MODELS = "/v1/chat/completions", "/v1/models"


@dataclass
class Config:
    checkpoint: str = OUT / "teacher.pt"  # who answers; its file name is the name of the model
    host: str = "127.0.0.1"      # address to listen on; another one may let other machines in
    port: int = 8000             # 0: any free one
    at_once: int = 64            # chat requests, waiting or being answered; one more: status 429
    max_n: int = 16              # answers to one request, written in one batch (1 to 128)
    max_body: int = 2**20        # bytes of a request; a larger one: status 413
    read_seconds: float = 10.0   # a client has so long to send its request, and to take its reply
    seconds: float = 120.0       # a request may wait for its turn so long, and be written so long


def receive(connection, data, is_whole, until):
    """Add to `data` what a client sends until is_whole(data); Refusal 408 at time `until`.

    One deadline for all of it: who sends a byte now and then does not hold a thread for long.
    """
    while not is_whole(data):
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(65_536)
        except TimeoutError:
            raise Refusal(408, "the request did not arrive in time") from None
        if not piece:
            raise ConnectionError("hung up")
        data += piece


@contextlib.contextmanager
def turn(service):
    """Wait in line, first come, first served; Refusal where it is too long, or takes too long.

    A plain lock lets who comes late overtake: under load some would wait for ever.
    """
    mine, later = threading.Event(), {"Retry-After": "1"}
    service.line.append(mine)
    try:
        if len(service.line) > service.cfg.at_once:
            raise Refusal(429, f"{service.cfg.at_once} requests are waiting already",
                          code="rate_limit_exceeded", headers=later)
        if service.line[0] is not mine and not mine.wait(service.cfg.seconds):
            raise Refusal(503, f"no turn within {service.cfg.seconds:g} seconds", headers=later)
        yield
    finally:
        service.line.remove(mine)
        with contextlib.suppress(IndexError):  # nobody is there
            service.line[0].set()


class Handler(BaseHTTPRequestHandler):
    """One connection: one request, one answer, one line of log."""
    protocol_version = default_request_version = request_version = "HTTP/1.1"
    command = None  # these two even where no request line came
    server_version, sys_version = "minidistill", ""

    def handle(self):
        """Whatever happens to a request, it ends here."""
        began, self.service, self.status = time.monotonic(), self.server.service, 499
        self.route, self.streaming, self.unsent = "-", False, bytearray()
        self.usage = dict(prompt_tokens=0, completion_tokens=0, total_tokens=0)
        try:
            self.answer(until=began + self.service.cfg.read_seconds)
        except Refusal as refusal:
            self.refuse(refusal)
        except OSError:  # hung up, or does not take its reply; nginx's number for it
            self.status = 499
        except Exception:
            traceback.print_exc()  # a bug
            self.refuse(Refusal(500, "a mistake of this server; its log says more"))
        now, used = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), self.usage
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{now} {self.status} {self.route} {used['prompt_tokens']} in "
                             f"{used['completion_tokens']} out "
                             f"{1000 * (time.monotonic() - began):.0f} ms\n")

    def answer(self, until):
        """Read the head of the request (until then at most), check the key, find what is asked."""
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # no token waits
        data, blank = bytearray(), re.compile(rb"\r?\n\r?\n|^\x16")  # TLS begins with 0x16
        receive(self.connection, data, lambda d: blank.search(d) or len(d) > MAX_HEAD, until)
        if not blank.search(data):
            raise Refusal(431, f"more than {MAX_HEAD} bytes of headers")
        end = blank.search(data).end()
        if data[:1] == b"\x16":
            raise Refusal(400, "this server speaks http, not https")
        self.rfile.close()
        self.rfile = io.BytesIO(data[:end])
        self.raw_requestline = self.rfile.readline()
        if not self.parse_request():
            raise Refusal(400, "an empty request line")
        self.check_key()
        path = unquote(self.path.partition("?")[0])
        if path not in (CHAT, MODELS) and not path.startswith(MODELS + "/"):
            raise Refusal(404, f"unknown path; this server has {MODELS} and {CHAT}")
        method = "POST" if path == CHAT else "GET"
        if self.command != method:
            raise Refusal(405, f"this path takes {method} alone", headers={"Allow": method})
        self.route = f"{method} {CHAT if path == CHAT else MODELS}"
        if path == CHAT:
            self.chat(self.body(data[end:], until))
        else:
            self.models(path[len(MODELS) + 1:])

    def check_key(self):
        """Refusal without the right bearer token, where there is one."""
        kind, _, sent = self.headers.get("Authorization", "").partition(" ")
        right = hmac.compare_digest(sent.strip().encode(), self.service.key.encode())
        if self.service.key and not (right and kind.lower() == "bearer"):
            raise Refusal(401, "a wrong API key, or none", code="invalid_api_key",
                          headers={"WWW-Authenticate": "Bearer"})

    def body(self, data, until):
        """The body (until then at most); `data` is what came with the head."""
        length, largest = self.headers.get("Content-Length", ""), self.service.cfg.max_body
        if not re.fullmatch("[0-9]+", length):
            raise Refusal(411, "expected a Content-Length, a whole number")
        if len(length) > 18 or int(length) > largest:
            raise Refusal(413, f"the body has more than {largest} bytes")
        receive(self.connection, data, lambda d: len(d) >= int(length), until)
        return bytes(data[:int(length)])

    def models(self, name):
        """The list of models, or the one that is named."""
        if name:
            check_model(name, self.service.name)
        model = dict(id=self.service.name, object="model", created=self.service.created,
                     owned_by="minidistill")
        self.reply(200, model if name else dict(object="list", data=[model]))

    def chat(self, data):
        """Answer a chat request when it is its turn."""
        service, cfg = self.service, self.service.cfg
        try:
            asked = read_request(data, service)
        except RecursionError:  # in reading it, or in showing what is wrong with it
            raise Refusal(400, "the body is nested too deeply") from None
        with turn(service):
            self.connection.setblocking(False)  # from here on nobody waits for a client
            until = time.monotonic() + cfg.seconds
            events = self.heard(write(service, asked, self.usage, until))
            if asked.stream:
                self.stream(chunks(service, asked, events, self.usage))
            else:
                completion = whole(service, asked, events, self.usage)
        self.connection.settimeout(cfg.read_seconds)
        if asked.stream:
            self.connection.sendall(self.unsent)
        else:
            self.reply(200, completion)

    def heard(self, steps):
        """The events of all steps, for as long as somebody listens. Who closes his half of the line
        after the request counts as gone: no chat client does."""
        for events in steps:
            with contextlib.suppress(BlockingIOError):  # nothing to read: it is there, and silent
                if not self.connection.recv(1, socket.MSG_PEEK):
                    raise ConnectionError("hung up")
            yield from events

    def stream(self, pieces):
        """Send objects as server-sent events."""
        self.start(200, {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
        self.streaming = True
        for piece in pieces:
            self.send_event(json.dumps(piece))
        self.send_event("[DONE]")

    def send_event(self, text):
        """Send what the connection takes at once, keep the rest: a slow reader delays nobody."""
        self.unsent += f"data: {text}\n\n".encode()
        with contextlib.suppress(BlockingIOError):
            del self.unsent[:self.connection.send(self.unsent)]

    def start(self, status, headers):
        """Send the status line and the headers."""
        self.status = status
        self.send_response(status)
        for name, value in {**headers, "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status, body, **headers):
        """Send a whole reply, as ASCII: some clients take U+2028 for the end of a line."""
        data = json.dumps(body).encode()
        self.start(status, {"Content-Type": "application/json", "Content-Length": str(len(data)),
                            **headers})
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, refusal):
        """Send an error, then hear the client out for a moment: to close on unread bytes resets the
        connection, and the reply may be lost with it."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(self.service.cfg.read_seconds)
            if self.streaming:  # too late for a status but in the log
                self.status = refusal.status
                self.connection.sendall(self.unsent + b"data: %s\n\n" % json.dumps(
                    error_body(refusal)).encode())
                return
            self.reply(refusal.status, error_body(refusal), **refusal.headers)
            self.connection.shutdown(socket.SHUT_WR)
            until = time.monotonic() + 2
            while (left := until - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(65_536):
                    break

    def send_error(self, code, message=None, explain=None):
        """What the standard library finds wrong with a request; 501: a method that it lacks."""
        raise Refusal(405 if code == 501 else int(code), message or "a broken request")

    def log_request(self, code="-", size="-"):
        """Nothing: `handle` logs, once, and nothing that a client wrote."""


def room(request, address):
    """False where too many connections are open: one more gets a word, and no thread."""
    if threading.active_count() <= MAX_CONNECTIONS:
        return True
    body = json.dumps(error_body(Refusal(503, "too many connections"))).encode()
    with contextlib.suppress(OSError):
        request.setblocking(False)
        request.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
                     b"Retry-After: 1\r\nConnection: close\r\n\r\n" + body)
    return False


def open_server(cfg, model, tokenizer, key=""):
    """A server that listens already; its serve_forever() answers. UserError: it cannot listen."""
    server = ThreadingHTTPServer((cfg.host, cfg.port), Handler, bind_and_activate=False)
    server.request_queue_size = 128    # with the default of 5, some of 50 at once must knock twice
    server.allow_reuse_port = False    # two servers on a port would share out the requests
    server.verify_request = room
    server.service = SimpleNamespace(
        cfg=cfg, model=model, tokenizer=tokenizer, key=key, name=Path(cfg.checkpoint).stem,
        fingerprint=checkpoints.weights_fingerprint(model), created=int(time.time()), line=[])
    try:
        server.server_bind()
        server.server_activate()
    except (OSError, UnicodeError) as error:
        server.server_close()
        fail(f"cannot listen on {cfg.host} port {cfg.port}", str(error),
             fix="another --port (0: any free one), or --host 127.0.0.1")
    return server


def read_key():
    """MINIDISTILL_API_KEY, "" where it is not set; UserError (without it) for an impossible one."""
    key = os.environ.get("MINIDISTILL_API_KEY")
    if key is not None and not re.fullmatch("[!-~]+", key):
        fail("MINIDISTILL_API_KEY cannot be a key", "nothing" if not key else "other characters",
             "printable ASCII without spaces", "unset it to serve without a key")
    return key or ""


def main(cfg):
    """Load the checkpoint, listen, answer until a signal comes."""
    cli.check_ranges(cfg, port=(0, 65_535), at_once=(1, 256), max_n=(1, 128), max_body=(1, 2**30),
                     read_seconds=(0.1, 3_600), seconds=(0.1, 86_400))
    key = read_key()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(cfg.checkpoint, device, "python train_pretrain.py")
    server = open_server(cfg, model, tokenizer, key)
    for number in (signal.SIGINT, signal.SIGTERM):  # at once: threads may be in the middle of torch
        signal.signal(number, lambda *_: os._exit(0))
    host, port = server.server_address
    if not ipaddress.ip_address(host).is_loopback:
        print(f"warning: {host} lets other machines in, unencrypted, "
              f"{'with the key' if key else 'without a key: see MINIDISTILL_API_KEY'}",
              file=sys.stderr)
    url, name = f"http://{host}:{port}/v1", server.service.name
    print(f"ready: {url} serves {name}; next: python blackbox/generate.py --base-url {url} "
          f"--model {name}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    cli.run(main, Config)
