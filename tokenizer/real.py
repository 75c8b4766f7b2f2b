"""The tokenizer of an imported model: byte-level BPE, run by the library `tokenizers`.

    tokenizer = from_folder("SmolLM2-135M-Instruct", vocab_size=49152)
    <|im_start|> user \n 2 + 3 = ? <|im_end|> \n <|im_start|> assistant \n 5 <|im_end|> \n

The model's chat template writes a short conversation, which shows what surrounds a turn. A
template that treats other conversations differently is refused. A mark that is no control token of
the model, such as <answer>, is spelled in ordinary tokens. All added tokens are control tokens,
even <think> of Qwen3. No text can produce one. apply_chat_template may merge white space at the
start of a turn with the line break before it. Here an opening is always the same ids.
"""
import hashlib
import json
import re
from pathlib import Path

import jinja2.sandbox
import tokenizers

from common import UserError, check
from tokenizer import Tokenizer

HIDDEN = [*range(33), *range(127, 161), 173]  # GPT-2 shows these bytes as chr(256), chr(257), ...
BYTE_OF = {chr(b): b for b in range(256)} | {chr(256 + n): b for n, b in enumerate(HIDDEN)}
PROBE = " a  B\n\n\tC 123 {é: 中文🙂}\u2581"
TURNS = [("system", "S0"), ("user", "U0"), ("assistant", "A0"), ("user", "U1"), ("assistant", "A1")]
SPACED = [(role, f" {text} ") for role, text in TURNS]
# A GGUF's name of a tokenizer: the patterns that cut a text into words, one after another
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")
PATTERNS = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "qwen2": [QWEN2],
         "llama-bpe": [QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")]}
BY_HAND = """{%%- set opening = dict(system=%s, user=%s, assistant=%s) -%%}
{%%- for message in messages -%%}
{{- opening[message.role] + message.content + %s -}}
{%%- endfor -%%}
{%%- if add_generation_prompt -%%}{{- opening.assistant -}}{%%- endif -%%}"""


class RealTokenizer(Tokenizer):
    """The attributes are those of Tokenizer. model_bytes: the JSON at the end of `make`."""
    def __init__(self, model_bytes):
        self.model_bytes, about = bytes(model_bytes), json.loads(model_bytes)
        self.template, self.vocab_size = about.pop("template"), about["vocab_size"]
        self.fingerprint = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        data, m, control = about["tokenizer"], about["marks"], {}  # control: {text: id}
        data |= dict(truncation=None, padding=None)
        for token in data["added_tokens"]:
            token["special"], control[token["content"]] = True, token["id"]
        try:
            self.library = library = tokenizers.Tokenizer.from_str(json.dumps(data))
        except Exception as error:  # the library has no other class
            raise UserError(f"not a tokenizer that the library reads: {error}") from None
        pieces, self._names = library.get_vocab(), {i: text for text, i in control.items()}
        self.n_tokens, self.raw = max(pieces.values()) + 1, [b""] * self.vocab_size
        check(self.n_tokens <= self.vocab_size,
              f"a tokenizer of {self.n_tokens} tokens for a model of {self.vocab_size}")
        for piece, i in pieces.items():
            self.raw[i] = b"" if i in self._names else bytes(BYTE_OF.get(x, 0) for x in piece)
        for name, text in m.items():
            if type(text) is str:
                setattr(self, name, self.encode(text))
        library.encode_special_tokens = True  # from here on, no text gives a control token
        self.end, self.pad, self.text_end = (control[m[x]] for x in ("end", "pad", "text_end"))
        self.stop_ids, self.control_ids = {control[s] for s in m["stop"]}, set(self._names)
        self.gaps, self.trim, self.byte_ids = m["gaps"], m["trim"], range(0)
        tags = [self.think, self.end_think, self.answer, self.end_answer]
        self.tag_ids = set(sum(tags, [])) if max(map(len, tags)) == 1 else set()
        ids = self.encode(text := PROBE + " ".join(control) + "".join(control))
        check(self.decode(ids) == text and not self.control_ids & {*ids},
              "a tokenizer that changes texts; only byte-level BPE is read here")

    def encode(self, text):
        """Text -> list of ids, never a control token. UserError if it is not valid Unicode."""
        try:
            return self.library.encode(text, add_special_tokens=False).ids
        except TypeError:  # as the library says it
            raise UserError(f"half of a surrogate pair in {text[:60]!r}: not unicode") from None


def marks_of(write):
    """write(turns, prompt=False) -> text, by the chat template. Returns the texts that surround a
    turn or a thought; "close" ends a turn. Raises some error if it cannot tell them apart."""
    whole, asked = write(TURNS), write(TURNS[:4])
    system, to_user, to_reply, _, _, close = re.split("S0|U0|A0|U1|A1", whole)
    m = dict(system=system, user=to_user.removeprefix(close), close=close, gaps=["", "", ""],
             assistant=write(TURNS[:4], True).removeprefix(asked))
    thinks = write([*TURNS[:4], ("assistant", "A1", "T1")]).removeprefix(asked)
    if "T1" in thinks:
        parts = re.fullmatch(r"(.*)<think>(\s*)T1(\s*)</think>(\s*)A1.*", thinks, re.DOTALL)
        m["assistant"], *m["gaps"] = parts.groups()
    for name, text in (("bare", whole.removeprefix(asked)), ("bare_before", to_reply + "A1")):
        text = text.removeprefix(close).removeprefix(m["assistant"]).partition("A1")[0]
        m[name] = text.removesuffix(m["gaps"][2])
    m["start"] = write(TURNS[1:2]).partition("U0")[0].removesuffix(m["user"])
    m["trim"] = " U0 " not in write(SPACED)
    for turns in (TURNS, TURNS[1:], TURNS[:3], SPACED, SPACED[1:2]):  # as dataset/formats.py does
        text = "" if turns[0][0] == "system" else m["start"]
        for number, (role, content) in enumerate(turns, 1):
            bare = m["bare" if number == len(turns) else "bare_before"] * (role == "assistant")
            gap = m["gaps"][2] if bare else ""
            text += m[role] + bare + gap + (content.strip() if m["trim"] else content) + close
        check(text == write(turns), "it does not write all turns in the same way")
    return m


def make(data, template, names, vocab_size, openings):
    """data: the content of tokenizer.json. names: dict, such as bos_token. openings: --openings of
    convert.py. Returns a RealTokenizer."""
    control = {token["content"] for token in data["added_tokens"]}
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    def write(turns, prompt=False):
        messages = [dict(zip(("role", "content", "reasoning_content"), turn)) for turn in turns]
        return environment.from_string(template).render(
            messages=messages, add_generation_prompt=prompt, tools=None, documents=None,
            raise_exception=lambda message: check(False, message), **names)
    try:
        if openings:
            template = BY_HAND % tuple(map(repr, openings.replace("\\n", "\n").split(",")))
        check(template, "there is none")
        m = marks_of(write)
        end = max((text for text in control if m["close"].startswith(text)), key=len)
    except Exception as error:  # a foreign template can raise any
        raise UserError(f"the chat template is not understood ({str(error)[:60]}); give --openings "
                        "'SYSTEM,USER,ASSISTANT,END'; END begins with a control token") from None
    text_end = next(text for text in ("<|endoftext|>", "<|end_of_text|>", end) if text in control)
    m |= dict(end=end, closing=m.pop("close").removeprefix(end), text_end=text_end,
              pad=pad if (pad := names.get("pad_token")) in control else end, think="<think>",
              end_think="</think>", answer="<answer>", end_answer="</answer>")
    m["stop"] = sorted({end, text_end, names.get("eos_token")} & control)
    return RealTokenizer(json.dumps(dict(tokenizer=data, marks=m, template=template,
                                         vocab_size=vocab_size), sort_keys=True).encode())


def from_folder(path, vocab_size, openings=""):
    """A folder of transformers -> RealTokenizer. UserError if it has none that can be read here."""
    try:
        data, config = (json.loads((Path(path) / f"{name}.json").read_text("utf-8"))
                        for name in ("tokenizer", "tokenizer_config"))
    except ValueError as error:  # damaged
        raise UserError(f"the tokenizer in {path} cannot be read: {error}") from None
    file = Path(path) / "chat_template.jinja"  # newer versions of transformers write it here
    template = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    names = {key: text if isinstance(text, str) else text["content"] for key, text in config.items()
             if key.endswith("_token") and isinstance(text, (str, dict))}
    return make(data, template, names, vocab_size, openings)


def from_gguf(fields, vocab_size, openings=""):
    """The header of a GGUF (name -> value) -> RealTokenizer. UserError if it is of another kind."""
    own = {key.removeprefix("tokenizer.ggml."): value for key, value in fields.items()}
    kind, words = own.get("model"), own.get("pre")
    check(kind == "gpt2" and words in PATTERNS, f"tokenizer.ggml.model {kind}, pre {words}: only "
          f"gpt2 can be read, with {', '.join(PATTERNS)}")
    pieces, parts = own["tokens"], tokenizers.pre_tokenizers
    typed = list(enumerate(zip(pieces, own["token_type"])))  # 3 control, 4 added, 5 padding
    library = tokenizers.Tokenizer(tokenizers.models.BPE(
        {piece: i for i, (piece, kind) in typed if kind != 5},
        [tuple(pair.split(" ")) for pair in own["merges"]], ignore_merges=words == "llama-bpe"))
    library.add_tokens([tokenizers.AddedToken(piece, special=kind == 3, normalized=False)
                        for i, (piece, kind) in typed if kind in (3, 4)])
    cuts = [parts.Split(tokenizers.Regex(word), "isolated") for word in PATTERNS[words]]
    level = parts.ByteLevel(add_prefix_space=False, use_regex=False)
    library.pre_tokenizer = parts.Sequence([*cuts, level])
    library.decoder = tokenizers.decoders.ByteLevel()
    if words == "qwen2":
        library.normalizer = tokenizers.normalizers.NFC()
    names = {f"{name[:3]}_token": pieces[own[f"{name}_token_id"]]
             for name in ("bos", "eos", "padding") if f"{name}_token_id" in own}
    return make(json.loads(library.to_str()), fields.get("tokenizer.chat_template"), names,
                vocab_size, openings)
