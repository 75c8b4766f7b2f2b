"""Claims about the tokenizer of an imported model: it is transformers', except that text stays text."""
import functools
import json
import pickle
import random
import unicodedata
from types import SimpleNamespace

import pytest
import torch

tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
pytest.importorskip("jinja2")

import checkpoints
import serve
from common import UserError
from conftest import write_checkpoint
from dataset.formats import Turn, encode_document
from dataset.verify import parse_response, prompt_ids
from dataset.windows import open_data, step_batches
from decoding import generate, opening
from tokenizer import load_bytes
from tokenizer.real import QWEN2, from_folder, from_gguf

START, END = "<|im_start|>", "<|im_end|>"
CHATML = ("{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n"
          "{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
LLAMA3 = ("{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'"
          " + m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
          "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}")
# Qwen3 writes a thought in the last reply, even an empty one; minimind (ALL) in every reply.
QWEN3 = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and (ALL or loop.last) %}"
         "{{ '<think>\n' + (m.reasoning_content or '').strip('\n') + '\n</think>\n\n' }}{% endif %}"
         "{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
         "{{ '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if ALL else '') }}{% endif %}")
TEMPLATES = dict(chatml=CHATML, llama3=LLAMA3, qwen3=QWEN3.replace("ALL", "false"),
                 minimind=QWEN3.replace("ALL", "true"))
PRE = dict(chatml="gpt-2", llama3="llama-bpe", qwen3="qwen2", minimind="qwen2")  # their names in a GGUF
THINKS = ("qwen3", "minimind")
LLAMA_MARKS = ["<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"]
TEXT = ["def f(x):\n    return x ** 2  # 12345\n\n\n", "Mia has 3 pears. She'll buy 4 more, won't she?\r\n",
        "user assistant system thin answer im_start </answer>", "中文，数字 １２３ émigré Straße 🙂👩‍👩‍👧",
        "  two  spaces\tand\u00a0tabs \u3000", "I'M HERE ... !!! --- ((x)) {a: [1, 2]}"]
TALKS = [[("user", "How many?")], [("system", "Be short."), ("user", "Hi 12"), ("assistant", "Hello.")],
         [("user", " a b "), ("assistant", "c\n\nd."), ("user", "e"), ("assistant", "**f** 3")]]


def random_texts(names):
    rng = random.Random(3)
    kinds = [lambda: rng.choice(TEXT)[rng.randrange(30):][:rng.randint(1, 30)], lambda: rng.choice(names),
             lambda: " " * rng.randint(1, 6), lambda: rng.choice(["\n", "\n\n", "\r\n", "\t", "it's", "WE'RE", "x_1=y**2;"]),
             lambda: str(rng.randint(-10**6, 10**6)), lambda: chr(rng.choice([rng.randrange(32, 0x500), 0x1F600, 0x2581])),
             lambda: rng.choice(["<|", "|>", "</", "e\u0301"])]
    return ["".join(rng.choice(kinds)() for _ in range(rng.randint(0, 12))) for _ in range(300)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """For each template a folder, its tokenizer in transformers (theirs) and here (ours)."""
    found, parts = {}, tokenizers.pre_tokenizers
    for name, template in TEMPLATES.items():
        made, marks = tokenizers.Tokenizer(tokenizers.models.BPE()), [END, START, "<|endoftext|>"]
        split = tokenizers.Regex(QWEN2.replace("{N}|", "{N}{1,3}|") if name == "llama3" else QWEN2)
        made.pre_tokenizer = parts.ByteLevel(add_prefix_space=False) if name == "chatml" else parts.Sequence(
            [parts.Split(split, "isolated"), parts.ByteLevel(add_prefix_space=False, use_regex=False)])
        made.decoder, marks = tokenizers.decoders.ByteLevel(), LLAMA_MARKS if name == "llama3" else marks
        made.train_from_iterator(TEXT * 3, tokenizers.trainers.BpeTrainer(
            vocab_size=420, special_tokens=marks if name == "chatml" else [], show_progress=False,
            initial_alphabet=parts.ByteLevel.alphabet()))
        made.add_special_tokens(marks)
        if name in THINKS:
            made.normalizer = tokenizers.normalizers.NFC()
            made.add_tokens(["<think>", "</think>"])
        theirs = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=marks[0], pad_token=marks[0], bos_token=marks[1])
        theirs.chat_template = template
        theirs.save_pretrained(folder := tmp_path_factory.mktemp(name))
        found[name] = SimpleNamespace(path=folder, theirs=theirs, ours=from_folder(folder, 448))
    return found


def header(one, name):
    """The tokenizer of a folder as the header of a GGUF."""
    data = json.loads((one.path / "tokenizer.json").read_text("utf-8"))
    kinds = {token["id"]: 3 if token["special"] else 4 for token in data["added_tokens"]}
    pieces = sorted(one.theirs.get_vocab(), key=one.theirs.get_vocab().get)
    own = dict(model="gpt2", pre=PRE[name], tokens=pieces, token_type=[kinds.get(i, 1) for i in range(len(pieces))],
               merges=list(map(" ".join, data["model"]["merges"])), bos_token_id=one.theirs.bos_token_id)
    return {f"tokenizer.ggml.{k}": v for k, v in own.items()} | {"tokenizer.chat_template": TEMPLATES[name]}


def as_document(talk, thought=None):
    """A talk -> its turns here, and its messages for transformers."""
    turns, messages = [Turn(*one) for one in talk], [dict(role=role, content=text) for role, text in talk]
    if thought:
        turns[-1].think = messages[-1]["reasoning_content"] = thought
    return turns, messages


def control_texts(tokenizer):
    return [tokenizer.decode([i], show_control=True) for i in sorted(tokenizer.control_ids)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers_and_text_comes_back(folders, name):
    """With another pattern or normalizer, the teacher would read tokens that it never learned."""
    ours, theirs, gguf = folders[name].ours, folders[name].theirs, from_gguf(header(folders[name], name), 448)
    # transformers does not split <think>, which is no special token there
    for text in random_texts([text for text in control_texts(ours) if "think" not in text]):
        ids, normal = ours.encode(text), unicodedata.normalize("NFC", text) if name in THINKS else text
        assert ids == theirs(text, split_special_tokens=True, add_special_tokens=False).input_ids == gguf.encode(text)
        assert ours.decode(ids) == normal and b"".join(ours.raw[i] for i in ids) == normal.encode()
    assert not ours.control_ids & {*ours.encode(" ".join(control_texts(ours)))}
    again = pickle.loads(pickle.dumps(ours))  # as sent to a process that cuts windows
    assert again.fingerprint == ours.fingerprint and again.encode(TEXT[0]) == ours.encode(TEXT[0])
    with pytest.raises(UserError, match="surrogate"):
        ours.encode("a \ud800")


def test_smollm2_from_its_gguf_has_the_ids_of_transformers(smollm2):
    """The header of a GGUF only names the pattern. A wrong one gives other ids, and no error."""
    fields = pytest.importorskip("gguf").GGUFReader(smollm2).fields
    ours = from_gguf({name: field.contents() for name, field in fields.items()}, 49152)
    parts = tokenizers.pre_tokenizers
    library = tokenizers.Tokenizer.from_str(json.dumps(json.loads(ours.model_bytes)["tokenizer"]))
    library.pre_tokenizer = parts.Sequence([parts.Digits(True), parts.ByteLevel(add_prefix_space=False)])  # as in its folder
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    for text in random_texts(control_texts(ours)):
        ids = ours.encode(text)
        assert ids == theirs(text, split_special_tokens=True).input_ids and ours.decode(ids) == text
    theirs.chat_template = ours.template
    for turns, messages in map(as_document, TALKS):
        assert encode_document(ours, turns)[0] == theirs.apply_chat_template(messages).input_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_what_apply_chat_template_writes(folders, name):
    """A forgotten line break, bos, default system turn or empty thought changes what the teacher would say."""
    ours, theirs = folders[name].ours, folders[name].theirs
    with_thought = [as_document(TALKS[1], "Hm.\n\nSo.")] if name in THINKS else []
    for turns, messages in [*map(as_document, TALKS), *with_thought]:
        ids, mask = encode_document(ours, turns)
        assert ids == theirs.apply_chat_template(messages).input_ids
        assert ours.decode(ids, show_control=True) == theirs.apply_chat_template(messages, tokenize=False)
        learned = ours.decode([i for i, m in zip(ids, mask) if m], show_control=True)
        assert len(turns) == 1 or learned.endswith(turns[-1].content + ours.decode([ours.end], show_control=True))
        asked = theirs.apply_chat_template(messages[:1], add_generation_prompt=True).input_ids
        mine = prompt_ids(ours, turns[:1])
        assert mine == asked[:len(mine)] and not ours.decode(asked[len(mine):]).strip()  # minimind: an empty thought


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_read_back_and_streamed(folders, name):
    """If a spelled tag is not found in a reply, every answer of an imported student counts as wrong. If half of it
    is sent as text, or what a user typed ends a turn, the thought is trained as an answer."""
    t, told = folders[name].ours, [Turn("user", "1+1?"), Turn("assistant", "", "One. <|im_end|> </th", "2 <b> 🙂")]
    for target, think in (("cot", told[1].think), ("answer", None)):
        ids, mask = encode_document(t, told, target)
        prompt, end = prompt_ids(t, told, target), len(ids) - len(t.closing)
        assert ids[:len(prompt)] == prompt and mask == [0] * len(prompt) + [1] * (end - len(prompt)) + [0] * len(t.closing)
        reply = ids[len(prompt):]
        assert reply[:len(opening(t, target))] == opening(t, target) and reply.count(t.end) == 1
        found = parse_response(t, reply, target)
        assert (found["think"], found["answer"], found["ended"], found["well_formed"]) == (think, "2 <b> 🙂", True, True)
        assert not parse_response(t, reply[:reply.index(t.end)], target)["well_formed"]
        assert not parse_response(t, reply, {"cot": "answer", "answer": "cot"}[target])["well_formed"]
        said, answer = dict(content="", reasoning_content=""), serve.Answer()
        for token in reply[:end - len(prompt)]:
            key = answer.key
            said[key] += answer.add(token, t, [])
        assert said == dict(content="<answer>2 <b> 🙂</answer>", reasoning_content=think + t.gaps[1] if think else "")
    plain = encode_document(t, [told[0], Turn("assistant", "Two.")])[0][len(prompt_ids(t, told[:1])):]
    found = parse_response(t, plain, "full")
    assert (found["text"].strip(), found["well_formed"], found["think"]) == ("Two.", True, None)


@pytest.mark.parametrize("change", [
    ("+ '<|im_end|>", "+ '<|im_end|>' * (m.role == 'assistant') + '"), ("m.content", "m.text"),
    ("+ m.role +", "+ m.role * loop.length +"), ("{% for", "{% fro"), (CHATML, "")])
def test_a_template_that_is_not_understood_is_refused_until_marks_are_given(folders, tmp_path, change):
    """Rendered almost right, every conversation would be a little foreign to the teacher, without an error."""
    for file in folders["chatml"].path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text(CHATML.replace(*change), encoding="utf-8")
    with pytest.raises(UserError, match="--openings"):
        from_folder(tmp_path, 448)
    marks = "".join(f"<|im_start|>{role}\\n," for role in ("system", "user", "assistant"))
    by_hand, (turns, messages) = from_folder(tmp_path, 448, marks + "<|im_end|>\\n"), as_document(TALKS[1])
    write = functools.partial(folders["chatml"].theirs.apply_chat_template, messages, tokenize=False)
    assert write(chat_template=by_hand.template) == write()  # what an exported student carries
    assert encode_document(by_hand, turns) == encode_document(folders["chatml"].ours, turns) and by_hand.start == []
    with pytest.raises(UserError, match="--openings"):
        from_folder(tmp_path, 448, marks + "end")  # no control token


def test_what_is_no_byte_level_bpe_or_does_not_fit_is_refused(folders):
    """It would be read, and its ids or texts would be wrong."""
    for key, value in (("ggml.pre", "tekken"), ("ggml.model", "llama"), ("chat_template", "{{ 1 }}")):
        with pytest.raises(UserError, match="tekken|llama|not understood"):
            from_gguf(header(folders["chatml"], "chatml") | {f"tokenizer.{key}": value}, 448)
    with pytest.raises(UserError, match="420 tokens.* 419"):
        from_folder(folders["chatml"].path, 419)
    about = json.loads(folders["chatml"].ours.model_bytes)
    space = dict(type="Metaspace", replacement="\u2581", prepend_scheme="always", split=True)
    for wrong in (dict(normalizer=dict(type="Lowercase")), dict(pre_tokenizer=space), dict(model=3)):
        with pytest.raises(UserError, match="byte-level|not a tokenizer"):
            load_bytes(json.dumps(about | dict(tokenizer=about["tokenizer"] | wrong)).encode())


def test_the_end_is_learned_and_padding_is_not_although_both_are_one_id(folders, tmp_path, out_dir):
    """TRAPS 31: a mask that goes by the id of the padding hides the end of every answer: replies never stop."""
    t, path = folders["chatml"].ours, tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(dict(question=f"{i}?", answer="yes " * i)) for i in range(1, 9)), encoding="utf-8")
    data, env = open_data(path, t, 120, "full"), SimpleNamespace(rank=0, world=1, device="cpu")
    cfg = SimpleNamespace(batch=len(data["ids"]), seed=0, accumulate=1)
    [(x, y, document, weight, _)], n_valid, _ = step_batches(data, 0, cfg, env)
    assert t.pad == t.end and (y == t.end).sum() > 24  # 8 each of the system, a user, the assistant; padding
    assert (weight > 0)[y == t.end].sum() == 8 and not weight[:, :-1][document[:, 1:] == 0].any()
    assert n_valid == sum(len(t.encode(("yes " * i).strip())) + 1 for i in range(1, 9))


checkpoint = functools.partial(write_checkpoint, max_seq_len=700)


def test_padded_ids_are_never_sampled(folders, tmp_path):
    """TRAPS 32: a vocabulary is padded to a round size. A row beyond the tokenizer has no text."""
    t = folders["qwen3"].ours
    model = checkpoints.load_model(checkpoint(tmp_path / "a.pt", t))[0]
    assert model.n_tokens == t.n_tokens < t.vocab_size == model.config.vocab_size
    model.lm_head.weight[t.n_tokens:] = 9 * model.lm_head.weight[:1]
    for prompts in ([[5, 6, 7]], [[5, 6, 7], [8, 9]]):
        for how in (dict(temperature=0), dict(temperature=2, generator=torch.Generator().manual_seed(0))):
            assert max(map(max, generate(model, prompts, 40, **how))) < t.n_tokens


def test_equal_width_is_not_the_same_tokenizer(folders, train, tmp_path):
    """TRAPS 32: of two models with one width, a token of one may mean another text in the other."""
    one, *others = [checkpoint(tmp_path / f"{name}.pt", folders[name].ours) for name in ("qwen3", "minimind", "llama3")]
    assert all("another tokenizer" in train("distill_logits", 2, teacher=one, init=other) for other in others)


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_every_script_works_with_an_imported_model(folders, name, train, call, tiny_world, out_dir, tmp_path):
    """A single id in place of a list of ids, in any script, would end in a traceback."""
    path, common = checkpoint(tmp_path / "real.pt", folders[name].ours), dict(steps=1, window=600, batch=2)
    for script in ("pretrain", "distill_responses", "distill_reason"):
        train(script, init=path, name=script, **common)
    assert "--tag-weight" in train("distill_reason", 2, init=path, tag_weight=2, **common)
    for script, blocks in (("distill_logits", None), ("distill_onpolicy", 1), ("distill_features", None)):
        state = train(script, teacher=path, name=script, init_from_teacher=blocks, **common)
        assert state["tokenizer"].numpy().tobytes() == folders[name].ours.model_bytes
    flags = f"--data={tiny_world.val}", "--no-speed", "--questions=2", "--max-new-tokens=4"
    assert call("eval", path, tiny_world.teacher, f"--out={out_dir}/report", *flags).status == 0  # two tokenizers
    results = json.loads((out_dir / "report.json").read_text())["results"]
    assert all(r["bits_per_byte"] > 1 for r in results) and "kl" not in results[1]
    done = call("chat", path, "--prompt=Hi", "--max-new-tokens=3", "--top=2")
    assert done.status == 0 and done.out.count("<-") == 3
    done = call("blackbox.generate", f"--teacher={path}", f"--input={tiny_world.val}", "--samples=1",
                f"--out={out_dir}/kept.jsonl", "--max-new-tokens=4", "--questions=2")
    assert "truncated 2" in done.out and not done.err.count("Traceback")  # it has learned nothing
