"""Claims about windows on disk: no token is lost or doubled, and only the right ones are learned."""
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import ROOT, UserError
from dataset import formats, windows
from dataset.formats import encode_document, read_documents
from dataset.windows import open_data, pack_documents
from tokenizer import Tokenizer
from tokenizer.train import train


def words(rng, low, high):
    return " ".join(rng.choices("how many apples does she have now two plus three".split(), k=rng.randint(low, high)))


def chats(rng, count):
    """-> rows of one or two questions with answers. No two rows have the same answers."""
    def turns(i):
        return [dict(role="user", content=words(rng, 1, 8)),
                dict(role="assistant", content=f"{i}", reasoning_content=words(rng, 1, 8))]
    return [dict(conversations=turns(i) + (turns(i) if rng.random() < 0.5 else [])) for i in range(count)]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train([words(random.Random(0), 2000, 2000)], 320))


@pytest.fixture
def source(tmp_path, out_dir):
    return write(tmp_path / "chats.jsonl", chats(random.Random(1), 400))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", 10_000)


def documents_in(data):
    """The documents of all windows, as (ids, mask) tuples."""
    return [(tuple(ids[document == number]), tuple(mask[document == number]))
            for ids, mask, document in zip(data["ids"], data["mask"], data["document"])
            for number in range(1, document.max() + 1)]


@pytest.mark.parametrize("target", ["cot", "answer"])
@pytest.mark.usefixtures("small_chunks")
def test_every_document_stands_whole_and_once_and_its_first_token_is_never_learned(tokenizer, source, target):
    """A packer could split, drop or repeat documents. No token may predict the first token of the next document."""
    data = open_data(source, tokenizer, 60, target)
    ids, mask, document, meta = (data[name] for name in ("ids", "mask", "document", "meta"))
    assert meta["documents"] == 400 and not meta["too_long"]
    expected = [encode_document(tokenizer, d, target) for _, d in read_documents(source)]
    assert sorted(documents_in(data)) == sorted((tuple(i), tuple(m)) for i, m in expected)
    for row in document:  # contiguous, in order, padding last
        real = row[row > 0]
        assert (np.diff(real.astype(int)) >= 0).all() and not row[len(real):].any()
    assert (ids[document == 0] == tokenizer.pad).all() and not mask[document == 0].any()
    assert [data[n].dtype for n in windows.NAMES] == [np.uint16, np.uint8, np.uint16]
    assert not ids.flags.writeable
    first = np.diff(document.astype(int), axis=1, prepend=0) != 0
    assert not mask[first].any()
    assert meta["supervised"] == mask[:, 1:].sum() == mask.sum()  # the shift loses none
    assert meta["tokens"] == (document > 0).sum()
    assert meta["padding_share"] == pytest.approx((document == 0).mean())


def test_a_stream_of_text_loses_no_token(tmp_path, tokenizer, out_dir):
    """A token of plain text would be learned twice or never, or an <end> between documents be missing."""
    rows = [{"text": words(random.Random(i), 1, 50)} for i in range(60)]
    data = open_data(write(tmp_path / "a.jsonl", rows), tokenizer, 32)
    ids, mask, document = data["ids"], data["mask"], data["document"]
    stream = [token for row in rows for token in encode_document(tokenizer, row["text"])[0]]
    assert [ids[0, 0], *ids[:, 1:][mask[:, 1:] == 1]] == stream
    assert data["meta"]["supervised"] == len(stream) - 1 and len(ids) == -(-(len(stream) - 1) // 32)
    assert (ids[1:, 0] == ids[:-1, -1]).all()  # windows overlap by one token
    assert set(np.unique(document)) <= {0, 1} and (document[:-1] == 1).all()
    assert not mask[:, 0].any()  # the shared token is learned in the window before


def test_a_book_is_cut_in_chunks_and_loses_no_character(tmp_path, tokenizer, small_chunks, out_dir):
    """A .txt file is one document per chunk. Line ends, or text at the border of a chunk, could be lost."""
    text = "".join(words(random.Random(i), 1, 12) + "\n" for i in range(1500))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    data = open_data(tmp_path / "book.txt", tokenizer, 32)
    assert data["meta"]["documents"] > 3
    kept = data["mask"].astype(bool)
    kept[:, 0] = [True, *(data["document"][:-1, -1] == 0)]  # a new stream begins after padding
    assert tokenizer.decode(data["ids"][kept]) == text


@pytest.mark.usefixtures("small_chunks")
def test_a_tenth_of_the_questions_is_held_out_with_all_their_answers(tmp_path, tokenizer, out_dir):
    """With answers to one question in both parts, validation would reward a student that memorises."""
    rows = [dict(messages=[dict(role="user", content=f"how many {question}"),
                           dict(role="assistant", content=f"{question} plus {answer}")])
            for answer in range(3) for question in range(400)]
    source = write(tmp_path / "a.jsonl", rows)
    whole, *parts = ({tokenizer.decode(ids, True) for ids, _ in documents_in(
        open_data(source, tokenizer, 60, part=part))} for part in ("", "val", "train"))
    val, train = ({text.split("<end>")[0] for text in part} for part in parts)
    assert len(whole) == 1200 and parts[0] | parts[1] == whole and not val & train
    assert 25 < len(val) < 55 and len(parts[0]) == 3 * len(val)


@pytest.mark.parametrize("asked", [["a", "b"], ["a", "b", "c", "a"], list("abcdefgh"), ["How many?"], ["how", " HOW "]])
def test_at_least_one_question_of_a_small_file_is_held_out(asked, tmp_path, tokenizer, out_dir):
    """The hash put no row of a small file into the tenth: "too few rows". Case and spaces make no other question."""
    path = write(tmp_path / "a.jsonl", [dict(question=text, answer="two") for text in asked])
    if len({text.strip().lower() for text in asked}) == 1:
        with pytest.raises(UserError, match="--val"):
            open_data(path, tokenizer, 60, part="val")
    else:
        sizes = [open_data(path, tokenizer, 60, part=part)["meta"]["documents"] for part in ("val", "train")]
        assert min(sizes) > 0 and sum(sizes) == len(asked)


def test_of_plain_text_the_last_tenth_is_held_out(tmp_path, tokenizer, out_dir):
    """Held-out windows from all over the file would begin and end inside sentences that are learned."""
    text = "".join(words(random.Random(i), 1, 12) + "\n" for i in range(300))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    parts = [open_data(tmp_path / "book.txt", tokenizer, 32, part=part) for part in ("train", "val")]
    train, val = ([data["ids"][0, 0], *data["ids"][:, 1:][data["mask"][:, 1:] == 1]] for data in parts)
    assert tokenizer.decode([*train, *val]) == text and len(val) == pytest.approx(len(train) / 9, abs=1)


def test_documents_takes_the_first_rows_of_the_file(tmp_path, tokenizer, source, small_chunks):
    """--documents N would mean other rows if the file is cut into other chunks."""
    limited = open_data(source, tokenizer, 60, documents=123)
    first = open_data(write(tmp_path / "first.jsonl", chats(random.Random(1), 400)[:123]), tokenizer, 60)
    assert limited["meta"]["documents"] == 123
    assert all((limited[name] == first[name]).all() for name in windows.NAMES)


def test_stories_are_packed_with_little_padding():
    """Padding wastes time. It is 3.0 % here, and 4.7 % if the longest documents are not first."""
    lengths = [round(random.Random(i).triangular(33, 107, 60)) for i in range(5000)]
    _, _, document = pack_documents([([1] * n, [1] * n) for n in lengths], 257, 0)
    assert (document > 0).sum() == sum(lengths) and (document == 0).mean() < 0.04


def test_a_conversation_that_is_too_long_ends_with_the_last_answer_that_fits(tmp_path, tokenizer, out_dir):
    """Long chats were dropped whole. FAULTS 25: the advice for --window led to the next error."""
    def turns(n, weight=1):
        return [dict(role="user", content=f"how {n}"), dict(role="assistant", content="two " * n, weight=weight)]
    rows = [turns(2) + turns(3) + turns(40), turns(3) + turns(2, 0) + turns(40), turns(60), turns(4)]
    path = write(tmp_path / "a.jsonl", [dict(messages=row) for row in rows])
    data = open_data(path, tokenizer, 40)
    kept = write(tmp_path / "b.jsonl", [dict(messages=row) for row in (turns(2) + turns(3), turns(3), turns(4))])
    expected = [encode_document(tokenizer, document) for _, document in read_documents(kept)]
    assert sorted(documents_in(data)) == sorted((tuple(ids), tuple(mask)) for ids, mask in expected)
    assert [count for count, _ in data["meta"]["left_out"].values()] == [2, 1] and data["meta"]["too_long"] == 1
    need = data["meta"]["longest"] - 1
    with pytest.raises(UserError, match=f"--window 3; .* {need},"):
        open_data(path, tokenizer, 3)
    assert open_data(path, tokenizer, need)["meta"]["too_long"] == 0


def test_windows_are_cut_once_and_anew_for_anything_that_changes_them(tmp_path, tokenizer, source, monkeypatch):
    """TRAPS 17: old windows would be used for changed text, other settings or another tokenizer."""
    cuts, write_windows = [], windows.write_windows
    monkeypatch.setattr(windows, "write_windows", lambda *a: (cuts.append(1), write_windows(*a)))
    other = Tokenizer(train([words(random.Random(9), 500, 500)], 310))
    for _ in range(2):
        for options in (dict(), dict(target="answer"), dict(window=61), dict(documents=9),
                        dict(tokenizer=other), dict(skip_bad_lines=True)):
            open_data(source, **dict(tokenizer=tokenizer, window=60) | options)
    assert len(cuts) == 6
    write(source, chats(random.Random(8), 10))
    assert open_data(source, tokenizer, 60)["meta"]["documents"] == 10 and len(cuts) == 7
    text = source.rename(tmp_path / "chats.txt")  # the same bytes as plain text are other data
    assert open_data(text, tokenizer, 60)["meta"]["documents"] == 1 and len(cuts) == 8


def test_a_bad_line_far_into_the_file_has_its_number(tokenizer, source, out_dir, small_chunks):
    """Each chunk is read on its own. An error would give the line in the chunk, not in the file."""
    lines = source.read_text(encoding="utf-8").splitlines(True)
    lines.insert(300, "\n{broken\n")
    source.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="chats.jsonl:302: broken JSON"):
        open_data(source, tokenizer, 60)
    assert not list((out_dir / "windows").glob("*/*"))
    meta = open_data(source, tokenizer, 60, skip_bad_lines=True)["meta"]
    [[count, places]] = meta["left_out"].values()
    assert count == 1 and places == [f"{source}:302"] and meta["documents"] == 400
    source.write_text("{\n[]\n", encoding="utf-8")
    with pytest.raises(UserError, match="nothing to learn from"):
        open_data(source, tokenizer, 60, skip_bad_lines=True)


def test_small_files_of_a_folder_share_windows_and_hold_out_questions(tmp_path, tokenizer, out_dir):
    """A window for each small file was three quarters padding. Beside a .txt no question was held out."""
    rows, folder = chats(random.Random(3), 60), tmp_path / "many"
    folder.mkdir()
    for i, row in enumerate(rows):
        write(folder / f"{i:02}.jsonl", [row])
    many, one = open_data(folder, tokenizer, 60), open_data(write(tmp_path / "one.jsonl", rows), tokenizer, 60)
    assert all((many[name] == one[name]).all() for name in windows.NAMES)
    (folder / "text.txt").write_text("how many are there " * 20)
    val, train = (open_data(folder, tokenizer, 60, part=part)["meta"]["documents"] for part in ("val", "train"))
    assert val > 1 and val + train == 62  # a part of the text is on each side


def many_rows(path, megabytes):
    """Write a .jsonl file of at least this many MB, more than one chunk -> its path."""
    text = write(path, chats(random.Random(5), 3000)).read_bytes()
    with open(path, "wb") as file:  # in pieces: a process inherits its parent's peak memory
        file.writelines(text for _ in range(megabytes * 10**6 // len(text) + 1))
    return path


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_workers(tmp_path, tokenizer, out_dir):
    """If the windows depended on the number of cores, a teacher's cache would fit only one machine."""
    path = many_rows(tmp_path / "big.jsonl", 9)
    found = open_data(path, tokenizer, 60)
    alone = [windows.cut(tokenizer, 60, "cot", False, "", "", [chunk])[0] for chunk in formats.chunks(path)]
    assert len(alone) == 3
    assert all((found[n] == np.concatenate(parts)).all() for n, *parts in zip(windows.NAMES, *alone))


@pytest.fixture
def prepare(tmp_path, tokenizer):
    """-> words of a command. It cuts the file whose path follows, and prints its peak memory in kB."""
    tokenizer.save(tmp_path / "t.model")
    return [sys.executable, "-c", f"""import resource, sys; sys.path.insert(0, {str(ROOT)!r})
from dataset.windows import open_data
from speed import peak_memory
from tokenizer import Tokenizer
open_data(sys.argv[1], Tokenizer.load({str(tmp_path / "t.model")!r}), 60)
print(max(peak_memory() // 1024, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))"""]


@pytest.mark.slow
def test_a_killed_run_leaves_nobody_behind_and_the_next_one_goes_on(tmp_path, tokenizer, prepare, out_dir):
    """Leftover files would block the next run, workers would not end, or two runs would write at once."""
    path = many_rows(tmp_path / "big.jsonl", 40)
    for wait in (0, 0.2, 0.4, 0.7, 1):
        process = subprocess.Popen([*prepare, path])
        while not list((out_dir / "windows").glob("*/.ids.bin.tmp")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(wait)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGKILL)
        process.wait()
        began = time.time()
        while any(Path(f"/proc/{child}").exists() for child in children):
            assert time.time() - began < 60  # a worker that is still starting ends after its start
            time.sleep(0.05)
        assert not list((out_dir / "windows").glob("*/meta.json"))
    both = [subprocess.Popen([*prepare, path]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert open_data(path, tokenizer, 60)["meta"]["bytes"] == path.stat().st_size
    assert not list((out_dir / "windows").glob("*/.*.tmp"))


@pytest.mark.slow
def test_a_gigabyte_is_prepared_in_less_than_a_gigabyte(tmp_path, prepare, out_dir):
    """Real files may not fit into memory. Such a run would be killed."""
    done = subprocess.run([*prepare, many_rows(tmp_path / "big.jsonl", 1000)], capture_output=True,
                          text=True, check=True)
    assert int(done.stdout.split()[-1]) * 1024 < 1e9
