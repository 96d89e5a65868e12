"""How a conversation is written out as text: ``alpaca`` and ``plain`` (``chat`` has the chat templates); with the tokens of pictures, or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from instruct_prune.encode.chat import ChatTemplate
from instruct_prune.encode.rendering import Counts, Pieces, Rendered, RenderError, Span, Template, with_context
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Message, Row

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


@dataclass(frozen=True)
class AlpacaTemplate(Template):
    """Stanford Alpaca's two prompts. A system message takes the place of the preamble; turns follow each other.

    The end-of-sequence token after the last response is appended as an id by the encoder; ``eos`` is its text, for
    earlier turns.
    """

    eos: str
    name = "alpaca"
    text = ALPACA_HEADER + ALPACA_TURN + "\n---\n" + ALPACA_HEADER_INPUT + ALPACA_TURN_INPUT

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        messages, pieces = sample.messages, Pieces()
        body = messages
        if messages[0].role == "system":
            pieces.add(messages[0].text + "\n\n")
            body = messages[1:]
        elif messages[0].role != "text":
            pieces.add(ALPACA_HEADER_INPUT if messages[0].context.strip() else ALPACA_HEADER)
        first = len(messages) - len(body)
        for i, message in enumerate(body, first):
            if i > first and message.role == "user":
                pieces.add("\n\n")
            if message.role == "user":
                turn = ALPACA_TURN_INPUT if message.context.strip() else ALPACA_TURN
                pieces.add(turn.format(instruction=message.text, input=message.context))
            elif message.role in ("assistant", "text") and not message.tool_calls:
                pieces.add_response(message.text, self.eos if i + 1 < len(messages) else "", i in turns)
            else:
                what = "a tool call" if message.tool_calls else f"a {message.role} turn in the middle"
                raise RenderError(f"the alpaca template has no place for {what}; use --template chat")
        return pieces.rendered()


@dataclass(frozen=True)
class PlainTemplate(Template):
    """No template: the turns as they are, a line break between them."""

    eos: str
    name = "plain"
    text = "{turn}\n{turn}..."

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        pieces = Pieces()
        for i, message in enumerate(sample.messages):
            if message.tool_calls:
                raise RenderError("the plain template has no place for a tool call; use --template chat")
            if i:
                pieces.add("\n")
            if message.role in ("assistant", "text"):
                pieces.add_response(message.text, self.eos if i + 1 < len(sample.messages) else "", i in turns)
            else:
                pieces.add(with_context(message))
        return pieces.rendered()


CONVERSATIONS = ("messages", "sharegpt", "prompt-completion-messages", "preference-messages")


def choose_template(wanted: str, tokenizer: Any, data_format: str | None, mark: str = "") -> Template:
    """Build a template.

    Args:
        wanted: "alpaca", "chat", "plain", the path of a Jinja file, or "auto": chat for conversations, plain for
            text, alpaca for everything else.
        tokenizer: a transformers tokenizer.
        data_format: ``Source.format``, for "auto".
        mark: what stands for a picture in the text of a turn; "" where no row shows any.

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
        return _chat(tokenizer, mark)
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise InputError(f"no template {wanted!r}: give auto, alpaca, chat, plain, or the path of a Jinja file.")
    try:
        source = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"the template {wanted} is not UTF-8.") from None
    return ChatTemplate(tokenizer, source, wanted, mark)


def _chat(tokenizer: Any, mark: str) -> Template:
    """The tokenizer's chat template, or its several ones."""
    several = tokenizer.chat_template
    if isinstance(several, dict) and "tool_use" in several and "default" in several:
        return ByTools(tokenizer, several["default"], several["tool_use"], mark)
    try:
        source = tokenizer.get_chat_template(
            tools=[{}] if isinstance(several, dict) and "tool_use" in several else None
        )
    except ValueError:
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template (or several and none"
            " named 'default'), so it cannot write conversations. Use the model's instruct version,"
            " --template alpaca, or --template FILE.jinja with a template of your own."
        ) from None
    return ChatTemplate(tokenizer, source, "chat", mark)


class ByTools(Template):
    """Two chat templates of one tokenizer: ``tool_use`` for rows with tools, ``default`` for all others.

    So does ``apply_chat_template`` of transformers. Rows without tool definitions that call tools all the same are
    written with ``default``, as there.
    """

    name = "chat"
    writes_specials = True

    def __init__(self, tokenizer: Any, default: str, tool_use: str, mark: str) -> None:
        self._default = ChatTemplate(tokenizer, default, "chat", mark)
        self._tool_use = ChatTemplate(tokenizer, tool_use, "chat", mark)
        self.text = f"{self._default.text}\n{{# tool_use #}}\n{self._tool_use.text}"

    @property
    def counts(self) -> Counts:
        return (*self._default.counts, *self._tool_use.counts)

    def reads(self, key: str) -> bool:
        return self._default.reads(key) or self._tool_use.reads(key)

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        return (self._tool_use if sample.tools else self._default).render(sample, turns)


Expand = Callable[[Row, Rendered], Rendered]
"""Puts the tokens of a row's pictures into its text, which has a mark for each; raises RenderError where one cannot be used."""


class Wrapped(Template):
    """A template that writes rows in another way than the one below it. (Base of the two below.)"""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.name, self.text, self.writes_specials = template.name, template.text, template.writes_specials

    @property
    def counts(self) -> Counts:
        return self.template.counts

    def reads(self, key: str) -> bool:
        return self.template.reads(key)


class WithPictures(Wrapped):
    """Writes pictures as the processor of a model does.

    Args:
        template: writes the conversation, with ``mark`` in a picture's place.
        mark: the processor's.
        expand: puts a picture's tokens there.
        always: whether every row must show a picture.
    """

    def __init__(self, template: Template, mark: str, expand: Expand, always: bool) -> None:
        super().__init__(template)
        self.mark, self.expand, self.always = mark, expand, always

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        """Write a sample; see `Template.render`."""
        n = sum(len(message.images) for message in sample.messages)
        if self.always and not n:
            raise RenderError("this model takes no row without a picture")
        if any(self.mark in text for message in sample.messages for text in _texts(message)):
            raise RenderError(f"the row's text holds {self.mark!r}, which this model takes for a picture")
        written = self.template.render(with_marks(sample, self.mark) if n else sample, turns)
        if written.text.count(self.mark) != n:
            raise RenderError(f"the template writes {written.text.count(self.mark)} of the row's {n} pictures")
        if not n:
            return written
        found = self.expand(sample, written)
        if _responses(found) != _responses(written):
            raise RenderError("the processor changes the responses, so they cannot be found among its tokens")
        return found


class Blind(Wrapped):
    """Writes rows as if they had no pictures.

    Args:
        template: writes the conversation.
        begin: what stands before every text, where a processor would have put it beside the pictures.
    """

    def __init__(self, template: Template, begin: str = "") -> None:
        super().__init__(template)
        self.begin = begin

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        """Write a sample; see `Template.render`."""
        written, n = self.template.render(with_marks(sample, ""), turns), len(self.begin)
        return Rendered(self.begin + written.text, tuple(Span(s.start + n, s.end + n, s.said) for s in written.spans))


def with_marks(sample: Row, mark: str) -> Row:
    """The row with a mark in the place of each picture; without one, blanks around a picture go with it."""

    def written(message: Message) -> Message:
        if not message.images:
            return message
        said = message.marked(mark)
        return replace(message, content=said if mark else said.strip())

    return replace(sample, messages=tuple(map(written, sample.messages)))


def _responses(row: Rendered) -> list[str]:
    return [row.text[span.start : span.end] for span in row.spans]


def _texts(message: Message) -> tuple[str, ...]:
    calls: Sequence[Mapping[str, object]] = message.tool_calls
    return (message.text, message.context, message.reasoning, *map(str, calls))
