"""How a conversation is written out as text: ``alpaca`` and ``plain``; ``chat`` has the chat templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.encode.chat import ChatTemplate
from instruct_prune.encode.rendering import Counts, Pieces, Rendered, RenderError, Template, with_context
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Row

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
    def notes(self) -> tuple[str, ...]:
        """What was done to make rows fit either template."""
        return tuple(dict.fromkeys(self._default.notes + self._tool_use.notes))

    @property
    def counts(self) -> Counts:
        return (*self._default.counts, *self._tool_use.counts)

    def reads(self, key: str) -> bool:
        return self._default.reads(key) or self._tool_use.reads(key)

    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        return (self._tool_use if sample.tools else self._default).render(sample, turns)
