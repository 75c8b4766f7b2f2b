"""Talk to a model in the terminal. --top shows the probabilities that a white-box teacher gives.

    python chat.py out/teacher.pt                        each line continues the conversation
    python chat.py out/teacher.pt --prompt "Mia has 3 pears. She buys 4 more. How many has she now?"
"""
import contextlib
from dataclasses import dataclass
from typing import Literal

from common import OUT, UserError, between, check, run
import torch

import checkpoints
from dataset.formats import Turn
from dataset.verify import prompt_ids
from decoding import decode_steps, opening

WELCOME = """Each line continues the conversation. An empty line starts a new one. Ctrl-D ends it.
The speedrun's models learned single questions. Type an empty line before the next one. Try:
    Mia has 12 apples. She buys 5 more. How many apples does Mia have now?
    Tom has 20 books. He sells 8. He keeps only half of them. How many books does Tom have now?
    Leo has a bag with 9 coins. Then he has 3 times as many. How many coins does Leo own now?"""


@dataclass
class Config:
    checkpoint: list = None        # the model, without a flag; none: out/teacher.pt
    prompt: str = ""               # answer this question, then end
    complete: str = ""             # continue this plain text, then end
    target: Literal["auto", "cot", "answer"] = "auto"  # begins <think>, <answer>, or as it likes
    top: int = 0                   # show the N likeliest tokens at the first 12 places (2 to 10)
    temperature: float = 0.0       # 0: greedy; to sample: 0.5 to 1
    max_new_tokens: int = 160      # limit of an answer in tokens; if typed, --top shows all places
    seed: int = 0                  # random seed for sampling


def reply(model, tokenizer, text, past, cfg, how):
    """Print an answer or a continuation, token by token; then --top. how: sampling arguments.
    past: ids of each earlier question with its answer. This one is added; old ones must fit."""
    start = [] if cfg.complete else tokenizer.start
    ids = tokenizer.encode(text) if cfg.complete else prompt_ids(tokenizer, [Turn("user", text)])
    ids = ids[len(start):]
    new, printed, context = opening(tokenizer, cfg.target), 0, model.config.max_seq_len
    check(0 < len(ids) < context - len(start) - len(new),
          f"the text has {len(ids)} tokens; that does not fit the context")
    room = context - len(start) - len(ids) - len(new) - min(cfg.max_new_tokens, context // 2)
    while past and sum(map(len, past)) > room:
        del past[0]
        print("(the oldest question and its answer no longer fit the context and are left out)")
    prompt = start + sum(past, []) + ids
    for token in decode_steps(model, [prompt + new], cfg.max_new_tokens, **how):
        new = new + token.tolist()
        said = tokenizer.decode(new, show_control=True)
        if not said.endswith("\ufffd"):  # wait: a character may need several byte tokens
            print(said[printed:], end="", flush=True)
            printed = len(said)
        if new[-1] in tokenizer.stop_ids:
            break
    stopped = bool(tokenizer.stop_ids & {*new[-1:]})
    rest = tokenizer.decode(new, show_control=True)[printed:]
    print(rest if stopped or cfg.complete else f"{rest} (stopped at the limit)")
    past.append(ids + new + [tokenizer.end] * (not stopped) + tokenizer.closing)
    if cfg.top:
        read = torch.tensor([prompt + new[:-1]], device=model.embed_tokens.weight.device)  # (1, T)
        best = model(read)[0, len(prompt) - 1:].softmax(-1)  # (new, V)
        best = best[:, :tokenizer.n_tokens].topk(min(cfg.top, tokenizer.n_tokens))
        shown = new if "max_new_tokens" in cfg.given else new[:12]
        for token, ps, top in zip(shown, best.values.tolist(), best.indices.tolist()):  # (new, N)
            name, *names = (repr(tokenizer.decode([i], show_control=True)) for i in [token, *top])
            print(f"{name:>14} <- " + "  ".join(f"{other} {p:.3f}" for other, p in zip(names, ps)))


def main(cfg):
    """Answer --prompt, or continue --complete, or hold a conversation."""
    between(cfg, 0, 2**32 - 1, "top", "temperature", "max_new_tokens", "seed")
    path, *others = cfg.checkpoint or [OUT / "teacher.pt"]
    check(not others and not (cfg.complete and {"prompt", "target"} & cfg.given),
          "give one checkpoint only, and --complete without --prompt or --target")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer, _ = checkpoints.load_model(path, device)
    how = dict(temperature=cfg.temperature, generator=torch.Generator(device).manual_seed(cfg.seed))
    if text := cfg.complete or cfg.prompt:
        return reply(model, tokenizer, text, [], cfg, how)
    print(WELCOME)
    past = []
    with contextlib.suppress(EOFError):
        while True:
            text = input("> ").strip()
            try:
                reply(model, tokenizer, text, past, cfg, how) if text else past.clear()
            except UserError as error:
                print(f"error: {error}")


if __name__ == "__main__":
    run(main, Config)
