"""One row of each group of near-duplicates stands for the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.datatypes import Bool, Int64, Pool
from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion

KEEP_RULES = ("hardest", "longest", "first")


def stand_ins(pool: Pool, groups: Int64, rule: str, forced: Bool) -> Int64:
    """Say which row stands for each row that its group makes superfluous.

    Args:
        pool: the scored rows.
        groups: int64 [n], equal numbers for near-duplicates of each other, -1 for a row without any.
        rule: "hardest" (highest score), "longest" (most response tokens) or "first". Ties: lowest row id.
        forced: bool [n], rows that must be kept; they stand before others, and none of them is ever dropped.

    Returns:
        int64 [n]: the row id that stands for the row, -1 where the row stands for itself.

    Raises:
        InputError: unknown rule, or ``groups`` of other rows.
    """
    if rule not in KEEP_RULES:
        raise InputError(
            f"unknown rule {rule!r} for duplicates.{suggestion(rule, KEEP_RULES)} Known: {', '.join(KEEP_RULES)}."
        )
    if len(groups) != len(pool):
        raise InputError(f"duplicate groups are given for {len(groups)} rows, the pool has {len(pool)} scored rows.")
    keys: dict[str, NDArray[Any]] = {"hardest": pool.score, "longest": pool.n_response, "first": -pool.row_id}
    key = keys[rule]
    grouped = np.flatnonzero(groups >= 0)
    order = grouped[np.lexsort((pool.row_id[grouped], -key[grouped], ~forced[grouped], groups[grouped]))]
    stand_in = np.full(len(pool), -1, dtype=np.int64)
    if len(order):
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        leader = np.repeat(order[starts], np.diff(starts, append=len(order)))
        dropped = (order != leader) & ~forced[order]
        stand_in[order[dropped]] = pool.row_id[leader[dropped]]
    return stand_in
