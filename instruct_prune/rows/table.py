"""The stored table: every row of the input read, hashed and parsed once; later stages read this and not the input.

``rows.arrow`` holds the rows that could be read, ``rejects.jsonl`` the others, ``rows.json`` what is known of them all.
Pictures that lay inside a table are kept once, in ``pictures.bin``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from instruct_prune.arrays import Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.rows.exact import dumps, loads
from instruct_prune.rows.reader import as_mapping
from instruct_prune.rows.row import ImageRef, Message, Part, Reject, Row
from instruct_prune.rows.source import Source, open_data, read_raw
from instruct_prune.storage import atomic, sha256_of, write_json

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 1
BATCH_ROWS = 1024
BATCH_BYTES = 1 << 26  # a batch of long rows ends sooner


@dataclass(frozen=True)
class RowFacts:
    """What is known of a table of rows.

    Attributes:
        description: what was found, in one sentence for people.
        format: name of the row format.
        kind: how the rows were stored.
        model_kind: the kind of model that they are for, "causal_lm" or "image_encoder".
        files: paths and Hub ids.
        identity: of each file path, sha256 and bytes (`Source.identity`).
        stamps: of each file on disk its absolute path, size in bytes and time of change in ns, by name.
        read: rows read.
        rejected: rows that cannot be used; the others are in the table.
        opened_with: the arguments of `open_data`; its "data" is None for rows that lay in memory.
        version: of the files.
    """

    description: str
    format: str
    kind: str
    model_kind: str
    files: tuple[str, ...]
    identity: tuple[Mapping[str, Any], ...]
    stamps: Mapping[str, tuple[str, int, int]]
    read: int
    rejected: int
    opened_with: Mapping[str, Any]
    version: int = VERSION

    def changed(self) -> list[str]:
        """The files that are not as they were read: gone, or of other bytes.

        Size and time of change are looked at first; a file is hashed only where these differ. Of trees and listings of
        pictures, names and sizes are looked at.
        """
        sha256 = {entry["path"]: entry["sha256"] for entry in self.identity if "sha256" in entry}
        changed = [name for name, stamp in self.stamps.items() if not _is_as_read(stamp, sha256.get(name))]
        listed = {name: digest for name, digest in sha256.items() if name not in self.stamps}
        if not listed or changed or self.opened_with["data"] is None:
            return changed
        try:
            now = {entry["path"]: entry.get("sha256") for entry in self.opened_again().identity()}
        except InputError:
            now = {}
        return [name for name, digest in listed.items() if now.get(name) != digest]

    def opened_again(self) -> Source:
        """The input, opened as it was.

        Raises:
            InputError: it lay in memory, or is not there any more.
        """
        arguments = dict(self.opened_with)
        if arguments["data"] is None:
            raise InputError("these rows lay in the memory of a program that has ended: give them again.")
        arguments["data"] = [self.stamps[name][0] if name in self.stamps else name for name in self.opened_with["data"]]
        return open_data(**arguments)

    def require_unchanged(self) -> None:
        """Refuse to go on with data that changed.

        Raises:
            InputError: naming the files.
        """
        changed = self.changed()
        if changed:
            raise InputError(
                f"{', '.join(changed)}: the data changed since it was read (another SHA-256). Score it anew in another --out."
            )


def _is_as_read(stamp: tuple[str, int, int], sha256: str | None) -> bool:
    path, size, changed_at = Path(stamp[0]), stamp[1], stamp[2]
    try:
        now = path.stat()
        if (now.st_size, now.st_mtime_ns) == (size, changed_at):
            return True
        return now.st_size == size and sha256_of(path) == sha256
    except OSError:
        return False


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
                f"{folder / 'rows.json'} is damaged ({error}). Read the data anew with --restart."
            ) from None
        if found.get("version") != VERSION:
            raise InputError(
                f"{folder} was written by another version of this program. Read the data anew with --restart."
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
        """Yield the rows in input order. ``Row.raw`` is empty where `raw` has to read the input again."""
        for batch in self._batches():
            yield from self._rows_of(batch)

    def rejects(self) -> Iterator[Reject]:
        """The rows that cannot be used, in input order."""
        with open(self.folder / "rejects.jsonl", encoding="utf-8") as file:
            for text in file:
                entry = json.loads(text)
                yield Reject(source=entry.pop("file"), **entry)

    def take(self, row_ids: Int64) -> Iterator[Row]:
        """Some of the rows.

        Args:
            row_ids: int64 [m], ascending.

        Raises:
            InputError: the table lacks one of them.
        """
        for batch, _ in self._taken(row_ids, None):
            yield from self._rows_of(batch)

    def raw(self, row_ids: Int64) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
        """Rows as they lay in the input: the exact bytes of the line for JSONL, else the parsed row.

        Rows that hold bytes (tables with pictures beside text) are not stored twice and come from the input again.

        Args:
            row_ids: int64 [m], ascending.

        Yields:
            (row_id, raw) in input order.

        Raises:
            InputError: the table lacks one of the rows; or the input has to be read again, and changed or lay in memory.
        """
        again: Iterator[tuple[int, bytes | Mapping[str, Any]]] | None = None
        for batch, ids in self._taken(row_ids, ["row_id", "raw", "is_line"]):
            raws, is_line = batch.column("raw").to_pylist(), batch.column("is_line").to_pylist()
            for row_id, raw, whole in zip(ids.tolist(), raws, is_line, strict=True):
                if raw is not None:
                    yield row_id, _raw_of(raw, whole)
                    continue
                again = again or self._read_again(row_ids)
                yield next(found for found in again if found[0] == row_id)

    def values(self, name: str) -> list[Any]:
        """A column of the data, for all rows: one of `Row.columns`, else a field of the row as it lay in the input.

        Returns:
            n values, None where a row has none.
        """
        found: list[Any] = []
        missing: list[int] = []
        for row in self:
            at = len(found)
            found.append(row.columns.get(name))
            if found[at] is None:
                if row.raw:
                    found[at] = as_mapping(row.raw).get(name)
                else:
                    missing.append(row.row_id)
        if missing and not any(value is not None for value in found):
            asked = np.asarray(missing, dtype=np.int64)
            for at, (_, raw) in zip(
                positions_of(asked, self.row_id, "the table of rows"), self.raw(asked), strict=True
            ):
                found[at] = as_mapping(raw).get(name)
        return found

    def _read_again(self, row_ids: Int64) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
        self.facts.require_unchanged()
        return read_raw(self.facts.opened_again(), row_ids.tolist())

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
            raise InputError(f"{path} cannot be read ({error}). Read the data anew with --restart.") from None

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

    def _rows_of(self, batch: pa.RecordBatch) -> Iterator[Row]:
        names = ("row_id", "source", "line", "raw", "is_line", "row")
        for row_id, source, line, raw, is_line, row in zip(*(batch.column(n).to_pylist() for n in names), strict=True):
            said = loads(row)
            messages = tuple(self._message(message) for message in said["messages"])
            whole: bytes | Mapping[str, Any] = {} if raw is None else _raw_of(raw, is_line)
            yield Row(
                row_id,
                messages,
                source.decode("utf-8", "surrogatepass"),
                line,
                whole,
                said["columns"],
                tuple(said["tools"]),
            )

    def _message(self, said: dict[str, Any]) -> Message:
        content, calls = said.get("content", ""), said.get("tool_calls", ())
        parts = content if isinstance(content, str) else tuple(self._part(part) for part in content)
        return Message(**(said | {"content": parts, "tool_calls": tuple(calls)}))

    def _part(self, part: str | list[Any]) -> Part:
        if isinstance(part, str):
            return Part("text", part)
        path, at, size = part
        data = None if at is None else self._pictures[at : at + size].tobytes()
        return Part("image", ImageRef(path, data))

    @cached_property
    def _pictures(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
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
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.json").unlink(missing_ok=True)  # comes last: a table without it is not whole
    counts = {"read": 0, "rejected": 0}
    with (
        atomic(folder / "rejects.jsonl", "w") as rejects,
        atomic(folder / "pictures.bin") as pictures,
        atomic(folder / "rows.arrow") as table,
    ):
        writer = _Writer(table, pictures)
        for row in source:
            counts["read"] += 1
            if isinstance(row, Reject):
                counts["rejected"] += 1
                rejects.write(json.dumps(reject_line(row)) + "\n")
            else:
                writer.add(row)
            if counts["read"] % BATCH_ROWS == 0:
                advance(BATCH_ROWS)
        advance(counts["read"] % BATCH_ROWS)
        writer.close()
    facts = RowFacts(
        source.description, source.format, source.kind, source.model_kind, source.files, tuple(source.identity()),
        _stamps(source), counts["read"], counts["rejected"], source.opened_with,
    )  # fmt: skip
    write_json(folder / "rows.json", dataclasses.asdict(facts))
    return RowTable(folder, facts)


def reject_line(row: Reject) -> dict[str, Any]:
    """A line of ``rejects.jsonl`` and ``rejected.jsonl``."""
    return {
        "file": row.source, "line": row.line, "row_id": row.row_id, "status": row.status, "field": row.field,
        "reason": row.reason,
    }  # fmt: skip


def _stamps(source: Source) -> dict[str, tuple[str, int, int]]:
    facts = {name: (path, path.stat()) for name, path in source.paths().items()}
    return {name: (str(path.resolve()), stat.st_size, stat.st_mtime_ns) for name, (path, stat) in facts.items()}


class _Writer:
    """Gathers rows into record batches."""

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
        raw = row.raw if isinstance(row.raw, bytes) else _text_of(row.raw)
        said = {"messages": [self._message(m) for m in row.messages], "tools": row.tools, "columns": row.columns}
        text = dumps(said).encode("utf-8", "surrogatepass")
        source = row.source.encode("utf-8", "surrogatepass")
        self.waiting.append((row.row_id, source, row.line, raw, isinstance(row.raw, bytes), text))
        self.bytes += len(text) + len(raw or b"")
        if len(self.waiting) == BATCH_ROWS or self.bytes >= BATCH_BYTES:
            self._flush()

    def _message(self, message: Message) -> dict[str, Any]:
        """What a message has beside its role that is not as it is by default."""
        said = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
        said = {name: value for name, value in said.items() if name == "role" or (value and value != ())}
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


def _raw_of(raw: bytes, is_line: bool) -> bytes | Mapping[str, Any]:
    return raw if is_line else loads(raw)
