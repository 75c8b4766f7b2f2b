"""Windows on disk: nothing lost, nothing twice, nothing learned that should not be."""
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from common import ROOT, UserError
from dataset import formats
from dataset.formats import encode_document, read_documents
from dataset.windows import OPEN_WINDOWS, Packed, open_windows, prepare
from tokenizer import Tokenizer
from tokenizer.train import train

FILES = ("ids.bin", "mask.bin", "document.bin", "meta.json", "tokenizer.model")


def words(rng, low, high):
    return " ".join(rng.choices("how many apples does she have now two plus three".split(),
                                k=rng.randint(low, high)))


def chats(rng, count):
    """Rows of one or two rounds; every response unlike the others."""
    rows = []
    for i in range(count):
        turns = []
        for _ in range(rng.randint(1, 2)):
            turns += [{"role": "user", "content": words(rng, 1, 8)},
                      {"role": "assistant", "content": f"{i}",
                       "reasoning_content": words(rng, 1, 8)}]
        rows.append({"conversations": turns})
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(train([words(random.Random(0), 2000, 2000)], 320))


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "chats.jsonl", chats(random.Random(1), 400))


@pytest.fixture
def small_chunks(monkeypatch):
    monkeypatch.setattr(formats, "CHUNK", 10_000)


def documents_in(ids, mask, document):
    """The documents of all windows, as (ids, mask) tuples."""
    found = []
    for row in range(len(ids)):
        for number in range(1, document[row].max() + 1):
            here = document[row] == number
            found.append((tuple(ids[row][here]), tuple(mask[row][here])))
    return found


@pytest.mark.parametrize("target", ["cot", "answer"])
@pytest.mark.parametrize("loss_on", ["response", "all"])
@pytest.mark.usefixtures("small_chunks")
def test_every_document_stands_whole_and_once(tmp_path, tokenizer, source, target, loss_on):
    """A packer that splits, drops or repeats documents changes the data silently."""
    meta = prepare(source, tmp_path / "w", tokenizer, 60, target, loss_on, workers=1)
    ids, mask, document, again = open_windows(tmp_path / "w")
    assert again == json.loads(json.dumps(meta))
    assert meta["documents"] == 400 and not meta["too_long"]
    expected = [encode_document(tokenizer, d, target, loss_on) for _, d in read_documents(source)]
    expected = [(tuple(i), tuple(m)) for i, m in expected]
    assert sorted(documents_in(ids, mask, document)) == sorted(expected)
    for row in document:  # contiguous, in order, padding last
        real = row[row > 0]
        assert (np.diff(real.astype(int)) >= 0).all() and not row[len(real):].any()
    assert (ids[document == 0] == tokenizer.pad).all() and not mask[document == 0].any()


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_the_first_token_of_a_document_is_never_learned(tmp_path, tokenizer, source, loss_on):
    """Packed, its predecessor is the <end> of a stranger."""
    prepare(source, tmp_path / "w", tokenizer, 60, loss_on=loss_on, workers=1)
    _, mask, document, meta = open_windows(tmp_path / "w")
    first = np.diff(document.astype(int), axis=1, prepend=0) != 0
    assert not mask[first].any()
    assert meta["supervised"] == mask[:, 1:].sum() == mask.sum()  # the shift loses none
    assert meta["tokens"] == (document > 0).sum()
    assert meta["padding_share"] == pytest.approx((document == 0).mean())


def test_the_learned_span_of_a_window_is_the_response(tmp_path, tokenizer):
    """Traps 7 and 25: y = ids[1:] with mask[1:], decoded, first and last token."""
    turns = [{"role": "user", "content": "how many"},
             {"role": "assistant", "content": "5", "reasoning_content": "two plus three"}]
    prepare(write(tmp_path / "a.jsonl", [{"messages": turns}]), tmp_path / "w", tokenizer, 60)
    ids, mask, _, _ = open_windows(tmp_path / "w")
    x, y, learned = ids[0, :-1], ids[0, 1:], mask[0, 1:] == 1
    assert tokenizer.decode(y[learned], True) == (
        "<think>two plus three</think><answer>5</answer><end>")
    assert x[learned][0] == tokenizer.assistant  # predicts the first response token


def test_a_stream_of_text_loses_no_token(tmp_path, tokenizer):
    """Every token but the first is a target exactly once; documents stand apart by <end>."""
    rng = random.Random(2)
    rows = [{"text": words(rng, 1, 50)} for _ in range(60)]
    meta = prepare(write(tmp_path / "a.jsonl", rows), tmp_path / "w", tokenizer, 32)
    ids, mask, document, _ = open_windows(tmp_path / "w")
    stream = [token for row in rows for token in encode_document(tokenizer, row["text"])[0]]
    targets = ids[:, 1:][mask[:, 1:] == 1]
    assert [ids[0, 0], *targets] == stream and meta["supervised"] == len(stream) - 1
    assert (ids[1:, 0] == ids[:-1, -1]).all()  # windows overlap by one token
    assert set(np.unique(document)) <= {0, 1} and (document[:-1] == 1).all()
    assert not mask[:, 0].any()  # the shared token is learned in the window before
    assert len(ids) == -(-(len(stream) - 1) // 32)


def test_a_book_is_cut_in_chunks_and_loses_no_character(tmp_path, tokenizer, small_chunks):
    """A .txt is one document for each chunk: all its text, line ends and all."""
    text = "".join(words(random.Random(i), 1, 12) + "\n" for i in range(1500))
    (tmp_path / "book.txt").write_text(text, encoding="utf-8")
    meta = prepare(tmp_path / "book.txt", tmp_path / "w", tokenizer, 32, workers=1)
    ids, mask, document, _ = open_windows(tmp_path / "w")
    assert meta["documents"] > 3
    kept = mask.astype(bool)
    kept[0, 0] = True
    kept[1:, 0] = document[:-1, -1] == 0  # after the padded end of a chunk a new stream begins
    assert tokenizer.decode(ids[kept]) == text


def test_text_and_conversations_may_stand_in_one_file(tmp_path, tokenizer):
    """Neither kind may swallow the other."""
    rows = [*chats(random.Random(3), 20), {"text": "how many apples"}, *chats(random.Random(4), 20)]
    meta = prepare(write(tmp_path / "a.jsonl", rows), tmp_path / "w", tokenizer, 60)
    ids = open_windows(tmp_path / "w")[0]
    assert meta["documents"] == 41
    assert tokenizer.decode(ids[-1]) == "how many apples"


def hashes(folder):
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES}


def test_the_bytes_do_not_depend_on_the_workers(tmp_path, tokenizer, source, small_chunks):
    """Another machine, another core count: the same data, or a teacher's cache no longer fits."""
    for workers in (1, 3):
        prepare(source, tmp_path / f"w{workers}", tokenizer, 60, workers=workers)
    assert hashes(tmp_path / "w1") == hashes(tmp_path / "w3")


def test_documents_takes_the_first_rows_of_the_file(tmp_path, tokenizer, source, small_chunks):
    """A label budget of N must be the same N rows however the file is cut."""
    limited = prepare(source, tmp_path / "a", tokenizer, 60, documents=123, workers=1)
    rows = source.read_text(encoding="utf-8").splitlines(True)
    (tmp_path / "first.jsonl").write_text("".join(rows[:123]), encoding="utf-8")
    prepare(tmp_path / "first.jsonl", tmp_path / "b", tokenizer, 60, workers=1)
    assert limited["documents"] == 123
    a, b = hashes(tmp_path / "a"), hashes(tmp_path / "b")
    assert [a[name] for name in FILES[:3]] == [b[name] for name in FILES[:3]]


def test_stories_are_packed_with_little_padding():
    """Padding is computed and thrown away: 3.1 % here; 4.6 % without the longest first."""
    rng, packed = random.Random(5), Packed(257)
    lengths = [round(rng.triangular(33, 107, 60)) for _ in range(5000)]
    for n in lengths:
        packed.add([1] * n, [1] * n)
        assert len(packed.open) <= OPEN_WINDOWS
    ids, _, document = packed.arrays(0)
    assert (document > 0).sum() == sum(lengths)
    assert (document == 0).mean() < 0.04


def test_documents_that_are_too_long_are_counted(tmp_path, tokenizer, capsys):
    """Left out in silence, the hard examples (long chains of thought) would be missing."""
    rows = [{"question": "two", "answer": f"{'two ' * n}#### 2"} for n in (1, 2, 50)]
    meta = prepare(write(tmp_path / "a.jsonl", rows), tmp_path / "w", tokenizer, 30)
    assert (meta["documents"], meta["too_long"]) == (2, 1)
    needed = meta["longest"] - 1
    assert f"1 documents left out: too long (--window {needed}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"every document is longer.*fix: --window {needed}"):
        prepare(tmp_path / "a.jsonl", tmp_path / "v", tokenizer, 3)
    assert prepare(tmp_path / "a.jsonl", tmp_path / "v", tokenizer, needed)["too_long"] == 0


# --- bad lines, bad folders -----------------------------------------------------------------------

@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.usefixtures("small_chunks")
def test_a_bad_line_far_into_the_file_has_its_number(tmp_path, tokenizer, source, workers):
    """Chunks are read apart, yet the line number must be the file's."""
    lines = source.read_text(encoding="utf-8").splitlines(True)
    lines.insert(300, "\n{broken\n")
    source.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match="chats.jsonl:302: broken JSON"):
        prepare(source, tmp_path / "w", tokenizer, 60, workers=workers)
    assert os.listdir(tmp_path) == ["chats.jsonl"]
    meta = prepare(source, tmp_path / "w", tokenizer, 60, workers=workers, skip_bad_lines=True)
    assert meta["bad_lines"] == {"broken JSON": {"count": 1, "first": [f"{source}:302"]}}
    assert meta["documents"] == 400


def test_nothing_but_bad_lines_is_an_error(tmp_path, tokenizer):
    """A data set of size 0 would crash later, elsewhere."""
    (tmp_path / "a.jsonl").write_text("{\n[]\n", encoding="utf-8")
    with pytest.raises(UserError, match="no document is left.*broken JSON"):
        prepare(tmp_path / "a.jsonl", tmp_path / "w", tokenizer, 60, skip_bad_lines=True)
    (tmp_path / "b.jsonl").write_text("\n\n", encoding="utf-8")
    with pytest.raises(UserError, match="no document is left"):
        prepare(tmp_path / "b.jsonl", tmp_path / "w", tokenizer, 60)


def test_a_second_run_does_nothing_and_another_is_refused(tmp_path, tokenizer, source, capsys):
    """Data replaced under a run, or a stale folder taken for new, is a silent error (trap 17)."""
    out = tmp_path / "w"
    meta = prepare(source, out, tokenizer, 60)
    stamp = (out / "ids.bin").stat().st_mtime_ns
    assert prepare(source, out, tokenizer, 60) == json.loads(json.dumps(meta))
    assert (out / "ids.bin").stat().st_mtime_ns == stamp
    assert "already made" in capsys.readouterr().out
    with pytest.raises(UserError, match="target was 'cot', is 'answer', window was 60, is 80"):
        prepare(source, out, tokenizer, 80, target="answer")
    other = Tokenizer(train([words(random.Random(9), 500, 500)], 310))
    both = f"was {tokenizer.fingerprint!r}, is {other.fingerprint!r}"
    with pytest.raises(UserError, match=both):
        prepare(source, out, other, 60)
    write(source, chats(random.Random(8), 10))
    with pytest.raises(UserError, match="source_sha256"):
        prepare(source, out, tokenizer, 60)
    assert prepare(source, out, tokenizer, 80, fresh=True)["documents"] == 10
    assert sorted(os.listdir(tmp_path)) == ["chats.jsonl", "w"]
    assert sorted(os.listdir(out)) == sorted(FILES)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path, tokenizer, source):
    """--fresh must never delete a home directory."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="not a folder of windows"):
        prepare(source, tmp_path / "mine", tokenizer, 60, fresh=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


def test_damaged_folders_are_refused(tmp_path, tokenizer, source):
    """A truncated file read as if whole trains on zeros, or crashes with a traceback."""
    out = tmp_path / "w"
    with pytest.raises(UserError, match="does not exist; fix: python dataset/prepare.py"):
        open_windows(out)
    prepare(source, out, tokenizer, 60)
    arrays = open_windows(out)[:3]
    assert [a.dtype for a in arrays] == [np.uint16, np.uint8, np.uint16]
    assert not any(a.flags.writeable for a in arrays)
    meta, data = (out / "meta.json").read_text(encoding="utf-8"), (out / "mask.bin").read_bytes()
    (out / "mask.bin").write_bytes(data[:-1])
    with pytest.raises(UserError, match="mask.bin is truncated.*fix: make the folder again"):
        open_windows(out)
    (out / "mask.bin").write_bytes(data)
    for bad, message in ((meta[:40], "meta.json is damaged"), ("[]", "meta.json is damaged"),
                         (meta.replace('"version": 2', '"version": 99'), "version 99; expected")):
        (out / "meta.json").write_text(bad, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            open_windows(out)


def test_the_same_bytes_as_text_and_as_rows_are_two_data_sets(tmp_path, tokenizer, source):
    """A .jsonl once misnamed .txt: its raw JSON would be trained on for ever after."""
    text = tmp_path / "w.txt"
    text.write_bytes(source.read_bytes())
    prepare(text, tmp_path / "w", tokenizer, 60)
    with pytest.raises(UserError, match="text was True, is False"):
        prepare(source, tmp_path / "w", tokenizer, 60)


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, tokenizer, source, monkeypatch):
    """Between moving the old data away and the new ones in: whatever happens there costs neither."""
    out, rename = tmp_path / "w", os.rename
    prepare(source, out, tokenizer, 60)
    before = (out / "ids.bin").read_bytes()

    def failing(a, b):
        if Path(b) == out and ".old." not in Path(a).name:
            raise OSError(errno.EIO, "Input/output error")
        rename(a, b)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError):
        prepare(source, out, tokenizer, 61, fresh=True)
    assert (out / "ids.bin").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []


def test_a_folder_that_only_looks_like_a_leftover_stays(tmp_path, tokenizer, source):
    """`.NAME.backup.tmp` is nobody's process: it may be the user's."""
    mine = tmp_path / ".w.backup.tmp"
    mine.mkdir()
    prepare(source, tmp_path / "w", tokenizer, 60)
    assert mine.exists()


def test_what_a_killed_run_left_is_found_under_any_name(tmp_path, tokenizer, source):
    """In a pattern "a[1]" means "a1": half folders of it would pile up for ever."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".a[1].{dead.pid}.tmp", f".a[1].old.{dead.pid}.tmp"):
        (tmp_path / name / "inside").mkdir(parents=True)
    prepare(source, tmp_path / "a[1]", tokenizer, 60)
    assert sorted(os.listdir(tmp_path)) == ["a[1]", "chats.jsonl"]


def test_a_full_disk_leaves_the_old_folder(tmp_path, tokenizer, source, monkeypatch):
    """ENOSPC half-way must cost neither the old data nor leave half of the new."""
    out = tmp_path / "w"
    prepare(source, out, tokenizer, 60)
    before = hashes(out)

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError) as error:
            prepare(source, out, tokenizer, 80, fresh=True)
    assert error.value.filename and hashes(out) == before
    assert sorted(os.listdir(tmp_path)) == ["chats.jsonl", "w"]


# --- processes ------------------------------------------------------------------------------------

def tree(pid):
    """A process and all below it; those that have just ended are left out."""
    found = [pid]
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                found += tree(int(child))
    except OSError:
        pass
    return found


def resident(pid):
    """Bytes in memory, summed over a process tree; shared pages count in each."""
    total = 0
    for each in tree(pid):
        try:
            total += int(Path(f"/proc/{each}/statm").read_text().split()[1])
        except (OSError, IndexError):
            pass
    return total * os.sysconf("SC_PAGE_SIZE")


def alive(pid):
    """Whether it runs; one that has ended and was not yet fetched by its parent (Z) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(tmp_path, tokenizer, *more):
    tokenizer.save(tmp_path / "t.model")
    return subprocess.Popen(
        [sys.executable, ROOT / "dataset" / "prepare.py", "--input", tmp_path / "big.jsonl",
         "--tokenizer", tmp_path / "t.model", "--out", tmp_path / "w", "--workers", "2", *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def write_big(path, size):
    """A JSONL of about `size` bytes, fast: 2,000 different rows, again and again."""
    block = "".join(json.dumps(row) + "\n" for row in chats(random.Random(6), 2000)).encode()
    with open(path, "wb") as file:
        for _ in range(size // len(block) + 1):
            file.write(block)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_killed_run_leaves_nobody_and_is_cleaned_up(tmp_path, tokenizer):
    """Workers of a killed parent would go on for ever, and half folders would pile up."""
    write_big(tmp_path / "big.jsonl", 40_000_000)
    process = start(tmp_path, tokenizer)
    while process.poll() is None and len(tree(process.pid)) < 4:  # two workers, and a helper
        time.sleep(0.01)
    time.sleep(0.5)
    pids = tree(process.pid)
    assert process.poll() is None and not (tmp_path / "w").exists()
    process.kill()
    process.wait()
    deadline = time.time() + 10
    while (left := [pid for pid in pids if alive(pid)]) and time.time() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.stdout.close(), process.stderr.close()
    assert not left
    assert any(name.startswith(".w.") for name in os.listdir(tmp_path))
    prepare(tmp_path / "big.jsonl", tmp_path / "w", tokenizer, 60, documents=10)
    assert sorted(os.listdir(tmp_path)) == ["big.jsonl", "t.model", "w"]


def test_a_bad_line_in_a_worker_is_one_line_of_error(tmp_path, tokenizer):
    """No traceback for what a user can cause, from whichever process."""
    write_big(tmp_path / "big.jsonl", 4_300_000)  # two chunks
    rows = (tmp_path / "big.jsonl").read_bytes()
    (tmp_path / "big.jsonl").write_bytes(b'{"text": 5}\n' + rows)
    _, error = (process := start(tmp_path, tokenizer)).communicate()
    assert process.returncode == 2 and error.count("\n") == 1
    assert "big.jsonl:1: content that is not a string; got text: 5" in error


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_a_gigabyte_is_prepared_in_less_than_a_gigabyte(tmp_path, tokenizer):
    """Reading the file into memory works in every small test and fails on the first real corpus."""
    import resource  # not on Windows
    write_big(tmp_path / "big.jsonl", 10**9)
    started, peak = time.time(), 0
    process = start(tmp_path, tokenizer)
    while process.poll() is None:
        peak = max(peak, resident(process.pid))
        time.sleep(0.2)
    out, error = process.communicate()
    seconds = time.time() - started
    (tmp_path / "big.jsonl").unlink()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)  # a busy machine changes the seconds only
    print(f"\n1 GB: {1000 / seconds:.1f} MB/s, {used.ru_utime + used.ru_stime:.0f} CPU seconds, "
          f"peak {peak / 2**20:.0f} MiB in all processes")
    print(out.splitlines()[-2])
    assert process.returncode == 0, error
    assert peak < 2**30
    ids = open_windows(tmp_path / "w")[0]
    assert len(ids) > 100_000
    for name in FILES[:3]:
        (tmp_path / "w" / name).unlink()
