"""Lesson 6, the right solution."""
import re

TIME = re.compile(r"(?:(half past|quarter past|quarter to) )?"
                  r"(?<![\d:.])(\d{1,2})(?::(\d\d))?(?![\d:])(?: ?(am|pm)\b)?", re.I)
EXTRA = {"half past": 30, "quarter past": 15, "quarter to": -15}


def times(text):
    """Text -> a list with one set for each time in it: the minutes of the day that it can mean."""
    found = []
    for words, hour, minutes, half in TIME.findall(text):
        words, half, hour = words.lower(), half.lower(), int(hour)
        if not (words or minutes or half):
            continue  # a bare number
        if hour > 23 or int(minutes or 0) > 59 or (words or half) and not 1 <= hour <= 12:
            continue
        hours = {hour}
        if 1 <= hour <= 12:
            early, late = hour % 12, hour % 12 + 12
            hours = {"am": {early}, "pm": {late}}.get(half, {early, late})
        extra = EXTRA.get(words, int(minutes or 0))
        found.append({(60 * h + extra) % (24 * 60) for h in hours})
    return found


def same_time(text, reference):
    found = times(text)
    return bool(found and set.intersection(*found, *times(reference)))


def keep(rows, share):
    kept, seen = [], []
    for i, row in enumerate(rows):
        if not row["ended"] or not same_time(row["answer"], row["reference"]):
            continue
        words = re.findall(r"[a-z0-9]+", row["question"].lower())
        triples = set(zip(words, words[1:], words[2:]))
        numbers = [word for word in words if word.isdigit()]
        copies = [n == numbers and len(triples & t) / len(triples | t) >= share for n, t in seen]
        if not any(copies):
            kept.append(i)
            seen.append((numbers, triples))
    return kept
