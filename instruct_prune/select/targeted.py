"""Selection towards a target: each query in turn takes the row nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.select.data import Pool
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import BUDGET, PICKED, Codes, Stratum
from instruct_prune.select.target import Nearest, turns


@method(needs=("target",))
def targeted(stratum: Stratum) -> Codes:
    """The rows nearest to the target's queries, each query in turn; several tasks take turns too.

    Averaging over queries instead would favour rows that are a little near to all of them. Source: LESS (Xia et al.,
    arXiv 2402.04333) for gradients, RDS+ (Ivison et al., arXiv 2503.01807) for round-robin over queries.

    Args:
        stratum: the rows; the pool has a target.
    """
    assert stratum.pool.target is not None
    target = stratum.pool.target.of_rows(stratum.rows)
    codes, left = stratum.kept_so_far(), stratum.left
    allowed = (codes == BUDGET) & (stratum.cost <= left)
    smallest = max(1, int(stratum.cost.min(initial=1)))
    served = left // smallest // max(1, len(target)) + 1
    nearest = Nearest(target, stratum.pool.row_id[stratum.rows], served)
    for query in turns(target):
        found = nearest.best(query, allowed)
        if found is None:
            return codes
        codes[found[0]] = PICKED
        left -= int(stratum.cost[found[0]])
        allowed[found[0]] = False
        allowed &= stratum.cost <= left
    raise AssertionError("turns never end")


@dataclass(frozen=True)
class Attribution:
    """Which query took a row, one entry for each row of the pool.

    Attributes:
        query: int64 [n], row id of the query in its file, -1 for rows that no query took (or a task as a whole).
        task: int32 [n], its task, -1 likewise.
        turn: int32 [n], how many rows were taken before, -1 likewise.
        similarity: float32 [n], cosine with the query that took the row; of other rows with the nearest query.
    """

    query: Int64
    task: Int32
    turn: Int32
    similarity: Float32


def attribute(pool: Pool, picked: Bool) -> Attribution:
    """Say for each picked row which query took it.

    The turns are taken once more over the picked rows alone: a row that was not picked was never the best of those left,
    so every query takes what it took before.

    Args:
        pool: with a target, in ascending row id.
        picked: bool [n], rows that the method picked (not those that had to be kept).
    """
    assert pool.target is not None
    n = len(pool)
    query, task = np.full(n, -1, dtype=np.int64), np.full(n, -1, dtype=np.int32)
    turn, near = np.full(n, -1, dtype=np.int32), np.empty(n, dtype=np.float32)
    for block, cosine in pool.target.similarity(np.arange(len(pool.target))):
        near[block] = cosine.max(axis=0)
    rows = np.flatnonzero(picked)
    target = pool.target.of_rows(rows)
    allowed = np.ones(len(rows), dtype=bool)
    nearest = Nearest(target, pool.row_id[rows], len(rows) // max(1, len(target)) + 1)
    for number, at in enumerate(turns(target)):
        found = nearest.best(at, allowed)
        if found is None:
            return Attribution(query, task, turn, near)
        row = rows[found[0]]
        allowed[found[0]] = False
        query[row], task[row], turn[row] = target.row_id[at], target.task[at], number
        near[row] = found[1]
    raise AssertionError("turns never end")
