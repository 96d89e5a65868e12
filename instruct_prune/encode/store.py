"""Token ids and masks of a whole dataset on disk, memory-mapped: tokenized once, read by every stage and process.

A store is a folder with ``ids.bin`` (int32), ``mask.bin`` (uint8, 1 = scored token) and ``rows.parquet`` (one line a
row). Memory while writing does not grow with the number of rows; a reader holds 37 bytes a row. Of rows that show pictures,
it also has the same row without them, and where they are.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Int32, Int64
from instruct_prune.encode.batching import shared_prefixes
from instruct_prune.encode.item import Encoded, PicturedTokens, Status, Tokens
from instruct_prune.rows.row import ImageRef
from instruct_prune.storage import atomic, make_folder, replaced, write_parquet

ROWS_PER_GROUP = 8192
STATUSES = tuple(status.value for status in Status)
BLIND = "blind"
"""Folder of the tokens without pictures; a row without any has none there."""


@dataclass(frozen=True)
class TokenStore:
    """Read-only view of a store; ``store[i]`` is row i's Tokens.

    Attributes:
        row_id: int64 [n].
        offset: int64 [n + 1]; row i's tokens are ``offset[i]:offset[i + 1]``.
        n_response: int32 [n].
        first_target: int32 [n], position of the first response token.
        n_cut: int32 [n].
        status: int8 [n], an index into STATUSES.
    """

    folder: Path
    row_id: Int64
    offset: Int64
    n_response: Int32
    first_target: Int32
    n_cut: Int32
    status: np.ndarray[Any, np.dtype[np.int8]]
    ids: Int32 = field(repr=False)
    mask: Bool = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> TokenStore:
        import pyarrow.parquet as pq

        names = ["row_id", "n_tokens", "n_response", "first_target", "n_cut", "status"]
        table = pq.read_table(folder / "rows.parquet", columns=names)
        columns = {name: table.column(name).to_numpy() for name in table.column_names}
        offset = np.zeros(len(table) + 1, dtype=np.int64)
        np.cumsum(columns["n_tokens"], out=offset[1:])
        empty = not offset[-1]  # an empty file cannot be mapped
        return cls(
            folder=folder,
            row_id=columns["row_id"],
            offset=offset,
            n_response=columns["n_response"],
            first_target=columns["first_target"],
            n_cut=columns["n_cut"],
            status=columns["status"],
            ids=np.zeros(0, np.int32) if empty else np.memmap(folder / "ids.bin", dtype=np.int32, mode="r"),
            mask=np.zeros(0, np.bool_) if empty else np.memmap(folder / "mask.bin", dtype=np.bool_, mode="r"),
        )

    def __len__(self) -> int:
        return len(self.row_id)

    def __getitem__(self, i: int) -> Tokens:
        piece = slice(self.offset[i], self.offset[i + 1])
        return Tokens(np.asarray(self.ids[piece]), np.asarray(self.mask[piece]))

    def without(self, at: Int64) -> TokenStore:
        """The same, the rows at these positions set aside."""
        status = self.status.copy()
        status[at] = STATUSES.index(Status.SET_ASIDE)
        return replace(self, status=status)

    @property
    def lengths(self) -> Int32:
        return np.diff(self.offset).astype(np.int32)

    @property
    def scorable(self) -> Bool:
        """bool [n]: rows whose status allows a score."""
        return np.isin(self.status, [i for i, name in enumerate(STATUSES) if Status(name).scored])

    @property
    def status_names(self) -> np.ndarray[Any, np.dtype[np.str_]]:
        names: np.ndarray[Any, np.dtype[np.str_]] = np.asarray(STATUSES, dtype=np.str_)
        return names.take(self.status)

    def shared_prefixes(self, rows: Int64) -> tuple[Int32, tuple[Int32, ...]]:
        """For each of the rows, which beginning it shares with others (an index or -1), and the beginnings."""
        return shared_prefixes(self.ids, self.offset, rows, self.first_target[rows])

    def text_columns(self, *names: str) -> tuple[list[str], ...]:
        """Columns that are only needed at the end: "content_hash", "source", "reason"."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / "rows.parquet", columns=list(names))
        return tuple(table.column(name).to_pylist() for name in names)

    def guess_losses(self, rows: Int64) -> np.ndarray[Any, np.dtype[np.float32]]:
        """float32 [len(rows)]: mean loss of each row when its response tokens are guessed by their frequency.

        A subnet that is no better than this carries no signal about the text.
        """
        counts = np.zeros(1, dtype=np.int64)
        for ids in self._responses(rows):
            found = np.bincount(ids)
            if len(found) > len(counts):
                found[: len(counts)] += counts
                counts = found
            else:
                counts[: len(found)] += found
        surprise = -np.log(np.maximum(counts, 1) / max(1, counts.sum()))
        return np.asarray([surprise[ids].mean() for ids in self._responses(rows)], dtype=np.float32)

    def _responses(self, rows: Int64) -> Iterator[Int32]:
        for i in rows:
            tokens = self[int(i)]
            yield tokens.ids[tokens.response_mask]


def write_store(folder: Path, encoded: Iterable[tuple[Encoded, str, int]]) -> TokenStore:
    """Write (encoded row, source, line) triples in the order given and open the result.

    ``rows.parquet`` is renamed into place last: a store without it is unfinished.
    """
    import pyarrow as pa

    counts = [(name, pa.int32()) for name in ("n_tokens", "n_response", "first_target", "n_cut")]
    origin = [("line", pa.int64()), ("source", pa.dictionary(pa.int32(), pa.string())), ("reason", pa.string())]
    schema = pa.schema([("row_id", pa.int64()), *counts, ("status", pa.int8()), ("content_hash", pa.string()), *origin])
    waiting = iter(encoded)
    with _writing(folder, schema) as (writer, ids, mask):
        while lines := [_line(*one, ids, mask) for one in islice(waiting, ROWS_PER_GROUP)]:
            columns = zip(zip(*lines, strict=True), schema.types, strict=True)
            arrays = [pa.array(column, type=kind) for column, kind in columns]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return TokenStore.open(folder)


def join_stores(folder: Path, parts: Sequence[Path]) -> None:
    """Put stores one behind the other: what `write_store` makes of all their rows."""
    import pyarrow.parquet as pq

    with _writing(folder, pq.read_schema(parts[0] / "rows.parquet")) as (writer, ids, mask):
        for part in parts:
            for name, whole in (("ids.bin", ids), ("mask.bin", mask)):
                with open(part / name, "rb") as file:
                    shutil.copyfileobj(file, whole, 1 << 20)
            with pq.ParquetFile(part / "rows.parquet") as rows:
                for group in range(rows.num_row_groups):
                    writer.write_table(rows.read_row_group(group))


@contextlib.contextmanager
def _writing(folder: Path, schema: Any) -> Iterator[tuple[Any, IO[bytes], IO[bytes]]]:
    """Writers of a store's files: of rows.parquet, ids and mask."""
    import pyarrow.parquet as pq

    (folder / "rows.parquet").unlink(missing_ok=True)
    with (
        replaced(folder / "rows.parquet") as temporary,
        atomic(folder / "ids.bin") as ids,
        atomic(folder / "mask.bin") as mask,
        pq.ParquetWriter(temporary, schema) as writer,
    ):
        yield writer, ids, mask


def _line(row: Encoded, source: str, line: int, ids: IO[bytes], mask: IO[bytes]) -> tuple[Any, ...]:
    """Write a row's tokens; what ``rows.parquet`` says of it, in the order of its columns."""
    length = len(row.input_ids) if row.status.scored else 0
    if length:
        ids.write(np.ascontiguousarray(row.input_ids, dtype=np.int32).data)
        mask.write(np.ascontiguousarray(row.response_mask, dtype=np.bool_).data)
    n_response = int(row.response_mask.sum()) if length else 0
    first = int(row.response_mask.argmax()) if length else 0
    status = STATUSES.index(row.status.value)
    counts = (row.row_id, length, n_response, first, row.n_cut, status)
    return (*counts, row.content_hash, line, source, row.reason)


@dataclass(frozen=True)
class PicturedStore(TokenStore):
    """A `TokenStore` whose rows show pictures. Beside its files lie ``pictures.parquet`` (one line a picture), ``pictures.bin``
    (those that came inside a table), ``asked.parquet`` (what the processor is asked for, a text a row) and the folder ``blind``.

    Attributes:
        first: int64 [n + 1]; row i shows the pictures ``first[i]:first[i + 1]``.
        pictures: pyarrow table: path, at, size.
        asked: pyarrow strings [n]; "" for rows without pictures.
        blind: the rows without their pictures.
    """

    first: Int64 = field(kw_only=True)
    pictures: Any = field(repr=False, kw_only=True)
    asked: Any = field(repr=False, kw_only=True)
    content: NDArray[np.uint8] = field(repr=False, kw_only=True)
    blind: TokenStore = field(kw_only=True)

    @classmethod
    def open(cls, folder: Path) -> PicturedStore:
        import pyarrow.parquet as pq

        table, asked = pq.read_table(folder / "pictures.parquet"), pq.read_table(folder / "asked.parquet")
        first = np.zeros(len(asked) + 1, dtype=np.int64)
        np.cumsum(asked.column("pictures").to_numpy(), out=first[1:])
        blob = folder / "pictures.bin"
        return cls(
            **vars(TokenStore.open(folder)),
            first=first,
            pictures=table.combine_chunks(),
            asked=asked.column("asked").combine_chunks(),
            content=np.memmap(blob, dtype=np.uint8, mode="r") if blob.stat().st_size else np.zeros(0, np.uint8),
            blind=TokenStore.open(folder / BLIND),
        )

    def __getitem__(self, i: int) -> Tokens:
        own = super().__getitem__(i)
        if self.first[i] == self.first[i + 1]:
            return own
        shown = tuple(self._picture(j) for j in range(self.first[i], self.first[i + 1]))
        key = f"{self.folder}:{i}"
        return PicturedTokens(own.ids, own.response_mask, shown, self.asked[i].as_py(), self.blind[i], key)

    def _picture(self, j: int) -> ImageRef:
        path, at, size = (self.pictures.column(name)[j].as_py() for name in ("path", "at", "size"))
        return ImageRef(path, self.content[at : at + size].tobytes() if size else None)


def write_pictured(folder: Path, encoded: Iterable[tuple[Encoded, str, int]]) -> None:
    """Write all but the folder ``blind``, of what `write_store` takes; ``rows.parquet`` comes into place last."""
    import pyarrow as pa

    shown: dict[str, list[Any]] = {"path": [], "at": [], "size": []}
    asked: dict[str, list[Any]] = {"pictures": [], "asked": []}
    make_folder(folder)
    (folder / "rows.parquet").unlink(missing_ok=True)
    with atomic(folder / "pictures.bin") as blob:

        def each() -> Iterator[tuple[Encoded, str, int]]:
            for row, source, line in encoded:
                pictures = () if row.item is None else row.item.pictures
                for picture in pictures:
                    shown["path"].append(picture.path)
                    shown["at"].append(blob.tell())
                    shown["size"].append(len(picture.data or b""))
                    blob.write(picture.data or b"")
                asked["pictures"].append(len(pictures))
                asked["asked"].append("" if row.item is None else row.item.asked)
                yield row, source, line

        write_store(folder, each())
    kinds = {"path": pa.string(), "at": pa.int64(), "size": pa.int64(), "pictures": pa.int64(), "asked": pa.string()}
    for name, columns in (("pictures", shown), ("asked", asked)):
        arrays = {column: pa.array(values, kinds[column]) for column, values in columns.items()}
        write_parquet(folder / f"{name}.parquet", pa.table(arrays))
