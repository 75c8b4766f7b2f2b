"""Questions put to a model, and its answers judged: greedy, or voted on over several samples.

    replies = answer(model, tokenizer, questions, "cot", cfg)     a dict a question, see `judge`
    tally(replies)                                                the figures under the table

cfg is eval.py's. With --samples each question is answered so many times more at --temperature:

    majority     the answer that most of them give is right (self-consistency: Wang et al. 2023)
    best of k    one of k is right (Chen et al. 2021): what a perfect verifier could pick, no vote
                 or reward can do better; best of 1 is a single sample
"""
import torch

from dataset.formats import opening, parse_response, prompt_ids
from dataset.verify import agree, extract_answer, parse_number, verdict
from decoding import generate
from metrics import majority, pass_at, repetition, wilson


def answer(model, tokenizer, questions, target, cfg, **sampling):
    """Answers to conversations -> a dict each: response (with tags), answer, verdict; see `judge`.

    With --target the response is begun for the model: what tells one that has learned two forms
    which is asked. sampling: of `decoding.sample`; none: greedy.
    """
    begun = opening(tokenizer, cfg.target)  # none of target auto: the model begins
    prompts = [prompt_ids(tokenizer, turns, target) + begun for turns in questions]
    fits = [i for i, p in enumerate(prompts) if len(p) < model.config.max_seq_len]
    replies = [dict(response="", answer=None, tokens=0, repeats=0.0, ended=False,
                    well_formed=False, verdict="prompt too long") for _ in prompts]
    fits.sort(key=lambda i: len(prompts[i]))  # equal lengths together: little padding
    for start in range(0, len(fits), cfg.batch):
        some = fits[start:start + cfg.batch]
        rows = write(model, tokenizer, [prompts[i] for i in some], begun, cfg, sampling)
        for i, ids in zip(some, rows):
            replies[i] = judge(tokenizer, begun + ids, questions[i][-1], target)
    return replies


def write(model, tokenizer, prompts, begun, cfg, sampling):
    """New ids of each prompt. With --think-budget a thought that is longer ends there: </think> is
    put behind it and the model goes on (Muennighoff et al. 2025, budget forcing)."""
    t, most = tokenizer, cfg.max_new_tokens
    budget = cfg.think_budget + (t.think not in begun)
    if not 0 < cfg.think_budget < most:
        return generate(model, prompts, most, {t.end}, **sampling)
    rows = generate(model, prompts, budget, {t.end, t.end_think}, **sampling)
    for row in rows:
        if (begun + row)[0] == t.think and not {t.end, t.end_think} & set(row):
            row.append(t.end_think)
    more = [i for i, row in enumerate(rows) if t.end not in row
            and len(prompts[i] + row) < model.config.max_seq_len]
    rest = generate(model, [prompts[i] + rows[i] for i in more], most, {t.end}, **sampling)
    for i, ids in zip(more, rest):
        rows[i] = (rows[i] + ids)[:most]
    return rows


def judge(tokenizer, ids, reference, target):
    """Generated ids against the reference turn: what was answered and whether it holds.

    The answer is the <answer> span. In a reply without one it is what `extract_answer` finds, such
    as the number behind ####, or else the last one, where the right answer is a number; where it is
    none, the whole reply, of which `verdict` compares the part that is marked as final.
    """
    parsed = parse_response(tokenizer, ids, target)
    got, wanted = parsed["answer"], reference.answer
    if wanted is None:
        wanted = extract_answer(reference.content) or reference.content
    if got is None:
        is_number = parse_number(wanted) is not None
        got = extract_answer(parsed["text"]) if is_number else parsed["text"].strip()
    # The format has a column of its own; here only the answer and its end count.
    return dict(response=tokenizer.decode(ids, show_control=True), answer=got, tokens=len(ids),
                repeats=repetition(ids), ended=parsed["ended"], well_formed=parsed["well_formed"],
                verdict=verdict(wanted, got, parsed["ended"], True))


def tally(replies):
    """Exact match with its interval, format rate, length, and the verdicts counted."""
    n, right = len(replies), sum(r["verdict"] == "ok" for r in replies)
    kinds = sorted({r["verdict"] for r in replies})
    return dict(n=n, exact=right / n, exact_interval=wilson(right, n),
                format=sum(r["well_formed"] for r in replies) / n,
                answer_tokens=sum(r["tokens"] for r in replies) / n,
                repeats=sum(r["repeats"] for r in replies) / n,
                limit=sum(r["verdict"] == "truncated" for r in replies) / n,
                verdicts={k: sum(r["verdict"] == k for r in replies) for k in kinds})


def vote(model, tokenizer, questions, target, cfg):
    """(figures, samples): --samples answers to each question, and what a vote makes of them.

    figures: samples, temperature; majority: share of questions of which the majority is right, with
    its interval; best_of: [[k, share]] for k = 1, 2, 4 .. samples; tokens: mean of a question, of
    all its samples together. samples: the answers of each question, in their order.
    """
    n = cfg.samples
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(cfg.seed)
    replies = answer(model, tokenizer, [q for q in questions for _ in range(n)], target, cfg,
                     temperature=cfg.temperature, generator=generator)
    asked = [replies[i:i + n] for i in range(0, len(replies), n)]
    chosen = [majority([r["answer"] if r["ended"] else None for r in some], agree)
              for some in asked]
    won = sum(i is not None and some[i]["verdict"] == "ok" for i, some in zip(chosen, asked))
    right = [sum(r["verdict"] == "ok" for r in some) for some in asked]
    sizes = sorted({2 ** i for i in range(n.bit_length())} | {n})
    figures = dict(samples=n, temperature=cfg.temperature, majority=won / len(asked),
                   majority_interval=wilson(won, len(asked)),
                   best_of=[[k, sum(pass_at(k, n, c) for c in right) / len(asked)] for k in sizes],
                   tokens=sum(r["tokens"] for r in replies) / len(asked))
    return figures, [[r["answer"] for r in some] for some in asked]
