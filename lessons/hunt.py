"""The bug hunt: a copy of the project with one bug for each student, and the instructor's key.

    export MINIDISTILL_HUNT_SECRET=$(openssl rand -hex 12)           # write it down: --key needs it
    python lessons/hunt.py --student "Mia Chen" ../hunt-mia          # after bash speedrun.sh --fast
    python lessons/hunt.py --key names.txt                           # names.txt: one name a line

The name and the secret choose the bug. The copy is a handout (lessons/handout.py) with HUNT.md, the
task in English and Chinese (made from hunt.md). The project's tests are left out, because one of
them would name the bug. A student who compares the copy with the public code finds the place, but
not the explanation and not the test. So give the points for these two.
"""
import hashlib
import hmac
import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / part) for part in ("", "tests")]
from common import ROOT, check, check_exists, run
from lessons.handout import make_copy
from metrics import markdown
import mutants


@dataclass
class Config:
    folder: list = None            # the student's copy, a new folder, without a flag
    student: str = ""              # the student's name; capitals and extra spaces do not matter
    key: str = ""                  # print the key for this file of names instead
    out: str = ROOT / "out"        # folder in which the speedrun wrote; its fast/ is used


@dataclass
class Bug:
    """One bug. The figures behind the ranges were seen after bash speedrun.sh --fast."""
    change: tuple     # file, old text, new text, the project's test that sees it
    command: str      # shows the symptom in less than a minute
    look: str         # regular expression of the number to look at: its group
    what: str         # the number's name / in Chinese, if it is another
    healthy: tuple    # lowest and highest number of a healthy run
    broken: tuple     # and of a run with the bug
    symptom: str
    chinese: str


SMALL = "--name hunt --fresh --dtype float32 --documents 600 --eval-windows 16"
PRETRAIN = f"python train_pretrain.py {SMALL} --size 0.2m"
LOGITS = f"python train_distill_logits.py {SMALL} --size 0.2m"
FIRST = r"step +1/.*?\| "  # how a row of the first step begins
KD = FIRST + r"kd (\S+)"


def known(name):
    """A bug of tests/mutants.py -> its file, old text, new text, test."""
    return mutants.names()[name][1:]


BUGS = {  # name in the key: the bug; beside the ranges what was seen: healthy; broken
    "kd-tiny": Bug(known("1a-losses"), f"{LOGITS} --steps 20", KD,
        "kd of step 1 / 第 1 步的 kd", (14, 25), (0, 0.2),  # 19.513; 0.025
        "The student knows nothing yet, but `kd` is almost 0 in the first step already.",
        "学生还什么都没学会，第一步的 `kd` 就已经几乎是 0。"),
    "kd-tau-4": Bug(known("3a-losses"), f"{LOGITS} --steps 10 --temperature 4", KD,
        "kd of step 1 / 第 1 步的 kd", (4, 8), (0.1, 1),  # 5.506; 0.344
        "At temperature 4 the teacher hardly counts: `kd` begins below 1.",
        "温度为 4 时，教师几乎不起作用：`kd` 一开始就小于 1。"),
    "kd-same": Bug(known("4a-train_distill_logits"),
        f"for t in 2 1; do {LOGITS} --steps 10 --temperature $t; done", KD,
        "kd of step 1 in the first run / 第一次运行中第 1 步的 kd", (14, 25), (5, 8),  # 19.513; 6.525
        "Two runs with different temperatures print the same `kd` in step 1, digit for digit.",
        "两次运行的温度不同，第一步的 `kd` 却一模一样。"),
    "loss-alpha-0": Bug(known("4b-train_distill_logits"), f"{LOGITS} --steps 20 --alpha 0",
        FIRST + r"loss (\S+)", "loss of step 1 / 第 1 步的 loss", (6, 7), (14, 25),  # 6.627; 19.513
        "With `--alpha 0`, `loss` should be the same number as `ce`. It is another one.",
        "用 `--alpha 0` 时，`loss` 应该等于 `ce`，实际却不相等。"),
    "kd-twins": Bug(known("5a-losses"),
        f"for d in forward_kl reverse_kl; do {LOGITS} --steps 10 --divergence $d; done",
        KD, "kd of step 1 in the first run / 第一次运行中第 1 步的 kd", (14, 25), (6, 11),  # 19.513; 8.196
        "Two runs with two different divergences print the same log.",
        "两次运行用的是两种不同的散度，打印出来的日志却一样。"),
    "teacher-ce": Bug(known("7a-train_distill_logits"), f"{LOGITS} --steps 20",
        FIRST + r"teacher ce (\S+)", "teacher ce of step 1 / 第 1 步的 teacher ce",
        (0.02, 0.3), (2, 20),  # 0.073; 10.163
        "The lines before step 1 say that the teacher's ce is below 0.3. In the steps of the "
        "same run `teacher ce` is many times as large.",
        "第一步之前打印的教师交叉熵（teacher's ce）不到 0.3，同一次运行里每一步的 `teacher ce` 却大了很多倍。"),
    "count-late": Bug(known("7b-windows"), f"{LOGITS} --steps 10", r"teacher's ce +(\S+)",
        "teacher's ce", (0.02, 0.3), (0.4, 5),  # 0.087; 0.949
        "The teacher is the same file as before, but the lines before step 1 say that it got "
        "worse.",
        "教师还是原来那个文件，可是第一步之前打印的教师交叉熵（teacher's ce）却差了很多。"),
    "ce-small": Bug(known("8a-windows"), f"{PRETRAIN} --steps 20", FIRST + r"ce (\S+)",
        "ce of step 1 / 第 1 步的 ce", (6.4, 6.9), (1.5, 2.8),  # 6.627; 2.071
        "`ce at start` is ln V, as it should be. `ce` of step 1 is about a third of it, although "
        "nothing is learned yet.",
        "`ce at start` 等于 ln V，是对的。可是还没开始学，第一步的 `ce` 就只有它的三分之一左右。"),
    "supervised": Bug(known("9a-formats"), f"{PRETRAIN} --steps 10", r"tokens, (\S+) supervised",
        "supervised tokens / supervised 的 token 数", (9000, 12000), (28000, 32000),  # 10,080; 29,248
        "Nearly all tokens are supervised. The documents are questions with short answers.",
        "几乎所有的 token 都算进了 supervised，而这些文档是题目加上很短的回答。"),
    "kd-zero": Bug(known("27a-train_distill_logits"), f"{LOGITS} --steps 20", KD,
        "kd of step 1 / 第 1 步的 kd", (14, 25), (0, 0.001),  # 19.513; 0.000
        "`kd` is 0.000 in every step, also in the first one.",
        "每一步的 `kd` 都是 0.000，第一步也是。"),
    "hidden": Bug(known("22a-train_distill_features"),
        "python train_distill_features.py --name hunt --fresh --dtype float32 --documents 600 "
        "--eval-windows 16 --steps 5 --init-from-teacher 1,2,3,4", FIRST + r"hidden (\S+)",
        "hidden of step 1 / 第 1 步的 hidden", (0, 0.001), (0.1, 100),  # 0.000; 2.343
        "The student starts as an exact copy of its teacher: `ce` and `teacher ce` of step 1 "
        "agree. But `hidden` is not 0.",
        "学生一开始就是教师的完整副本：第一步的 `ce` 和 `teacher ce` 相等，`hidden` 却不是 0。"),
    "answers": Bug(("model.py", "t[start:start + T].to", "t[:T].to",
                    "test_decoding.py::test_reading_in_pieces_equals_reading_at_once"),
        "python eval.py out/fast/teacher.pt --questions 50 --no-speed --out out/fast/hunt",
        r"teacher +(\S+)% right", "% right / 答对的百分比（% right）", (40, 80), (0, 20),  # 58; 6
        "The teacher's `ce` is as good as ever, but it answers hardly any question, and most "
        "answers do not end. Oddly, `python chat.py out/fast/teacher.pt` answers as before.",
        "教师的 `ce` 和原来一样好，却几乎一道题也答不对，大多数回答停不下来。"
        "奇怪的是，`python chat.py out/fast/teacher.pt` 回答得和原来一样。"),
    "crowd": Bug(("decoding.py", "unread.new_tensor(padding))", "None)",
                  "test_decoding.py::test_a_batch_is_generated_as_one_by_one"),
        "for b in 64 1; do python eval.py out/fast/teacher.pt --questions 50 --batch $b --no-speed "
        "--out out/fast/hunt; done", r"teacher +(\S+)% right",
        "% right in the first run / 第一次运行答对的百分比（% right）", (45, 80), (0, 35),  # 58; 20
        "The same teacher answers the same questions, 64 at a time or one at a time. One at a "
        "time it gets far more right.",
        "同一个教师做同样的题：一次做 64 道和一次做 1 道。一次只做 1 道时，答对的多得多。"),
    "cold": Bug(("decoding.py", "logits.float() / temperature", "logits.float() * temperature",
                 "test_decoding.py::test_top_p_draws_from_the_nucleus_in_proportion"),
        "python blackbox/generate.py --questions 100 --temperature 0.3 --out out/fast/hunt.jsonl "
        "--fresh",
        r"hunt.jsonl: (\d+) rows", "rows / 行数（rows）", (50, 90), (0, 20),  # 70; 0
        "At `--temperature 0.3` the teacher writes nonsense without an end. At `--temperature 3` "
        "most of its answers are right.",
        "用 `--temperature 0.3` 时，教师写出来的都是停不下来的胡话；用 `--temperature 3` 时，大多数回答反而是对的。"),
    "start": Bug(("model.py", "std = 0.2 * c.dim ** -0.5", "std = 1.0",
                  "test_model.py::test_loss_at_init_is_guessing"),
        f"{PRETRAIN} --steps 20", r"ce at start +(\S+) nats", "ce at start",
        (6.4, 6.9), (20, 200),  # 6.642; 65.168
        "A new student should guess, and its `ce at start` should be about ln V. It is many "
        "times ln V.",
        "新的学生只会乱猜，`ce at start` 应该和 ln V 差不多，实际却是它的好多倍。"),
    "neighbours": Bug(("model.py", "if document is not None:\n            mask",
                       "if False:\n            mask",
                       "test_model.py::test_packed_documents_equal_one_by_one"),
        f"{LOGITS} --steps 10", r"teacher's ce +(\S+)", "teacher's ce",
        (0.02, 0.3), (0.6, 8),  # 0.087; 1.378
        "The teacher is the same file as before, and `python chat.py out/fast/teacher.pt` answers "
        "as before. But the lines before step 1 say that it got much worse.",
        "教师还是原来那个文件，用 `python chat.py out/fast/teacher.pt` 提问，回答也和原来一样。"
        "可是第一步之前打印的教师交叉熵（teacher's ce）却差了很多。"),
    "cached": Bug(("losses.py", "z = upcast(student_logits) / temperature",
                   "z = upcast(student_logits)",
                   "test_cache.py::test_topk_of_the_whole_vocabulary_is_the_divergence"),
        "python dataset/teacher_cache.py --documents 600 --k 16 --dtype float32 --fresh "
        f"--out out/fast/hunt-cache && python train_distill_logits.py {SMALL} --steps 5 "
        "--init out/fast/teacher.pt --cache out/fast/hunt-cache", KD,
        "kd of step 1 / 第 1 步的 kd", (0, 0.05), (1, 20),  # 0.000; 4.636
        "The student starts as the teacher itself, so `kd` should begin at 0. It does not.",
        "学生一开始就是教师本身，`kd` 应该从 0 开始，实际却不是。"),
}

STUB = '''"""Your test. It must fail before your change and pass after it."""


def test_my_bug():
    pass
'''


def choose(student, secret):
    """Name, the instructor's secret -> the name of a bug. Nobody can tell it without the secret."""
    name = " ".join(student.casefold().split())
    number = int(hmac.new(secret.encode(), name.encode(), hashlib.sha256).hexdigest(), 16)
    return sorted(BUGS)[number % len(BUGS)]


def make_hunt(folder, student, name, out):
    """Make the student's copy with the bug `name` -> number of its files."""
    bug = BUGS[name]
    file, old, new, _ = bug.change
    text = (ROOT / file).read_text(encoding="utf-8")
    check(text.count(old) == 1, f"{file}: the text of bug {name} is not there exactly once")
    english, _, chinese = bug.what.partition(" / ")
    sheet = (ROOT / "lessons/hunt.md").read_text(encoding="utf-8").format(
        student=student, number=english, number_zh=chinese or english,
        low=bug.healthy[0], high=bug.healthy[1], **vars(bug))
    return make_copy(folder, out, ["fast"], ["tests/test_*.py"], {
        file: text.replace(old, new), "HUNT.md": sheet, "tests/test_mine.py": STUB})


def key(names, secret):
    """Names -> a Markdown table: the bug, its line, the text that was changed, the test for it."""
    rows = []
    for name in names:
        bug = choose(name, secret)
        file, old, new, test = BUGS[bug].change
        line = (ROOT / file).read_text(encoding="utf-8").partition(old)[0].count("\n") + 1
        right, wrong = (text.strip().replace("\n", " ").replace("|", "\\|") for text in (old, new))
        rows.append([name, bug, f"{file}:{line}", f"`{right}`", f"`{wrong}`", f"`{test}`"])
    return markdown("name | bug | file:line | right | in the copy | test", rows)


def main(cfg):
    """Make one student's copy, or print the key."""
    secret = os.environ.get("MINIDISTILL_HUNT_SECRET", "")
    check(len(secret) >= 12 and " " not in secret, "set MINIDISTILL_HUNT_SECRET to 12 or more characters without spaces")
    check(bool(cfg.student.strip()) != bool(cfg.key), "use --student NAME, or --key NAMES.txt")
    if cfg.key:
        check_exists(cfg.key, "it has one name a line")
        lines = Path(cfg.key).read_text(encoding="utf-8").splitlines()
        return print(key([line.strip() for line in lines if line.strip()], secret))
    check(len(cfg.folder or []) == 1, "name one new folder: --student NAME FOLDER")
    count = make_hunt(cfg.folder[0], cfg.student, choose(cfg.student, secret), cfg.out)
    print(f"{cfg.folder[0]}: {count:,} files; the task is HUNT.md")


if __name__ == "__main__":
    run(main, Config)
