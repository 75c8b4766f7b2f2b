"""Find rows that are nearly the same: MinHash and LSH find candidates, exact Jaccard decides.

Stories share templates, so the same sentences with other numbers are a different problem. Two rows
of the same kind are near copies if three conditions hold:

1. Prompt and answer have the same numbers and signs in the same order. Only such rows are compared.
2. The prompts have a Jaccard similarity (shared word pairs / all) of THRESHOLD or more, and so have
   the answers. About one word in seven may differ. Case and punctuation do not count.
3. At most one row has a name that the other lacks: stories of Mia and of Tom are not copies. A name
   is a word that is capitalised or occurs twice. Two of its letters may be swapped.

Chinese has no capitals, so a row that differs only in a name may be dropped. Differences from the
papers: word pairs instead of longer runs (Broder 1997), because texts are short. A row is compared
with at most 4 others, not its bucket (Leskovec et al. 2014, 3.4): linear time in the rows.
"""
import functools
import re
from collections import Counter, defaultdict
from hashlib import blake2b

import numpy as np

from dataset.verify import NARROW

THRESHOLD = 0.55
BANDS, ROWS = 20, 3  # rows with similarity 0.55 meet in 97 % of cases, with 0.65 in 99.8 %
QUESTIONS = 4        # a row is compared with at most so many others
SLOPES, SHIFTS = np.random.default_rng(0).integers(1, 2**64, (2, BANDS * ROWS), dtype=np.uint64)
# Some languages put no spaces between words. There each letter counts as a word.
UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
            "\U00020000-\U0003ffff")
SIGNS = tuple("-+*/^=<>×÷")
SIGN = (rf"[{''.join(SIGNS)}](?= ?-?[(.$]?\d)|[+*/^=<>](?= ?[a-z]\b)"  # 3 - 2, x + y = -2
        r"|-(?=[a-z]\b)")  # x-y; not e-mail
PUNCTUATION = r"!-/:-@\[-`{-~¡-¿\u2000-\u206f\u3000-\u303f\ufe30-\ufe4f\uff00-\uff0f"
WORD = re.compile(rf"\d+(?:[.,]\d+)*%?|[{UNSPACED}]|(?:(?![{UNSPACED}])[^\W\d_])+|{SIGN}"
                  rf"|[^\w\s{PUNCTUATION}]")  # the last: emoji and other signs


def words(text):
    """Text -> its words, in lower case and half width, without punctuation. No words: [text]."""
    text = text.translate(NARROW).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # 1,234 is 1234
    return WORD.findall(text) or [text.strip()]


def numbers(found):
    """List of words -> its numbers and signs, in order, as one string: " 12 + 5 "."""
    return " ".join(["", *(word for word in found if word in SIGNS or word[:1].isnumeric()
                           and not "\u2e80" < word[0] < "\ua000"), ""])  # 五 is a word


@functools.lru_cache(1024)
def sketch(prompt, answer):
    """-> four sets: word pairs of the prompt, of the answer, names, words (letters sorted)."""
    sides = words(prompt), words(answer)
    pairs = [set(zip(side, side[1:])) or set(side) for side in sides]
    counts = Counter(sides[0] + sides[1])
    names = {word.casefold() for word in re.findall(r"[^\W\d_]{2,}", f"{prompt} {answer}")
             if word.istitle()} | {word for word, n in counts.items() if n > 1}
    return *pairs, *({"".join(sorted(word)) for word in found} for found in (names, counts))


def similar(a, b):
    """True if two rows (prompt, answer) meet conditions 2 and 3 above."""
    *pairs_a, names_a, words_a = sketch(*a)
    *pairs_b, names_b, words_b = sketch(*b)
    shared = [len(x & y) / len(x | y) for x, y in zip(pairs_a, pairs_b)]
    return min(shared) >= THRESHOLD and not (names_a - words_b and names_b - words_a)


def bands(prompt, answer):
    """MinHash: the smallest value of each of 60 hash functions over the word pairs, as 20 keys of 3
    values. Two rows agree in a value with a probability equal to their Jaccard similarity."""
    codes = [blake2b(repr((side, pair)).encode(), digest_size=8).digest()  # hash() varies by run
             for side in (0, 1) for pair in sketch(prompt, answer)[side]]
    codes = np.frombuffer(b"".join(codes), dtype=np.uint64)  # (n,)
    least = (np.outer(SLOPES | np.uint64(1), codes) + SHIFTS[:, None]).min(1).tolist()  # (60,)
    return [(band, *least[band::BANDS]) for band in range(BANDS)]


def find_copies(rows):
    """Rows (kind, prompt, answer) -> {row: an earlier row of the same kind that it copies}."""
    groups, copy_of = defaultdict(list), {}
    for row, (kind, prompt, answer) in enumerate(rows):
        groups[kind, numbers(words(prompt) + words(answer))].append(row)
    for group in groups.values():
        buckets = defaultdict(list)  # key of a band -> the last two rows that have it
        for row in group if len(group) > 1 else ():
            keys = bands(*rows[row][1:])
            met = Counter(other for key in keys for other in buckets[key])
            for other, _ in met.most_common(QUESTIONS):
                if similar(rows[other][1:], rows[row][1:]):
                    copy_of[row] = other
                    break
            else:  # a copy goes into no bucket: its original is there
                for key in keys:
                    buckets[key] = [*buckets[key][-1:], row]
    return copy_of
