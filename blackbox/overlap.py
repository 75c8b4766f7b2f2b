"""Does a row give away an evaluation question? Whole questions, and runs of 13 words.

A row overlaps where its question is an evaluation question (the same words), or where 13 words in a
row of an evaluation question stand in its prompt or in its answer (Brown et al. 2020, appendix C).
Shorter questions have the first rule alone. A Chinese letter is half a word: text that is mostly
Chinese has runs of 26. Unlike there:

1. NUMBERS COUNT. Stories share sentences: against 2,000 questions, one clean row in nine has 13 of
   their words. A run counts only where the numbers of the question stand in the text, in order and
   nothing between them, or those of the text in the question (a piece of it). Another problem of
   one template is no leak; a piece of a question among other numbers is not found, nor is a copy
   with a typo in every dozen words.
2. A run that more than 20 questions share is an instruction ("Let us think step by step ...").
"""
import re
from dataclasses import dataclass, field

from cli import show
from dataset.formats import read_documents
from blackbox.near import UNSPACED, grams, hashed, numbers, words

RUN, RUN_UNSPACED, INSTRUCTION = 13, 26, 20


@dataclass
class Questions:
    """What the evaluation files ask."""
    whole: dict = field(default_factory=dict)    # words of a question -> its index
    holders: dict = field(default_factory=dict)  # run -> indices of the questions that hold it
    asked: list = field(default_factory=list)    # of each question: FILE:LINE, numbers


def read_questions(paths):
    """The questions of the files; a bad line is a UserError."""
    known = Questions()
    for path in paths:
        for line, document in read_documents(path):
            found, index = words(questions_of(document)[0]), len(known.asked)
            known.asked.append((f"{show(path)}:{line}", numbers(found)))
            known.whole.setdefault(" ".join(found), index)
            for run in runs(found):
                known.holders.setdefault(run, []).append(index)
    return known


def questions_of(document):
    """What the user says, in all and turn by turn; a plain text is one question."""
    if isinstance(document, str):
        return [document]
    asked = [turn.content for turn in document if turn.role == "user"] or [document[-1].content]
    return list(dict.fromkeys(["\n".join(asked), *asked]))


def runs(found):
    """Words -> the hashes of their runs."""
    unspaced = len(re.findall(f"[{UNSPACED}]", "".join(found)))
    return grams(hashed(found), RUN_UNSPACED if 2 * unspaced > len(found) else RUN).tolist()


def leak(known, document, sides):
    """The index of an evaluation question that a row gives away, or None.

    document: its turns; sides: the texts of its prompt and of its answer.
    """
    for text in questions_of(document):
        index = known.whole.get(" ".join(words(text)))
        if index is not None:
            return index
    for found in map(words, sides):
        own = numbers(found)
        for run in runs(found):
            holders = known.holders.get(run, ())
            for index in holders if len(holders) <= INSTRUCTION else ():
                others = known.asked[index][1]
                if own in others or others in own:
                    return index
    return None
