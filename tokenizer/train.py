"""Train the tokenizer: SentencePiece BPE on the text of the training files, in seconds.

    python tokenizer/train.py                    # out/data/stories/train.jsonl, 1,024 pieces
    python tokenizer/train.py book.txt chat.jsonl --vocab-size 4096 --out out/prose.model
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
NO_UTF8 = re.compile("(\0|\\A\udcff\udcfe|\\A\udcfe\udcff)|[\udc80-\udcff]")  # (UTF-16)|other bytes
CALCULATOR = re.compile("<<[^<>]*=[^<>]*>>")    # notes in GSM8K; formats.py also drops them
CHARACTERS, MAX_PIECE = 20_000_000, 1000  # of all text; of a line: the library drops long lines


@dataclass
class Config:
    input: list = None            # .txt, .jsonl, folders; none: out/data/stories/train.jsonl
    vocab_size: int = None        # pieces (300 to 65,536); none: 1,024, or more if it must be
    out: str = OUT / "tokenizer.model"  # file to write
    fresh: bool = False           # replace an existing file that differs


def texts(path):
    """Yield the texts of a .txt or .jsonl file. UserError for a line that is not JSON in UTF-8."""
    plain, name = path.lower().endswith(".txt"), show(path)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate([file.read(CHARACTERS)] if plain else file, 1):
            if bad := NO_UTF8.search(line):
                code = "UTF-16" if bad[1] else "latin1 (or GB18030, if Chinese)"
                raise UserError(f"{name}: not UTF-8; try iconv -f {code} -t UTF-8 FILE > NEW")
            if plain:
                yield line
                return
            found = []  # json.loads calls the hook with every object of the row, inner ones first
            try:
                json.loads(line.strip() or "{}", object_hook=lambda node: found.extend(
                    value for key, value in node.items() if key in KEYS and isinstance(value, str)))
            except (ValueError, RecursionError):
                raise UserError(f"{name}:{number}: not JSON (no CSV; array: jq -c '.[]')") from None
            for value in found:
                parts = TAGS.split(CALCULATOR.sub("", value.encode(errors="ignore").decode()))
                yield from (part.strip() for part in parts) if len(parts) > 1 else parts


def train(found, vocab_size=None, coverage=0.9995):
    """Texts -> the model as bytes. coverage: share of the characters with a piece of their own."""
    model, lines = io.BytesIO(), re.split(f"[\n\0{META_SPACE}]", "\n".join(found))
    pieces = (line[i:i + MAX_PIECE] for line in lines for i in range(0, len(line), MAX_PIECE))
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=pieces, model_writer=model, allow_whitespace_only_pieces=True,
            vocab_size=vocab_size or 1024, control_symbols=CONTROL[2:], character_coverage=coverage,
            normalization_rule_name="identity", remove_extra_whitespaces=False, byte_fallback=True,
            add_dummy_prefix=False, unk_piece=CONTROL[1], pad_piece=CONTROL[0], unk_id=1, eos_id=-1,
            split_digits=True, model_type="bpe", minloglevel=2, num_threads=1, bos_id=-1, pad_id=0)
    except RuntimeError as error:  # the library's message names the possible sizes
        bound = re.search(r"(vs|<=) (\d+)", str(error))
        if bound and (size := int(bound[2])) and not vocab_size:  # the most, or a power of two
            return train(found, size if bound[1] == "<=" else 2 ** (size - 1).bit_length())
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
    own = {} if out.absolute() == OUT / "tokenizer.model" and not cfg.input else dict(
        name=Path(paths[0]).stem, tokenizer=out, data=paths[0])
    with open(files[0], encoding="utf-8-sig", errors="ignore") as file:
        chat = own and re.search('"(role|from|question|problem|prompt|output)"', file.readline())
    print(f"{show(out)}: {tokenizer.vocab_size:,} pieces | {size / 1e6:.1f} MB = {tokens:,} tokens "
          f"of {size / tokens:.2f} bytes | fingerprint {tokenizer.fingerprint}\n"
          f"next: {command('train_distill_responses.py' if chat else 'train_pretrain.py', **own)}")


if __name__ == "__main__":
    run(main, Config)
