"""Claims about export.py: what leaves this project computes and writes the same elsewhere."""
import json
import random
import re
import urllib.request

import pytest
import torch

from dataset.formats import encode_document, parse_row
from decoding import generate
from export import write_gguf, write_hf
from test_llama_server import llama
from test_tokenizer import random_text

transformers, *_ = map(pytest.importorskip, ("transformers", "safetensors", "gguf"))
CASES = [("qwen3", ""), ("llama", ""), ("scaled", ""), ("llama", "smollm"), ("qwen2", "qwen2")]
FAMILIES = dict(qwen3=dict(qk_norm=True), qwen2=dict(qk_norm=False, qkv_bias=True, head_dim=16),
                llama=dict(qk_norm=False, tie_embeddings=False),
                scaled=dict(qk_norm=False, rope_scaling=(8.0, 1.0, 4.0, 32), max_seq_len=256))
SHAPE = dict(dim=64, head_dim=32, ffn_dim=96)  # multiples of 32, for q8_0; head_dim is not D / H


@pytest.fixture
def imported(byte_level):
    """A function: name in llama.cpp -> a byte-level BPE with ChatML. The model has eight rows more."""
    from tokenizers import Regex, pre_tokenizers as pre
    from tokenizer import real

    def make(name):
        cut = pre.Digits(True) if name == "smollm" else pre.Split(Regex(real.QWEN2), "isolated")
        return real.from_folder(byte_level(cut, use_regex=name == "smollm"), 278)
    return make


@pytest.fixture
def exported(tiny_model, tiny_tokenizer, imported):
    """A function: `exported("llama", "smollm")` -> (state, model, tokenizer)."""
    def make(family, name=""):
        tokenizer = imported(name) if name else tiny_tokenizer
        model = tiny_model(vocab_size=tokenizer.vocab_size, **SHAPE | FAMILIES[family])
        model.n_tokens = tokenizer.n_tokens
        return dict(model=model.state_dict(), model_config=vars(model.config),
                    tokenizer=torch.tensor([*tokenizer.model_bytes], dtype=torch.uint8)), model, tokenizer
    return make


@pytest.fixture
def their_tokenizer(tmp_path):
    """A function: state, flags -> the tokenizer that transformers finds in the exported folder."""
    def export(state, **flags):
        write_hf(state, tmp_path / "student", **flags)
        return transformers.AutoTokenizer.from_pretrained(tmp_path / "student")
    return export


@pytest.mark.parametrize("family, name", CASES)
def test_transformers_computes_and_writes_the_same(exported, their_tokenizer, tmp_path, family, name):
    """A wrong field of config.json, such as theta, head_dim or the tied head, changes every logit."""
    state, model, tokenizer = exported(family, name)
    encoder = their_tokenizer(state)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "student").eval()
    ids = torch.randint(10, tokenizer.n_tokens, (4, 60), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() < 1e-4
    for text in ("Mia has 3 pears.", "2 + 3 =", "  a\n\nb"):
        prompt = tokenizer.encode(text)
        assert encoder(text).input_ids == prompt
        written = theirs.generate(torch.tensor([prompt]), max_new_tokens=20)[0].tolist()
        assert written == prompt + generate(model, [prompt], 20, tokenizer.stop_ids)[0]


def test_ids_of_300_strings_are_ours(exported, their_tokenizer):
    """With the usual conversion, strings with U+2581, spaces at the start or several spaces differ."""
    state, _, tokenizer = exported("qwen3")
    theirs, rng = their_tokenizer(state), random.Random(7)
    for text in ["", "\u2581a \u2581", " two  spaces ", *(random_text(rng) for _ in range(300))]:
        text = re.sub("</?think>", "", text)  # SHOWN: always read as marks
        ids = tokenizer.encode(text)
        assert theirs(text, split_special_tokens=True).input_ids == ids
        assert theirs.decode(ids) == text


def test_the_chat_template_renders_what_the_student_was_trained_on(exported, their_tokenizer):
    """A space or a line break beside a mark, and the student sees prompts that it has never seen."""
    state, _, tokenizer = exported("qwen3")
    chat = [dict(role="system", content=" Be short.\n"), dict(role="user", content="2 + 3?"),
            dict(role="assistant", content="5 ", reasoning_content=" 2 and 3\nare 5"),
            dict(role="user", content=""), dict(role="assistant", content="  A<b>\n")]
    theirs = their_tokenizer(state)
    ids, _ = encode_document(tokenizer, parse_row(dict(messages=chat), need_reply=False))
    assert theirs.apply_chat_template(chat, return_dict=False) == ids
    asked = theirs.apply_chat_template(chat[:2], add_generation_prompt=True, return_dict=False)
    assert asked == ids[:len(asked)] and asked[-1:] == tokenizer.assistant
    assert their_tokenizer(state, answer_tags=False).apply_chat_template(chat[2:3], tokenize=False) == \
        "<assistant><think>2 and 3\nare 5</think>5<end>"


def test_the_card_names_parents_data_and_figures_without_paths(exported, tmp_path):
    """A model without licence or parents cannot be used; a path tells about somebody's machine."""
    state = exported("qwen3")[0] | dict(
        best_ce=1.25, source=dict(name="smol", licence="apache-2.0"),
        run_config=dict(teacher="/home/me/big.pt", data="/home/me/a.jsonl", seed=0),
        inputs=dict(teacher_fingerprint="0123456789abcdef", data_sha256="f" * 64))
    write_hf(state, tmp_path / "student")
    card = (tmp_path / "student/README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n") and "/home" not in card
    for row in ("teacher | big.pt", "data | a.jsonl", "best_ce | 1.25", "seed | 0",
                "teacher_fingerprint | 0123456789abcdef", f"data_sha256 | {'f' * 64}"):
        assert f"| {row} |" in card
    assert "</answer>" in card.split("Spelled marks")[1]


def test_nothing_is_replaced_by_mistake(call, tiny_world, tmp_path):
    """--fresh on a wrong path would delete somebody's folder."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "student.gguf").touch()
    for kind, out, *fresh in (("hf", "mine", "--fresh"), ("hf", "mine"), ("gguf", "student.gguf")):
        assert call("convert", tiny_world.teacher, f"--to={kind}", f"--out={tmp_path / out}", *fresh).status == 2
    assert "context" in call("convert", tiny_world.teacher, "--to=hf", f"--out={tmp_path / 'y'}", "--context=9").err
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "out", "student.gguf"}


def post(url, **fields):
    """Send the fields as JSON -> the answer."""
    return json.load(urllib.request.urlopen(urllib.request.Request(
        url, json.dumps(fields).encode(), {"Content-Type": "application/json"})))


@pytest.mark.parametrize("family, name", CASES)
def test_llama_cpp_writes_the_same_and_reads_226_strings_as_we_do(exported, llama, tmp_path, family, name):
    """TRAPS 30, the way out: q and k in the wrong order, and a space or <s> before every text."""
    state, model, tokenizer = exported(family, name)
    write_gguf(state, tmp_path / "student.gguf")
    url, rng = llama(tmp_path / "student.gguf"), random.Random(3)
    for _ in range(226):
        text = re.sub("\u2581|</?think>", "", random_text(rng))  # there U+2581 is a space
        found = post(f"{url}/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
        assert found == tokenizer.encode(text)
    for prompt in map(tokenizer.encode, ("Mia has 3 pears.", "2 + 3 =", "  a b" * 8)):
        found = post(f"{url}/completion", prompt=prompt, temperature=0, n_predict=12, return_tokens=True)
        assert found["tokens"] == generate(model, [prompt], 12, tokenizer.stop_ids)[0]


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_smaller_files_are_read_and_answer_in_the_chat_format(exported, llama, tmp_path, kind):
    """A wrong type of a tensor, or a template that llama.cpp cannot run, stops the whole server."""
    state, _, tokenizer = exported("qwen3")
    write_gguf(state, tmp_path / "student.gguf", kind=kind)
    url, chat = llama(tmp_path / "student.gguf"), [dict(role="user", content="2 + 3?")]
    found = post(f"{url}/v1/chat/completions", temperature=0, max_tokens=1, messages=chat)
    assert found["usage"]["prompt_tokens"] == len(tokenizer.encode("2 + 3?")) + 3
    think = post(f"{url}/tokenize", content="<think>", parse_special=False)["tokens"]
    assert think == tokenizer.think  # not a control token for llama.cpp, so clients see the thought
