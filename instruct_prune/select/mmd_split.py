"""Which split? Without training: the one whose subset is distributed most like the whole set."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.geometry import WholeSet
from instruct_prune.select.draw import Draw
from instruct_prune.select.stratum import FIRST_KEPT, Spend

SPLITS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def mmd_curve(draw: Draw, drawing_at: Callable[[float], Spend]) -> list[tuple[float, float]]:
    """Draw with every split and measure how far each subset lies from the whole set.

    The distance is the squared maximum mean discrepancy of the embeddings (see `geometry.WholeSet`). It is an estimate:
    splits that differ by less than a few 1e-4 are as good as each other. It costs 11 draws and as many comparisons of
    samples of 2048 rows: a few seconds, and the draws, which grow with the set.

    Args:
        draw: the selection without its method.
        drawing_at: gives, for a split, the method that draws with it.

    Returns:
        (split, squared MMD) for each split of SPLITS.

    Raises:
        InputError: fewer than two rows would be kept.
    """
    assert draw.pool.embeddings is not None  # declared as a need
    whole = WholeSet(draw.pool.embeddings, draw.seed)
    curve = []
    for split in SPLITS:
        kept = np.flatnonzero(draw.run(drawing_at(split)) >= FIRST_KEPT)
        if len(kept) < 2:
            raise InputError("split=mmd needs at least two kept rows to compare: keep more, or name a split.")
        curve.append((split, whole.mmd_squared(kept)))
    return curve
