"""The pictures of a run, decoded once to know that they can be: an index on disk, read by every stage and process.

A folder with ``rows.parquet`` (one line a picture) and ``pictures.bin`` (encoded bytes of pictures that came inside a
table; files stay where they are).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.encode.item import LabelledImage, Status, set_aside
from instruct_prune.errors import InputError
from instruct_prune.rows.pixels import decode
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Row
from instruct_prune.storage import replaced

ROWS_PER_GROUP = 2048


@dataclass(frozen=True)
class PictureStore:
    """Read-only view; ``store[i]`` is picture i, not decoded yet. What `merge` asks of a token store, it has too.

    Attributes:
        row_id: int64 [n].
        status_names: str [n].
        labels: int32 [n], an index into ``classes``.
        classes: class names, sorted.
        paths: pyarrow strings [n].
        short: int64 [n], the shorter side in pixels; 0 where the picture cannot be used.
        offset, size: int64 [n], where the bytes are in ``pictures.bin``; size 0 for files.
    """

    folder: Path
    row_id: Int64
    status_names: NDArray[np.str_]
    labels: Int32
    classes: tuple[str, ...]
    paths: Any = field(repr=False)
    short: Int64 = field(repr=False)
    offset: Int64 = field(repr=False)
    size: Int64 = field(repr=False)
    content: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> PictureStore:
        import pyarrow.parquet as pq

        columns = ["row_id", "status", "label", "path", "short", "offset", "size"]
        table = pq.read_table(folder / "rows.parquet", columns=columns)
        status = np.asarray(table.column("status").to_pylist(), dtype=np.str_)
        names = table.column("label").to_pylist()
        usable = np.asarray([Status(s).scored for s in status.tolist()], dtype=bool)
        classes = tuple(sorted({name for name, ok in zip(names, usable, strict=True) if ok}))
        number = {name: i for i, name in enumerate(classes)}
        blob = folder / "pictures.bin"
        empty = not blob.exists() or not blob.stat().st_size
        return cls(
            folder=folder,
            row_id=table.column("row_id").to_numpy(),
            status_names=status,
            labels=np.asarray([number[n] if ok else -1 for n, ok in zip(names, usable, strict=True)], dtype=np.int32),
            classes=classes,
            paths=table.column("path").combine_chunks(),
            short=table.column("short").to_numpy(),
            offset=table.column("offset").to_numpy(),
            size=table.column("size").to_numpy(),
            content=np.zeros(0, np.uint8) if empty else np.memmap(blob, dtype=np.uint8, mode="r"),
        )

    def without(self, at: Int64) -> PictureStore:
        """The same, the pictures at these positions set aside."""
        return replace(self, status_names=set_aside(self.status_names, at))

    def __len__(self) -> int:
        return len(self.row_id)

    def __getitem__(self, i: int) -> LabelledImage:
        return LabelledImage(int(self.labels[i]), lambda: self._image(i))

    def encoded(self, i: int) -> bytes:
        """The picture's bytes, as they came.

        Raises:
            InputError: its file is gone or cannot be read.
        """
        if self.size[i]:
            return self.content[self.offset[i] : self.offset[i] + self.size[i]].tobytes()
        path = Path(self.paths[i].as_py())
        try:
            return path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} could be read when the run began and cannot now ({error.strerror}).") from None

    def _image(self, i: int) -> Any:
        try:
            return decode(self.encoded(i))
        except RowError as error:
            raise InputError(f"{self.paths[i]} was an image when the run began; now {error.reason}.") from None

    @property
    def scorable(self) -> Bool:
        """bool [n]: the pictures that could be decoded."""
        return self.labels >= 0

    @property
    def typical_short_side(self) -> float:
        """Median over the pictures that could be decoded; 0 where there are none."""
        return float(np.median(self.short[self.scorable])) if self.scorable.any() else 0.0

    @property
    def lengths(self) -> Int32:
        return np.ones(len(self), dtype=np.int32)

    @property
    def n_response(self) -> Int32:
        return np.ones(len(self), dtype=np.int32)

    @property
    def n_cut(self) -> Int32:
        return np.zeros(len(self), dtype=np.int32)

    def text_columns(self, *names: str) -> tuple[list[str], ...]:
        """Columns that are only needed at the end: "content_hash", "source", "line", "reason", "path", "label"."""
        import pyarrow.parquet as pq

        table = pq.read_table(self.folder / "rows.parquet", columns=list(names))
        return tuple(table.column(name).to_pylist() for name in names)

    def guess_losses(self, rows: Int64) -> Float32:
        """Empty: a softmax of inverse distances has no scale, so no loss of guessing says that a subnet has collapsed."""
        return np.empty(0, dtype=np.float32)


def write_pictures(
    folder: Path, rows: Iterable[Row], advance: Callable[[int], None] = lambda rows: None, strict: bool = False
) -> None:
    """Decode every picture once and list it with its status. ``rows.parquet`` comes into place last.

    Raises:
        InputError: ``strict``, and a picture cannot be used.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ("status", "label", "path", "content_hash", "source", "reason")
    numbers = ("row_id", "short", "offset", "size", "line")
    schema = pa.schema([(n, pa.int64()) for n in numbers] + [(n, pa.string()) for n in text])
    target = folder / "rows.parquet"
    target.unlink(missing_ok=True)
    waiting = iter(rows)
    with (
        replaced(target) as temporary,
        replaced(folder / "pictures.bin") as beside,
        open(beside, "wb") as blob,
        pq.ParquetWriter(temporary, schema) as writer,
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,  # Pillow decodes outside the GIL
    ):
        while group := list(pool.map(_check, islice(waiting, ROWS_PER_GROUP))):
            for line, held in group:
                if strict and line["reason"]:
                    raise InputError(
                        f"{line['source']}, line {line['line']}: {line['reason']}. Mend it, or run without --strict."
                    )
                line |= {"offset": blob.tell(), "size": len(held)}
                blob.write(held)
            writer.write_table(pa.Table.from_pylist([line for line, _ in group], schema=schema))
            advance(len(group))


def _check(row: Row) -> tuple[dict[str, Any], bytes]:
    """What the index says of a row's picture after a look at it, and the bytes of one that lay in a table."""
    picture, label = row.messages[0].images[0], row.messages[-1].text
    line = {"row_id": row.row_id, "line": row.line, "source": row.source, "label": label, "path": picture.path}
    line |= {"content_hash": "", "short": 0, "status": Status.FAILED.value, "reason": ""}
    try:
        data = picture.read()
        line["content_hash"] = hashlib.blake2b(data + b"\0" + label.encode(), digest_size=16).hexdigest()
        line |= {"short": min(decode(data).size), "status": Status.OK.value}
        return line, picture.data or b""
    except OSError as error:
        reason = f"the file cannot be read: {error.strerror}"
    except RowError as error:
        reason = error.reason
    line["reason"] = reason if picture.path == row.source else f"{picture.path}: {reason}"
    return line, b""
