"""Train the tokenizer: SentencePiece BPE on the text of the training files, in seconds.

    python tokenizer/train.py                    # out/data/stories/train.jsonl, 1,024 pieces
    python tokenizer/train.py book.txt chat.jsonl --vocab-size 4096 --out out/prose.model

Reads whatever dataset/formats.py reads. The same input gives the same bytes. Byte fallback takes
256 pieces and the marks 10; the rest are characters and merges. 1,024 is enough for the stories
(2,048 with Chinese), 2,048 to 4,096 for prose. A bigger vocabulary shortens the text but costs
parameters: the embedding is V x D. Last line: what to run next.
"""
import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import sentencepiece

from cli import OUT, check_apart, check_ranges, fail, need_file, run, show, write_file
from dataset.formats import bad_lines_text, read_documents, texts
from tokenizer import CONTROL, META_SPACE, Tokenizer

MAX_PIECE = 1000  # characters of one training sentence: the library drops what is over 4,192 bytes


@dataclass
class Config:
    input: list = None            # files to read; none: out/data/stories/train.jsonl
    vocab_size: int = 1024        # pieces (about 300 to 65,536)
    out: str = OUT / "tokenizer.model"  # where the model goes
    characters: int = 20_000_000  # of the text, the first so many are trained on (1e5 to 1e8)
    coverage: float = 0.9995      # share of characters that get a piece; rarer: bytes
    skip_bad_lines: bool = False  # count bad lines and go on, instead of stopping at the first
    fresh: bool = False           # replace an existing model of other content


def read_texts(paths, characters, skip_bad_lines):
    """The first `characters` characters of all texts in the files, in order."""
    found, left, report = [], characters, {}
    for path in paths:
        need_file(path, "python dataset/stories.py, or name a file of yours")
    documents = (d for path in paths for _, d in read_documents(path, skip_bad_lines, report))
    for text in (text for document in documents for text in texts(document)):
        found.append(text[:left])
        left -= len(found[-1])
        if left <= 0:
            break
    if not "".join(found).strip():
        fail("no text to train on", ", ".join(map(show, paths)), "at least one document")
    if report:
        print(f"left out: {bad_lines_text(report)}")
    return found


def sentences(found):
    """Lines without their ends, long ones in pieces: no piece may hold a newline."""
    for text in found:
        for line in re.split(f"[\n\0{META_SPACE}]", text):
            for start in range(0, len(line), MAX_PIECE):
                yield line[start:start + MAX_PIECE]


def train(found, vocab_size, coverage=0.9995):
    """List of texts -> bytes of the model; UserError where the vocabulary size is not possible."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=sentences(found), model_writer=model, model_type="bpe",
            vocab_size=vocab_size, pad_id=0, unk_id=1, bos_id=-1, eos_id=-1,
            pad_piece=CONTROL[0], unk_piece=CONTROL[1], control_symbols=CONTROL[2:],
            split_digits=True, byte_fallback=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, add_dummy_prefix=False,
            allow_whitespace_only_pieces=True, character_coverage=coverage, num_threads=1,
            minloglevel=2)
    except RuntimeError as error:
        too_small = re.search(r"required_chars\D*\d+ vs (\d+)", str(error))
        too_large = re.search(r"too high.*<= (\d+)", str(error))
        if too_small:
            least = int(too_small[1])
            fail("the vocabulary is too small for this text", f"--vocab-size {vocab_size}",
                 f"at least {least}: 256 bytes, {len(CONTROL)} marks and "
                 f"{least - 256 - len(CONTROL)} characters",
                 f"--vocab-size {least + 256}, or a lower --coverage")
        if too_large:
            fail("the vocabulary is too large for this text", f"--vocab-size {vocab_size}",
                 f"at most {too_large[1]}", f"--vocab-size {too_large[1]}, or more text")
        fail("SentencePiece cannot learn from this text", " ".join(str(error).split())[:120],
             "some thousand characters of ordinary text", "more text, or a smaller --vocab-size")
    return model.getvalue()


def main(cfg):
    """Train, check, write."""
    check_ranges(cfg, vocab_size=(1, 2**20), characters=(1, 10**12), coverage=(0.98, 1))
    paths = cfg.input or [OUT / "data" / "stories" / "train.jsonl"]
    check_apart("--out", cfg.out, *paths)
    found = read_texts(paths, cfg.characters, cfg.skip_bad_lines)
    made, out = train(found, cfg.vocab_size, cfg.coverage), Path(cfg.out)
    if out.exists() and out.read_bytes() == made:
        print(f"{show(out)}: already made")
    elif out.exists() and not cfg.fresh:
        fail(f"{show(out)} exists and differs", f"fingerprint {Tokenizer.load(out).fingerprint}",
             Tokenizer(made).fingerprint, "--fresh replaces it (checkpoints of the old one become "
             "useless), or choose another --out")
    else:
        write_file(out, made)
    tokenizer = Tokenizer(made)
    size = sum(len(text.encode()) for text in found)
    tokens = sum(len(tokenizer.encode(text)) for text in found)
    print(f"{show(out)}: {tokenizer.vocab_size:,} pieces | {size / 1e6:.1f} MB of text = "
          f"{tokens:,} tokens, {size / tokens:.2f} bytes a token | "
          f"fingerprint {tokenizer.fingerprint}")
    own = f" --tokenizer {show(out)} --data {show(paths[0])} --val ..." if cfg.input else ""
    print(f"next: python train_pretrain.py{own}")


if __name__ == "__main__":
    run(main, Config)
