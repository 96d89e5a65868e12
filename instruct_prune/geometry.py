"""Distances between vectors: what scores, selection and reports share. numpy only, memory linear in the rows."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from instruct_prune.arrays import Float32, Int64

BLOCK = 4096
"""Rows that are multiplied at once."""


def blocks(n: int, size: int = BLOCK) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` rows that cover n rows."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def median_distance(x: Float32) -> float:
    """The median rule for a kernel's width: the median Euclidean distance between two of the rows (float32 [m, d])."""
    above = np.triu_indices(len(x), k=1)
    distance = float(np.median(np.sqrt(squared_distances(x, x)[above]))) if len(x) > 1 else 0.0
    return distance or 1.0


class WholeSet:
    """The set that subsets are compared with: how far is a subset's distribution from it, in embedding space?

    By the squared maximum mean discrepancy (MMD) with the kernel exp(-||a - b||^2 / (2 width^2)): Gretton et al., "A Kernel
    Two-Sample Test", JMLR 2012, lemma 6. It is estimated on at most 2048 rows of each side; the width of the kernel is the
    median distance of the whole set's sample. One comparison costs about 2 x 2048^2 kernel values, whatever the size of the
    set.

    Args:
        vectors: float32 [n, d], L2-normalised, n >= 2.
        seed: of the samples.
    """

    SAMPLE = 2048

    def __init__(self, vectors: Float32, seed: int) -> None:
        self.vectors, self.seed = vectors, seed
        self.rows = self.sample(np.arange(len(vectors)))
        self.x = np.asarray(vectors[self.rows], dtype=np.float32)
        self.width = median_distance(self.x)
        self.mean = mean_kernel(self.x, self.width)

    def sample(self, rows: Int64) -> Int64:
        """int64 [at most 2048]: some of these rows at random, or all, in ascending order."""
        if len(rows) > self.SAMPLE:
            rows = np.random.default_rng(self.seed).choice(rows, self.SAMPLE, replace=False)
        return np.sort(rows)

    def mmd_squared(self, rows: Int64) -> float:
        """The squared MMD of the subset of these rows (int64 [m], m >= 2) to the whole set; it may fall below zero.

        The estimate is unbiased: a row is not compared with itself, between the samples as within them.
        """
        rows = self.sample(rows)
        y = np.asarray(self.vectors[rows], dtype=np.float32)
        shared = len(np.intersect1d(rows, self.rows))
        return self.mean + mean_kernel(y, self.width) - 2 * _between(self.x, y, self.width, shared)


def nearest_similarity(
    queries: Float32, vectors: Float32, own: Int64 | None = None, rows: Int64 | None = None
) -> Float32:
    """float32 [m]: the cosine of each query with its nearest row, -inf where there is none.

    Args:
        queries: float32 [m, d], L2-normalised.
        vectors: float32 [n, d], L2-normalised, possibly memory-mapped.
        own: int64 [m], the position of each query in ``vectors``, which does not count as its own neighbour.
        rows: int64 [k], the positions to look among; all of them by default.
    """
    nearest = np.full(len(queries), -np.inf, dtype=np.float32)
    rows = np.arange(len(vectors)) if rows is None else rows
    for right in blocks(len(rows)):
        among = np.asarray(vectors[rows[right]], dtype=np.float32)
        for left in blocks(len(queries)):
            cosine = queries[left] @ among.T
            if own is not None:
                cosine[own[left][:, None] == rows[right][None, :]] = -np.inf
            np.maximum(nearest[left], cosine.max(axis=1), out=nearest[left])
    return nearest


def mean_kernel(x: Float32, width: float) -> float:
    """The mean kernel of two different rows of a sample."""
    m = len(x)
    return (_kernel_sum(x, x, width) - m) / (m * (m - 1))


def _between(x: Float32, y: Float32, width: float, shared: int) -> float:
    """The mean kernel of two rows, one of each sample, that are not one row that both samples have."""
    pairs = len(x) * len(y) - shared
    return (_kernel_sum(x, y, width) - shared) / pairs if pairs else 1.0


def _kernel_sum(x: Float32, y: Float32, width: float) -> float:
    total = 0.0
    for rows in blocks(len(x)):
        total += float(np.exp(squared_distances(x[rows], y) / np.float32(-2 * width**2)).sum(dtype=np.float64))
    return total


def squared_distances(x: Float32, y: Float32) -> Float32:
    """float32 [m, n]: squared Euclidean distances."""
    squared: Float32 = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * (x @ y.T)
    return np.maximum(squared, 0)


def nearest_neighbors(vectors: Float32, k: int) -> tuple[Int64, Float32]:
    """The k nearest other rows of each row, exactly: n^2 d multiplications, k n numbers of memory.

    Args:
        vectors: float32 [n, d], L2-normalised, n >= 2.
        k: number of neighbours; n - 1 where that is less.

    Returns:
        (int64 [n, k] positions, float32 [n, k] cosines), nearest first (ties: the lower position).
    """
    n, k = len(vectors), min(k, len(vectors) - 1)
    index, cosine = np.zeros((n, k), dtype=np.int64), np.full((n, k), -np.inf, dtype=np.float32)
    for left in blocks(n, BLOCK // 4):
        for right in blocks(n, 4 * BLOCK):
            found = vectors[left] @ vectors[right].T
            same = np.arange(max(left.start, right.start), min(left.stop, right.stop))
            found[same - left.start, same - right.start] = -np.inf
            near = np.argpartition(-found, min(k, found.shape[1] - 1), axis=1)[:, :k]
            merged = np.hstack([cosine[left], np.take_along_axis(found, near, axis=1)])
            where = np.hstack([index[left], near + right.start])
            best = np.lexsort((where, -merged), axis=1)[:, :k]
            index[left] = np.take_along_axis(where, best, axis=1)
            cosine[left] = np.take_along_axis(merged, best, axis=1)
    return index, cosine
