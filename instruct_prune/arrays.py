"""Names for the types of arrays (each use says its shape), and small things that all rooms need: tables side by side, batches."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from instruct_prune.errors import InputError

T = TypeVar("T")
Int32 = NDArray[np.int32]


Int64 = NDArray[np.int64]


Float32 = NDArray[np.float32]


Bool = NDArray[np.bool_]


def positions_of(wanted: Int64, row_id: Int64, what: str) -> Int64:
    """int64 [m]: where each wanted row stands in a table: the one way in which two tables are put side by side.

    Args:
        wanted: int64 [m], row ids.
        row_id: int64 [n], the table's own row ids, ascending.
        what: the table, for the message.

    Raises:
        InputError: the table lacks one of the rows.
    """
    at = np.searchsorted(row_id, wanted)
    found = at < len(row_id)
    found[found] = row_id[at[found]] == wanted[found]
    if not found.all():
        raise InputError(
            f"{what} lacks row {int(wanted[~found][0])} (and {int((~found).sum()) - 1} more): it was made from other rows. "
            "Make it again."
        )
    return at.astype(np.int64)


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items, the last of what is left (``itertools.batched`` of Python 3.12)."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def let_go(array: NDArray[Any]) -> None:
    """Take the pages of a memory-mapped array that were read out of this process; they stay in the system's cache."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
