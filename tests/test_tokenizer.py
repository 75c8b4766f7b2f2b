"""Claims about the tokenizer: every text comes back, and no text becomes a control token."""
import json
import random

import numpy as np
import pytest
import sentencepiece

from common import UserError
from tokenizer import CONTROL, MEMO_LENGTH, Tokenizer
from tokenizer.train import Config, main, texts, train

WORDS = "the an in wing ring thing swim stone strong long song tone one on end think answer".split()


def some_text(rng, words=2000):
    return " ".join(rng.choice(WORDS) + rng.choice([".", "", "\n", str(rng.randint(0, 99))]) for _ in range(words))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train([some_text(random.Random(0)) + " ".join(CONTROL) * 50], 360))


def random_text(rng):
    """A random text: names of control tokens, spaces, control characters, accents, all of Unicode."""
    def any_character():
        code = rng.choice([rng.randrange(0x80), rng.randrange(0x3000), rng.randrange(0x110000)])
        return "x" if 0xD800 <= code < 0xE000 else chr(code)
    kinds = [any_character, lambda: " " * rng.randint(1, 5), lambda: rng.choice(CONTROL),
             lambda: rng.choice(["\u2581", "\0", "\r\n", "\n\n", "\t", "e\u0301", "<0x41>"]),
             lambda: rng.choice(WORDS + ["𝒜🙂中文"]), lambda: str(rng.randint(-9999, 9999))]
    return "".join(rng.choice(kinds)() for _ in range(rng.randint(0, 30)))


def test_any_text_comes_back(tokenizer):
    """NFKC, merged spaces, a dummy prefix or a lost U+2581 would change the text. raw must add up to it."""
    rng, raw = random.Random(1), tokenizer.raw
    assert len(raw) == tokenizer.vocab_size and not any(raw[:10])
    long = some_text(rng, 50_000) + "x" * 10 * MEMO_LENGTH + " " * 1000  # too long for the cache of words
    for text in [long] + [random_text(rng) for _ in range(1500)]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text and b"".join(raw[i] for i in ids) == text.encode()


def test_no_text_spells_a_mark(tokenizer):
    """TRAPS 24: if text could become a control token, a user who writes "<end>" would end the turn."""
    for text in CONTROL + ["".join(CONTROL)] + [random_text(random.Random(i)) for i in range(1500)]:
        assert not tokenizer.control_ids & set(tokenizer.encode(text))


def test_marks_are_one_id_each(tokenizer):
    """TRAPS 24: a tag of several pieces is never learned, and a weight on it hits ordinary text."""
    t = tokenizer
    marks = [t.pad, t.unk, t.end, *t.system, *t.user, *t.assistant, *t.think, *t.end_think, *t.answer, *t.end_answer]
    assert marks == list(range(10)) and tokenizer.control_ids == set(marks)
    assert [tokenizer.decode([i], show_control=True) for i in marks] == CONTROL
    assert tokenizer.decode(marks) == "" and tokenizer.tag_ids == set(marks[6:])


def test_encoding_word_by_word_equals_the_library(tokenizer):
    """A mistake in the cache of words would silently change ids."""
    library = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    for seed in range(1000):
        text = random_text(random.Random(seed)).replace("\u2581", "")
        assert tokenizer.encode(text) == library.encode(text)


def test_a_lone_surrogate_is_named(tokenizer):
    """JSON may contain half a surrogate pair. The library raises a RuntimeError that explains nothing."""
    for text in ("ab\ud800", "\udfff", "a \ude00 b"):
        with pytest.raises(UserError, match="surrogate"):
            tokenizer.encode(text)


def test_decoding_raises_only_for_ids_out_of_range(tokenizer):
    """Broken UTF-8 of a half-trained model would raise an error, or the id -1 would be the last piece."""
    rng = random.Random(5)
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randint(0, 20))]
        tokenizer.decode(ids), tokenizer.decode(np.array(ids, dtype=np.uint16), show_control=True)
    assert tokenizer.decode(tokenizer.encode("\u4e2d")[:2]) == "\ufffd"
    for bad in (-1, tokenizer.vocab_size):
        with pytest.raises(ValueError):
            tokenizer.decode([bad])


def test_digits_stand_alone_and_pieces_hold_no_newline(tokenizer):
    """Arithmetic needs one token per digit. A newline in a piece would break encoding word by word."""
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345")] == list("12345")
    pieces = [tokenizer.decode([i]) for i in range(10 + 256, tokenizer.vocab_size)]
    assert not any("\n" in piece or " " in piece.lstrip(" ") for piece in pieces)


def test_wrong_vocabulary_sizes_say_what_is_possible():
    """The user would see the library's message, "INTERNAL: src/trainer_interface.cc(638) ..."."""
    texts = [some_text(random.Random(8))]
    for size, words in ((100, "at least 2[89]\\d"), (10**6, "at most \\d+")):
        with pytest.raises(UserError, match=words) as error:
            train(texts, size)
        assert "INTERNAL" not in str(error.value)
        possible = int(str(error.value).split("at least " if size == 100 else "at most ")[1][:3])
        assert Tokenizer(train(texts, possible)).vocab_size == possible
        assert Tokenizer(train(texts)).vocab_size >= 300  # without a size: one that is possible


def test_what_is_no_model_is_refused(tmp_path):
    """A truncated or foreign file would end with the library's traceback instead of one line."""
    (tmp_path / "bad.model").write_bytes(b"nonsense")
    for name, words in (("bad", "not a SentencePiece model"), ("none", "tokenizer/train.py")):
        with pytest.raises(UserError, match=words):
            Tokenizer.load(tmp_path / f"{name}.model")


def test_the_command_makes_once_and_refuses_other_content(tmp_path, capsys):
    """A replaced tokenizer would silently change the meaning of all ids in older data and checkpoints."""
    source, out = tmp_path / "a.txt", tmp_path / "t.model"
    source.write_text(some_text(random.Random(9)), encoding="utf-8")
    main(Config([str(source)], 340, out))
    printed = capsys.readouterr().out
    assert "pieces" in printed and printed.splitlines()[-1].startswith("next: python ")
    made = out.read_bytes()
    main(Config([str(source)], 340, out))
    with pytest.raises(UserError, match="differs.*--fresh"):
        main(Config([str(source)], 350, out))
    assert out.read_bytes() == made
    main(Config([str(source)], 350, out, fresh=True))
    assert out.read_bytes() != made
    characters = "".join(map(chr, range(0x4e00, 0x4e00 + 1500)))
    for row, script in ({"text": characters}, "pretrain"), ({"role": "user", "content": characters}, "distill_responses"):
        (tmp_path / "b.txt.jsonl").write_text(json.dumps(row), encoding="utf-8")
        main(Config([str(tmp_path / "b.txt.jsonl")], out=out, fresh=True))
        assert Tokenizer.load(out).vocab_size == 2048 and f"train_{script}.py" in capsys.readouterr().out


def test_the_library_prints_nothing_and_the_script_runs_from_anywhere(tmp_path, run_script):
    """Hundreds of lines of the library's log would hide the two lines that matter."""
    (tmp_path / "a.txt").write_text(some_text(random.Random(9)), encoding="utf-8")
    done = run_script("tokenizer/train.py", "a.txt", "--vocab-size=340", "--out=t.model", cwd=tmp_path)
    assert (done.stderr, done.stdout.count("\n")) == ("", 2)


def test_every_text_of_a_row_is_trained_on_and_no_mark(tmp_path):
    """If a key is not read, its letters get no pieces. The model must spell them in bytes."""
    rows = ["abc", {"text": "t"}, {"messages": [{"role": "user", "content": "u"},
            {"role": "assistant", "content": "<think>h</think><answer>a</answer>"}]},
            {"question": "q", "answer": "s 1+2=<<1+2=3>>3\n#### 3", "id": "not a text"},
            {"conversations": [{"from": "gpt", "value": "v"}], "numbers": [1, 2]}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = list(filter(None, texts(str(tmp_path / "a.jsonl"))))
    assert found == ["t", "u", "h", "a", "q", "s 1+2=3", "3", "v"]
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{', encoding="utf-8")
    with pytest.raises(UserError, match="a.jsonl:3: not JSON"):
        list(texts(str(tmp_path / "a.jsonl")))
