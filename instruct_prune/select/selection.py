"""Select: duplicates out, the budget shared over the strata, one method inside each, a reason for every row."""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from instruct_prune.datatypes import Bool, Budget, Int32, Int64, Picks, Pool, Selection
from instruct_prune.errors import InputError
from instruct_prune.registry import resolve, suggestion
from instruct_prune.select.budget import largest_remainder
from instruct_prune.select.duplicates import stand_ins
from instruct_prune.select.flexrand import auto_split, check_split
from instruct_prune.select.stratum import BUDGET, DUPLICATE, FIRST_KEPT, REASONS, Codes, Method, Stratum

SELECTORS: dict[str, str] = {
    "flexrand": "instruct_prune.select.flexrand:flexrand",
    "easy_diverse": "instruct_prune.select.simple:easiest",
    "easiest": "instruct_prune.select.simple:easiest",
    "hardest": "instruct_prune.select.simple:hardest",
    "random": "instruct_prune.select.simple:random",
}

CLUSTERED = frozenset({"flexrand", "easy_diverse"})
"""Methods whose strata are the clusters unless the user says otherwise; the others take all rows as one stratum."""

NEEDS_EMBEDDINGS: frozenset[str] = frozenset()
"""Methods that compare embeddings (and flexrand does with split="mmd")."""


def select_rows(
    pool: Pool,
    budget: Budget,
    *,
    method: str = "flexrand",
    split: float | str = "auto",
    seed: int = 0,
    min_per_stratum: int = 0,
    must_keep: Sequence[int] | Int64 = (),
    groups: Int64 | None = None,
    keep_of_group: str = "hardest",
    params: Mapping[str, Any] | None = None,
) -> Selection:
    """Keep exactly the budget, every stratum its share of it, and say for each row why.

    Duplicates go first. The budget is then shared over the strata in proportion to what is left in them (largest
    remainder), and the method picks inside each. By rows the result has exactly the budget. By tokens the shares are in
    tokens; what the strata cannot spend is offered once more to all rows together, so no dropped row would still fit.
    The same seed gives the same rows whatever the order of the pool.

    Args:
        pool: the scored rows with their strata.
        budget: rows or response tokens, from `resolve_budget`.
        method: a name in SELECTORS.
        split: flexrand's easy share: a number in (0, 1), "auto" (0.25 below 30% kept, else 0.5), or "mmd" (the split
            whose subset lies nearest to the whole set; see `instruct_prune.select.mmd_split`).
        seed: of the selection's own generator.
        min_per_stratum: least rows kept in each stratum (all of it where it is smaller).
        must_keep: row ids that are kept in any case; they count in the budget.
        groups: int64 [n], near-duplicates of each other share a number, -1 for none. One of each group is kept.
        keep_of_group: which one: "hardest", "longest" or "first".
        params: keyword parameters of the method, by name.

    Returns:
        One entry per row of the pool, in ascending row id.

    Raises:
        InputError: the pool is empty or has NaN scores, a name is unknown, or the budget cannot hold what must be kept
            or be filled with what is left.
    """
    _check(pool, method, split, min_per_stratum)
    pool, groups = _ascending(pool, groups)
    forced = _forced(pool, must_keep)
    stand_in = None if groups is None else stand_ins(pool, groups, keep_of_group, forced)
    open_rows = np.ones(len(pool), dtype=bool) if stand_in is None else stand_in < 0
    ranking = _rank(pool)
    draw = _Draw(pool, budget, ranking, open_rows, forced, min_per_stratum, seed)
    used = {"method": method, **(params or {})}
    chosen = _method(method, params)
    if method == "flexrand":
        used["split"] = auto_split(draw.share) if split == "auto" else check_split(split)  # type: ignore[arg-type]
        chosen = functools.partial(chosen, split=used["split"])
    codes = draw.run(chosen)
    codes[~open_rows] = DUPLICATE
    selected = codes >= FIRST_KEPT
    if budget.rows is not None and selected.sum() != budget.rows:
        raise RuntimeError(f"{method} kept {selected.sum()} rows of a budget of {budget.rows}; please report this")
    return Selection(
        row_id=pool.row_id,
        selected=selected,
        reason=codes,
        reasons=REASONS,
        stratum=pool.strata,
        score=pool.score,
        rank=ranking.rank,
        method=method,
        seed=seed,
        params=used,
        strata_names=pool.strata_names,
        duplicate_of=stand_in,
    )


@dataclass(frozen=True)
class _Ranking:
    """order: int64 [n], positions by stratum, then score, then row id; starts: int64 [k + 1]; rank: int32 [n]."""

    order: Picks
    starts: Int64
    rank: Int32
    by_score: Picks


def _rank(pool: Pool) -> _Ranking:
    k = len(pool.strata_names)
    by_score = np.argsort(pool.score, kind="stable")
    labels = pool.strata.astype(np.uint16) if k <= 2**16 else pool.strata  # 16 bits: numpy sorts them by radix
    order = by_score[np.argsort(labels[by_score], kind="stable")]
    size = np.bincount(pool.strata, minlength=k)
    starts = np.concatenate([[0], np.cumsum(size)])
    rank = np.empty(len(pool), dtype=np.int32)
    rank[order] = np.arange(len(pool)) - np.repeat(starts[:-1], size)
    return _Ranking(order, starts, rank, by_score)


@dataclass(frozen=True)
class _Draw:
    """Everything about a selection but the method, so that several methods or splits can be tried on it."""

    pool: Pool
    budget: Budget
    ranking: _Ranking
    open_rows: Bool
    forced: Bool
    min_per_stratum: int
    seed: int

    def __post_init__(self) -> None:
        must, have = int(self.cost[self.forced].sum()), int(self.cost[self.open_rows].sum())
        if must > self.total:
            raise InputError(
                f"the rows that must be kept take {must} {self.unit}, the budget is {self.total}. "
                "Raise the budget, or keep fewer rows in any case."
            )
        if have < self.total:
            raise InputError(
                f"the budget is {self.total} {self.unit}, but only {have} are left once duplicates are out. "
                "Keep less, or raise the similarity at which rows count as duplicates."
            )

    @property
    def unit(self) -> str:
        return "rows" if self.budget.tokens is None else "response tokens"

    @property
    def total(self) -> int:
        return int(self.budget.rows if self.budget.rows is not None else self.budget.tokens or 0)

    @functools.cached_property
    def cost(self) -> Int64:
        ones = self.budget.tokens is None
        return np.ones(len(self.pool), dtype=np.int64) if ones else self.pool.n_response.astype(np.int64)

    @functools.cached_property
    def strata(self) -> list[Picks]:
        """The open rows of each stratum, easiest first."""
        order, starts = self.ranking.order, self.ranking.starts
        parts = [order[a:b] for a, b in itertools.pairwise(starts.tolist())]
        return parts if self.open_rows.all() else [rows[self.open_rows[rows]] for rows in parts]

    @property
    def share(self) -> float:
        """The budget as a share of the scored rows (or of their response tokens)."""
        return self.total / int(self.cost.sum())

    def run(self, method: Method) -> Codes:
        """int8 [n]: the reason for each row; duplicates are left at "budget"."""
        rng = np.random.default_rng(self.seed)
        sizes = np.array([len(rows) for rows in self.strata])
        least = np.minimum(self.min_per_stratum, sizes)
        if self.budget.tokens is None:
            return self._spend(method, self.total, least, self.cost, self.forced, rng)
        codes = np.full(len(self.pool), BUDGET, dtype=np.int8)
        kept = self.forced
        if self.min_per_stratum:
            ones = np.ones_like(self.cost)
            least = np.maximum(least, self._sums(ones * self.forced))
            codes = self._spend(method, int(least.sum()), least, ones, self.forced, rng)
            kept = codes >= FIRST_KEPT
            if self.cost[kept].sum() > self.total:
                raise InputError(
                    f"{self.min_per_stratum} rows from each stratum take {self.cost[kept].sum()} response tokens, the "
                    f"budget is {self.total}. Keep more tokens, or fewer rows of each stratum."
                )
        more = self._spend(method, self.total, np.zeros_like(sizes), self.cost, kept, rng)
        codes = np.where(codes >= FIRST_KEPT, codes, more)
        kept = codes >= FIRST_KEPT
        rows = self.ranking.by_score[self.open_rows[self.ranking.by_score]]
        rest = method(Stratum(self.pool, rows, self.cost[rows], self.total, kept[rows], rng))
        codes[rows] = np.where(kept[rows], codes[rows], rest)
        return codes

    def _spend(
        self, method: Method, total: int, least: Int64, cost: Int64, forced: Bool, rng: np.random.Generator
    ) -> Codes:
        """Share ``total`` over the strata and let the method spend each share."""
        size, paid = self._sums(cost), self._sums(cost * forced)
        floor = np.maximum(paid, least)
        if floor.sum() > total:
            raise InputError(
                f"{self.min_per_stratum} rows from each of {len(size)} strata and the rows that must be kept make "
                f"{floor.sum()} rows, the budget is {total}. Keep more, or fewer rows of each stratum."
            )
        codes = np.full(len(self.pool), BUDGET, dtype=np.int8)
        for rows, share in zip(self.strata, largest_remainder(total, size, size, floor).tolist(), strict=True):
            if share:
                codes[rows] = method(Stratum(self.pool, rows, cost[rows], share, forced[rows], rng))
        return codes

    def _sums(self, values: Int64) -> Int64:
        return np.array([values[rows].sum() for rows in self.strata], dtype=np.int64)


def _method(name: str, params: Mapping[str, Any] | None) -> Any:
    """The method's function with its own parameters set."""
    function = resolve(SELECTORS, name, "selection method")
    known = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "split"
    ]
    for param in params or {}:
        if param not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise InputError(f"the method {name!r} has no parameter {param!r}.{suggestion(param, known)} {takes}")
    return functools.partial(function, **(params or {}))


def _check(pool: Pool, method: str, split: float | str, min_per_stratum: int) -> None:
    if not len(pool):
        raise InputError("there is nothing to select from: the pool has no scored rows. See rejected.jsonl for why.")
    if not np.isfinite(pool.score).all():
        first = pool.row_id[np.flatnonzero(~np.isfinite(pool.score))[0]]
        raise InputError(
            f"row {first} has a score that is not a number, so the rows cannot be ranked. Score them again."
        )
    if split != "auto" and method != "flexrand":
        raise InputError(f"--split belongs to the method flexrand; {method!r} has no easy and hard pool.")
    if min_per_stratum < 0:
        raise InputError(f"--min-per-stratum {min_per_stratum} must be 0 or more.")


def _ascending(pool: Pool, groups: Int64 | None) -> tuple[Pool, Int64 | None]:
    step = np.diff(pool.row_id)
    if (step > 0).all():
        return pool, groups
    order = np.argsort(pool.row_id, kind="stable")
    repeated = pool.row_id[order][1:][np.diff(pool.row_id[order]) == 0]
    if len(repeated):
        raise InputError(f"row {repeated[0]} is in the pool twice; every row may be there once.")
    columns = {name: getattr(pool, name)[order] for name in ("row_id", "score", "n_response", "strata")}
    vectors = None if pool.embeddings is None else pool.embeddings[order]
    losses = {name: loss[order] for name, loss in pool.losses.items()}
    return replace(pool, **columns, embeddings=vectors, losses=losses), None if groups is None else groups[order]


def _forced(pool: Pool, must_keep: Sequence[int] | Int64) -> Bool:
    wanted = np.unique(np.asarray(must_keep, dtype=np.int64))
    unknown = wanted[~np.isin(wanted, pool.row_id)]
    if len(unknown):
        raise InputError(
            f"{len(unknown)} of the {len(wanted)} rows that must be kept are not among the scored rows "
            f"(first: row {unknown[0]}). Take them off the list, or see rejected.jsonl for why they have no score."
        )
    return np.isin(pool.row_id, wanted)
