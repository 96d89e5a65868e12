"""How a conversation is written out as text, and which characters of it are the response.

``alpaca`` and ``plain`` are written here; ``chat`` and Jinja files are chat templates that transformers renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from instruct_prune.datatypes import Message, Sample
from instruct_prune.errors import InputError

# Stanford Alpaca, train.py (PROMPT_DICT): https://github.com/tatsu-lab/stanford_alpaca
ALPACA_HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
)
ALPACA_HEADER_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context."
    " Write a response that appropriately completes the request.\n\n"
)
ALPACA_TURN = "### Instruction:\n{instruction}\n\n### Response:\n"
ALPACA_TURN_INPUT = "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"


class RenderError(ValueError):
    """This row cannot be written with this template; the text says why."""


@dataclass(frozen=True, slots=True)
class Span:
    """One trained turn in the rendered text.

    Attributes:
        start, end: characters, half open; the end-of-turn token is inside.
        said: what the span must contain once decoded, for the check of the mask.
    """

    start: int
    end: int
    said: str


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text, and the spans of its trained turns in order."""

    text: str
    spans: tuple[Span, ...]


class Template(Protocol):
    """Writes samples as text.

    Attributes:
        name: "alpaca", "chat", "plain" or the path of a Jinja file.
        text: what defines it, for the record.
        writes_specials: the text carries BOS and end-of-turn tokens itself.
        notes: what people should be told about it.
    """

    name: str
    text: str
    writes_specials: bool
    notes: tuple[str, ...]

    def render(self, sample: Sample, turns: Sequence[int]) -> Rendered:
        """Write a sample; ``turns`` are the positions of the messages that count.

        Raises:
            RenderError: the template cannot take this conversation.
        """
        ...


def with_context(message: Message) -> str:
    """A turn's text with Alpaca's ``input`` after it, for templates that have no place of their own for it."""
    return f"{message.content}\n{message.context}" if message.context.strip() else message.content


class _Pieces:
    """Text put together piece by piece, with the spans of trained turns."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.spans: list[Span] = []

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def add_response(self, said: str, ending: str, trained: bool) -> None:
        start = self.length
        self.add(said)
        self.add(ending)
        if trained:
            self.spans.append(Span(start, self.length, said))

    def rendered(self) -> Rendered:
        return Rendered("".join(self.parts), tuple(self.spans))


@dataclass(frozen=True)
class AlpacaTemplate:
    """Stanford Alpaca's two prompts. A system message takes the place of the preamble; turns follow each other.

    The end-of-sequence token after the last response is appended as an id by the encoder; ``eos`` is its text, for
    earlier turns.
    """

    eos: str
    name: str = "alpaca"
    text: str = ALPACA_HEADER + ALPACA_TURN + "\n---\n" + ALPACA_HEADER_INPUT + ALPACA_TURN_INPUT
    writes_specials: bool = False
    notes: tuple[str, ...] = ()

    def render(self, sample: Sample, turns: Sequence[int]) -> Rendered:
        messages, pieces = sample.messages, _Pieces()
        body = messages
        if messages[0].role == "system":
            pieces.add(messages[0].content + "\n\n")
            body = messages[1:]
        elif messages[0].role != "text":
            pieces.add(ALPACA_HEADER_INPUT if messages[0].context.strip() else ALPACA_HEADER)
        first = len(messages) - len(body)
        for i, message in enumerate(body, first):
            if i > first and message.role == "user":
                pieces.add("\n\n")
            if message.role == "user":
                turn = ALPACA_TURN_INPUT if message.context.strip() else ALPACA_TURN
                pieces.add(turn.format(instruction=message.content, input=message.context))
            elif message.role in ("assistant", "text") and not message.tool_calls:
                pieces.add_response(message.content, self.eos if i + 1 < len(messages) else "", i in turns)
            else:
                what = "a tool call" if message.tool_calls else f"a {message.role} turn in the middle"
                raise RenderError(f"the alpaca template has no place for {what}; use --template chat")
        return pieces.rendered()


@dataclass(frozen=True)
class PlainTemplate:
    """No template: the turns as they are, a line break between them."""

    eos: str
    name: str = "plain"
    text: str = "{turn}\n{turn}..."
    writes_specials: bool = False
    notes: tuple[str, ...] = ()

    def render(self, sample: Sample, turns: Sequence[int]) -> Rendered:
        pieces = _Pieces()
        for i, message in enumerate(sample.messages):
            if message.tool_calls:
                raise RenderError("the plain template has no place for a tool call; use --template chat")
            if i:
                pieces.add("\n")
            if message.role in ("assistant", "text"):
                pieces.add_response(message.content, self.eos if i + 1 < len(sample.messages) else "", i in turns)
            else:
                pieces.add(with_context(message))
        return pieces.rendered()


# Letters and digits only, so that no template's JSON or HTML escaping changes them; no data contain them.
_OPEN, _CLOSE = "Zq7mOPEN", "Zq7mCLOSE"


class ChatTemplate:
    """The tokenizer's chat template, or a Jinja file written like one.

    The conversation is rendered twice: as it is, and with markers around what each trained turn says. With the
    markers taken out both must be the same text, and the markers say where the turns are. A turn begins after the
    generation prompt and ends with the end-of-turn token; both are learnt from the template itself.
    """

    writes_specials = True

    def __init__(self, tokenizer: Any, source: str, name: str) -> None:
        self._tokenizer = tokenizer
        self._source = source
        self.name = name
        self.text = source
        user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"{_OPEN}x{_CLOSE}"}
        try:
            asked = self._apply([user], (), prompt=False)
            prompted = self._apply([user], (), prompt=True)
            answered = self._apply([user, answer], ())
        except RenderError as error:
            raise InputError(f"the chat template of {name} cannot write one question and one answer: {error}.") from None
        #: what the template writes to ask for an answer; empty if it has no such thing
        self._ask = prompted[len(asked) :] if prompted.startswith(asked) else ""
        #: the end-of-turn token
        self._stop = answered.partition(_CLOSE)[2].strip()
        notes = []
        self._merges_system = not self._keeps({"role": "system", "content": _OPEN}, user)
        if self._merges_system:
            notes.append("the chat template takes no system message: it is put before the first user turn")
        call = {"id": "c00010000", "type": "function", "function": {"name": _OPEN, "arguments": {"a": "b"}}}
        calls = {"role": "assistant", "content": "", "tool_calls": [call]}
        self._takes_calls = self._keeps(user, calls)
        if not self._takes_calls:
            notes.append("the chat template takes no tool calls: a call is written as JSON in the assistant's turn")
        asks = {"role": "assistant", "content": "", "tool_calls": [call]} if self._takes_calls else answer
        self._takes_results = self._keeps(user, asks, {"role": "tool", "content": _CLOSE}, wanted=_CLOSE)
        if not self._takes_results:
            notes.append("the chat template takes no tool results: they are written as user turns")
        self.notes = tuple(notes)
        self._first_notes = self.notes

    def _keeps(self, *messages: Mapping[str, Any], wanted: str = _OPEN) -> bool:
        try:
            return wanted in self._apply(list(messages), ())
        except RenderError:
            return False

    def _apply(self, messages: list[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], prompt: bool = False) -> str:
        import jinja2

        try:
            text = self._tokenizer.apply_chat_template(
                messages,
                tools=list(tools) or None,
                chat_template=self._source,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise RenderError(f"the chat template refuses this conversation: {error}") from None
        return str(text)

    def render(self, sample: Sample, turns: Sequence[int]) -> Rendered:
        messages, positions = self._messages(sample)
        full = self._apply(messages, sample.tools)
        if _OPEN in full or _CLOSE in full:
            raise RenderError(f"the row contains {_OPEN!r}, which is used to find responses")
        marked = [dict(message) for message in messages]
        for i in turns:
            _mark(marked[positions[i]])
        pieces = _Pieces()
        text = self._apply(marked, sample.tools)
        ends: list[tuple[int, int]] = []
        for n, part in enumerate(text.split(_OPEN)):
            said, found, after = part.partition(_CLOSE)
            if bool(n) != bool(found):
                raise RenderError("the chat template does not write every response as it is")
            if n:
                ends.append((pieces.length, pieces.length + len(said)))
            pieces.add(said)
            pieces.add(after)
        if pieces.rendered().text != full or len(ends) != len(turns):
            raise RenderError("the chat template changes the responses, so they cannot be found in its text")
        return Rendered(full, tuple(self._span(full, ends, n, messages[positions[i]]) for n, i in enumerate(turns)))

    def _span(self, full: str, ends: list[tuple[int, int]], n: int, message: Mapping[str, Any]) -> Span:
        start, end = ends[n]
        said = full[start:end]
        before = ends[n - 1][1] if n else 0
        after = ends[n + 1][0] if n + 1 < len(ends) else len(full)
        asked = full.rfind(self._ask, before, start) if self._ask else -1
        if asked >= 0:
            start = asked + len(self._ask)
        if self._stop:
            stop = full.find(self._stop, end, after)
            end = stop + len(self._stop) if stop >= 0 else end
        return Span(start, end, said)

    def _messages(self, sample: Sample) -> tuple[list[dict[str, Any]], list[int]]:
        """The turns as the template takes them, and where each message of the sample went."""
        messages: list[dict[str, Any]] = []
        positions: list[int] = []
        system = ""
        for message in sample.messages:
            content = with_context(message)
            role = message.role
            if role == "text":
                raise RenderError("the row is plain text, not a conversation; use --template plain")
            if role == "system" and self._merges_system:
                system += content + "\n\n"
                positions.append(len(messages))
                continue
            if role == "tool" and not self._takes_results:
                role = "user"
            turn: dict[str, Any] = {"role": role, "content": content}
            if message.tool_calls and self._takes_calls:
                turn["tool_calls"] = [dict(call) for call in message.tool_calls]
            elif message.tool_calls:
                turn["content"] = "\n".join(filter(None, [content, *map(_call_text, message.tool_calls)]))
            if role == "user" and system:
                turn["content"] = system + turn["content"]
                system = ""
            positions.append(len(messages))
            messages.append(turn)
        return messages, positions


def _call_text(call: Mapping[str, Any]) -> str:
    return json.dumps(call["function"], ensure_ascii=False)


def _mark(turn: dict[str, Any]) -> None:
    """Put the markers around what a turn says, blanks outside (templates trim), or into the name of its first call."""
    content = turn["content"]
    core = content.strip()
    if core or not turn.get("tool_calls"):
        begin = content.find(core) if core else 0
        turn["content"] = content[:begin] + _OPEN + core + _CLOSE + content[begin + len(core) :]
        return
    first, *others = turn["tool_calls"]
    function = {**first["function"], "name": _OPEN + first["function"]["name"] + _CLOSE}
    turn["tool_calls"] = [{**first, "function": function}, *others]


CONVERSATIONS = ("messages", "sharegpt", "prompt-completion-messages", "preference-messages")


def choose_template(wanted: str, tokenizer: Any, data_format: str | None) -> Template:
    """Build a template.

    Args:
        wanted: "alpaca", "chat", "plain", the path of a Jinja file, or "auto": chat for conversations, plain for
            text, alpaca for everything else.
        tokenizer: a transformers tokenizer.
        data_format: ``Source.format``, for "auto".

    Raises:
        InputError: the tokenizer has no chat template, the file is missing or no template.
    """
    eos = tokenizer.eos_token or ""
    formats = (data_format or "").split("+")
    if wanted == "auto":
        wanted = "alpaca"
        if any(each in CONVERSATIONS for each in formats):
            wanted = "chat"
        elif formats == ["text"]:
            wanted = "plain"
    if wanted == "alpaca":
        return AlpacaTemplate(eos)
    if wanted == "plain":
        return PlainTemplate(eos)
    if wanted == "chat":
        if not tokenizer.chat_template:
            raise InputError(
                f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, and the data are"
                " conversations. Use the model's instruct version, --template alpaca, or --template FILE.jinja with a"
                " template of your own."
            )
        return ChatTemplate(tokenizer, tokenizer.get_chat_template(), "chat")
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise InputError(f"no template {wanted!r}: give auto, alpaca, chat, plain, or the path of a Jinja file.")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the template {wanted} is not UTF-8.") from None
    return ChatTemplate(tokenizer, source, wanted)
