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
"""uint8 [bytes]: the encoded pictures of a table, one behind the other."""


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
        self.waiting: list[tuple[Any, ...]] = []
        self.bytes = 0

    def add(self, row: Row) -> None:
        """Store one row."""
        raw = row.raw if isinstance(row.raw, bytes) else _text_of(row.raw)
        said = {"messages": [self._message(m) for m in row.messages], "tools": row.tools, "columns": row.columns}
        text = dumps(said).encode("utf-8", "surrogatepass")
        source = row.source.encode("utf-8", "surrogatepass")
        self.waiting.append((row.row_id, source, row.line, raw, isinstance(row.raw, bytes), text))
        self.bytes += len(text) + len(raw or b"")
        if len(self.waiting) == BATCH_ROWS or self.bytes >= BATCH_BYTES:
            self._flush()

    def _message(self, message: Message) -> dict[str, Any]:
        """What a message has that is not as it is by default."""
        said = {name: getattr(message, name) for name in DEFAULTS}
        said = {name: value for name, value in said.items() if value != DEFAULTS[name]}
        if not isinstance(message.content, str):
            said["content"] = [self._part(part) for part in message.content]
        return said

    def _part(self, part: Part) -> Any:
        picture = part.value
        if isinstance(picture, str):
            return picture
        if picture.data is None:
            return [picture.path, None, None]
        at = self.pictures.tell()
        self.pictures.write(picture.data)
        return [picture.path, at, len(picture.data)]

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


def _text_of(raw: Mapping[str, Any]) -> bytes | None:
    """A parsed row as text; None where it holds bytes, which would be stored twice."""
    text = dumps(raw).encode("utf-8", "surrogatepass")
    return None if b'{"$bytes":' in text and _holds_bytes(raw) else text


def _holds_bytes(value: Any) -> bool:
    if isinstance(value, Mapping | list):
        return any(map(_holds_bytes, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, bytes)


def raw_of(raw: bytes, is_line: bool) -> bytes | Mapping[str, Any]:
    """A row as it lay in the input, from its stored text."""
    return raw if is_line else loads(raw)


def rows_of(batch: pa.RecordBatch, pictures: Pictures) -> Iterator[Row]:
    """The rows of a record batch."""
    names = ("row_id", "source", "line", "raw", "is_line", "row")
    for row_id, source, line, raw, is_line, row in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
        said = loads(row)
        messages = tuple(_message_of(message, pictures) for message in said["messages"])
        whole: bytes | Mapping[str, Any] = {} if raw is None else raw_of(raw, is_line)
        where = source.decode("utf-8", "surrogatepass")
        yield Row(row_id, messages, where, line, whole, said["columns"], tuple(said["tools"]))


def _message_of(said: dict[str, Any], pictures: Pictures) -> Message:
    content = said["content"]
    if not isinstance(content, str):
        said["content"] = tuple(_part_of(part, pictures) for part in content)
    restored: dict[str, Any] = {
        name: tuple(value) if isinstance(DEFAULTS[name], tuple) else value for name, value in said.items()
    }
    return Message(**restored)


def _part_of(part: str | list[Any], pictures: Pictures) -> Part:
    if isinstance(part, str):
        return Part("text", part)
    path, at, size = part
    return Part("image", ImageRef(path, None if at is None else pictures[at : at + size].tobytes()))
