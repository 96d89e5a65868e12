"""How much to keep, and how much of it in each stratum: whole numbers that always add up."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from instruct_prune.arrays import Int64
from instruct_prune.errors import InputError
from instruct_prune.select.data import Budget, Pool


def resolve_budget(keep: int | float | None, keep_tokens: int | None, pool: Pool) -> Budget:
    """Turn what the user asked for into a number of rows or of response tokens of this pool.

    Args:
        keep: an int is a number of rows; a float in (0, 1] is a share of the scored rows, rounded to the nearest row.
        keep_tokens: a number of response tokens, never exceeded. Exactly one of the two is given.
        pool: the scored rows.

    Example:
        >>> resolve_budget(0.3, None, pool)  # a pool of 9,000 rows
        Budget(rows=2700, tokens=None)

    Raises:
        InputError: the budget is missing, given twice, not a number, not positive, or more than the pool holds.
    """
    if (keep is None) == (keep_tokens is None):
        raise InputError(
            "how much to keep must be said exactly once: give --keep (0.3 is a share of the scored rows, 5000 a number "
            "of rows) or --keep-tokens (a number of response tokens)."
        )
    n = len(pool)
    if n == 0:
        raise InputError("there is nothing to select from: the pool has no scored rows. See rejected.jsonl for why.")
    if keep_tokens is not None:
        return Budget(tokens=_tokens(keep_tokens, pool))
    if isinstance(keep, bool) or not isinstance(keep, (int, float, np.integer, np.floating)):
        raise InputError(f"--keep must be a number, got {keep!r}.")
    if isinstance(keep, (float, np.floating)):
        if not (math.isfinite(keep) and 0 < keep <= 1):
            raise InputError(
                f"--keep {keep} is not a share: a share lies above 0 and is at most 1 (0.3 keeps 30% of the scored "
                "rows). A number of rows is written without a decimal point, as in --keep 5000."
            )
        rows = round(float(keep) * n)
        if rows == 0:
            raise InputError(
                f"--keep {keep} of {n} scored rows is less than one row. Ask for --keep {1 / n:.2g} or more."
            )
        return Budget(rows=rows)
    if keep < 1:
        raise InputError(f"--keep {keep} keeps nothing: give at least 1 row, or a share above 0 such as 0.3.")
    if keep > n:
        raise InputError(
            f"--keep {keep} is more than the {n} scored rows there are. Give at most {n}, or a share such as 0.3."
        )
    return Budget(rows=int(keep))


def check_seed(seed: int) -> None:
    """Refuse a seed that not every random generator takes.

    Raises:
        InputError: it is negative or too large.
    """
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed {seed}: a whole number from 0 to {2**32 - 1}.")


def _tokens(tokens: int, pool: Pool) -> int:
    if isinstance(tokens, bool) or not isinstance(tokens, (int, np.integer)) or tokens < 1:
        raise InputError(f"--keep-tokens {tokens} must be a whole number of response tokens, at least 1.")
    total, shortest = int(pool.n_response.sum(dtype=np.int64)), int(pool.n_response.min())
    if tokens > total:
        raise InputError(
            f"--keep-tokens {tokens} is more than the {total} response tokens of the {len(pool)} scored rows."
        )
    if tokens < shortest:
        raise InputError(
            f"--keep-tokens {tokens} is less than the shortest scored row, which has {shortest} response tokens."
        )
    return int(tokens)


def largest_remainder(total: int, weights: ArrayLike, capacity: ArrayLike, floor: ArrayLike | None = None) -> Int64:
    """Share ``total`` units in proportion to ``weights``, in whole numbers that add up exactly.

    Hamilton's method: everyone gets the whole part of their quota, and the units left over go to the largest
    fractions (ties: the lower index). A share that its bounds stop is fixed there and the others take up the
    difference, in proportion. Arithmetic is in Python integers, so no rounding error can cost or add a unit.

    Args:
        total: units to hand out.
        weights: non-negative integers [k].
        capacity: integers [k], the most each may get.
        floor: integers [k], the least each gets (default 0), at most ``capacity``.

    Returns:
        int64 [k] that sums to ``total``, with ``floor <= share <= capacity``.

    Raises:
        ValueError: the bounds leave no such shares.
    """
    high, weight = np.asarray(capacity, dtype=np.int64), np.asarray(weights, dtype=np.int64)
    low = np.zeros_like(high) if floor is None else np.asarray(floor, dtype=np.int64)
    if not weight.shape == high.shape == low.shape or (weight < 0).any() or (low < 0).any() or (low > high).any():
        raise ValueError("weights, capacity and floor need one length, 0 <= floor <= capacity and weights >= 0")
    if not low.sum() <= total <= high.sum():
        raise ValueError(f"{total} units do not fit between the floors ({low.sum()}) and the capacities ({high.sum()})")
    if int(total) * max(int(weight.sum()), int(high.sum())) >= 2**62:  # the products below would overflow
        weight, high, low = (values.astype(object) for values in (weight, high, low))
    share, free, left = low.copy(), np.ones(len(high), dtype=bool), int(total)
    while free.any():
        w = weight[free] if weight[free].any() else high[free]
        whole = max(int(w.sum()), 1)
        lack, excess = low[free] * whole - left * w, left * w - high[free] * whole
        lacking, exceeding = lack[lack > 0].sum(), excess[excess > 0].sum()
        if not lacking and not exceeding:
            share[free] = _hamilton(left, w, whole)
            break
        # Fixing only the side that is off by more keeps the rest feasible (the rule of CSS flexible boxes).
        fixed = ((lack > 0) & (lacking >= exceeding)) | ((excess > 0) & (exceeding >= lacking))
        stopped = np.flatnonzero(free)[fixed]
        share[stopped] = np.where(lack > 0, low[free], high[free])[fixed]
        left -= int(share[stopped].sum())
        free[stopped] = False
    return share.astype(np.int64)


def _hamilton(total: int, weight: NDArray[Any], whole: int) -> NDArray[Any]:
    share, fraction = total * weight // whole, total * weight % whole
    share[np.argsort(-fraction, kind="stable")[: total - int(share.sum())]] += 1
    return share
