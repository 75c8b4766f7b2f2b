"""A student goes out: as a Hugging Face folder (transformers, vLLM) or as a GGUF file (llama.cpp).

    write_hf(checkpoints.load("out/student.pt"), "student")
    write_gguf(checkpoints.load("out/student.pt"), "student.gguf")

convert.py is the command line. Norms on q and k make a Qwen3, biases a Qwen2, else it is a Llama.
The chat template renders plain replies, and answers with thoughts, as formats.encode_document does.
answer_tags=False leaves <answer> and </answer> out. An imported tokenizer goes out as it came.
"""
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from checkpoints import PATHS, parent
from common import atomic_write, check, show
from model import ModelConfig, rope_frequencies
from tokenizer import CONTROL, META_SPACE, load_bytes

FIELDS = [  # the same facts in model.py, in a config.json and in a GGUF
    ("vocab_size", "vocab_size", "vocab_size"), ("dim", "hidden_size", "embedding_length"),
    ("n_layers", "num_hidden_layers", "block_count"),
    ("n_heads", "num_attention_heads", "attention.head_count"),
    ("n_kv_heads", "num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "head_dim", "attention.key_length"),
    ("head_dim", "head_dim", "attention.value_length"),
    ("head_dim", "head_dim", "rope.dimension_count"),
    ("ffn_dim", "intermediate_size", "feed_forward_length"),
    ("max_seq_len", "max_position_embeddings", "context_length"),
    ("rope_theta", "rope_theta", "rope.freq_base"),
    ("norm_eps", "rms_norm_eps", "attention.layer_norm_rms_epsilon")]
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
SHOWN = ("<think>", "</think>")  # other clients look for these; they hide the other marks
TEMPLATE = """{%- for message in messages -%}
{{- "<" + message.role + ">" -}}
{%- if message.role == "assistant" and message.reasoning_content -%}
{{- "<think>" + message.reasoning_content | trim + "</think>" -}}
{{- "<answer>" + message.content | trim + "</answer>" -}}
{%- else -%}{{- message.content -}}{%- endif -%}
{{- "<end>" -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<assistant>" -}}{%- endif -%}"""
CARD = """---
{licence}library_name: transformers
---
# {name}

A language model, made with minidistill. The table is from its checkpoint. `best_ce` is in nats a
token. If no licence is named, look at the licences of its parents and its data.

| | |
|---|---|
{rows}

**Spelled marks become control tokens.** In minidistill a mark that somebody types stays text.
transformers, llama.cpp and others read it as the mark itself. So remove these marks from the text
of people whom you do not trust: `{marks}`
"""


def parts(state, answer_tags):
    """A checkpoint's dict -> ModelConfig, family, {Hugging Face's name: float32 tensor}, tokenizer,
    chat template, special ids. A tied head is left out."""
    c = ModelConfig(**state["model_config"])
    check(not c.n_experts, "a model with routed experts is only a teacher; it is not exported")
    weights = {name if name == "lm_head.weight" else f"model.{name}": tensor.float().contiguous()
               for name, tensor in (state.get("best") or state["model"]).items()
               if not (c.tie_embeddings and name == "lm_head.weight")}
    tokenizer = load_bytes(state["tokenizer"].numpy().tobytes())
    own = TEMPLATE if answer_tags else re.sub("</?answer>", "", TEMPLATE)
    template = getattr(tokenizer, "template", own)
    bos = tokenizer.start[0] if tokenizer.start and "bos_token" in template else None
    arch = "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else "llama"
    return c, arch, weights, tokenizer, template, dict(
        bos_token_id=bos, eos_token_id=tokenizer.end, pad_token_id=tokenizer.pad)


def in_library(tokenizer):
    """Our tokenizer -> one of the library `tokenizers`. SentencePiece joins the pair whose piece
    has the lowest id. So each way to cut a piece in two is a merge, in the order of ids. Spaces are
    real spaces: then U+2581 in a text is not a piece but three bytes, as in our tokenizer."""
    import tokenizers
    if hasattr(tokenizer, "template"):  # it goes out as it came
        content = json.loads(tokenizer.model_bytes)["tokenizer"]
        return tokenizers.Tokenizer.from_str(json.dumps(content))
    model = tokenizer.library
    vocab = {model.id_to_piece(i).replace(META_SPACE, " "): i for i in range(tokenizer.vocab_size)}
    plain = {piece for piece, i in vocab.items() if i >= len(CONTROL) and not model.is_byte(i)}
    merges = [(piece[:cut], piece[cut:]) for piece in vocab for cut in range(1, len(piece))
              if {piece, piece[:cut], piece[cut:]} <= plain]
    library = tokenizers.Tokenizer(tokenizers.models.BPE(
        vocab, merges, unk_token="<unk>", byte_fallback=True))
    library.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    library.add_tokens([tokenizers.AddedToken(mark, special=mark not in SHOWN, normalized=False)
                        for mark in CONTROL])
    return library


def hf_config(c, arch, ids):
    """The content of config.json. RoPE is there twice, because old versions read other fields."""
    rope = dict(zip(LLAMA3, c.rope_scaling), rope_type="llama3" if c.rope_scaling else "default")
    return {name: getattr(c, own) for own, name, _ in FIELDS} | dict(
        architectures=[f"{arch.capitalize()}ForCausalLM"], model_type=arch, torch_dtype="float32",
        hidden_act="silu", tie_word_embeddings=c.tie_embeddings,
        rope_scaling=rope if c.rope_scaling else None,
        rope_parameters=rope | dict(rope_theta=c.rope_theta), **ids)


def model_card(state, name, marks):
    """The README.md of a folder. marks: the control tokens, as text."""
    rows, source = {}, parent(state).get("source", {})
    for part in ("run_config", "inputs", "versions"):
        rows |= state.get(part, {})
    rows |= {key: state.get(key) for key in ("best_ce", "best_step", "tokens", "train_seconds")}
    rows |= {f"source, {key}": value for key, value in source.items()} | dict(source=None)
    rows = {key: Path(value).name if key in PATHS and type(value) is str else value
            for key, value in rows.items() if value not in ("", None)}
    licence = source.get("licence")
    return CARD.format(name=name, licence=f"license: {licence}\n" if licence else "", marks=marks,
                       rows="\n".join(f"| {key} | {value} |" for key, value in rows.items()))


def write_hf(state, folder, answer_tags=True):
    """Write a folder for transformers as .NAME.tmp; at the end it replaces an older model."""
    from safetensors.torch import save_file
    target = Path(folder).absolute()
    folder = target.with_name(f".{target.name}.tmp")
    c, arch, weights, tokenizer, template, ids = parts(state, answer_tags)
    check(not target.exists() or (target / "config.json").exists(), f"{show(target)} is no export")
    generation = ids | dict(eos_token_id=sorted(tokenizer.stop_ids), do_sample=False,
                            suppress_tokens=[*range(tokenizer.n_tokens, c.vocab_size)] or None)
    settings = {key.removesuffix("_id"): tokenizer.decode([i], show_control=True)
                for key, i in ids.items() if i is not None} | dict(
        tokenizer_class="PreTrainedTokenizerFast", clean_up_tokenization_spaces=False,
        model_max_length=c.max_seq_len, chat_template=template)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, value in dict(config=hf_config(c, arch, ids), generation_config=generation,
                            tokenizer_config=settings).items():
        (folder / f"{name}.json").write_text(json.dumps(value, indent=1), encoding="utf-8")
    in_library(tokenizer).save(str(folder / "tokenizer.json"))
    if not hasattr(tokenizer, "template"):
        tokenizer.save(folder / "tokenizer.model")  # for convert.py
    marks = tokenizer.decode(sorted(tokenizer.control_ids), show_control=True)
    (folder / "README.md").write_text(model_card(state, target.name, marks), encoding="utf-8")
    save_file(weights, folder / "model.safetensors", metadata=dict(format="pt"))
    shutil.rmtree(target, ignore_errors=True)
    folder.rename(target)


def sentencepiece_facts(tokenizer, types):
    """Pieces, scores and types. With these llama.cpp joins the same pairs as SentencePiece."""
    model, rows = tokenizer.library, [*range(tokenizer.vocab_size)]
    special = dict.fromkeys(SHOWN, types.USER_DEFINED) | {"<unk>": types.UNKNOWN}
    kinds = [special.get(mark, types.CONTROL) for mark in CONTROL]
    kinds += [types.BYTE if model.is_byte(i) else types.NORMAL for i in rows[len(CONTROL):]]
    return dict(tokenizer_model="llama", tokenizer_pre="default", unk_token_id=tokenizer.unk,
                token_list=model.id_to_piece(rows), token_scores=model.get_score(rows),
                token_types=kinds, add_bos_token=False,
                add_space_prefix=False)  # else every text begins with a space


def byte_level_facts(tokenizer, types):
    """An imported tokenizer. llama.cpp knows by a name how it cuts a text into words."""
    from tokenizer.real import GPT2, PATTERNS
    library, patterns = in_library(tokenizer), []
    content, rows = json.loads(library.to_str()), range(tokenizer.n_tokens)
    for step in content["pre_tokenizer"].get("pretokenizers", [content["pre_tokenizer"]]):
        if step["type"] != "ByteLevel" or step.get("use_regex", True):
            patterns.append(dict(ByteLevel=GPT2, Digits=r"\p{N}").get(step["type"])
                            or step["pattern"]["Regex"])
    pre = [name for name, known in PATTERNS.items() if known == patterns]
    check(pre, "llama.cpp's name of this tokenizer is unknown here; use --to hf and its converter")
    kinds = [types.NORMAL for i in rows]
    for token in content["added_tokens"]:
        kinds[token["id"]] = types.CONTROL if token["special"] else types.USER_DEFINED
    return dict(tokenizer_model="gpt2", tokenizer_pre=pre[0], token_types=kinds,
                token_list=[library.id_to_token(i) for i in rows], add_bos_token=False,
                token_merges=[" ".join(pair) for pair in content["model"]["merges"]])


def gguf_tensors(c, weights, kind, gguf, arch):
    """Yield (name, array, type). Rows beyond the tokenizer are left out: they would be sampled."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.n_layers)
    if c.rope_scaling:  # what each of the C/2 frequencies is divided by
        plain = rope_frequencies(c.head_dim, c.rope_theta)  # (C/2,)
        divisors = plain / rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling)
        yield "rope_freqs.weight", divisors.float().numpy(), gguf.GGMLQuantizationType.F32
    for name, tensor in weights.items():
        if re.search("embed|head", name):
            tensor = tensor[:c.vocab_size]  # (V, D)
        if arch == "llama" and re.search("[qk]_proj", name):  # there RoPE pairs neighbours
            pairs = tensor.view(-1, 2, c.head_dim // 2, c.dim)  # (heads, 2, C/2, D)
            tensor = pairs.transpose(1, 2).reshape(tensor.shape)  # (heads * C, D)
        size = gguf.GGMLQuantizationType["F32" if tensor.dim() == 1 else kind.upper()]
        yield (names.get_name(name, (".weight", ".bias")),
               gguf.quants.quantize(tensor.numpy(), size), size)


def write_gguf(state, path, answer_tags=True, kind="f32"):
    """Write a file for llama.cpp. kind: f32, f16 or q8_0, for matrices."""
    import gguf
    c, arch, weights, tokenizer, template, ids = parts(state, answer_tags)
    c = replace(c, vocab_size=tokenizer.n_tokens)
    facts = dict(name=Path(path).stem, license=parent(state).get("source", {}).get("licence", ""),
                 chat_template=template, eot_token_id=tokenizer.end,
                 **{name: i for name, i in ids.items() if i is not None})
    of_tokenizer = byte_level_facts if hasattr(tokenizer, "template") else sentencepiece_facts
    with atomic_write(path) as file:
        writer = gguf.GGUFWriter(file.name, arch)
        for name, value in (facts | of_tokenizer(tokenizer, gguf.TokenType)).items():
            getattr(writer, f"add_{name}")(value)
        for own, _, name in FIELDS:
            value = getattr(c, own)
            add = writer.add_float32 if type(value) is float else writer.add_uint32
            add(f"{arch}.{name}", value)
        for name, array, size in gguf_tensors(c, weights, kind, gguf, arch):
            writer.add_tensor(name, array, raw_dtype=size)
        if not hasattr(tokenizer, "template"):  # for convert.py, which needs all of it
            writer.add_array("minidistill.tokenizer", tokenizer.model_bytes)
        for part in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{part}_to_file")()
        writer.close()
