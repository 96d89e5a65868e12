"""Parquet and Arrow files, read in batches and written with their own types."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.rows.containers import Undo, arrow_undo
from instruct_prune.rows.files import OfFile
from instruct_prune.rows.reader import RowData, RowError
from instruct_prune.storage import atomic

if TYPE_CHECKING:
    import pyarrow as pa

READ_ROWS = 256
WRITE_ROWS = 2048


@dataclass(frozen=True)
class KeptTable:
    """Some rows as Arrow: a schema, and tables that can be read many times.

    Attributes:
        schema: with the metadata by which ``datasets`` knows its features.
        chunks: starts a new pass over the rows.
    """

    schema: pa.Schema
    chunks: Callable[[], Iterator[pa.Table]]


class TableFile(OfFile):
    """What Parquet and Arrow files have in common."""

    @abstractmethod
    def _stored(self, content: Any, rows: int) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        """The schema and all rows with their own types, of a memory map; ``rows`` at a time where the kind of file allows it."""

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        with _readable(self), self.file.mapped() as content:
            schema, batches = self._stored(content, READ_ROWS)
            yield from numbered(batches, schema)

    @contextmanager
    def _opened(self) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
        import pyarrow as pa

        with _readable(self), pa.memory_map(str(self.file.path)) as content:
            yield self._stored(content, WRITE_ROWS)

    @cached_property
    def schema(self) -> pa.Schema:
        """Names, types and metadata of the columns."""
        with self._opened() as (schema, _):
            return schema

    def class_names(self) -> Mapping[str, Sequence[str]]:
        return stored_class_names(self.schema)

    def kept(self, lines: Sequence[int]) -> KeptTable:
        """The rows at these 1-based positions, ascending, with their own types.

        Raises:
            InputError: the file cannot be read again (also later, while its rows are read).
        """

        def chunks() -> Iterator[pa.Table]:
            with self._opened() as (_, batches):
                yield from _taken(batches, lines)

        return KeptTable(self.schema, chunks)


@dataclass(frozen=True)
class ParquetTable(TableFile):
    """A Parquet file, read a few hundred rows at a time."""

    kind: str = "parquet"

    def _stored(self, content: Any, rows: int) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        import pyarrow.parquet as pq

        table = pq.ParquetFile(content, pre_buffer=False)
        return table.schema_arrow, table.iter_batches(rows)

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path:
        """The rows with their own types."""
        target = stem.with_name(f"{stem.name}.parquet")
        write_parquet_table(self.kept(kept), target)
        return target


@dataclass(frozen=True)
class ArrowTable(TableFile):
    """An Arrow IPC file or stream, memory-mapped (``datasets`` writes streams)."""

    kind: str = "arrow"

    def _stored(self, content: Any, rows: int) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
        import pyarrow as pa

        if content.read_at(6, 0) == b"ARROW1":
            table = pa.ipc.open_file(content)
            return table.schema, (table.get_batch(i) for i in range(table.num_record_batches))
        stream = pa.ipc.open_stream(content)
        return stream.schema, iter(stream)

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path:
        """The rows as an Arrow stream."""
        target = stem.with_name(f"{stem.name}.arrow")
        write_arrow(self.kept(kept), target)
        return target


@contextmanager
def _readable(table: TableFile) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(
            f"{table.name} cannot be read as {table.kind.capitalize()}: {first}. It may be damaged; write it again."
        ) from None


def stored_class_names(schema: pa.Schema) -> Mapping[str, Sequence[str]]:
    """The names behind integer labels, as `datasets` stores them in the metadata of a schema."""
    text = (schema.metadata or {}).get(b"huggingface")
    features = json.loads(text).get("info", {}).get("features", {}) if text else {}
    if not isinstance(features, dict):
        return {}
    return {
        name: f["names"] for name, f in features.items() if isinstance(f, dict) and isinstance(f.get("names"), list)
    }


def numbered(batches: Iterable[Any], schema: pa.Schema) -> Iterator[tuple[int, RowData | RowError]]:
    """Rows of Arrow batches or tables as (1-based position, dict), as they were before Arrow stored them."""
    undo = arrow_undo(schema)
    position = 0
    for batch in batches:
        for start in range(0, batch.num_rows, READ_ROWS):
            for row in _python_rows(batch.slice(start, READ_ROWS)):
                position += 1
                yield position, row if isinstance(row, RowError) or not undo else _undone(row, undo)


def _undone(row: dict[str, Any], undo: Mapping[str, Undo]) -> RowData | RowError:
    try:
        return {name: undo[name](value) if name in undo else value for name, value in row.items()}
    except RowError as error:
        return error


def _python_rows(piece: Any) -> list[dict[str, Any] | RowError]:
    try:
        rows: list[dict[str, Any] | RowError] = piece.to_pylist()
        return rows
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        if piece.num_rows == 1:
            return [RowError(f"a value cannot be read: {error}")]
    return [row for i in range(piece.num_rows) for row in _python_rows(piece.slice(i, 1))]


def _taken(batches: Iterable[pa.RecordBatch], lines: Sequence[int]) -> Iterator[pa.Table]:
    """The rows at these 1-based positions, batch by batch."""
    import pyarrow as pa

    positions = np.asarray(lines, dtype=np.int64) - 1
    start = 0
    for batch in batches:
        low, high = np.searchsorted(positions, [start, start + batch.num_rows])
        if high > low:
            yield pa.Table.from_batches([batch]).take(positions[low:high] - start)
        start += batch.num_rows
        if high == len(positions):
            return
    raise InputError(f"row {positions[-1] + 1} is not there any more: the data were changed during the run.")


def write_parquet_table(table: KeptTable, target: Path) -> int:
    """Write a Parquet file and return its number of rows."""
    import pyarrow.parquet as pq

    with atomic(target) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        return _written(table, writer)


def write_arrow(table: KeptTable, target: Path) -> int:
    """Write an Arrow stream, as ``datasets`` does, and return its number of rows."""
    import pyarrow as pa

    with atomic(target) as file, pa.ipc.new_stream(file, table.schema) as writer:
        return _written(table, writer)


def _written(table: KeptTable, writer: Any) -> int:
    rows = 0
    for chunk in table.chunks():
        writer.write_table(chunk.cast(table.schema))
        rows += chunk.num_rows
    return rows
