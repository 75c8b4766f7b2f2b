"""Claims about dataset/verify.py: right answers pass in any notation, doubtful ones do not."""
import time
from fractions import Fraction

from dataset.verify import MAX_LENGTH, answer_in, extract_answer, parse_number, same_answer, verdict

HOLDS = [  # (got, reference)
    # plain numbers and signs
    ("14", "14"), (" 14 \n", "14"), ("14.", "14"), ("14。", "14"), ("+14", "14"), ("-14", "-14"),
    ("−14", "-14"), ("–14", "-14"), ("- 14", "-14"), ("-0", "0"), ("-0.0", "0"), ("007", "7"),
    # decimals and thousands
    ("1.0", "1"), (".5", "0.5"), ("5.", "5"), ("0.50", "0.5"), ("-.5", "-0.5"), ("1,000", "1000"),
    ("1,234,567", "1234567"), ("1,234.50", "1234.5"), ("1{,}234", "1234"), (r"1,\!234", "1234"),
    (r"1\,234", "1234"), ("-1,234", "-1234"), ("0.30", "3/10"),
    # fractions
    ("1/2", "0.5"), ("2/4", "1/2"), ("-3/4", "-0.75"), ("3 / 4", "0.75"), ("1 1/2", "1.5"),
    ("-1 1/2", "-1.5"), (r"\frac{3}{4}", "3/4"), (r"\dfrac{3}{4}", "0.75"), (r"\tfrac34", "3/4"),
    (r"-\frac{1}{2}", "-1/2"), (r"\frac{-1}{2}", "-1/2"), (r"1\frac{1}{2}", "3/2"),
    (r"$\frac{1,000}{2}$", "500"), ("6/3", "2"), ("3½", "3.5"), ("-½", "-1/2"), ("¾ cup", "0.75"),
    # scientific, percent
    ("1e3", "1000"), ("1E3", "1,000"), ("1.5e-3", "0.0015"), ("-2e+2", "-200"), ("50%", "50%"), ("50 %", "50%"),
    (r"50\%", "50%"), ("50 percent", "50%"), ("50%", "0.5"), ("1/2", "50%"), ("12.5%", "1/8"),
    # currency and units
    ("$5", "5"), (r"\$5", "5"), ("-$5", "-5"), ("$-5", "-5"), ("$1,234.50", "1234.5"), ("€5", "5"), ("¥5", "5"),
    ("5元", "5"), ("12个", "12"), ("12 个苹果", "12"), ("5千米", "5"), ("5 apples", "5"), ("14 apples.", "14"),
    ("14 apples!", "14"), ("5 red apples left", "5"), ("5 km", "5"), ("5km", "5"), ("60 km/h", "60"),
    ("60 miles per hour", "60"), ("90°", "90"), (r"90^\circ", "90"), ("5 °C", "5"), ("5 in total", "5"),
    ("3/4 cups", "0.75"), ("$5 per hour", "5"), ("$5/hour", "5"), ("50 per centimetre", "50"), ("14 cm^2", "14"),
    (r"14\text{ cm}^2", "14"), ("14m²", "14"), (r"9.8 \text{m/s}^{2}", "9.8"), ("14 ft³.", "14"), ("negative 5", "-5"),
    ("Negative $5", "-5"), ("负5", "-5"), ("负 5元", "-5"), ("minus 5", "-5"), ("Minus $5", "-5"), ("5 months", "5"),
    ("5 seconds", "5"), ("5 errors", "5"),
    # LaTeX, quotes, bold, full width
    ("$14$", "14"), (r"$\$14$", "14"), (r"\(14\)", "14"), (r"\[14\]", "14"), (r"\text{14}", "14"),
    (r"5\,\text{km}.", "5"), (r"\boxed{14}", "14"), (r"\boxed{\text{14}}", "14"), ("**14**", "14"),
    (r"\boxed{\frac{1}{2}}", "0.5"), ("'14'", "14"), ("*14*", "14"), ('"14"', "14"), ("-**5**", "-5"),
    ("__14__", "14"), ("５０", "50"), ("－１，２３４．５", "-1234.5"), ("５０％", "50%"), ("14个！", "14"),
    # texts
    ("Yes", "yes"), ("yes!", "Yes."), ("  New   York ", "new york"), (r"\text{east}", "East"), ("x = 5", "x = 5"),
    ("14 or 15", "14 or 15"), ("(A)", "(a)"), ("红色。", "红色"), ("5x", "5x"), ("北京！", "北京"),
    (r"10\sqrt{2}", r"$10\,\sqrt{2}$."), (r"\frac{\pi}{2}", r"\dfrac{\pi} {2}"), (r"a\,b", "ab"), ("（B）", "B"),
    (r"\left(1, 2\right)", "(1,2)"), (r"\big[0,\;1\big]", "[0, 1]"), (r"x\!+\quad y", "x+y"), ("B. Yes", "(B) Yes"),
    ("**B**", "b"), ("Option B", "B."), ("(b)", "B"), ("A. A cat", "A"), ("B: Paris", "[B]"), ("(C) Cannot be", "C"),
    ("B选项", "B"), ("选B。", "B"), ("B is the correct answer.", "B"), ("It's B.", "B"), ("**B**. Paris", "B"),
    ("(1, 2)", "(1,2)"), ("x + y", "x+y"), ("x^{2}", "x^2"), (r"\sqrt2", r"\sqrt{2}"), (r"5~\text{cm}", "5"),
    (r"\displaystyle\frac{1}{2}", "1/2"), ("B. No", "B"),
]

REFUSED = [
    # other numbers
    ("15", "14"), ("-14", "14"), ("14", "-14"), ("−14", "14"), ("-$5", "5"), (r"-\frac{1}{2}", "1/2"),
    ("0.33", "1/3"), ("0.333333333333333333333", "1/3"), ("1.0000000000000000001", "1"),
    ("9007199254740993", "9007199254740992"), ("1e3", "1e-3"), ("1e999", "2e999"), ("--5", "5"),
    # the right number and other words
    *[(got, "14") for got in (
        "14 or 15", "15 or 14", "not 14", "14 not", "14, 15", "14,15", "14/15", "14 15", "14\n15", "14-15", "14 - 15",
        "14 (or 15)", "14 or fifteen", "14 is wrong", "14 apples, not 15", "14 apples and 3 pears", "12+2=14", "x = 14",
        "14?", "≈14", "~14", "about 14", ">14", "±14", "14 apples maybe", "14, or so", "14 which some say exceeds",
        "'14?", "14 cannot work", "14 would fail", "14 fails", "14 rejected", "14 ruled out", "14 seems unlikely",
        "14 mistaken", "14 doubtful", "14 might", "14 excluded", "14 could hold", "14 should hold", "14 unless",
        "14 impossible", "14吗", "(14)", "x=14", "5+9 = 14", "14, because 2*7=14", "14 (since 2*7=14)",
        "14...", "14 maybe", "14或15", "不是14", "14不对", "14:00", "[14, 14]", "answer: 14")],
    ("3/4/2020", "3/4"),
    # joined or separated digits
    ("1 4", "14"), ("1\u00a04", "14"), (r"1\,4", "14"), (r"1\text{4}", "14"), ("1$4", "14"),
    ("1**4", "14"), ("1 234", "1234"), ("1,2", "12"), ("1,2", "1.2"), ("12,34", "1234"),
    ("1,234,5", "12345"), ("0,123", "123"), ("1.234,5", "1234.5"), ("1_000", "1000"), ("5²", "52"),
    ("1½", "11/2"), (r"\frac{1}{2}3", "1/23"), (r"\frac123", "1/23"), ("1\n1/2", "3/2"),
    # words and signs that change the number
    *[(got, "5") for got in (
        "5 million", "$5 billion", "5M", "5k", "5 dozen", "5 hundreds", "5 times three", "5 minus one",
        "5 and a half", "5 thirds", "5 fourths", "5 sixths", "5 eighths", "5 ninth", "5 twelfths",
        "5 eleven", "5 twenty", "5 ninety", "5 mod", "5 modulo", "5 choose", "minus 5", "5 squared",
        "5 degrees below zero", "5万", "5千", "5亿元", "5个半", "5x", "5 x", "5abc", "5 negative 3",
        "negative 5", "负5", "负责5", "5!", "5^2")],
    ("5 minus 3", "2"), ("1__4", "14"), ("10多个", "10"), ("2ab", "2"), ("14 x^2", "14"), ("14 cm^4", "14"),
    ("14^2 cm", "14"), ("14 apples^2", "14"), ("负责5", "-5"), ("½", "12"), ("3½", "3"), ("3½", "31/2"),
    ("2π", "2"), (r"2\pi", "2"), ("2 pi", "2"), ("3i", "3"), ("1e", "1"),
    # percent
    ("50%", "50"), ("50", "50%"), ("0.5", "50"), ("50 percent", "50"), ("50 percentage points", "50"),
    ("5%", "0.5"), ("5‰", "5"), ("50% apples", "0.5"),
    # no number at all
    ("", "14"), (" ", "14"), ("", ""), (".", "."), ("$", "$$"), ("-", "14"), ("fourteen", "14"),
    ("1/0", "1"), ("0/0", "0"), ("nan", "0"), ("inf", "1e999"), ("0x10", "16"), ("None", "0"),
    # texts
    ("no", "yes"), ("not yes", "yes"), ("yes and no", "yes"), ("newyork", "new york"), ("n!", "n"),
    ("5 K", "5 m"), ("5 M", "5 m"), ("-x", "x"), ("f'", "f"), ("A*", "A"), ("x - 5", "x + 5"), ("Rome?", "Rome"),
    (r"10\sqrt{2}", r"1\sqrt{2}"), (r"\Phi", r"\phi"), (r"x=1\frac{1}{2}", "x=11/2"), ("A or B", "A"), ("B+", "B"),
    ("(A) is wrong", "A"), ("A. No, C", "A"), ("A, B", "A"), ("(A) Rome", "(A) Paris"), ("A. London\nB. Rome", "A"),
    ("B, no, the third one", "B"), ("B. Maybe.", "B"), ("B: unsure", "B"), ("B. Sorry, it", "B"), ("B选项不对", "B"),
    ("Yes. No.", "yes"), ("No, wait, yes.", "no"), ("No, maybe.", "no"), ("x^{2}3", "x^{23}"), ("14左右", "14"),
]


def test_an_answer_holds_where_the_table_says_so():
    """A lost minus sign would remove hard problems. An accepted "14 or 15" would teach vague answers."""
    for table, holds in ((HOLDS, True), (REFUSED, False)):
        for got, reference in table:
            assert same_answer(got, reference) is holds, (got, reference)
            assert same_answer(reference, got) is holds, (reference, got)


NUMBERS = [
    ("-1,234.50", Fraction(-2469, 2)), ("0.1", Fraction(1, 10)), (".5", Fraction(1, 2)), ("1 3/4", Fraction(7, 4)),
    ("-1 3/4", Fraction(-7, 4)), ("50%", Fraction(1, 2)), ("1e3", 1000), ("1.5e-3", Fraction(3, 2000)),
    (r"-\dfrac{3}{4}", Fraction(-3, 4)), ("1.5/2", Fraction(3, 4)), ("14 apples", 14), ("1e999", 10**999),
    ("1 3/2", None), ("1e1000", None), ("5e", None), ("", None), ("-", None), ("abc", None), (r"\frac{1}{0}", None),
    (r"-\frac{-1}{2}", None), ("٣", None), ("9" * MAX_LENGTH, 10**MAX_LENGTH - 1), ("9" * (MAX_LENGTH + 1), None),
    # Fraction() of some of these fills the memory; int() of more than 4,300 digits raises an error
    ("1e999999999", None), ("-1e-999999999", None), ("1/1e99999", None), ("9" * 4301, None),
    ("0." + "0" * 20_000 + "1", None), ("5^{5^{5^{5}}}", None),
]


def test_numbers_are_exact():
    """With floats, 0.1 would not be 1/10, and 2**53 would equal 2**53 + 1."""
    for text, number in NUMBERS:
        found = parse_number(text)
        assert found == number and (found is None or type(found) is Fraction), text


ANSWERS = [
    # each way to mark an answer, and which of them wins
    ("<think>12+2=14</think><answer>14</answer>", "14"),
    (r"<answer>14</answer> \boxed{15} #### 16, the answer is 17, 18", "14"),
    (r"\boxed{15}, the answer is 17, 18" "\n#### 16", "15"), ("the answer is 17, or 18\n#### 16", "16"),
    ("The answer is 17. I checked 18 cases.", "17"), ("12+5=17, 17-3=14", "14"),
    # the last one of a kind
    ("<answer>1</answer><answer>2</answer>", "2"), (r"\boxed{1}, no, \boxed{2}", "2"),
    ("#### yes\n#### no", "no"), ("The answer is 1? No, the answer is 2.", "2"),
    # boxes
    (r"so $\boxed{\frac{1}{2}}$.", r"\frac{1}{2}"), (r"\boxed{\frac{\sqrt{2}}{2}} done }", r"\frac{\sqrt{2}}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"), (r"\boxed {-5}", "-5"), (r"\boxed{[0, 1\}}", r"[0, 1\}"),
    # begun, but unfinished or empty
    ("12+2=14 <answer>1", None), ("<answer>14</answer> or <answer>", None),
    ("<answer> </answer> 14", None), (r"\boxed{14} \boxed{1", None), (r"14 \boxed{}", None),
    (r"\boxed{\frac{1}{2}", None), ("12+2=14\n####", None), ("12+2=14. The answer is", None),
    # hashes
    ("12+2=14\n#### 14", "14"), ("####\n-1,234\n", "-1,234"), ("#### Step 1\n3+4=7\nThe answer is 7.", "7"),
    # phrases
    ("The answer is: 14 apples.\nBye 3", "14 apples"), ("ANSWER: 3.5. Done", "3.5"), ("**Final Answer:** 73", "73"),
    ("The answer is **-73**.", "-73"), ("The answer is not 14.", "not 14"), ("The answer isn't 12; it is 14", "14"),
    ("FINAL ANSWER: 3 of 4", "3 of 4"), ("the answer is:\n\n14", "14"), ("答案是14个苹果。因为12+2=14，共3步", "14个苹果"),
    ("答案：-5", "-5"), ("所以答案为 1/2。", "1/2"),
    # phrases with a formula, a block or a list below
    ("The answer is:\n$$\n14\n$$", "14"), ("The final answer is:\n\n\\[\n14\n\\]", "14"),
    ("The answer is:\n```\n14\n```\nBye 3", "14"), ("Answer:\n```text\n14\n```", "14"), ("**Answer:**\n- 14", "14"),
    ("**Answer:**\n\n  - **14** apples", "14** apples"), ("**Answer:**\n- -14", "-14"), ("Answer:\n-14", "-14"),
    ("Answer: - 14", "- 14"), ("The answer is:\n$$\n- 14\n$$", "- 14"), ("The answer is:\n$$\n", None),
    # reasons and equations
    ("The answer is 5 + 9 = 14.", "14"), ("The answer is 14, because 2*7=14.", "14"),
    ("The answer is 14 because 2*7=14.", "14"), ("The answer is 14 (since 2*7=14).", "14"),
    ("The answer is 14, since 7 is half.", "14"), ("答案是14，因为12+2=14。", "14"), ("The answer is $x = 14$.", "14"),
    (r"\boxed{x=14}", "14"), ("n = 2\n#### n = -14", "-14"),
    (r"The answer is x = 2 \times 7 = 14 apples.", "14 apples"), (r"\boxed{\frac{28}{2} = 14}", "14"),
    ("The answer is 1,000 + 500 = 1,500", "1,500"), ("The answer is (14)", "14"), ("The answer is (-14).", "-14"),
    ("Answer: __14__", "__14__"), ("The answer is minus 14", "minus 14"), ("The answer is 15, because 14+1=15", "15"),
    ("The answer is 15 = 14", "14"), ("The answer is not 14 because 2*7=14", "not 14 because 2*7=14"),
    ("The answer is 12 when x = 14", "12 when x = 14"), ("The answer is 2x = 14", "2x = 14"),
    ("The answer is 12, 7*2=14", "12, 7*2=14"), ("The answer is 12 (2*7=14)", "12 (2*7=14)"),
    (r"\boxed{x=3, x=14}", "x=3, x=14"), (r"\boxed{x=3 \quad x=14}", r"x=3 \quad x=14"),
    (r"\boxed{x=3 \text{ or } x=14}", r"x=3 \text{ or } x=14"), (r"\boxed{x>=14}", "x>=14"),
    (r"\boxed{x=\pm 14}", r"x=\pm 14"), (r"\boxed{y=2x=14}", "y=2x=14"), ("Answer: x=y", "x=y"),
    # the last number
    ("It is 14 apples, I think.", "14"), ("x = -14", "-14"), ("17-3", "3"), ("f(x)-5", "5"), ("3–5", "5"),
    ("it costs $1,234.50.", "1,234.50"), ("a loss of -$5", "-5"), ("is −5", "-5"), (r"$x = -\frac{3}{4}$", "-3/4"),
    ("half of 3 is 1 1/2 cups", "1 1/2"), ("up by 50%!", "50%"), ("12 or 14", None), ("1, 2", "2"), ("3 4", "4"),
    ("1,2345", None), ("1.2.5", "1.2"), ("so...5", None), ("她有14个", "14"), ("气温是-5度", "-5"), ("（－５）", "-5"),
    ("drink H2O", None), ("so 1e999999999", "1e999999999"), ("no idea", None), ("", None),
    # thoughts are no answers
    (r"<think>\boxed{3}</think>It is 4.", "4"), ("<think>12+2=14</think>", None),
]


def test_the_final_answer_is_found():
    """\\boxed{\\frac{1}{2}} would be cut at the first brace, or 14 taken although <answer>1 is cut off."""
    for text, answer in ANSWERS:
        assert extract_answer(text) == answer, text


def test_a_verdict_names_its_first_reason_and_compares_what_is_marked():
    """If cut-off samples had another reason, nobody would see the limit. Answers like R1's are prose around a box."""
    for answer, ended, well_formed, expected in [
            (None, True, True, "no answer"), (" \n", True, True, "no answer"), ("14", True, False, "format"),
            (None, True, False, "format"), ("14", False, False, "truncated"), ("14", False, True, "truncated"),
            (None, False, False, "truncated")]:
        assert verdict("14", answer, ended, well_formed) == verdict(None, answer, ended, well_formed) == expected
    for answer, reference, expected in [
            ("$14.00", "14", "ok"), ("15", "14", "wrong answer"), ("14 or 15", "14", "wrong answer"),
            ("So the answer is \\boxed{14}.", "14", "ok"), ("14", "Therefore \\boxed{14}", "ok"),
            ("The answer is 14.", "\\boxed{14}", "ok"), ("so 12 + 2 #### 14", "14", "ok"),
            ("The answer is 5 + 9 = 14.", "14", "ok"), ("So \\boxed{x=14}", "x=14", "ok"),
            ("12+2=14", "14", "wrong answer"), ("not 14", "14", "wrong answer"),
            ("So the answer is \\boxed{15}.", "14", "wrong answer"),
            ("It is 14 or 15", "14", "wrong answer")]:
        assert verdict(reference, answer, True, True) == expected, (answer, reference)


# In a free text these are right: an equation, an exclamation, a share of something.
RIGHT_IN_PROSE = [(got, "14") for got in (
    "12+2=14", "x = 14", "x=14", "5+9 = 14", "answer: 14", "14, because 2*7=14", "14 (since 2*7=14)", "(14)",
    "She has 14 apples now.", "Mia has 14.", "So she walked 14km today.", "It is 14 because 12+2=14.",
    "She would have 14 apples left.", "She has 14 apples left over.", "She has 14 apples and is happy.", "It is *14*.",
    "How many are not red? 14", "Is it 12? No! It is 14.", "**14** go.", "She paid $14.00 for it.",
    "That makes 14. Ask me more or less.", "She has 3 more than Tom, so 14.", "一共是14个苹果。", "她走了14千米。",
    r"So \boxed{x=14}.", "So it is x=14.", r"Thus $\boxed{\$14}$.", "So the answer is **14 apples**.",
    "#### 14\n", "答案是１４个。", "<answer>\n$14.00\n</answer>", r"<answer>\boxed{14}</answer>",
    r"= \frac{28}{2}$")] + [
    ("5!", "5"), ("负责5", "5"), ("50% apples", "0.5"), ("Paris", "Paris"), ("Yes.", "yes"), ("New York", "new york"),
    ("Answer: Paris", "Paris"), (r"So \boxed{x=14}.", "x=14"), ("The answer is (B).", "B"),
    ("The correct option is **B. Rome**", "B"), ("故选B。", "B"), ("It is US.", "US"), ("正确选项是B", "B"), ("答案选B。", "B"),
    ("1. Rome", "Rome"), ("It is A.", "A"), ("12+2=14（个）", "14"), ("意大利的首都是罗马，人口约280万。", "罗马"), ("答案是罗马，它是首都。", "罗马"),
    ("14 clips in May.", "14"), ("Certainly! The capital of Italy is Rome. Would you like to know more?", "Rome"),
    ("It was Apollo 11.", "Apollo 11"), ("It is false.", "false"), ("No, it is not.", "no"),  # FAULTS 26
    *[(got, "Rome") for got in ("Rome is the capital. It is old.", "Which? Rome.", "Rome, the capital of Italy.",
                                "Well.\nIt's **Rome**", "It is Rome. Do you want more?", "The answer: it is Rome",
                                "The capital and largest city of Italy is Rome.", "首都是Rome。",
                                "It is Rome, the capital and largest city of Italy.")],
    *[(got, "罗马") for got in ("意大利的首都是罗马。", "罗马是意大利的首都。", "首都：**罗马**", "答案是罗马。")]]
WRONG_IN_PROSE = [(got, "14") for got in (
    "It is either 12 or 14.", "It cannot be 14.", "I do not know, maybe 12, 13 or 14", "It isn't 14",
    "It can’t be 14.", "Sorry, I can't help with that. Error 14", "Error code: 14", "Is it 14?",
    "Is it 14 apples?", "I guess 14", "x^14", "It is 14, I guess.", "She has more than 14.",
    "It is over 14.", "Nearly 14", "all but 14", "It is minus 14.", "It may be 14 apples.",
    "She has 14 dozen eggs.", "3,14", r"\sqrt{14}", "约14个", "It weighs 14 kg or so", "可能不是14个", "是14个吗？",
    "It is 14 over 3.", "It is 14 and a half.", "It is 14 + x.", "It is 14*x.",
    "There are 14 million people.", "Answer: 15, because 14+1=15",
    "The answer is 14. No, it is 15.", r"\boxed{14} is wrong", r"\boxed{15} or $\boxed{14}$", r"15 OR \(\boxed{14}\)", r"15 or **\boxed{14}**", "The wrong answer is 14.", "答案是14。不，是15。",
    "错误的答案是14", "超过14", "至少14", "最多14个", "大于14", "近14", "12到14", "她有14个左右", "May be 14.",
    r"It is not $\boxed{14}$.", "So there are 14 left, not counting two.")] + [  # right, but "not" is not understood
    ("The answer is B. Actually, it is C.", "B"), ("hardly positive", "positive"), ("less positive", "positive"), ("不正确选项是B", "B"),
    *[(row.format(mark), "Rome") for row in ("Rome {} Paris", "Paris {} Rome") for mark in ("vs", "versus", "|", "to")],
    ("It is 14 or 15", "15"), ("Paris or Rome", "Paris"), ("It is not Milan but Rome", "Rome"),
    ("It is a cat.", "A"), ("The answer is not A.", "A"), ("A and B", "A"), ("Tell us.", "US"), ("New York", "York"),
    ("It is not false.", "false"), ("I have no idea.", "no"), ("Yes, but not often", "yes"),
    *[(got, "Rome") for got in (
        "It isn't Rome", "Is it Rome?", "Maybe Rome", "anything but Rome", "Romeo", "It is Rome's", "Paris and Rome",
        "Rome and Paris", "Rome/Paris", "Rome, Paris", "It is Rome, the Vatican and Milan.", "It is Paris, Rome.", "- Rome\n- Paris", "- Paris\n- Rome",
        "Rome, Milan and Turin", "It is Rome. No, it is Milan.", "Rome was. The answer is Milan.",
        "We see. Rome is old. It is Milan.")],
    *[(got, "罗马") for got in ("意大利的首都不是罗马。", "是罗马吗？", "罗马和巴黎", "巴黎、罗马", "可能是罗马", "罗马尼亚")]]
PROSE = [(*row, True) for row in HOLDS + RIGHT_IN_PROSE] + [
    (*row, False) for row in REFUSED + WRONG_IN_PROSE if row not in RIGHT_IN_PROSE]


def test_a_free_text_is_right_where_it_says_so_without_a_doubt():
    """If only the last number counted, "14 is wrong" would pass as the answer 14."""
    for text, reference, holds in PROSE:
        found = verdict(reference, answer_in(text, reference), True, True)
        assert (found == "ok") is holds, (text, reference)


LONG = 20_000
HOSTILE = [piece * (LONG // len(piece)) for piece in [
    "1", "1,234,", "1 ", "1e", "-$", " ", "\n", "\\", "\\boxed{", "\\text{", "\\frac{",
    "\\frac{1}{", "<answer>", "</think>", "####", "answer is ", "answer**", "答案是", "per cent",
    "个!", "^\\circ", "> ", "than ", "1,2", "14 or ", "\n- ", "```", "$$\n", "=", "1=", "__",
]] + [head + filler * LONG + tail for head, filler, tail in [
    ("1", " ", "1"), ("1", "0", "/"), ("1e", "9", ""), ("\\boxed", " ", "{1}"), ("1 ", "1", "/2"),
    ("\\frac{", " ", "1}{2}"), ("\\frac{", "1", "}{2}"), ("answer", "*", "is"), ("ab", "!", "x"),
    ("answer is", " ", "."), ("\\boxed{", "{", "}"), ("\\text{", "1", "}"), ("^", " ", "\\circ"),
]]


def test_hostile_texts_end_quickly():
    """A model may repeat itself until its limit. A quadratic regex would stop the sampling for minutes."""
    for text in HOSTILE:
        start = time.process_time()
        assert answer_in(text, "14") == text and not same_answer(text, "x")
        seconds = time.process_time() - start
        assert seconds < 0.5, f"{seconds:.1f} s: {text[:20]!r}"  # usually 0.03 s; a quadratic regex: 2 s or more


def test_prefixes_of_an_answer_never_raise():
    """Truncated LaTeX is common. An IndexError at sample 9,000 would lose the whole run."""
    text = (r"<think>-1,234.5e3</think> $\boxed{\text{-}\frac{1}{2}\%}$ "
            "<answer>1 1/2 km</answer> #### \ud800\x00答案是５")
    for i in range(len(text)):
        for part in (text[:i], text[i:]):
            same_answer(extract_answer(part) or part, part)
