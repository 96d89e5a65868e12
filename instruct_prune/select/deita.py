"""Deita: the best-scored rows that are not too similar to one another."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from annotated_types import Interval

from instruct_prune.geometry import nearest_similarity
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import PICKED, TOO_SIMILAR, Codes, Stratum

BLOCK = 1024


@method(needs=("score", "embeddings"))
def deita(stratum: Stratum, *, threshold: Annotated[float, Interval(gt=0, le=1)] = 0.9) -> Codes:
    """Hardest first, passing over each row whose cosine with a kept one reaches the threshold.

    Where the rows run out before the budget does, rows that were passed over fill it, hardest first: never a short
    selection. Time is rows looked at x kept rows x d. Source: Liu et al., "What Makes Good Data for Alignment?" (ICLR
    2024), algorithm 1, with learning complexity in the place of the paper's complexity times quality.

    Args:
        stratum: the rows, easiest first.
        threshold: cosine at which two rows are too similar.
    """
    vectors, codes, left = stratum.vectors(), stratum.kept_so_far(), stratum.left
    kept = np.flatnonzero(stratum.forced).tolist()
    order = np.flatnonzero(~stratum.forced)[::-1]
    for start in range(0, len(order), BLOCK):
        rows = order[start : start + BLOCK]
        if stratum.cost[order[start:]].min() > left:
            break
        near = nearest_similarity(vectors[rows], vectors, rows=np.array(kept, dtype=np.int64)) >= threshold
        among = vectors[rows] @ vectors[rows].T >= threshold
        for i, row in enumerate(rows.tolist()):
            if near[i]:
                codes[row] = TOO_SIMILAR
            elif stratum.cost[row] <= left:
                codes[row] = PICKED
                left -= int(stratum.cost[row])
                kept.append(row)
                near |= among[i]
    passed_over = np.flatnonzero(codes == TOO_SIMILAR)[::-1]
    for row in passed_over.tolist():
        if not left:
            break
        if stratum.cost[row] <= left:
            codes[row] = PICKED
            left -= int(stratum.cost[row])
    return codes
