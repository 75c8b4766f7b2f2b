"""Is an answer right? This decides what is kept of a teacher's samples, and what eval.py counts.

    extract_answer("12+2=14, so \\boxed{14}.")     "14"
    parse_number("$1,234.50")                      Fraction(2469, 2)
    same_answer("14 apples", "14")                 True
    verdict("14", "14 or 15", True, True)          "wrong answer"

Refusing right answers removes the hard problems (open-thoughts#21). Accepting wrong answers teaches
the errors. In doubt this file refuses: a number may only have a sign, a currency, a unit, or LaTeX.
Formulas are not evaluated, because 5^{5^{5^5}} would never end (huggingface/Math-Verify#65).
"""
import re
from fractions import Fraction

from dataset.formats import BadRow, parse_row

MAX_LENGTH = 1_000  # characters: a longer text is not a number
# Full width to half width, every minus to "-". NFKC is wrong: it turns 5² into 52, 1½ into 11/2.
NARROW = {0xFF01 + i: 0x21 + i for i in range(94)}
NARROW.update(zip(map(ord, "−‐‑–﹣⁄￥½¼¾"), [*"-----/¥", " 1/2", " 1/4", " 3/4"]))
# 14  1,234  12.5  .5  1e3  3/4  1 1/2  50%
PLAIN = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
VALUE = rf"(?:(\d+) +(?=\d+ */))?({PLAIN})(?: */ *({PLAIN}))?( *%)?"
NUMBER = re.compile(rf"([-+]?) *{VALUE}", re.ASCII)
# In a text the minus of 17-3 is not a sign. The 2 of H2O and the last 5 of 1.2.5 do not count.
NUMBER_IN_TEXT = re.compile(rf"(?:(?<![\w)\]}}])[-+])?(?<![\w.]){VALUE}", re.ASCII)
FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}"
                  r"|([0-9])([0-9]))")
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")
MARKUP = re.compile(r"\\?[$€£¥]|\*\*|__|`|°[CF]?|\^\s*(?:\\circ|\{\\circ\})|\\[,;: ()\[\]]")
SIGNED_MARKUP = re.compile(rf"([-+])(?:{MARKUP.pattern})+\s?")
# "answer is", and the start of a list, a formula or a code block on the next line
PHRASE = re.compile(r"(?:answer\**\s*(?:is\b|[:：=])|答案\**\s*(?:是|为|[:：]))"
                    r"(?:\n[ \t]*[-•] |(?:\$\$|\\\[|```\w*)[ \t]*\n|[\s:：*])*", re.I)

# A unit is up to three words, each in UNITS or of three letters or more. Directly after the digits
# only UNITS count (2ab and 5x are algebra). NO_UNIT changes the number: 5 million, 14 maybe.
UNITS = set("km cm mm m kg mg g lb lbs oz ft in mi l ml s h hr hrs min ms mph".split())
POWER = re.compile(r"\b(km|cm|mm|m|ft|in|mi|s) ?(?:\^ ?\{? ?[23] ?\}?|[²³])")  # cm^2; not x^2
DOUBT = set("""or nor not no never neither either instead cannot cant dont doesnt isnt wasnt wont
    maybe perhaps possibly probably likely unlikely might may could guess guessed unless unsure
    uncertain unclear doubtful dubious questionable approximately approx roughly wrong incorrect
    false untrue mistaken erroneous inaccurate invalid impossible implausible rejected refuted
    disproved denied dismissed discarded excluded ruled 或 不 没 非 无 错 吗 否""".split())
NO_UNIT_ZH = "零一二三四五六七八九十百千万亿两半几多余或和与及到至不没非无错吗否减加乘除约是对还少负比打"
NO_UNIT = DOUBT | set(NO_UNIT_ZH) | set("""hundred thousand lakh million mil mln billion bln
    trillion crore grand dozen gross double two three four five six seven eight nine ten eleven
    twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty
    sixty seventy eighty ninety half halve third quarter fourth fifth sixth seventh eighth ninth
    tenth eleventh twelfth hundredth thousandth millionth percentage pct pi and but then than plus
    minus over divided multiplied squared cubed sqrt factorial mod modulo choose log sin cos tan
    above below under zero negative except without about around almost nearly least most less short
    off was would should if say seem apparently presumably supposedly allegedly hardly barely exceed
    exceeded fail failed""".split())
UNIT_ZH = re.compile(f" ?(?:千[克米瓦])?(?:(?![{NO_UNIT_ZH}])[\u4e00-\u9fff]){{0,8}}")  # 千克: kg

# For last_number: ends of sentences, words that change a number after them, what may follow it
SENTENCE_END = re.compile(r"[\n!;。]|\.(?=\s|$)|(?<=\?)")
WORD = re.compile(r"[a-z]+|千[克米瓦]|[\u4e00-\u9fff]", re.I)
BOUND = re.compile(r"(?:\b(?:than|over|under|above|below|about|around|almost|nearly|least|most|but|"
                   r"minus|except|error(?: code)?:?)|[<>≤≥≠≈~±^√约]) *$|\d,$", re.I)
ENDED = re.compile(rf" ?(?:{'|'.join(sorted(UNITS))})(?![A-Za-z])|\s(?![A-Za-z]\b|[+*/×÷·^])"
                   r"|\*(?!\w)|\.(?!\.)|[,:)'\"’”=—\u4e00-\u9fff]|$")  # not 14x, 14 + y, 14...
EQUATION = re.compile(r"(?:[A-Za-z] ?=)?(?:(?:[-+*/×÷·^().\d ]|,(?=\d)|\\(?:times|cdot|div))+=)*"
                      r" ?(?:\(([^=()]*)\)|([^=()]*))")  # x = 14, 5+9 = 14, x = 5+9 = 14, (14)


def clean(text):
    """Text without LaTeX, currency, bold, full width. A space is left, so 1\\text{4} is not 14.
    After a sign no space is left: -$5 and -\\frac{1}{2} keep their minus."""
    text = text.translate(NARROW).replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", text)  # 1\,234; but 1\,4 is not 14
    text = re.sub(r"\s?per ?cent\b|\\%", "%", text, flags=re.I)
    text = re.sub(r"(?:^minus |\bnegative |负)(?=\s?[$€£¥]?[0-9])", "-", text, flags=re.I)
    text = FRAC.sub(lambda m: f"${m[1] or m[3]}/{m[2] or m[4]} ", text)  # MARKUP removes the $
    for _ in range(3):  # from the inside out: \boxed{\text{5}}
        text = WRAPPED.sub(r" \1 ", text)
    text = MARKUP.sub(" ", SIGNED_MARKUP.sub(r"\1", text))
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    text = re.sub(r"""(?s)^([*_"'])(.*)\1\Z""", r"\2", text)  # only a pair: f' is not f
    bare = text.rstrip("!")  # "14 apples!" loses its "!"; 5! and n! keep it
    return bare if re.fullmatch(r"[^\W\d_]{2}|.?[\u4e00-\u9fff]", bare[-2:]) else text


def parse_number(text):
    """A text -> its number as an exact Fraction. None if it is not exactly one number: "14 or 15",
    "1 4", "5 million". Units are dropped, not compared. 50% is 0.5 and 1/2, never 50."""
    text = clean(text) if len(text) <= MAX_LENGTH else ""
    text = re.sub(r"(?<![.。])[.。]$", "", text).rstrip()
    match = NUMBER.match(text)
    if not match or re.search(r"[eE][-+]?[0-9]{4}", text):  # 1e999999999 would fill the memory
        return None
    sign, whole, top, bottom, percent = match.groups()
    rest = text[match.end():]
    if rest and (percent or not is_unit(rest)):
        return None
    value, bottom = Fraction(top.replace(",", "")), Fraction((bottom or "1").replace(",", ""))
    if bottom == 0 or whole and value >= bottom:  # 1 3/2 is not a mixed number
        return None
    value = int(whole or 0) + value / bottom
    return (-value if sign == "-" else value) / (100 if percent else 1)


def is_unit(rest):
    """Is the text after the digits a unit, like " apples left", "km/h", "cm^2", "个苹果"?"""
    rest = POWER.sub(r"\1", rest)
    words = re.findall("([ /]?)([A-Za-z]+)", rest)
    if len(words) > 3 or rest != "".join(gap + word for gap, word in words):
        return bool(UNIT_ZH.fullmatch(rest))
    return all(word.lower() in UNITS and word != "M"  # 5M: five million
               or gap and len(word) > 2 and not any_of([word], NO_UNIT) for gap, word in words)


def any_of(words, some):
    """Is one of the words, or its singular, in the set `some`?"""
    return any({word, word.rstrip("s")} & some for word in map(str.lower, words))


def same_answer(got, reference):
    """Are both the same number? If neither is a number: are they the same text? Case, extra spaces,
    LaTeX and punctuation at the end do not matter. An empty text is never the same."""
    a, b = parse_number(got), parse_number(reference)
    if a is not None or b is not None:
        return a == b
    a, b = (" ".join(clean(text).casefold().split()).rstrip(" .。,;:?") for text in (got, reference))
    return a == b != ""


def marked_answer(text):
    """The answer in the last \\boxed{14}; else after the last ####; else the rest of the sentence
    after the last "answer is", "Answer:", 答案是. "" if it is unfinished, None if there is none."""
    if starts := [match.end() for match in re.finditer(r"\\boxed\s*\{", text)]:
        depth = 1  # \boxed{\frac{1}{2}} ends at its own brace; \{ does not count
        for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, starts[-1]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[starts[-1]:brace.start()]
        return ""
    _, hashes, rest = text.rpartition("####")
    if hashes and "\n" not in rest.strip():  # otherwise a heading: "#### Step 1"
        return rest.strip()
    if ends := [match.end() for match in PHRASE.finditer(text)]:
        return re.split(r"\n|。|\.(?=\s|$)", text[ends[-1]:])[0].strip(" *")


def last_number(text):
    """The last number in a text, as str. None if its sentence doubts it (14 or 15; not 14; 14?), a
    word next to it changes it (over 14; 14 dozen), or it is only a part (14x; 3,14)."""
    text = clean(text)
    found = list(NUMBER_IN_TEXT.finditer(text))
    if not found:
        return None
    before = SENTENCE_END.split(text[:found[-1].start()])[-1]
    after = SENTENCE_END.split(text[found[-1].end():], maxsplit=1)[0]
    # in "14 left over" the clause ends before "over"; in "14 over 3" it does not
    clause = re.split(r"[,:(]|(?<=\w) (?:and|then|but|over)\b", after)[0]
    nearby = WORD.findall(clause)[:3]
    sentence = re.sub(r"n['’]t\b", " not", before + "|" + after)
    doubted = (any_of(WORD.findall(sentence), DOUBT) or "?" in after or any_of(nearby, NO_UNIT)
               or BOUND.search(before) or not ENDED.match(after))
    return None if doubted else found[-1][0]


def extract_answer(text):
    """The final answer in a free text: in the last <answer> tag after </think>; else marked_answer;
    else last_number. None if there is none, or if the answer is empty or not finished."""
    text = text.rpartition("</think>")[2]
    _, tag, rest = text.rpartition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    found = marked_answer(text) if not tag else answer if closed else ""
    return last_number(text) if found is None else shortened(found.strip()) or None


def shortened(found):
    """A marked answer, cut to its number: "5+9 = 14", "14, because 2*7=14" and "(14)" give 14.
    If there is no single number ("14 or 15", "x=3, x=14"), it stays as it is."""
    if len(found) > MAX_LENGTH or parse_number(found) is not None:
        return found
    reason = r",?\s*\(?\b(?:because|since)\b|[,，]?\s*因为"
    equation = EQUATION.fullmatch(clean(re.split(reason, found, maxsplit=1, flags=re.I)[0]))
    number = equation and (equation[1] or equation[2])
    return number.strip() if number and parse_number(number) is not None else found


def readings(text):
    """Up to three texts: the answer, the part that it marks as final, and the number in that."""
    found = marked_answer(text)
    return [text] if found in (None, text) else [text, found, shortened(found)]


def agree(a, b):
    """Are two answers the same in any of their readings?"""
    return any(same_answer(x, y) for x in readings(a) for y in readings(b))


def answer_in(text, reference):
    """The part of a free text to compare with the known answer: the first of its readings that is
    right, else extract_answer(text) if that is right, else the whole text."""
    known = readings(reference)
    return next((part for part in [*readings(text), extract_answer(text) or ""]
                 if any(same_answer(part, one) for one in known)), text)


def verdict(reference, answer, ended, well_formed):
    """"ok", or the first reason to reject a sample. Last three arguments: see parse_response."""
    if not ended:  # first, because a cut-off sample is never well formed: it needs a higher limit
        return "truncated"
    if not well_formed:
        return "format"
    if answer is None or not answer.strip():
        return "no answer"
    return "ok" if agree(answer, reference) else "wrong answer"


def question_of(row):
    """A row of any format -> (turns up to the user's last one, known answer or None), or BadRow.
    A known answer is a marked answer or a bare number, never a number inside a longer text."""
    turns, known = parse_row(row, need_reply=False), None
    if isinstance(turns, str):
        raise BadRow("plain text is no prompt", turns)
    if turns[-1].role == "assistant":
        *turns, reply = turns
        known = marked_answer(reply.content) if reply.answer is None else reply.answer
        if known in (None, reply.content):
            known = None if parse_number(reply.content) is None else reply.content
    if not turns or turns[-1].role != "user":
        raise BadRow("no question: a user's turn must be the last")
    return turns, known


def opening(tokenizer, target):
    """The ids that a response begins with. They tell a multi or mixed model which target to use."""
    return {"cot": [tokenizer.think], "answer": [tokenizer.answer]}.get(target, [])


def parse_response(tokenizer, ids, target="cot"):
    """Generated ids -> dict: think, answer (None if not found), text, ended, well_formed. Tags are
    found by id: a spelled "<answer>" is text. What follows the first <end> is ignored."""
    t, ids, found = tokenizer, [int(i) for i in ids], {}
    body = ids[:ids.index(t.end)] if t.end in ids else ids
    for name, first, last in (("think", t.think, t.end_think), ("answer", t.answer, t.end_answer)):
        inside = body[body.index(first) + 1:] if first in body else []
        found[name] = t.decode(inside[:inside.index(last)]) if last in inside else None
    return dict(found, text=t.decode(body), ended=t.end in ids,
                well_formed=well_formed(t, ids, target))


# T <think>, t </think>, A <answer>, a </answer>, x text, - other control token, . <end>
PATTERNS = dict(cot="Tx*tAx*a", answer="Ax*a", full="x+")


def well_formed(tokenizer, ids, target="cot"):
    """Are the ids exactly <think>...</think><answer>...</answer><end>? Target "answer": without the
    thought. "full": text without tags. What follows the first <end> is ignored."""
    t = tokenizer
    letters = {t.think: "T", t.end_think: "t", t.answer: "A", t.end_answer: "a", t.end: "."}
    text = "".join(letters.get(i, "-" if i in t.control_ids else "x") for i in map(int, ids))
    return re.match(PATTERNS[target] + "[.]", text) is not None
