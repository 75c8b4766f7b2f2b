"""A black-box teacher: a small OpenAI-compatible server that gives only a checkpoint's text.

    python serve.py                                   # out/teacher.pt, on port 8000
    python serve.py --checkpoint out/student-reason.pt --port 0      # on any free port

It prints one line when it is ready, and runs until Ctrl-C or SIGTERM (exit status 0):
    ready: http://127.0.0.1:8000/v1 serves teacher; next: python blackbox/generate.py --base-url ...

Clients get text and token counts, never probabilities. The server listens on loopback. There a
foreign Host or Origin is refused, because any page in a browser could ask. Only pages of localhost
may. A page in a file may not: it sends the Origin "null", but so do frames of foreign pages. If
MINIDISTILL_API_KEY is set, clients must send it as a bearer token. Differences from other servers:

1. Requests are answered one after another. The n answers of one request form one batch.
2. Text between <think> and </think> is sent as reasoning_content, all other text as content.
3. A client's text stays text: <think> or <end> in it never becomes a special token.
4. A stop string ends only the content, because a thought may contain it (vllm-project/vllm#52393).
"""
import json
import os
import re
import secrets
import signal
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

from common import OUT, UserError, check, command, run
import torch

from checkpoints import load_model
from dataset.formats import ROLES, Turn
from dataset.verify import prompt_ids
from decoding import decode_steps

CHAT, MODELS = "/v1/chat/completions", "/v1/models"
MAX_BODY = 2**20  # bytes in the body of a request
MAX_WAITING = 64  # chat requests answered or waiting; one more gets status 429
MANY = 2**63 - 1
FIELDS = dict(    # of a chat request: default, types, minimum, maximum
    n=(1, (int,), 1, 16), max_tokens=(MANY, (int,), 1, MANY), seed=(0, (int,), -MANY, MANY),
    max_completion_tokens=(MANY, (int,), 1, MANY), stream=(False, (bool,), False, True),
    temperature=(1, (int, float), 0, 2), top_p=(1, (int, float), 0, 1))
# These would change the answer but are not supported. Other unknown fields are ignored.
UNSUPPORTED = ("tools", "functions", "logprobs", "top_logprobs", "logit_bias", "response_format",
               "frequency_penalty", "presence_penalty")


@dataclass
class Config:
    checkpoint: str = OUT / "teacher.pt"  # the model; its name is the file name
    host: str = "127.0.0.1"      # address to listen on; 0.0.0.0 lets other machines in
    port: int = 8000             # port to listen on; 0: any free port


class Refusal(Exception):
    """Raised to answer a request with an HTTP status and OpenAI's error object."""
    def __init__(self, status, message, param=None, code=None):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.status = status
        self.body = dict(error=dict(message=message, type=kind, param=param, code=code))


def read_request(data, server):
    """Body of a chat request -> namespace: FIELDS, stop, usage, ids (prompt), limit; or Refusal."""
    body = {key: value for key, value in json.loads(data).items() if value is not None}
    if body.get("model") != server.name:
        raise Refusal(404, f"the only model here is {server.name}", "model", "model_not_found")
    for name in UNSUPPORTED:
        if body.get(name) and body[name] != {"type": "text"}:  # response_format's default
            raise Refusal(400, f"{name}: this server does not support it", name)
    request = SimpleNamespace(usage=body.get("stream_options", {}).get("include_usage"))
    body.setdefault("seed", secrets.randbits(63))
    for name, (default, types, least, most) in FIELDS.items():
        value = body.get(name, default)
        if type(value) not in types or not least <= value <= most:
            raise Refusal(400, f"{name}: must be {types[-1].__name__}, {least} to {most}", name)
        setattr(request, name, value)
    request.stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
    if len(request.stop) > 4 or not all(isinstance(s, str) and s for s in request.stop):
        raise Refusal(400, "stop: must be a string, or a list of up to four", "stop")
    request.ids = read_prompt(body, server.tokenizer)
    size, context = len(request.ids), server.model.config.max_seq_len
    if size >= context:
        raise Refusal(400, f"the prompt has {size} tokens; with an answer it must fit in {context}",
                      "messages", "context_length_exceeded")
    request.limit = min(request.max_tokens, request.max_completion_tokens, context - size)
    return request


def read_prompt(body, tokenizer):
    """The messages of a chat request -> token ids of the prompt; or Refusal."""
    turns = []
    try:
        for message in body["messages"]:
            role, content, thought = ROLES[message["role"]], message.get("content"), None
            if role == "assistant":
                content = "" if content is None else content
                thought = message.get("reasoning_content")
            if not isinstance(content, str):
                content = "".join({part["type"]: part["text"]}["text"] for part in content)
            turn = Turn(role, content) if thought is None else Turn(role, "", thought + "", content)
            turns.append(turn)
        check(turns[-1].role != "assistant", "the last one is the assistant's: it would be ignored")
        return prompt_ids(tokenizer, turns)
    except (LookupError, TypeError, ValueError, AttributeError, UserError) as error:
        raise Refusal(400, "messages: must be a list of {role, content}; content is a string or a "
                           f"list of text parts ({str(error)[:100]})", "messages") from None


@dataclass
class Answer:
    """An answer that is being written: where its text goes, and text that cannot be sent yet."""
    key: str = "content"  # inside a thought: reasoning_content
    ids: tuple = ()       # tokens of an incomplete character or mark
    held: str = ""        # text that may be the beginning of a stop string
    gap: str = ""         # white space after a mark of an imported model: not sent
    reason: str = None    # why it ended: stop or length

    def add(self, token, tokenizer, stop):
        """Add a token (None: limit reached) -> the text that can be sent now: whole characters."""
        ended, t = token is None or token in tokenizer.stop_ids, tokenizer
        ids, marks = self.ids + (() if ended else (token,)), (tuple(t.think), tuple(t.end_think))
        mark = next((mark for mark in marks if ids[-len(mark):] == mark), ())
        border = ended or mark
        half = 0 if border else max(n for mark in marks for n in range(len(mark))
                                    if ids[len(ids) - n:] == mark[:n])
        text = self.held + t.decode(ids[:len(ids) - half - len(mark)])
        if text.endswith("\ufffd") and not border:
            self.ids = ids
            return ""  # wait: a character may need several byte tokens
        stop = stop if self.key == "content" else []
        ends = [text.index(s) for s in stop if s in text]
        begun = [size for s in stop for size in range(len(s)) if text.endswith(s[:size])]
        size = min(ends) if ends else len(text) - (0 if border else max(begun, default=0))
        sent, self.ids, self.held = text[:size].lstrip(self.gap), ids[len(ids) - half:], text[size:]
        self.gap = "" if sent else self.gap
        if ends or ended:
            self.reason = "length" if token is None and not ends else "stop"
        elif mark:
            self.key, self.gap = {marks[0]: ("reasoning_content", t.gaps[0]),
                                  marks[1]: ("content", t.gaps[2])}[mark]
        return sent


@torch.inference_mode()
def pieces(server, request):
    """Write n answers in one batch. Yields OpenAI's chunks (dicts); the last has token counts."""
    head = dict(id=f"chatcmpl-{secrets.token_hex(12)}", object="chat.completion.chunk",
                created=int(time.time()), model=server.name, usage=None)
    def chunk(i, reason=None, **delta):
        return dict(head, choices=[dict(index=i, delta=delta, logprobs=None, finish_reason=reason)])
    yield from (chunk(i, role="assistant") for i in range(request.n))
    answers, written = [Answer() for _ in range(request.n)], 0
    generator = torch.Generator(server.model.embed_tokens.weight.device).manual_seed(request.seed)
    steps = decode_steps(server.model, [request.ids] * request.n, request.limit,
                         server.tokenizer.stop_ids, request.temperature, request.top_p, generator)
    steps = (tokens.tolist() for tokens in steps)  # n ids per step
    while any(answer.reason is None for answer in answers):
        for i, (answer, token) in enumerate(zip(answers, next(steps, [None] * request.n))):
            if answer.reason is None:
                written += token is not None
                key, text = answer.key, answer.add(token, server.tokenizer, request.stop)
                if text:
                    yield chunk(i, **{key: text})
                if answer.reason:
                    yield chunk(i, answer.reason)
    usage = dict(prompt_tokens=len(request.ids), completion_tokens=written)
    yield dict(head, choices=[], usage=usage | dict(total_tokens=sum(usage.values())))


def completion(server, request):
    """All n answers as one dict, for a client that does not stream."""
    choices = [dict(index=i, message=dict(content="", reasoning_content=None), logprobs=None)
               for i in range(request.n)]
    for chunk in pieces(server, request):
        for piece in chunk["choices"]:
            whole = choices[piece["index"]]
            whole["finish_reason"] = piece["finish_reason"]
            for key, text in piece["delta"].items():
                whole["message"][key] = (whole["message"].get(key) or "") + text
    return dict(chunk, object="chat.completion", choices=choices)


class Handler(BaseHTTPRequestHandler):
    """One connection: one request, one answer, one line of log (stderr)."""
    protocol_version = default_request_version = "HTTP/1.1"
    timeout = 10                    # seconds that a client may send or read nothing
    disable_nagle_algorithm = True  # send each token at once
    begun, page, kind, frame = False, "", "application/json", b"%s"  # of the reply

    def do_GET(self):
        """Answer a request. Read its body first: closing with unread bytes resets a connection."""
        try:
            data, asked = self.body(), (self.command, self.path.partition("?")[0])
            self.check_client()
            if asked == ("POST", CHAT):
                return self.chat(data)
            if self.command == "OPTIONS":  # a browser asks before its page may ask
                return self.reply(200, {})
            if asked != ("GET", MODELS):
                raise Refusal(404, f"this server has only GET {MODELS} and POST {CHAT}")
            model = dict(id=self.server.name, object="model", created=self.server.created)
            self.reply(200, dict(object="list", data=[dict(model, owned_by="")]))
        except Refusal as refusal:
            self.reply(refusal.status, refusal.body)
        except Exception as error:
            if not isinstance(error, OSError):  # OSError: the client is gone or does not read
                self.reply(500, Refusal(500, "a mistake of this server; its log says more").body)
            raise

    do_POST = do_OPTIONS = do_GET

    def body(self):
        """Read the body of the request: Content-Length bytes, or chunks. Refusal for a bad size."""
        data, chunked = b"", "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        try:
            while True:
                size = int(self.rfile.readline(100).split(b";")[0], 16) if chunked else \
                    int(self.headers.get("Content-Length", 0))
                if not 0 <= size <= MAX_BODY - len(data):
                    raise Refusal(413, f"a body may have 0 to {MAX_BODY} bytes")
                data += self.rfile.read(size)
                if not chunked or self.rfile.readline(100) and size == 0:  # line end after a chunk
                    return data
        except ValueError:
            raise Refusal(400, "the length of the body must be a number") from None

    def check_client(self):
        """Raise Refusal for a wrong key and, on loopback, for a foreign Host or Origin."""
        here = self.server.server_address[0]
        names = {re.sub(r"^\w+://|:\d+$", "", self.headers.get(name, here).lower())
                 for name in ("Host", "Origin")}
        local = names <= {"localhost", "127.0.0.1", here}
        if here.startswith("127.") and not local:
            raise Refusal(403, "only programs and pages on this machine may use this server")
        if local or self.server.key:
            self.page = self.headers.get("Origin", "")  # it may read the reply
        kind, _, sent = self.headers.get("Authorization", "").partition(" ")
        right = kind.lower() == "bearer" and secrets.compare_digest(
            sent.strip().encode(), self.server.key.encode())
        if self.server.key and not right and self.command != "OPTIONS":
            raise Refusal(401, "wrong or missing API key", code="invalid_api_key")

    def chat(self, data):
        """Wait until the model is free, then answer a chat request (data: its body)."""
        try:
            request = read_request(data, self.server)
        except (TypeError, ValueError, AttributeError, RecursionError) as error:
            raise Refusal(400, f"not a chat request in JSON ({str(error)[:100]})") from None
        if not self.server.room.acquire(blocking=False):
            raise Refusal(429, "too many requests are waiting", code="rate_limit_exceeded")
        try:
            with self.server.lock:
                if not request.stream:
                    return self.reply(200, completion(self.server, request))
                self.kind, self.frame = "text/event-stream", b"data: %s\n\n"
                for piece in pieces(self.server, request):
                    if piece["choices"] or request.usage:
                        self.reply(200, piece)
                self.wfile.write(self.frame % b"[DONE]")
        finally:
            self.server.room.release()

    def reply(self, status, body):
        """Send a dict as JSON; in a stream, as one event. The first call also sends the status."""
        if not self.begun:
            self.begun = True
            self.send_response(status)
            self.send_header("Content-Type", self.kind)
            self.send_header("Connection", "close")  # closing ends the answer
            if self.page:
                self.send_header("Access-Control-Allow-Origin", self.page)
                self.send_header("Access-Control-Allow-Headers", "authorization, *")
            self.end_headers()
        self.wfile.write(self.frame % json.dumps(body).encode())

    def send_error(self, code, message=None, explain=None):
        """The standard library calls this for a broken HTTP request. Answer in OpenAI's format."""
        self.reply(int(code), Refusal(int(code), message or "a broken request").body)


class Server(ThreadingHTTPServer):
    """Listens at once; serve_forever() answers requests. UserError if it cannot listen."""
    request_queue_size = 128  # with the default of 5, some of many clients must try again
    allow_reuse_port = False  # otherwise two servers on one port would share the requests

    def __init__(self, cfg, model, tokenizer, key=""):
        self.model, self.tokenizer, self.key = model, tokenizer, key
        self.name, self.created = Path(cfg.checkpoint).stem, int(time.time())
        self.lock, self.room = threading.Lock(), threading.Semaphore(MAX_WAITING)
        try:
            super().__init__((cfg.host, cfg.port), Handler)
        except (OSError, OverflowError, UnicodeError) as error:
            raise UserError(f"cannot listen on {cfg.host} port {cfg.port}: {error}") from None

    def handle_error(self, request, client_address):
        """Show the traceback of a bug. A client that disconnected is no bug of this server."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def main(cfg):
    """Load the checkpoint, listen, and answer until a signal comes."""
    key = os.environ.get("MINIDISTILL_API_KEY")
    check(key is None or re.fullmatch("[!-~]+", key), "MINIDISTILL_API_KEY must be printable ASCII "
          "without spaces; unset it to serve without a key")
    model, tokenizer, _ = load_model(cfg.checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    server = Server(cfg, model, tokenizer, key or "")
    for stop in (signal.SIGINT, signal.SIGTERM):  # exit at once: threads may be inside torch
        signal.signal(stop, lambda *_: os._exit(0))
    host, port = server.server_address
    if not host.startswith("127."):
        print(f"warning: others may use {host}, unencrypted (MINIDISTILL_API_KEY)", file=sys.stderr)
    url = f"http://{host}:{port}/v1"
    print(f"ready: {url} serves {server.name}; next:",
          command("blackbox/generate.py", base_url=url, model=server.name,
                  out=OUT / f"data/{server.name}-answers.jsonl"), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run(main, Config)
