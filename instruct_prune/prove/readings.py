"""What is read off the losses of a set of rows under a trained arm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from instruct_prune.arrays import Float32, Int64


@dataclass(frozen=True)
class Readings:
    """Nats on one set of rows; the first decides, the others stand beside it.

    Attributes:
        per_token: mean over all response tokens: what fine-tuning minimises.
        per_row: mean over the rows' means: an answer of two words counts as much as one of two hundred.
        inner: the same, of rows without their first and their last token, whose losses are about format.
        short, middle, long: per token, of the thirds of the rows by length of response.
    """

    per_token: float
    per_row: float
    inner: float
    short: float
    middle: float
    long: float


@dataclass(frozen=True)
class Judged:
    """What an arm was found to be.

    Attributes:
        readings: {set: what was read off its losses}.
        tasks: {task of lm-evaluation-harness: {metric: value}}; empty where none was asked for.
    """

    readings: Mapping[str, Readings]
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def read(values: Float32, offset: Int64) -> Readings:
    """The readings of n rows.

    Args:
        values: float32 [m], nats of every response token, row after row.
        offset: int64 [n + 1], row i's tokens are ``values[offset[i]:offset[i + 1]]``; every row has at least one.
    """
    counts = np.diff(offset)
    sums = np.add.reduceat(values.astype(np.float64), offset[:-1])
    inside = counts > 2
    ends = values[offset[:-1]].astype(np.float64) + values[offset[1:] - 1]
    inner = (sums - ends)[inside] / (counts - 2)[inside]
    thirds = np.array_split(np.argsort(counts, kind="stable"), 3)
    short, middle, long = (float(sums[rows].sum() / counts[rows].sum()) if len(rows) else np.nan for rows in thirds)
    return Readings(
        per_token=float(sums.sum() / counts.sum()),
        per_row=float((sums / counts).mean()),
        inner=float(inner.mean()) if inside.any() else float("nan"),
        short=short,
        middle=middle,
        long=long,
    )
