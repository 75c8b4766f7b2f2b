"""Bring a model in, as a teacher. Send a student out, to transformers, vLLM, llama.cpp or Ollama.

    python convert.py --from SmolLM2-135M-Instruct/ --out out/smollm2.pt    # a Hugging Face folder
    python convert.py --from smollm2.gguf --out out/smollm2.pt              # a file of llama.cpp
    python convert.py --from minimind/out/full_sft_768.pth --out out/minimind.pt
    python convert.py out/student.pt --to hf --out student/                 # or --to gguf
    expected last line: next: python chat.py out/smollm2.pt

The weights of many variants would fit and compute something else, without any error. So only
families come in whose logits equal those of transformers in tests/test_convert.py, and each field
of a config must be known here. Any other one is refused with its name. Weights become float32.
"""
import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
from common import UserError, check, run, show
import torch

import checkpoints
from model import ModelConfig, Transformer, rope_table
from tokenizer import Tokenizer

# What a field must be, if a config has it: with any other value, a model computes something else
FIXED = dict(hidden_act="silu", attention_bias=False, mlp_bias=False, rope_interleaved=False,
             partial_rotary_factor=1.0, decoder_sparse_step=1, mlp_only_layers=[],
             inference_rope_scaling=False, use_mrope=False)
NEEDED = """hidden_size num_hidden_layers num_attention_heads intermediate_size
    max_position_embeddings rms_norm_eps""".split()
READ = NEEDED + """model_type num_key_value_heads head_dim vocab_size rope_theta rope_scaling
    rope_parameters tie_word_embeddings sliding_window use_sliding_window layer_types""".split()
HARMLESS = """architectures torch_dtype dtype transformers_version _name_or_path use_cache
    initializer_range attention_dropout pretraining_tp bos_token_id eos_token_id pad_token_id
    max_window_layers is_llama_config transformers.js_config _attn_implementation_autoset
    unsloth_version unsloth_fixed""".split()
OF_EXPERTS = """num_experts num_local_experts num_experts_per_tok moe_intermediate_size
    norm_topk_prob router_aux_loss_coef output_router_logits""".split()
FAMILIES = dict(llama=[], mistral=[], qwen2=[], qwen3=[], qwen3_moe=OF_EXPERTS,
                minimind=OF_EXPERTS + ["use_moe", "dropout", "flash_attn", "auto_map"])
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Fields and tensors of a GGUF -> those of a Hugging Face folder
FIELDS = {
    "embedding_length": "hidden_size", "block_count": "num_hidden_layers",
    "attention.head_count": "num_attention_heads", "vocab_size": "vocab_size",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim",
    "feed_forward_length": "intermediate_size", "context_length": "max_position_embeddings",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps", "rope.freq_base": "rope_theta",
    "attention.sliding_window": "sliding_window", "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size"}
TENSORS = {
    "token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate"}


@dataclass
class Config:
    checkpoint: list = None         # the model that goes out, with --to
    from_: str = ""                 # what comes in: a folder, a .gguf, or a .pth of minimind
    to: Literal["hf", "gguf"] = None  # the format of what goes out
    out: str = ""                   # file to write; with --to hf, a folder
    context: int = 0                # cut the context to N tokens (512 to 8,192); 0: as it is
    ignore: str = ""                # fields of the config that change nothing: FIELD,FIELD
    tokenizer: str = ""             # folder with tokenizer.json; none: its own, of a .pth ../model
    system_opening: str = ""        # if the chat template is not understood: text before a turn
    user_opening: str = ""          # the same
    assistant_opening: str = ""     # the same
    turn_end: str = ""              # the text after each turn; begins with a control token
    answer_tags: bool = True        # --to: the chat template keeps <answer> and </answer>
    fresh: bool = False             # replace an existing file


def check_fields(config, family, moe, ignore):
    """UserError with the name of a field that changes the computation, or is not known here."""
    check(family in FAMILIES, f"model_type {family}: only {', '.join(FAMILIES)} come in")
    for name, value in config.items():
        if name in FIXED:
            check(value in (None, FIXED[name]), f"{name} {value!r}: it must be {FIXED[name]!r}")
        elif name not in (*READ, *HARMLESS, *FAMILIES[family]):
            check(value is None or name in ignore, f"{name} {str(value)[:60]}: not known here; if "
                  f"it does not change what the model computes, add --ignore {name}")
    for name in (*NEEDED, *["num_experts_per_tok", "moe_intermediate_size"] * moe):
        check(type(config.get(name)) in (int, float), f"{name} {config.get(name)}: not a number")
    kinds = {*(config.get("layer_types") or ())} - {"full_attention", "sliding_attention"}
    check(not kinds, f"layer_types {', '.join(kinds)}: must be full_attention")


def rope(config):
    """-> (theta, scaling for ModelConfig). UserError for a scaling that is not Llama 3's."""
    found, kinds = dict(rope_theta=config.get("rope_theta") or 10_000.0), set()
    for part in (config.get("rope_scaling") or {}, config.get("rope_parameters") or {}):
        kinds |= {part[name] for name in ("rope_type", "type") if name in part}
        found |= {name: part[name] for name in part if name not in ("rope_type", "type")}
    check(len(kinds) <= 1 and kinds <= {"default", "llama3"},
          f"rope_type {' and '.join(sorted(kinds))}: only llama3 is known")
    names = LLAMA3 if "llama3" in kinds else ()
    check(found.pop("partial_rotary_factor", 1) == 1, "partial_rotary_factor: it must be 1")
    wrong = found.keys() ^ {"rope_theta", *names}
    check(not wrong, f"rope_parameters: {', '.join(sorted(wrong))}: missing or not known here")
    return float(found["rope_theta"]), tuple(float(found[name]) for name in names)


def context_of(config, family, context):
    """The context of the model, or --context. UserError if its attention has a shorter window."""
    own, window = config["max_position_embeddings"], config.get("sliding_window")
    check(0 <= context <= own, f"--context {context}: the model's is {own}")
    used = family == "mistral" or config.get("use_sliding_window") or "sliding_attention" in (
        config.get("layer_types") or ())
    check(not used or not window or (context or own) <= window,
          f"sliding_window {window}: it is not used with --context {window} or less")
    return int(context or own)


def model_config(config, weights, context=0, ignore=()):
    """The content of a config.json -> ModelConfig. UserError if the model is of another kind."""
    family = config.get("model_type")
    moe = family == "qwen3_moe" or bool(config.get("use_moe"))
    check_fields(config, family, moe, ignore)
    check("embed_tokens.weight" in weights, "the tensor embed_tokens.weight is missing")
    (theta, scaling), heads = rope(config), config["num_attention_heads"]
    norms = "layers.0.self_attn.q_norm.weight" in weights  # an older minimind has none
    more = dict(n_experts=config.get("num_experts") or config.get("num_local_experts") or 0,
                experts_per_token=config["num_experts_per_tok"],
                norm_topk=config.get("norm_topk_prob", family == "minimind")) if moe else {}
    return ModelConfig(
        vocab_size=config.get("vocab_size") or len(weights["embed_tokens.weight"]),
        dim=config["hidden_size"], n_layers=config["num_hidden_layers"], n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn_dim=config["moe_intermediate_size" if moe else "intermediate_size"],
        max_seq_len=context_of(config, family, context), rope_theta=theta, rope_scaling=scaling,
        norm_eps=float(config["rms_norm_eps"]), qkv_bias=family == "qwen2",
        qk_norm=norms if family == "minimind" else family in ("qwen3", "qwen3_moe"),
        tie_embeddings=config.get("tie_word_embeddings", "lm_head.weight" not in weights), **more)


def fit(weights, c):
    """UserError unless the weights are those of a Transformer(c). A tied head is put in."""
    with torch.device("meta"):  # shapes only
        shapes = {name: tensor.shape for name, tensor in Transformer(c).state_dict().items()}
    if c.tie_embeddings:
        tied = weights["embed_tokens.weight"]
        check(torch.equal(weights.get("lm_head.weight", tied), tied),
              "tie_word_embeddings: lm_head.weight is not embed_tokens.weight")
        weights["lm_head.weight"] = tied
    for name in sorted({*shapes, *weights}):
        check(name in weights, f"the tensor {name} is missing")
        check(name in shapes, f"the tensor {name} is not part of such a model")
        check(weights[name].shape == shapes[name],
              f"the tensor {name} is {[*weights[name].shape]}, must be {[*shapes[name]]}")


def read_folder(folder):
    """A Hugging Face folder -> (config, weights, licence): a dict, a dict of tensors, a name."""
    from safetensors import safe_open
    weights = {}
    index, files = folder / "model.safetensors.index.json", {"model.safetensors"}
    try:  # a damaged file can raise almost any error
        common.check_exists(folder / "config.json", "a Hugging Face folder has one")
        config = dict(json.loads((folder / "config.json").read_text("utf-8")))
        if index.exists():
            files = {*json.loads(index.read_text("utf-8"))["weight_map"].values()}
        for name in sorted(files):
            common.check_exists(folder / name, "a whole download has it")
            with safe_open(folder / name, "pt") as file:
                weights |= {key.removeprefix("model."): file.get_tensor(key) for key in file.keys()}
    except Exception as error:
        raise UserError(f"{show(folder)} cannot be read: {error}") from None
    for name, tensor in weights.items():
        check(tensor.dtype in (torch.float32, torch.float16, torch.bfloat16),
              f"the tensor {name} is {tensor.dtype}: quantised weights are not read")
        weights[name] = tensor.float()
    weights = {name: weights[name] for name in weights if not name.endswith("rotary_emb.inv_freq")}
    card = folder / "README.md"
    text = card.read_text("utf-8", errors="replace") if card.exists() else ""
    return config, weights, (re.findall(r"(?m)^license: *(\S+)", text) or [""])[0]


def read_gguf(path):
    """A GGUF file -> (config, weights, licence, header: a dict)"""
    import gguf
    weights = {}
    try:  # a damaged file can raise almost any error
        reader = gguf.GGUFReader(path)
        header = {name: field.contents() for name, field in reader.fields.items()}
        for tensor in reader.tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            weights[tensor.name] = torch.from_numpy(values.astype("float32"))
    except Exception as error:
        reason = "".join(str(error).splitlines()[-1:])[:90] or type(error).__name__
        raise UserError(f"{show(path)} cannot be read: {reason}") from None
    config = gguf_config(header, weights)
    for name in list(weights):
        weights |= from_gguf_names(name, weights.pop(name), config)
    return config, weights, header.get("general.license", ""), header


def gguf_config(header, weights):
    """The header of a GGUF -> the same facts as in a config.json, under the same names."""
    arch = header.get("general.architecture")
    check(arch in ("llama", "qwen2", "qwen3", "qwen3moe"), f"general.architecture {arch}: not read")
    config = dict(model_type=arch.replace("3moe", "3_moe"))
    for name, value in header.items():
        short = name.removeprefix(f"{arch}.")
        if short != name and (short, value) != ("rope.scaling.type", "none"):
            config[FIELDS.get(short, name)] = value  # any other name is refused later
    check({*NEEDED} <= config.keys(), f"no {', '.join({*NEEDED} - config.keys())} in the header")
    C = config.setdefault("head_dim", config["hidden_size"] // config["num_attention_heads"])
    for name in (f"{arch}.attention.value_length", f"{arch}.rope.dimension_count"):
        check(config.pop(name, C) == C, f"{name}: it must be {C}, the channels of a head")
    config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # a float32: 9.99999975e-06
    config["use_sliding_window"] = "sliding_window" in config
    if arch == "qwen3moe":
        config["norm_topk_prob"] = True  # as llama.cpp computes it
    if (slower := weights.pop("rope_freqs.weight", None)) is not None:  # of Llama 3, (C/2,)
        scaling, theta = (slower.max().item(), 1.0, 4.0, 8192), config.get("rope_theta", 10_000.0)
        plain, scaled = (torch.atan2(sin[1], cos[1])[:C // 2] for cos, sin in (
            rope_table(2, C, theta), rope_table(2, C, theta, scaling)))  # angles of one position
        check(slower.shape == plain.shape and torch.allclose(plain / slower, scaled, rtol=1e-4),
              "rope_freqs.weight: not the scaling of Llama 3")
        config["rope_scaling"] = dict(rope_type="llama3", **dict(zip(LLAMA3, scaling)))
    return config


def from_gguf_names(name, tensor, config):
    """One tensor of a GGUF -> {name: tensor} with the names of model.py; often only one."""
    block, part, end = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w*)(.*)", name).groups()
    layer, rows = f"layers.{block}." if block else "", config["head_dim"]
    if part.endswith("_exps"):  # one tensor for all experts
        names = (f"{layer}mlp.experts.{i}.{part[4:-5]}_proj{end}" for i in range(len(tensor)))
        return dict(zip(names, tensor))
    if config["model_type"] == "llama" and part in ("attn_q", "attn_k") and len(tensor) % rows == 0:
        pairs = tensor.view(-1, rows // 2, 2, tensor[0].numel())  # there RoPE turns neighbours
        tensor = pairs.transpose(1, 2).reshape(tensor.shape)      # here i and i + C/2
    return {f"{layer}{TENSORS[part]}{end}" if part in TENSORS else name: tensor}


def read_minimind(path):
    """A .pth of minimind -> (config, weights, licence). It has weights only. Their shapes tell the
    rest, with what minimind's code sets: 8 heads, theta, eps, one expert a token."""
    weights = checkpoints.read(path)
    weights = weights.get("model", weights) if isinstance(weights, dict) else {}
    weights = {f"{name}".removeprefix("model."): tensor for name, tensor in weights.items()}
    attention, mlp = "layers.0.self_attn.", "layers.0.mlp."
    experts = len([name for name in weights if re.match(mlp + r"experts.\d+.gate_proj", name)])
    ffn = mlp + ("experts.0." if experts else "") + "gate_proj.weight"
    table, *others = (weights.get(name) for name in (
        "embed_tokens.weight", ffn, f"{attention}q_proj.weight", f"{attention}k_proj.weight"))
    check(all(isinstance(tensor, torch.Tensor) for tensor in (table, *others, *weights.values())),
          f"{show(path)} is no checkpoint of minimind")
    norm = weights.get(f"{attention}q_norm.weight")  # none: an older minimind
    C = table.shape[1] // 8 if norm is None else len(norm)
    F, H, G = len(others[0]), len(others[1]) // C, len(others[2]) // C
    config = dict(
        model_type="minimind", hidden_size=table.shape[1], head_dim=C, num_attention_heads=H,
        num_key_value_heads=G, intermediate_size=F, max_position_embeddings=32768, rope_theta=1e6,
        num_hidden_layers=len([name for name in weights if name.endswith("q_proj.weight")]),
        rms_norm_eps=1e-5 if norm is None else 1e-6, use_moe=experts > 0, num_experts=experts,
        num_experts_per_tok=1, moe_intermediate_size=F, norm_topk_prob=True,
        tie_word_embeddings=torch.equal(weights.get("lm_head.weight", table), table))
    return config, {name: tensor.float() for name, tensor in weights.items()}, ""


def load_tokenizer(path, vocab_size, header, cfg):
    """The tokenizer of a model that comes in; vocab_size: rows of its embeddings."""
    marks = dict(system=cfg.system_opening, user=cfg.user_opening, assistant=cfg.assistant_opening,
                 close=cfg.turn_end)
    check(all(marks.values()) or not any(marks.values()),
          "give all of --system-opening, --user-opening, --assistant-opening and --turn-end")
    marks, folder = marks if cfg.turn_end else None, Path(cfg.tokenizer or (
        path if path.is_dir() else path.absolute().parent.parent / "model"))
    header = {} if cfg.tokenizer else header
    if "minidistill.tokenizer" in header:  # a student from here comes back
        return Tokenizer(bytes(header["minidistill.tokenizer"]))
    with contextlib.suppress(UserError):  # the same, or it has none, or one of another project
        if not header:
            return Tokenizer.load(folder / "tokenizer.model")
    from tokenizer import real
    if header:
        return real.from_gguf(header, vocab_size, marks)
    common.check_exists(folder / "tokenizer.json", "give its folder with --tokenizer")
    return real.from_folder(folder, vocab_size, marks)


def come_in(cfg, path):
    """Read a model, check it and write it as a checkpoint."""
    common.check_exists(path, "give a folder, a .gguf or a .pth")
    kind = "folder" if path.is_dir() else path.suffix
    readers = {"folder": read_folder, ".gguf": read_gguf, ".pth": read_minimind}
    check(kind in readers, f"--from {path}: must be a folder, a .gguf or a .pth of minimind")
    config, weights, licence, *header = readers[kind](path)
    try:
        c = model_config(config, weights, cfg.context, cfg.ignore.split(","))
        fit(weights, c)
        tokenizer = load_tokenizer(path, c.vocab_size, header[0] if header else {}, cfg)
    except UserError as error:
        raise UserError(f"{show(path)}: {error}") from None
    name = path.absolute().name
    source = dict(name=name.removesuffix(path.suffix) if path.is_file() else name, path=name,
                  kind=config["model_type"], licence=licence)
    checkpoints.save(cfg.out, dict(
        model=weights, model_config=vars(c), source=source, inputs={}, step=0, tokens=0,
        tokenizer=torch.frombuffer(bytearray(tokenizer.model_bytes), dtype=torch.uint8)))
    count = sum(tensor.numel() for name, tensor in weights.items()
                if name != "lm_head.weight" or not c.tie_embeddings)
    print(f"{show(cfg.out)}: {config['model_type']} of {count:,} parameters, {c.n_layers} blocks, "
          f"context {c.max_seq_len:,}, {c.vocab_size:,} tokens, licence {licence or 'unknown'}\n"
          f"next: {common.command('chat.py', Path(cfg.out))}")


def main(cfg):
    """Bring --from in, or send a checkpoint out with --to."""
    words = cfg.checkpoint or []
    check(len(words) == (cfg.to is not None) and bool(cfg.from_) != bool(cfg.to) and cfg.out,
          "use --from PATH --out FILE, or CHECKPOINT --to hf --out FOLDER; see --help")
    check(cfg.fresh or not Path(cfg.out).exists(), f"--out {cfg.out} exists; --fresh replaces it")
    if not cfg.to:
        check(Path(cfg.out).suffix == ".pt", f"--out {cfg.out}: a checkpoint ends in .pt")
        return come_in(cfg, Path(cfg.from_))
    import export
    write = dict(hf=export.write_hf, gguf=export.write_gguf)[cfg.to]
    write(checkpoints.load(words[0]), Path(cfg.out), answer_tags=cfg.answer_tags, fresh=cfg.fresh)
    print(f"{show(cfg.out)} is written")


if __name__ == "__main__":
    run(main, Config)
