"""A row written out as text, with the characters that are the response."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from instruct_prune.rows.row import Message, Row


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
    said: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as text, and the spans of its trained turns in order.

    Attributes:
        text: all of it.
        spans: of the trained turns.
        whole: characters at the beginning that must not be cut: up to the end of the row's last picture.
    """

    text: str
    spans: tuple[Span, ...]
    whole: int = 0


Counts = tuple[Counter[tuple[str, str]], ...]
"""Of each: (note, what is counted) -> how many."""


class Template(ABC):
    """Writes samples as text.

    Attributes:
        name: "alpaca", "chat", "plain" or the path of a Jinja file.
        text: what defines it, for the record.
        writes_specials: the text carries BOS and end-of-turn tokens itself.
    """

    name: str
    text: str
    writes_specials: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to make rows fit it, so far; each is told once."""
        return tuple(dict.fromkeys(note for counts in self.counts for note in counted(counts)))

    @property
    def counts(self) -> Counts:
        """What the notes are made of (see `counted`); what other processes counted is added to it."""
        return ()

    def reads(self, key: str) -> bool:
        """Whether it looks at this key of a turn, beside role, content, calls and thought."""
        return False

    @abstractmethod
    def render(self, sample: Row, turns: Sequence[int]) -> Rendered:
        """Write a sample; ``turns`` are the positions of the messages that count.

        Raises:
            RenderError: the template cannot take this conversation.
        """


@dataclass(frozen=True)
class Writing:
    """How rows are written as text for a language model: what trainers' files say of it.

    Attributes:
        template: "alpaca", "chat", "plain" or a Jinja file.
        max_length: tokens per row at most.
        turns: whether every trained assistant turn counts, or the last one.
        render: a row's text in pieces, (text, is it response).
        bos: what is put before every text, as text; "" where the tokenizer adds nothing or the template writes it.
        eos: the tokenizer's end token as text, "" where it has none.
        added: what the tokenizer puts before every text by itself, as text, whatever the template writes.
        joins: whether a text in pieces has the tokens of the whole; not so where every text begins with a blank ("▁").
    """

    template: str
    max_length: int
    turns: Literal["all", "last"]
    render: Callable[[Row], list[tuple[str, bool]]]
    bos: str = ""
    eos: str = ""
    added: str = ""
    joins: bool = True


def with_context(message: Message) -> str:
    """A turn's text with Alpaca's ``input`` after it, for templates that have no place of their own for it."""
    return f"{message.text}\n{message.context}" if message.context.strip() else message.text


def counted(counts: Mapping[tuple[str, str], int]) -> tuple[str, ...]:
    """Notes with how often each was true.

    Args:
        counts: (note, what is counted: "rows" or "turns", "" for what is true of the template) -> how many.
    """
    return tuple(
        f"{note} ({n:,} {unit if n > 1 else unit[:-1]})" if unit else note for (note, unit), n in counts.items()
    )


class Pieces:
    """Text put together piece by piece, with the spans of trained turns."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.length = 0
        self.spans: list[Span] = []

    def add(self, text: str) -> None:
        self.parts.append(text)
        self.length += len(text)

    def add_response(self, said: str, ending: str, trained: bool) -> None:
        """Add a turn and the token that ends it, which is written once where the data bring it, too."""
        start = self.length
        if ending and said.rstrip().endswith(ending):
            said, ending = said.rstrip(), ""
        self.add(said)
        self.add(ending)
        if trained:
            self.spans.append(Span(start, self.length, (said,)))

    def rendered(self) -> Rendered:
        return Rendered("".join(self.parts), tuple(self.spans))


def trained(sample: Row, turns: str) -> list[int]:
    """Positions of the messages that count; blank ones say nothing and do not."""
    found = [
        i
        for i, message in enumerate(sample.messages)
        if message.trained and (message.text.strip() or message.tool_calls or message.reasoning.strip())
    ]
    return found[-1:] if turns == "last" else found
