"""Talk to a model in the terminal.

    python chat.py out/teacher.pt                        each line is a new question
    python chat.py out/teacher.pt --prompt "Mia has 3 pears. She buys 4 more. How many has she now?"
    python chat.py out/student-logits.pt --complete "Once upon a time" --top 5

--top N then lists the N likeliest tokens at each place, with their probabilities: what white-box
distillation teaches, where a label has only the token itself.
"""
import contextlib
from dataclasses import dataclass
from typing import Literal

import torch

import checkpoints
import common
from common import OUT, UserError, between, check, positive
from dataset.formats import Turn, prompt_ids
from dataset.verify import opening
from decoding import stream


@dataclass
class Config:
    checkpoint: list = None        # the model, as a word without a flag; none: out/teacher.pt
    prompt: str = ""               # answer this question, then end
    complete: str = ""             # go on with this plain text, then end
    target: Literal["auto", "cot", "answer"] = "auto"  # begin answers with <think> or <answer>
    top: int = 0                   # list the N likeliest tokens at each place (2 to 10)
    temperature: float = 0.0       # 0 is greedy; else 0.5 to 1
    max_new_tokens: int = 160      # longest answer
    seed: int = 0                  # of what is drawn at a temperature


def write(model, tokenizer, ids, new, cfg, generator):
    """Print what follows ids as it comes, `new` (how the answer begins) first; then --top."""
    most = model.config.max_seq_len - len(new) - 1
    check(0 < len(ids) <= most, f"the text has {len(ids)} tokens; 1 to {most} fit the context")
    printed = 0
    for token in stream(model, ids + new, cfg.max_new_tokens, {tokenizer.end},
                        temperature=cfg.temperature, generator=generator):
        new = new + [token]
        text = tokenizer.decode(new, show_control=True)
        if not text.endswith("\ufffd"):  # a character may take several byte tokens: wait for them
            print(text[printed:], end="", flush=True)
            printed = len(text)
    print(text[printed:])
    if cfg.top:
        read = torch.tensor([ids + new[:-1]], device=model.embed_tokens.weight.device)  # (1, T)
        probabilities = model(read)[0, len(ids) - 1:].softmax(-1)                       # (new, V)
        for token, p in zip(new, probabilities):
            best = p.topk(min(cfg.top, len(p)))
            cells = [f"{tokenizer.decode([t], show_control=True)!r} {q:.3f}"
                     for t, q in zip(best.indices.tolist(), best.values.tolist())]
            print(f"{tokenizer.decode([token], show_control=True)!r:>14} <- {'  '.join(cells)}")


def main(cfg):
    """Answer --prompt, go on with --complete, or answer line by line until an empty one."""
    positive(cfg, "max_new_tokens")
    between(cfg, 0, 2**32 - 1, "top", "seed", "temperature")
    paths = cfg.checkpoint or [OUT / "teacher.pt"]
    check(len(paths) == 1, f"{paths}: one checkpoint at a time")
    check(not cfg.complete or not {"prompt", "target"} & cfg.given,
          "--complete goes on with plain text: no --prompt or --target beside it")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(paths[0], device)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    if cfg.complete:
        return write(model, tokenizer, tokenizer.encode(cfg.complete), [], cfg, generator)

    def answer(question):
        """Print the model's answer."""
        ids = prompt_ids(tokenizer, [Turn("user", question)])
        write(model, tokenizer, ids, opening(tokenizer, cfg.target), cfg, generator)

    if cfg.prompt:
        return answer(cfg.prompt)
    print("each line is a new question; an empty line ends")
    with contextlib.suppress(EOFError):
        while question := input("> ").strip():
            try:
                answer(question)
            except UserError as error:
                print(f"error: {error}")


if __name__ == "__main__":
    common.run(main, Config)
