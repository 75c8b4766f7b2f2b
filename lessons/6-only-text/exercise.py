"""Lesson 6: a verifier for clock times, and a filter. Fill in both functions."""
import re


def same_time(text, reference):
    """Does a text give the right clock time, and no other? -> bool

    text: a teacher's answer, such as "The bus leaves at half past 3." reference: "15:30".
    The forms (upper or lower case):
        15:30   3:30   3:30 pm   3 pm   half past 3   quarter past 3   quarter to 12 am
    am or pm may follow every form with an hour from 1 to 12. 12:30 am is half an hour after
    midnight, 12:30 pm half an hour after noon.
    With "quarter to", am or pm belongs to the hour that is named: quarter to 12 am is 23:45.
    An hour from 1 to 12 without am or pm can be before or after noon: 3:30 is 3:30 or 15:30.
    A number that is not a whole time is none: in "115:30", "3:305" and "25:00" there is no time.
    True: one time of the day fits the reference and all times in the text.
    False: the text has no time, or no time of the day fits all of them.
    """
    raise NotImplementedError


def keep(rows, share):
    """Which rows of a teacher are good to train on? -> list of indices, ascending

    rows: list of dicts: "question" (str), "answer" (str), "reference" (str), "ended" (bool: False
    if the answer was cut off). A row is kept if its answer ended, if `same_time` says that it is
    right, and if its question is no near copy of the question of an earlier row that is kept.
    A question is compared by its words: runs of letters and digits, lower case. Two questions are
    near copies if they have the same numbers in the same order, and if
        word triples that both have / word triples that at least one has  >=  share   (0 to 1).
    A word triple is three words in a row. Every question has at least three words.
    """
    raise NotImplementedError
