"""JSON Lines and JSON arrays, streamed: one bad row is one rejected row, and a 10 GB file does not need 10 GB."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from instruct_prune.errors import InputError
from instruct_prune.rows.files import OfFile
from instruct_prune.rows.reader import RowData, RowError, line_of
from instruct_prune.storage import atomic

CHUNK = 1 << 16
MAX_ROW = 1 << 26  # bytes; an element that is longer was never closed


@dataclass(frozen=True)
class JsonLines(OfFile):
    """One JSON object a line. Lines end with \\n only (U+2028 and friends are text); blank lines are no rows.

    It needs no writer: pruned.jsonl holds the very bytes of its lines.
    """

    kind: str = "jsonl"

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        with self.file.open() as stream:
            for number, line in enumerate(iter(lambda: stream.readline(MAX_ROW), b""), 1):
                if len(line) == MAX_ROW:
                    raise InputError(
                        f"{self.name}, line {number} is longer than {MAX_ROW >> 20} MiB: this is no file with one row"
                        " a line. Check how it was written."
                    )
                if line.endswith(b"\n"):
                    line = line[:-1]
                if line and not line.isspace():
                    yield number, line


@dataclass(frozen=True)
class JsonArray(OfFile):
    """A list of JSON objects, cut into its elements without parsing more than one of them at a time."""

    kind: str = "json"

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        with self.file.open() as stream:
            yield from _Scanner(stream, self.name).elements()

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path | None:
        """A JSON list of the elements, one a line."""
        target = stem.with_name(f"{stem.name}.json")
        with atomic(target) as file:
            for i, raw in enumerate(raws):
                file.write((b",\n" if i else b"[\n") + line_of(raw))
            file.write(b"\n]\n")
        return target


# A string ends at its quote or, damaged, at the end of its line (JSON strings hold no raw newline).
_TOKEN = re.compile(rb'"(?:[^"\\\n]++|\\[^\n]?+)*+(?:"|(?=\n)|\Z)|[{}\[\]]')
_GAP = re.compile(rb"[\s,]*")
_SCALAR = re.compile(rb"[^\s,\[\]{}\"]+")
_NEXT_ROW = re.compile(rb"[}\]]\s*,\s*(?=\{)")
_OPENED_BY = {ord("}"): ord("{"), ord("]"): ord("[")}
_AFTER_STRING = frozenset(b":,]} \t\r\n")


class _Scanner:
    """Finds where each element of the outer list begins and ends.

    Three things never happen in sound JSON: brackets that do not match, a bracket that opens in an object without a
    colon before it, text glued to a closing quote. At the first of them the element is given up, and the next one begins
    at the next object that is indented as the first element was (or, in a file without line breaks, after the next
    "},").
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self.stream = stream
        self.name = name
        self.buffer = b""
        self.line = 1  # of buffer[0]
        self.at_end = False
        self.indent: bytes | None = None  # what stands before the first element on its line

    def elements(self) -> Iterator[tuple[int, bytes | RowError]]:
        """Yield (line, bytes of one element)."""
        self._skip_gap()
        self._cut(1)  # the opening bracket
        _, newline, indent = self._skip_gap().rpartition(b"\n")
        if newline:
            self.indent = indent
        closed = False
        while True:
            self._skip_gap()
            if not self.buffer:
                break
            if self.buffer[0] == ord("]") and not closed:
                closed = True
                self._cut(1)
                continue
            if closed:
                yield self.line, RowError("text after the end of the list")
            start, element = self.line, self._element()
            closed = closed or (self.at_end and not self.buffer)  # an element without an end is one fault, not two
            yield start, element
        if not closed:
            yield self.line, RowError("the file ends before its list is closed: it may have been cut off")

    def _element(self) -> bytes:
        """Cut the element that begins at buffer[0] off the buffer."""
        if self.buffer[0] in b"}]" or self._is_stray_list():
            return self._cut(1)
        if self.buffer[0] not in b'{["':
            return self._cut(self._search(_SCALAR, 0))
        stack: list[int] = []
        position = 0
        while True:
            for token in _TOKEN.finditer(self.buffer, position):
                start, end = token.span()
                if end == len(self.buffer) and not self.at_end:
                    break  # it may go on in the next chunk
                byte = self.buffer[start]
                if byte == ord('"'):
                    if end < len(self.buffer) and self.buffer[end] not in _AFTER_STRING:
                        return self._cut(self._resume(start))
                elif byte in _OPENED_BY:
                    if not stack or stack.pop() != _OPENED_BY[byte]:
                        return self._cut(self._resume(start))
                else:
                    if stack and stack[-1] == ord("{"):
                        before = self.buffer[max(0, start - 256) : start].rstrip()
                        if before[-1:] != b":":
                            return self._cut(self._resume(start))
                    stack.append(byte)
                position = end
                if not stack:
                    return self._cut(position)
            if self.at_end:
                return self._cut(len(self.buffer))
            self._fill()

    def _is_stray_list(self) -> bool:
        """Whether a list of objects begins here: one bracket too many, and what follows are the rows."""
        while self.buffer[0] == ord("[") and not self.buffer[1:].strip() and not self.at_end:
            self._fill()
        return self.buffer[0] == ord("[") and self.buffer[1:].lstrip()[:1] == b"{"

    def _resume(self, position: int) -> int:
        """Where the next element seems to begin, at ``position`` or after it."""
        if self.indent is None:
            return position if self.buffer[position] == ord("{") else self._search(_NEXT_ROW, position)
        follows = re.compile(rb"\n" + re.escape(self.indent) + rb"(?=\{)")
        return self._search(follows, max(1, position - len(self.indent) - 1))

    def _search(self, pattern: re.Pattern[bytes], position: int) -> int:
        """Where the next match ends, or the end of the file."""
        while True:
            found = pattern.search(self.buffer, position)
            if found and (found.end() < len(self.buffer) or self.at_end):
                return found.end()
            if self.at_end:
                return len(self.buffer)
            self._fill()

    def _skip_gap(self) -> bytes:
        """Cut what stands between two elements; returns the end of it."""
        skipped = b""
        while True:
            gap = _GAP.match(self.buffer)
            assert gap is not None
            skipped = (skipped + self._cut(gap.end()))[-CHUNK:]
            if self.buffer or self.at_end:
                return skipped
            self._fill()

    def _cut(self, count: int) -> bytes:
        piece = self.buffer[:count]
        self.line += piece.count(b"\n")
        self.buffer = self.buffer[count:]
        return piece

    def _fill(self) -> None:
        if len(self.buffer) > MAX_ROW:
            raise InputError(
                f"{self.name}, line {self.line}: the element that begins here is longer than {MAX_ROW >> 20} MiB, so"
                " the file is damaged here or is not a list of rows. Mend it, or write one row a line (.jsonl)."
            )
        more = self.stream.read(max(CHUNK, len(self.buffer)))
        self.at_end = not more
        self.buffer += more
