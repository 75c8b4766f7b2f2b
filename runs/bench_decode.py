"""Decoding against Hugging Face transformers: the same weights, the same prompt, taking turns.

    python runs/bench_decode.py                     the teacher of the speedrun, about a minute
    python runs/bench_decode.py --size 100m         random weights of a named size

Maps our weights into transformers' Qwen3ForCausalLM (the layout is the same: the map is a prefix),
checks that both say the same logits and the same greedy text, then times `generate` of either at
batch 1, eager, float32. Needs requirements-dev.txt.
"""
import os
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import torch

import checkpoints
import cli
from cli import OUT, check, fail
from decoding import generate
from model import SIZES, build


@dataclass
class Config:
    checkpoint: str = OUT / "teacher.pt"  # a model of this project
    size: Literal[("", *SIZES)] = ""      # random weights of this size instead
    new_tokens: int = 128                 # tokens to write (32 to 400)
    rounds: int = 5                       # turns each (3 to 20), beside a warm-up


def as_qwen3(model):
    """The same model as transformers' Qwen3ForCausalLM, in float32."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        from transformers import Qwen3Config, Qwen3ForCausalLM
    except ImportError:
        fail("transformers is not installed", fix="pip install -r requirements-dev.txt")
    c = model.config
    check(c.qk_norm, "--checkpoint", "a model without QK-norm", "one with (Qwen3 has it)")
    config = Qwen3Config(
        vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.ffn_dim,
        num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads,
        num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim, rms_norm_eps=c.norm_eps,
        max_position_embeddings=c.max_seq_len, tie_word_embeddings=c.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
        bos_token_id=None, eos_token_id=None, pad_token_id=0, attention_dropout=0.0)
    theirs = Qwen3ForCausalLM(config).eval()
    weights = {k if k.startswith("lm_head") else f"model.{k}": v
               for k, v in model.state_dict().items()}
    theirs.load_state_dict(weights, strict=True)
    return theirs


@torch.inference_mode()
def main(cfg):
    """Compare what both say, then time them in turns."""
    check(cfg.new_tokens > 0 and cfg.rounds > 0, "--rounds", cfg.rounds, "a positive whole number")
    torch.manual_seed(0)
    model = build(cfg.size, 1024).eval().requires_grad_(False) if cfg.size else \
        checkpoints.load_model(cfg.checkpoint)[0]
    theirs = as_qwen3(model)
    prompt = torch.randint(10, model.config.vocab_size, (1, 8))
    difference = (model(prompt) - theirs(prompt).logits).abs().max().item()
    options = dict(max_new_tokens=cfg.new_tokens, do_sample=False, min_new_tokens=cfg.new_tokens)
    ours_text = generate(model, prompt.tolist(), cfg.new_tokens)[0]
    their_text = theirs.generate(prompt, **options)[0, 8:].tolist()
    same = sum(a == b for a, b in zip(ours_text, their_text))
    print(f"largest difference of the logits {difference:.1e}; {same} of {cfg.new_tokens} greedy "
          "tokens alike")
    times = {"ours": [], "transformers": []}
    for turn in range(cfg.rounds + 1):
        for name, write in (("ours", lambda: generate(model, prompt.tolist(), cfg.new_tokens)),
                            ("transformers", lambda: theirs.generate(prompt, **options))):
            time.sleep(0.1)  # until the other's threads no longer spin while they wait for work
            began = time.perf_counter()
            write()
            if turn > 0:
                times[name].append(time.perf_counter() - began)
    rates = {name: cfg.new_tokens / statistics.median(t) for name, t in times.items()}
    print(f"{model.num_parameters():,} parameters, {torch.get_num_threads()} threads: ours "
          f"{rates['ours']:,.0f} tok/s, transformers {rates['transformers']:,.0f} tok/s, "
          f"{rates['ours'] / rates['transformers']:.2f} times")


if __name__ == "__main__":
    cli.run(main, Config)
