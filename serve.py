"""A black-box teacher: an OpenAI-compatible server of text. With --page also of probabilities.

    python serve.py                                   # out/teacher.pt, on port 8000
    python serve.py out/teacher.pt out/student-logits.pt --page      # compare them in a browser

It prints one line when it is ready, and runs until Ctrl-C or SIGTERM (exit status 0):
    ready: http://127.0.0.1:8000/v1 serves teacher; next: python blackbox/generate.py --base-url ...

The server listens on loopback. There a foreign Host or Origin is refused, because any page in a
browser could ask. Only pages of localhost may. A page in a file may not: it sends the Origin
"null", but so do frames of foreign pages. If MINIDISTILL_API_KEY is set, clients must send it as a
bearer token. Differences from other servers:
1. Requests are answered one after another. The n answers of one request form one batch.
2. Text between <think> and </think> is sent as reasoning_content, all other text as content.
3. A client's text stays text: <think> or <end> in it never becomes a special token.
4. A stop string ends only the content, because a thought may contain it (vllm-project/vllm#52393).
5. logprobs are the model's own: at temperature 1, before top_p, without the tokens of the thought.
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
from urllib.parse import unquote

from common import OUT, ROOT, UserError, check, command, run
import torch

from checkpoints import load_model
from dataset.formats import ROLES, Turn
from dataset.verify import prompt_ids
from decoding import Answer, decode_steps, describe
from losses import kl, log_softmax

POLICY = ("default-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'")  # a page may load nothing from elsewhere
KINDS = {".html": "text/html; charset=utf-8", ".csv": "text/csv", ".json": "application/json"}
MAX_BODY = 2**20  # bytes in the body of a request
MAX_WAITING = 64  # chat requests answered or waiting; one more gets status 429
MANY = 2**63 - 1
FIELDS = dict(    # of a chat request: default, types, minimum, maximum
    n=(1, (int,), 1, 16), max_tokens=(MANY, (int,), 1, MANY), seed=(0, (int,), -MANY, MANY),
    max_completion_tokens=(MANY, (int,), 1, MANY), stream=(False, (bool,), False, True),
    temperature=(1, (int, float), 0, 2), top_p=(1, (int, float), 0, 1),
    logprobs=(False, (bool,), False, True), top_logprobs=(0, (int,), 0, 20))
# These would change the answer but are not supported. Other unknown fields are ignored.
UNSUPPORTED = ("tools", "functions", "logit_bias", "response_format", "frequency_penalty",
               "presence_penalty")


@dataclass
class Config:
    checkpoint: list = None      # the models, without a flag; none: out/teacher.pt
    page: bool = False           # also serve page.html, probabilities and the logs in out/
    host: str = "127.0.0.1"      # address to listen on; 0.0.0.0 lets other machines in
    port: int = 8000             # port to listen on; 0: any free port


class Refusal(Exception):
    """Raised to answer a request with an HTTP status and OpenAI's error object."""
    def __init__(self, status, message, param=None, code=None):
        kind = "server_error" if status >= 500 else "invalid_request_error"
        self.status = status
        self.body = dict(error=dict(message=message, type=kind, param=param, code=code))


def read_request(data, server):
    """Body of a chat request -> namespace of all that `pieces` needs; or Refusal."""
    body = {key: value for key, value in json.loads(data).items() if value is not None}
    request = SimpleNamespace(name=body.get("model"))
    request.model, request.tokenizer = find_model(server, request.name)
    for name in UNSUPPORTED + (() if server.page else ("logprobs", "top_logprobs")):
        if body.get(name) and body[name] != {"type": "text"}:  # response_format's default
            raise Refusal(400, f"{name}: not supported (logprobs: with --page)", name)
    request.usage = body.get("stream_options", {}).get("include_usage")
    body.setdefault("seed", secrets.randbits(63))
    vars(request).update(read_fields(body, FIELDS))
    if request.top_logprobs and not request.logprobs:
        raise Refusal(400, "top_logprobs: needs logprobs", "top_logprobs")
    request.stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
    if len(request.stop) > 4 or not all(isinstance(s, str) and s for s in request.stop):
        raise Refusal(400, "stop: must be a string, or a list of up to four", "stop")
    request.ids = read_prompt(body, request.tokenizer)
    room = find_room(request.ids, request.model)
    request.limit = min(request.max_tokens, request.max_completion_tokens, room)
    return request


def find_model(server, name):
    """The name in a request -> (model, tokenizer); or Refusal."""
    if name not in [*server.models]:
        raise Refusal(404, f"there is only {', '.join(server.models)}", "model", "model_not_found")
    return server.models[name]


def read_fields(body, fields):
    """-> {name: value} of the fields (see FIELDS) in the body of a request; or Refusal."""
    values = {name: body.get(name, default) for name, (default, *_) in fields.items()}
    for name, (_, types, least, most) in fields.items():
        if type(values[name]) not in types or not least <= values[name] <= most:
            raise Refusal(400, f"{name}: must be {types[-1].__name__}, {least} to {most}", name)
    return values


def find_room(ids, model):
    """-> how many tokens still fit after the ids of a prompt, at least one; or Refusal."""
    size, context = len(ids), model.config.max_seq_len
    if not 0 < size < context:
        raise Refusal(400, f"the prompt has {size} tokens; with an answer it must fit in {context}",
                      "messages", "context_length_exceeded")
    return context - size


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


@torch.inference_mode()
def pieces(request):
    """Write n answers in one batch. Yields OpenAI's chunks (dicts); the last has token counts."""
    head = dict(id=f"chatcmpl-{secrets.token_hex(12)}", object="chat.completion.chunk",
                created=int(time.time()), model=request.name, usage=None)
    def chunk(i, reason=None, logprobs=None, **delta):
        return dict(head, choices=[dict(index=i, delta=delta, logprobs=logprobs,
                                        finish_reason=reason)])
    yield from (chunk(i, role="assistant") for i in range(request.n))
    t, answers, written = request.tokenizer, [Answer() for _ in range(request.n)], 0
    log_p, waiting = {}, [[] for _ in answers]  # of each answer: (V,), and logprobs to send
    def watch(rows, logits):
        log_p.update(zip(rows.tolist(), log_softmax(logits)))
    generator = torch.Generator(request.model.embed_tokens.weight.device).manual_seed(request.seed)
    steps = decode_steps(request.model, [request.ids] * request.n, request.limit, t.stop_ids,
                         request.temperature, request.top_p, generator,
                         watch if request.logprobs else None)
    steps = (tokens.tolist() for tokens in steps)  # n ids per step
    while any(answer.reason is None for answer in answers):
        for i, (answer, token) in enumerate(zip(answers, next(steps, [None] * request.n))):
            if answer.reason is None:
                written += token is not None
                if log_p and answer.key == "content" and token not in (None, *t.control_ids):
                    best = log_p[i].topk(request.top_logprobs).indices.tolist()
                    one, *others = describe(t, log_p[i], [token, *best])
                    waiting[i].append(dict(one, top_logprobs=others))
                key, text = answer.key, answer.add(token, t, request.stop)
                if text:
                    logprobs = dict(content=waiting[i], refusal=None) if log_p else None
                    yield chunk(i, logprobs=logprobs, **{key: text})
                if text or not (answer.held or answer.ids):  # without text it was a mark or a gap
                    waiting[i] = []
                if answer.reason:
                    yield chunk(i, answer.reason)
    usage = dict(prompt_tokens=len(request.ids), completion_tokens=written)
    yield dict(head, choices=[], usage=usage | dict(total_tokens=sum(usage.values())))


def completion(request):
    """All n answers as one dict, for a client that does not stream."""
    choices = [dict(index=i, message=dict(content="", reasoning_content=None),
                    logprobs=dict(content=[], refusal=None) if request.logprobs else None)
               for i in range(request.n)]
    for chunk in pieces(request):
        for piece in chunk["choices"]:
            whole = choices[piece["index"]]
            whole["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"]:
                whole["logprobs"]["content"] += piece["logprobs"]["content"]
            for key, text in piece["delta"].items():
                whole["message"][key] = (whole["message"].get(key) or "") + text
    return dict(chunk, object="chat.completion", choices=choices)


def read_next(data, server):
    """JSON of {models, messages or prompt, taken, temperature} -> namespace: models {name: (model,
    tokenizer)}, ids, temperature; or Refusal. taken: ids of tokens that follow the text."""
    body = json.loads(data)
    request = SimpleNamespace(**read_fields(body, dict(temperature=(1, (int, float), 0.01, 100))))
    request.models = {name: find_model(server, name) for name in body.get("models", [])}
    (_, tokenizer), *others = request.models.values()
    if any(other.fingerprint != tokenizer.fingerprint for _, other in others):
        raise Refusal(400, "these models have different tokenizers", "models")
    text, known = body.get("prompt"), range(tokenizer.n_tokens)
    ids = read_prompt(body, tokenizer) if text is None else tokenizer.encode(text)
    request.ids = ids + [known.index(token) for token in body.get("taken", [])]  # or ValueError
    return request


@torch.inference_mode()
def next_tokens(request):
    """-> dict: the ten likeliest tokens of each model, KL(first||model) in nats over the whole
    vocabulary, and is its likeliest token that of the first? At the request's temperature."""
    found, log_p = [], None
    for name, (model, tokenizer) in request.models.items():
        find_room(request.ids, model)
        read = torch.tensor([request.ids], device=model.embed_tokens.weight.device)  # (1, T)
        logits = model(read)[0, -1, :model.n_tokens].double()                        # (V,)
        log_q = log_softmax(logits, request.temperature)                             # (V,)
        log_p, best = log_q if log_p is None else log_p, log_q.topk(10).indices.tolist()
        found.append(dict(model=name, ids=best, tokens=describe(tokenizer, log_q, best),
                          kl=kl(log_p, log_q).item(), agree=bool(log_p.argmax() == best[0])))
    return dict(models=found)


class Handler(BaseHTTPRequestHandler):
    """One connection: one request, one answer, one line of log (stderr)."""
    protocol_version = default_request_version = "HTTP/1.1"
    timeout = 10                    # seconds that a client may send or read nothing
    disable_nagle_algorithm = True  # send each token at once
    begun, origin, kind, frame = False, "", KINDS[".json"], b"%s"  # of the reply

    def do_GET(self):
        """Answer a request. Read its body first: closing with unread bytes resets a connection."""
        try:
            data = self.body()
            self.check_client()
            self.answer(self.command, self.path.partition("?")[0], data)
        except Refusal as refusal:
            self.reply(refusal.status, refusal.body)
        except Exception as error:
            if not isinstance(error, OSError):  # OSError: the client is gone or does not read
                self.reply(500, Refusal(500, "a mistake of this server; its log says more").body)
            raise

    do_POST = do_OPTIONS = do_GET

    def answer(self, method, path, data):
        """Answer a request from a client that may ask (data: its body)."""
        if method == "OPTIONS":  # a browser asks before its page may ask
            return self.reply(200, {})
        server, asked = self.server, f"{method} {path}"
        if asked == "GET /v1/models":
            models = [dict(id=name, object="model", created=server.created, owned_by="")
                      for name in server.models]
            return self.reply(200, dict(object="list", data=models))
        if asked == "POST /v1/chat/completions":
            return self.post(read_request, data)
        if asked == "POST /next" and server.page:
            return self.post(read_next, data)
        files = {}  # {path in a URL: file}; no other file can be read
        if server.page:  # the 100 newest logs of runs; without links, which may lead elsewhere
            logs = sorted(OUT.glob("[!.]*.csv"), key=lambda file: -file.lstat().st_mtime)[:100]
            files = {f"/out/{file.name}": file for file in [*logs, OUT / "report.json"]
                     if file.is_file() and not file.is_symlink()} | {"/": ROOT / "page.html"}
        if asked == "GET /out/" and files:
            return self.reply(200, {name: file.stat().st_mtime for name, file in files.items()})
        file = files.get(unquote(path))
        if method != "GET" or not file:
            raise Refusal(404, "this server has no such path" + " without --page" * (not files))
        self.kind = KINDS[file.suffix]
        self.reply(200, file.read_bytes())

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
            self.origin = self.headers.get("Origin", "")  # it may read the reply
        kind, _, sent = self.headers.get("Authorization", "").partition(" ")
        right = kind.lower() == "bearer" and secrets.compare_digest(
            sent.strip().encode(), self.server.key.encode())
        if self.server.key and not right and self.command != "OPTIONS":
            raise Refusal(401, "wrong or missing API key", code="invalid_api_key")

    def post(self, read, data):
        """Wait until the models are free, then answer. read: read_request or read_next."""
        try:
            request = read(data, self.server)
        except (TypeError, ValueError, AttributeError, RecursionError, UserError) as error:
            raise Refusal(400, f"not a request in JSON ({str(error)[:100]})") from None
        if not self.server.room.acquire(blocking=False):
            raise Refusal(429, "too many requests are waiting", code="rate_limit_exceeded")
        try:
            with self.server.lock:
                if read is read_next:
                    return self.reply(200, next_tokens(request))
                if not request.stream:
                    return self.reply(200, completion(request))
                self.kind, self.frame = "text/event-stream", b"data: %s\n\n"
                for piece in pieces(request):
                    if piece["choices"] or request.usage:
                        self.reply(200, piece)
                self.wfile.write(self.frame % b"[DONE]")
        finally:
            self.server.room.release()

    def reply(self, status, body):
        """Send a dict as JSON, or bytes; a stream's as events. The first call sends the status."""
        if not self.begun:
            self.begun = True
            self.send_response(status)
            self.send_header("Content-Type", self.kind)
            self.send_header("Connection", "close")  # closing ends the answer
            self.send_header("Content-Security-Policy", POLICY)
            if self.origin:
                self.send_header("Access-Control-Allow-Origin", self.origin)
                self.send_header("Access-Control-Allow-Headers", "authorization, *")
            self.end_headers()
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.wfile.write(self.frame % body)

    def send_error(self, code, message=None, explain=None):
        """The standard library calls this for a broken HTTP request. Answer in OpenAI's format."""
        self.reply(int(code), Refusal(int(code), message or "a broken request").body)


class Server(ThreadingHTTPServer):
    """Listens at once, or UserError. models: {name: (model, tokenizer)}"""
    request_queue_size = 128  # with the default of 5, some of many clients must try again
    allow_reuse_port = False  # otherwise two servers on one port would share the requests

    def __init__(self, cfg, models, key=""):
        self.models, self.key, self.page, self.created = models, key, cfg.page, int(time.time())
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
    """Load the checkpoints, listen, and answer until a signal comes."""
    key = os.environ.get("MINIDISTILL_API_KEY")
    check(key is None or re.fullmatch("[!-~]+", key), "MINIDISTILL_API_KEY must be printable ASCII "
          "without spaces; unset it to serve without a key")
    check(not (key and cfg.page), "a browser cannot send MINIDISTILL_API_KEY; unset it for --page")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    paths = cfg.checkpoint or [OUT / "teacher.pt"]
    models = {Path(path).stem: load_model(path, device)[:2] for path in paths}
    check(len(models) == len(paths), "two models have one name: that of the file")
    server = Server(cfg, models, key or "")
    for stop in (signal.SIGINT, signal.SIGTERM):  # exit at once: threads may be inside torch
        signal.signal(stop, lambda *_: os._exit(0))
    host, port = server.server_address
    if not host.startswith("127."):
        print(f"warning: others may use {host}, unencrypted (MINIDISTILL_API_KEY)", file=sys.stderr)
    url, name = f"http://{host}:{port}", next(iter(models))
    following = command("blackbox/generate.py", base_url=f"{url}/v1", model=name,
                        out=OUT / f"data/{name}-answers.jsonl")
    print(f"ready: {url}/v1 serves {', '.join(models)}; next:",
          f"open {url} in a browser" if cfg.page else following, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run(main, Config)
