"""Marks around what each turn says, to find it again in the text that a chat template makes of it.

A mark is letters and digits only, so that no template's JSON or HTML escaping changes it. Blanks stay outside of the
marks, because templates trim; so do the tags of thoughts, because templates cut and rewrite them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal

Kind = Literal["thought", "text", "name", "argument", "other"]

_STEMS = ("Zq7m", "Xv3k", "Wj5b", "Qk8f")
_THOUGHT_TAGS = re.compile(r"</?(?:think|thinking|thought|reasoning|seed:think)>|\[/?THINK\]")
MAX_PIECES = 10**4


@dataclass(frozen=True, slots=True)
class Piece:
    """Something that a turn says.

    Attributes:
        turn: position of its message among those that the template is given; -1 for what is not scored.
        kind: what it is.
        text: as the data have it, without blanks at its ends.
    """

    turn: int
    kind: Kind
    text: str


@dataclass
class Marker:
    """Puts numbered marks into messages.

    Args:
        stem: what marks begin with; it must not occur in the data.
        arguments: whether the arguments of calls are marked, too.

    Attributes:
        pieces: what was marked, by number. Number 0 stands for everything that is not scored, so that equal
            messages stay equal (Mistral's template compares them).
    """

    stem: str
    arguments: bool = True
    pieces: list[Piece] = field(default_factory=lambda: [Piece(-1, "other", "")])

    def around(self, number: int, text: str) -> str:
        return f"{self.stem}A{number:04d}{text}{self.stem}B{number:04d}"

    def piece(self, turn: int, kind: Kind, text: str) -> str:
        """The text with marks around all of it but the blanks at its ends."""
        core = text.strip()
        if not core or len(self.pieces) >= MAX_PIECES:
            return text
        begin = text.index(core)
        self.pieces.append(Piece(turn, kind, core))
        return text[:begin] + self.around(len(self.pieces) - 1, core) + text[begin + len(core) :]

    def spoken(self, turn: int, text: str) -> str:
        """Text that may hold thoughts between tags: each stretch between two tags is a piece of its own."""
        if "<" not in text and "[" not in text:
            return self.piece(turn, "text", text)
        marked, position = [], 0
        closings = [tag.end() for tag in _THOUGHT_TAGS.finditer(text) if "/" in tag[0]]
        last = closings[-1] if closings else 0
        for tag in _THOUGHT_TAGS.finditer(text):
            marked += [self.piece(turn, "thought" if position < last else "text", text[position : tag.start()]), tag[0]]
            position = tag.end()
        marked.append(self.piece(turn, "thought" if position < last else "text", text[position:]))
        return "".join(marked)

    def call(self, turn: int, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        function["name"] = self.piece(turn, "name", function["name"])
        if self.arguments:
            function["arguments"] = self._argument(turn, function["arguments"])
        return {**call, "function": function}

    def _argument(self, turn: int, value: Any) -> Any:
        if isinstance(value, str):
            return self.piece(turn, "argument", value)
        if isinstance(value, Mapping):
            return {key: self._argument(turn, each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._argument(turn, each) for each in value]
        return value

    def other(self, text: str) -> str:
        core = text.strip()
        begin = text.index(core)
        return text[:begin] + self.around(0, core) + text[begin + len(core) :] if core else text


@dataclass(frozen=True)
class Found:
    """Where the pieces are in the text without marks.

    Attributes:
        text: the marked text without its marks.
        places: number of a piece -> (start, end) of its first occurrence.
        others: (start, end) of what others said, in order.
    """

    text: str
    places: Mapping[int, tuple[int, int]]
    others: Sequence[tuple[int, int]]


def free_stem(text: str) -> str | None:
    """A stem for marks that does not occur in a text."""
    return next((stem for stem in _STEMS if stem not in text), None)


def find(marked: str, stem: str) -> Found:
    """Take the marks out of a text and tell where they were. A mark without its partner stays in the text."""
    pieces: list[str] = []
    length = position = 0
    places: dict[int, tuple[int, int]] = {}
    others: list[tuple[int, int]] = []
    opened: dict[int, int] = {}
    for mark in re.finditer(stem + r"([AB])(\d{4})", marked):
        pieces.append(marked[position : mark.start()])
        length += mark.start() - position
        position = mark.end()
        number = int(mark[2])
        if mark[1] == "A":
            opened[number] = length
        elif number in opened:
            start = opened.pop(number)
            if number:
                places.setdefault(number, (start, length))
            else:
                others.append((start, length))
    pieces.append(marked[position:])
    return Found("".join(pieces), places, others)


def written_as(piece: str, found: str) -> bool:
    """Whether a template wrote this piece, up to the escaping of JSON and HTML."""
    if found == piece:
        return True
    return found in (json.dumps(piece)[1:-1], json.dumps(piece, ensure_ascii=False)[1:-1], escape(piece, quote=False),
                     escape(piece), repr(piece)[1:-1])  # fmt: skip


def plain_values(value: object, texts: bool = False) -> Iterator[str]:
    """The values of arguments that are no text (numbers, true, null), as JSON writes them; with ``texts`` those, too."""
    if isinstance(value, Mapping):
        for each in value.values():
            yield from plain_values(each, texts)
    elif isinstance(value, list):
        for each in value:
            yield from plain_values(each, texts)
    elif not isinstance(value, str):
        yield json.dumps(value)
    elif texts:
        yield json.dumps(value, ensure_ascii=False)[1:-1]


def opens_thought(text: str) -> bool:
    """Whether a text begins with the tag of a thought."""
    tag = _THOUGHT_TAGS.match(text.lstrip())
    return tag is not None and "/" not in tag[0]
