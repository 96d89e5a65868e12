"""The frame around every method: rank the rows, share the budget over the strata, let the method spend each share."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.errors import InputError
from instruct_prune.select.budget import largest_remainder
from instruct_prune.select.data import Budget, Picks, Pool
from instruct_prune.select.stratum import BUDGET, FIRST_KEPT, Codes, Spend, Stratum
from instruct_prune.select.turns import Turns


@dataclass(frozen=True)
class Ranking:
    """The rows of each stratum in order of score.

    Attributes:
        order: int64 [n], positions in the pool by stratum, then score, then row id.
        starts: int64 [k + 1], where each stratum begins in ``order``.
        rank: int32 [n], place of each row in its stratum, 0 = easiest.
    """

    order: Picks
    starts: Int64
    rank: Int32


def rank_rows(pool: Pool) -> Ranking:
    """Rank the rows of a pool that is in ascending row id."""
    k = len(pool.strata_names)
    labels = pool.strata.astype(np.uint16) if k <= 2**16 else pool.strata  # numpy sorts 16 bits by radix
    by_score = easiest_first(pool.score)
    order = by_score[np.argsort(labels[by_score], kind="stable")] if k > 1 else by_score
    sizes = np.bincount(pool.strata, minlength=k)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(pool), dtype=np.int32)
    rank[order] = np.arange(len(pool), dtype=np.int32) - np.repeat(starts[:-1], sizes).astype(np.int32)
    return Ranking(order, starts, rank)


def easiest_first(score: Float32) -> Picks:
    """``np.argsort(score, kind="stable")``, several times faster: numpy sorts plain 64-bit integers with SIMD.

    The upper half of each integer is the score, its bits turned so that they order as the floats do; the lower half
    is the position, which settles ties.
    """
    bits = (score.astype(np.float32) + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    bits = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    keys = bits.astype(np.uint64) << np.uint64(32)
    keys |= np.arange(len(score), dtype=np.uint64)
    keys.sort()
    return (keys & np.uint64(2**32 - 1)).astype(np.int64)


def forced_rows(pool: Pool, must_keep: Sequence[int] | Int64) -> Bool:
    """bool [n]: the rows that must be kept.

    Raises:
        InputError: one of them is not in the pool.
    """
    wanted = np.unique(np.asarray(must_keep, dtype=np.int64))
    unknown = wanted[~np.isin(wanted, pool.row_id)]
    if len(unknown):
        raise InputError(
            f"{len(unknown)} of the {len(wanted)} rows that must be kept are not among the scored rows "
            f"(first: row {unknown[0]}). Take them off the list, or see rejected.jsonl for why they have no score."
        )
    return np.isin(pool.row_id, wanted) if len(wanted) else np.zeros(len(pool), dtype=bool)


@dataclass(frozen=True)
class Draw:
    """Everything about a selection but its method, so that several can be tried on it.

    Attributes:
        pool: in ascending row id.
        budget: rows or response tokens.
        ranking: of the pool.
        open_rows: bool [n], rows that no other row stands for.
        forced: bool [n], open rows that must be kept.
        min_per_stratum: least rows kept in each stratum, or all of it where it is smaller.
        balanced: strata have equal shares of the budget, as far as they have rows; else shares in proportion to their rows.
        seed: of the generator.
        turns: of the queries of the pool's target, where it has one.

    Raises:
        InputError: the budget cannot hold what must be kept, or be filled with what is left.
    """

    pool: Pool
    budget: Budget
    ranking: Ranking
    open_rows: Bool
    forced: Bool
    min_per_stratum: int
    balanced: bool
    seed: int
    turns: Turns | None = None

    def __post_init__(self) -> None:
        must, have = int(self.cost[self.forced].sum()), int(self.cost[self.open_rows].sum())
        if must > self.total:
            raise InputError(
                f"the rows that must be kept take {must} {self.unit}, the budget is {self.total}. "
                "Raise the budget, or keep fewer rows in any case."
            )
        if have < self.total:
            raise InputError(
                f"the budget is {self.total} {self.unit}, but only {have} are left once near-duplicates and rows that repeat a "
                "test (--decontaminate) are out. Keep less, or raise the similarity at which rows count as duplicates."
            )

    @property
    def unit(self) -> str:
        return "rows" if self.budget.tokens is None else "response tokens"

    @property
    def total(self) -> int:
        return int(self.budget.rows or self.budget.tokens or 0)

    @functools.cached_property
    def cost(self) -> Int64:
        """int64 [n]: what each row takes from the budget."""
        if self.budget.tokens is None:
            return np.ones(len(self.pool), dtype=np.int64)
        return self.pool.n_response.astype(np.int64)

    @property
    def share(self) -> float:
        """The budget as a share of the scored rows, or of their response tokens."""
        return self.total / int(self.cost.sum())

    @functools.cached_property
    def strata(self) -> list[Picks]:
        """The open rows of each stratum, easiest first."""
        parts = [self.ranking.order[a:b] for a, b in itertools.pairwise(self.ranking.starts.tolist())]
        return parts if self.open_rows.all() else [rows[self.open_rows[rows]] for rows in parts]

    def run(self, method: Spend) -> Codes:
        """int8 [n]: the reason for each row; rows that are not open are left at "budget"."""
        rng = np.random.default_rng(self.seed)
        sizes = np.array([len(rows) for rows in self.strata])
        least = np.minimum(self.min_per_stratum, sizes)
        if self.budget.tokens is None:
            return self._spend(method, self.total, least, self.cost, self.forced, rng)
        codes, kept = np.full(len(self.pool), BUDGET, dtype=np.int8), self.forced
        if self.min_per_stratum:
            codes = self._at_least(method, least, rng)
            kept = codes >= FIRST_KEPT
        more = self._spend(method, self.total, np.zeros_like(sizes), self.cost, kept, rng)
        codes = np.where(kept & ~self.forced, codes, more)
        kept = codes >= FIRST_KEPT
        # Each stratum leaves a bit of its share that no row of it fits in: spend those bits on all rows together.
        rows = easiest_first(self.pool.score)
        rows = rows[self.open_rows[rows]]
        rest = method(Stratum(self.pool, rows, self.cost[rows], self.total, kept[rows], rng, self.turns))
        codes[rows] = np.where(kept[rows], codes[rows], rest)
        return codes

    def _at_least(self, method: Spend, least: Int64, rng: np.random.Generator) -> Codes:
        """Under a budget in tokens, the least rows of each stratum are drawn first, by rows."""
        ones = np.ones_like(self.cost)
        least = np.maximum(least, self._sums(ones, self.forced))
        codes = self._spend(method, int(least.sum()), least, ones, self.forced, rng)
        taken = int(self.cost[codes >= FIRST_KEPT].sum())
        if taken > self.total:
            raise InputError(
                f"{self.min_per_stratum} rows from each stratum take {taken} response tokens, the budget is "
                f"{self.total}. Keep more tokens, or fewer rows of each stratum."
            )
        return codes

    def _spend(
        self, method: Spend, total: int, least: Int64, cost: Int64, forced: Bool, rng: np.random.Generator
    ) -> Codes:
        """Share ``total`` over the strata, largest remainder, and let the method spend each share."""
        size = self._sums(cost, self.open_rows)
        floor = np.maximum(self._sums(cost, forced), least)
        if floor.sum() > total:
            raise InputError(
                f"{self.min_per_stratum} rows from each of {len(size)} strata, and the rows that must be kept, make "
                f"{floor.sum()} rows; the budget is {total}. Keep more rows, or fewer of each stratum."
            )
        codes = np.full(len(self.pool), BUDGET, dtype=np.int8)
        weights = np.ones_like(size) if self.balanced else size
        for rows, share in zip(self.strata, largest_remainder(total, weights, size, floor).tolist(), strict=True):
            if share:
                codes[rows] = method(Stratum(self.pool, rows, cost[rows], share, forced[rows], rng, self.turns))
        return codes

    def _sums(self, cost: Int64, among: Bool) -> Int64:
        """int64 [k]: what the rows of each stratum cost (floats of 53 bits hold such sums exactly)."""
        sums = np.bincount(self.pool.strata, weights=cost * among, minlength=len(self.pool.strata_names))
        return sums.astype(np.int64)
