"""Rows that a Python program holds: a list of dictionaries."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from instruct_prune.rows.exact import hash_of_rows
from instruct_prune.rows.reader import MOST_NESTED, Reader, RowData, RowError, check_depth, check_encodable, named_type


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
        return hash_of_rows(_plain(self.table))


def _checked(row: object) -> RowData | RowError:
    if not isinstance(row, Mapping):
        return RowError(f"a row must be a dictionary, this is {named_type(row)}")
    if not all(isinstance(name, str) for name in row):
        return RowError("a key of the row is no text")
    try:
        plain = _plain(row)
        check_encodable(plain)
        check_depth(plain, MOST_NESTED + 1)
    except RowError as error:
        return error
    except (ValueError, RecursionError):
        return RowError("not usable: nested too deeply")
    return plain  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    """Dictionaries, lists and numbers as JSON has them; pictures as ``datasets`` stores them."""
    if isinstance(value, Mapping):
        return {name if isinstance(name, str) else str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, bytearray):
        return bytes(value)
    pillow = sys.modules.get("PIL.Image")  # who has such a picture has imported it
    return _picture(value) if pillow is not None and isinstance(value, pillow.Image) else value


def _picture(image: Any) -> dict[str, Any]:
    """A picture of Pillow as its bytes, without a loss."""
    held = io.BytesIO()
    try:
        image.save(held, "PNG")
    except OSError:  # colours that PNG has not, such as CMYK
        held = io.BytesIO()
        image.save(held, "TIFF")
    return {"bytes": held.getvalue(), "path": None}
