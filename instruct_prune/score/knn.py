"""k-NN learning complexity: how sure are a row's neighbours of its class, depth by depth?

Source: the first version of the paper (arXiv 2402.05356 v1), section on images without a classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from annotated_types import Ge

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks, squared_distances
from instruct_prune.score.columns import LABEL, POOLED, Columns
from instruct_prune.score.scores import score

CANDIDATES = (1, 3, 5, 10, 20, 50)
"""Values of k that are tried."""
ASKED = 2048
"""Most rows that k is chosen on."""
SPARE = 8
"""Further rows whose exact distance is looked at, because the fast form may order rows of nearly equal distance wrongly."""
BLOCK = 1 << 24
"""Numbers held at a time."""
NEAREST = 1e-6
"""The least distance: that of equal rows is 0, and a neighbour weighs 1 / distance."""


@score(needs=(POOLED, LABEL))
def knn_lc(columns: Columns, *, k: Annotated[int, Ge(1)] | None = None) -> Float32:
    """One minus the mean over depths of the weighted k-NN confidence in the row's own class.

    At each depth the confidence is the sum over the k nearest others of [same class] / distance, divided by the sum of
    1 / distance. Rows with a state that is not finite get NaN and are nobody's neighbours.

    Args:
        columns: pooled states of several depths (float32 [n, d] each) and classes (integers [n]).
        k: number of neighbours; chosen at each depth by `choose_k` when not given.

    Raises:
        InputError: fewer than two rows have states, or k is more than the other rows.
    """
    states, labels = columns.pooled(), columns[LABEL]
    known = np.logical_and.reduce([np.isfinite(depth).all(axis=1) for depth in states])
    n = int(known.sum())
    if n < 2:
        raise InputError(f"knn_lc compares rows with one another, and {n} rows have pooled states. Score more rows.")
    if k is not None and k >= n:
        raise InputError(f"knn_lc: k is {k}, it must be less than the {n} rows.")
    classes = np.unique(labels[known], return_inverse=True)[1].astype(np.int64)
    sure = np.zeros(n)
    for depth in states:
        features = np.ascontiguousarray(depth[known], dtype=np.float32)
        distances, positions = neighbours(features, k or min(CANDIDATES[-1], n - 1))
        chosen = k or choose_k(distances, classes[positions], classes)
        sure += confidence(distances[:, :chosen], classes[positions[:, :chosen]] == classes[:, None])
    values = np.full(len(columns), np.nan, dtype=np.float32)
    values[known] = 1 - sure / len(states)
    return values


def neighbours(features: Float32, k: int) -> tuple[Float32, Int64]:
    """The k nearest others of every row, nearest first (ties: the lower position).

    Candidates are found by |x|^2 + |y|^2 - 2xy, which is fast, and their distances are then computed from the differences,
    because the first form loses the digits of small distances.

    Args:
        features: float32 [n, d].
        k: at most n - 1.

    Returns:
        distances float32 [n, k] and positions int64 [n, k]. Besides them, BLOCK numbers are held at a time.
    """
    n, d = features.shape
    m = min(k + SPARE, n - 1)
    distances, positions = np.empty((n, k), dtype=np.float32), np.empty((n, k), dtype=np.int64)
    for rows in blocks(n, max(1, BLOCK // max(n, m * d))):
        own = np.arange(rows.start, rows.stop)
        squared = squared_distances(features[rows], features)
        squared[own - rows.start, own] = np.inf
        near = np.sort(np.argpartition(squared, m - 1, axis=1)[:, :m], axis=1)
        exact = np.linalg.norm(features[near] - features[rows][:, None], axis=2)
        order = np.argsort(exact, axis=1, kind="stable")[:, :k]
        distances[rows] = np.take_along_axis(exact, order, axis=1)
        positions[rows] = np.take_along_axis(near, order, axis=1)
    return distances, positions


def confidence(distances: Float32, same: Bool) -> Float32:
    """float32 [q]: share of 1 / distance that neighbours of the row's own class have.

    Args:
        distances: float32 [q, k].
        same: bool [q, k], whether the neighbour is of the row's class.
    """
    weights = 1 / np.maximum(distances, np.float32(NEAREST))
    share: Float32 = (weights * same).sum(axis=1) / weights.sum(axis=1)
    return share


def choose_k(
    distances: Float32, classes: Int64, own: Int64, candidates: Sequence[int] = CANDIDATES, seed: int = 0
) -> int:
    """The k with the best leave-one-out accuracy of weighted voting; the smallest of equals.

    At most ASKED rows are asked, drawn at random above that number. Version 0.1 drew other rows, with torch's generator, so
    above ASKED rows k may differ from its choice where two candidates are nearly equally good.

    Args:
        distances: float32 [n, m], to the m nearest others, nearest first.
        classes: int64 [n, m], of these neighbours, numbered from 0.
        own: int64 [n], the class of each row.
        candidates: values of k; those above m are left out.
        seed: of the rows that are asked.
    """
    n, m = distances.shape
    usable = sorted(k for k in candidates if k <= m) or [m]
    asked = np.arange(n) if n <= ASKED else np.random.default_rng(seed).choice(n, ASKED, replace=False)
    weights, classes, own = 1 / np.maximum(distances[asked], np.float32(NEAREST)), classes[asked], own[asked]
    votes = np.zeros((len(asked), int(max(classes.max(), own.max())) + 1), dtype=np.float32)
    right, done = [], 0
    for k in usable:
        for j in range(done, k):
            votes[np.arange(len(asked)), classes[:, j]] += weights[:, j]
        done = k
        right.append(int((votes.argmax(axis=1) == own).sum()))
    return usable[int(np.argmax(right))]
