"""Queries that steer a selection: what the model should become good at, as vectors beside those of the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32, Int32, Int64, let_go
from instruct_prune.geometry import BLOCK, blocks

STEPS = np.float32(2**16)
"""Cosines are told apart to one part in this; float16 vectors have errors many times as large."""
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
        asked = np.asarray(self.queries[queries], dtype=np.float32)
        found = np.asarray(self.vectors[rows], dtype=np.float32)
        let_go(self.vectors)
        cosine: Float32 = (asked @ found.T) / (_lengths(asked)[:, None] * _lengths(found))
        # The last bits of a product depend on the place of a row in its block; equal rows must be equally near.
        cosine *= STEPS
        np.rint(cosine, out=cosine)
        cosine /= STEPS
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


def _lengths(vectors: Float32) -> Float32:
    """float32 [n], 1 for vectors of length 0."""
    length: Float32 = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    return np.where(length == 0, np.float32(1), length)


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
        for block in blocks(len(self.at), BLOCK):
            yield block, np.nan_to_num(self.near(queries, self.at[block]), nan=float(NOWHERE))
