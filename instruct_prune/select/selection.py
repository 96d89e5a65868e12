"""Select: near-duplicates out, the budget shared over the strata, one method inside each, a reason for every row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Int64
from instruct_prune.errors import InputError
from instruct_prune.parameter import Value
from instruct_prune.select.data import Budget, Pool, Selection
from instruct_prune.select.draw import Draw, forced_rows, rank_rows
from instruct_prune.select.methods import Method, Rule, find_method
from instruct_prune.select.stratum import CONTAMINATED, DUPLICATE, FIRST_KEPT, REASONS, Codes, Stratum
from instruct_prune.select.turns import Turns

ONE_STRATUM = (
    "--balanced shares the budget equally over strata, and all rows are in one. Name a column with --stratify (source: the file of "
    "each row)."
)


def select_rows(
    pool: Pool,
    budget: Budget,
    *,
    method: str | Rule | Method = "flexrand",
    params: Mapping[str, Any] | None = None,
    seed: int = 0,
    min_per_stratum: int = 0,
    balanced: bool = False,
    must_keep: Sequence[int] | Int64 = (),
    duplicate_of: Int64 | None = None,
    contaminated: Bool | None = None,
) -> Selection:
    """Keep exactly the budget, every stratum its share of it, and say for each row why.

    Near-duplicates go first. The budget is then shared over the strata in proportion to what is left in them (largest
    remainder), or equally where it is ``balanced``, and the method picks inside each. By rows, the result has exactly the
    budget. By tokens, what the strata cannot spend of their shares is offered once more to all rows together: the result is
    never above the budget, and no dropped row that the method would take still fits. The order of the pool changes nothing.

    Example:
        >>> pool = build_pool(run.score(data), embeddings=embeddings)
        >>> selection = select_rows(pool, Budget(rows=5000), method="deita", params={"threshold": 0.95})
        >>> len(selection.kept)
        5000

    Args:
        pool: the scored rows with their strata.
        budget: rows or response tokens, from `resolve_budget`.
        method: a name in METHODS, ``package.module:function`` for a method of your own, or the function itself.
        params: the method's parameters by name, such as ``{"split": 0.25}``; the others have their defaults.
        seed: of the selection's own generator.
        min_per_stratum: least rows kept in each stratum (all of it where it is smaller).
        balanced: equal shares of the budget for all strata; what one cannot fill goes to the others.
        must_keep: row ids that are kept in any case; they count in the budget.
        duplicate_of: int64 [n], the row id that stands for the row, -1 where it stands for itself, in the order of the
            pool (`find_duplicates`).
        contaminated: bool [n], rows that are never kept, because they repeat a row of a test or benchmark.

    Returns:
        One entry per row, in ascending row id. ``params`` holds the method and all its parameters as they were used
        (flexrand's split as a number), and what the method notes (for split="mmd" the curve).

    Raises:
        InputError: the pool is empty, has NaN scores or lacks what the method needs, a name or a parameter is wrong, the
            budget cannot hold what must be kept or be filled with what is left, or a method of the user's own answers
            with something that is no selection.
    """
    found = find_method(method)
    bound = found.bind(params)
    _check(pool, min_per_stratum, balanced, duplicate_of)
    found.check(pool, bound)
    out = _in_order(pool, contaminated)
    pool, duplicate_of = _ascending(pool, duplicate_of)
    forced = forced_rows(pool, must_keep)
    refuse_both(pool.row_id[forced & out])
    duplicate_of = None if duplicate_of is None else np.where(forced, -1, duplicate_of)
    open_rows = ~out if duplicate_of is None else (duplicate_of < 0) & ~out
    draw = Draw(pool, budget, rank_rows(pool), open_rows, forced, min_per_stratum, balanced, seed, turns_of(pool))
    return _selected(draw, found, bound, duplicate_of, out)


def _selected(
    draw: Draw, found: Method, bound: dict[str, Value], duplicate_of: Int64 | None, contaminated: Bool
) -> Selection:
    """Let the method spend the budget, and say for each row why it was kept or dropped."""
    pool = draw.pool
    notes: dict[str, Any] = {}
    if found.prepare is not None:
        settled, notes = found.prepare(draw, bound)
        bound |= settled
    codes = draw.run(lambda stratum: _answer(found, bound, stratum))
    codes[~draw.open_rows] = DUPLICATE
    codes[contaminated] = CONTAMINATED
    selected = codes >= FIRST_KEPT
    wanted = draw.budget.rows
    if wanted is not None and selected.sum() != wanted:
        raise InputError(f"{found} kept {selected.sum()} rows of a budget of {wanted}; a method must spend all of it.")
    return Selection(
        row_id=pool.row_id,
        selected=selected,
        reason=codes,
        reasons=REASONS,
        stratum=pool.strata,
        score=pool.score,
        rank=draw.ranking.rank,
        method=found.name,
        seed=draw.seed,
        params={"method": found.name, **bound, **notes},
        strata_names=pool.strata_names,
        duplicate_of=duplicate_of,
        taken=None if draw.turns is None else draw.turns.taken,
    )


def _answer(method: Method, params: Mapping[str, Any], stratum: Stratum) -> Codes:
    """Call the method, and refuse an answer that is no selection of the stratum: users write methods too."""
    codes = np.asarray(method(stratum, **params))
    if codes.shape != (len(stratum),) or codes.dtype.kind not in "iu":
        raise InputError(
            f"{method} returned {codes.dtype} {codes.shape} for a stratum of {len(stratum)} rows. Return Codes, one reason a "
            "row, as `stratum.take(order)` makes them."
        )
    if len(codes) and not (codes.min() >= 0 and codes.max() < len(REASONS)):
        raise InputError(f"{method} returned reasons from {codes.min()} to {codes.max()}; REASONS has {len(REASONS)}.")
    kept = codes >= FIRST_KEPT
    if not kept[stratum.forced].all():
        raise InputError(f"{method} drops rows that must be kept. Begin with `stratum.kept_so_far()`.")
    spent = int(stratum.cost[kept].sum())
    if spent > stratum.budget:
        raise InputError(f"{method} spent {spent} of a budget of {stratum.budget} in a stratum of {len(stratum)} rows.")
    return codes.astype(np.int8, copy=False)


def _check(pool: Pool, min_per_stratum: int, balanced: bool, duplicate_of: Int64 | None) -> None:
    if not len(pool):
        raise InputError("there is nothing to select from: the pool has no scored rows. See rejected.jsonl for why.")
    broken = np.flatnonzero(~np.isfinite(pool.score))
    if len(broken):
        raise InputError(
            f"{len(broken)} rows have a score that is not a number (first: row {pool.row_id[broken[0]]}), so the rows "
            "cannot be ranked. Score them again."
        )
    if min_per_stratum < 0:
        raise InputError(f"--min-per-stratum {min_per_stratum} must be 0 or more.")
    if balanced and len(pool.strata_names) == 1:
        raise InputError(ONE_STRATUM)
    if duplicate_of is not None and len(duplicate_of) != len(pool):
        raise InputError(f"duplicates are given for {len(duplicate_of)} rows, the pool has {len(pool)} scored rows.")


def turns_of(pool: Pool) -> Turns | None:
    """The turns of the queries of a pool's target, where it has one."""
    return None if pool.target is None else Turns(pool.target, pool.row_id)


def _in_order(pool: Pool, rows: Bool | None) -> Bool:
    """bool [n], in ascending row id; all False where none are given."""
    return np.zeros(len(pool), dtype=bool) if rows is None else rows[np.argsort(pool.row_id, kind="stable")]


def refuse_both(row_id: Int64) -> None:
    """Refuse rows that must be kept and must not."""
    if len(row_id):
        raise InputError(
            f"row {row_id[0]} (and {len(row_id) - 1} more) must be kept, and repeats a row that must not be in the data. Take it "
            "off the list of rows to keep, or select without that file of --decontaminate."
        )


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
        target=None if pool.target is None else pool.target.of_rows(order),
    ), None if duplicate_of is None else duplicate_of[order]
