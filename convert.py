"""Bring a model in, as a teacher. Send a student out, to transformers, vLLM, llama.cpp or Ollama.

    python convert.py --from SmolLM2-135M-Instruct/ --out out/smollm2.pt    # a Hugging Face folder
    python convert.py --from smollm2.gguf --out out/smollm2.pt              # a file of llama.cpp
    python convert.py --from minimind/out/full_sft_768.pth --out out/minimind.pt
    expected last line: next: python chat.py out/minimind.pt
    python convert.py out/student.pt --to hf --out student/                 # or --to gguf

Many other models would load without an error and compute something else. So a family is read only
if its logits agree with transformers (tests/test_convert.py), and a field of a config that is
not known here is refused by its name. Weights become float32.
"""
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common import UserError, check, check_exists, command, run, show
import torch

import checkpoints
from export import FIELDS, LLAMA3, write_gguf, write_hf
from model import ModelConfig, Transformer, rope_frequencies
from tokenizer import Tokenizer

FAMILIES = "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"
# What a field must be, if a config has it: with any other value, a model computes something else
FIXED = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, rope_interleaved=False,
             partial_rotary_factor=1.0, decoder_sparse_step=1, mlp_only_layers=[], use_mrope=False)
# Other fields that are read below, and fields that change nothing
KNOWN = [name for _, name, _ in FIELDS] + """model_type rope_scaling rope_parameters
    tie_word_embeddings sliding_window use_sliding_window num_experts num_local_experts
    num_experts_per_tok moe_intermediate_size norm_topk_prob router_aux_loss_coef
    output_router_logits architectures torch_dtype dtype transformers_version _name_or_path
    use_cache initializer_range attention_dropout pretraining_tp bos_token_id eos_token_id
    pad_token_id max_window_layers is_llama_config transformers.js_config
    _attn_implementation_autoset unsloth_version unsloth_fixed""".split()


@dataclass
class Config:
    checkpoint: list = None         # the model that goes out, with --to
    from_: str = ""                 # what comes in: a folder, a .gguf, or a .pth of minimind
    to: Literal["hf", "gguf"] = None  # the format of what goes out
    out: str = ""                   # file to write; with --to hf, a folder
    context: int = 0                # cut the context to N tokens (512 to 8,192); 0: as it is
    tokenizer: str = ""             # folder with tokenizer.json; default: its own (.pth: ../model)
    openings: str = ""              # if the template fails: SYSTEM,USER,ASSISTANT,END
    kind: Literal["f32", "f16", "q8_0"] = "f32"  # --to gguf: how its matrices are stored
    answer_tags: bool = True        # --to: keep <answer> in the template of our tokenizer
    fresh: bool = False             # replace an existing file


def rope(config):
    """-> dict for ModelConfig. UserError for a scaling that is not Llama 3's."""
    found = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    kind = found.pop("rope_type", found.pop("type", "default"))
    theta = found.pop("rope_theta", config.get("rope_theta") or 10_000.0)
    check(kind in ("default", "llama3"), f"rope_type {kind}: only llama3 is known")
    names = LLAMA3 if kind == "llama3" else ()
    wrong = found.keys() ^ {*names}
    check(not wrong, f"rope_parameters: {', '.join(sorted(wrong))}: missing or not known here")
    return dict(rope_theta=theta, rope_scaling=tuple(found[name] for name in names))


def model_config(config, weights, context):
    """The content of a config.json -> ModelConfig. UserError with the name of a field that changes
    the computation, or is not known here. context: a smaller one, or 0."""
    family, window = config.get("model_type"), config.get("sliding_window")
    check(family in FAMILIES, f"model_type {family}: only {', '.join(FAMILIES)} come in")
    c = {own: config.get(name) for own, name, _ in FIELDS}
    c |= dict(n_kv_heads=c["n_kv_heads"] or c["n_heads"], **rope(config))
    for own, name, _ in FIELDS:
        check(type(c[own]) in (int, float) and c[own] > 0 or own == "head_dim" and c[own] is None,
              f"{name} {c[own]}: must be a positive number")
    check(c["n_heads"] % c["n_kv_heads"] == 0, "num_key_value_heads must divide the heads")
    fixed = FIXED | dict(layer_types=["full_attention"] * c["n_layers"])
    for name, value in config.items():
        check(value is None or name in (*KNOWN, *fixed), f"{name} {str(value)[:60]}: not known "
              "here; if it does not change what the model computes, take it out of the config")
        check(value in (None, fixed.get(name, value)), f"{name}: it must be {fixed.get(name)!r}")
    whole = c["max_seq_len"]
    check(0 <= context <= whole, f"--context {context}: the model's is {whole}")
    used = window and config.get("use_sliding_window", True)
    check(not used or (context or whole) <= window,
          f"sliding_window {window}: use --context {window} or less")
    c |= dict(norm_eps=float(c["norm_eps"]), rope_theta=float(c["rope_theta"]),
              max_seq_len=context or whole, head_dim=c["head_dim"] or c["dim"] // c["n_heads"],
              qkv_bias=family == "qwen2", qk_norm=family.startswith("qwen3"),
              tie_embeddings=config.get("tie_word_embeddings", "lm_head.weight" not in weights))
    if family == "qwen3_moe":
        c |= dict(n_experts=config.get("num_experts") or config["num_local_experts"],
                  experts_per_token=config["num_experts_per_tok"],
                  norm_topk=config["norm_topk_prob"], ffn_dim=config["moe_intermediate_size"])
    return ModelConfig(**c)


def fit(weights, c, family):
    """-> the weights of a Transformer(c). UserError: missing, left over or of another shape."""
    with torch.device("meta"):  # shapes only
        model = Transformer(c)
    if "token_embd.weight" in weights:
        weights = from_gguf_names(weights, c, family, model.state_dict())
    if c.tie_embeddings and "embed_tokens.weight" in weights:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:  # all that does not fit
        raise UserError(str(error)[:300]) from None
    return model.state_dict()


def read_folder(folder):
    """A Hugging Face folder -> (config: a dict, weights: a dict of tensors, licence: a name, {})"""
    from safetensors.torch import load_file
    weights, files, card = {}, sorted(folder.glob("model*.safetensors")), folder / "README.md"
    check(files, f"{show(folder)} has no model.safetensors")
    try:  # a damaged file can raise almost any error
        config = json.loads((folder / "config.json").read_text("utf-8"))
        for file in files:
            weights |= {name.removeprefix("model."): tensor.float()
                        for name, tensor in load_file(file).items()}
    except Exception as error:
        raise UserError(f"{show(folder)} cannot be read: {error}") from None
    text = card.read_text("utf-8", errors="replace") if card.exists() else ""
    return config, weights, (re.findall(r"(?m)^license: *(\S+)", text) or [""])[0], {}


def read_gguf(path):
    """A GGUF file -> (config, weights, licence, header: a dict). The config has the facts and names
    of a config.json. The names of the weights are still those of GGUF."""
    import gguf
    weights = {}
    try:  # a damaged file can raise almost any error
        reader = gguf.GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items()}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = torch.from_numpy(values.astype("float32"))
    except Exception as error:
        raise UserError(f"{show(path)} cannot be read: {str(error)[-90:]}") from None
    arch = header.get("general.architecture")
    check(arch in ("llama", "qwen2", "qwen3"), f"general.architecture {arch}: not read")
    config = dict(model_type=arch, tie_word_embeddings="output.weight" not in weights)
    known = {f"{arch}.{key}": name for _, name, key in FIELDS}
    for key, value in header.items():
        if key.startswith(f"{arch}."):
            name = known.get(key, key)  # an unknown one keeps its name and is refused later
            check(config.setdefault(name, value) == value, f"{key}: it must be {config[name]}")
    config.setdefault("vocab_size", len(weights["token_embd.weight"]))
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # a float32: 9.99999975e-06
    if (slower := weights.pop("rope_freqs.weight", None)) is not None:  # of Llama 3, (C/2,)
        scaling, C = (slower.max().item(), 1.0, 4.0, 8192), 2 * len(slower)
        theta = config.get("rope_theta", 10_000.0)
        expected = rope_frequencies(C, theta) / rope_frequencies(C, theta, scaling)
        check(torch.allclose(slower.double(), expected, rtol=1e-4),
              "rope_freqs.weight: only Llama 3's scaling with an original context of 8192 is known")
        config["rope_scaling"] = dict(zip(LLAMA3, scaling), rope_type="llama3")
    return config, weights, header.get("general.license", ""), header


def from_gguf_names(weights, c, arch, wanted):
    """The tensors of a GGUF -> the same under the names of model.py, which are `wanted`."""
    import gguf
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], c.n_layers)
    for name in wanted:
        full = name if name == "lm_head.weight" else f"model.{name}"
        found = names.get_name(full, (".weight", ".bias"))
        if found in weights:  # else it is the tied head, or missing
            weights[name] = tensor = weights.pop(found)
            if arch == "llama" and re.search("[qk]_proj", name):
                pairs = tensor.view(-1, c.head_dim // 2, 2, c.dim)  # there RoPE turns neighbours
                weights[name] = pairs.transpose(1, 2).reshape(tensor.shape)  # here i and i + C/2
    return weights


def read_minimind(path):
    """A .pth of minimind -> the same as read_folder. It has only weights. The config comes from
    their shapes and from constants of minimind's code: theta, eps, one expert a token."""
    weights, attention = checkpoints.read(path), "layers.0.self_attn."
    check(f"model.{attention}q_proj.weight" in weights, f"{show(path)} is not of minimind")
    weights = {name.removeprefix("model."): tensor.float() for name, tensor in weights.items()}
    gates = [name for name in weights if re.match(r"layers.0.mlp.*gate_proj", name)]
    norm, D = weights.get(f"{attention}q_norm.weight"), weights["embed_tokens.weight"].shape[1]
    C = D // 8 if norm is None else len(norm)  # an older minimind has no norm
    F = len(weights[gates[0]])
    config = dict(
        model_type="qwen3_moe" if len(gates) > 1 else "llama" if norm is None else "qwen3",
        vocab_size=len(weights["embed_tokens.weight"]), hidden_size=D, head_dim=C,
        num_attention_heads=len(weights[f"{attention}q_proj.weight"]) // C,
        num_key_value_heads=len(weights[f"{attention}k_proj.weight"]) // C,
        num_hidden_layers=len([name for name in weights if name.endswith("q_proj.weight")]),
        intermediate_size=F, moe_intermediate_size=F, num_experts=len(gates), num_experts_per_tok=1,
        norm_topk_prob=True, max_position_embeddings=32768, rope_theta=1e6,
        rms_norm_eps=1e-5 if norm is None else 1e-6, tie_word_embeddings=True)
    return config, weights, "", {}


def load_tokenizer(path, vocab_size, header, cfg):
    """The tokenizer of a model that comes in; vocab_size: rows of its embeddings."""
    from tokenizer import real
    if header and not cfg.tokenizer:
        own = header.get("minidistill.tokenizer")  # of a student from here that comes back
        return Tokenizer(own) if own else real.from_gguf(header, vocab_size, cfg.openings)
    folder = path if path.is_dir() else path.absolute().parent.parent / "model"
    folder = Path(cfg.tokenizer or folder)
    if (folder / "tokenizer.model").exists():  # of a student from here
        return Tokenizer.load(folder / "tokenizer.model")
    return real.from_folder(folder, vocab_size, cfg.openings)


def main(cfg):
    """Send a checkpoint out with --to, or read --from, check it and write it as a checkpoint."""
    words, out, path = cfg.checkpoint or [], Path(cfg.out), Path(cfg.from_)
    check(len(words) == (cfg.to is not None) and bool(cfg.from_) != bool(cfg.to) and cfg.out,
          "use --from PATH --out FILE, or CHECKPOINT --to hf --out FOLDER; see --help")
    of_input = {"context", "tokenizer", "openings"}
    unused = {None: {"kind", "answer_tags"}, "hf": {"kind", *of_input}, "gguf": of_input}[cfg.to]
    check(not unused & cfg.given, f"{', '.join(unused & cfg.given)}: no effect here; see --help")
    check(cfg.fresh or not out.exists(), f"--out {cfg.out} exists; --fresh replaces it")
    if cfg.to:
        state = checkpoints.load(words[0])
        check(cfg.to == "hf" or out.suffix == ".gguf", f"--out {out}: must end in .gguf")
        if cfg.to == "hf":
            write_hf(state, out, cfg.answer_tags)
        else:
            write_gguf(state, out, cfg.answer_tags, cfg.kind)
        return print(f"{show(out)} is written")
    check_exists(path, "give a folder, a .gguf or a .pth")
    kind = "folder" if path.is_dir() else path.suffix
    readers = {"folder": read_folder, ".gguf": read_gguf, ".pth": read_minimind}
    check(kind in readers, f"--from {path}: must be a folder, a .gguf or a .pth of minimind")
    config, weights, licence, header = readers[kind](path)
    c = model_config(config, weights, cfg.context)
    weights = fit(weights, c, config["model_type"])
    tokenizer = load_tokenizer(path, c.vocab_size, header, cfg)
    source = dict(name=path.stem if path.is_file() else path.absolute().name,
                  kind=config["model_type"], licence=licence)
    checkpoints.save(out, dict(
        model=weights, model_config=vars(c), source=source, inputs={}, step=0, tokens=0,
        tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8)))
    print(f"{show(out)}: {config['model_type']}, {c.n_layers} blocks, context {c.max_seq_len:,}, "
          f"{c.vocab_size:,} tokens, licence {licence or 'unknown'}\n"
          f"next: {command('chat.py', out)}")


if __name__ == "__main__":
    run(main, Config)
