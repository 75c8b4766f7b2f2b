"""Claims about asking an endpoint: each request ends in an answer, another try or the server's words."""
import contextlib
import json
import threading
import time
from types import SimpleNamespace

import pytest

from blackbox import client
from blackbox.client import Client, Fault, finished, parse_answer, post, read_endpoint, seed_of
from common import UserError
from mock_endpoint import drawn, said, serving, worked

KEY = "sk-quite-a-secret-0123456789"
BODY = json.dumps(dict(messages=[dict(role="user", content="2 and 3?")], seed=1)).encode()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Limits pauses to 0.01 seconds and removes the key."""
    monkeypatch.setattr(client, "LONGEST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_url_or_a_key_that_is_none_is_refused_without_being_shown(monkeypatch):
    """A password in a URL stays in the shell's history, and http.client's own error would show the key."""
    urls = ["127.0.0.1:8000/v1", "ftp://a.com", "http://", "http://a b/v1", "http://a.com/v1\r\nX: 1",
            f"https://user:{KEY}@a.com/v1", f"https://{KEY}@a.com", f"https://a.com/v1?key={KEY}"]
    keys = ["sk-one sk-two", "sk-o\nne", "sk-é"]
    for url, key in [*((url, "") for url in urls), *(("https://a.com", key) for key in keys)]:
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UserError, match="OPENAI_API_KEY") as error:
            read_endpoint(url)
        assert "sk-" not in str(error.value)


def test_a_key_leaves_this_machine_only_under_tls(monkeypatch):
    """Without encryption, anyone on the network path can read the key."""
    hosts = {"127.0.0.1": True, "127.9.9.9": True, "LocalHost": True, "[::1]": True, "10.0.0.7": False,
             "127.0.0.1.a.com": False, "localhost.a.com": False, "0.0.0.0": False, "a-b.com": False}
    for host, here in hosts.items():
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        read_endpoint(f"http://{host}:8000/v1")
        monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
        assert read_endpoint(f"https://{host}/v1/") == (f"https://{host}/v1", KEY)
        with contextlib.nullcontext() if here else pytest.raises(UserError):
            read_endpoint(f"HTTP://{host}/v1")


@pytest.mark.parametrize("fault, kind, then", [
    *((status, status, "again") for status in ("429", "408", "500", "529")),
    *((status, status, "refused") for status in ("400", "413", "422")), ("401", "401", "stop"), ("404", "404", "stop"),
    ("dropped", "RemoteDisconnected", "again"), ("cut", "IncompleteRead", "again"), ("half", "invalid JSON", "again"),
    ("invalid", "invalid JSON", "again"), ("empty", "no choices", "again"), ("timeout", "TimeoutError", "again"),
    (dict(code=402, message="no credits"), "402", "stop"), (dict(code=429, message="slower"), "429", "again"),
    (dict(message="Model off"), "200", "again"), (dict(message="0", type="insufficient_quota", code=429), "429", "stop")])
def test_what_may_pass_is_asked_again_and_the_servers_words_are_kept(fault, kind, then):
    """A wrong key tried seven times, a log with the key or without the server's words, or an error under status 200."""
    plan, reply = (fault, {}) if isinstance(fault, str) else ("", dict(error=fault))
    with serving(plan=lambda *_: plan, reply=lambda _: reply) as mock, pytest.raises(Fault) as found:
        post(mock.url, KEY, BODY, 0.2)
    assert (found.value.kind, found.value.then) == (kind, then)
    if reply or fault.isdigit():
        assert found.value.words.startswith(fault["message"] if reply else f"no, Bearer [key] at {fault}")
        assert found.value.words.isprintable()


def test_neither_a_redirect_nor_a_proxy_gets_the_key(monkeypatch):
    """urllib would send the request, with the key, to the host that a redirect or a proxy variable names."""
    for status in (301, 302, 307, 308):
        with serving() as other:
            plan = f"{status} Location: {other.url}/chat?{KEY}"
            with serving(plan=lambda *_: plan) as mock, pytest.raises(Fault) as found:
                post(mock.url, KEY, BODY, 20.0)
            assert not other.asked and KEY not in str(found.value) and found.value.then == "stop"
    with serving() as proxy, serving() as mock:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert post(mock.url, KEY, BODY, 20.0) and not proxy.asked


@pytest.mark.parametrize("content, more, answer, thought", [
    ("5", {}, "5", None), ("5", dict(reasoning_content="2 + 3"), "5", "2 + 3"), (None, {}, "", None),
    *[("5", {key: "2 + 3"}, "5", "2 + 3") for key in ("reasoning", "thinking")], (None, dict(reasoning_content="2 +"), "", "2 +"),
    ([dict(type="text", text="4 and "), dict(type="text", text="5")], {}, "4 and 5", None),
    ([dict(type="thinking", thinking="2 + 3"), dict(type="text", text="5")], {}, "5", "2 + 3"),
    ([dict(type="thinking", thinking=[dict(type="text", text="2")])], {}, "", "2"),
    ([dict(type="reasoning", text="2 + 3"), dict(type="text", text="5")], {}, "5", "2 + 3"),
    (None, dict(refusal="I will not."), "I will not.", None)])
def test_content_and_thought_are_found_under_the_names_that_servers_use(content, more, answer, thought):
    """Null content and refusals were requested seven times without change; a thought in a part was lost."""
    found = parse_answer(said(content, **more))
    assert (found["content"], found["reasoning_content"]) == (answer, thought)
    assert found.get("verdict") == ("refused" if "refusal" in more else None)


@pytest.mark.parametrize("body, then", [
    ({}, "again"), ([], "again"), (None, "again"), ({"choices": [None]}, "again"), (said(5), "again"),
    ({"choices": [{"message": "5"}]}, "again"), (said("5", "abort"), "again"), (said("5", reasoning=[1]), "again"),
    (said([dict(type="image", text="x")]), "refused"),
    (dict(choices=[dict(said("5")["choices"][0], error=dict(message="cuda"))]), "again")])
def test_what_is_no_answer_is_a_fault(body, then):
    """A bad reply could raise an error in a thread, pass as a complete text, or silently lose a part."""
    with pytest.raises(Fault) as found:
        parse_answer(body)
    assert found.value.then == then


def test_only_known_words_say_that_an_answer_is_whole():
    """A list of bad reasons did not contain "abort", so half a text was learned as a complete one."""
    assert all(finished(reason, 10, 10) for reason in ("stop", "eos", "STOP", "end_turn", "COMPLETE"))
    assert finished(None, 9, 10) and not finished(None, 10, 10)
    unknown = ("length", "content_filter", "abort", "error", "tool_calls", "MAX_TOKENS", "")
    assert not any(finished(reason, 5, 10) for reason in unknown)


def ask(mock, jobs, rows=(), **flags):
    """Ask for jobs: a number of questions, or [(question, sample)] -> (the Client, the rows that it wrote)."""
    cfg = dict(base_url=mock.url, model="m", temperature=0.7, max_new_tokens=20, seed=0, concurrency=4,
               timeout=20.0, retries=9, max_requests=0, max_total_tokens=0)
    jobs = [(q, 0) for q in range(jobs)] if isinstance(jobs, int) else jobs
    messages, new = [[dict(role="user", content=f"{q} and 3?")] for q in range(1 + max(jobs)[0])], []
    def write(job, found):
        found.setdefault("verdict", "ok")
        new.append((job, found))
        if found["verdict"] == "ok":
            assert f"<answer>{job[0] + 3}</answer>" in found["content"]
    asker = Client(SimpleNamespace(**cfg | flags), [found for _, found in rows], write)
    asker.ask_all(jobs, messages)
    return asker, new


def came(rows):
    return sorted(job for job, found in rows if found["verdict"] == "ok")


def test_with_a_fifth_of_faults_each_answer_comes_once_and_each_try_is_a_row():
    """A retry of a late answer could give it twice, and a fault that is not retried would lose it."""
    jobs = [(q, s) for q in range(30) for s in range(2)]
    with serving(faults=0.2, seed=3) as mock:
        asker, rows = ask(mock, jobs, timeout=0.3)
        assert came(rows) == jobs
        assert asker.requests == len(rows) == len(mock.asked) > 65 and mock.most_open <= 5


@pytest.mark.parametrize("limit", [1, 15])
def test_the_budget_of_requests_holds_over_runs_and_is_used_up(limit):
    """A retry also counts as a request. What is left of the budget after a stop is for the next run."""
    with serving(plan=drawn(0.5, limit, ("429", "500", "dropped", "cut", "invalid"))) as mock:
        asker, rows = ask(mock, 20, max_requests=limit)
        assert len(mock.asked) == limit == len(rows) and "--max-requests" in asker.why
        missing = [(q, 0) for q in range(20) if (q, 0) not in came(rows)]
        ask(mock, missing, rows, max_requests=limit)  # the same command: nothing is sent
        assert len(mock.asked) == limit
        rows += ask(mock, missing, rows, max_requests=1000)[1]
        assert came(rows) == [(q, 0) for q in range(20)] and len(rows) == len(mock.asked)


@pytest.mark.parametrize("limit", [150, 1000])
def test_the_budget_of_tokens_holds(limit):
    """Four open requests could each use all that is left, so the maximum of each is reserved before it is sent."""
    taken = []
    def reply(asked):
        numbers = dict(prompt_tokens=30, completion_tokens=20 - len(taken) % 15)
        taken.append(sum(numbers.values()))
        return worked(asked) | dict(usage=numbers)
    with serving(reply=reply) as mock:
        asker, rows = ask(mock, 100, max_total_tokens=limit)
    most = len(json.dumps(mock.asked[0])) + 20 + 9  # a seed may have 9 more digits
    assert limit - 5 * most < sum(taken) == asker.tokens <= limit and len(rows) == len(taken)
    assert "--max-total-tokens" in asker.why


@pytest.mark.parametrize("fault, usage, tokens", [
    ("429", None, 0), ("500", None, "most"), ("dropped", None, "most"), ("", None, "most"),
    ("", dict(prompt_tokens=5), "most"), ("", dict(prompt_tokens=5, completion_tokens=2), 7), ("", 5, "most"),
    ("", dict(prompt_tokens=-9, completion_tokens=2), "most"), ("", dict(prompt_tokens="9"), "most")])
def test_what_nobody_counted_counts_as_its_most(fault, usage, tokens):
    """The tokens of a timeout are billed, those of a 429 are not. A usage below 0 would refill the budget."""
    reply = said("<answer>3</answer>") | dict(usage=usage)
    with serving(plan=lambda *_: fault, reply=lambda _: reply) as mock:
        _, [(_, row)] = ask(mock, 1, retries=0)
    most = len(json.dumps(mock.asked[0])) + 20
    assert row["tokens"] == (most if tokens == "most" else tokens)


def test_a_retry_after_holds_back_every_request():
    """The limit is on the key, not on one prompt: other requests would be refused as well."""
    times = []
    def plan(number, _):
        times.append(time.monotonic())
        time.sleep(0 if number == 2 else 0.02)
        return "429 Retry-After: 0.3" if number == 2 else ""
    with serving(plan=plan) as mock:
        _, rows = ask(mock, 8, concurrency=2)
    assert len(came(rows)) == 8  # below: two requests may be open
    assert sum(later - times[2] >= 0.25 for later in times[3:]) >= len(times) - 5


@pytest.mark.parametrize("fault, reply, sent, words", [
    ("500", {}, 20 + 4, "20 tries in a row"), ("400", {}, 20 + 4, "20 tries in a row"),
    ("429 Retry-After: 86400", {}, 4, "86,400 s"), ("401", {}, 4, "401: no"),
    ("", dict(error="Model not loaded"), 4, "Model not loaded")])
def test_a_server_that_never_answers_gets_few_requests(fault, reply, sent, words):
    """A server that was turned off would get ten thousand prompts, each tried seven times."""
    with serving(plan=lambda *_: fault, reply=lambda _: reply) as mock:
        asker, rows = ask(mock, 200, retries=1)
        assert not came(rows) and len(mock.asked) <= sent and words in asker.why
        assert bool(asker.error) == (words[:3] in ("401", "Mod"))
    assert mock.url in ask(mock, 200)[0].error  # now nothing listens there: one line, no retries


def test_some_that_fail_for_good_do_not_end_the_run():
    """A few prompts that the server always refuses must not end the run for all others."""
    def plan(_, asked):
        question = int(asked["messages"][0]["content"].split()[0])
        return "400" if question > 23 else "500" if question % 8 else ""
    with serving(plan=plan) as mock:
        _, rows = ask(mock, 50, retries=1, concurrency=1)
        assert came(rows) == [(0, 0), (8, 0), (16, 0)] and len(rows) == 3 + 2 * 21 + 26


def test_the_newer_name_of_the_limit_is_used_if_a_server_asks_for_it():
    """OpenAI's newer models refuse max_tokens, so every prompt would be stored as refused."""
    words = "400 use max_completion_tokens"
    with serving(plan=lambda _, asked: "" if "max_completion_tokens" in asked else words) as mock:
        _, rows = ask(mock, 6, concurrency=2)
    assert len(came(rows)) == 6 and len(rows) <= 8 and "max_tokens" not in mock.asked[-1]


def test_a_bug_or_a_full_disk_in_a_thread_is_raised(monkeypatch):
    """A thread that dies silently leaves the others waiting for ever."""
    monkeypatch.setattr(client, "post", lambda *_: 1 / 0)
    with serving() as mock, pytest.raises(ZeroDivisionError):
        ask(mock, 3)
    assert threading.active_count() < 8


def test_seeds_are_small_whole_numbers_and_differ():
    """One seed for all samples would give the same answer N times. Some servers refuse seeds above 2^31."""
    seeds = {seed_of(seed, q, s) for seed in range(3) for q in range(50) for s in range(8)}
    assert len(seeds) == 1200 and all(0 <= seed < 2**31 for seed in seeds)
    with serving(reply=lambda _: said("<answer>3</answer>")) as mock:
        ask(mock, 1, seed=-1)
        ask(mock, 1)
    assert "seed" not in mock.asked[0] and mock.asked[1]["seed"] == seed_of(0, 0, 0)
