"""What lesson 7 checks. The grader runs this file, never the student's process."""
import torch

TASKS = [("choose", "right, short chains within a budget", 5),
         ("own_weights", "the tokens that the student wrote", 5)]
SAMPLES = [dict(question=q, tokens=n, right=right) for q, n, right in [
    (0, 30, True), (0, 12, False), (0, 20, True), (1, 40, True), (1, 15, True), (1, 15, True),
    (2, 9, False), (3, 26, True), (3, 25, True), (4, 15, True), (5, 60, True), (6, 8, False)]]
RIGHT = {i for i, sample in enumerate(SAMPLES) if sample["right"]}
END, PROMPTS = 2, [[5, 6, 7], [8], [9, 2, 5, 6], [4, 4]]
REPLIES = [[11, 12, END], [13, END, 14, 15, 14], [16, 17, 18, 19, 20, 21, 22], [END]]
LENGTH = 8  # row 2 is cut: only four of its seven own tokens fit


def calls():
    return [("choose", [SAMPLES, budget]) for budget in (1000, 60, 30, 50, 14, 75)] + [
        ("own_weights", [PROMPTS, REPLIES, END, LENGTH]),
        ("own_weights", [PROMPTS[:1], REPLIES[:1], END, LENGTH]),
        ("own_weights", [PROMPTS[2:3], [[]], END, LENGTH])]


def tokens(chosen):
    return sum(SAMPLES[i]["tokens"] for i in chosen)


def indices(found):
    """The answer, or [] if it is no list of indices of SAMPLES."""
    whole = isinstance(found, list) and all(type(i) is int for i in found)
    return found if whole and all(0 <= i < len(SAMPLES) for i in found) else []


def judge(answers):
    *chosen, batch, one, none = answers
    chosen = [indices(found) for found in chosen]
    everything, sixty, thirty, fifty, _, seventy_five = chosen
    yield 1, bool(everything) and all(RIGHT >= set(found) for found in chosen), \
        "may the student learn from a chain whose answer is wrong?"
    asked = [SAMPLES[i]["question"] for i in everything]
    yield 1, sorted(asked) == [0, 1, 3, 4, 5] and tokens(everything) == 135, \
        "with a large budget: how many chains of a question are chosen, and how long are they?"
    yield 1, tokens(thirty) == 30 and answers[4] == [] and all(
        tokens(found) <= budget for found, budget in zip(chosen, (1000, 60, 30, 50, 14, 75))), \
        "what does the budget allow, and what if it is used to the last token?"
    yield 1, (len(sixty), len(fifty), len(seventy_five)) == (3, 3, 4) and tokens(sixty) == 50, \
        "which chains leave room for the most other questions?"
    yield 1, thirty == [4, 9] and everything == [2, 4, 8, 9, 10], \
        "two chains are equally long: which one? And in which order are the indices?"
    shaped = isinstance(batch, torch.Tensor) and batch.shape == (4, LENGTH - 1)
    place = [(row > 0).nonzero().flatten().tolist() for row in batch] if shaped else [[]] * 4
    yield 1, lambda: [p[:1] for p in place[:3]] == [[2], [0], [3]], \
        "at which token is the student's first own token predicted?"
    yield 1, lambda: place[0][-1] == 4 and place[3] == [1], \
        "does the student learn to stop?"
    yield 1, lambda: place[1] == [0, 1] and place[2] == [3, 4, 5, 6], \
        "where is a reply over? And what of a row that is longer than the window?"
    yield 1, lambda: abs(batch.sum().item() - 1) < 1e-5 and len(set(
        batch[batch > 0].tolist())) == 1, "does each own token of the batch have the same weight?"
    yield 1, lambda: one.shape == none.shape == (1, LENGTH - 1) and abs(
        one.sum().item() - 1) < 1e-5 and none.abs().sum().item() == 0, \
        "what if there is one row, or if the student wrote nothing?"
