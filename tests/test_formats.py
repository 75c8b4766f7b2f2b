"""Claims about dataset/formats.py: formats give equal turns, bad lines are named, only responses count."""
import itertools
import json

import pytest

from blackbox.filter import texts
from blackbox.generate import KEPT_KEYS
from common import UserError, sha256_file
from dataset import formats
from dataset.formats import BadRow, Turn, encode_document, parse_row, read_documents
from dataset.verify import parse_response, prompt_ids, turn_row
from decoding import opening
from tokenizer import CONTROL
from tokenizer.train import texts as train_texts


def assistant(think=None, answer=None, content=""):
    return Turn("assistant", content, think, answer)


def chat(content, **more):
    return {"conversations": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": content, **more}]}


def test_minimind_and_openai_rows_are_the_same_turns():
    """Two formats could give different turns. Other keys must be ignored, a leading system turn kept."""
    rows = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "2+3?", "id": 7},
            {"role": "assistant", "content": "5", "reasoning_content": "2+3=5", "tools": None}]
    turns = [Turn("system", "Be kind."), Turn("user", "2+3?"), assistant("2+3=5", "5")]
    assert parse_row({"conversations": rows, "id": 1}) == turns == parse_row({"messages": rows})


@pytest.mark.parametrize("content, turn", [
    ("<think>2+3=5</think><answer>5</answer>", assistant("2+3=5", "5")),
    ("<think>\n2+3\n=5\n</think>\n<answer>\n5\n</answer>\n", assistant("2+3\n=5", "5")),
    ("<think>2+3=5</think>\n\nIt is 5.", assistant("2+3=5", "It is 5.")),
    ("<think>\n\n</think>\n\n5", assistant(None, "5")), ("<answer>5</answer>", assistant(None, "5")),
    ("2+3=5</think>5", assistant("2+3=5", "5")),   # R1's template puts <think> into the prompt
    ("<think>2+3</think>So:\n<answer>5</answer>", assistant("2+3\nSo:", "5")),
    ("It is 2+3. <answer>5</answer>", assistant("It is 2+3.", "5")),
    ("Write </answer> or <answer> last.", assistant(content="Write </answer> or <answer> last.")),
    ("<think></think><answer>5</answer>", assistant(None, "5"))])
def test_r1_tags_become_think_and_answer(content, turn):
    """If "<think>" stays text, it is seven characters, and the format is never learned."""
    assert parse_row(chat(content))[-1] == turn
    assert parse_row({"instruction": "2+3?", "output": content})[-1] == turn


def test_reasoning_content_is_the_thought_and_content_the_answer():
    """Content that already has tags could be tagged twice."""
    for content in ("5", "<answer>5</answer>", "\n5"):
        assert parse_row(chat(content, reasoning_content="2+3"))[-1] == assistant("2+3", "5")
    for empty in ("", None):
        assert parse_row(chat("5", reasoning_content=empty))[-1] == assistant(content="5")
    turn = parse_row(chat("<answer>5</answer>", reasoning_content="I must use <answer> tags."))[-1]
    assert turn == assistant("I must use <answer> tags.", "5")  # FAULTS 9


def test_tags_of_a_user_stay_text():
    """Text from a user must never become a control token."""
    literal = "<think>x</think><answer>5</answer>"
    rows = [{"role": "user", "content": literal}, {"role": "assistant", "content": "x <think> y"}]
    assert parse_row({"messages": rows}) == [Turn("user", literal), assistant(content="x <think> y")]


@pytest.mark.parametrize("answer, turn", [
    ("48/2 = <<48/2=24>>24 clips.\nStep #### two: 3<4 and 5>4.\n#### -1,024",
     assistant("48/2 = 24 clips.\nStep #### two: 3<4 and 5>4.", "-1,024")), ("#### 7", assistant(None, "7")),
    ("2+3 = <<2+3=5>>5\n#### 5", assistant("2+3 = 5", "5")), ("5", assistant(None, "5")),
    ("<think>2+3</think><answer>5</answer>", assistant("2+3", "5")),
    ("cin<<a>>b #### 5", assistant("cin<<a>>b", "5")),
    ("#### Step 1\nadd\n#### Step 2\nso 5", assistant(None, "#### Step 1\nadd\n#### Step 2\nso 5"))])
def test_worked_answers(answer, turn):
    """Real files have R1 tags inside GSM8K rows, Markdown headings with ####, and C++ code with <<."""
    assert parse_row({"question": "2+3?", "answer": answer})[1] == turn


def test_a_turn_written_back_reads_as_the_same_turn():
    """generate.py copies earlier turns: if a thought is lost, the reader refuses the row."""
    turns = [Turn("user", "<think>?"), assistant("2+3", "5"), assistant(None, "5"),
             assistant(content="Hello."), Turn("system", "Be short."), assistant("so", "a <b>")]
    assert parse_row({"conversations": [turn_row(turn) for turn in turns]}) == turns


ASK, REPLY = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
AB = [Turn("user", "a"), assistant(content="b")]


@pytest.mark.parametrize("row, turns", [
    ({"text": " a\n b ", "source": 1}, " a\n b "),
    ({"instruction": "Add.", "input": "2 3", "output": "5"}, [Turn("user", "Add.\n\n2 3"), assistant(content="5")]),
    ({"instruction": "a", "input": "", "output": "b"}, AB), ({"instruction": "", "input": "a", "output": "b"}, AB),
    ({"text": None, "conversations": None, "messages": [ASK, REPLY]}, AB),
    ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, AB),
    ({"prompt": "a", "completion": "b"}, AB), ({"prompt": [ASK], "completion": [REPLY]}, AB),
    ({"messages": [{"role": "system", "content": ""}, ASK, REPLY]}, AB), ({"messages": [ASK, REPLY, ASK]}, AB),
    ({"messages": [ASK, REPLY, {"role": "user", "content": [{"type": "image_url"}]}, REPLY]}, AB),
    ({"problem": "a", "solution": "b #### 2", "answer": "3"}, [Turn("user", "a"), assistant("b", "2")]),
    ({"problem": "a", "solution": "b", "answer": 0}, [Turn("user", "a"), assistant("b", "0")]),
    ({"problem": "a", "solution": "\\boxed{2}", "answer": "2"}, [Turn("user", "a"), assistant(None, "\\boxed{2}")]),
    ({"instruction": None, "input": "a", "output": "b"}, AB), ({"question": "a", "answer": 5}, [AB[0], assistant(None, "5")]),
    ({"question": "a", "choices": ["A. x", "B. y"], "answer": 1}, [Turn("user", "a\n\nA. x\nB. y"), assistant(None, "B")]),
    *[({"question": "a", "choices": options, "answerKey": "D"}, [Turn("user", "a\n\nC. x\nD. y"), assistant(None, "D")])
      for options in ({"text": ["x", "y"], "label": ["C", "D"]}, [{"label": "C", "text": "x"}, {"text": "y", "label": "D"}])],
    ({"instruction": "a", "output": "b", "history": [ASK, REPLY]}, [*AB, *AB]),
    *[({"messages": [{"role": "system"}, ASK, REPLY, ASK, turn, ASK, REPLY]}, AB) for turn in ({"role": "narrator"},
        {"role": "assistant", "content": None}, {"from": "function_call", "value": "a"})],
    ({"messages": [ASK, {"role": "assistant", "content": [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}]}]},
     [AB[0], assistant("t", "b")]),
    ({"instruction": "a", "input": None, "output": "b", "system": "s", "history": [["c", "d"]]},
     [Turn("system", "s"), Turn("user", "c"), assistant(content="d"), *AB]),
    ({"question": "a", "answer": "B", "context": "c", "options": ["x", "y"]},
     [Turn("user", "c\n\na\n\nA. x\nB. y"), assistant(None, "B")]),
    ({"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": [
        {"type": "text", "text": "a"}]}, {"role": "assistant", "content": "b", "thinking": "t"}]},
     [Turn("system", "s"), Turn("user", "a"), assistant("t", "b")])])
def test_rows_as_people_have_them(row, turns):
    """FAULTS 3, 8, 18, 19, 27: a silently dropped key changes the question; a null key hides the format."""
    assert parse_row(row) == turns


@pytest.mark.parametrize("mark", ["<end>", "<|im_end|>", "</s> </s>\n", "<|eot_id|><|endoftext|>", "<end_of_turn>",
                                  "<|end|>", "<｜end▁of▁sentence｜>", ".", "。"])
def test_a_stop_mark_at_the_end_of_an_answer_is_cut_off(mark):
    """FAULTS 23: some servers leave their stop token in the text, which makes every row wrong."""
    assert parse_row(chat(f"<answer>54</answer>{mark}"))[-1] == assistant(None, "54")
    if mark not in ".。":
        assert parse_row(chat(f"54{mark}"))[-1] == assistant(content="54")
        assert parse_row({"question": "a", "answer": f"b #### 54{mark}"})[-1] == assistant("b", "54")


def test_a_prompt_needs_no_reply():
    """A question without an answer may be a prompt for a teacher, but not a row to train on."""
    for row in ({"question": "a"}, {"messages": [{"role": "user", "content": "a"}]},
                {"instruction": "a"}, {"prompt": "a", "completion": ""}):
        assert parse_row(row, need_reply=False) == [Turn("user", "a")]
        with pytest.raises(BadRow):
            parse_row(row)


GOOD = b'{"text": "fine"}'
BAD = [
    b'{"text": "a"', b"[" * 100_000, b'["text"]', b"5", b"{}", b'{"text": 5}', b'{"text": "a", "weight": 0}', b'{"text": ""}',
    b'{"text": "a\\ud83d"}', b'{"prompt": "a", "reply": "b"}', b'{"question": "a", "answer": "b ####"}',
    b'{"instruction": "", "output": "a"}', b'{"question": "a", "answer": "b", "options": 5}',
    *(b'{"prompt": "a", "completion": "b", "history": %s}' % bad for bad in (b"5", b'"none"', b'[["a"]]', b'{"ab": "c"}')),
    *(json.dumps({"messages": turns}).encode() for turns in (
        [], "hi", ["hi"], [{"role": "narrator", "content": "a"}], [{"content": "a"}], [{"role": "assistant"}],
        [{"role": "assistant", "content": None}], [ASK], [{"role": "assistant", "content": " "}],
        [{"role": "user", "content": ""}, REPLY], [ASK, {"role": "assistant", "tool_calls": [{}]}],
        [{"role": ["user"], "content": "a"}], [{"role": "user", "content": [{"type": "image"}]}, REPLY],
        [{"role": "user", "content": [{"type": "text"}]}, REPLY])),
    *(json.dumps(chat(content)).encode() for content in (
        "<think>x", "<think>a</think>", "<answer>1", "<think>x</think> try <answer>1</answer>. No: <answer>2</answer>",
        "<think>a<think>b</think>c</think>5", "<think>a</think><answer>3</answer> Hope this helps!"))]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_a_bad_line_is_named_with_file_and_line(tmp_path, line):
    """A silently skipped row is lost data, and a traceback does not say which of a million rows is bad."""
    path, report = tmp_path / "rows.jsonl", {}
    path.write_bytes(b"\n".join([GOOD, b"", line, GOOD]) + b"\n")
    with pytest.raises(UserError, match="rows.jsonl:3: ") as error:
        list(read_documents(path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    assert "object has no" not in str(error.value) and "not iterable" not in str(error.value)
    assert list(read_documents(path, True, report)) == [(f"{path}:1", "fine"), (f"{path}:4", "fine")]
    [(reason, entry)] = report.items()
    assert entry == [1, [f"{path}:3"]] and reason in str(error.value)


def test_skipped_lines_are_counted_by_reason(tmp_path):
    """The report must say how many lines were skipped, and where the first three are."""
    path, report = tmp_path / "rows.jsonl", {}
    path.write_bytes(b"\n".join([b"{", GOOD, b"{", b"5", b"{", b"{"]))
    assert len(list(read_documents(path, True, report))) == 1
    assert sorted(report.values()) == [[1, [f"{path}:4"]], [4, [f"{path}:{i}" for i in (1, 3, 5)]]]


@pytest.mark.parametrize("data, cure", [
    (b"\x1f\x8b\x08rest", "gunzip"), (b"PAR1rest", "JSONL"), (b"PK\x03\x04rest", "checkpoint"), (b"", "empty"),
    ("text".encode("utf-16"), "iconv -f UTF-16"), (b"\xfe\xff\x00a", "iconv -f UTF-16"),
    ('{"text": "a"}'.encode("utf-16-le"), "iconv -f UTF-16"), (b'{"text": "caf\xe9"}', "iconv -f latin1"),
    (b' [\n{"text": "a"},\n{"text": "b"}]', "jq -c '.\\[\\]'"), (b"question,answer\na,b", "CSV")])
def test_a_file_of_another_kind_is_refused_as_a_whole_with_its_cure(tmp_path, data, cure):
    """FAULTS 14: with --skip-bad-lines every line would be skipped, and the run would go on without data."""
    readers = [lambda path: read_documents(path, True)] + [lambda path: train_texts(str(path))] * ("iconv" in cure or cure == "CSV")
    for name, read in itertools.product(("rows.jsonl", "book.txt")[:1 if cure[:2] in ("jq", "CS") else 2], readers):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name}.*{cure}") as error:
            list(read(tmp_path / name))
        assert "--skip-bad-lines" not in str(error.value) and ("UTF-16" in str(error.value)) == ("UTF-16" in cure)


def test_only_a_newline_ends_a_line(tmp_path):
    """A byte order mark must not make the first line bad, nor CR LF every line. NUL, U+2028 and U+0085 are text."""
    path, text = tmp_path / "rows.jsonl", "a\0b\u2028c\u0085d\u2581"
    row = json.dumps({"text": text}, ensure_ascii=False).encode()
    path.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n" + row + b"\r\n")
    assert list(read_documents(path)) == [(f"{path}:1", text), (f"{path}:3", text)]


def test_a_text_file_is_one_document_cut_at_line_ends(tmp_path, monkeypatch):
    """A cut inside a line, or lost blank lines, would change the text."""
    path, text = tmp_path / "book.txt", "".join(f"line {i}\n\n" for i in range(500)) + "end"
    for end in ("\r\n\r\n", "\r\r", "\r\n\n"):  # FAULTS 22: no \r is learned, the old line end of the Mac is one
        path.write_bytes(text.replace("\n\n", end).encode())
        assert list(read_documents(path)) == [(f"{path}:1", text)]
    monkeypatch.setattr(formats, "CHUNK", 1000)
    parts = list(read_documents(path))
    assert len(parts) > 5 and "".join(part for _, part in parts) == text
    assert all(part.endswith("\n") for _, part in parts[:-1])
    assert all(text.splitlines()[int(place.split(":")[1]) - 1] == part.splitlines()[0] for place, part in parts)


def test_a_folder_is_its_files_in_the_order_of_names(tmp_path):
    """A folder of JSONL files was refused. An error must name the file of the folder and its line."""
    for name, lines in (("b.jsonl", [GOOD, b"{"]), ("a.jsonl", [GOOD, b"", GOOD]), (".c.jsonl", [b"{"]), ("d.md", [b"{"])):
        (tmp_path / name).write_bytes(b"\n".join(lines))
    before = sha256_file(tmp_path)
    with pytest.raises(UserError, match="/b.jsonl:2: "):
        list(read_documents(tmp_path))
    (tmp_path / "b.jsonl").write_bytes(GOOD)
    assert sha256_file(tmp_path) != before
    assert [place.split("/")[-1] for place, _ in read_documents(tmp_path)] == ["a.jsonl:1", "a.jsonl:3", "b.jsonl:1"]


def test_what_is_not_read_of_a_row_is_counted_by_name():
    """FAULTS 3: the list of tools, or the worse answer of a pair, was dropped in silence."""
    report, own, row = {}, {}, dict(chat("5"), tools=[{"name": "add"}], rejected="6", cot="z", images=[], source="y")
    row["conversations"] += [dict(role="user", content="3+3?", audio="a"), dict(role="tool", content="6")]
    assert [parse_row(row, report=report)[-1].content for _ in range(2)] == ["5", "5"]
    assert {reason: count for reason, (count, _) in report.items()} == {
        "conversations cut at a turn that uses tools": 2, **{f"ignored key {key}": 2 for key in ("audio", "cot", "rejected", "tools")}}
    names = ("skeleton", "numbers", "ops", "lang", "suite", "reference", *KEPT_KEYS)
    assert parse_row(dict.fromkeys(names, "x") | chat("5"), report=own) and not own


MANY = [Turn("system", "hello"), Turn("user", "how many"), assistant(content="two"),
        Turn("user", "plus three"), assistant("two plus three is five", "5")]


def learned(tokenizer, document, **options):
    """The spans that count in the loss, as a list of texts; control tokens are shown by name."""
    ids, mask = encode_document(tokenizer, document, **options)
    assert len(ids) == len(mask) and set(mask) <= {0, 1}
    spans = [list(span) for m, span in itertools.groupby(zip(ids, mask), key=lambda pair: pair[1]) if m]
    return [tokenizer.decode([token for token, _ in span], show_control=True) for span in spans]


def test_a_conversation_is_rendered_with_one_mark_a_turn_and_its_texts_have_none(tiny_tokenizer):
    """Training and generation must see the same template. filter.py counts and compares the texts."""
    ids, _ = encode_document(tiny_tokenizer, MANY)
    assert tiny_tokenizer.decode(ids, show_control=True) == (
        "<system>hello<end><user>how many<end><assistant>two<end><user>plus three<end>"
        "<assistant><think>two plus three is five</think><answer>5</answer><end>")
    assert set(tiny_tokenizer.tag_ids) <= set(ids)  # TRAPS 24: each tag is one id
    assert texts(MANY) == ["hello", "how many", "two", "plus three", "two plus three is five", "5"]


def test_the_learned_span_runs_from_the_first_response_token_to_the_end(tiny_tokenizer):
    """TRAPS 9, 25: a mask off by one leaves a first token or <end> untrained. FAULTS 3: weight 0 was ignored."""
    assert learned(tiny_tokenizer, MANY) == ["two<end>", "<think>two plus three is five</think><answer>5</answer><end>"]
    assert learned(tiny_tokenizer, MANY, target="answer") == ["two<end>", "<answer>5</answer><end>"]
    assert tiny_tokenizer.think[0] not in encode_document(tiny_tokenizer, MANY, target="answer")[0]
    assert learned(tiny_tokenizer, parse_row(dict(messages=[ASK, REPLY], weight=0))) == []
    turns = [ASK, dict(REPLY, weight=0), ASK, dict(REPLY, content="five", weight=1)]
    assert learned(tiny_tokenizer, parse_row(dict(messages=turns))) == ["five<end>"]


def test_text_ends_with_end_and_is_learned_whole(tiny_tokenizer):
    """Without <end> between them, documents run into each other."""
    ids, mask = encode_document(tiny_tokenizer, "hello <end>")
    assert ids == tiny_tokenizer.encode("hello <end>") + [tiny_tokenizer.end]
    assert ids.count(tiny_tokenizer.end) == 1 and mask == [1] * len(ids)


def test_prompt_and_response_make_the_document(tiny_tokenizer):
    """A prompt, or a response that is begun for the model, that differs by one token silently costs accuracy."""
    for target, tags in (("cot", 1), ("answer", 1), ("full", 0)):
        ids, mask = encode_document(tiny_tokenizer, MANY, target)
        prompt, begun = prompt_ids(tiny_tokenizer, MANY, target), opening(tiny_tokenizer, target)
        assert prompt + begun == ids[:len(prompt) + tags] and prompt[-1:] == tiny_tokenizer.assistant
        assert all(mask[len(prompt):]) and not mask[len(prompt) - 1]
        assert prompt_ids(tiny_tokenizer, MANY[:-1], target) == prompt  # without the reply


def test_a_response_is_parsed_back(tiny_tokenizer):
    """A parser of text instead of ids would accept a tag that the model only spelled in letters."""
    ids, _ = encode_document(tiny_tokenizer, MANY)
    response = ids[len(prompt_ids(tiny_tokenizer, MANY)):]
    found = parse_response(tiny_tokenizer, response + [*tiny_tokenizer.answer, 300])  # ignored after <end>
    assert found == {"think": "two plus three is five", "answer": "5", "ended": True,
                     "text": "two plus three is five5", "well_formed": True}
    assert not parse_response(tiny_tokenizer, response[:-1])["ended"]
    assert parse_response(tiny_tokenizer, [])["answer"] is None
    spelled = parse_response(tiny_tokenizer, tiny_tokenizer.encode("<answer>5</answer>") + [tiny_tokenizer.end])
    assert (spelled["answer"], spelled["text"], spelled["well_formed"]) == (None, "<answer>5</answer>", False)


def test_well_formed_means_exactly_the_format(tiny_tokenizer):
    """A check that is not exact would accept two answers, or text between the tags."""
    marks = {name: i for i, name in enumerate(CONTROL)}

    def well_formed(text, target="cot"):
        ids = [marks[w] if w in marks else tiny_tokenizer.encode(w)[0] for w in text.split()]
        return parse_response(tiny_tokenizer, ids, target)["well_formed"]
    cot = "<think> a </think> <answer> 5 </answer> <end>"
    assert well_formed(cot) and well_formed(cot + " junk <pad>")
    assert well_formed("<answer> 5 </answer> <end>", "answer")
    assert not well_formed(cot, "answer")
    for bad in ("", "<end>", "5 <end>", "<think> a </think> <answer> 5 </answer>", "x " + cot,
                "<think> a </think> x <answer> 5 </answer> <end>", "<answer> 5 </answer> <end>",
                "<think> a </think> <answer> 5 </answer> x <end>", "<answer> 5 </answer> <think> a </think> <end>",
                "<think> a <think> b </think> <answer> 5 </answer> <end>",
                "<think> a </think> <answer> 5 </answer> <answer> 6 </answer> <end>",
                "<think> a </think> <answer> <pad> 5 </answer> <end>"):
        assert not well_formed(bad), bad
