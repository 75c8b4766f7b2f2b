"""Is an answer right? This decides what is kept of a teacher's samples, and what eval.py counts.

    extract_answer("12+2=14, so \\boxed{14}.")     "14"
    verdict("14", "14 or 15", True, True)          "wrong answer"
    verdict("Rome", "It is Rome.", True, True)     "ok"

Refusing right answers removes the hard problems (open-thoughts#21). Accepting wrong answers teaches
the errors. In doubt this file refuses: a number may only have a sign, a currency, a unit, or LaTeX.
Formulas are not evaluated, because 5^{5^{5^5}} would never end (huggingface/Math-Verify#65).
"""
import itertools
import json
import re
from fractions import Fraction
from pathlib import Path

from dataset.formats import encode_document

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
NOOP = re.compile(r"\\!|\\(?:left|right|displaystyle|[Bb]igg?[lrm]?|q?quad)\b|(?<=\\)[dtc](?=frac)")
FRAC = re.compile(r"\\frac\s*(?:\{\s*([-+]?[0-9.,]+)\s*\}\s*\{\s*([0-9.,]+)\s*\}|([0-9])([0-9]))")
MARKUP = re.compile(r"\\?[$€£¥]|\*\*|__|`|°[CF]?|\^\s*(?:\\circ|\{\\circ\})|\\[,;: ()\[\]]")
# "answer is", and the start of a list, a formula or a code block on the next line
PHRASE = re.compile(r"""(?:
      (?:(?<!wrong\ )(?<!incorrect\ )answer | \bcorrect\ (?:option|choice)) \**\s*(?:is\b|[:：=])
    | (?:(?<!错误)(?<!错误的)答案 | (?<!不)正确的?选项) \**\s*[是为选:：] | 故选)
    (?:\n[ \t]*[-•]\  | (?:\$\$|\\\[|```\w*)[ \t]*\n | [\s:：*])*""", re.I | re.X)
# What takes the answer before it back: "The answer is 14. No, it is 15." "\boxed{14} is wrong"
RETRACTED = re.compile(r"\W*(?:no[,.]|(?:not|or|wait|actually|sorry|hmm)\b"
                       r"|is (?:not|wrong|incorrect|false)\b|不[对是,，]|[错或])", re.I)
# A unit is up to three words, each in UNITS or of three letters or more. Directly after the digits
# only UNITS count (2ab and 5x are algebra, 5M is 5 million). NO_UNIT changes the number: 14 maybe.
WORDS = json.loads((Path(__file__).parent / "texts/words.json").read_text(encoding="utf-8"))
UNITS, DOUBT, CHANGES = ("|".join(WORDS[name].split()) for name in ("UNITS", "DOUBT", "CHANGES"))
UNITS, DOUBT = rf"{UNITS}|(?-i:m)", rf"{DOUBT}|(?-i:may|May be)"  # not 5M; "in May" is no doubt
POWER = re.compile(r"\b(km|cm|mm|m|ft|in|mi|s) ?(?:\^ ?\{? ?[23] ?\}?|[²³])")  # cm^2; not x^2
NO_UNIT_ZH = "零一二三四五六七八九十百千万亿两半几多余或和与及到至不没非无错吗否减加乘除约是对还少负比打左以之"
NO_UNIT = re.compile(f"(?:{DOUBT}|{CHANGES})s?|[{NO_UNIT_ZH}]", re.I)
UNIT = re.compile(rf"(?:[ /]?(?i:{UNITS})\b|[ /](?!(?i:{NO_UNIT.pattern})\b)[A-Za-z]{{3,}}){{,3}}"
                  rf"| ?(?:千[克米瓦])?(?:(?![{NO_UNIT_ZH}])[\u4e00-\u9fff]){{0,8}}")  # 千克: kg
SENTENCE_END = re.compile(r"[\n!;。]|\.(?=\s|$)|(?<=\?)")
WORD = re.compile(r"[a-z]+|千[克米瓦]|[\u4e00-\u9fff]", re.I)
# What makes a sentence doubtful, if \0 is its answer: a word of DOUBT, "?", a bound before it
DOUBTFUL = re.compile(
    rf"(?<![a-z])(?:{DOUBT})s?(?![a-z])|n['’]t(?![a-z])|[?或不没非无错吗否]|可能|也许|大[概约]|\d,\0|"
    r"(?:\b(?:less|than|over|under|above|below|about|around|almost|nearly|least|most|but|minus|"
    r"except|error(?: code)?:?)|[<>≤≥≠≈~±^√约近]|超过|至少|最多|[大小多少高低]于|\d *[到至]) *\0|左右", re.I)
ENDED = re.compile(rf" ?(?:{UNITS})(?![A-Za-z])|\s(?![A-Za-z]\b|[+*/×÷·^])|\*(?!\w)|\.(?!\.)"
                   r"|\([个只元人本天米]\)|[,:)'\"’”=—\u4e00-\u9fff]|$")  # not 14x, 14 + y, 14...
# An option, and its own text. Not an option: "(A) is wrong", "A. No, C", "B. Wait", "B, no, ...".
OPTION = re.compile(r"""(?i:option\ |it(?:['’]s|\ is)\ |选[择项]?)?[(\[]?
    ([A-J] | [a-j](?=\)) | (?i:yes|no)\b (?!\W*(?i:yes|no)\b))  # B   b)   Yes; not "Yes. No."
    (?:\ is\ (?:the\ )?correct(?:\ answer|\ option)?)?          # B is the correct answer
    (?:[)\]]?\ ?[.。!:,\n] | [)\]] | \ - | 选?项。?$ | $)       # ends: B.   B)   B - Paris   B选项
    (?!\ ?(?:(?:is|or|and|not|can|but)\b|(?i:no|不),)) (?!.*\b(?!A\ [a-z]{3})[A-HJ]\b)
    (?!.{,20}\b(?i:maybe|perhaps|probably|wait|actually|sorry|hmm|mean|guess|(?:un)?sure)\b) (.*)
    """, re.A | re.S | re.X)
FEW_WORDS = re.compile(r"(?!\d|[Nn]o$)\w{2,}(?:[ .,'’·-]+\w+){0,4}")
# Another answer beside this one, which is \0
BESIDE = re.compile(r"""
      (?:\b(?:and|both|new|vs|versus|(?:un)?like)(?:\ \w+){0,2} | [&/+、|→]|^\w+\ to) \W*\0
    | \0 \W* (?:(?:and|as|vs|versus|to)\b | [&/+、|→])                       # Rome and Paris
    | \0 \W*? [,;.!(\n。-] \W* (?!它|the\ \w+\ and\ (?:\w+\ ){1,2}(?:of|in)\b)
      (?:[\u4e00-\u9fff]{1,3} | [^\W\u4e00-\u9fff]+\W*){1,2} (?:[,;.!)\n。] | \band\b | $)
    | (?:(?<!^\d)[,;.!。] | (?<![:\n])\n) \W* \0 \W* (?:[,;.!\n。] | $)       # Paris, Rome.
    """, re.I | re.X)
REASON = r"(?i:,?\s?\(?\b(?:because|since)\b|,?\s?因为)"
EQUATION = re.compile(r"(?:[A-Za-z] ?=)?(?:(?:[-+*/×÷·^().\d ]|,(?=\d)|\\(?:times|cdot|div))+=)*"
                      r" ?(?:\(([^=()]*)\)|([^=()]*))")  # x = 14, 5+9 = 14, x = 5+9 = 14, (14)


def clean(text):
    """Text without LaTeX, currency, bold, full width. 1\\text{4} becomes 1 4; -$5 becomes -5."""
    text = NOOP.sub("", text.translate(NARROW).replace("{,}", ",").replace("~\\text", "\\text"))
    text = re.sub(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))", ",", text)  # 1\,234; but 1\,4 is not 14
    text = re.sub(r"\s?per ?cent\b|\\%", "%", text, flags=re.I)
    text = re.sub(r"(?:^minus |\bnegative |负)(?=\s?[$€£¥]?[0-9])", "-", text, flags=re.I)
    text = FRAC.sub(lambda m: f"${m[1] or m[3]}/{m[2] or m[4]} ", text)  # MARKUP removes the $
    for _ in range(3):  # from the inside out: \boxed{\text{5}}
        text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|mbox|boxed)\s*\{([^{}]*)\}", r" \1 ", text)
    text = MARKUP.sub(" ", re.sub(rf"([-+])(?:{MARKUP.pattern})+\s?", r"\1", text))
    text = re.sub(r"[^\S\n]+", " ", text).strip()
    text = re.sub(r"""(?s)^([*_"'])(.*)\1\Z""", r"\2", text)  # only a pair: f' is not f
    bare = text.rstrip("!")  # "14 apples!" loses its "!"; 5! and n! keep it
    return bare if re.fullmatch(r"[^\W\d_]{2}|.?[\u4e00-\u9fff]", bare[-2:]) else text


def parse_number(text):
    """A text -> its number as an exact Fraction. None if it is not exactly one number: "14 or 15",
    "1 4", "5 million". Units are dropped, not compared. 50% is 0.5 and 1/2, never 50."""
    text = re.sub(r"(?<![.。])[.。]$", "", clean(text) if len(text) <= MAX_LENGTH else "").rstrip()
    match = NUMBER.match(text)
    if not match or re.search(r"[eE][-+]?[0-9]{4}", text):  # 1e999999999 would fill the memory
        return None
    sign, whole, top, bottom, percent = match.groups()
    rest = POWER.sub(r"\1", text[match.end():])
    if rest and (percent or not UNIT.fullmatch(rest)):
        return None
    value, bottom = Fraction(top.replace(",", "")), Fraction((bottom or "1").replace(",", ""))
    if bottom == 0 or whole and value >= bottom:  # 1 3/2 is not a mixed number
        return None
    value = int(whole or 0) + value / bottom
    return (-value if sign == "-" else value) / (100 if percent else 1)


def same_answer(got, reference):
    """Are both the same number? If neither is: the same option, such as B and "(B) Paris"? Else the
    same text? Case, spaces, LaTeX, {} in x^{2}, a full stop do not matter. "" is never the same."""
    a, b = parse_number(got), parse_number(reference)
    if a is not None or b is not None:
        return a == b
    if (a := option(got)) and (b := option(reference)):
        return a[0] == b[0] and ("" in a + b or same_answer(a[1], b[1]))
    gap = r"(?<!\d) | (?!\d)" if "\\" in got + reference else r"(?<=[^\w ]) | (?=[^\w ])"
    a, b = (" ".join(clean(text).split()).rstrip(" .。,;:") for text in (got, reference))
    a, b = (re.sub(r"(\\sqrt|[_^])\{(\w)\}(?!\d)", r"\1\2", re.sub(gap, "", x)) for x in (a, b))
    return a == b if "\\" in a else a.casefold() == b.casefold() != ""  # \Phi is not \phi


def option(text):
    """-> ("B", "Paris"): an option's letter (or yes, no) and its own text; None: not an option."""
    found = OPTION.fullmatch(re.split(REASON, clean(text), maxsplit=1)[0])
    return found and (found[1].upper(), found[2])


def marked_answer(text):
    """The answer in the last \\boxed{14}; else after the last ####; else the rest of the sentence
    after the last "answer is", "Answer:", 答案是; else None. "" if it is unfinished or taken back."""
    if starts := [box.end() for box in re.finditer(r"\\boxed\s*\{", text) if not re.search(
            r"(?i)\b(?:not|or)\W*$", text[max(0, box.start() - 20):box.start()])]:
        depth = 1  # \boxed{\frac{1}{2}} ends at its own brace; \{ does not count
        for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, starts[-1]):
            depth += {"{": 1, "}": -1}.get(brace[0], 0)
            if depth == 0:
                return "" if RETRACTED.match(text, brace.end()) else text[starts[-1]:brace.start()]
        return ""
    _, hashes, rest = text.rpartition("####")
    if hashes and "\n" not in rest.strip():  # otherwise a heading: "#### Step 1"
        return rest.strip()
    if ends := [match.end() for match in PHRASE.finditer(text)]:
        answer, *rest = re.split(r"\n|。|\.(?=\s|$)", text[ends[-1]:], maxsplit=1)
        return "" if rest and RETRACTED.match(rest[0]) else answer.strip(" *")


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
    changed = any(map(NO_UNIT.fullmatch, WORD.findall(clause)[:3])) or not ENDED.match(after)
    return None if changed or DOUBTFUL.search(f"{before}\0{after}") else found[-1][0]


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
    equation = EQUATION.fullmatch(re.split(REASON, clean(found), maxsplit=1)[0])
    number = equation and (equation[1] or equation[2])
    return number.strip() if number and parse_number(number) is not None else found


def readings(text):
    """Up to three texts: the answer, the part that it marks as final, and the number in that."""
    found = marked_answer(text)
    return [text] if found in (None, text) else [text, found, shortened(found)]


def said(text, reference):
    """The words of a short known answer as a text says them, or None. They are whole words in its
    first or last sentence (before questions). No other answer is beside them, no doubt follows."""
    words, text = (clean(readings(part)[-1]).strip(" .。") for part in (reference, text))
    whole = rf"(?<![^\W是为叫在])(?<!-){re.escape(words)}(?![^\W是为]|[.'’-]\w|,\d)"
    found = re.fullmatch(f"(.*)({whole})(.*)", text, re.S | (0 if words.isupper() else re.I))
    if not found or not FEW_WORDS.fullmatch(words):
        return None
    *earlier, before = SENTENCE_END.split(found[1])
    after, *later = SENTENCE_END.split(found[3])
    statements = "".join(part for part in later if not part.endswith("?")).strip()
    doubted = DOUBTFUL.search(f"{before}\0{after} " + " ".join(later).replace("?", ""))
    refused = (doubted or BESIDE.search(f"{found[1][-80:]}\0{found[3][:80]}")
               or statements and "".join(earlier).strip())
    return None if refused else found[2]


def agree(text, reference):
    """Does a text give the known answer, in any reading of both, or in words (see `said`)?"""
    same = any(same_answer(x, y) for x in readings(text) for y in readings(reference))
    return same or said(text, reference) is not None


def answer_in(text, reference):
    """The part of a free text to compare with the known answer: the first of its readings that is
    right, else the number or the words in it that are right, else the whole text."""
    parts = [*readings(text), extract_answer(text) or "", said(text, reference) or ""]
    return next((part for part in parts
                 if any(same_answer(part, one) for one in readings(reference))), text)


def verdict(reference, answer, ended, well_formed):
    """"ok", or the first reason to reject a sample. reference: the known answer; None: unknown."""
    reasons = [(not ended, "truncated"), (not well_formed, "format"),
               (not (answer or "").strip(), "no answer"), (reference is None, "unverified")]
    found = next((reason for holds, reason in reasons if holds), None)
    return found or ("ok" if agree(answer, reference) else "wrong answer")


def known_answer(turn):
    """The final answer of an assistant's turn, or None if the reply is open. It is a number, up to
    five marked words (a tag, ####, "answer is"), an option, or three words without a full stop."""
    text = (turn.content if turn.answer is None else turn.answer).strip()
    part, marked = readings(text)[-1], turn.answer is not None or len(readings(text)) > 1
    words = re.findall(r"[\u4e00-\u9fff]{2}|(?<![\\\w])[^\W\d_]{2,}", part)
    bare = option(part) or FEW_WORDS.fullmatch(part) and not re.search(r"\d", part)
    short = "\n" not in part and len(words) <= (5 if marked else 3) and (marked or bare)
    return part if part and (short or parse_number(part) is not None) else None


def prompt_ids(tokenizer, turns, target="cot"):
    """The ids that generation starts from: all turns except a last answer, then <assistant>."""
    before = turns[:-1] if turns[-1].role == "assistant" else turns
    return encode_document(tokenizer, before, target)[0] + tokenizer.assistant


def turn_row(turn):
    """Turn -> an entry of "conversations". parse_row reads it back as the same Turn."""
    if turn.think is not None:
        return dict(role=turn.role, reasoning_content=turn.think, content=turn.answer)
    text = turn.content if turn.answer is None else f"<answer>{turn.answer}</answer>"
    return dict(role=turn.role, content=text)


def parse_response(tokenizer, ids, target="cot"):
    """Generated ids -> dict: think, answer (None if not found), text, ended; well_formed: exactly
    the target's form. Tags are found by their ids. A stop id ends the reply. An empty
    thought, with which some imported models begin, is removed."""
    t, found = tokenizer, {}
    body = list(itertools.takewhile(lambda i: i not in t.stop_ids, map(int, ids)))
    ended, gap = len(body) < len(ids), t.encode(t.gaps[2])
    for part in (t.bare, gap if t.bare else []):
        body = body[len(part):] if body[:len(part)] == part else body
    # T <think>, t </think>, A <answer>, a </answer>, x text, - other control token
    forms = dict(cot="Tx*tAx*a", answer="Ax*a", full="x+")
    marks = [("T", t.think), ("t", t.end_think + gap), ("t", t.end_think), ("A", t.answer),
             ("a", t.end_answer)]
    parts = []  # the ids, with a letter in place of each tag
    while body:
        letter, mark = next((pair for pair in marks if body[:len(pair[1])] == pair[1]),
                            (body[0], body[:1]))
        parts.append(letter)
        body = body[len(mark):]

    def text(some):
        return t.decode(i for i in some if isinstance(i, int))
    for name, first, last in (("think", "T", "t"), ("answer", "A", "a")):
        inside = parts[parts.index(first) + 1:] if first in parts else []
        found[name] = text(inside[:inside.index(last)]) if last in inside else None
    if found["think"] is not None:
        found["think"] = found["think"].removeprefix(t.gaps[0]).removesuffix(t.gaps[1])
    form = "".join(i if isinstance(i, str) else "-" if i in t.control_ids else "x" for i in parts)
    return dict(found, text=text(parts), ended=ended,
                well_formed=ended and re.fullmatch(forms[target], form) is not None)
