"""Is an answer right? What sampling from a teacher keeps, and what eval.py counts, is decided here.

    extract_answer("12+2=14, so \\boxed{14}.")     "14"
    parse_number("$1,234.50")                      Fraction(2469, 2)
    same_answer("14 apples", "14")                 True
    verdict("14", "14 or 15", True, True)          "wrong answer"

A right answer refused filters out the hard problems (open-thoughts#21); a wrong one accepted
teaches the error. In doubt this file refuses: a number may have a sign, a currency, a unit, LaTeX,
nothing else. Nothing is evaluated: 5^{5^{5^5}} never ends (huggingface/Math-Verify#65).
"""
import re
from fractions import Fraction

from dataset.formats import BadRow, parse_row

MAX_LENGTH = 1_000  # characters: a longer text is not a number
# Full width to half width and every minus to "-". Not NFKC: that turns 5² into 52 and 1½ into 11/2.
NARROW = {0xFF01 + i: 0x21 + i for i in range(94)}
NARROW.update(zip(map(ord, "−‐‑–﹣⁄￥½¼¾"), [*"-----/¥", " 1/2", " 1/4", " 3/4"]))
# 14  1,234  12.5  .5  1e3  3/4  1 1/2  50%
PLAIN = r"(?:(?:[1-9]\d{0,2}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
VALUE = rf"(?:(\d+) +(?=\d+ */))?({PLAIN})(?: */ *({PLAIN}))?( *%)?"
NUMBER = re.compile(rf"([-+]?) *{VALUE}", re.ASCII)
# In running text the minus of 17-3 is no sign; the 2 of H2O and the last 5 of 1.2.5 do not count.
NUMBER_IN_TEXT = re.compile(rf"(?:(?<![\w)\]}}])[-+])?(?<![\w.]){VALUE}", re.ASCII)
FRAC = re.compile(r"\\[dtc]?frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}"
                  r"|([0-9])([0-9]))")
WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}")
CLOTHES = re.compile(r"\\?[$€£¥]|\*\*|__|`|°[CF]?|\^\s*(?:\\circ|\{\\circ\})|\\[,;: ()\[\]]")
SIGNED_CLOTHES = re.compile(rf"([-+])(?:{CLOTHES.pattern})+\s?")
# "answer is" and what opens a list, a formula or a block of code on the next line
PHRASE = re.compile(r"(?:answer\**\s*(?:is\b|[:：=])|答案\**\s*(?:是|为|[:：]))"
                    r"(?:\n[ \t]*[-•] |(?:\$\$|\\\[|```\w*)[ \t]*\n|[\s:：*])*", re.I)

# A unit is at most three words of three letters or more, or these; right behind the digits only
# these (2ab and 5x are algebra). NO_UNIT changes the number: 5 million, 14 maybe.
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

# The last number of a text: what takes it back before it, what may follow it
SENTENCE_END = re.compile(r"[\n!;。]|\.(?=\s|$)|(?<=\?)")
WORD = re.compile(r"[a-z]+|千[克米瓦]|[\u4e00-\u9fff]", re.I)
BOUND = re.compile(r"(?:\b(?:than|over|under|above|below|about|around|almost|nearly|least|most|but|"
                   r"minus|except|error(?: code)?:?)|[<>≤≥≠≈~±^√约]) *$|\d,$", re.I)
ENDED = re.compile(rf" ?(?:{'|'.join(sorted(UNITS))})(?![A-Za-z])|\s(?![A-Za-z]\b|[+*/×÷·^])"
                   r"|\*(?!\w)|\.(?!\.)|[,:)'\"’”=—\u4e00-\u9fff]|$")  # not 14x, 14 + y, 14...
EQUATION = re.compile(r"(?:[A-Za-z] ?=)?(?:(?:[-+*/×÷·^().\d ]|,(?=\d)|\\(?:times|cdot|div))+=)*"
                      r" ?(?:\(([^=()]*)\)|([^=()]*))")  # x = 14, 5+9 = 14, x = 5+9 = 14, (14)


def clean(text):
    """Text without LaTeX, currency, bold, full width. What goes leaves a space (1\\text{4}: no 14),
    except after a sign: -$5 and -\\frac{1}{2} keep their minus."""
    text = text.translate(NARROW).replace("{,}", ",").replace("\\!", "")
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", text)  # 1\,234; but 1\,4 is not 14
    text = re.sub(r"\s?per ?cent\b|\\%", "%", text, flags=re.I)
    text = re.sub(r"(?:^minus |\bnegative |负)(?=\s?[$€£¥]?[0-9])", "-", text, flags=re.I)
    text = FRAC.sub(lambda m: f"${m[1] or m[3]}/{m[2] or m[4]} ", text)  # $ goes below, sign or not
    for _ in range(3):  # from the inside out: \boxed{\text{5}}
        text = WRAPPED.sub(r" \1 ", text)
    text = CLOTHES.sub(" ", SIGNED_CLOTHES.sub(r"\1", text))
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    text = re.sub(r"""(?s)^([*_"'])(.*)\1\Z""", r"\2", text)  # a pair only: f' is not f
    bare = text.rstrip("!")  # of "14 apples!"; 5! and n! keep it
    return bare if re.fullmatch(r"[^\W\d_]{2}|.?[\u4e00-\u9fff]", bare[-2:]) else text


def parse_number(text):
    """The number that a text is, exactly, as a Fraction; None if it is anything else: "14 or 15",
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
    if bottom == 0 or whole and value >= bottom:  # 1 3/2 is no mixed number
        return None
    value = int(whole or 0) + value / bottom
    return (-value if sign == "-" else value) / (100 if percent else 1)


def is_unit(rest):
    """Is what follows the digits a unit: " apples left", "km/h", "cm^2", "个苹果"?"""
    rest = POWER.sub(r"\1", rest)
    words = re.findall("([ /]?)([A-Za-z]+)", rest)
    if len(words) > 3 or rest != "".join(gap + word for gap, word in words):
        return bool(UNIT_ZH.fullmatch(rest))
    return all(word.lower() in UNITS and word != "M"  # 5M: five million
               or gap and len(word) > 2 and not any_of([word], NO_UNIT) for gap, word in words)


def any_of(words, some):
    """Is one of the words, or what it is the plural of, among some?"""
    return any({word, word.rstrip("s")} & some for word in map(str.lower, words))


def same_answer(got, reference):
    """Are both the same number or, if neither is a number, the same text? Texts may differ in case,
    spaces, LaTeX and the punctuation at the end. An empty text is no answer."""
    a, b = parse_number(got), parse_number(reference)
    if a is not None or b is not None:
        return a == b
    a, b = (" ".join(clean(text).casefold().split()).rstrip(" .。,;:?") for text in (got, reference))
    return a == b != ""


def mark_in(text):
    """The answer in the last \\boxed{14}, else in the last #### 14, else in the rest of the
    sentence after the last "answer is", "Answer:", 答案是; "" if it is open, None without a mark."""
    if starts := [match.end() for match in re.finditer(r"\\boxed\s*\{", text)]:
        depth = 1  # \boxed{\frac{1}{2}} ends at its own brace; \{ is no brace
        for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, starts[-1]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return text[starts[-1]:brace.start()]
        return ""
    _, hashes, rest = text.rpartition("####")
    if hashes and "\n" not in rest.strip():  # else a heading: "#### Step 1"
        return rest.strip()
    if ends := [match.end() for match in PHRASE.finditer(text)]:
        return re.split(r"\n|。|\.(?=\s|$)", text[ends[-1]:])[0].strip(" *")


def last_number(text):
    """The last number of a text; None if its sentence doubts it (14 or 15; not 14; 14?), a word
    beside it changes it (over 14; 14 dozen), or something is glued to it (14x; 3,14)."""
    text = clean(text)
    found = list(NUMBER_IN_TEXT.finditer(text))
    if not found:
        return None
    before = SENTENCE_END.split(text[:found[-1].start()])[-1]
    behind = SENTENCE_END.split(text[found[-1].end():], maxsplit=1)[0]
    # the clause ends in "14 left over" at "over"; not in "14 over 3"
    clause = re.split(r"[,:(]|(?<=\w) (?:and|then|but|over)\b", behind)[0]
    beside = WORD.findall(clause)[:3]
    sentence = re.sub(r"n['’]t\b", " not", before + "|" + behind)
    doubted = (any_of(WORD.findall(sentence), DOUBT) or "?" in behind or any_of(beside, NO_UNIT)
               or BOUND.search(before) or not ENDED.match(behind))
    return None if doubted else found[-1][0]


def extract_answer(text):
    """The final answer in a free text: in the last <answer>14</answer> after </think>, else what
    mark_in finds, else the last number. None if there is none, or its mark is empty or open."""
    text = text.rpartition("</think>")[2]
    _, tag, rest = text.rpartition("<answer>")
    answer, closed, _ = rest.partition("</answer>")
    found = mark_in(text) if not tag else answer if closed else ""
    return last_number(text) if found is None else shortened(found.strip()) or None


def shortened(found):
    """A marked answer as its number: "5+9 = 14", "14, because 2*7=14" and "(14)" are 14.
    What gives no single number ("14 or 15", "x=3, x=14") stays as it is."""
    if len(found) > MAX_LENGTH or parse_number(found) is not None:
        return found
    reason = r",?\s*\(?\b(?:because|since)\b|[,，]?\s*因为"
    equation = EQUATION.fullmatch(clean(re.split(reason, found, maxsplit=1, flags=re.I)[0]))
    number = equation and (equation[1] or equation[2])
    return number.strip() if number and parse_number(number) is not None else found


def readings(text):
    """An answer, what it marks as final if it marks it, and the number in that."""
    found = mark_in(text)
    return [text] if found in (None, text) else [text, found, shortened(found)]


def agree(a, b):
    """Are two answers one, or what they mark as final?"""
    return any(same_answer(x, y) for x in readings(a) for y in readings(b))


def answer_in(text, reference):
    """The part of a free text to compare with the known answer: the first of its readings and
    extract_answer(text) that is right, else all of it."""
    known = readings(reference)
    return next((part for part in [*readings(text), extract_answer(text) or ""]
                 if any(same_answer(part, one) for one in known)), text)


def verdict(reference, answer, ended, well_formed):
    """"ok", or the first reason to reject a sample. The last three: see formats.parse_response."""
    if not ended:  # first: a cut-off sample is never well formed, and the cure is a higher limit
        return "truncated"
    if not well_formed:
        return "format"
    if answer is None or not answer.strip():
        return "no answer"
    return "ok" if agree(answer, reference) else "wrong answer"


def question_of(row):
    """A row of any format -> (turns up to a user's last one, the known answer or None), or BadRow.
    Known is what is marked as the answer, and a bare number; not a number inside an essay."""
    turns, known = parse_row(row, need_reply=False), None
    if isinstance(turns, str):
        raise BadRow("plain text is no prompt", turns)
    if turns[-1].role == "assistant":
        *turns, reply = turns
        known = mark_in(reply.content) if reply.answer is None else reply.answer
        if known in (None, reply.content):
            known = None if parse_number(reply.content) is None else reply.content
    if not turns or turns[-1].role != "user":
        raise BadRow("no question: a user's turn must be the last")
    return turns, known


def opening(tokenizer, target):
    """The ids that a response begins with: a model of two forms (multi, mixed) is told which."""
    return {"cot": [tokenizer.think], "answer": [tokenizer.answer]}.get(target, [])


def parse_response(tokenizer, ids, target="cot"):
    """Generated ids -> think, answer (None if not found), text, ended, well_formed. Told by ids:
    a spelled "<answer>" is text. What follows the first <end> is ignored."""
    t, ids, found = tokenizer, [int(i) for i in ids], {}
    body = ids[:ids.index(t.end)] if t.end in ids else ids
    for name, first, last in (("think", t.think, t.end_think), ("answer", t.answer, t.end_answer)):
        inside = body[body.index(first) + 1:] if first in body else []
        found[name] = t.decode(inside[:inside.index(last)]) if last in inside else None
    return dict(found, text=t.decode(body), ended=t.end in ids,
                well_formed=well_formed(t, ids, target))


# T think, t its end, A answer, a its end, x a token of text, - another mark, . the end
PATTERNS = dict(cot="Tx*tAx*a", answer="Ax*a", full="x+")


def well_formed(tokenizer, ids, target="cot"):
    """Exactly <think>...</think><answer>...</answer><end>; target "answer": without the thought;
    "full": text without a tag. What follows the first <end> is ignored."""
    t = tokenizer
    letters = {t.think: "T", t.end_think: "t", t.answer: "A", t.end_answer: "a", t.end: "."}
    text = "".join(letters.get(i, "-" if i in t.control_ids else "x") for i in map(int, ids))
    return re.match(PATTERNS[target] + "[.]", text) is not None
