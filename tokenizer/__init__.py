"""The tokenizer: SentencePiece BPE with byte fallback, and ten special tokens of one id each.

    tokenizer = Tokenizer.load("out/tokenizer.model")
    tokenizer.decode(tokenizer.encode(text)) == text      # for every valid unicode text

No text can produce a special token. `<end>` ends a turn or a text document; there is no <bos>:

    <user> 2 + 3 = ? <end> <assistant> <think> 2 + 3 = 5 </think> <answer> 5 </answer> <end>

The class avoids four problems of the library: U+2581 would come back as a space, a lone surrogate
raises a plain RuntimeError, decoding cannot show special tokens, and long texts are slow.

An imported model has another tokenizer (real.py) with the same attributes. There a mark, such as
<answer>, may be several ids. So marks are lists of ids here, too.
"""
import functools
import hashlib
import re
from pathlib import Path

import sentencepiece

from common import UserError, check, check_exists, show, write_file

CONTROL = ["<pad>", "<unk>", "<end>", "<system>", "<user>", "<assistant>",
           "<think>", "</think>", "<answer>", "</answer>"]  # ids 0 to 9, in this order
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]          # ids 10 to 265: single bytes
META_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
# No piece crosses the end of such a word (train.py), so each is encoded and cached by itself.
WORDS = re.compile(f" *[^ \n{META_SPACE}]+| +|[\n{META_SPACE}]")
MEMO_WORDS, MEMO_LENGTH = 200_000, 64  # cached words, characters per word: at most about 80 MB


class Tokenizer:
    pad, unk, end = 0, 1, 2
    system, user, assistant, think, end_think, answer, end_answer = ([i] for i in range(3, 10))
    tag_ids, control_ids = {6, 7, 8, 9}, {*range(10)}
    stop_ids = {end}            # each ends a reply
    text_end = end              # stands after each text document
    start = []                  # before a conversation that has no system turn
    closing = []                # after the <end> of a turn; not learned
    bare, bare_before = [], []  # an empty thought before the last reply, before others
    gaps = "", "", ""           # text after <think>, before </think>, after </think>
    trim = False                # is white space around a turn's text removed?
    byte_ids = range(10, 266)   # tokens of single bytes
    _names = dict(enumerate(CONTROL))

    def __init__(self, model_bytes):
        self.model_bytes = bytes(model_bytes)
        self.fingerprint = hashlib.sha256(self.model_bytes).hexdigest()[:16]
        try:
            self.library = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
        except (RuntimeError, OSError, ValueError):
            raise UserError("not a SentencePiece model") from None
        self.vocab_size = len(self.library)
        self.n_tokens = self.vocab_size  # ids from here on are padding and are never sampled
        pieces = self.library.id_to_piece([*range(self.vocab_size)])
        check(pieces[:266] == CONTROL + BYTES,
              "not made by tokenizer/train.py, which makes one for this project")
        self.raw = [b""] * 10 + [bytes([byte]) for byte in range(256)]  # of each token, in UTF-8
        self.raw += [piece.replace(META_SPACE, " ").encode() for piece in pieces[266:]]
        # word: its ids. The library would read U+2581 as a space.
        self._memo = {META_SPACE: [10 + byte for byte in META_SPACE.encode()]}

    @staticmethod
    def load(path):
        """Read a tokenizer from a file. UserError if it is missing or of another kind."""
        check_exists(path, "make it with tokenizer/train.py")
        try:
            return load_bytes(Path(path).read_bytes())
        except UserError as error:
            raise UserError(f"{show(path)}: {error}") from None

    def save(self, path):
        write_file(path, self.model_bytes)

    def __reduce__(self):
        return load_bytes, (self.model_bytes,)

    def encode(self, text):
        """Text -> list of ids, never a special token. UserError if it is not valid Unicode."""
        ids, memo = [], self._memo
        for word in WORDS.findall(text):
            ids += memo.get(word) or self._encode_word(word)
        return ids

    def _encode_word(self, word):
        try:
            ids = self.library.encode(word)
        except RuntimeError:
            raise UserError(f"half of a surrogate pair in {word!r}: not valid unicode") from None
        if len(word) <= MEMO_LENGTH and len(self._memo) < MEMO_WORDS:
            self._memo[word] = ids
        return ids

    def decode(self, ids, show_control=False):
        """Ids -> text. Special tokens are dropped or named. Invalid UTF-8 becomes U+FFFD."""
        parts = []
        for token in map(int, ids):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token}; the tokenizer has 0 to {self.vocab_size - 1}")
            named = show_control and token in self.control_ids
            parts.append(self._names[token].encode() if named else self.raw[token])
        return b"".join(parts).decode("utf-8", errors="replace")


@functools.cache
def load_bytes(model_bytes):
    """The bytes of a file or checkpoint -> its tokenizer, made once per process: it keeps its word
    cache. Only an imported model needs real.py, and the libraries that this imports."""
    if model_bytes[:1] == b"{":
        from tokenizer.real import RealTokenizer
        return RealTokenizer(model_bytes)
    return Tokenizer(model_bytes)
