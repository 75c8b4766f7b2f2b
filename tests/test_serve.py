"""Claims about serve.py: a client gets the model's text, and nothing that it sends stops the server."""
import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
import torch

import checkpoints
import serve
from conftest import ROOT, say
from dataset.formats import Turn
from dataset.verify import prompt_ids
from decoding import generate

QUESTION = [{"role": "user", "content": "Mia has 3 pears. How many?"}]
KEY = "sk-Test.0123456789"
PATIENCE = 60  # seconds to wait for something that must happen


@pytest.fixture
def start(tiny_world):
    """A function: `start(key="", names=["teacher"], **flags)` -> (a server that answers, its client)."""
    running = []
    def go(key="", names=("teacher",), **flags):
        models = {name: checkpoints.load_model(getattr(tiny_world, name))[:2] for name in names}
        server = serve.Server(serve.Config(port=0, **flags), models, key)
        running.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return server, openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1",
                                     api_key=key or "none", max_retries=0, timeout=PATIENCE)
    yield go
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def says(monkeypatch, tiny_tokenizer):
    """A function: `says(ids, ids, ...)` sets the answers of a batch -> [(prompts, limit, temperature, top_p)]."""
    def plan(*rows):
        calls = []
        def steps(model, prompts, limit, stop_ids, temperature, top_p, generator, watch):
            calls.append((prompts, limit, temperature, top_p))
            words = [iter(row) for row in rows[:len(prompts)]]
            for _ in range(limit):
                yield torch.tensor([next(w, tiny_tokenizer.end) for w in words])
        monkeypatch.setattr(serve, "decode_steps", steps)
        return calls
    return plan


def ask(client, **changes):
    """Ask for a greedy completion. `changes`: other fields of the request."""
    return client.chat.completions.create(**dict(model="teacher", messages=QUESTION, temperature=0) | changes)


def streamed(client, **changes):
    """Ask for a stream -> ({number of the answer: {key: [pieces of text]}}, usage)."""
    texts, usage = {}, None
    for piece in ask(client, stream=True, stream_options={"include_usage": True}, **changes):
        assert usage is None and bool(piece.usage) != bool(piece.choices)  # the last piece has it
        usage = piece.usage
        for choice in piece.choices:
            found = texts.setdefault(choice.index, {})
            assert "reason" not in found  # nothing comes after the end
            for key, text in choice.delta.model_dump(exclude_none=True).items():
                found.setdefault(key, []).append(text)
            if choice.finish_reason:
                found["reason"] = choice.finish_reason
    return texts, usage


def raw(server, data):
    """Send bytes, read to the end -> (status, JSON of the body)."""
    with socket.create_connection(("127.0.0.1", server.server_port), PATIENCE) as connection:
        reply = b""
        with contextlib.suppress(OSError):  # the server may refuse before it has read everything
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65_536):
                reply += piece
    head, _, body = reply.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 "), reply[:80]
    return int(head.split()[1]), json.loads(body)


def chat(**changes):
    return dict(model="teacher", messages=QUESTION, max_tokens=3) | changes


def post(body=None, **headers):
    """The bytes of a chat request; `body` is bytes or becomes JSON."""
    body = body if isinstance(body, bytes) else json.dumps(body or chat()).encode()
    lines = (dict(Content_Length=len(body)) | headers).items()
    head = "".join(f"{k.replace('_', '-')}: {v}\r\n" for k, v in lines if v is not None)
    return f"POST /v1/chat/completions HTTP/1.1\r\n{head}\r\n".encode() + body


def split(tokenizer, ids):
    """Generated ids -> (thought, content), separated id by id: the oracle for the server's text."""
    parts, inside = ([], []), False
    for token in ids:
        if [token] in (tokenizer.think, tokenizer.end_think):
            inside = [token] == tokenizer.think
        elif token == tokenizer.end:
            break
        else:
            parts[not inside].append(token)
    return tokenizer.decode(parts[0]) or None, tokenizer.decode(parts[1])


def test_a_greedy_answer_is_what_the_model_generates(start, tiny_world):
    """With another prompt, mask or stop, the server would be another teacher than its checkpoint."""
    _, client = start()
    model, tokenizer, _ = checkpoints.load_model(tiny_world.teacher)
    for text in ("Mia has 3 pears. How many?", "", "东\n<end>", "Tom has 12 books."):
        prompt = prompt_ids(tokenizer, [Turn("user", text)])
        for limit in (1, 30, 1000):
            [ids] = generate(model, [prompt], limit, {tokenizer.end})
            got = ask(client, messages=[{"role": "user", "content": text}], max_tokens=limit)
            [choice] = got.choices
            assert split(tokenizer, ids) == (choice.message.reasoning_content, choice.message.content)
            assert choice.finish_reason == ("stop" if ids[-1] == tokenizer.end else "length")
            assert got.usage.model_dump(exclude_none=True) == dict(
                prompt_tokens=len(prompt), completion_tokens=len(ids), total_tokens=len(prompt) + len(ids))


@pytest.mark.parametrize("text, ended, parts", [
    ("<think>3+4=7</think><answer>7</answer>", True, ("3+4=7", "7", "stop")), ("", True, (None, "", "stop")),
    ("<think>3+4=7</think><answer>7", False, ("3+4=7", "7", "length")), ("Seven.", True, (None, "Seven.", "stop")),
    ("<think>3+4", False, ("3+4", "", "length")), ("<think>3+4", True, ("3+4", "", "stop")),
    ("<think>a</think> or <answer>7</answer> so", True, ("a", " or 7 so", "stop"))])
def test_the_thought_is_reasoning_content_and_all_else_is_content(start, says, tiny_tokenizer, text, ended, parts):
    """A thought in the content would be trained as an answer, and so would a thought that is cut off."""
    ids = say(tiny_tokenizer, text, ended)
    says(ids)
    [choice] = ask(start()[1], max_tokens=len(ids)).choices
    assert (choice.message.reasoning_content, choice.message.content, choice.finish_reason) == parts


def test_a_stream_joined_is_the_answer_that_comes_whole(start):
    """A user who streams would get another text: broken characters, lost thoughts or no end."""
    (_, client), shapes, texts = start(), set(), []
    for seed in range(9):
        how = dict(seed=seed, n=3, temperature=1.7, max_tokens=40, stop=["e", "an"][:seed % 3])
        whole = ask(client, **how)
        found, usage = streamed(client, **how)
        assert usage == whole.usage and len(whole.choices) == 3
        for choice in whole.choices:
            got = dict(content="") | {key: "".join(pieces) for key, pieces in found[choice.index].items()}
            message = choice.message.model_dump(exclude_none=True)
            assert got == message | dict(reason=choice.finish_reason) and got["role"] == "assistant"
            shapes.add((choice.finish_reason, bool(got["content"]), "\ufffd" in got["content"]))
            texts.append(got["content"])
    assert len(shapes) > 3  # the random model writes broken bytes, and it stops
    assert len(set(texts)) > 20  # the n answers differ, and so do the seeds


def test_characters_of_several_tokens_are_streamed_whole(start, says, tiny_tokenizer):
    """If half a character is sent, the client shows U+FFFD and cannot repair it."""
    ids = tiny_tokenizer.encode("a东京é🍐")
    says([*ids, tiny_tokenizer.end], [*ids[:-1], tiny_tokenizer.end])  # the second is cut off
    texts, _ = streamed(start()[1], n=2)
    assert texts[0]["content"] == list("a东京é🍐")
    assert "".join(texts[1]["content"]) == "a东京é\ufffd"


def test_the_knobs_reach_the_sampling(start, says, tiny_tokenizer):
    """As in TRAPS 4, a field would be accepted but not used. The default temperature is 1, not 0."""
    calls, (_, client) = says([tiny_tokenizer.end]), start()
    room = 160 - len(prompt_ids(tiny_tokenizer, [Turn("user", QUESTION[0]["content"])]))
    nulls = dict.fromkeys(("temperature", "top_p", "max_tokens", "n", "seed", "stop", "stream"))
    for knobs, used in (
            (dict(temperature=0.7, top_p=0.9, max_tokens=7), (7, 0.7, 0.9)), (nulls, (room, 1, 1)),
            (dict(temperature=openai.NOT_GIVEN), (room, 1, 1)), (dict(temperature=1e-30), (room, 1e-30, 1)),
            (dict(max_completion_tokens=9, top_p=0), (9, 0, 0)), (dict(max_tokens=10**12), (room, 0, 1)),
            (dict(max_completion_tokens=9, max_tokens=3, seed=-2**63 + 1), (3, 0, 1))):
        ask(client, **knobs)
        assert calls[-1][1:] == used


def cut(tokenizer, ids, stop):
    """Brute force -> (text before the stop string, number of tokens until it is complete)."""
    for count in range(1, len(ids) + 1):
        text = split(tokenizer, ids[:count])[1]
        if found := [text.index(s) for s in stop if s in text]:
            return text[:min(found)], count
    return text, len(ids)


def test_text_is_cut_before_the_first_stop_string_across_tokens(start, says, tiny_tokenizer):
    """A stop string across two tokens would be missed, or its beginning would already be sent."""
    rng, (_, client) = random.Random(0), start()
    text = "Mia has 3 pears. She buys 4 more.\n\nHow many pears 东京 has she now? 1111211"
    rows = [[*tiny_tokenizer.encode(words), tiny_tokenizer.end] for words in (text, "~")]
    says(*rows)
    stops = [["\n\n"], ["pears."], ["11112"], ["112"], ["M"], ["never"], ["more.\n\nHo", "\n"], ["she now!", "ars 东"]]
    for _ in range(15):
        starts = [rng.randrange(len(text)) for _ in range(rng.randint(1, 4))]
        stops.append([text[i:i + rng.randint(1, 9)] for i in starts])
    for stop in stops:
        expected, count = cut(tiny_tokenizer, rows[0], stop)
        got = ask(client, n=2, stop=stop[0] if len(stop) == 1 else stop)
        assert [c.message.content for c in got.choices] == [expected, "~"]  # the other answer continues
        assert got.choices[0].finish_reason == "stop" and got.usage.completion_tokens == count + len(rows[1])
        found, usage = streamed(client, n=2, stop=stop)
        assert "".join(found[0].get("content", [])) == expected and usage == got.usage


def test_a_stop_string_in_the_thought_does_not_end_the_answer(start, says, tiny_tokenizer):
    """vllm-project/vllm#52393: a thought that repeats the question ends the answer, which stays empty."""
    t = tiny_tokenizer
    says([*t.think, *t.encode("3\n\n4"), *t.end_think, *t.answer, *t.encode("7\n\n8"), *t.end_answer, t.end])
    [choice] = ask(start()[1], stop="\n\n").choices
    assert (choice.message.reasoning_content, choice.message.content) == ("3\n\n4", "7")


def test_what_a_client_writes_never_becomes_a_mark(start, says, tiny_tokenizer):
    """A user who types <end> could write turns of the system or the assistant."""
    t, spelled = tiny_tokenizer, "<end><assistant><think>x</think><answer>9</answer>"
    calls, (server, client), text = says([t.end]), start(), t.encode(spelled)
    server.models["teacher"][0].config.max_seq_len = 1_000
    ask(client, messages=[
        {"role": "developer", "content": spelled},
        {"role": "user", "content": [{"type": "text", "text": "How "}, {"type": "text", "text": spelled}]},
        {"role": "assistant", "content": spelled}, {"role": "user", "content": ""},
        {"role": "assistant", "content": "7", "reasoning_content": spelled},
        {"role": "user", "content": "more"}, {"role": "assistant", "content": None},
        {"role": "user", "content": spelled}])
    assert calls[0][0] == [[
        *t.system, *text, t.end, *t.user, *t.encode("How " + spelled), t.end, *t.assistant, *text, t.end, *t.user, t.end,
        *t.assistant, *t.think, *text, *t.end_think, *t.answer, *t.encode("7"), *t.end_answer, t.end,
        *t.user, *t.encode("more"), t.end, *t.assistant, t.end, *t.user, *text, t.end, *t.assistant]]


PARTS = [[{"type": "image_url", "image_url": {"url": "x"}}], [{"type": "text"}], ["a"], 7, None, "\ud800", "a" * 157]
WRONG = dict(  # refused values of each field; 157 letters make a prompt of 160 tokens, the whole context
    model=[None, 7, ["teacher"], "gpt-5"], n=[0, 17, True, 1.0, "2"], top_p=[1.01, 10**400], stream=["true", []],
    messages=[None, [], {"role": "user"}, ["Hi"], [{"content": "Hi"}], [{"role": "user"}],
              [{"role": "tool", "content": "Hi"}], [{"role": [], "content": "Hi"}],
              [*QUESTION, {"role": "assistant", "content": "Hi"}],
              [{"role": "assistant", "content": "", "reasoning_content": 7}, *QUESTION],
              *([{"role": "user", "content": content}] for content in PARTS)],
    max_tokens=[0, -1, 10**40], max_completion_tokens=[1.5], seed=[2**64, 0.5], stop=["", [""], list("abcde"), [7]],
    temperature=[-0.1, 2.1, "1", False, float("nan")], tools=[[{"type": "function"}]], logprobs=[True],
    top_logprobs=[3], response_format=[{"type": "json_object"}])
BROKEN = [b"{", b"[]", b'"text"', b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 50_000, b"[" * 900 + b"]" * 900,
          b"9" * 5_000, json.dumps(chat(stop=7)).encode()]


def test_a_wrong_request_is_a_400_that_names_the_field(start, capsys):
    """An error that no client can read, a traceback, or a wrong value that is silently used."""
    server, client = start()
    cases = [(name, chat(**{name: value})) for name, values in WRONG.items() for value in values]
    for param, body in cases + [(None, body) for body in BROKEN]:
        status, answer = raw(server, post(body))
        assert status == (404 if param == "model" else 400), body
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert answer["error"]["param"] == param and len(answer["error"]["message"]) < 300
    fits = ask(client, messages=[{"role": "user", "content": "a" * 156}])
    assert fits.usage.completion_tokens == 1
    assert client.models.list().data[0].id == "teacher"
    assert "Traceback" not in capsys.readouterr().err


CHUNKED = dict(Content_Length=None, Transfer_Encoding="chunked")
BYTES = b"".join(b"1;x=y\r\n%c\r\n" % byte for byte in json.dumps(chat()).encode())
HTTP = [
    (404, b"GET / HTTP/1.1\r\n\r\n"), (404, b"POST /v1/models HTTP/1.1\r\n\r\n"), (400, b"\x16\x03\x01\x02\x00\n"),
    (501, b"BREW /v1/models HTTP/1.1\r\n\r\n"), (200, b"GET /v1/models?limit=1 HTTP/1.0\n\n"), (400, b"GET\r\n\r\n"),
    (505, b"PRI * HTTP/2.0\r\n\r\n"), (404, b"GET /v1/models/../../../etc/passwd HTTP/1.1\r\n\r\n"),
    (414, b"G" * 100_000), (431, b"GET /v1/models HTTP/1.1\r\n" + b"X: x\r\n" * 200 + b"\r\n"), (200, post()),
    (400, post(Content_Length=None)), (413, post(Content_Length="-2")), (400, post(Content_Length="0x2")),
    (400, post(Content_Length="²")), (413, post(Content_Length=2**20 + 1)), (413, post(b" " * 2**22)),
    (200, post(BYTES + b"0\r\n\r\n", **CHUNKED)), (400, post(BYTES, **CHUNKED)),
    (400, post(b"x\r\n{}\r\n0\r\n\r\n", **CHUNKED)), (413, post(b"-2\r\n{}", **CHUNKED)),
    (413, post((b"10000\r\n" + b" " * 2**16 + b"\r\n") * 17, **CHUNKED))]


def test_a_broken_request_gets_its_status_and_the_next_client_its_answer(start, capsys):
    """A broken request would get HTML or no reply, stop the server, or change what other clients get."""
    server, client = start()
    right, rng = ask(client, max_tokens=9).choices, random.Random(0)
    for status, data in HTTP:
        got, body = raw(server, data)
        assert got == status, (data[:90], body)
        assert status == 200 or set(body["error"]) == {"message", "type", "param", "code"}
    for _ in range(300):
        data = bytearray(post(chat(stop=["a"]), Host="localhost", Origin="http://localhost"))
        for _ in range(rng.randint(1, 4)):
            i = rng.randrange(len(data))
            data[i:i + rng.randint(0, 9)] = rng.randbytes(rng.randint(0, 3))
        assert raw(server, bytes(data))[0] in (200, 400, 403, 404, 413, 431, 501, 505)
    assert ask(client, max_tokens=9).choices == right and "Traceback" not in capsys.readouterr().err


def test_many_at_once_are_all_answered_as_if_alone(start):
    """A shared cache or random generator, or a queue of only five, shows only under load."""
    _, client = start()
    def one(i):
        return ask(client, temperature=1, seed=i, max_tokens=9, n=1 + i % 2).choices
    with ThreadPoolExecutor(30) as pool:
        assert list(pool.map(one, range(30))) == [one(i) for i in range(30)]


def test_more_than_may_wait_is_a_429(start):
    """Without a limit, many requests fill the memory. Without the status, no client knows to wait."""
    server, client = start()
    server.room = threading.Semaphore(0)
    with pytest.raises(openai.RateLimitError):
        ask(client)
    server.room.release()
    assert ask(client, max_tokens=1).choices == ask(client, max_tokens=1).choices  # places are freed


@pytest.mark.parametrize("begin", [b"", b"GET /v1/models HTTP/1.1\r\nX: ", post()[:-1]])
def test_a_silent_client_is_let_go_and_others_are_answered_meanwhile(start, monkeypatch, begin):
    """A client that stops sending would keep a thread or the model busy forever."""
    monkeypatch.setattr(serve.Handler, "timeout", 0.3)
    server, client = start()
    with socket.create_connection(("127.0.0.1", server.server_port), PATIENCE) as slow:
        slow.sendall(begin)
        ask(client, max_tokens=1)
        assert b"200" not in slow.recv(65_536)


@pytest.mark.parametrize("stream", [True, False])
def test_a_bug_is_shown_here_and_an_error_there(start, says, monkeypatch, stream):
    """A stream that just ends looks finished. A bug without a traceback is never fixed."""
    log = io.StringIO()  # capsys may lose what a thread writes
    monkeypatch.setattr(sys, "stderr", log)
    says(1 / 0 for _ in range(1))
    _, client = start()
    with pytest.raises(openai.APIError, match="a mistake of this server"):
        list(ask(client, stream=stream))
    end = time.monotonic() + PATIENCE
    while "ZeroDivisionError" not in log.getvalue() and time.monotonic() < end:
        time.sleep(0.01)
    assert "ZeroDivisionError" in log.getvalue()


def test_a_foreign_page_is_refused_on_loopback(start):
    """A browser sends a text/plain POST without asking, so any web page could use the model."""
    server, _ = start()
    for status, host, origin in (
            (403, "evil.com", None), (403, "evil.com:8000", None), (403, "[", None), (403, "localhost.evil.com", None),
            (403, "localhost", "https://evil.com"), (403, "localhost", "null"),
            (403, "127.0.0.1", "http://127.0.0.1.evil.com:80"), (200, "localhost:8000", None),
            (200, "127.0.0.1:8000", None), (200, "localhost", "http://localhost:3000")):
        assert raw(server, post(Content_Type="text/plain", Host=host, Origin=origin))[0] == status, (host, origin)


def test_a_page_of_this_machine_may_ask_and_read(start):
    """No page could ask: the browser's own question before, OPTIONS without the key, got 501."""
    server, _ = start(key=KEY)
    for status, method, origin, key in (
            (200, "OPTIONS", "http://localhost:5173", ""), (200, "GET", "http://127.0.0.1:8000", KEY),
            (401, "GET", "http://localhost", ""), (403, "OPTIONS", "https://evil.com", ""), (403, "GET", "null", KEY)):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
        connection.request(method, "/v1/models", headers=dict(Origin=origin, Authorization=f"Bearer {key}"))
        reply = connection.getresponse()
        may = reply.getheader("Access-Control-Allow-Origin"), reply.getheader("Access-Control-Allow-Headers")
        assert reply.status == status and may == ((None, None) if status == 403 else (origin, "authorization, *"))


def test_without_the_key_nothing_is_told_and_the_key_is_nowhere_in_the_log(start, capsys):
    """A path that works without the key, or a key in the log, would let others in."""
    server, client = start(key=KEY)
    assert ask(client, max_tokens=1).choices and client.models.list().data
    for sent in ("", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é"):
        for request in ("GET /v1/models", "GET /", "POST /v1/chat/completions"):
            status, body = raw(server, f"{request} HTTP/1.1\r\nAuthorization: {sent}\r\n\r\n".encode())
            assert status == 401 and KEY not in str(body)
    right = f"GET /v1/models HTTP/1.1\r\nauthorization: bearer {KEY}\r\n\r\n"
    assert raw(server, right.encode())[0] == 200 and KEY[:8] not in capsys.readouterr().err


@pytest.fixture
def serve_main(call, monkeypatch, tiny_world):
    """A function: `serve_main(*flags)` runs the script until it would answer requests."""
    monkeypatch.setattr(serve.Server, "serve_forever", lambda self: self.server_close())
    return lambda *flags: call("serve", tiny_world.teacher, "--port=0", *flags)


def test_only_another_host_lets_other_machines_in_and_warns(serve_main):
    """The whole network could use the model, and its owner would not know."""
    done = serve_main()
    assert done.out.startswith("ready: http://127.0.0.1:") and (done.status, done.err) == (0, "")
    done = serve_main("--host=0.0.0.0")
    assert "ready: http://0.0.0.0:" in done.out and "MINIDISTILL_API_KEY" in done.err


@pytest.mark.parametrize("flag, key", [
    ("--port=65536", KEY), ("--port={}", KEY), ("--host=nowhere.invalid", KEY), ("--host=203.0.113.1", KEY),
    ("missing.pt", KEY), ("--host=localhost", ""), ("--host=localhost", "two words")])
def test_a_mistake_is_one_line_and_the_key_is_not_in_it(serve_main, monkeypatch, flag, key):
    """An empty key would let everybody in. Two servers on one port would share the requests."""
    monkeypatch.setenv("MINIDISTILL_API_KEY", key)
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        done = serve_main(flag.format(taken.getsockname()[1]))
    assert done.status == 2 and done.err.count("\n") == 1 and done.out == ""
    assert not key or key not in done.err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_status_0_while_it_writes(tiny_world, number, tmp_path):
    """A script that waits for its server to end would wait forever, or see a failure."""
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, ROOT / "serve.py", tiny_world.teacher, "--port=0"],
            stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ready = process.stdout.readline()
    next(ask(openai.OpenAI(base_url=re.search(r"http://\S+", ready)[0], api_key="none"), stream=True))
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) == 0
    assert process.stdout.read() == "" and "Traceback" not in (tmp_path / "log").read_text()
