"""Lesson 8: a test over seeds, and a judge of claims."""
T95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}  # number of seeds -> Student's t, 95 %


def sign_flip_p(differences):
    """Two-sided, exact paired permutation test over seeds -> p, a float from 0 to 1

    differences: list of n numbers (1 to 12), one a seed: how much recipe A scored above recipe B.
    If A and B are equally good, each difference could as well have the other sign. So there are
    2 ** n equally likely lists of signs. p is the share of them whose sum is at least as far from 0
    as the sum of `differences`. Sums that differ by less than 1e-9 count as equal.
    """
    raise NotImplementedError


def verdict(better, than, rows):
    """Do the rows show that recipe `better` is better than recipe `than`? -> str

    rows: list of dicts, in any order: "recipe", "seed", "data" (file of the questions), "exact"
    (share of right answers). The runs of recipe better + "-wall" took as many steps as fit into
    the time of `than`. Return the first that applies:
        "one seed"            `better` or `than` has fewer than two rows
        "unpaired"            `better` and `than` do not have the same seeds
        "validation"          a row of `better` or `than` does not come from a file test.jsonl
        "not seen"            the 95 % interval of better - than is not completely above 0
        "equal tokens only"   there are no rows of better + "-wall", or they do not have the seeds
                              of `than`, or their interval is not completely above 0
        "shown"
    The interval is mean +- T95[n] * s / sqrt(n) of the n differences, paired by seed. s is their
    standard deviation, with n - 1. Nobody here has more than six seeds.
    """
    raise NotImplementedError
