"""The tokenizer: SentencePiece BPE with byte fallback, and ten marks that no text can spell.

    tokenizer = Tokenizer.load("out/tokenizer.model")
    tokenizer.decode(tokenizer.encode(text)) == text      # for every valid unicode text

Marks of a conversation are single ids. `<end>` ends a turn and a text document; there is no bos:

    <user> 2 + 3 = ? <end> <assistant> <think> 2 + 3 = 5 </think> <answer> 5 </answer> <end>

The wrapper hides four edges of the library: U+2581 would come back as a space, a lone surrogate
raises a bare RuntimeError, decoding drops control pieces silently, and a long text takes long.
"""
import functools
import hashlib
import re
from pathlib import Path

import numpy as np
import sentencepiece

from common import UserError, check, show, write_file

CONTROL = ["<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>",
           "<think>", "</think>", "<answer>", "</answer>"]  # ids 0 to 9, in this order
META_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
# No piece crosses the end of such a word (train.py): each is encoded by itself and remembered.
WORDS = re.compile(f" *[^ \n{META_SPACE}]+| +|[\n{META_SPACE}]")
MEMO_WORDS, MEMO_LENGTH = 200_000, 64  # entries, characters: at most about 80 MB


class Tokenizer:
    def __init__(self, model_bytes):
        self.model_bytes = bytes(model_bytes)
        self.fingerprint = hashlib.sha256(self.model_bytes).hexdigest()[:16]
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except (RuntimeError, OSError, ValueError):
            raise UserError("not a SentencePiece model") from None
        self.vocab_size = self._model.get_piece_size()
        pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        check(pieces[:len(CONTROL)] == CONTROL,
              "a tokenizer of another project: tokenizer/train.py makes one")
        (self.pad, self.unk, self.end, self.system, self.user, self.assistant, self.think,
         self.end_think, self.answer, self.end_answer) = range(len(CONTROL))
        self.control_ids = set(range(len(CONTROL)))
        self.tag_ids = {self.think, self.end_think, self.answer, self.end_answer}
        self._encode_known = functools.lru_cache(MEMO_WORDS)(self._encode_word)
        self._bytes = [bytes([int(piece[3:5], 16)]) if self._model.is_byte(i)  # "<0x0A>"
                       else piece.replace(META_SPACE, " ").encode()
                       for i, piece in enumerate(pieces)]
        self._bytes[:len(CONTROL)] = [b""] * len(CONTROL)
        self.token_bytes = np.array([len(b) for b in self._bytes], dtype=np.int64)  # (V,) in UTF-8

    @classmethod
    def load(cls, path):
        """The tokenizer in a file, or UserError."""
        check(Path(path).exists(), f"{show(path)} does not exist; tokenizer/train.py makes it")
        try:
            return cls(Path(path).read_bytes())
        except UserError as error:
            raise UserError(f"{show(path)}: {error}") from None

    def save(self, path):
        write_file(path, self.model_bytes)

    def __reduce__(self):
        return tokenizer_of, (self.model_bytes,)

    def encode(self, text):
        """Text -> ids, never a control id, whatever it spells; any valid unicode comes back."""
        ids = []
        for word in WORDS.findall(text):
            ids += (self._encode_known if len(word) <= MEMO_LENGTH else self._encode_word)(word)
        return ids

    def _encode_word(self, word):
        if word == META_SPACE:  # the library would take it for a space
            return [self._model.piece_to_id(f"<0x{byte:02X}>") for byte in word.encode()]
        try:
            return self._model.encode(word)
        except RuntimeError:
            raise UserError(f"half of a surrogate pair in {word!r}: not valid unicode") from None

    def decode(self, ids, show_control=False):
        """Ids -> text. Marks are dropped, or named; bytes that are no UTF-8 become U+FFFD."""
        parts = []
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token}; this tokenizer has 0 to {self.vocab_size - 1}")
            named = show_control and token in self.control_ids
            parts.append(CONTROL[token].encode() if named else self._bytes[token])
        return b"".join(parts).decode("utf-8", errors="replace")


@functools.cache
def tokenizer_of(model_bytes):
    """What another process gets: made once there, so that it keeps the words that it knows."""
    return Tokenizer(model_bytes)
