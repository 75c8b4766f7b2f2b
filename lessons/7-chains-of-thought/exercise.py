"""Lesson 7: which chains to learn from, and which tokens are the student's own."""
import torch


def choose(samples, budget):
    """Which of the teacher's chains does the student learn? -> list of indices, ascending

    samples: list of dicts: "question" (its number, int), "tokens" (length of the chain, int),
    "right" (bool: the verifier says that its answer is right). A question has several samples.
    budget: the largest number of tokens that the chosen chains may have together.
    Choose at most one chain of a question, only right ones, and as many questions as the budget
    allows. Of all such choices take the one with the fewest tokens. If two chains are equally long
    and only one of them can be chosen, take the earlier one. This holds for two chains of the same
    question, and for the chains of two questions.
    """
    raise NotImplementedError


def own_weights(prompts, replies, end, length):
    """The weights of a loss on the student's own text -> tensor (B, length - 1), float32

    prompts, replies: B lists of token ids; the student wrote replies[b] after prompts[b]. Row b is
    prompts[b] + replies[b], cut to `length` tokens (or padded to it). Its prompt is never empty.
    Entry [b, t] is the weight of the prediction that the models make at token t of the row: it is
    about token t + 1. A prediction counts if token t + 1 was written by the student. A reply is
    over after its first token `end`: this token counts, the ids after it do not.
    All predictions that count, in all rows, have the same weight. The weights of the batch add up
    to 1. If none counts, all are 0.
    """
    raise NotImplementedError
