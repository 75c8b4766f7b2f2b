"""A practitioner's chats become a student that answers over HTTP. Each command is the `next:` line before it."""
import json
import os
import random
import re
import shlex
import subprocess
import sys
import urllib.request

import pytest

from common import ROOT

ENGLISH = "we keep old maps near that stone house and they tell many new stories about green rivers".split()
CHINESE = "我们在山上看见很多小鸟他说今天的水非常清所以大家都想去河边走走"
TOOLS = [dict(role="user", content="And the weather?"), dict(role="assistant", content=None, tool_calls=[
    dict(type="function", id="1", function=dict(name="weather", arguments="{}"))]),
    dict(role="tool", tool_call_id="1", content="sun"), dict(role="assistant", content="It is sunny.")]
CODE = "\n```python\nfor i in range(3):\n    print(i)\n```\n"
TABLE = "\n| a | b |\n|---|---|\n| 1 | 2 |\n"


def said(rng, chinese, words):
    if chinese:
        return "".join(rng.choices(CHINESE, k=words)) + "。"
    return " ".join(rng.choices(ENGLISH, k=words)) + "."


def conversation(i):
    """Conversation i as OpenAI has it: a third Chinese, 1 to 4 questions, and each kind of oddity."""
    rng, chinese, turns = random.Random(i), i % 3 == 0, []
    if i % 4 == 0:
        turns.append(dict(role="developer" if i % 8 else "system", content=said(rng, chinese, 4)))
    for turn in range(1 + i % 4):
        asked, answer = said(rng, chinese, 5), said(rng, chinese, 6)
        turns.append(dict(role="user", content=[dict(type="text", text=asked)] if i % 10 == 1 else asked))
        turns.append(dict(role="assistant", content=answer + (CODE, TABLE, "", "")[i % 7 % 4]))
        if i % 5 == 2:
            turns[-1]["reasoning_content"] = said(rng, chinese, 5)
    if i % 52 in (3, 4):  # 3: the last of four answers has 1,700 tokens; 4: the only one
        turns[-1]["content"] = said(rng, chinese, 1700)
    elif i % 52 == 5:
        turns += TOOLS
    elif i % 52 == 6:
        turns.append(dict(role="user", content="thanks"))
    return dict(id=f"chat-{i}", messages=turns) | (dict(tools=[dict(name="weather")]) if i % 52 == 5 else {})


@pytest.fixture
def chats(tmp_path):
    """A folder of two files with 300 conversations. Three of them are the same."""
    rows = [conversation(i) for i in range(298)]
    rows += [rows[20]] * 2
    (tmp_path / "chats").mkdir()
    for name, part in (("a", rows[:150]), ("b", rows[150:])):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (tmp_path / "chats" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path / "chats"


@pytest.mark.slow
def test_from_a_folder_of_chats_to_a_student_that_answers(chats, tmp_path, run_script):
    """Each command worked alone, but a printed one did not fit: another tokenizer, or a missing file."""
    out = tmp_path / "out"

    def run(line, *short):
        python, script, *words = shlex.split(line)
        done = run_script(script, *words, *short, cwd=tmp_path, MINIDISTILL_OUT=str(out))
        return done.stdout, re.findall("^next: (.*)", done.stdout, re.M)[-1:]
    said, _ = run("python blackbox/filter.py --input chats --out kept.jsonl")
    assert "exact 2 " in said and "298 of 300 rows" in said
    said, [line] = run("python tokenizer/train.py chats --vocab-size 700 --out chats.model")
    said, [line] = run(line, *"--size 0.1m --window 256 --batch 4 --steps 6 --eval-every 3".split())
    found = {}
    for meta in out.glob("windows/*/meta.json"):  # of the held-out tenth and of the rest
        for reason, (count, _) in json.loads(meta.read_text(encoding="utf-8"))["left_out"].items():
            found[reason] = found.get(reason, 0) + count
    assert found == {
        "ignored key tools": 6, "conversations cut at a turn that uses tools": 6,
        "conversations cut at a last turn without an answer": 6,
        "conversations cut to fit the window": 6, "conversations left out: first answer too long": 6}
    assert all(f"{reason}: " in said for reason in found) and "held out of the data" in said
    assert "warning" not in said
    run(line, "--max-new-tokens=5", "--prompt=Tell me about green rivers.")  # chat.py
    model = tmp_path / shlex.split(line)[2]
    server = subprocess.Popen([sys.executable, ROOT / "serve.py", model, "--port=0"],
                              stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        url = re.search(r"http\S+", server.stdout.readline())[0]
        body = dict(model=model.stem, max_tokens=5, messages=[dict(role="user", content="你好")])
        asked = urllib.request.Request(f"{url}/chat/completions", json.dumps(body).encode())
        with urllib.request.urlopen(asked, timeout=60) as reply:
            [choice] = json.load(reply)["choices"]
        assert choice["finish_reason"] in ("length", "stop") and choice["message"]["role"] == "assistant"
    finally:
        server.kill()
        server.wait()


def test_a_tokenizer_that_spells_the_text_in_bytes_is_warned_about(call, tiny_world, tmp_path):
    """Chinese chats were trained with the stories' English pieces: three tokens for each character."""
    for text, warned in (("中文 " * 30, True), ("Mia has 12 pears. " * 30, False)):
        path = tmp_path / "my a.jsonl"
        path.write_text(json.dumps(dict(text=text)), encoding="utf-8")
        done = call("train_pretrain", *tiny_world.flags("pretrain", data=path, val=path, steps=1, fresh=True))
        assert done.status == 0 and ("tokenizer/train.py 'my a.jsonl'" in done.out.replace(f"{tmp_path}/", "")) == warned
