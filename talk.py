"""Talking to a model: eval.py --prompt, --complete and --chat."""
import torch

import checkpoints
import cli
from cli import fail
from dataset.formats import Turn, opening, prompt_ids
from decoding import stream


def tokens(model, tokenizer, ids, begun, cfg, generator):
    """Yield what follows the prompt's ids and a begun response; a thought longer than
    --think-budget is closed, as answers.write does it."""
    t, said, how = tokenizer, list(begun), dict(temperature=cfg.temperature, generator=generator)
    for token in stream(model, ids + said, cfg.max_new_tokens, {t.end}, **how):
        said.append(token)
        yield token
        over = 0 < cfg.think_budget == len(said) - 1 and said[0] == t.think \
            and not {t.end, t.end_think} & set(said)
        room = min(cfg.max_new_tokens + len(begun), model.config.max_seq_len - len(ids)) \
            - len(said) - 1  # behind a </think>
        if over and room > 0:
            yield t.end_think
            yield from stream(model, ids + said + [t.end_think], room, {t.end}, **how)
            return


def reply(model, tokenizer, ids, cfg, generator, begun=()):
    """Print what follows the prompt's ids as it comes, `begun` first; returns the new ids."""
    if len(ids) + len(begun) >= model.config.max_seq_len:
        fail("the prompt is longer than the context", f"{len(ids)} tokens",
             f"at most {model.config.max_seq_len - 1}", "a shorter prompt, or a new conversation")
    new, printed = list(begun), 0
    for token in tokens(model, tokenizer, ids, begun, cfg, generator):
        new.append(token)
        text = tokenizer.decode(new, show_control=True)
        if not text.endswith("\ufffd"):  # a character may take several byte pieces: wait for them
            print(text[printed:], end="", flush=True)
            printed = len(text)
    print()
    return new


@torch.inference_mode()
def show_likeliest(model, tokenizer, ids, new, count):
    """A line a written token: the model's `count` likeliest ones there, with their probabilities.

    This is what white-box distillation teaches, where a label has only the token itself.
    """
    device = model.embed_tokens.weight.device
    hidden = model.hidden_states(torch.tensor([ids + new[:-1]], device=device))  # (1, T, D)
    probabilities = model.lm_head(hidden[0, len(ids) - 1:]).softmax(-1)          # (new, V)
    for token, p in zip(new, probabilities):
        best = p.topk(min(count, len(p)))
        cells = [f"{tokenizer.decode([t], show_control=True)!r} {q:.3f}"
                 for t, q in zip(best.indices.tolist(), best.values.tolist())]
        print(f"{tokenizer.decode([token], show_control=True)!r:>14} <- {'  '.join(cells)}")


def talk(cfg, device):
    """--prompt and --complete write once, --chat until an empty line or the end of the input."""
    model, tokenizer, _ = checkpoints.load_model(cfg.checkpoints[0], device)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    begun = opening(tokenizer, cfg.target)  # none of target auto
    if cfg.prompt or cfg.complete:
        ids = tokenizer.encode(cfg.complete) if cfg.complete else \
            prompt_ids(tokenizer, [Turn("user", cfg.prompt)])
        new = reply(model, tokenizer, ids, cfg, generator, () if cfg.complete else begun)
        if cfg.top:
            show_likeliest(model, tokenizer, ids, new, cfg.top)
        return
    print("each line is a new question; an empty line ends")
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            break
        if not text:
            break
        try:
            ids = prompt_ids(tokenizer, [Turn("user", text)])
            reply(model, tokenizer, ids, cfg, generator, begun)
        except cli.UserError as error:
            print(f"error: {error}")
