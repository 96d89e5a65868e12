"""One row of the dataset, in one shape whatever its format was."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

SUFFIX_OF = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}
"""The first bytes of a picture: the ending of its file name."""


def suffix_of(data: bytes) -> str:
    """The ending of a picture's file name, by its first bytes; ".img" where they are unknown."""
    found = next((suffix for magic, suffix in SUFFIX_OF.items() if data.startswith(magic)), ".img")
    return ".img" if found == ".webp" and data[8:12] != b"WEBP" else found  # RIFF holds sounds, too


@dataclass(frozen=True, slots=True)
class ImageRef:
    """A picture, not opened yet.

    Attributes:
        path: its file; of a picture that a table holds, a name.
        data: the encoded bytes of a picture that a table holds, else None.
    """

    path: str
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: the file is not there or cannot be read.
        """
        if self.data is not None:
            return self.data
        path = Path(self.path)
        if path.exists() and not path.is_file():  # reading a pipe would wait, and a device need not end
            raise OSError(errno.EINVAL, "it is no file")
        return path.read_bytes()


@dataclass(frozen=True, slots=True)
class Part:
    """One piece of what a turn says: text, or a picture."""

    kind: Literal["text", "image"]
    value: str | ImageRef


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant", "tool", or "text" (plain language modelling: no turns, no template).
        content: the text of the turn, or its parts in order where it holds pictures too (as in OpenAI's messages).
        trained: whether the tokens of this turn are scored and trained on.
        context: Alpaca's ``input``: what the instruction is about. Templates without a place for it
            append it to the text after a newline.
        tool_calls: OpenAI-style calls of an assistant turn, passed to the chat template as they are.
        reasoning: what an assistant turn thought before it spoke, where the data keep it apart from the text
            (``reasoning_content``, ``thinking``); passed to the chat template.
        call_id: of a tool turn, the id of the call that it answers, where the data say so.
        extra: keys of the turn that are not read and not null; counted, and carried on in exports.
        remarks: how the turn was read, where that is not what the data say; counted.
    """

    role: str
    content: str | tuple[Part, ...]
    trained: bool = False
    context: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str = ""
    call_id: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """All that the turn says in words."""
        return self.marked("")

    def marked(self, mark: str) -> str:
        """What the turn says, with a mark in the place of each picture."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.value if isinstance(part.value, str) else mark for part in self.content)

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The pictures of the turn, in order."""
        if isinstance(self.content, str):
            return ()
        return tuple(part.value for part in self.content if isinstance(part.value, ImageRef))


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the dataset.

    Attributes:
        row_id: 0-based position among all rows read, rejected ones included.
        messages: the conversation, oldest turn first.
        source: the file (or Hub id) the row came from.
        line: 1-based line in ``source`` for line-based files, else the 1-based position of the row in it.
        raw: the untouched row: the exact bytes of its line for JSONL, the parsed object for other formats.
        columns: the row's fields that are not part of the conversation (strata, labels), by name.
        tools: tool definitions for chat templates that take them.
    """

    row_id: int
    messages: tuple[Message, ...]
    source: str
    line: int
    raw: bytes | Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """What rows are compared by: the turns in order, without role names, pictures by their paths.

        System prompts are left out: those that all rows share say nothing about a row.
        """
        pieces: list[str] = []
        for message in self.messages:
            if message.role != "system":
                pieces += [*(image.path for image in message.images), message.text, message.context]
        return "\n".join(piece for piece in pieces if piece.strip())

    @property
    def n_chars(self) -> int:
        """About how long the row will be as text, without what its template adds."""
        said = sum(len(m.text) + len(m.context) + len(m.reasoning) for m in self.messages)
        called = sum(len(str(m.tool_calls)) for m in self.messages if m.tool_calls)
        return said + called + (len(str(self.tools)) if self.tools else 0)


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was read but cannot be used; it is listed in ``rejected.jsonl``, never dropped in silence."""

    row_id: int
    source: str
    line: int
    reason: str
    field: str | None = None
    status: str = "rejected"
