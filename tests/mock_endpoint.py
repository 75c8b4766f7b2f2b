"""An OpenAI-compatible server that fails on purpose, by a plan. Its answer is the sum of the question's numbers."""
import contextlib
import json
import random
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "timeout", "dropped", "cut", "invalid", "empty")  # a retry may help


def said(content, finish_reason="stop", **message):
    """The body of a reply, without the model and usage that all replies have."""
    message = dict(role="assistant", content=content, **message)
    return dict(choices=[dict(index=0, message=message, finish_reason=finish_reason)])


def worked(asked):
    """A reply: steps, then the sum of the numbers in the last turn. The seed changes its text."""
    numbers = list(map(int, re.findall(r"\d+", asked["messages"][-1]["content"])))
    steps = f"{' + '.join(map(str, numbers))} = {sum(numbers)}, I say {asked['seed']}."
    return said(f"<think>{steps}</think><answer>{sum(numbers)}</answer>")


class Handler(BaseHTTPRequestHandler):
    """One request: it is recorded, then answered or failed as the plan says."""
    def do_POST(self):
        mock = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with mock.lock:
            number = len(mock.asked)
            mock.asked.append(asked)
            mock.headers.append(dict(self.headers, path=self.path))
            mock.open_now += 1
            mock.most_open = max(mock.most_open, mock.open_now)
        fault = mock.plan(number, asked)
        with mock.lock:  # before the answer: after it the client may ask at once
            mock.open_now -= 1
        with contextlib.suppress(OSError):  # the client has gone
            self.answer(fault, asked)

    def answer(self, fault, asked):
        usage = dict(prompt_tokens=len(json.dumps(asked["messages"])) // 4, completion_tokens=20)
        body = dict(model="mock-1", usage=usage) | self.server.reply(asked)
        text, (status, _, more) = json.dumps(body), fault.partition(" ")
        texts = {"": text, "cut": text, "half": text[:-30], "invalid": "<html>busy</html>",
                 "empty": json.dumps(dict(body, choices=[]))}
        if fault == "timeout":
            self.server.closing.wait(60)  # seconds: longer than any client here waits
        if fault in ("timeout", "dropped"):
            return
        if fault not in texts:  # "429 Retry-After: 1", "400 it is too long"
            words = more or f"no, {self.headers.get('Authorization')} at {status}\n\x1b[2J"
            texts[fault] = json.dumps(dict(error=dict(message=words)))
        data = texts[fault].encode()
        self.send_response(int(status) if status.isdigit() else 200)
        self.send_header("Content-Length", str(len(data)))
        if ": " in more:
            self.send_header(*more.split(": ", 1))
        self.end_headers()
        self.wfile.write(data[:len(data) - 30 * (fault == "cut")])  # "cut" sends 30 too few

    def log_message(self, *_):
        """Print nothing: the tests read what the script prints."""


def drawn(share, seed, kinds=FAULTS):
    """A plan: each request fails with probability `share`. The same seed gives the same plan."""
    def plan(number, asked):
        rng = random.Random(f"{seed}/{number}")
        return rng.choice(kinds) if rng.random() < share else ""
    return plan


@contextlib.contextmanager
def serving(faults=0.0, seed=0, plan=None, reply=worked):
    """Serve on loopback while the block runs -> the mock: .url, .asked, .headers, .most_open."""
    mock = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    mock.daemon_threads, mock.request_queue_size = True, 128
    mock.asked, mock.headers, mock.open_now, mock.most_open = [], [], 0, 0
    mock.lock, mock.closing = threading.Lock(), threading.Event()
    mock.plan, mock.reply = plan or drawn(faults, seed), reply
    mock.url = f"http://127.0.0.1:{mock.server_address[1]}/v1"
    threading.Thread(target=mock.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield mock
    finally:
        mock.closing.set()
        mock.shutdown()
        mock.server_close()
