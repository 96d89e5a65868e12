"""Rows that show pictures, as text: with the tokens that a model's processor puts in a picture's place, and without pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from instruct_prune.encode.rendering import Counts, Rendered, RenderError, Span, Template
from instruct_prune.rows.row import Message, Row

Expand = Callable[[Row, Rendered], Rendered]
"""Puts the tokens of a row's pictures into its text, which has a mark for each; raises RenderError where one cannot be used."""


class Wrapped(Template):
    """A template that writes rows in another way than the one below it. (Base of the two below.)"""

    def __init__(self, template: Template) -> None:
        self.template = template
        self.name, self.text, self.writes_specials = template.name, template.text, template.writes_specials

    @property
    def notes(self) -> tuple[str, ...]:
        return self.template.notes

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
