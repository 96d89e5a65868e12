"""Rows that a Python program holds: a list of dictionaries."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from instruct_prune.rows.exact import hash_of_rows
from instruct_prune.rows.pixels import BROKEN
from instruct_prune.rows.reader import MOST_NESTED, Reader, RowData, RowError, check_depth, check_encodable, named_type

PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


@dataclass(frozen=True)
class MemoryRows(Reader):
    """A list of mappings.

    Attributes:
        table: the rows.
        name: what people call it.
    """

    table: Sequence[Mapping[str, Any]] = field(repr=False)
    name: str = "rows in memory"
    kind: str = "memory"

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        for position, row in enumerate(self.table, 1):
            yield position, _checked(row)

    def identity(self) -> list[dict[str, Any]]:
        return [{"path": self.name, "sha256": self._sha256}]

    @cached_property
    def _sha256(self) -> str:
        return hash_of_rows(_plain(row, _hashed) if isinstance(row, Mapping) else {"": str(row)} for row in self.table)


def _checked(row: object) -> RowData | RowError:
    if not isinstance(row, Mapping):
        return RowError(f"a row must be a dictionary, this is {named_type(row)}")
    if not all(isinstance(name, str) for name in row):
        return RowError("a key of the row is no text")
    try:
        plain = _plain(row, _as_png)
        check_encodable(plain)
        check_depth(plain, MOST_NESTED + 1)
    except RowError as error:
        return error
    except (ValueError, RecursionError):
        return RowError("not usable: nested too deeply")
    return plain  # type: ignore[no-any-return]


def _plain(value: Any, picture: Callable[[Any], Any]) -> Any:
    """Dictionaries, lists and numbers as JSON has them; pictures of Pillow as ``picture`` makes them."""
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): _plain(part, picture) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, picture) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist(), picture)
    if isinstance(value, bytearray):
        return bytes(value)
    pillow = sys.modules.get("PIL.Image")  # who has such a picture has imported it
    return picture(value) if pillow is not None and isinstance(value, pillow.Image) else value


def _as_png(image: Any) -> dict[str, Any]:
    """A picture as ``datasets`` stores it, without a loss where PNG has its colours.

    Raises:
        RowError: it cannot be read.
    """
    try:
        image.load()
        shown = image if image.mode in PNG_MODES else image.convert("RGB")
        held = io.BytesIO()
        shown.save(held, "PNG", compress_level=1)
    except BROKEN as error:
        raise RowError(f"a picture cannot be read: {error}") from None
    return {"bytes": held.getvalue(), "path": None}


def _hashed(image: Any) -> Any:
    """What tells a picture from another."""
    try:
        return [image.mode, image.size, hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()]
    except BROKEN as error:
        return str(error)
