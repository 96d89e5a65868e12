"""Queries that steer a selection: what the model should become good at, as vectors beside those of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.geometry import blocks

SPARE = 64
"""Candidates a query keeps beyond four times what it will be served."""
NOWHERE = np.finfo(np.float32).min
"""Below every number: the similarity of a row that could not be measured."""


class Similarity(Protocol):
    """How near queries are to rows of the pool."""

    def __call__(self, queries: Int64, rows: Int64) -> Float32:
        """float32 [queries, rows]; NaN for rows that could not be measured."""


@dataclass(frozen=True)
class Cosine:
    """The cosine of vectors.

    Attributes:
        queries: float [q, d].
        vectors: float16 or float32 [m, d], possibly memory-mapped.
    """

    queries: Float32
    vectors: NDArray[Any] = field(repr=False)

    def __post_init__(self) -> None:
        if self.queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries have {self.queries.shape[1]} numbers, the pool's vectors {self.vectors.shape[1]}"
            )

    def __call__(self, queries: Int64, rows: Int64) -> Float32:
        cosine: Float32 = _unit(self.queries[queries]) @ _unit(self.vectors[rows]).T
        return cosine


@dataclass(frozen=True)
class Values:
    """One number for each row of the pool and each task, where tasks have no queries to compare with.

    Attributes:
        values: float32 [tasks, m], higher = sooner taken.
    """

    values: Float32 = field(repr=False)

    def __call__(self, queries: Int64, rows: Int64) -> Float32:
        found: Float32 = self.values[np.ix_(queries, rows)]
        return found


def _unit(vectors: NDArray[Any]) -> Float32:
    found = np.asarray(vectors, dtype=np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    unit: Float32 = np.divide(found, length, out=np.zeros_like(found), where=length != 0)
    return unit


@dataclass(frozen=True)
class Target:
    """Query rows of one or several tasks, and how near rows of the pool are to them.

    Attributes:
        tasks: names.
        task: int32 [q], the task of each query, an index into ``tasks``.
        row_id: int64 [q], the query's row in its file; -1 where a task is compared as a whole.
        near: of q queries and m rows.
        at: int64 [n], where each row of the pool stands among the m rows.
    """

    tasks: tuple[str, ...]
    task: Int32
    row_id: Int64
    near: Similarity = field(repr=False)
    at: Int64 = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.task) != len(self.row_id):
            raise ValueError(f"{len(self.task)} tasks and {len(self.row_id)} row ids differ in number")

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.task)

    def of_rows(self, rows: Int64) -> Target:
        """The same queries for some rows of the pool (positions), in this order."""
        return replace(self, at=self.at[rows])

    def similarity(self, queries: Int64) -> Iterator[tuple[slice, Float32]]:
        """Blocks of the pool, a slice of n, with how near some queries are to its rows, float32 [queries, rows]."""
        for block in blocks(len(self.at)):
            yield block, np.nan_to_num(self.near(queries, self.at[block]), nan=float(NOWHERE))


class Nearest:
    """The rows of each query from the nearest on, for as long as they are allowed; memory is a short list a query.

    Rows may only ever be disallowed, never allowed again: a query goes through its list once.

    Args:
        target: n rows and q queries.
        tie: int64 [n]; of equally near rows the lower comes first.
        served: rows that a query will be asked for, about.
    """

    def __init__(self, target: Target, tie: Int64, served: int) -> None:
        self._target, self._tie = target, tie
        self._length = min(len(target.at), 4 * served + SPARE)
        self._lists = self._first_lists()
        self._next = np.zeros(len(target), dtype=np.int64)

    def _first_lists(self) -> list[tuple[Int64, Float32]]:
        q = len(self._target)
        rows, values = np.empty((q, 0), dtype=np.int64), np.empty((q, 0), dtype=np.float32)
        for block, cosine in self._target.similarity(np.arange(q)):
            rows = np.hstack([rows, np.broadcast_to(np.arange(block.start, block.stop), cosine.shape)])
            values = np.hstack([values, cosine])
            order = np.lexsort((self._tie[rows], -values), axis=1)[:, : self._length]
            rows, values = np.take_along_axis(rows, order, axis=1), np.take_along_axis(values, order, axis=1)
        return list(zip(rows, values, strict=True))

    def best(self, query: int, allowed: Bool) -> tuple[int, float] | None:
        """The nearest allowed row (a position) and its cosine; None where no row is allowed any more."""
        while True:
            rows, values = self._lists[query]
            while self._next[query] < len(rows):
                at = self._next[query]
                if allowed[rows[at]]:
                    return int(rows[at]), float(values[at])
                self._next[query] += 1
            if not allowed.any():
                return None
            self._lists[query] = self._rest(query, allowed)
            self._next[query] = 0

    def _rest(self, query: int, allowed: Bool) -> tuple[Int64, Float32]:
        """All rows that are still allowed, for a query that has gone through its list."""
        found = np.concatenate([cosine[0] for _, cosine in self._target.similarity(np.asarray([query]))])
        rows = np.flatnonzero(allowed)
        order = np.lexsort((self._tie[rows], -found[rows]))
        return rows[order], found[rows[order]]


def turns(target: Target) -> Iterator[int]:
    """Queries in the order in which they are served, without end: tasks take turns, and in each task its queries do."""
    own = [np.flatnonzero(target.task == t) for t in range(len(target.tasks))]
    at = 0
    while True:
        for queries in own:
            yield int(queries[at % len(queries)])
        at += 1
