"""Which rows' texts go into the page when there are more than it can carry."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.report.aim import Query
from instruct_prune.report.numbers import DuplicateGroup, Group
from instruct_prune.report.pools import Boundary
from instruct_prune.report.tables import Tables

TOOK = 3
"""Rows of each query that are shown with their text."""


def pick_rows(
    tables: Tables,
    boundary: Boundary | None,
    groups: Iterable[Group],
    duplicates: Iterable[DuplicateGroup],
    count: int,
    queries: Iterable[Query] = (),
    shown: Iterable[int] = (),
) -> Int64:
    """int64 [min(count, n)], ascending positions: what people ask for first, then kept and dropped rows at random, half and half.

    First come the rows that each query of a target took first and rows typical of the largest clusters (a quarter of the room
    each at most), ``shown`` rows, the largest groups of duplicates, the rows nearest to the pools' boundary, and the easiest and hardest rows
    (an eighth each).
    """
    n = len(tables)
    if count >= n:
        return np.arange(n)
    by_size = sorted(groups, key=lambda group: -group.size)
    typical = _positions(tables, (row for group in by_size for row in group.typical))
    taken = _positions(tables, (row for query in queries for row in query.took[:TOOK]))
    copies = _positions(tables, (row for group in duplicates for row in (group.row, *group.others)))
    near = np.empty(0, dtype=np.int64)
    if boundary is not None:
        near = np.argsort(boundary.distance, kind="stable")[: int(np.isfinite(boundary.distance).sum())]
    by_score = np.argsort(tables.score, kind="stable")
    ends = np.stack([by_score, by_score[::-1]], axis=1).ravel()
    part = count // 8
    chosen = [
        taken[: 2 * part],
        typical[: 2 * part],
        _positions(tables, shown)[:part],
        copies[:part],
        near[:part],
        ends[:part],
    ]
    rng = np.random.default_rng(0)
    kept, dropped = (rng.permutation(np.flatnonzero(side)) for side in (tables.kept, ~tables.kept))
    both = min(len(kept), len(dropped))
    mixed = np.stack([kept[:both], dropped[:both]], axis=1).ravel()
    order = np.concatenate([*chosen, mixed, kept[both:], dropped[both:]])
    _, first = np.unique(order, return_index=True)
    return np.sort(order[np.sort(first)[:count]])


def _positions(tables: Tables, row_ids: Iterable[int]) -> Int64:
    return np.searchsorted(tables.row_id, np.fromiter(row_ids, dtype=np.int64))
