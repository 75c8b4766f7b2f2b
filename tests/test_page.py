"""Claims about serve.py --page: right probabilities, no other file, and page.html in a real browser."""
import http.client
import json
import re
import shutil
import subprocess
import threading
import time
from functools import partial
from types import SimpleNamespace

import openai
import pytest
import torch

import serve
from dataset.formats import Turn
from dataset.verify import prompt_ids
from decoding import generate
from losses import divergence
from test_serve import PATIENCE, QUESTION, ask, serve_main, start


def send(port, method, path, body=None, **headers):
    """Send a request with a JSON body to a server on this machine -> (status, bytes)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    connection.request(method, path, json.dumps(body), headers)
    reply = connection.getresponse()
    return reply.status, reply.read()


@pytest.fixture
def site(start, out_dir):
    """A server with --page of two models: .port, .models, .out, .client, .get(path, **headers), .next(request)."""
    server, client = start(names=("teacher", "init"), page=True)
    port = server.server_port
    return SimpleNamespace(server=server, port=port, models=server.models, out=out_dir, client=client, get=partial(
        send, port, "GET"), next=lambda request, **headers: send(port, "POST", "/next", request, **headers))


def test_logprobs_are_those_of_the_content_whole_or_streamed(site):
    """Another client would draw a picture of the wrong place, of the thought, or of the sampling temperature."""
    def entries(choices):
        return [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]
    model, t = site.models["teacher"]
    prompt = prompt_ids(t, [Turn("user", QUESTION[0]["content"])])
    [ids] = generate(model, [prompt], 60, t.stop_ids)
    marks = {i: [id] == t.think for i, id in enumerate(ids) if [id] in (t.think, t.end_think)} | {-1: False}
    content = [i for i, id in enumerate(ids) if id not in t.control_ids and not marks[max(m for m in marks if m < i)]]
    log_p = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1:-1].log_softmax(-1)  # (T, V)
    found = entries(ask(site.client, logprobs=True, top_logprobs=5, max_tokens=60).choices)
    assert [bytes(entry.bytes) for entry in found] == [t.raw[ids[i]] for i in content] and content
    for entry, i in zip(found, content):
        values = [entry.logprob, *(other.logprob for other in entry.top_logprobs)]
        assert values == pytest.approx([log_p[i, ids[i]].item(), *log_p[i].topk(5).values.tolist()], abs=1e-4)
    pieces = ask(site.client, stream=True, logprobs=True, top_logprobs=5, max_tokens=60)
    assert entries(choice for piece in pieces for choice in piece.choices) == found
    for choice in ask(site.client, logprobs=True, n=3, temperature=1.7, seed=1, stop=["e", "an"]).choices:
        said = b"".join(bytes(entry.bytes) for entry in entries([choice])).decode(errors="replace")
        assert said.startswith(choice.message.content)
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        ask(site.client, top_logprobs=5)


def test_the_next_token_has_the_exact_kl_at_every_temperature(site):
    """A KL of ten tokens, or at another temperature than the bars, would be a wrong picture."""
    t, text = site.models["teacher"][1], "Mia has 3 pears."
    for tau, taken, asked, ids in ((0.25, [], dict(messages=[dict(role="user", content=text)]), prompt_ids(t, [Turn("user", text)])),
                                   (1, [300, 6], dict(prompt=text), t.encode(text)), (8, [], dict(prompt=text), t.encode(text))):
        _, reply = site.next(dict(models=["teacher", "init"], temperature=tau, taken=taken, **asked))
        p, q = (model(torch.tensor([ids + taken]))[0, -1] for model, _ in site.models.values())  # (V,)
        for found, logits in zip(json.loads(reply)["models"], (p, q)):
            best = (logits / tau).log_softmax(-1).topk(10)
            assert [one["logprob"] for one in found["tokens"]] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert found["ids"] == best.indices.tolist() and found["agree"] == (p.argmax() == logits.argmax())
            assert tau ** 2 * found["kl"] == pytest.approx(divergence("forward_kl", logits, p, tau).item(), abs=1e-4)
    for wrong in (dict(models=["gone"]), dict(models=[]), dict(taken=[-1]), dict(taken=[9e99]), dict(prompt=""),
                  dict(temperature=0), dict(prompt="a" * 161), dict(prompt=7)):
        status, reply = site.next(dict(models=["teacher"], prompt=text) | wrong)
        assert status == (404 if wrong == dict(models=["gone"]) else 400) and json.loads(reply)["error"]["message"]


def test_only_the_page_the_logs_and_the_scoreboard_can_be_read(site, tmp_path, serve_main, monkeypatch, tiny_world):
    """A path with .., a link or a hidden file would give any file of the machine to whoever may ask."""
    (tmp_path / "secret.csv").write_text("secret")
    (site.out / "link.csv").symlink_to(tmp_path / "secret.csv")
    (site.out / "folder.csv").mkdir()
    for name in ("run 1.csv", "中.csv", ".hidden.csv", "report.json", "teacher.pt"):
        (site.out / name).write_text("step,ce\n")
    assert {*json.loads(site.get("/out/")[1])} == {"/", "/out/run 1.csv", "/out/中.csv", "/out/report.json"}
    assert site.get("/out/run%201.csv") == site.get("/out/%E4%B8%AD.csv") == (200, b"step,ce\n")
    for name in ("link.csv", "folder.csv", ".hidden.csv", "teacher.pt", "../secret.csv", "%2e%2e/secret.csv",
                 "..%2fsecret.csv", f"{tmp_path}/secret.csv", "/etc/passwd", "run%201.csv%00"):
        assert site.get(f"/out/{name}")[0] == 404, name
    for header in (dict(Host="evil.com"), dict(Origin="https://evil.com")):
        assert {site.get(path, **header)[0] for path in ("/", "/out/", "/out/run%201.csv")} == {403}
        assert site.next({}, **header)[0] == 403
    page = site.get("/")[1].decode()
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|(src|href)=(?!\"data:,\")|@import|url\(", page)
    assert page.count("lang=en>") == page.count("lang=zh>") > 9 and len(page.splitlines()) <= 350
    site.server.page = False  # a black box
    assert [site.get("/")[0], site.get("/out/")[0], site.next({})[0]] == [404] * 3
    assert serve_main(tiny_world.teacher).status == 2  # two models of one name
    monkeypatch.setenv("MINIDISTILL_API_KEY", "key")
    assert serve_main("--page").status == 2  # a browser cannot send the key


@pytest.fixture
def browser(site):
    """A function: `browser(script)` -> the value of JavaScript in the page. `.type(css, keys)` presses real keys,
    `.click(css)` the mouse, `.shows(css, regex)` waits for a text. WebDriver is plain HTTP: it needs no package."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    port = int(next(filter(None, (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)))[1])
    def do(path, method="POST", **body):
        return json.loads(send(port, method, f"/session{path}", body)[1])["value"]
    flags = {"goog:chromeOptions": dict(args=["--headless=new", "--no-sandbox", "--lang=en"])}
    session = "/" + do("", capabilities=dict(alwaysMatch=flags))["sessionId"]
    def run(script):
        return do(f"{session}/execute/sync", script=f"return {script}", args=[])
    def on(action, css, **body):
        [element] = do(f"{session}/element", using="css selector", value=css).values()
        do(f"{session}/element/{element}/{action}", **body)
    def shows(css, text):
        end, found = time.monotonic() + PATIENCE, ""
        while not (found and re.search(text, found)):
            assert time.monotonic() < end, (css, text, found)
            found = run(f"document.querySelector('{css}')?.innerText ?? ''")
    run.click, run.type, run.shows = partial(on, "click"), lambda css, keys: on("value", css, text=keys), shows
    do(f"{session}/url", url=f"http://127.0.0.1:{site.port}")
    yield run
    do(session, "DELETE")
    driver.terminate()
    driver.wait()


@pytest.mark.slow
def test_a_class_can_use_the_page(site, browser, monkeypatch):
    """Only its author's mouse tried it: a slider without effect, bars without length, HTML from a log."""
    t = site.models["teacher"][1]
    browser.type("#slider", "\ue014" * 10)  # arrow to the right: tau is 2
    browser.shows("#tau", "2.00")
    ids = prompt_ids(t, [Turn("user", browser("document.getElementById('text').value"))])
    def compare(ids):  # waits for the right KL -> the teacher's likeliest token
        p, q = (model(torch.tensor([ids]))[0, -1] for model, _ in site.models.values())  # (V,)
        browser.shows("#kl", f"= {divergence('forward_kl', q, p, 2) / 4:.4f} nats")
        return p.argmax().item()
    best = compare(ids)
    bars = browser("[...document.querySelectorAll('.bar')].map(bar => bar.children[1].offsetWidth)")
    assert len(bars) == 20 and bars[:10] == sorted(bars[:10], reverse=True) and bars[0] > bars[9] > 0
    browser.click(".bar")
    compare([*ids, best])
    more, said = threading.Event(), [*t.encode("Seven"), *t.think, *t.encode("3+4"), t.end]
    def steps(*_):
        for i, token in enumerate(said):
            assert i != 3 or more.wait(PATIENCE)  # the page must show three tokens before the fourth exists
            yield torch.tensor([token])
    monkeypatch.setattr(serve, "decode_steps", steps)
    browser.click("[data-view=answers]")
    browser.click("#ask")
    browser.shows("#replies > div > .text", f"^{t.decode(said[:3])}$")
    more.set()
    browser.shows("#replies > :nth-child(2) > .hint", f"^{len(said)} tokens, ")
    assert browser("[...document.querySelectorAll('details')].map(fold => fold.open + fold.innerText)") == ["falsethought"] * 2
    log = site.out / "<img src=x onerror=document.title=1>.csv"
    log.write_text("step,<b>,val_ce\n1,5,\n2,4,3.5\n3,3,2.5\n4,")
    browser.click("[data-view=run]")
    browser.shows("#runs", re.escape(log.stem))
    log.write_text(log.read_text() + "2,1.5\n")  # it trains on, and the page shows the third value
    browser.shows("body:has(#chart circle:nth-of-type(3))", "")
    assert browser("document.title + document.images.length") == "minidistill0"
    browser.click("#language")
    browser.shows("nav", "^下一个词元\n回答\n训练曲线$")
    del site.server.models["init"]  # a checkpoint that is not there any more
    browser.click("[data-view=next]")
    browser.click("#plain")
    browser.shows("#problem", "teacher")
