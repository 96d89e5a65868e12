"""Select: near-duplicates out, the budget shared over the strata, one method inside each, a reason for every row."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.errors import InputError
from instruct_prune.registry import resolve, suggestion
from instruct_prune.select.data import Budget, Pool, Selection
from instruct_prune.select.draw import Draw, forced_rows, rank_rows
from instruct_prune.select.flexrand import auto_split, check_split
from instruct_prune.select.mmd_split import mmd_curve
from instruct_prune.select.stratum import DUPLICATE, FIRST_KEPT, REASONS, Codes, Method

SELECTORS: dict[str, str] = {
    "flexrand": "instruct_prune.select.flexrand:flexrand",
    "easy_diverse": "instruct_prune.select.ranked:easiest",
    "easiest": "instruct_prune.select.ranked:easiest",
    "hardest": "instruct_prune.select.ranked:hardest",
    "random": "instruct_prune.select.ranked:random",
    "longest": "instruct_prune.select.ranked:longest",
    "perplexity_middle": "instruct_prune.select.ranked:perplexity_middle",
    "ifd": "instruct_prune.select.ifd:ifd",
    "ccs": "instruct_prune.select.ccs:ccs",
    "moderate": "instruct_prune.select.moderate:moderate",
    "k_center": "instruct_prune.select.k_center:k_center",
    "herding": "instruct_prune.select.herding:herding",
    "facility_location": "instruct_prune.select.facility_location:facility_location",
    "deita": "instruct_prune.select.deita:deita",
    "d2": "instruct_prune.select.d2:d2",
}

CLUSTERED = frozenset({"flexrand", "easy_diverse"})
"""Methods whose strata are the clusters unless the user says otherwise; the others take all rows as one stratum."""

NEEDS_EMBEDDINGS = frozenset({"moderate", "k_center", "herding", "facility_location", "deita", "d2"})
"""Methods that compare embeddings. So does flexrand with split="mmd"."""


def select_rows(
    pool: Pool,
    budget: Budget,
    *,
    method: str = "flexrand",
    split: float | str = "auto",
    seed: int = 0,
    min_per_stratum: int = 0,
    must_keep: Sequence[int] | Int64 = (),
    duplicate_of: Int64 | None = None,
    params: Mapping[str, Any] | None = None,
) -> Selection:
    """Keep exactly the budget, every stratum its share of it, and say for each row why.

    Near-duplicates go first. The budget is then shared over the strata in proportion to what is left in them (largest
    remainder), and the method picks inside each. By rows, the result has exactly the budget. By tokens, the shares are
    in tokens, and what the strata cannot spend is offered once more to all rows together: the result is never above the
    budget, and no dropped row that the method would take still fits. The same seed gives the same rows whatever the
    order of the pool.

    Args:
        pool: the scored rows with their strata.
        budget: rows or response tokens, from `resolve_budget`.
        method: a name in SELECTORS.
        split: flexrand's easy share: a number in (0, 1), "auto" (0.25 below 30% kept, else 0.5), or "mmd" (the split
            whose subset lies nearest to the whole set; see `mmd_split.mmd_curve`).
        seed: of the selection's own generator.
        min_per_stratum: least rows kept in each stratum (all of it where it is smaller).
        must_keep: row ids that are kept in any case; they count in the budget.
        duplicate_of: int64 [n], the row id that stands for the row, -1 where it stands for itself, in the order of the
            pool (`instruct_prune.select.near_duplicates.find_duplicates`).
        params: keyword parameters of the method, by name.

    Returns:
        One entry per row of the pool, in ascending row id. ``params`` holds what is needed to make it again, the split
        as a number, and for split="mmd" the curve, as [split, squared MMD] pairs.

    Raises:
        InputError: the pool is empty or has NaN scores, a name is unknown, or the budget cannot hold what must be kept
            or be filled with what is left.
    """
    _check(pool, method, split, min_per_stratum, duplicate_of)
    pool, duplicate_of = _ascending(pool, duplicate_of)
    forced = forced_rows(pool, must_keep)
    if duplicate_of is not None:
        duplicate_of = np.where(forced, -1, duplicate_of)
    open_rows = np.ones(len(pool), dtype=bool) if duplicate_of is None else duplicate_of < 0
    ranking = rank_rows(pool)
    draw = Draw(pool, budget, ranking, open_rows, forced, min_per_stratum, seed)
    function, used = _method(method, params), {"method": method, **(params or {})}
    if method == "flexrand":
        function, more = _with_split(function, split, draw)
        used |= more
    codes = draw.run(function)
    codes[~open_rows] = DUPLICATE
    selected = codes >= FIRST_KEPT
    if budget.rows is not None and selected.sum() != budget.rows:
        raise RuntimeError(
            f"{method} kept {selected.sum()} rows of a budget of {budget.rows}: this is a defect, report it"
        )
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
        duplicate_of=duplicate_of,
    )


def _with_split(function: Callable[..., Codes], split: float | str, draw: Draw) -> tuple[Method, dict[str, Any]]:
    """Flexrand with its split set, and what to note about it."""
    if split == "mmd":
        curve = mmd_curve(draw, function)
        split = min(curve, key=lambda point: point[1])[0]
        return functools.partial(function, split=split), {"split": split, "mmd": [list(point) for point in curve]}
    number = auto_split(draw.share) if split == "auto" else check_split(split)
    return functools.partial(function, split=number), {"split": number}


def _method(name: str, params: Mapping[str, Any] | None) -> Any:
    """The method's function with its own parameters set."""
    function = resolve(SELECTORS, name, "selection method")
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "split"]
    for param in params or {}:
        if param not in known:
            takes = f"It takes {', '.join(known)}." if known else "It takes none."
            raise InputError(f"the method {name!r} has no parameter {param!r}.{suggestion(param, known)} {takes}")
    return functools.partial(function, **(params or {}))


def _check(pool: Pool, method: str, split: float | str, min_per_stratum: int, duplicate_of: Int64 | None) -> None:
    if not len(pool):
        raise InputError("there is nothing to select from: the pool has no scored rows. See rejected.jsonl for why.")
    broken = np.flatnonzero(~np.isfinite(pool.score))
    if len(broken):
        raise InputError(
            f"{len(broken)} rows have a score that is not a number (first: row {pool.row_id[broken[0]]}), so the rows "
            "cannot be ranked. Score them again."
        )
    if split != "auto" and method != "flexrand":
        raise InputError(f"--split belongs to the method flexrand; {method!r} has no easy and hard pool.")
    if min_per_stratum < 0:
        raise InputError(f"--min-per-stratum {min_per_stratum} must be 0 or more.")
    if duplicate_of is not None and len(duplicate_of) != len(pool):
        raise InputError(f"duplicates are given for {len(duplicate_of)} rows, the pool has {len(pool)} scored rows.")


def _ascending(pool: Pool, duplicate_of: Int64 | None) -> tuple[Pool, Int64 | None]:
    """The pool in ascending row id, so that the order it came in cannot change a selection."""
    if (np.diff(pool.row_id) > 0).all():
        return pool, duplicate_of
    order = np.argsort(pool.row_id, kind="stable")
    row_id = pool.row_id[order]
    repeated = row_id[1:][np.diff(row_id) == 0]
    if len(repeated):
        raise InputError(f"row {repeated[0]} is in the pool twice; every row may be there once.")
    return replace(
        pool,
        row_id=row_id,
        score=pool.score[order],
        n_response=pool.n_response[order],
        strata=pool.strata[order],
        embeddings=None if pool.embeddings is None else pool.embeddings[order],
        losses={name: loss[order] for name, loss in pool.losses.items()},
    ), None if duplicate_of is None else duplicate_of[order]
