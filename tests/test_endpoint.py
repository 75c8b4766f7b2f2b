"""Claims about asking an endpoint: whatever a server does, an answer, a further try or one clear line.

The server is tests/mock_endpoint.py, on loopback; what becomes of the answers is in test_generate.py.
"""
import email.utils
import json
import queue
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

import cli
from blackbox import asking, endpoint
from blackbox.asking import ask_all, new_state, open_books, pause, request_body, seed_of
from blackbox.endpoint import attempt, hide, parse_answer, parse_base_url, retry_after
from dataset.formats import Turn
from mock_endpoint import drawn, said, serving

KEY = "sk-quite-a-secret-0123456789"
BODY = json.dumps(dict(messages=[dict(role="user", content="2 and 3?")], seed=1)).encode()


# --- where to ask ---------------------------------------------------------------------------------

@pytest.mark.parametrize("url, host, port, secure", [
    ("http://127.0.0.1:8000/v1", "127.0.0.1", 8000, False), ("https://api.a-b.com", "api.a-b.com", 443, True),
    ("HTTP://LocalHost/v1/", "localhost", 80, False), ("http://[::1]:8000/v1", "::1", 8000, False)])
def test_a_base_url_is_a_host_a_port_and_a_path(url, host, port, secure):
    """A port that is guessed wrong, or brackets that are looked up as a name."""
    server = parse_base_url(url, KEY)
    assert (server.host, server.port, server.secure) == (host, port, secure)
    assert KEY not in repr(server)


@pytest.mark.parametrize("url", [
    "", "127.0.0.1:8000/v1", "ftp://a.com", "http://", "http://a..com/v1", "http://a.com:99999/v1", "http://a b/v1",
    "http://a.com/v1\r\nX: 1", "http://a.com/v1\n", "http://ä.com/v1", f"http://{'a' * 64}.com/v1", "file:///etc/passwd"])
def test_another_url_is_refused_in_one_line(url):
    """http.client would raise its own errors, or send a second header."""
    with pytest.raises(cli.UserError, match="--base-url has a wrong value; got .*; expected http"):
        parse_base_url(url, "")


@pytest.mark.parametrize("url", [f"https://user:{KEY}@a.com/v1", f"https://{KEY}@a.com/v1",
                                 f"https://a.com/v1?key={KEY}", f"https://a.com/v1#{KEY}"])
def test_a_url_with_a_secret_is_refused_without_being_shown(url):
    """The password of a URL ends in the shell's history, the header of the file and every error."""
    with pytest.raises(cli.UserError) as error:
        parse_base_url(url, "")
    assert KEY not in str(error.value) and "OPENAI_API_KEY" in str(error.value)


@pytest.mark.parametrize("host, here", [
    ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True), ("10.0.0.7", False),
    ("127.0.0.1.a.com", False), ("localhost.a.com", False), ("0.0.0.0", False), ("a.com", False)])
def test_a_key_leaves_this_machine_only_under_tls(host, here):
    """Whoever reads a key on its way keeps it."""
    parse_base_url(f"https://{host}/v1", KEY)
    parse_base_url(f"http://{host}/v1", "")
    if here:
        parse_base_url(f"http://{host}/v1", KEY)
    else:
        with pytest.raises(cli.UserError, match="a key would travel in the clear"):
            parse_base_url(f"http://{host}/v1", KEY)


def test_a_key_with_a_line_end_or_a_space_is_refused_and_not_shown(monkeypatch):
    """http.client's own error, and its traceback, would show it."""
    for value in ("sk-one sk-two", "sk-o\nne", "sk-é"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(cli.UserError) as error:
            endpoint.read_key()
        assert "sk-" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert endpoint.read_key() == KEY


# --- one request ----------------------------------------------------------------------------------

def try_once(fault, key="", timeout=20.0, reply=None):
    """One request to a server that does `fault` -> (Reply, the headers that it got)."""
    more = dict(reply=reply) if reply else {}
    with serving(plan=lambda *_: fault, **more) as mock:
        return attempt(parse_base_url(mock.url, key), BODY, timeout), mock.headers


def test_an_answer_comes_with_all_that_is_said_about_it():
    """Usage, the snapshot's name and the reason of the end: what a data card is made of."""
    reply, [headers] = try_once("", KEY)
    assert reply.answer == dict(content="<think>2 + 3 = 5, I say 1.</think><answer>5</answer>",
                                reasoning_content=None, finish_reason="stop", model="mock-1",
                                usage=dict(prompt_tokens=10, completion_tokens=20))
    assert headers["path"] == "/v1/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in try_once("")[1][0]


@pytest.mark.parametrize("fault, kind", [
    ("429", "429"), ("408", "408"), ("500", "500"), ("503", "503"), ("529", "529"),
    ("dropped", "dropped connection"), ("cut", "dropped connection"), ("half", "invalid JSON"),
    ("invalid", "invalid JSON"), ("empty", "empty choices"), ("missing", "missing content")])
def test_what_may_pass_is_a_fault_with_a_name(fault, kind):
    """A fault that is taken for the end of the world costs a night; one that has no name, a day."""
    reply, _ = try_once(fault)
    assert reply.fault == kind and not reply.answer and not reply.stop


def test_a_server_that_is_not_there_is_a_fault():
    """It may still be loading its weights."""
    with serving() as mock:
        server = parse_base_url(mock.url, "")
    assert attempt(server, BODY, 20.0).fault == "connection refused"


@pytest.mark.parametrize("fault", ["timeout", "drip", "drip-header"])
def test_the_time_is_for_the_whole_answer(fault):
    """A byte now and then resets a socket's timeout: such a server would hold a thread for ever."""
    with serving(plan=lambda *_: fault) as mock:
        reply = attempt(parse_base_url(mock.url, ""), BODY, 0.3)
        assert reply == endpoint.Reply(fault="timeout") and not mock.waited_for


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_what_will_not_pass_stops_with_the_servers_words(status):
    """Seven requests with a wrong key are six too many; "failed" alone helps nobody."""
    reply, _ = try_once(str(status), KEY)
    assert f"says {status}: no, Bearer [key] at {status}" in reply.stop and "; fix: " in reply.stop
    assert KEY not in reply.stop and not reply.answer


def test_no_part_of_a_key_is_in_a_message_that_is_cut():
    """Cutting first leaves the beginning of a key, which nothing recognises any more."""
    for before in range(270, 301):
        reply = endpoint.parse_refusal(SimpleNamespace(url="u", key=KEY), 401, {}, b"x" * before + KEY.encode())
        assert KEY[:6] not in reply.stop


def test_an_account_without_credit_stops():
    """OpenAI says it with a 429, and no retry fills the account."""
    said = b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    reply = endpoint.parse_refusal(SimpleNamespace(url="u", key=""), 429, {}, said)
    assert "You exceeded your quota" in reply.stop and not reply.fault


@pytest.mark.parametrize("body, words", [
    (b'{"error": "down"}', "down"), (b'{"detail": "lost"}', "lost"), (b'{"message": "gone"}', "gone"),
    (b"plain \xff words", "plain"), (b"[" * 100_000, "[["), (b"null", "nothing more"), (b"", "nothing more"),
    (b'{"error": {"message": {"deep": 1}}}', "deep")])
def test_a_refusal_in_any_form_is_shown(body, words):
    """Not everything that calls itself compatible has OpenAI's errors."""
    reply = endpoint.parse_refusal(SimpleNamespace(url="u", key=""), 404, {}, body)
    assert words in reply.stop


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    """The key would go to whatever host the answer names."""
    with serving() as other:
        reply, _ = try_once(f"{status} Location: {other.url}/chat?{KEY}", KEY)
        assert not other.asked and other.url in reply.stop and KEY not in reply.stop


def test_no_proxy_of_the_environment_gets_the_request(monkeypatch):
    """urllib would send a request for this machine, key and all, to the company's proxy."""
    with serving() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert try_once("", KEY)[0].answer and not proxy.asked


def message(content="5", finish="stop", **more):
    return dict(choices=[dict(message=dict(content=content, **more), finish_reason=finish)])


@pytest.mark.parametrize("body, fault", [
    ({}, "empty choices"), ([], "empty choices"), (None, "empty choices"), ({"choices": None}, "empty choices"),
    ({"choices": [{}]}, "empty choices"), ({"choices": [None]}, "empty choices"),
    ({"choices": [{"message": "5"}]}, "empty choices"), ({"choices": [{"message": {}}]}, "missing content"),
    (message(None), "missing content"), (message(5), "missing content"), (message(["5"]), "missing content"),
    (message("\ud800"), "invalid JSON")])
def test_an_answer_without_content_is_a_fault(body, fault):
    """An exception in a thread, or a row whose content is null."""
    assert parse_answer(json.dumps(body).encode()).fault == fault


@pytest.mark.parametrize("body, content, thought", [
    (message("5"), "5", None), (message("5", reasoning_content="2 + 3"), "5", "2 + 3"),
    (message("5", reasoning="2 + 3"), "5", "2 + 3"), (message("5", reasoning=[1]), "5", None),
    (message("", "length"), "", None), (message(None, "length", reasoning_content="2 +"), "", "2 +"),
    (message(None, "content_filter"), "", None)])
def test_content_and_thought_are_found_under_the_names_that_servers_use(body, content, thought):
    """A limit reached while thinking leaves no content at all: truncated, not faulty."""
    answer = parse_answer(json.dumps(body).encode()).answer
    assert (answer["content"], answer["reasoning_content"]) == (content, thought)


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens": -1}, {"prompt_tokens": "9"},
                                   {"prompt_tokens": True}, {"prompt_tokens": 1e9}, {"prompt_tokens": 2**50}])
def test_a_usage_that_is_none_is_not_counted(usage):
    """A negative one would refill the budget."""
    body = json.dumps(dict(message(), usage=usage)).encode()
    assert parse_answer(body).answer["usage"] == dict(prompt_tokens=None, completion_tokens=None)


@pytest.mark.parametrize("text, seconds", [
    ("3", 3), ("0.5", 0.5), ("0", 0), ("-5", 0), ("nan", 0), ("inf", 0), ("", 0), ("soon", 0),
    ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("Wed, 99 Foo 2015", 0), ("9" * 400, 0)])
def test_a_retry_after_is_a_number_or_nothing(text, seconds):
    """float("nan") seconds pass every comparison, and time.sleep fails."""
    assert retry_after(text) == seconds


def test_a_retry_after_may_be_a_date():
    """RFC 9110 allows both."""
    text = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 50 < retry_after(text) <= 60


def test_short_keys_of_local_servers_are_no_secrets_in_rows():
    """OPENAI_API_KEY=test must not punch holes into the answers."""
    assert hide("a test", "test", 8) == "a test" and hide("a test", "", 8) == "a test" == hide("a test", "")
    assert hide(f"a {KEY}.", KEY, 8) == "a [key]." and hide("a test", "test") == "a [key]"


# --- many requests --------------------------------------------------------------------------------

@pytest.fixture
def ask(tmp_path, monkeypatch):
    """A function: `ask(mock, jobs, **flags)` -> (the jobs answered, in that order, the state in the end).
    Pauses are a hundredth; the books are those of the calls before."""
    monkeypatch.setattr(asking, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(asking, "TICK", 0.01)
    path = tmp_path / "requests.jsonl"

    def run(mock, jobs, **flags):
        cfg = SimpleNamespace(**{**dict(model="m", temperature=0.7, top_p=1.0, max_new_tokens=20, seed=0,
                                        limit_name="max_tokens", concurrency=4, timeout=20.0, retries=9,
                                        max_requests=0, max_total_tokens=0), **flags})
        jobs = [(q, s) for q in range(jobs) for s in range(1)] if isinstance(jobs, int) else jobs
        turns = [[Turn("user", f"{q} and 3?")] for q in range(1 + max(q for q, _ in jobs))]
        state, found = new_state(), []
        books = open_books(path, fresh=False, new=True)
        with cli.append(path) as books.file:
            for answer in ask_all(parse_base_url(mock.url, ""), turns, jobs, cfg, books, state):
                if answer:
                    found.append(answer[0])
                    want = str(answer[0][0] + 3)
                    if answer[1].get("verdict") == "refused":
                        assert "says 4" in answer[1]["content"]
                        continue
                    assert f"<answer>{want}</answer>" in answer[1]["content"]
        state.books = open_books(path, fresh=False, new=False)
        return found, state
    return run


def test_with_a_fifth_of_faults_each_answer_comes_once(ask):
    """A retry whose first answer was only late would bring it twice; a fault forgotten, never."""
    jobs = [(q, s) for q in range(30) for s in range(2)]
    with serving(faults=0.2, seed=3) as mock:
        found, state = ask(mock, jobs, timeout=1.0)
        asked = len(mock.asked)
    assert sorted(found) == jobs and not state.why
    assert sum(state.faults.values()) == asked - 60 > 5 and state.books.requests == asked


def test_no_more_than_concurrency_requests_are_under_way(ask):
    """A limit of the provider's that is passed costs the account."""
    three = threading.Barrier(3)

    def plan(number, _):
        if number < 3:
            three.wait(20)  # broken where fewer come
        return "500" if number < 6 else ""
    with serving(plan=plan) as mock:
        found, _ = ask(mock, 20, concurrency=3)
        assert len(found) == 20 and mock.most_open == 3 and not three.broken


@pytest.mark.parametrize("limit", [1, 15])
def test_the_budget_of_requests_holds_and_is_used_up(limit, ask):
    """A retry is a request, too; and what is left after a stop is for the next run."""
    with serving(plan=drawn(0.5, limit, ("429", "500", "dropped", "cut", "invalid"))) as mock:
        first, state = ask(mock, 20, max_requests=limit)
        assert len(mock.asked) == limit and len(first) < 20
        assert state.why == f"--max-requests {limit} is reached"
        missing = [(q, 0) for q in range(20) if (q, 0) not in first]
        again, state = ask(mock, missing, max_requests=limit)  # the same command: nothing is sent
        assert len(mock.asked) == limit and not again and state.why
        rest, state = ask(mock, missing, max_requests=1000)
        assert sorted(first + rest) == [(q, 0) for q in range(20)] and not state.why
        assert state.books.requests == len(mock.asked)


@pytest.mark.parametrize("limit", [150, 1000])
def test_the_budget_of_tokens_holds_and_is_used_up(limit, ask):
    """Four requests under way may each take all that is left: their most is set aside beforehand."""
    taken = []

    def reply(asked):
        numbers = dict(prompt_tokens=30, completion_tokens=20 - len(taken) % 15)
        taken.append(sum(numbers.values()))
        return said(f"<answer>{int(asked['messages'][0]['content'].split()[0]) + 3}</answer>") | dict(usage=numbers)
    with serving(reply=reply) as mock:
        found, state = ask(mock, 100, max_total_tokens=limit)
        most = len(request_body(SimpleNamespace(model="m", temperature=0.7, top_p=1.0, limit_name="max_tokens",
                                                max_new_tokens=20), [Turn("user", "99 and 3?")], 2**31 - 1)) + 20
    assert sum(taken) == state.books.tokens <= limit and len(found) == len(taken)
    assert sum(taken) > limit - most and "--max-total-tokens" in state.why  # one more might not fit


def test_what_failed_counts_as_if_it_had_taken_all(ask):
    """A timeout's tokens were written, and will be on the bill; of a 429 none were."""
    for fault, per_request in (("429", 0), ("500", 150), ("dropped", 150)):
        with serving(plan=lambda *_: fault) as mock:
            _, before = ask(mock, 1, retries=0)
            _, after = ask(mock, 1, retries=0)
        taken = after.books.tokens - before.books.tokens
        assert taken == 0 if not per_request else taken > 20 + 60, fault


@pytest.mark.parametrize("usage", [None, dict(prompt_tokens=5), dict(prompt_tokens=0, completion_tokens=0)])
def test_without_a_whole_usage_what_was_set_aside_counts(usage, ask):
    """Nothing said is not nothing taken."""
    with serving(reply=lambda _: said("<answer>3</answer>") | dict(usage=usage)) as mock:
        _, state = ask(mock, 1)
        assert state.books.tokens == len(json.dumps(mock.asked[0])) + 20


def test_a_request_is_in_the_books_before_it_is_sent(ask, monkeypatch, tmp_path):
    """Killed in between, a request that is not noted would be sent again beyond the budget."""
    note, forgotten = asking.note, []

    def slowly(books, requests, tokens):
        time.sleep(0.02 * requests)
        note(books, requests, tokens)

    def plan(number, _):
        lines = (tmp_path / "requests.jsonl").read_text().split("\n")[:-1]
        if sum(json.loads(line)["requests"] for line in lines) <= number:
            forgotten.append(number)
        return ""
    monkeypatch.setattr(asking, "note", slowly)
    with serving(plan=plan) as mock:
        assert len(ask(mock, 10)[0]) == 10 and not forgotten


def test_books_with_a_torn_line_or_a_wrong_one(tmp_path):
    """A torn line is of a request that was never sent; a wrong one must not be a free budget."""
    path = tmp_path / "requests.jsonl"
    with pytest.raises(cli.UserError, match="does not exist; fix: it counts what was sent before"):
        open_books(path, fresh=False, new=False)
    lines = ['{"requests": 1, "tokens": 50}\n', '{"requests": 0, "tokens": -8}\n', '{"requests": 1, "to']
    path.write_text("".join(lines))
    books = open_books(path, fresh=False, new=False)
    assert (books.requests, books.tokens) == (1, 42) and path.read_text() == "".join(lines[:2])
    for line in ("{}", "no", "[]", '{"requests": 1, "tokens": NaN}', '{"requests": 0.5, "tokens": 1}'):
        path.write_text("".join(lines[:2]) + line + "\n")
        with pytest.raises(cli.UserError, match="requests.jsonl:3: no line of the requests"):
            open_books(path, fresh=False, new=False)
    open_books(path, fresh=True, new=False)
    assert json.loads(path.read_text()) == dict(requests=0, tokens=0)


def test_pauses_grow_are_random_and_never_shorter_than_asked():
    """All at the same moment again is what the server could not stand."""
    for times in range(12):
        drawn = [pause(times, 0) for _ in range(200)]
        most = min(60, 2 ** times)
        assert most / 2 <= min(drawn) < 0.6 * most and 0.9 * most < max(drawn) <= most
        assert pause(times, 100) == 100


def test_a_retry_after_holds_back_every_request(ask):
    """The key is limited, not the prompt: the others would only be refused as well."""
    times = []

    def plan(number, _):
        times.append(time.monotonic())
        return "429 Retry-After: 1" if number == 2 else ""
    with serving(plan=plan) as mock:
        found, state = ask(mock, 8, concurrency=1)
    assert sorted(found) == [(q, 0) for q in range(8)] and state.faults == {"429": 1}
    assert times[3] - times[2] >= 1


def test_while_one_is_told_to_wait_nothing_is_sent(tmp_path):
    """The same, seen from inside: another prompt is ready, and stays."""
    state, orders, cfg = new_state(), queue.SimpleQueue(), SimpleNamespace(retries=9)
    books = open_books(tmp_path / "r.jsonl", fresh=False, new=True)
    with cli.append(tmp_path / "r.jsonl") as books.file:
        order = SimpleNamespace(job=(0, 0), times=0, most=9)
        asking.settle(order, endpoint.Reply(fault="429", wait=50.0), cfg, books, state)
        state.waiting.append((0.0, 0, (1, 0)))
        asking.send_due(orders, [], cfg, books, state)
    assert orders.empty() and not state.flying and state.held_until > time.monotonic() + 40
    assert [job for _, _, job in sorted(state.waiting)] == [(1, 0), (0, 0)]


def test_a_retry_after_of_a_day_ends_the_run(ask):
    """Nobody watches a program that sleeps until tomorrow."""
    with serving(plan=lambda *_: "429 Retry-After: 86400") as mock:
        found, state = ask(mock, 8, concurrency=1)
        assert not found and len(mock.asked) == 1 and "asks to wait 86,400 s" in state.why


def test_a_server_that_is_down_gets_few_requests(ask):
    """Ten thousand prompts, seven tries each, to a server that was turned off at midnight."""
    with serving(plan=lambda *_: "500") as mock:
        found, state = ask(mock, 200, retries=1)
        assert not found and "10 in a row failed" in state.why and len(mock.asked) <= 10 * 2 + 2 * 4


def test_some_that_fail_for_good_do_not_end_the_run(ask):
    """Prompts that the server cannot stand, here and there, must not take the others with them."""
    def plan(_, asked):
        return "" if int(asked["messages"][0]["content"].split()[0]) % 8 == 0 else "500"
    with serving(plan=plan) as mock:
        found, state = ask(mock, 24, retries=1, concurrency=1)
        assert found == [(0, 0), (8, 0), (16, 0)] and not state.why
        assert state.faults == {"500": 2 * 21} and len(mock.asked) == 3 + 2 * 21


def test_after_a_refusal_nothing_more_is_sent(ask):
    """With a wrong key every prompt would be refused, one by one."""
    with serving(plan=lambda number, _: "401" if number >= 2 else "") as mock:
        found, state = ask(mock, 50, concurrency=2)
        assert len(found) == 2 and len(mock.asked) <= 4 and "says 401" in state.refused[1]


@pytest.mark.parametrize("status", ["400", "413", "422"])
def test_a_refused_prompt_costs_its_own_row_alone(ask, status):
    """One that is too long, or filtered, would stop the same command again and again."""
    def plan(_, asked):
        return status if int(asked["messages"][0]["content"].split()[0]) % 4 == 0 else ""
    with serving(plan=plan) as mock:
        found, state = ask(mock, 12, concurrency=3)
        assert sorted(found) == [(q, 0) for q in range(12)] and not state.refused and len(mock.asked) == 12
        assert state.faults == {"refused": 3} and not state.aside


@pytest.mark.parametrize("n", [3, 50])
def test_where_every_prompt_is_refused_it_is_not_the_prompts(ask, n):
    """A wrong --model is a 400 at some servers: rows of it would be settled for good."""
    with serving(plan=lambda *_: "400") as mock:
        found, state = ask(mock, n, concurrency=1)
        assert found == [] and "says 400" in state.refused[1] and len(mock.asked) == min(n, asking.GIVE_UP)


@pytest.mark.parametrize("found, becomes", [
    (dict(error=dict(code=402, message="no credits")), "stop"), (dict(error=dict(message="busy")), "500"),
    (dict(error=dict(code=429, message="slower"), choices=[]), "429"), (dict(choices=[]), "empty choices")])
def test_an_error_inside_of_a_200_is_heard(found, becomes, monkeypatch):
    """Routers send them so: asked again and again, "empty choices" hides what they said."""
    monkeypatch.setattr(endpoint, "post", lambda *_: (200, {}, json.dumps(found).encode()))
    reply = attempt(parse_base_url("http://127.0.0.1:1/v1", ""), BODY, 5.0)
    assert "says 402: no credits" in reply.stop if becomes == "stop" else reply.fault == becomes


def test_an_answer_in_parts_is_joined():
    """A list of text parts is how some servers send what others send as one text."""
    message = dict(content=[dict(type="text", text="4 and "), dict(type="text", text="5")])
    found = dict(choices=[dict(message=message, finish_reason="stop")])
    assert endpoint.parse_answer(json.dumps(found).encode()).answer["content"] == "4 and 5"
    message["content"] = [dict(type="image")]
    assert endpoint.parse_answer(json.dumps(found).encode()).fault == "missing content"


def test_a_bug_in_a_thread_is_raised(ask, monkeypatch):
    """A thread that dies alone leaves the others waiting for ever."""
    monkeypatch.setattr(asking, "attempt", lambda *_: 1 / 0)
    with serving() as mock, pytest.raises(ZeroDivisionError):
        ask(mock, 3)


def test_seeds_are_small_whole_numbers_and_differ():
    """The same for every sample: the same answer N times. Above 2^31: refused by some servers."""
    seeds = Counter(seed_of(seed, q, s) for seed in range(3) for q in range(50) for s in range(8))
    assert len(seeds) == 1200 and all(0 <= seed < 2**31 for seed in seeds)
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)


def test_a_request_says_what_was_asked_for():
    """A knob that is printed and not sent."""
    cfg = SimpleNamespace(model="m", temperature=0.3, top_p=0.9, max_new_tokens=7, limit_name="max_completion_tokens")
    turns = [Turn("system", "Be short."), Turn("user", "2+3? ñ"), Turn("assistant", "", "so", "5"),
             Turn("assistant", "Yes."), Turn("user", "Sure?")]
    assert json.loads(request_body(cfg, turns, 9)) == dict(
        model="m", temperature=0.3, top_p=0.9, max_completion_tokens=7, seed=9, messages=[
            dict(role="system", content="Be short."), dict(role="user", content="2+3? ñ"),
            dict(role="assistant", content="5"), dict(role="assistant", content="Yes."),
            dict(role="user", content="Sure?")])
    cfg.top_p = 1.0
    assert {"top_p", "seed"} & set(json.loads(request_body(cfg, turns, seed_of(-1, 0, 0)))) == set()
