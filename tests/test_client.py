"""Claims about asking an endpoint: whatever a server does, an answer, a further try or its words.

The server is tests/mock_endpoint.py, on loopback. What becomes of the answers: test_generate.py.
"""
import json
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from blackbox import client
from blackbox.client import Client, Fault, finished, parse_answer, post, read_endpoint, seed_of
from common import UserError
from mock_endpoint import drawn, said, serving

KEY = "sk-quite-a-secret-0123456789"
BODY = json.dumps(dict(messages=[dict(role="user", content="2 and 3?")], seed=1)).encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Pauses of a hundredth of a second, and no key."""
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


# --- where to ask ---------------------------------------------------------------------------------

@pytest.mark.parametrize("url", ["http://127.0.0.1:8000/v1", "https://api.a-b.com", "HTTP://LocalHost/v1/",
                                 "http://[::1]:8000/v1"])
def test_a_base_url_is_a_host_a_port_and_a_path(url, monkeypatch):
    """A rule that is too strict for somebody's server."""
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert read_endpoint(url) == (url.rstrip("/"), KEY)


@pytest.mark.parametrize("url", ["127.0.0.1:8000/v1", "ftp://a.com", "http://", "http://a b/v1", "file:///etc/passwd",
                                 "http://a.com/v1\r\nX: 1", f"https://user:{KEY}@a.com/v1",
                                 f"https://{KEY}@a.com/v1", f"https://a.com/v1?key={KEY}", f"https://a.com/v1#{KEY}"])
def test_a_url_with_a_secret_or_of_another_kind_is_refused_without_being_shown(url):
    """The password of a URL ends in the shell's history and in every error."""
    with pytest.raises(UserError) as error:
        read_endpoint(url)
    assert KEY not in str(error.value) and "OPENAI_API_KEY" in str(error.value)


@pytest.mark.parametrize("host, here", [
    ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("[::1]", True), ("10.0.0.7", False),
    ("127.0.0.1.a.com", False), ("localhost.a.com", False), ("0.0.0.0", False), ("a.com", False)])
def test_a_key_leaves_this_machine_only_under_tls(host, here, monkeypatch):
    """Whoever reads a key on its way keeps it."""
    read_endpoint(f"http://{host}/v1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    read_endpoint(f"https://{host}/v1")
    if here:
        read_endpoint(f"http://{host}/v1")
    else:
        with pytest.raises(UserError):
            read_endpoint(f"http://{host}/v1")


def test_a_key_with_a_line_end_or_a_space_is_refused_and_not_shown(monkeypatch):
    """http.client's own error, and its traceback, would show it."""
    for value in ("sk-one sk-two", "sk-o\nne", "sk-é"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(UserError) as error:
            read_endpoint("https://a.com")
        assert "sk-" not in str(error.value)


# --- one request ----------------------------------------------------------------------------------

def fault_of(fault, key="", timeout=20.0, reply=None):
    """The Fault of one request to a server that does `fault`."""
    with serving(plan=lambda *_: fault, **(dict(reply=reply) if reply else {})) as mock, \
            pytest.raises(Fault) as found:
        post(mock.url, key, BODY, timeout)
    return found.value


def test_an_answer_comes_with_all_that_is_said_about_it():
    """Usage, the snapshot's name and the reason of the end: what a data card is made of."""
    with serving() as mock:
        assert post(mock.url, KEY, BODY, 20.0) == dict(
            content="<think>2 + 3 = 5, I say 1.</think><answer>5</answer>", reasoning_content=None,
            finish_reason="stop", model="mock-1", usage=dict(prompt_tokens=10, completion_tokens=20))
        post(mock.url, "", BODY, 20.0)
    first, second = mock.headers
    assert first["path"] == "/v1/chat/completions" and first["Authorization"] == f"Bearer {KEY}"
    assert "Authorization" not in second


@pytest.mark.parametrize("fault, kind", [
    ("429", "429"), ("408", "408"), ("500", "500"), ("529", "529"), ("dropped", "RemoteDisconnected"),
    ("cut", "IncompleteRead"), ("half", "invalid JSON"), ("invalid", "invalid JSON"), ("empty", "no choices"),
    ("timeout", "TimeoutError")])
def test_what_may_pass_is_asked_again(fault, kind):
    """A fault that is taken for the end of the world costs a night."""
    found = fault_of(fault, timeout=0.2)
    assert (found.kind, found.then) == (kind, "again")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 422])
def test_what_will_not_pass_is_not_asked_again_and_has_the_servers_words(status):
    """Seven requests with a wrong key are six too many; "failed" helps nobody; nor does the key in a log."""
    found = fault_of(str(status), KEY)
    assert found.then == ("refused" if status in (400, 413, 422) else "stop")
    assert found.words.startswith(f"no, Bearer [key] at {status}") and found.words.isprintable()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(status):
    """The key would go to whatever host the answer names."""
    with serving() as other:
        found = fault_of(f"{status} Location: {other.url}/chat?{KEY}", KEY)
        assert not other.asked and other.url in found.words and KEY not in found.words
        assert found.then == "stop"


def test_no_proxy_of_the_environment_gets_the_request(monkeypatch):
    """urllib would send a request for this machine, key and all, to the company's proxy."""
    with serving() as proxy, serving() as mock:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert post(mock.url, KEY, BODY, 20.0) and not proxy.asked


@pytest.mark.parametrize("body, kind, then, words", [
    (dict(error=dict(code=402, message="no credits")), "402", "stop", "no credits"),
    (dict(error=dict(code=429, message="slower"), choices=[]), "429", "again", "slower"),
    (dict(error="Model not loaded"), "200", "again", "Model not loaded"),
    (dict(error=dict(message="down", type="insufficient_quota", code=429)), "429", "again", "down")])
def test_an_error_inside_a_200_is_an_error_with_its_words(body, kind, then, words):
    """Routers send them so: asked again and again, "no choices" hides what they said."""
    found = fault_of("", reply=lambda _: body)
    then = "stop" if "insufficient_quota" in str(body) else then  # no retry fills the account
    assert (found.kind, found.then, found.words) == (kind, then, words)


def message(content="5", finish="stop", **more):
    return dict(choices=[dict(message=dict(content=content, **more), finish_reason=finish)])


@pytest.mark.parametrize("body, content, thought", [
    (message("5"), "5", None), (message("5", reasoning_content="2 + 3"), "5", "2 + 3"),
    (message("5", reasoning="2 + 3"), "5", "2 + 3"), (message(None), "", None), (message(""), "", None),
    (message(None, "length", reasoning_content="2 +"), "", "2 +"), (message(None, "content_filter"), "", None),
    (message([dict(type="text", text="4 and "), dict(type="text", text="5")]), "4 and 5", None),
    (message([dict(type="thinking", thinking="2 + 3"), dict(type="text", text="5")]), "5", "2 + 3"),
    (message([dict(type="thinking", thinking=[dict(type="text", text="2 +")]), dict(type="text", text="5")]), "5", "2 +"),
    (message([dict(type="reasoning", text="2 + 3"), dict(type="text", text="5")]), "5", "2 + 3")])
def test_content_and_thought_are_found_under_the_names_that_servers_use(body, content, thought):
    """Null content was asked for seven times, and is null each time; a thought in a part was lost."""
    answer = parse_answer(body)
    assert (answer["content"], answer["reasoning_content"]) == (content, thought) and "verdict" not in answer


def test_a_refusal_is_an_answer_with_its_words():
    """Asked again it is refused again, and paid again."""
    answer = parse_answer(message(None, refusal="I will not."))
    assert (answer["verdict"], answer["content"]) == ("refused", "I will not.")


@pytest.mark.parametrize("body, then", [
    ({}, "again"), ([], "again"), (None, "again"), ({"choices": [None]}, "again"), (message(5), "again"),
    ({"choices": [{"message": "5"}]}, "again"), (message([dict(type="image", text="x")]), "refused"),
    (message("5", "abort"), "again"), (message("5", reasoning=[1]), "again"),
    (dict(choices=[dict(message()["choices"][0], error=dict(message="cuda"))]), "again")])
def test_what_is_no_answer_is_a_fault(body, then):
    """An exception in a thread, half a text that is learned as whole, a part that is left out silently."""
    with pytest.raises(Fault) as found:
        parse_answer(body)
    assert found.value.then == then


@pytest.mark.parametrize("usage", [None, 5, {}, {"prompt_tokens": -1}, {"prompt_tokens": "9"}, {"prompt_tokens": True}])
def test_a_usage_that_is_none_is_not_counted(usage):
    """A negative one would refill the budget."""
    assert parse_answer(dict(message(), usage=usage))["usage"] == client.NO_USAGE


@pytest.mark.parametrize("reason, tokens, whole", [
    ("stop", 0, True), ("eos", 0, True), ("STOP", 0, True), ("end_turn", 0, True), ("COMPLETE", 0, True), (None, 9, True),
    (None, 10, False), ("length", 5, False), ("content_filter", 5, False), ("abort", 5, False), ("error", 5, False),
    ("tool_calls", 5, False), ("MAX_TOKENS", 5, False), ("", 5, False)])
def test_only_known_words_say_that_an_answer_is_whole(reason, tokens, whole):
    """A list of bad reasons let "abort" pass: half a text was learned as a whole one."""
    assert finished(reason, tokens, 10) is whole


# --- many requests --------------------------------------------------------------------------------

def ask(mock, jobs, rows=(), **flags):
    """Ask for jobs (a number of questions, or a list) -> (the Client, the rows that it wrote)."""
    cfg = SimpleNamespace(**dict(base_url=mock.url, model="m", temperature=0.7, max_new_tokens=20, seed=0,
                                 concurrency=4, timeout=20.0, retries=9, max_requests=0, max_total_tokens=0) | flags)
    jobs = [(q, 0) for q in range(jobs)] if isinstance(jobs, int) else jobs
    messages = [[dict(role="user", content=f"{q} and 3?")] for q in range(1 + max(q for q, _ in jobs))]
    new = []

    def write(job, found):
        found.setdefault("verdict", "ok")
        new.append((job, found))
        if found["verdict"] == "ok":
            assert f"<answer>{job[0] + 3}</answer>" in found["content"]
    asker = Client(cfg, [found for _, found in rows], write)
    asker.ask_all(jobs, messages)
    return asker, new


def came(rows):
    """The jobs whose answers came."""
    return sorted(job for job, found in rows if found["verdict"] == "ok")


def test_with_a_fifth_of_faults_each_answer_comes_once_and_each_try_is_a_row():
    """A retry whose first answer was only late would bring it twice; a fault forgotten, never."""
    jobs = [(q, s) for q in range(30) for s in range(2)]
    with serving(faults=0.2, seed=3) as mock:
        asker, rows = ask(mock, jobs, timeout=0.3)
        assert came(rows) == jobs
        assert asker.requests == len(rows) == len(mock.asked) > 65 and mock.most_open <= 5


@pytest.mark.parametrize("limit", [1, 15])
def test_the_budget_of_requests_holds_over_runs_and_is_used_up(limit):
    """A retry is a request, too; and what is left after a stop is for the next run."""
    with serving(plan=drawn(0.5, limit, ("429", "500", "dropped", "cut", "invalid"))) as mock:
        asker, rows = ask(mock, 20, max_requests=limit)
        assert len(mock.asked) == limit == len(rows) and "--max-requests" in asker.why
        missing = [(q, 0) for q in range(20) if (q, 0) not in came(rows)]
        ask(mock, missing, rows, max_requests=limit)  # the same command: nothing is sent
        assert len(mock.asked) == limit
        rows += ask(mock, missing, rows, max_requests=1000)[1]
        assert came(rows) == [(q, 0) for q in range(20)] and len(rows) == len(mock.asked)


@pytest.mark.parametrize("limit", [150, 1000])
def test_the_budget_of_tokens_holds_and_is_used_up(limit):
    """Four requests under way may each take all that is left: their most is set aside beforehand."""
    taken = []

    def reply(asked):
        numbers = dict(prompt_tokens=30, completion_tokens=20 - len(taken) % 15)
        taken.append(sum(numbers.values()))
        return said(f"<answer>{int(asked['messages'][0]['content'].split()[0]) + 3}</answer>") | dict(usage=numbers)
    with serving(reply=reply) as mock:
        asker, rows = ask(mock, 100, max_total_tokens=limit)
    most = len(json.dumps(mock.asked[0])) + 20 + 9  # the longest seed
    assert limit - most < sum(taken) == asker.tokens <= limit and len(rows) == len(taken)


@pytest.mark.parametrize("fault, usage, tokens", [
    ("429", None, 0), ("500", None, "most"), ("dropped", None, "most"), ("", None, "most"),
    ("", dict(prompt_tokens=5), "most"), ("", dict(prompt_tokens=5, completion_tokens=2), 7)])
def test_what_nobody_counted_counts_as_its_most(fault, usage, tokens):
    """A timeout's tokens were written, and will be on the bill; of a 429 none were."""
    with serving(plan=lambda *_: fault, reply=lambda _: said("<answer>3</answer>") | dict(usage=usage)) as mock:
        _, [(_, row)] = ask(mock, 1, retries=0)
    most = len(json.dumps(mock.asked[0])) + 20
    assert row["tokens"] == (most if tokens == "most" else tokens)


def test_a_retry_after_holds_back_every_request():
    """The key is limited, not the prompt: the others would only be refused as well."""
    times = []

    def plan(number, _):
        times.append(time.monotonic())
        time.sleep(0 if number == 2 else 0.05)
        return "429 Retry-After: 0.5" if number == 2 else ""
    with serving(plan=plan) as mock:
        _, rows = ask(mock, 8, concurrency=2)
    assert len(came(rows)) == 8
    assert sum(later - times[2] >= 0.45 for later in times[3:]) >= len(times) - 5  # two may be under way


def test_a_retry_after_of_a_day_ends_the_run():
    """Nobody watches a program that sleeps until tomorrow."""
    with serving(plan=lambda *_: "429 Retry-After: 86400") as mock:
        asker, rows = ask(mock, 8, concurrency=1)
        assert len(rows) == 1 and "86,400 s" in asker.why


def test_a_server_that_is_down_gets_few_requests():
    """Ten thousand prompts, seven tries each, to a server that was turned off at midnight."""
    with serving(plan=lambda *_: "500") as mock:
        asker, rows = ask(mock, 200, retries=1)
        assert not came(rows) and len(mock.asked) <= 10 * 2 + 2 * 4 and asker.why


def test_some_that_fail_for_good_do_not_end_the_run():
    """Prompts that the server cannot stand, here and there, must not take the others with them."""
    def plan(_, asked):
        return "" if int(asked["messages"][0]["content"].split()[0]) % 8 == 0 else "500"
    with serving(plan=plan) as mock:
        _, rows = ask(mock, 24, retries=1, concurrency=1)
        assert came(rows) == [(0, 0), (8, 0), (16, 0)] and len(rows) == 3 + 2 * 21


@pytest.mark.parametrize("fault, reply", [("401", None), ("", dict(error="Model not loaded"))])
def test_after_a_refusal_of_everything_nothing_more_is_sent(fault, reply):
    """With a wrong key every prompt would be refused, one by one."""
    with serving(plan=lambda *_: fault, reply=lambda _: reply or {}) as mock:
        asker, _ = ask(mock, 50, concurrency=2)
        assert len(mock.asked) <= 2 and ("401" in asker.error or "Model not loaded" in asker.error)


def test_the_newer_name_of_the_limit_is_used_if_a_server_asks_for_it():
    """OpenAI's newer models refuse max_tokens: each prompt would be a refused row."""
    def plan(_, asked):
        return "" if "max_completion_tokens" in asked else "400 use max_completion_tokens"
    with serving(plan=plan) as mock:
        _, rows = ask(mock, 6, concurrency=2)
    assert len(came(rows)) == 6 and len(rows) <= 8 and "max_tokens" not in mock.asked[-1]


def test_a_bug_or_a_full_disk_in_a_thread_is_raised(monkeypatch):
    """A thread that dies silently leaves the others waiting for ever."""
    monkeypatch.setattr(client, "post", lambda *_: 1 / 0)
    with serving() as mock, pytest.raises(ZeroDivisionError):
        ask(mock, 3)
    assert threading.active_count() < 8


def test_seeds_are_small_whole_numbers_and_differ():
    """The same for every sample: the same answer N times. Above 2^31: refused by some servers."""
    seeds = Counter(seed_of(seed, q, s) for seed in range(3) for q in range(50) for s in range(8))
    assert len(seeds) == 1200 and all(0 <= seed < 2**31 for seed in seeds)
    with serving(reply=lambda _: said("<answer>3</answer>")) as mock:
        ask(mock, 1, seed=-1)
        ask(mock, 1)
    assert "seed" not in mock.asked[0] and mock.asked[1]["seed"] == seed_of(0, 0, 0)
