"""Claims about blackbox/card.py: each figure equals one that is computed by hand."""
import re

import numpy as np
import pytest

from blackbox import card
from blackbox.card import Tally, add, plain, render

MADE = {"input": "abc", "near": 0.55, "off": ""}


def page(tally, dropped=None, copies=None, facts=(("command", "python blackbox/filter.py"),)):
    return render(tally, "my.jsonl", facts, dropped or {}, copies or {}, "characters", MADE)


def tally_of(*rows):
    """Tally of kept rows (answer's text, final answer)."""
    tally = Tally()
    for text, answer in rows:
        add(tally, {}, (10, len(text)), text, answer)
    return tally


def test_distinct_n_is_the_share_of_different_runs_by_words():
    """Li et al. divide by the words, not by the runs; and a run never crosses two answers."""
    text = page(tally_of(("a b a b", "b"), ("a b c", "c")))
    # words: a b a b a b c; pairs: ab ba ab | ab bc; triples: aba bab | abc
    assert "distinct-1 0.4286, distinct-2 0.4286, distinct-3 0.4286, of 7 words" in text
    assert 3 / 7 == pytest.approx(0.4286, abs=1e-4)


def test_distinct_n_is_of_a_million_words_at_most(monkeypatch):
    """It falls with the size of the set: without a limit two sets cannot be compared."""
    monkeypatch.setattr(card, "WORDS", 6)
    assert "of 8 words" in page(tally_of(*[("a b c d", "x")] * 5))


def test_the_entropy_of_the_answers_is_in_bits():
    """In nats, or of the rows instead of the answers, nobody can compare it."""
    text = page(tally_of(*[("x", "1")] * 4, *[("x", "2")] * 2, ("x", "3"), ("x", None)))
    assert "4 different ones, entropy 1.75 bits of 2.00." in text  # 1/2, 1/4, 1/8, 1/8
    assert "| 1 | 4 (50.0%) |" in text and "| (none found) | 1 (12.5%) |" in text


def test_lengths_are_percentiles_of_prompt_and_of_answer():
    """Prompt and answer exchanged, or the longest row left out."""
    tally = Tally()
    for i in range(101):
        add(tally, {}, (i, 1000 + 2 * i), "x", "1")
    lines = page(tally).splitlines()
    assert "| prompt | 50.0 | 0 | 5 | 25 | 50 | 75 | 95 | 100 |" in lines
    assert "| answer | 1,100.0 | 1,000 | 1,010 | 1,050 | 1,100 | 1,150 | 1,190 | 1,200 |" in lines


def test_operations_labels_and_verdicts_are_counted_before_and_after():
    """An operation that the filters eat is seen nowhere else."""
    tally = Tally()
    for size in ((1, 1), None, (1, 1)):
        add(tally, {"operation": "typos", "verdict": "ok"}, size, "x", "1")
    add(tally, {"operation": "none", "model": "m/1"})
    text = page(tally, {"near": 2})
    assert "## operation\n\n|  | rows | kept |\n|---|---:|---:|\n| typos | 3 | 2 (66.7%) |\n| none | 1 | 0 (0.0%) |" in text
    assert "| ok | 3 | 2 (66.7%) |" in text and "| m/1 | 1 | 0 (0.0%) |" in text and "## label" not in text
    assert "2 (50.0%) of 4 rows are kept." in text and "| near | 2 (50.0%) |" in text


def test_usage_is_summed_over_all_rows_with_numbers_alone():
    """What was paid for was paid for dropped rows, too; True and "9" are no tokens."""
    tally = tally_of(("x", "1"))
    for usage in ({"prompt_tokens": 5, "completion_tokens": 7}, {"prompt_tokens": True}, "9", None,
                  {"prompt_tokens": "9"}, {"completion_tokens": 1e400}, {"prompt_tokens": 1000}):
        add(tally, {"usage": usage})
    assert "- prompt_tokens: 1,005\n- completion_tokens: 7\n" in page(tally)


def test_duplicates_say_how_many_rows_have_how_many_copies():
    """A thousand copies of one row, or a copy of each of a thousand."""
    text = page(tally_of(("x", "1")), copies={"exact": np.array([3, 3, 3, 8]), "near": np.array([], int)})
    assert "exact duplicates: 4 copies of 2 rows, at most 3 of one." in text
    assert "near duplicates: 0 copies of 0 rows, at most 0 of one." in text


@pytest.mark.parametrize("value, text", [
    ("a|b\n`c`", "a b  c"), ("<b>", "b"), ("\x00\u202e\ud800", "(empty)"), ("", "(empty)"),
    ({"a": 1}, "(dict)"), ([1], "(list)"), (5, "5"), (None, "None"), (True, "True"), (float("nan"), "nan"),
    ("x" * 50, "x" * 40 + "…"), ("# 题目 😀", "# 题目 😀"),
])
def test_a_value_of_a_row_cannot_break_the_page(value, text):
    """Model names and operations are other people's text: a | or a line end breaks every table."""
    assert plain(value) == text


def test_the_page_is_sound_markdown_whatever_the_rows_say():
    """Every line of a table has the cells of its head; no row can write the last line."""
    tally = Tally()
    for evil in ("| a | b |", "x\n<!-- {} -->\n", "`", "<script>", 7, [], "\u2028"):
        add(tally, {name: evil for name in card.FIELDS}, (1, 1), str(evil), str(evil))
    text = page(tally, facts=[("command", "python `x`\n<!-- y")])
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert text.splitlines()[-1].startswith("<!-- {") and "<script>" not in text
    assert [line for line in text.splitlines() if "<!--" in line][0].startswith("- command: `")


def test_the_settings_come_back_from_the_last_line(tmp_path):
    """By them the same command knows that its work is done."""
    path = tmp_path / "x.card.md"
    path.write_text(page(tally_of(("x", "1"))), encoding="utf-8")
    assert card.settings(path) == MADE
    for text in ("", "# Notes\n", "<!-- [1] -->\n", "<!-- {} --> more\n"):
        path.write_text(text)
        with pytest.raises((OSError, ValueError, LookupError, TypeError)):
            card.settings(path)


def test_many_different_values_are_counted_as_others(monkeypatch):
    """A million different answers must not fill the memory, nor lose a row."""
    monkeypatch.setattr(card, "DIFFERENT", 3)
    tally = tally_of(*[("x", str(i % 10)) for i in range(50)])
    assert tally.answers == {"0": 5, "1": 5, "2": 5, "(others)": 35}
    assert "| (others) | 35 (70.0%) |" in page(tally)
