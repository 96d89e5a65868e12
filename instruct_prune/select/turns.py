"""Round-robin: the queries of a target take rows in turn, each the row nearest to it that is still to be had."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.select.target import NOWHERE, Target

LISTED = 2**23
"""Candidates that all queries together keep, at most: 8 bytes each."""
SPARE = 64
"""Candidates that a query keeps at least."""
LOW = np.uint64(2**32 - 1)
STEP = 32
"""Candidates that are looked at together."""

UInt64 = NDArray[np.uint64]


@dataclass(frozen=True)
class Taken:
    """Which query took a row, one entry for each row of the pool.

    Attributes:
        query: int64 [n], row id of the query in its file, -1 for rows that no query took (or a task as a whole).
        task: int32 [n], its task, -1 likewise.
        turn: int32 [n], how many rows were taken before, -1 likewise.
        similarity: float32 [n], with the query that took the row; of other rows with the nearest query. NaN for rows that were
            not to be had, or could not be measured.
    """

    query: Int64
    task: Int32
    turn: Int32
    similarity: Float32


class Turns:
    """Whose turn it is, and who took what: one for a selection, shared by its strata as the generator is.

    The turn goes on from one stratum to the next, so that of a task every query is served before any is served twice.

    Args:
        target: n rows and q queries.
        row_id: int64 [n]; of equally near rows the lower comes first.
    """

    def __init__(self, target: Target, row_id: Int64) -> None:
        n = len(row_id)
        self.target, self.row_id = target, row_id
        self.taken = Taken(
            query=np.full(n, -1, dtype=np.int64),
            task=np.full(n, -1, dtype=np.int32),
            turn=np.full(n, -1, dtype=np.int32),
            similarity=np.full(n, np.nan, dtype=np.float32),
        )
        self._own = [np.flatnonzero(target.task == t) for t in range(len(target.tasks))]
        self._number = 0

    def _whose(self) -> int:
        """The query whose turn it is: tasks take turns, and in each task its queries do."""
        round_, task = divmod(self._number, len(self._own))
        return int(self._own[task][round_ % len(self._own[task])])

    def spend(self, rows: Int64, cost: Int64, open_rows: Bool, budget: int) -> Int64:
        """Let queries take rows in turn for as long as one fits.

        Args:
            rows: int64 [m], positions in the pool.
            cost: int64 [m], what each takes from the budget.
            open_rows: bool [m], those that may be taken.
            budget: what may be spent.

        Returns:
            int64 [k]: places in ``rows`` of those that were taken, in order.
        """
        lists = Nearest(self.target.of_rows(rows), self.row_id[rows], cost, open_rows, budget)
        found: list[int] = []
        while (taken := lists.take(query := self._whose())) is not None:
            at, similarity = taken
            row = rows[at]
            self.taken.query[row], self.taken.task[row] = self.target.row_id[query], self.target.task[query]
            self.taken.turn[row], self.taken.similarity[row] = self._number, similarity
            self._number += 1
            found.append(at)
        others = self.taken.turn[rows] < 0
        self.taken.similarity[rows[others]] = np.fmax(self.taken.similarity[rows[others]], lists.nearest[others])
        return np.asarray(found, dtype=np.int64)


class Nearest:
    """The rows of each query from the nearest on, for as long as they are to be had; memory is a list a query.

    Rows may only ever become unavailable: a query goes through its list once. When one is at its end, all lists are made
    anew from the rows that are left, in one pass over them.

    Args:
        target: m rows and q queries.
        tie: int64 [m]; of equally near rows the lower comes first.
        cost: int64 [m].
        free: bool [m], rows that may be taken; changed as they are.
        left: of the budget.

    Attributes:
        nearest: float32 [m], the similarity of each row to the query nearest to it; NaN where it was not looked at.
    """

    def __init__(self, target: Target, tie: Int64, cost: Int64, free: Bool, left: int) -> None:
        self._target, self._cost, self._free, self._left = target, cost, free, left
        self._by_tie = np.argsort(tie, kind="stable")
        self._place = np.empty(len(tie), dtype=np.uint64)
        self._place[self._by_tie] = LOW - np.arange(len(tie), dtype=np.uint64)
        self._lists: UInt64 = np.empty((len(target), 0), dtype=np.uint64)
        self._next = [0] * len(target)
        self.nearest = np.full(len(tie), np.nan, dtype=np.float32)

    def take(self, query: int) -> tuple[int, float] | None:
        """The row that a query takes (its place) and their similarity; None where no row is left that fits."""
        while (key := self._best(query)) is None:
            if not self._fill():
                return None
        row = int(self._rows(key))
        self._free[row] = False
        self._left -= int(self._cost[row])
        return row, float(_values(key))

    def _best(self, query: int) -> np.uint64 | None:
        keys = self._lists[query]
        while self._next[query] < len(keys):
            some = keys[self._next[query] : self._next[query] + STEP]
            rows = self._rows(some)
            good = np.flatnonzero(self._free[rows] & (self._cost[rows] <= self._left))
            self._next[query] += int(good[0]) if len(good) else len(some)
            if len(good):
                found: np.uint64 = keys[self._next[query]]
                return found
        return None

    def _rows(self, keys: Any) -> Any:
        return self._by_tie[LOW.astype(np.int64) - (keys & LOW).astype(np.int64)]

    def _fill(self) -> bool:
        """Make all lists anew; False where no row is left."""
        rows = np.flatnonzero(self._free & (self._cost <= self._left))
        if not len(rows):
            return False
        q = len(self._target)
        wanted = self._left // max(1, int(self._cost[rows].min()))
        length = min(len(rows), max(SPARE, min(wanted, LISTED // q)))
        best, columns = np.empty((q, 0), dtype=np.uint64), 0
        waiting: list[UInt64] = []
        for block, value in self._target.of_rows(rows).similarity(np.arange(q)):
            self.nearest[rows[block]] = np.fmax(self.nearest[rows[block]], _known(value.max(axis=0)))
            waiting.append(_keys(value, self._place[rows[block]]))
            columns += value.shape[1]
            if columns >= length:
                best, waiting, columns = _largest([best, *waiting], length), [], 0
        self._lists = np.ascontiguousarray(np.sort(_largest([best, *waiting], length), axis=1)[:, ::-1])
        self._next = [0] * q
        return True


def _keys(value: Float32, place: UInt64) -> UInt64:
    """Integers that order as the values do; of equal values the greater place is the greater."""
    bits = (value + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (bits.astype(np.uint64) << np.uint64(32)) | place


def _values(keys: Any) -> Any:
    """What `_keys` were made of; NaN where that was nowhere."""
    bits = np.asarray(keys >> np.uint64(32)).astype(np.uint32)
    found = np.where(bits >> 31, bits & np.uint32(0x7FFFFFFF), ~bits).astype(np.uint32).view(np.float32)
    return _known(found)


def _known(values: Float32) -> Float32:
    return np.where(values == NOWHERE, np.float32(np.nan), values)


def _largest(parts: list[UInt64], length: int) -> UInt64:
    """uint64 [q, at most length]: the largest keys of each query, in no order."""
    keys = np.concatenate(parts, axis=1)
    if keys.shape[1] <= length:
        return keys
    return np.partition(keys, keys.shape[1] - length, axis=1)[:, -length:]
