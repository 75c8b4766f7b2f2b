"""Which rows are nearly the same? MinHash and LSH find candidates, exact Jaccard decides.

    find_copies(signatures, gates, verify)       {row: the earlier row that it is a copy of}

Stories share their templates, so the same sentences with other numbers are another problem. Two
rows are near copies where all of this holds:

1. NUMBERS COUNT: the same numbers and signs in the same order, prompt and answer together. Only
   such rows can meet in a bucket: a template with a million numbers costs no comparison.
2. The prompts share THRESHOLD of their word pairs (Jaccard), and so do the answers: another answer
   to one prompt is no copy. 0.55: about one word in seven is another, or moved, lost or added. Case
   and punctuation do not count; a typo is another word.
3. NAMES COUNT: where a word with a capital letter, or one that stands there twice or more, is
   replaced everywhere by another such word (Mia by Tom, apples by pears), it is another story. Not
   if it is a typo: letters swapped, one lost or added. Another word in one place is a copy, and in
   Chinese, without capitals, a name may be one.

Not found: a copy with another number (a date, "5" as "five"), and a change in an answer of a few
words, where one word is the answer. Found against one's will: the same answer to prompts that are
one long instruction and a short text (make the instruction a system turn, or raise the threshold).

How it differs from the papers: sets of word pairs, not of longer runs (Broder 1997), since texts
are short; 8 bits a hash (Li & Koenig 2010); and a row meets two others a band and is compared with
four at most, where others compare all pairs of a bucket (Leskovec, Rajaraman & Ullman 2014, section
3.4): linear, whatever the data. In a template without numbers a copy may so be missed.
"""
import re
from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from zlib import crc32

import numpy as np

from dataset.verify import NARROW

THRESHOLD = 0.55
BANDS, ROWS = 40, 4  # a pair at 0.55 meets in 98 % of cases, at 0.65 in 99.9 %, at 0.05 in 0.04 %
SLACK = 0.12  # three standard deviations of a similarity that 160 hashes estimate
QUESTIONS = 4  # rows that a row is compared with exactly, at most

# In a language that puts no spaces between words, a letter counts as one.
UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
            "\U00020000-\U0003ffff")
SIGNS = tuple("-+*/^=<>×÷")
SIGN = (rf"[{''.join(SIGNS)}](?= ?-?[(.$]?\d)|[+*/^=<>](?= ?[a-z]\b)"  # 3 - 2, x + y = -2
        r"|-(?=[a-z]\b)")  # x-y; not e-mail
PUNCTUATION = r"!-/:-@\[-`{-~¡-¿\u2000-\u206f\u3000-\u303f\ufe30-\ufe4f\uff00-\uff0f"
WORD = re.compile(rf"\d+(?:[.,]\d+)*%?|[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_])+|{SIGN}"
                  rf"|[^\w\s{PUNCTUATION}]")  # the last: emoji, and marks that are no \w


# --- a text as words and numbers ------------------------------------------------------------------

def words(text):
    """The words of a text without case, punctuation, full width; a text without words is one."""
    text = text.translate(NARROW).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,234 is 1234
    return WORD.findall(text) or [text.strip()]


def is_number(word):
    """A number or a sign; number words (five, 五) are words like others."""
    return word[:1].isnumeric() and not "\u2e80" < word[0] < "\ua000" or word in SIGNS


def numbers(found):
    """The numbers among words, in their order, as one string: " 12 + 5 "."""
    return " ".join(["", *filter(is_number, found), ""])


def hashed(found):
    """Words -> (n,) uint64, 32 bits each. Not hash(), which differs from process to process."""
    return np.array([crc32(word.encode()) for word in found], dtype=np.uint64)


def mixed(codes):
    """(n,) uint64 -> (n,): one to one, all bits depend on all."""
    for factor in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93):
        codes = (codes ^ (codes >> np.uint64(32))) * np.uint64(factor)
    return codes ^ (codes >> np.uint64(32))


def grams(codes, n):
    """(m,) uint64 -> (m - n + 1,): a hash of each run of n; empty where m < n."""
    count, total = max(0, len(codes) - n + 1), np.zeros(1, dtype=np.uint64)
    for i in range(n):
        total = total * np.uint64(0x2545F4914F6CDD1D) + codes[i:i + count]
    return mixed(total) if count else codes[:0]


# --- are two rows near copies? --------------------------------------------------------------------

@dataclass
class Sketch:
    """What decides it, of one row."""
    numbers: str        # of prompt and answer
    counts: Counter     # of words
    names: set          # the words with a capital letter
    prompt: np.ndarray  # hashes of its word pairs, sorted, each once
    answer: np.ndarray


def sketch(prompt, answer):
    """The texts of a row -> Sketch."""
    found, pairs = [words(prompt), words(answer)], []
    for side, salt in zip(found, (1, 2)):  # a pair of the prompt is none of the answer
        pairs.append(np.unique(mixed(grams(hashed(side), min(2, len(side))) + np.uint64(salt))))
    names = {word.casefold() for word in re.findall(r"[^\W\d_]{2,}", f"{prompt} {answer}")
             if word.istitle()}
    return Sketch(numbers(found[0] + found[1]), Counter(found[0] + found[1]), names, *pairs)


def jaccard(a, b):
    """|A and B| / |A or B| of two sorted arrays without repeats."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)


def renamed(a, b):
    """Is a name, or a word that is repeated, replaced everywhere by another one?"""
    gone, new = ({word: n for word, n in one.counts.items() if word not in other.counts
                  and (n > 1 or word in one.names)} for one, other in ((a, b), (b, a)))
    typos = {(x, y) for x in gone for y in new if misspelt(x, y)}
    gone, new = set(gone) - {x for x, _ in typos}, set(new) - {y for _, y in typos}
    return bool(gone and new)


def misspelt(a, b):
    """Do two words differ by the order of letters, or by one letter that is lost or added?"""
    a, b = Counter(a), Counter(b)
    return ((a - b) + (b - a)).total() <= 1


def similar(a, b, threshold=THRESHOLD):
    """Are two Sketches near copies, as the top of this file defines them?"""
    return (a.numbers == b.numbers
            and min(jaccard(a.prompt, b.prompt), jaccard(a.answer, b.answer)) >= threshold
            and not renamed(a, b))


# --- candidates -----------------------------------------------------------------------------------

SLOPES = mixed(np.arange(1, BANDS * ROWS + 1, dtype=np.uint64))[:, None] | np.uint64(1)  # (160, 1)
SHIFTS = mixed(SLOPES)


def signature(found):
    """Sketch -> (160,) uint8: 8 bits of the least hash, for 160 hash functions. Two rows agree in
    a share that estimates their Jaccard similarity, prompt and answer as one set."""
    least, pairs = np.uint64(2**64 - 1), np.concatenate([found.prompt, found.answer])
    for i in range(0, len(pairs), 1024):  # a text of 5 MB has a million
        block = pairs[None, i:i + 1024] * SLOPES + SHIFTS  # (160, up to 1024)
        least = np.minimum(least, block.min(axis=1))
    return (least >> np.uint64(16)).astype(np.uint8)


def neighbours(signatures, gates):
    """(N, 160) uint8, (N,) uint64 -> (P, 2) of candidates: earlier and later row, by the later.

    A bucket is a gate, a band and its four hashes. A row is paired with the first one in its
    bucket and with the one before it: at most 2 * BANDS pairs a row.
    """
    count, found = np.uint64(len(gates)), [np.zeros(0, dtype=np.uint64)]
    for band in np.ascontiguousarray(signatures).view(np.uint32).T:
        key = mixed(gates ^ mixed(band.astype(np.uint64) + np.uint64(1)))
        order = np.argsort(key, kind="stable")
        new = np.append(True, key[order][1:] != key[order][:-1])[:len(order)]  # begins a bucket
        start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        later = np.flatnonzero(~new)
        for earlier in (later - 1, start[later]):
            found.append(order[later].astype(np.uint64) * count + order[earlier].astype(np.uint64))
        found = [np.unique(np.concatenate(found))]
    return np.stack([found[0] % count, found[0] // count], axis=1).astype(np.int64)


def find_copies(signatures, gates, verify, threshold=THRESHOLD):
    """{row: the earlier row of which it is a near copy}; the first of several is kept.

    verify(earlier, later) -> bool is asked about the candidates whose signatures agree best, at
    most QUESTIONS for a row. A copy stands for what it copies, so 10,000 copies of a row cost
    10,000 questions.
    """
    copy_of = {}
    for row, pairs in groupby(neighbours(signatures, gates).tolist(), key=lambda pair: pair[1]):
        others = np.array(sorted({copy_of.get(first, first) for first, _ in pairs}))
        agreement = (signatures[others] == signatures[row]).mean(axis=1)
        best = np.argsort(-agreement, kind="stable")[:QUESTIONS]
        for earlier in others[best[agreement[best] >= threshold - SLACK]].tolist():
            if verify(earlier, row):
                copy_of[row] = earlier
                break
    return copy_of
