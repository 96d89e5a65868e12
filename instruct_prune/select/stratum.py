"""What a selection method sees, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instruct_prune.datatypes import Bool, Float32, Int64, Picks, Pool
from instruct_prune.errors import InputError

REASONS = (
    "budget",  # dropped: others came first and the budget was full
    "duplicate",  # dropped: another row of its group of near-duplicates stands for it
    "too hard",  # dropped: among the hardest rows, which the method cuts off
    "too similar",  # dropped: too near to a row that was kept before it
    "easy pool",  # kept: drawn from the easy pool
    "hard pool",  # kept: drawn from the hard pool
    "picked",  # kept: by the rule of the method
    "must keep",  # kept: the user said so
)
BUDGET, DUPLICATE, TOO_HARD, TOO_SIMILAR, EASY_POOL, HARD_POOL, PICKED, MUST_KEEP = range(len(REASONS))
FIRST_KEPT = EASY_POOL
"""Reasons from this one on are reasons to keep."""

Codes = NDArray[np.int8]
"""int8 [m]: for each row of a stratum, an index into REASONS."""


@dataclass(frozen=True)
class Stratum:
    """The rows of one stratum that may be kept, and what may be spent on them.

    Attributes:
        pool: everything that was scored.
        rows: int64 [m], positions in the pool, easiest first (ties: the lower row id).
        cost: int64 [m], what each row takes from the budget: 1, or its response tokens.
        budget: what may be spent in this stratum, forced rows included.
        forced: bool [m], rows that are kept whatever the method says; they fit in the budget.
        rng: the selection's generator.
    """

    pool: Pool
    rows: Picks
    cost: Int64
    budget: int
    forced: Bool
    rng: np.random.Generator

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def left(self) -> int:
        """What the forced rows leave of the budget."""
        return self.budget - int(self.cost[self.forced].sum())

    @property
    def score(self) -> Float32:
        """float32 [m], ascending."""
        return self.pool.score[self.rows]

    def vectors(self) -> Float32:
        """float32 [m, d]: the embeddings of the rows.

        Raises:
            InputError: the pool has no embeddings.
        """
        if self.pool.embeddings is None:
            raise InputError("this method compares embeddings and there are none: run `instruct-prune embed` first.")
        return np.asarray(self.pool.embeddings[self.rows], dtype=np.float32)

    def take(self, order: Picks, reason: int = PICKED) -> Codes:
        """Keep the forced rows, then rows in this order (positions in ``rows``) for as long as they fit."""
        codes = np.full(len(self), BUDGET, dtype=np.int8)
        codes[self.forced] = MUST_KEEP
        order = order[~self.forced[order]]
        codes[order[fitting(self.cost[order], self.left)]] = reason
        return codes


Method = Callable[[Stratum], Codes]


def fitting(cost: Int64, budget: int) -> Picks:
    """Positions of the items that are taken, in order, when each one that still fits is taken.

    With costs of 1 that is the first ``budget`` items. In tokens, an item too long for what is left is passed over,
    so in the end no item left out would still fit: what is not spent is less than the shortest of them.
    """
    candidates, taken = np.flatnonzero(cost <= budget), []
    while len(candidates):
        spent = np.cumsum(cost[candidates])
        m = int(np.searchsorted(spent, budget, side="right"))
        taken.append(candidates[:m])
        budget -= int(spent[m - 1])
        rest = candidates[m:]
        candidates = rest[cost[rest] <= budget]
    return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)
