"""How a row is stored: as a line of ``rows.arrow``, from which the same row comes back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.rows.exact import dumps, loads
from instruct_prune.rows.row import ImageRef, Message, Part, Row

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 1024
BATCH_BYTES = 1 << 26  # a batch of long rows ends sooner
DEFAULTS = {
    field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    for field in dataclasses.fields(Message)
}
Pictures = NDArray[np.uint8]
"""uint8 [bytes]: the bytes that rows hold, which are pictures as a rule, one behind the other."""


class RowWriter:
    """Gathers rows into record batches.

    Args:
        table: the file of ``rows.arrow``.
        pictures: the file of ``pictures.bin``.
    """

    def __init__(self, table: IO[bytes], pictures: IO[bytes]) -> None:
        import pyarrow as pa

        fields = {"row_id": pa.int64(), "source": pa.binary(), "line": pa.int64(), "raw": pa.binary()}
        self.schema = pa.schema([*(fields | {"is_line": pa.bool_(), "row": pa.binary()}).items()])
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        self.file = pa.ipc.new_file(table, self.schema, options=options)
        self.pictures = pictures
        # Of one row: its pictures stand both in its turns and in its own object.
        self.held: dict[bytes, tuple[int, int]] = {}
        self.waiting: list[tuple[Any, ...]] = []
        self.bytes = 0

    def add(self, row: Row) -> None:
        """Store one row."""
        self.held.clear()
        raw = row.raw if isinstance(row.raw, bytes) else self._text(row.raw)
        said = {"messages": [_message(m) for m in row.messages], "tools": row.tools, "columns": row.columns}
        text = self._text(said)
        source = row.source.encode("utf-8", "surrogatepass")
        self.waiting.append((row.row_id, source, row.line, raw, isinstance(row.raw, bytes), text))
        self.bytes += len(text) + len(raw)
        if len(self.waiting) == BATCH_ROWS or self.bytes >= BATCH_BYTES:
            self._flush()

    def _text(self, value: Any) -> bytes:
        return dumps(value, self._hold).encode("utf-8", "surrogatepass")

    def _hold(self, data: bytes) -> tuple[int, int]:
        """Where some bytes lie in ``pictures.bin``, and how many they are."""
        if data not in self.held:
            self.held[data] = self.pictures.tell(), len(data)
            self.pictures.write(data)
        return self.held[data]

    def _flush(self) -> None:
        import pyarrow as pa

        columns = zip(*self.waiting, strict=True)
        arrays = [pa.array(list(values), field.type) for values, field in zip(columns, self.schema, strict=True)]
        self.file.write_batch(pa.record_batch(arrays, schema=self.schema))
        self.waiting.clear()
        self.bytes = 0

    def close(self) -> None:
        """Write what is left, and the end of the file."""
        if self.waiting:
            self._flush()
        self.file.close()


def _message(message: Message) -> dict[str, Any]:
    """What a message has that is not as it is by default."""
    said = {name: getattr(message, name) for name in DEFAULTS}
    said = {name: value for name, value in said.items() if value != DEFAULTS[name]}
    if not isinstance(message.content, str):
        said["content"] = [_part(part.value) for part in message.content]
    return said


def _part(value: str | ImageRef) -> Any:
    return value if isinstance(value, str) else [value.path, value.data]


class HeldBytes(dict[tuple[int, int], bytes]):
    """{(where they lie, how many they are): bytes} of one row, each read once."""

    def __init__(self, pictures: Pictures) -> None:
        super().__init__()
        self.pictures = pictures

    def __missing__(self, place: tuple[int, int]) -> bytes:
        at, size = place
        self[place] = self.pictures[at : at + size].tobytes()
        return self[place]

    def of(self, text: bytes) -> Any:
        """The value of a stored text."""
        return loads(text, lambda place: self[tuple(place)])


def raw_of(raw: bytes, is_line: bool, held: HeldBytes) -> bytes | Mapping[str, Any]:
    """A row as it lay in the input, from its stored text."""
    return raw if is_line else held.of(raw)


def rows_of(batch: pa.RecordBatch, pictures: Pictures) -> Iterator[Row]:
    """The rows of a record batch."""
    names = ("row_id", "source", "line", "raw", "is_line", "row")
    for row_id, source, line, raw, is_line, row in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        held = HeldBytes(pictures)
        said = held.of(row)
        messages = tuple(_message_of(message) for message in said["messages"])
        where = source.decode("utf-8", "surrogatepass")
        yield Row(row_id, messages, where, line, raw_of(raw, is_line, held), said["columns"], tuple(said["tools"]))


def _message_of(said: dict[str, Any]) -> Message:
    content = said["content"]
    if not isinstance(content, str):
        said["content"] = tuple(_part_of(part) for part in content)
    restored: dict[str, Any] = {
        name: tuple(value) if isinstance(DEFAULTS[name], tuple) else value for name, value in said.items()
    }
    return Message(**restored)


def _part_of(part: str | list[Any]) -> Part:
    return Part("text", part) if isinstance(part, str) else Part("image", ImageRef(*part))
