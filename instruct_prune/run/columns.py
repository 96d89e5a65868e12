"""The columns of a run that scores are made of, beside the losses: probes of the user's own, pooled states, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import positions_of
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.row_facts import field_of
from instruct_prune.score.columns import LABEL, POOLED
from instruct_prune.score.scores import find_score
from instruct_prune.score.table import ScoreTable


def columns_for(folder: RunFolder, rows: RowTable, table: ScoreTable, score: str) -> dict[str, NDArray[Any]]:
    """What a score may read beside losses, one entry for each of the table's n rows.

    Columns of one number a row are always there; pooled states (float32 [n, d] for each depth) and classes are read only
    where the score declares that it needs them.
    """
    needs = find_score(score).needs_of()
    found: dict[str, NDArray[Any]] = dict(table.more)
    if POOLED in needs:
        places = np.load(folder / "states" / "rows.npy", allow_pickle=False)
        at = positions_of(places, table.row_id, "the table of scores")
        for path in sorted((folder / "states").glob("mean_[0-9]*_dense.npy")):
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            column = np.full((len(table), values.shape[1]), np.nan, dtype=np.float32)
            column[at] = values
            found[POOLED + path.stem.split("_")[1]] = column
    strata = rows.facts.strata
    if LABEL in needs and strata is not None:
        found[LABEL] = np.asarray([field_of(row, strata) for row in rows.take(table.row_id)], dtype=np.str_)
    return found
