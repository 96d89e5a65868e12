"""Where a selection's pools meet: the score between the easy and the hard pool, or between kept and dropped."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.select.data import Selection

EASY_HARD = "easy and hard pool"
KEPT_DROPPED = "kept and dropped"


@dataclass(frozen=True)
class Boundary:
    """A threshold in each stratum.

    Attributes:
        between: EASY_HARD or KEPT_DROPPED.
        score: float32 [k], the threshold in each stratum (halfway between the two rows that meet), NaN where none.
        distance: float32 [n], rows between a row and the threshold as a share of its stratum, NaN where none.
        in_easy: bool [n], below the threshold (near-duplicates are in no pool).
    """

    between: str
    score: Float32
    distance: Float32
    in_easy: Bool


def find_boundary(selection: Selection | None, n_response: Int64 | None = None) -> Boundary | None:
    """The boundary that the method drew; None for methods that draw none.

    A method with pools (FlexRand) cuts each stratum, easiest first and without rows that are no candidates, at ``split`` of its
    rows, or of its response tokens where the budget was in tokens. Methods that keep one end of each stratum cut at the last
    kept row.

    Args:
        selection: of the n rows.
        n_response: int [n], response tokens, where the budget was in tokens.
    """
    if selection is None or not len(selection):
        return None
    split = selection.params.get("split") if _because(selection, "easy pool", "hard pool").any() else None
    cost = np.ones(len(selection), dtype=np.int64) if n_response is None else n_response.astype(np.int64)
    k = len(selection.strata_names)
    score = np.full(k, np.nan, dtype=np.float32)
    distance = np.full(len(selection), np.nan, dtype=np.float32)
    in_easy = np.zeros(len(selection), dtype=bool)
    order = np.lexsort((selection.rank, selection.stratum))
    order = order[_open(selection)[order]]
    starts = np.searchsorted(selection.stratum[order], np.arange(k + 1))
    for i, (first, last) in enumerate(itertools.pairwise(starts.tolist())):
        rows = order[first:last]
        at = _cut(selection.selected[rows]) if split is None else _share(cost[rows], float(split))
        if at is None:
            return None
        in_easy[rows[:at]] = True
        distance[rows] = np.abs(np.arange(len(rows)) + 0.5 - at) / max(len(rows), 1)
        if 0 < at < len(rows):
            score[i] = selection.score[rows[at - 1 : at + 1]].mean()
    return Boundary(KEPT_DROPPED if split is None else EASY_HARD, score, distance, in_easy)


def _open(selection: Selection) -> Bool:
    """bool [n]: rows that the method could keep."""
    return ~_because(selection, "duplicate", "contaminated")


def _because(selection: Selection, *reasons: str) -> Bool:
    return np.isin(selection.reason, [code for code, reason in enumerate(selection.reasons) if reason in reasons])


def _share(cost: Int64, split: float) -> int:
    return int((np.cumsum(cost) <= round(int(cost.sum()) * split)).sum())


def _cut(kept: Bool) -> int | None:
    """How many rows lie below the cut when one end is kept; None when the kept rows are strewn about."""
    n_kept = int(kept.sum())
    if kept[:n_kept].all():
        return n_kept
    return len(kept) - n_kept if kept[len(kept) - n_kept :].all() else None
