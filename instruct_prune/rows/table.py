"""The stored table: every row of the input read, hashed and parsed once; later stages read this and not the input.

``rows.arrow`` holds the rows that could be read, ``rejects.jsonl`` the others, ``rows.json`` what is known of them all.
Pictures that lay inside a table, and other bytes that rows hold, are kept once, in ``pictures.bin``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune.arrays import Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.rows.facts import VERSION, RowFacts, facts_of, stamps_of
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.source import Source
from instruct_prune.rows.stored import HeldBytes, Pictures, RowWriter, raw_of, rows_of
from instruct_prune.storage import atomic, make_folder, write_json

if TYPE_CHECKING:
    import pyarrow as pa

TOLD_ROWS = 1024  # between two calls of ``advance``


class RowTable:
    """The rows of a run, in input order, read batch by batch.

    Attributes:
        folder: where ``rows.arrow``, ``rejects.jsonl`` and ``rows.json`` lie.
        facts: what is known of the rows.
        row_id: int64 [n], ascending: positions among all rows that were read, rejected ones included.
    """

    def __init__(self, folder: Path, facts: RowFacts) -> None:
        self.folder = folder
        self.facts = facts

    @classmethod
    def open(cls, folder: Path) -> RowTable:
        """Open the table that `write_rows` wrote.

        Raises:
            InputError: there is none, or it was written by another version.
        """
        try:
            found = json.loads((folder / "rows.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{folder / 'rows.json'} does not exist: the rows were not read to the end.") from None
        except ValueError as error:
            raise InputError(
                f"{folder / 'rows.json'} is damaged ({error}). Read the data anew with --restart read."
            ) from None
        if found.get("version") != VERSION:
            raise InputError(
                f"{folder} was written by another version of this program. The command that scored (`instruct-prune run` or `score`), given "
                "again, reads the data anew and keeps the scores."
            )
        lists = {name: tuple(found[name]) for name in ("files", "identity")}
        stamps = {name: tuple(stamp) for name, stamp in found["stamps"].items()}
        return cls(folder, RowFacts(**(found | lists | {"stamps": stamps})))

    def __len__(self) -> int:
        return self.facts.read - self.facts.rejected

    @cached_property
    def row_id(self) -> Int64:
        parts = [batch.column("row_id").to_numpy() for batch in self._batches(["row_id"])]
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def __iter__(self) -> Iterator[Row]:
        """Yield the rows in input order."""
        for batch in self._batches():
            yield from rows_of(batch, self._pictures)

    def take(self, row_ids: Int64) -> Iterator[Row]:
        """Some of the rows.

        Args:
            row_ids: int64 [m], ascending.

        Raises:
            InputError: the table lacks one of them.
        """
        for batch, _ in self._taken(row_ids, None):
            yield from rows_of(batch, self._pictures)

    def raw(self, row_ids: Int64) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
        """Rows as they lay in the input: the exact bytes of the line for JSONL, else the parsed row.

        Args:
            row_ids: int64 [m], ascending.

        Yields:
            (row_id, raw) in input order.

        Raises:
            InputError: the table lacks one of the rows.
        """
        for batch, ids in self._taken(row_ids, ["row_id", "raw", "is_line"]):
            raws, is_line = batch.column("raw").to_pylist(), batch.column("is_line").to_pylist()
            for row_id, raw, whole in zip(ids.tolist(), raws, is_line, strict=True):
                yield row_id, raw_of(raw, whole, HeldBytes(self._pictures))

    def _batches(self, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        path = self.folder / "rows.arrow"
        try:
            with pa.memory_map(str(path)) as content:
                names = pa.ipc.open_file(content).schema.names
                wanted = None if columns is None else [names.index(name) for name in columns]
                reader = pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(included_fields=wanted))
                for i in range(reader.num_record_batches):
                    yield reader.get_batch(i)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}). Read the data anew with --restart read.") from None

    def _taken(self, row_ids: Int64, columns: list[str] | None) -> Iterator[tuple[pa.RecordBatch, Int64]]:
        """Batches with the wanted rows only, and their row ids."""
        positions = positions_of(row_ids, self.row_id, "the table of rows")
        start = 0
        for batch in self._batches(columns):
            low, high = np.searchsorted(positions, [start, start + batch.num_rows])
            if high > low:
                yield batch.take(positions[low:high] - start), row_ids[low:high]
            start += batch.num_rows
            if high == len(positions):
                return

    @cached_property
    def _pictures(self) -> Pictures:
        path = self.folder / "pictures.bin"
        return np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.zeros(0, np.uint8)


def write_rows(folder: Path, source: Source, advance: Callable[[int], None] = lambda rows: None) -> RowTable:
    """Read a source once, to its end, into a folder.

    Args:
        folder: where to; made where it is not there. Files of an earlier table are replaced.
        source: the data.
        advance: told how many rows were read since it was called last.

    Raises:
        InputError: a file cannot be read on, or the source is strict and a row was rejected.
    """
    make_folder(folder)
    (folder / "rows.json").unlink(missing_ok=True)  # comes last: a table without it is not whole
    counts, stamps = {"read": 0, "rejected": 0}, stamps_of(source)
    with (
        atomic(folder / "rejects.jsonl", "w") as rejects,
        atomic(folder / "pictures.bin") as pictures,
        atomic(folder / "rows.arrow") as table,
    ):
        writer = RowWriter(table, pictures)
        for row in source:
            counts["read"] += 1
            if isinstance(row, Reject):
                counts["rejected"] += 1
                rejects.write(json.dumps(reject_line(row)) + "\n")
            else:
                writer.add(row)
            if counts["read"] % TOLD_ROWS == 0:
                advance(TOLD_ROWS)
        advance(counts["read"] % TOLD_ROWS)
        writer.close()
    facts = facts_of(source, stamps, **counts)
    write_json(folder / "rows.json", dataclasses.asdict(facts))
    return RowTable(folder, facts)


def first_rejects(path: Path) -> str:
    """ "The first: a.jsonl, line 3: the response is empty.": of ``rejects.jsonl`` or ``rejected.jsonl``; "" where none is listed."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, 3)]
    told = "; ".join(f"{row['file']}, line {row['line']}: {row['reason']}" for row in rows)
    return f"The first: {told}." if told else ""


def reject_line(row: Reject) -> dict[str, Any]:
    """A line of ``rejects.jsonl`` and ``rejected.jsonl``."""
    return {
        "file": row.source, "line": row.line, "row_id": row.row_id, "status": row.status, "field": row.field,
        "reason": row.reason,
    }  # fmt: skip
