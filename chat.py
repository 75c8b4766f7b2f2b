"""Talk to a model in the terminal. --top shows the probabilities that a white-box teacher gives.

    python chat.py out/teacher.pt                        each line is a new question
    python chat.py out/teacher.pt --prompt "Mia has 3 pears. She buys 4 more. How many has she now?"
    python chat.py out/student-logits.pt --complete "Once upon a time" --top 5
"""
import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoints
from common import OUT, UserError, between, check, run
from dataset.formats import Turn, prompt_ids
from dataset.verify import opening
from decoding import stream


@dataclass
class Config:
    checkpoint: list = None        # the model, without a flag; none: out/teacher.pt
    prompt: str = ""               # answer this question, then end
    complete: str = ""             # continue this plain text, then end
    target: Literal["auto", "cot", "answer"] = "auto"  # begin answers with <think> or <answer>
    top: int = 0                   # show the N likeliest tokens at each position (2 to 10)
    temperature: float = 0.0       # 0: greedy; to sample: 0.5 to 1
    max_new_tokens: int = 160      # limit of an answer in tokens
    seed: int = 0                  # random seed for sampling


def reply(model, tokenizer, text, cfg, how):
    """Print an answer or a continuation, token by token; then --top. how: sampling arguments."""
    ids = tokenizer.encode(text) if cfg.complete else prompt_ids(tokenizer, [Turn("user", text)])
    new, printed = opening(tokenizer, cfg.target), 0
    check(0 < len(ids) < model.config.max_seq_len - len(new),
          f"the text has {len(ids)} tokens; that does not fit the context")
    for token in stream(model, ids + new, cfg.max_new_tokens, {tokenizer.end}, **how):
        new = new + [token]
        said = tokenizer.decode(new, show_control=True)
        if not said.endswith("\ufffd"):  # wait: a character may need several byte tokens
            print(said[printed:], end="", flush=True)
            printed = len(said)
    print(tokenizer.decode(new, show_control=True)[printed:])
    if cfg.top:
        read = torch.tensor([ids + new[:-1]], device=model.embed_tokens.weight.device)  # (1, T)
        best = model(read)[0, len(ids) - 1:].softmax(-1).topk(min(cfg.top, tokenizer.vocab_size))
        for token, ps, top in zip(new, best.values.tolist(), best.indices.tolist()):  # (new, N)
            name, *names = (repr(tokenizer.decode([i], show_control=True)) for i in [token, *top])
            print(f"{name:>14} <- " + "  ".join(f"{other} {p:.3f}" for other, p in zip(names, ps)))


def main(cfg):
    """Answer --prompt, or continue --complete, or answer typed lines until an empty one."""
    between(cfg, 0, 2**32 - 1, "top", "temperature", "max_new_tokens", "seed")
    path, *others = cfg.checkpoint or [OUT / "teacher.pt"]
    check(not others and not (cfg.complete and {"prompt", "target"} & cfg.given),
          "give one checkpoint only, and --complete without --prompt or --target")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(path, device)
    how = dict(temperature=cfg.temperature, generator=torch.Generator(device).manual_seed(cfg.seed))
    if text := cfg.complete or cfg.prompt:
        return reply(model, tokenizer, text, cfg, how)
    print("each line is a new question; an empty line ends")
    with contextlib.suppress(EOFError):
        while text := input("> ").strip():
            try:
                reply(model, tokenizer, text, cfg, how)
            except UserError as error:
                print(f"error: {error}")


if __name__ == "__main__":
    run(main, Config)
