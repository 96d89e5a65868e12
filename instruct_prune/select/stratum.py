"""What a selection method sees, and what it answers."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.errors import InputError
from instruct_prune.select.data import Picks, Pool
from instruct_prune.select.turns import Turns

REASONS = (
    "budget",  # dropped: others came first and the budget was full
    "duplicate",  # dropped: another row of its group of near-duplicates stands for it
    "contaminated",  # dropped: it repeats a row of a test, a benchmark, or what else must not be in the data
    "too hard",  # dropped: among the hardest rows, which the method cuts off
    "too similar",  # dropped: too near to a row that was kept before it
    "no score",  # dropped: what the selection goes by could not be measured of it
    "easy pool",  # kept: drawn from the easy pool
    "hard pool",  # kept: drawn from the hard pool
    "picked",  # kept: by the rule of the method
    "must keep",  # kept: the user said so
)
(
    BUDGET, DUPLICATE, CONTAMINATED, TOO_HARD, TOO_SIMILAR, NO_SCORE, EASY_POOL, HARD_POOL, PICKED, MUST_KEEP,
) = range(len(REASONS))  # fmt: skip
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
        turns: of the queries of the pool's target, where it has one.
    """

    pool: Pool
    rows: Picks
    cost: Int64
    budget: int
    forced: Bool
    rng: np.random.Generator
    turns: Turns | None = None

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

    def kept_so_far(self) -> Codes:
        """A fresh answer: the forced rows are kept, the others not yet."""
        return np.where(self.forced, MUST_KEEP, BUDGET).astype(np.int8)

    def take(self, order: Picks, reason: int = PICKED) -> Codes:
        """Keep the forced rows, then rows in this order (positions in ``rows``) for as long as they fit."""
        codes = self.kept_so_far()
        order = order[~self.forced[order]]
        codes[order[fitting(self.cost[order], self.left)]] = reason
        return codes

    def greedy(self, value: Float32, update: Callable[[int], object]) -> Codes:
        """Keep the forced rows, then again and again the row of the greatest value among those that still fit.

        Args:
            value: float32 [m]; ties go to the easier row.
            update: called with each row that is picked; it revises ``value`` in place.
        """
        codes, left = self.kept_so_far(), self.left
        while (allowed := (codes == BUDGET) & (self.cost <= left)).any():
            picked = int(np.where(allowed, value, -np.inf).argmax())
            codes[picked] = PICKED
            left -= int(self.cost[picked])
            update(picked)
        return codes

    def lazy_greedy(self, value: Callable[[int], float], update: Callable[[int], object]) -> Codes:
        """`greedy` for values that only ever fall: a row is valued again when it comes first, not at every step.

        Source: Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
        """
        codes, left = self.kept_so_far(), self.left
        heap = [(-value(i), i) for i in np.flatnonzero(codes == BUDGET).tolist()]
        heapq.heapify(heap)
        while heap:
            _, first = heapq.heappop(heap)
            if self.cost[first] > left:
                continue
            now = (-value(first), first)
            if heap and now > heap[0]:
                heapq.heappush(heap, now)
                continue
            codes[first] = PICKED
            left -= int(self.cost[first])
            update(first)
        return codes

    def spend_rest(self, codes: Codes, reasons: Codes) -> Codes:
        """Fill what a method that deals in shares has left over (under a budget in tokens) with other rows at random.

        Args:
            codes: what is kept so far.
            reasons: int8 [m], why each row is kept if it is.
        """
        left = self.budget - int(self.cost[codes >= FIRST_KEPT].sum())
        if left:
            others = self.rng.permutation(np.flatnonzero(codes == BUDGET))
            others = others[fitting(self.cost[others], left)]
            codes[others] = reasons[others]
        return codes


Spend = Callable[[Stratum], Codes]
"""A method with its parameters set: it spends the budget of one stratum."""


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
