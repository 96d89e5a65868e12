"""Items of rows that show pictures: tokens, the same row without its pictures, and where its pictures are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Int64
from instruct_prune.encode.item import Encoded, PicturedTokens, Tokens
from instruct_prune.encode.store import TokenStore, write_store
from instruct_prune.rows.row import ImageRef
from instruct_prune.storage import atomic, make_folder, write_parquet

BLIND = "blind"
"""Folder of the tokens without pictures; a row without any has none there."""


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
