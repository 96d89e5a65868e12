"""Items as JSON on disk, for kinds of models that bring no store of their own: one value a row, memory-mapped.

A folder with ``rows.arrow`` (one line a row). An item is read when it is asked for; numbers about all rows are held in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.encode.item import Status, set_aside
from instruct_prune.errors import InputError
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Row
from instruct_prune.storage import replaced

ROWS_PER_GROUP = 1024


@dataclass(frozen=True)
class JsonItems:
    """Read-only view; ``items[i]`` is row i's item.

    Attributes:
        row_id: int64 [n].
        status_names: str [n], "ok", or "failed" where the row has no item.
        lengths: int32 [n], what each item costs in a batch.
        n_response: int32 [n].
    """

    folder: Path
    row_id: Int64
    status_names: NDArray[np.str_]
    lengths: Int32
    n_response: Int32
    table: Any = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> JsonItems:
        import pyarrow as pa

        with pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))) as file:
            table = file.read_all()
        return cls(
            folder=folder,
            row_id=table.column("row_id").to_numpy(),
            status_names=np.asarray(table.column("status").to_pylist(), dtype=np.str_),
            lengths=table.column("cost").to_numpy(),
            n_response=table.column("n_response").to_numpy(),
            table=table,
        )

    def __len__(self) -> int:
        return len(self.row_id)

    def __getitem__(self, i: int) -> Any:
        return json.loads(self.table.column("item")[i].as_py())

    @property
    def scorable(self) -> Bool:
        """bool [n]: the rows that have an item."""
        return np.asarray(self.status_names == Status.OK.value, dtype=np.bool_)

    @property
    def n_cut(self) -> Int32:
        return np.zeros(len(self), dtype=np.int32)

    def without(self, at: Int64) -> JsonItems:
        """The same, the rows at these positions set aside."""
        return replace(self, status_names=set_aside(self.status_names, at))

    def text_columns(self, *names: str) -> tuple[list[str], ...]:
        """Columns that are only needed at the end: "content_hash", "source", "line", "reason"."""
        return tuple(self.table.column(name).to_pylist() for name in names)

    def guess_losses(self, rows: Int64) -> Float32:
        """Empty: what guessing would cost is not known of items of any kind."""
        return np.empty(0, dtype=np.float32)


class Maker(Protocol):
    """Makes items; `Model` says what its methods do."""

    def item(self, row: Row) -> Any: ...
    def content(self, row: Row, item: Any) -> bytes: ...
    def cost(self, item: Any) -> int: ...
    def n_response(self, item: Any) -> int: ...


def write_json_items(
    folder: Path, rows: Iterable[Row], maker: Maker, advance: Callable[[int], None], strict: bool
) -> None:
    """Make every row's item and write it; ``rows.arrow`` comes into place when it is whole.

    Args:
        folder: where it goes.
        rows: in input order.
        maker: of their items.
        advance: called with a number of rows done.
        strict: stop at the first row without an item.

    Raises:
        InputError: an item is no JSON value, or ``strict`` and a row has none.
    """
    import pyarrow as pa

    text = ("status", "content_hash", "source", "reason", "item")
    schema = pa.schema(
        [("row_id", pa.int64()), ("line", pa.int64()), ("cost", pa.int32()), ("n_response", pa.int32())]
        + [(name, pa.string()) for name in text]
    )
    waiting = iter(rows)
    with replaced(folder / "rows.arrow") as temporary, pa.ipc.new_file(str(temporary), schema) as writer:
        while lines := list(_lines(islice(waiting, ROWS_PER_GROUP), maker, strict)):
            writer.write_table(pa.Table.from_pylist(lines, schema=schema))
            advance(len(lines))


def _lines(rows: Iterable[Row], maker: Maker, strict: bool) -> Iterator[dict[str, Any]]:
    for row in rows:
        line = {"row_id": row.row_id, "line": row.line, "source": row.source, "reason": "", "item": "null"}
        try:
            made = maker.item(row)
        except RowError as error:
            if strict:
                raise InputError(
                    f"{row.source}, line {row.line}: {error.reason}. Mend it, or run without --strict."
                ) from None
            nothing = {"status": Status.FAILED.value, "cost": 0, "n_response": 0, "content_hash": ""}
            yield line | nothing | {"reason": error.reason}
            continue
        try:
            written = json.dumps(made, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the item of {row.source}, line {row.line}, cannot be written as JSON ({error}). Make items of numbers, texts, "
                "lists and dictionaries, or give the model its own write_items and open_items."
            ) from None
        yield line | {
            "status": Status.OK.value,
            "cost": maker.cost(made),
            "n_response": maker.n_response(made),
            "content_hash": hashlib.blake2b(maker.content(row, made), digest_size=16).hexdigest(),
            "item": written,
        }
