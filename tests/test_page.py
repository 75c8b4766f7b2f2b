"""Claims about serve.py --page: right probabilities, no other file, and page.html in a real browser."""
import http.client
import json
import re
import threading
from types import SimpleNamespace

import openai
import pytest
import torch

import checkpoints
import decoding
import serve
from dataset.formats import Turn
from dataset.verify import prompt_ids
from losses import divergence
from test_serve import PATIENCE, QUESTION, ask, serve_main

TEXT = "Mia has 3 pears."


@pytest.fixture
def site(tiny_world, out_dir):
    """A running server with --page of two models: .server, .client, .get(method, path, body, **headers)."""
    models = {name: checkpoints.load_model(getattr(tiny_world, name))[:2] for name in ("teacher", "init")}
    server = serve.Server(serve.Config(page=True, port=0), models)
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    def get(path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=PATIENCE)
        connection.request("GET" if body is None else "POST", path, json.dumps(body), headers)
        reply = connection.getresponse()
        return SimpleNamespace(status=reply.status, headers=reply.headers, data=reply.read())
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key="none", timeout=PATIENCE)
    yield SimpleNamespace(server=server, client=client, get=get, models=models, out=out_dir)
    server.shutdown()
    server.server_close()


def entries(choices):
    return [entry for choice in choices if choice.logprobs for entry in choice.logprobs.content]


def test_logprobs_are_those_of_the_content_whole_or_streamed(site):
    """Another client would draw a picture of the wrong place, of the thought, or of the sampling temperature."""
    for name, (model, t) in site.models.items():
        prompt = prompt_ids(t, [Turn("user", QUESTION[0]["content"])])
        [ids] = decoding.generate(model, [prompt], 60, t.stop_ids)
        how = dict(model=name, logprobs=True, top_logprobs=5, max_tokens=60)
        whole = ask(site.client, **how).choices
        marks = [i for i, id in enumerate(ids) if [id] in (t.think, t.end_think)]  # between: a thought or content
        content = [i for i, id in enumerate(ids) if id not in t.control_ids and not (
            i > min(marks, default=99) and [ids[max(m for m in marks if m < i)]] == t.think)]
        log_p = model(torch.tensor([prompt + ids]))[0, len(prompt) - 1:-1].log_softmax(-1)
        assert [bytes(e.bytes) for e in entries(whole)] == [t.raw[ids[i]] for i in content] and content
        for entry, i in zip(entries(whole), content):
            assert entry.logprob == pytest.approx(log_p[i, ids[i]].item(), abs=1e-4)
            assert [e.logprob for e in entry.top_logprobs] == pytest.approx(log_p[i].topk(5).values.tolist(), abs=1e-4)
        pieces = ask(site.client, stream=True, **how)
        assert entries(choice for piece in pieces for choice in piece.choices) == entries(whole)
        for choice in ask(site.client, **how | dict(n=3, temperature=1.7, seed=1, stop=["e", "an"])).choices:
            said = b"".join(bytes(e.bytes) for e in entries([choice])).decode(errors="replace")
            assert said.startswith(choice.message.content) and not choice.logprobs.refusal
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        ask(site.client, top_logprobs=5)


def test_the_next_token_has_the_exact_kl_at_every_temperature(site):
    """A KL of ten tokens, or at another temperature than the bars, would teach a wrong picture."""
    t = site.models["teacher"][1]
    for tau, taken, text in ((0.25, [], {"messages": QUESTION}), (1, [300, 6], {"prompt": TEXT}), (8, [], {"prompt": TEXT})):
        reply = site.get("/next", dict(models=["teacher", "init"], temperature=tau, taken=taken, **text))
        ids = t.encode(TEXT) if "prompt" in text else prompt_ids(t, [Turn("user", QUESTION[0]["content"])])
        p, q = (model(torch.tensor([ids + taken]))[0, -1] for model, _ in site.models.values())
        for found, logits in zip(json.loads(reply.data)["models"], (p, q)):
            best = (logits / tau).log_softmax(-1).topk(10)
            assert [e["logprob"] for e in found["tokens"]] == pytest.approx(best.values.tolist(), abs=1e-4)
            assert found["ids"] == best.indices.tolist() and found["agree"] == (p.argmax() == logits.argmax())
            assert tau ** 2 * found["kl"] == pytest.approx(divergence("forward_kl", logits, p, tau).item(), abs=1e-4)
    for status, wrong in ((404, dict(models=["gone"])), (400, dict(models=[])), (400, dict(taken=[-1])), (400, dict(taken=[9e9])),
                          (400, dict(prompt="")), (400, dict(temperature=0)), (400, dict(prompt="a" * 161)), (400, dict(prompt=7))):
        reply = site.get("/next", dict(models=["teacher"], prompt=TEXT) | wrong)
        assert reply.status == status and json.loads(reply.data)["error"]["message"]


def test_only_the_page_the_logs_and_the_scoreboard_can_be_read(site, tmp_path, serve_main):
    """A path with .., a link or a hidden file would give any file of the machine to whoever may ask."""
    (tmp_path / "secret.csv").write_text("secret")
    (site.out / "link.csv").symlink_to(tmp_path / "secret.csv")
    (site.out / "folder.csv").mkdir()
    for name in ("run 1.csv", "中.csv", ".hidden.csv", "report.json", "teacher.pt"):
        (site.out / name).write_text("step,ce\n1,2\n")
    listed = json.loads(site.get("/out/").data)
    assert set(listed) == {"/", "/out/run 1.csv", "/out/中.csv", "/out/report.json"}
    assert site.get("/out/run%201.csv").data == site.get("/out/%E4%B8%AD.csv").data == b"step,ce\n1,2\n"
    for path in ("link.csv", "folder.csv", ".hidden.csv", "teacher.pt", "../secret.csv", "%2e%2e/secret.csv", "..%2fsecret.csv",
                 f"{tmp_path}/secret.csv", "/etc/passwd", "%00", "run 1.csv%00".replace(" ", "%20"), "."):
        assert site.get(f"/out/{path}").status == 404, path
    for path in ("/", "/out/", "/out/run%201.csv", "/v1/models"):
        assert [site.get(path, **{key: "evil.com"}).status for key in ("Host", "Origin")] == [403, 403]
    page = site.get("/").data.decode()
    assert "default-src 'unsafe-inline'; connect-src 'self'" in site.get("/").headers["Content-Security-Policy"]
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|(src|href)=(?!\"data:,\")|@import|url\(", page)
    assert page.count("lang=en>") == page.count("lang=zh>") > 9 and len(page.splitlines()) <= 350
    site.server.page = False  # a black box
    assert [site.get(path, body).status for path, body in (("/", None), ("/out/", None), ("/next", {}))] == [404] * 3
    assert serve_main("--page", site.models and str(tmp_path / "teacher.pt")).status == 2
