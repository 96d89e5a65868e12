"""How a conversation is written out as text, and which characters of it are the response.

``alpaca`` and ``plain`` are written here; ``chat`` and Jinja files are chat templates that transformers renders.
"""

from __future__ import annotations

import json
import os
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

# Some templates write today's date; then a row would have another text, and another score, tomorrow.
_FIXED_DATE = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(
        f" | replace('%{code}', '{value}')"
        for code, value in {"Y": "2024", "m": "07", "d": "26", "b": "Jul", "B": "July", "A": "Friday"}.items()
    )
    + " -}}{%- endmacro -%}"
)


class ChatTemplate:
    """The tokenizer's chat template, or a Jinja file written like one (``messages``, ``tools``, ``bos_token``, ...).

    Stock templates do not say which part of their text is the response, so every conversation is rendered twice: as
    it is, and with markers around what the trained turns say. Without the markers both must be the same text, and
    the markers tell where the turns are. A turn's span begins after the generation prompt (with a tool call: at the
    call) and ends with the end-of-turn token; both are learnt from the template itself.
    """

    writes_specials = True

    def __init__(self, tokenizer: Any, source: str, name: str) -> None:
        self._tokenizer = tokenizer
        self.name = name
        self._notes: dict[str, None] = {}
        if "strftime_now" in source:
            source = _FIXED_DATE + source
            self._say("the chat template writes today's date: it is fixed to 26 July 2024, so that scores stay the same")
        self.text = source
        user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"{_OPEN}x{_CLOSE}"}
        try:
            asked, prompted = (self._apply([[user]], (), prompt=prompt)[0] for prompt in (False, True))
            answered = self._apply([[user, answer]], ())[0]
            more = self._apply([[user, answer, user]], ())[0]
        except RenderError as error:
            raise InputError(f"the chat template {name!r} cannot write one question and one answer: {error}.") from None
        self._ask = prompted[len(asked) :] if prompted.startswith(asked) else ""
        self._stop = _end_of_turn(answered.partition(_CLOSE)[2], more.partition(_CLOSE)[2], tokenizer)
        self._takes_system = self._writes({"role": "system", "content": _OPEN}, user)
        call = {"id": "c00010000", "type": "function", "function": {"name": _OPEN, "arguments": {"a": "b"}}}
        calls = {"role": "assistant", "content": "", "tool_calls": [call]}
        self._takes_calls = self._writes(user, calls)
        # What stands between the question and the name of the function that is called.
        self._before_call = ""
        if self._takes_calls:
            called = self._apply([[user, calls]], ())[0].partition(_OPEN)[0]
            self._before_call = called[len(prompted) :] if called.startswith(prompted) else ""
        result = {"role": "tool", "content": _OPEN, "tool_call_id": call["id"], "name": "f"}
        named = {**calls, "tool_calls": [{**call, "function": {"name": "f", "arguments": {}}}]}
        self._takes_results = self._writes(user, named if self._takes_calls else {**answer, "content": "x"}, result)

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make rows fit this template, so far."""
        return tuple(self._notes)

    def _say(self, note: str) -> None:
        self._notes[note] = None

    def _writes(self, *messages: dict[str, Any]) -> bool:
        """Whether the template accepts these messages and shows the one with the marker."""
        try:
            return _OPEN in self._apply([list(messages)], ())[0]
        except RenderError:
            return False

    def _apply(
        self, conversations: list[list[dict[str, Any]]], tools: Sequence[Mapping[str, Any]], prompt: bool = False
    ) -> list[str]:
        import jinja2

        try:
            texts: list[str] = self._tokenizer.apply_chat_template(
                conversations,
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self.text,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise RenderError(f"the chat template refuses this conversation: {error}") from None
        return texts

    def render(self, sample: Sample, turns: Sequence[int]) -> Rendered:
        messages, positions = self._messages(sample)
        marked = list(messages)
        for i in turns:
            marked[positions[i]] = _marked(messages[positions[i]])
        full, text = self._apply([messages, marked], sample.tools)
        pieces, said = _Pieces(), []
        for n, part in enumerate(text.split(_OPEN)):
            inside, found, after = part.partition(_CLOSE)
            if bool(n) != bool(found):
                raise RenderError("the chat template does not write every response as it is")
            if n:
                said.append((pieces.length, pieces.length + len(inside)))
            pieces.add(inside)
            pieces.add(after)
        if len(said) != len(turns) or pieces.rendered().text != full:
            raise RenderError("the chat template changes the responses, so they cannot be found in its text")
        spans = []
        for n, i in enumerate(turns):
            low = spans[-1].end if spans else 0
            high = said[n + 1][0] if n + 1 < len(said) else len(full)
            spans.append(self._span(full, said[n], low, high, bool(messages[positions[i]].get("tool_calls"))))
        return Rendered(full, tuple(spans))

    def _span(self, full: str, said: tuple[int, int], low: int, high: int, is_call: bool) -> Span:
        """Widen what a turn says to all that the model has to write, within [low, high)."""
        start, end = said
        asked = full.rfind(self._ask, low, start) + len(self._ask) if self._ask in full[low:start] else -1
        if self._ask and asked >= 0 and not (self._stop and self._stop in full[asked:start]):
            start = asked
        elif is_call and self._before_call and full.endswith(self._before_call, low, start):
            start -= len(self._before_call)
        stop = full.find(self._stop, end, high) if self._stop else -1
        between = full[end:stop]
        if stop >= 0 and (not between.strip() or is_call and not (self._ask and self._ask in between)):
            end = stop + len(self._stop)
        return Span(start, end, full[said[0] : said[1]])

    def _messages(self, sample: Sample) -> tuple[list[dict[str, Any]], list[int]]:
        """The turns as the template takes them, and where each message of the sample went."""
        messages: list[dict[str, Any]] = []
        positions: list[int] = []
        system = ""
        calls: list[Mapping[str, Any]] = []  # those without a result yet
        for message in sample.messages:
            if message.role == "text":
                raise RenderError("the row is plain text, not a conversation; use --template plain")
            positions.append(len(messages))
            turn: dict[str, Any] = {"role": message.role, "content": with_context(message)}
            if message.role == "system" and not self._takes_system:
                system += turn["content"] + "\n\n"
                self._say("the chat template takes no system message: it is put before the next user turn")
                continue
            if message.role == "user" and system:
                turn["content"], system = system + turn["content"], ""
            if message.tool_calls:
                self._add_calls(turn, message.tool_calls)
                calls = list(message.tool_calls)
            if message.role == "tool":
                self._add_call_id(turn, calls)
            messages.append(turn)
        if system:
            raise RenderError("the chat template takes no system message, and no user turn follows to put it before")
        return messages, positions

    def _add_calls(self, turn: dict[str, Any], calls: Sequence[Mapping[str, Any]]) -> None:
        if self._takes_calls:
            turn["tool_calls"] = [dict(call) for call in calls]
            return
        self._say("the chat template takes no tool calls: they are written as JSON in the assistant's turn")
        written = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
        turn["content"] = "\n".join(filter(None, [turn["content"], *written]))

    def _add_call_id(self, turn: dict[str, Any], calls: list[Mapping[str, Any]]) -> None:
        """Say which call a result answers: the oldest one that has none."""
        if not self._takes_results:
            turn["role"] = "user"
            self._say("the chat template takes no tool results: they are written as user turns")
        elif calls:
            call = calls.pop(0)
            turn |= {"tool_call_id": call["id"], "name": call["function"]["name"]}


def _marked(turn: dict[str, Any]) -> dict[str, Any]:
    """Put the markers around what a turn says, or around the name of the first function that it calls.

    Blanks stay outside of them, because templates trim; so does what a model thinks aloud, because templates drop it
    from earlier turns.
    """
    content: str = turn["content"]
    if not content.strip() and turn.get("tool_calls"):
        first, *others = turn["tool_calls"]
        function = {**first["function"], "name": _OPEN + first["function"]["name"] + _CLOSE}
        return {**turn, "tool_calls": [{**first, "function": function}, *others]}
    thought = content.rfind("</think>")
    begin = thought + len("</think>") if thought >= 0 else 0
    core = content[begin:].strip()
    begin = content.index(core, begin) if core else begin
    return {**turn, "content": content[:begin] + _OPEN + core + _CLOSE + content[begin + len(core) :]}


def _end_of_turn(last: str, followed: str, tokenizer: Any) -> str:
    """The text of the end-of-turn token, from what follows an answer at the end and in the middle."""
    tail = last.lstrip()
    specials = [token for token in tokenizer.get_added_vocab() if token and tail.startswith(token)]
    if specials:
        return max(specials, key=len)
    shared = os.path.commonprefix([last, followed]).split()
    return shared[0] if shared else ""


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
