"""Facility location: every row well represented by some kept one."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge

from instruct_prune.arrays import Float32, Int64
from instruct_prune.geometry import nearest_neighbors
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("embeddings",))
def facility_location(stratum: Stratum, *, neighbors: Annotated[int, Ge(1)] = 32) -> Codes:
    """Greedily maximise the sum over all rows of the cosine to the nearest kept one.

    Only a row's nearest neighbours (and itself) can represent it, so memory is rows x neighbours; finding them takes
    rows^2 x d, the greedy steps little. Negative cosines count as 0. The result is at least 63% of the optimum.
    Source: Wei, Iyer & Bilmes, "Submodularity in Data Subset Selection and Active Learning" (ICML 2015).

    Args:
        stratum: the rows.
        neighbors: how many nearest rows can represent a row.
    """
    served, by, cosine = _edges(stratum, neighbors)
    order = np.argsort(by, kind="stable")
    served, cosine = served[order], cosine[order]
    starts = np.concatenate([[0], np.cumsum(np.bincount(by, minlength=len(stratum)))]).tolist()
    best = np.zeros(len(stratum), dtype=np.float32)  # how well each row is represented so far

    def gain(row: int) -> float:
        edges = slice(starts[row], starts[row + 1])
        return float(np.maximum(cosine[edges] - best[served[edges]], 0).sum())

    def serve(row: int) -> None:
        edges = slice(starts[row], starts[row + 1])
        best[served[edges]] = np.maximum(best[served[edges]], cosine[edges])

    for row in np.flatnonzero(stratum.forced).tolist():
        serve(row)
    return stratum.lazy_greedy(gain, serve)


def _edges(stratum: Stratum, neighbors: int) -> tuple[Int64, Int64, Float32]:
    """(row, a row that can represent it, cosine), one entry per pair; a row represents itself with cosine 1."""
    m = len(stratum)
    rows = np.arange(m)
    if m == 1:
        return rows, rows, np.ones(1, dtype=np.float32)
    index, cosine = nearest_neighbors(stratum.vectors(), neighbors)
    return (
        np.concatenate([rows, np.repeat(rows, index.shape[1])]),
        np.concatenate([rows, index.ravel()]),
        np.concatenate([np.ones(m, dtype=np.float32), np.maximum(cosine.ravel(), 0)]),
    )
