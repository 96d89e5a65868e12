"""Coverage-centric coreset selection (CCS): every range of scores is represented."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge, Interval

from instruct_prune.arrays import Int64
from instruct_prune.select.budget import largest_remainder
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import BUDGET, PICKED, TOO_HARD, Codes, Stratum, fitting


@method(needs=("score",))
def ccs(
    stratum: Stratum, *, cut: Annotated[float, Interval(ge=0, lt=1)] = 0.1, bins: Annotated[int, Ge(1)] = 50
) -> Codes:
    """Cut off the hardest rows, divide the range of scores into equal bins, draw as many from each as from any other.

    A bin that has too few gives what it has, and the others give equally more. Where the budget is more than the cut
    leaves, less is cut. Source: Zheng et al., "Coverage-centric Coreset Selection for High Pruning Rates" (ICLR 2023),
    algorithm 1; the paper tunes the cut (its beta) and uses 50 bins.

    Args:
        stratum: the rows, easiest first.
        cut: share of the rows that is cut off.
        bins: number of ranges.
    """
    needed = int(np.searchsorted(np.cumsum(stratum.cost), stratum.budget)) + 1  # so many easy rows fill the budget
    left_in = max(len(stratum) - int(cut * len(stratum)), needed)
    cut_off = (np.arange(len(stratum)) >= left_in) & ~stratum.forced
    score = stratum.score.astype(np.float64)
    edges = np.linspace(score[0], score[~cut_off][-1], bins + 1)[1:-1]
    label = np.searchsorted(edges, score, side="right")
    size = _sums(stratum.cost * ~cut_off, label, bins)
    paid = _sums(stratum.cost * stratum.forced, label, bins)
    shares = largest_remainder(stratum.budget, np.ones(bins, dtype=np.int64), size, paid)
    codes = stratum.kept_so_far()
    codes[cut_off] = TOO_HARD
    for bin_, share in enumerate((shares - paid).tolist()):
        drawn = stratum.rng.permutation(np.flatnonzero((label == bin_) & (codes == BUDGET)))
        codes[drawn[fitting(stratum.cost[drawn], share)]] = PICKED
    return stratum.spend_rest(codes, np.full(len(stratum), PICKED, dtype=np.int8))


def _sums(cost: Int64, label: Int64, bins: int) -> Int64:
    return np.bincount(label, weights=cost, minlength=bins).astype(np.int64)
