"""D2 pruning: difficulty spread over a neighbourhood graph, then taken from it one row at a time."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Ge

from instruct_prune.geometry import nearest_neighbors
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("score", "embeddings"))
def d2(
    stratum: Stratum,
    *,
    neighbors: Annotated[int, Ge(1)] = 10,
    spread: Annotated[float, Ge(0)] = 1.0,
    penalty: Annotated[float, Ge(0)] = 1.0,
) -> Codes:
    """A row's value is its score plus its neighbours', weighted by nearness; picking it lowers its neighbours' value.

    Scores are scaled to 0..1. Forward: x_i += sum over neighbours j of exp(-spread * d_ij^2) x_j. Then again and again
    the row of the greatest x, whose neighbours lose exp(-penalty * d^2) x. Time is rows^2 x d, memory rows x
    neighbours.
    Source: Maharana et al., "D2 Pruning: Message Passing for Balancing Diversity and Difficulty in Data Pruning" (ICLR
    2024), equations 2 to 4.

    Args:
        stratum: the rows.
        neighbors: of each row in the graph.
        spread: the paper's gamma_f.
        penalty: the paper's gamma_r; the larger, the less diversity counts.
    """
    if len(stratum) == 1:
        return stratum.take(np.arange(1))
    score = stratum.score.astype(np.float64)
    value = (score - score[0]) / ((score[-1] - score[0]) or 1.0)
    index, cosine = nearest_neighbors(stratum.vectors(), neighbors)
    squared = np.maximum(2 - 2 * cosine.astype(np.float64), 0)
    value = value + (np.exp(-spread * squared) * value[index]).sum(axis=1)
    message = np.exp(-penalty * squared)

    def pick(row: int) -> None:
        value[index[row]] -= message[row] * max(value[row], 0)  # a negative message would raise the neighbours

    for row in np.flatnonzero(stratum.forced)[::-1].tolist():
        pick(row)
    return stratum.lazy_greedy(lambda row: float(value[row]), pick)
