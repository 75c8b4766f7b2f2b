"""What lesson 6 checks. The grader runs this file, never the student's process."""
TASKS = [("same_time", "a verifier for clock times", 6), ("keep", "right answers, no copies", 4)]
GROUPS = [  # points, hint, [(text, reference, right)]
    (1, "3:30 pm and 15:30: is it the same time? Does upper case matter?", [
        ("It leaves at 15:30.", "15:30", True), ("At 3:30 PM", "15:30", True),
        ("3 pm", "15:00", True), ("3:30 am", "15:30", False), ("15:30", "15:20", False),
        ("At 9:05 am.", "09:05", True)]),
    (1, "which hour is 12 am, and which is 12 pm?", [
        ("12:30 am", "00:30", True), ("12:30 pm", "12:30", True), ("12 pm", "00:00", False),
        ("12:10 am", "12:10 am", True), ("12:30 am", "12:30 pm", False)]),
    (1, "a time in words: which way do the minutes count, also over midnight?", [
        ("half past 3 pm", "15:30", True), ("Quarter past 7 PM.", "19:15", True),
        ("quarter to 12 am", "23:45", True), ("quarter to 1 pm", "12:45", True),
        ("quarter to 9", "9:15", False), ("half past 3", "2:30", False)]),
    (1, "without am or pm, which times can it be?", [
        ("half past 3", "15:30", True), ("half past 3", "3:30 am", True), ("0:30", "12:30", True),
        ("15:30", "3:30", True), ("12:30", "00:30", True), ("13:30", "1:30 am", False)]),
    (1, "the text names several times. Must all of them be the same one?", [
        ("At 15:30, that is half past 3.", "15:30", True), ("15:30 or 16:30", "15:30", False),
        ("Not 9:00. It is 15:30.", "15:30", False), ("3:30 am or 3:30 pm", "3:30", False)]),
    (1, "what is a time, and what is only a number?", [
        ("3 buses leave at 15:30.", "15:30", True), ("115:30", "15:30", False),
        ("3:305", "3:30", False), ("25:00 or 1:00 am", "1:00 am", True), ("3", "3:00", False),
        ("I do not know.", "3:00", False), ("room 12, 13:00", "13:00", True),
        ("25:00", "1:00", False), ("3:60", "4:00", False), ("Code 25:00, 9:00 pm", "21:00", True)])]
TRAIN = "Anna takes the train at 14:00 and rides for 90 minutes. When does she arrive?"
QUESTIONS = [  # question, answer, reference, ended
    (TRAIN, "16:30", "15:30", True), (TRAIN, "15:30", "15:30", False),
    (TRAIN, "At half past 3.", "15:30", True), (TRAIN.upper(), "15:30", "15:30", True),
    (TRAIN.replace("14", "15"), "16:30", "16:30", True),
    (TRAIN.replace("When", "At what time"), "3:30 pm", "15:30", True),
    ("At 14:00 and for 90 minutes, what does Ben do?", "15:30", "15:30", True),
    ("Ben leaves at 9:00.", "9:00 am", "9:00", True)]
# QUESTIONS[2] and [5] share 11 word triples of 19. Each text of CHAIN is near the next one.
PUNCTUATION = ["A bus leaves, and arrives. When?", "a bus leaves and arrives when"]
ORDER = ["It goes from 3 to 5 at night.", "It goes from 5 to 3 at night."]  # share: 1 of 11
CHAIN = ["a b c d e f g h", "b c d e f g h i", "c d e f g h i j", "d e f g h i j k"]


def rows(found):
    return [dict(zip(("question", "answer", "reference", "ended"), row)) for row in found]


def calls():
    of_times = [("same_time", [text, right]) for _, _, group in GROUPS for text, right, _ in group]
    plain = lambda texts: rows([(text, "9:00", "9:00", True) for text in texts])
    return of_times + [("keep", [rows(QUESTIONS), share]) for share in (0.5, 0.6, 1.0)] + [
        ("keep", [plain(CHAIN), 0.7]), ("keep", [plain(PUNCTUATION), 0.9]),
        ("keep", [plain(ORDER), 0.05])]


def judge(answers):
    left = iter(answers)
    for points, hint, group in GROUPS:
        found = [next(left) is right for _, _, right in group]
        yield points, all(found), hint
    half, more, equal, chain, marks, order = (found if isinstance(found, list) and all(
        type(i) is int for i in found) else [] for found in left)
    found = {*half, *more, *equal}
    yield 1, {2, 4, 6, 7} <= found & {*half} & {*more} & {*equal} and not found & {0, 1} \
        and order == [0, 1], \
        "is a kept answer right, and is it finished? Do other numbers make another question?"
    yield 1, 3 not in half + more and 2 in half and 2 in more and marks == [0], \
        "do upper case and punctuation make another question? Can a dropped row have a copy?"
    yield 1, (5 in half, 5 in more, 3 in equal) == (False, True, False), \
        "the share: which triples are counted below the line, and does a share equal to it count?"
    yield 1, chain == [0, 2], "a question is compared with which earlier ones?"
