"""Which row of a group of near-duplicates stands for the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Int64
from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.select.data import Pool
from instruct_prune.select.draw import forced_rows

KEEP_RULES = ("hardest", "longest", "first")


def keep_priority(pool: Pool, rule: str = "hardest", must_keep: Sequence[int] | Int64 = ()) -> Int64:
    """Number the rows in the order in which they may stand for others.

    Args:
        pool: the scored rows.
        rule: "hardest" (highest score), "longest" (most response tokens) or "first" (lowest row id). Ties: the lowest
            row id.
        must_keep: row ids that stand before all others.

    Returns:
        int64 [n]: 0 for the row that stands before all others, n - 1 for the last.

    Raises:
        InputError: unknown rule, or a row that must be kept is not in the pool.
    """
    if rule not in KEEP_RULES:
        known = ", ".join(KEEP_RULES)
        raise InputError(f"unknown rule {rule!r} for near-duplicates.{suggestion(rule, KEEP_RULES)} Known: {known}.")
    keys: dict[str, NDArray[np.generic]] = {
        "hardest": -pool.score,
        "longest": -pool.n_response.astype(np.int64),
        "first": pool.row_id,
    }
    order = np.lexsort((pool.row_id, keys[rule], ~forced_rows(pool, must_keep)))
    priority = np.empty(len(pool), dtype=np.int64)
    priority[order] = np.arange(len(pool))
    return priority
