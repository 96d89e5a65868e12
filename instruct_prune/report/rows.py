"""One pass over the data for what the tables of a run do not hold: the texts people read, and the rows' other columns."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, Int32, Int64
from instruct_prune.errors import InputError
from instruct_prune.report.scripts import script_of
from instruct_prune.rows.pixels import thumbnail_of
from instruct_prune.rows.row import ImageRef, Reject, Row
from instruct_prune.terminal import escaped

MOST_COLUMNS = 24
"""Columns that are followed; data whose every row has other keys would otherwise have no end of them."""
MOST_VALUES = 60
"""A column with more different values than this is not a category."""
LONGEST_VALUE = 120
IMAGE_BYTES = 5_000_000
"""Characters of all thumbnails together; other rows go without."""
SCRIPT_CHARACTERS = 400
"""Of a response, that its script is judged by."""

# Controls, bidirectional marks, invisible characters and lone surrogates. Not the joiners U+200C and U+200D:
# Persian, Hindi and emoji are written with them.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Turn:
    """One turn as it is shown: control characters made visible, cut to the page's limit."""

    role: str
    text: str
    trained: bool


@dataclass(frozen=True)
class Text:
    """What the page shows of one row."""

    source: str
    line: int
    turns: tuple[Turn, ...]
    image: str = ""
    """A data: address, for image runs."""


@dataclass(frozen=True)
class Column:
    """A column of the data over the n scored rows.

    Attributes:
        name: the field's name.
        codes: int32 [n], index into ``values``, -1 where the row has none; None for numbers.
        values: the categories, most frequent first.
        numbers: float32 [n], NaN where the row has none; None for categories.
    """

    name: str
    codes: Int32 | None = None
    values: tuple[str, ...] = ()
    numbers: Float32 | None = None


@dataclass(frozen=True)
class ReadRows:
    """What one pass found: texts by position among the scored rows, and columns."""

    texts: dict[int, Text] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()


def read_rows(
    rows: Iterable[Row | Reject], row_id: Int64, wanted: Int64, max_bytes: int, foremost: Iterable[int] = ()
) -> ReadRows:
    """Read the data once.

    Args:
        rows: the data, in input order.
        row_id: int64 [n], ascending, the scored rows.
        wanted: positions in ``row_id`` whose text is to be kept.
        max_bytes: UTF-8 bytes of a row's text that are kept.
        foremost: row ids whose pictures are not to be left out for want of room.

    Raises:
        InputError: a scored row is not in the data.
    """
    position = np.full(int(row_id[-1]) + 1 if len(row_id) else 0, -1, dtype=np.int64)
    position[row_id] = np.arange(len(row_id))
    keep = set(wanted.tolist())
    texts: dict[int, Text] = {}
    columns = _Columns(len(row_id))
    pictures: dict[int, str] = {}
    seen = 0
    for row in rows:
        if row.row_id >= len(position):
            break
        at = int(position[row.row_id])
        if isinstance(row, Reject) or at < 0:
            continue
        seen += 1
        columns.add(at, row)
        if at in keep:
            texts[at] = shown(row, max_bytes)
            picture = next((image for message in row.messages for image in message.images), None)
            if picture is not None:
                pictures[at] = image_address(picture)
    if seen != len(row_id):
        raise InputError(f"the data has {seen} of the {len(row_id)} scored rows: it has changed since it was scored.")
    for at in _with_room(pictures, [int(position[i]) for i in foremost]):
        texts[at] = replace(texts[at], image=pictures[at])
    return ReadRows(texts, columns.found())


def _with_room(pictures: Mapping[int, str], foremost: Iterable[int]) -> Iterator[int]:
    """The rows whose pictures fit: the foremost ones, then others at random (classes often lie one behind the other)."""
    room = IMAGE_BYTES
    for at in dict.fromkeys([*foremost, *np.random.default_rng(0).permutation(sorted(pictures)).tolist()]):
        size = len(pictures.get(at, ""))
        if 0 < size <= room:
            room -= size
            yield at


def shown(sample: Row, max_bytes: int) -> Text:
    """A row as the page shows it."""
    turns: list[Turn] = []
    left = max_bytes
    for message in sample.messages:
        calls = "\n".join(json.dumps(call, ensure_ascii=False, default=str) for call in message.tool_calls)
        whole = "\n".join(part for part in (message.text, message.context, calls) if part)
        text, used = cut(whole, left)
        left -= used
        turns.append(Turn(visible(message.role[:40]), text, message.trained))
    return Text(visible(sample.source), sample.line, tuple(turns))


def image_address(picture: ImageRef) -> str:
    """A ``data:`` address of a small JPEG of the picture; empty where it is gone or cannot be decoded."""
    try:
        small = thumbnail_of(picture.read())
    except OSError:
        small = None
    return "" if small is None else f"data:image/jpeg;base64,{base64.b64encode(small).decode('ascii')}"


def cut(text: str, max_bytes: int) -> tuple[str, int]:
    """The visible text within a number of UTF-8 bytes, with a note of what is left out, and the bytes it took."""
    head = visible(text[:max_bytes])
    data = head.encode()
    if len(text) <= max_bytes and len(data) <= max_bytes:
        return head, len(data)
    head = data[:max_bytes].decode(errors="ignore")
    return f"{head}… [{len(text):,} characters in all]", max_bytes


def visible(text: str) -> str:
    """The text with control, bidirectional and invisible characters as escapes that people can see."""
    return UNSEEN.sub(lambda found: escaped(found[0]), text.replace("\r\n", "\n"))


class _Columns:
    """Collects columns row by row in memory that does not depend on what is in them."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.collectors: dict[str, _Collector] = {}
        self.files = _Collector(n)
        self.script = _Collector(n)

    def add(self, at: int, row: Row) -> None:
        for name, value in row.columns.items():
            if name not in self.collectors and len(self.collectors) < MOST_COLUMNS:
                self.collectors[name] = _Collector(self.n)
            if name in self.collectors:
                self.collectors[name].add(at, value)
        self.files.add(at, row.source)
        answer = next((m.text for m in reversed(row.messages) if m.trained or m.role == "text"), "")
        self.script.add(at, script_of(answer[:SCRIPT_CHARACTERS]))

    def found(self) -> tuple[Column, ...]:
        columns = [collector.column(visible(str(name))[:80]) for name, collector in self.collectors.items()]
        columns.append(self.script.column("script (of the response)"))
        if len(self.files.values) > 1:
            columns.append(self.files.column("file"))
        return tuple(c for c in columns if c is not None and (c.numbers is not None or len(c.values) > 1))


class _Collector:
    """One column, as categories and as numbers, until it proves to be neither."""

    def __init__(self, n: int) -> None:
        self.codes = np.full(n, -1, dtype=np.int32)
        self.numbers = np.full(n, np.nan, dtype=np.float32)
        self.values: dict[str, int] = {}
        self.numeric = True
        self.category = True

    def add(self, at: int, value: Any) -> None:
        if value is None or value == "":
            return
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) < 3e38:  # in the range of float32; the comparison is false for NaN
                self.numbers[at] = value
        else:
            self.numeric = False
        if self.category:
            text = str(value) if isinstance(value, str | int | float | bool) else ""
            self.category = 0 < len(text) <= LONGEST_VALUE and (text in self.values or len(self.values) < MOST_VALUES)
            if self.category:
                self.codes[at] = self.values.setdefault(text, len(self.values))

    def column(self, name: str) -> Column | None:
        if self.category and self.values and not (self.numeric and len(self.values) > 12):
            return _ordered(name, self.codes, list(self.values))
        if self.numeric and np.isfinite(self.numbers).any():
            return Column(name, numbers=self.numbers)
        return None


def _ordered(name: str, codes: Int32, values: list[str]) -> Column:
    """The categories that occur, most frequent first (ties: in the order met)."""
    counts = np.bincount(codes[codes >= 0], minlength=len(values))
    order = np.argsort(-counts, kind="stable")[: int((counts > 0).sum())]
    renamed = np.full(len(values) + 1, -1, dtype=np.int32)  # the last entry is for -1
    renamed[order] = np.arange(len(order), dtype=np.int32)
    return Column(name, renamed[codes], tuple(visible(values[i]) for i in order))
