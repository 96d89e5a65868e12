"""Tables on disk: CSV and TSV (text stays text), Parquet and Arrow, streamed in batches."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.files import DataFile
from instruct_prune.rows.reader import RowData, RowError

BATCH_ROWS = 256
MAX_FIELD = 1 << 26  # characters; the csv module's own limit of 131,072 is shorter than many a document


@dataclass(frozen=True)
class DelimitedText:
    """CSV or TSV with a header line. No value is converted: "NA" and "00705" stay what they are."""

    file: DataFile
    kind: str

    @property
    def name(self) -> str:
        return self.file.name

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        csv.field_size_limit(MAX_FIELD)
        with self.file.open() as stream:
            # Undecodable bytes become lone surrogates here and are found again below: one bad row, not a bad file.
            text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
            records = csv.reader(text, delimiter=self._delimiter(), strict=True)
            header = self._header(records)
            while True:
                line = records.line_num + 1
                try:
                    record = next(records)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield line, RowError(f"not {self.kind.upper()}: {error}")
                    continue
                if record:
                    yield line, _row(header, record)

    def _delimiter(self) -> str:
        if self.kind == "tsv":
            return "\t"
        first = self.file.head().partition(b"\n")[0]
        return ";" if first.count(b";") > first.count(b",") else ","

    def _header(self, records: Iterator[list[str]]) -> list[str]:
        try:
            header = next(record for record in records if record)
        except (StopIteration, csv.Error) as error:
            raise InputError(f"{self.name} has no header line that can be read ({error or 'no line'}).") from None
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.name}: two columns are named {twice!r}. Rename one of them in the first line.")
        if any(not _is_text(name) for name in header):
            raise InputError(
                f"{self.name} is not UTF-8: its header cannot be read. It may be latin-1 or Windows-1252; convert it:"
                f" iconv -f WINDOWS-1252 -t UTF-8 {self.name} > NEW"
            )
        return header

    def identity(self) -> list[dict[str, Any]]:
        return self.file.identity()


def _row(header: list[str], record: list[str]) -> RowData | RowError:
    if len(record) != len(header):
        return RowError(f"the row has {len(record)} fields, the header has {len(header)}")
    for name, value in zip(header, record, strict=True):
        if not _is_text(value):
            return RowError(
                "not UTF-8; the file may be latin-1 or Windows-1252 (convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD"
                " > NEW)",
                name,
            )
    return dict(zip(header, record, strict=True))


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file, read a few hundred rows at a time."""

    file: DataFile
    kind: str = "parquet"

    @property
    def name(self) -> str:
        return self.file.name

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        import pyarrow.parquet as pq

        with _readable(self.name, "Parquet"), pq.ParquetFile(self.file.path, pre_buffer=False) as table:
            yield from numbered(table.iter_batches(BATCH_ROWS))

    def identity(self) -> list[dict[str, Any]]:
        return self.file.identity()


@dataclass(frozen=True)
class ArrowTable:
    """An Arrow IPC file or stream, memory-mapped (``datasets`` writes streams)."""

    file: DataFile
    kind: str = "arrow"

    @property
    def name(self) -> str:
        return self.file.name

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        import pyarrow as pa

        with _readable(self.name, "Arrow"), pa.memory_map(str(self.file.path)) as source:
            if self.file.head(6) == b"ARROW1":
                table = pa.ipc.open_file(source)
                batches = (table.get_batch(i) for i in range(table.num_record_batches))
            else:
                batches = iter(pa.ipc.open_stream(source))
            yield from numbered(batches)

    def identity(self) -> list[dict[str, Any]]:
        return self.file.identity()


@contextmanager
def _readable(name: str, what: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise InputError(f"{name} cannot be read as {what}: {first}. It may be damaged; write it again.") from None


def numbered(batches: Iterator[Any]) -> Iterator[tuple[int, RowData | RowError]]:
    """Rows of Arrow batches or tables as (1-based position, dict)."""
    position = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            piece = batch.slice(start, BATCH_ROWS)
            for row in _python_rows(piece):
                position += 1
                yield position, row


def _python_rows(piece: Any) -> list[RowData | RowError]:
    try:
        rows: list[RowData | RowError] = piece.to_pylist()
        return rows
    except (UnicodeDecodeError, ValueError, OverflowError) as error:
        if piece.num_rows == 1:
            return [RowError(f"a value cannot be read: {error}")]
    return [row for i in range(piece.num_rows) for row in _python_rows(piece.slice(i, 1))]
