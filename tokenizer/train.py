"""Train the tokenizer: SentencePiece BPE on the text of the training files, in seconds.

    python tokenizer/train.py                    # out/data/stories/train.jsonl, 1,024 pieces
    python tokenizer/train.py book.txt chat.jsonl --vocab-size 4096 --out out/prose.model

256 pieces are bytes, 10 are special tokens. 1,024 are enough for the stories, 4,096 for prose.
"""
import io
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import OUT, UserError, check, command, data_files, run, show, write_file
import sentencepiece

from tokenizer import CONTROL, META_SPACE, Tokenizer

KEYS = ("text content value reasoning_content question answer problem solution prompt completion "
        "instruction input output").split()
TAGS = re.compile("</?think>|</?answer>|####")
NO_UTF8 = re.compile("[\0\udc80-\udcff]")  # UTF-16 has NUL; other bytes are read as surrogates
CALCULATOR = re.compile("<<[^<>]*=[^<>]*>>")    # notes in GSM8K; formats.py also drops them
CHARACTERS, MAX_PIECE = 20_000_000, 1000  # of all text; of a line: the library drops long lines


@dataclass
class Config:
    input: list = None            # .txt, .jsonl, folders; none: out/data/stories/train.jsonl
    vocab_size: int = 1024        # number of pieces (about 300 to 65,536)
    out: str = OUT / "tokenizer.model"  # file to write
    fresh: bool = False           # replace an existing file that differs


def texts(path):
    """Yield the texts of a .txt or .jsonl file. UserError for a line that is not JSON in UTF-8."""
    plain = path.lower().endswith(".txt")
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate([file.read(CHARACTERS)] if plain else file, 1):
            check(not NO_UTF8.search(line), f"{show(path)} is not UTF-8: iconv -f UTF-16 -t UTF-8 "
                  "FILE > NEW makes it, or iconv -f latin1 -t UTF-8 FILE > NEW")
            if plain:
                yield line
                return
            found = []  # json.loads calls the hook with every object of the row, inner ones first
            try:
                json.loads(line.strip() or "{}", object_hook=lambda node: found.extend(
                    value for key, value in node.items() if key in KEYS and isinstance(value, str)))
            except (ValueError, RecursionError):
                raise UserError(f"{show(path)}:{number}: not JSON (array? jq -c '.[]')") from None
            for value in found:
                parts = TAGS.split(CALCULATOR.sub("", value.encode(errors="ignore").decode()))
                yield from (part.strip() for part in parts) if len(parts) > 1 else parts


def train(found, vocab_size, coverage=0.9995):
    """List of texts -> the model as bytes. coverage: share of the characters that get a piece."""
    model, lines = io.BytesIO(), re.split(f"[\n\0{META_SPACE}]", "\n".join(found))
    pieces = (line[i:i + MAX_PIECE] for line in lines for i in range(0, len(line), MAX_PIECE))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=pieces, model_writer=model, model_type="bpe", vocab_size=vocab_size,
            pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, pad_piece=CONTROL[0], unk_piece=CONTROL[1],
            control_symbols=CONTROL[2:], split_digits=True, byte_fallback=True,
            normalization_rule_name="identity", remove_extra_whitespaces=False,
            add_dummy_prefix=False, allow_whitespace_only_pieces=True,
            character_coverage=coverage, num_threads=1, minloglevel=2)
    except RuntimeError as error:  # the library's message names the possible sizes
        bound = re.search(r"(vs|<=) (\d+)", str(error))
        possible = f"at {'least' if bound[1] == 'vs' else 'most'} {bound[2]}" if bound else error
        raise UserError(f"--vocab-size {vocab_size}: for this text it must be {possible}") from None
    return model.getvalue()


def main(cfg):
    paths, out = cfg.input or [str(OUT / "data" / "stories" / "train.jsonl")], Path(cfg.out)
    check(out.absolute() not in (Path(p).absolute() for p in paths), f"--out {out} is an input")
    found, left = [], CHARACTERS
    files = [str(file) for path in paths for file in data_files(path)]
    for text in (text for file in files for text in texts(file)):
        found.append(text[:left])
        left -= len(found[-1])
        if not left:
            break
    check("".join(found).strip(), f"{', '.join(map(show, paths))}: no text to train on")
    made = train(found, cfg.vocab_size)
    check(cfg.fresh or not out.exists() or out.read_bytes() == made, f"{out} differs; use --fresh")
    write_file(out, made)
    tokenizer, size = Tokenizer(made), sum(len(text.encode()) for text in found)
    tokens = sum(len(tokenizer.encode(text)) for text in found)
    kind = "distill_responses" if cfg.input and ".txt" not in files[0].lower() else "pretrain"
    own = {} if out.absolute() == OUT / "tokenizer.model" and not cfg.input else dict(
        name=Path(paths[0]).stem, tokenizer=out, data=paths[0])
    print(f"{show(out)}: {tokenizer.vocab_size:,} pieces | {size / 1e6:.1f} MB = {tokens:,} tokens "
          f"of {size / tokens:.2f} bytes | fingerprint {tokenizer.fingerprint}\n"
          f"next: {command(f'train_{kind}.py', **own)}")


if __name__ == "__main__":
    run(main, Config)
