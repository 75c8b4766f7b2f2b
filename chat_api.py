"""What a chat request asks and what its answer says, in OpenAI's words: serve.py without the HTTP.

    asked = read_request(body, service)                bytes -> what is asked, or Refusal
    events = write(service, asked, usage, until)       tokens -> [(answer, key, text)], step by step
    whole(asked, events), chunks(asked, events)        events -> JSON, at once or piece by piece

What comes in is text alone: a spelled "<think>" or "<end>" never becomes a mark. What goes out is
text, too: reasoning_content inside <think>...</think>, content everywhere else.
"""
import itertools
import json
import secrets
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from cli import UserError
from dataset.formats import ROLES, Turn, prompt_ids, short
from decoding import decode_steps
from tokenizer import check_unicode

INT64 = 2**63 - 1
# These would change the answer, and are not done here. Other fields that are unknown are ignored.
NOT_HERE = ("tools", "functions", "logprobs", "logit_bias", "response_format", "frequency_penalty",
            "presence_penalty")


@dataclass(eq=False)
class Refusal(Exception):
    """A request that gets an error: HTTP status, the fields of OpenAI's error object, headers."""
    status: int
    message: str
    param: str = None
    code: str = None
    headers: dict = field(default_factory=dict)


def error_body(refusal):
    """OpenAI's error object."""
    kind = {401: "authentication_error", 429: "rate_limit_error"}.get(
        refusal.status, "server_error" if refusal.status >= 500 else "invalid_request_error")
    return dict(error=dict(message=refusal.message, type=kind, param=refusal.param,
                           code=refusal.code))


# --- what is asked --------------------------------------------------------------------------------

def read_request(data, service):
    """The body of a chat request (bytes) -> what is asked; Refusal, with the field, if it is wrong.

    ids (of the prompt), limit (tokens an answer), n, stop, temperature, top_p, seed, stream, and
    usage: is it asked for in the stream?
    """
    body = read_object(data)
    check_model(body.get("model"), service.name)
    for name in NOT_HERE:
        if body.get(name) and body[name] != {"type": "text"}:  # which response_format may say
            raise wrong(name, body[name], "nothing: this server does not support it")
    ids = prompt_ids(service.tokenizer, read_turns(body.get("messages")))
    context = service.model.config.max_seq_len
    if len(ids) >= context:
        raise Refusal(400, f"the prompt has {len(ids)} tokens; the context, prompt and answer "
                      f"together, is {context}", "messages", "context_length_exceeded")
    limits = [number(body, name, int, 1, INT64, context)
              for name in ("max_tokens", "max_completion_tokens")]
    temperature = number(body, "temperature", (int, float), 0, 2, 1)
    options = body.get("stream_options")
    if not isinstance(options, (dict, type(None))):
        raise wrong("stream_options", options, "an object")
    return SimpleNamespace(
        ids=ids, limit=min(*limits, context - len(ids)),
        n=number(body, "n", int, 1, service.cfg.max_n, 1), stop=read_stop(body.get("stop")),
        temperature=temperature if temperature >= 0.01 else 0,  # logits / 1e-40 are no numbers
        top_p=number(body, "top_p", (int, float), 0, 1, 1),
        seed=number(body, "seed", int, -INT64, INT64, secrets.randbits(63)),
        stream=flag(body, "stream"), usage=flag(options or {}, "include_usage", "stream_options."))


def read_object(data):
    """Bytes -> the JSON object that they are, or Refusal."""
    try:
        body = json.loads(data.decode(), parse_constant=no_constant)
    except ValueError as error:
        raise Refusal(400, f"the body is not JSON: {str(error)[:100]}") from None
    if not isinstance(body, dict):
        raise Refusal(400, f"the body is {short(body)}; expected a JSON object")
    return body


def no_constant(word):
    """NaN and Infinity: Python's reader takes them, JSON does not have them."""
    raise ValueError(f"{word} is no number")


def wrong(param, got, expected):
    """The Refusal of a field that has a wrong value."""
    return Refusal(400, f"{param}: got {short(got)}; expected {expected}", param)


def number(body, name, kind, least, most, default):
    """body[name], from least to most, or the default where it is missing or null."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, value, f"a {'whole ' * (kind is int)}number from {least} to {most}")
    return value


def flag(body, name, inside=""):
    """body[name], true or false; missing or null is false."""
    if not isinstance(body.get(name), (bool, type(None))):
        raise wrong(inside + name, body[name], "true or false")
    return bool(body.get(name))


def read_stop(stop):
    """Null, a string or up to four of them -> a list."""
    found = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if len(found) > 4 or not all(isinstance(s, str) and s for s in found):
        raise wrong("stop", stop, "a string, or up to four of them; none is empty")
    return found


def check_model(asked, name):
    """Refusal unless the model that is here is asked for."""
    if not isinstance(asked, str):
        raise wrong("model", asked, f"the name of a model: {short(name)}")
    if asked != name:
        raise Refusal(404, f"the model {short(asked)} does not exist; this is {short(name)}",
                      "model", "model_not_found")


def read_turns(messages):
    """The messages of a request -> turns. An assistant's reasoning_content is its thought."""
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", messages, "a list of messages")
    turns = []
    for i, message in enumerate(messages):
        at, thought = f"messages[{i}]", None
        if not isinstance(message, dict):
            raise wrong(at, message, "an object with role and content")
        role = message.get("role")
        if role not in ROLES:
            raise wrong(f"{at}.role", role, ", ".join(ROLES))
        content = read_text(message.get("content"), f"{at}.content")
        if role == "assistant" and message.get("reasoning_content") is not None:
            thought = read_text(message["reasoning_content"], f"{at}.reasoning_content")
        turns.append(Turn(role, content) if thought is None else Turn(role, "", thought, content))
    if turns[-1].role == "assistant":  # prompt_ids would leave it out without a word
        raise wrong(f"{at}.role", "assistant", "a last message to be answered")
    return turns


def read_text(content, at):
    """The text of a string, or of a list of parts {"type": "text", "text"}."""
    parts = content if isinstance(content, list) else [dict(type="text", text=content)]
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" \
                or not isinstance(part.get("text"), str):
            raise wrong(at, content, 'a string, or a list of {"type": "text", "text": ...}')
    text = "".join(part["text"] for part in parts)
    try:
        check_unicode(text)
    except UserError as error:
        raise Refusal(400, f"{at}: {error}", at) from None
    return text


# --- what is answered -----------------------------------------------------------------------------

@dataclass
class Answer:
    """An answer while it is being written: where its text goes, and what cannot be sent yet."""
    key: str = "content"  # or, inside a thought, reasoning_content
    ids: list = field(default_factory=list)  # bytes of a character that is not whole
    held: str = ""        # text that may be the beginning of a stop string
    done: bool = False


@torch.inference_mode()
def write(service, asked, usage, until):
    """Write n answers in one batch. Yields, a token of each later, [(which answer, key, text)].

    key: content, reasoning_content or, once at its end, finish_reason. Counts tokens in `usage`;
    at time `until` (of time.monotonic) all answers are cut off as they are.
    """
    model, answers = service.model, [Answer() for _ in range(asked.n)]
    usage["prompt_tokens"] = len(asked.ids)
    generator = torch.Generator(model.embed_tokens.weight.device).manual_seed(asked.seed)
    for tokens in decode_steps(model, [asked.ids] * asked.n, asked.limit, asked.temperature,
                               top_p=asked.top_p, generator=generator):  # (n,)
        running = [(i, answers[i], token) for i, token in enumerate(tokens.tolist())
                   if not answers[i].done]
        usage["completion_tokens"] += len(running)
        usage["total_tokens"] = usage["prompt_tokens"] + usage["completion_tokens"]
        yield [(i, *event) for i, answer, token in running
               for event in hear(answer, token, service.tokenizer, asked.stop)]
        if all(answer.done for answer in answers) or time.monotonic() > until:
            break
    yield [(i, *event) for i, answer in enumerate(answers) if not answer.done
           for event in hear(answer, None, service.tokenizer, asked.stop)]


def hear(answer, token, tokenizer, stop):
    """One more token of an answer (None: no more may come) -> [(key, text)] that can be sent now:
    whole characters, up to a stop string, without what may be the beginning of one."""
    border = token in (None, tokenizer.end, tokenizer.think, tokenizer.end_think)
    if not border:
        answer.ids.append(token)
    text = answer.held + tokenizer.decode(answer.ids)
    if text.endswith("\ufffd") and not border:
        return []  # a character may take several byte tokens: wait for them
    stop = stop if answer.key == "content" else []  # a thought may well spell it
    found = [text.index(s) for s in stop if s in text]
    size = min(found) if found else len(text) - (0 if border else begun(text, stop))
    events = [(answer.key, text[:size])] if size else []
    answer.ids, answer.held = [], text[size:]
    if found or token in (None, tokenizer.end):
        answer.done = True
        return [*events, ("finish_reason", "stop" if found or token is not None else "length")]
    if border:
        answer.key = "reasoning_content" if token == tokenizer.think else "content"
    return events


def begun(text, stop):
    """How many characters at the end of a text may be the beginning of a stop string."""
    return max((size for s in stop for size in range(1, min(len(s), len(text) + 1))
                if text.endswith(s[:size])), default=0)


def head(service, kind):
    """What a completion and the pieces of one begin with."""
    return dict(id=f"chatcmpl-{secrets.token_hex(12)}", object=kind, created=int(time.time()),
                model=service.name, system_fingerprint=service.fingerprint)


def whole(service, asked, events, usage):
    """Events -> the completion as one object."""
    said = [dict(content="", reasoning_content="", finish_reason="") for _ in range(asked.n)]
    for i, key, text in events:
        said[i][key] += text
    choices = [dict(index=i, logprobs=None, finish_reason=one["finish_reason"], message=dict(
        role="assistant", content=one["content"],
        reasoning_content=one["reasoning_content"] or None)) for i, one in enumerate(said)]
    return dict(head(service, "chat.completion"), choices=choices, usage=usage)


def chunks(service, asked, events, usage):
    """Events -> the completion piece by piece, each an object."""
    common = head(service, "chat.completion.chunk")
    if asked.usage:
        common["usage"] = None  # in every piece but the last
    first = [(i, "role", "assistant") for i in range(asked.n)]
    for i, key, text in itertools.chain(first, events):
        delta, reason = ({}, text) if key == "finish_reason" else ({key: text}, None)
        choice = dict(index=i, delta=delta, logprobs=None, finish_reason=reason)
        yield dict(common, choices=[choice])
    if asked.usage:
        yield dict(common, choices=[], usage=usage)
