"""Lesson 8, the right solution."""
import itertools
import math
import statistics

T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # number of seeds -> Student's t, 95 %


def sign_flip_p(differences):
    observed, count = abs(sum(differences)), 0
    for signs in itertools.product((1, -1), repeat=len(differences)):
        flipped = abs(sum(sign * d for sign, d in zip(signs, differences)))
        count += flipped >= observed - 1e-9
    return count / 2 ** len(differences)


def verdict(better, than, rows):
    def scores(recipe):
        return {row["seed"]: row["exact"] for row in rows if row["recipe"] == recipe}

    def above(ours, theirs):
        differences = [ours[seed] - theirs[seed] for seed in theirs]
        n = len(differences)
        half = T95[n] * statistics.stdev(differences) / math.sqrt(n)
        return statistics.fmean(differences) - half > 0

    ours, theirs, wall = scores(better), scores(than), scores(better + "-wall")
    if min(len(ours), len(theirs)) < 2:
        return "one seed"
    if ours.keys() != theirs.keys():
        return "unpaired"
    if any(row["data"].split("/")[-1] != "test.jsonl" for row in rows
           if row["recipe"] in (better, than)):
        return "validation"
    if not above(ours, theirs):
        return "not seen"
    if wall.keys() != theirs.keys() or not above(wall, theirs):
        return "equal tokens only"
    return "shown"
