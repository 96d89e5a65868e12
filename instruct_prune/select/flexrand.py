"""FlexRand: part of the budget from the easy rows, part from the hard ones, at random within each.

Source: "Exploring Learning Complexity for Efficient Downstream Dataset Pruning" (arXiv 2402.05356 v3, ICLR 2025),
section on FlexRand. The released code rounds each share by itself; here they add up to the budget.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Interval

from instruct_prune.arrays import Bool, Int64
from instruct_prune.parameter import Value
from instruct_prune.select.draw import Draw
from instruct_prune.select.methods import method
from instruct_prune.select.mmd_split import mmd_curve
from instruct_prune.select.stratum import EASY_POOL, HARD_POOL, Codes, Stratum, fitting

Split = Annotated[float, Interval(gt=0, lt=1)] | Literal["auto", "mmd"]


def auto_split(kept_share: float) -> float:
    """The split that did best on the paper's five image sets: 0.25 below 30% kept (to a whole percent), else 0.5."""
    return 0.25 if round(kept_share, 2) < 0.3 else 0.5


def columns_for(*, split: Split) -> tuple[str, ...]:
    """What flexrand needs with this split."""
    return ("score", "embeddings") if split == "mmd" else ("score",)


def settle_split(draw: Draw, params: Mapping[str, Value]) -> tuple[dict[str, Value], dict[str, Any]]:
    """The split as a number, and for "mmd" the curve that it was read off, as [split, squared MMD] pairs."""
    if params["split"] == "mmd":
        curve = mmd_curve(draw, lambda split: functools.partial(flexrand, split=split))
        return {"split": min(curve, key=lambda point: point[1])[0]}, {"mmd": [list(point) for point in curve]}
    return {"split": auto_split(draw.share) if params["split"] == "auto" else params["split"]}, {}


def pool_shares(budget: int, easy_pool: int, hard_pool: int, odd: int = 0) -> tuple[int, int]:
    """Divide a budget between the easy and the hard pool.

    With g the share of the easy pool and b = budget / n: if g <= 0.5 the easy share is min(g, b/2) and the hard share the
    rest, else the hard share is min(1 - g, b/2) and the easy share the rest. That is half of the budget from each pool,
    and what the smaller one lacks from the other.

    Args:
        budget: units to spend, at most ``easy_pool + hard_pool``.
        easy_pool: units the easy pool holds.
        hard_pool: units the hard pool holds.
        odd: 1 gives the odd unit of an odd budget to the easy pool, 0 to the hard one.

    Returns:
        (easy share, hard share), which add up to ``budget``.
    """
    easy = min(max((budget + odd) // 2, budget - hard_pool), easy_pool)
    return easy, budget - easy


@method(needs=columns_for, strata="clusters", prepare=settle_split)
def flexrand(stratum: Stratum, *, split: Split = "auto") -> Codes:
    """Draw at random from the easy and the hard pool of each stratum.

    The easy pool is the first round(n * split) rows in order of score. Under a budget in tokens both the pools and
    their shares are measured in tokens.

    Args:
        stratum: the rows, easiest first.
        split: share of the stratum that is the easy pool, in (0, 1). "auto" is 0.25 below 30% kept, else 0.5. "mmd" is the
            split whose subset lies nearest to the whole set (see `mmd_split.mmd_curve`). Both words are settled over the
            whole selection, so a stratum is only ever drawn with a number.
    """
    if isinstance(split, str):
        raise ValueError(f"split={split!r} has not been settled: call select_rows")
    in_easy = np.cumsum(stratum.cost) <= round(int(stratum.cost.sum()) * split)
    size, paid = _both(stratum.cost, in_easy), _both(stratum.cost * stratum.forced, in_easy)
    easy, _ = pool_shares(stratum.budget, size[0], size[1], odd=int(stratum.rng.integers(2)))
    easy = min(max(easy, paid[0]), stratum.budget - paid[1])  # forced rows count in the pool they lie in
    codes = stratum.kept_so_far()
    reasons = np.where(in_easy, EASY_POOL, HARD_POOL).astype(np.int8)
    for pool, share in ((in_easy, easy - paid[0]), (~in_easy, stratum.budget - easy - paid[1])):
        drawn = stratum.rng.permutation(np.flatnonzero(pool & ~stratum.forced))
        drawn = drawn[fitting(stratum.cost[drawn], share)]
        codes[drawn] = reasons[drawn]
    return stratum.spend_rest(codes, reasons)


def _both(cost: Int64, in_easy: Bool) -> tuple[int, int]:
    return int(cost[in_easy].sum()), int(cost[~in_easy].sum())
