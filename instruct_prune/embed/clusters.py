"""Clusters of embeddings (k-means), and names for them that people can read."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from instruct_prune.datatypes import Clusters, Embeddings, Float32
from instruct_prune.errors import InputError

BLOCK = 16_384
"""Rows that are in memory at once when each row is given its centre."""


def auto_clusters(n: int) -> int:
    """How many clusters n rows get when nobody says: sqrt(n / 2), at least 8, at most 1000, and 8 rows or more each.

    So a cluster has about sqrt(2 n) rows: enough for an easy and a hard pool, few enough to be about one thing.
    150 rows get 9 clusters, 400 get 14, 9,000 get 67, a million get 707. Below 64 rows it is n // 8.
    """
    return max(1, min(max(8, round(math.sqrt(n / 2))), 1000, n // 8))


def cluster(embeddings: Embeddings, k: int | str = "auto", seed: int = 0) -> Clusters:
    """Seeded mini-batch k-means (Sculley, "Web-scale k-means clustering", WWW 2010).

    The vectors are read in batches, so a memory-mapped file is never copied whole. Arithmetic runs on one thread, so
    the clusters do not depend on the number of cores. Clusters that end up empty (fewer distinct rows than k) are
    removed and the rest numbered without gaps, so k is the most there can be.

    Args:
        embeddings: n rows, L2-normalised.
        k: number of clusters, or "auto" (see `auto_clusters`).
        seed: of the initial centres and the batches.

    Raises:
        InputError: k is not between 1 and n, or a vector holds NaN or infinity.
    """
    vectors, n = embeddings.vectors, len(embeddings.row_id)
    if not n:
        raise InputError("there is nothing to cluster: no row has an embedding.")
    if k != "auto" and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n):
        raise InputError(f"--clusters {k} must be a whole number from 1 to {n}, the number of rows, or auto.")
    count = auto_clusters(n) if k == "auto" else int(k)
    _check_finite(embeddings)
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=1):
        model = MiniBatchKMeans(
            count, random_state=seed, batch_size=max(1024, 2 * count), n_init=1, compute_labels=False
        )
        centers = np.asarray(model.fit(vectors).cluster_centers_, dtype=np.float32)
        labels, distances = _assign(vectors, centers)
    used, labels = np.unique(labels, return_inverse=True)
    return Clusters(embeddings.row_id, labels.astype(np.int32), distances, centers[used])


def _assign(vectors: Float32, centers: Float32) -> tuple[np.ndarray, Float32]:
    labels, distances = np.empty(len(vectors), dtype=np.int32), np.empty(len(vectors), dtype=np.float32)
    offset = (centers**2).sum(axis=1)
    for rows in _blocks(len(vectors)):
        block = np.asarray(vectors[rows])
        nearest = (offset - 2 * block @ centers.T).argmin(axis=1)
        labels[rows] = nearest
        distances[rows] = np.linalg.norm(block - centers[nearest], axis=1)
    return labels, distances


def _check_finite(embeddings: Embeddings) -> None:
    for rows in _blocks(len(embeddings.row_id)):
        bad = np.flatnonzero(~np.isfinite(embeddings.vectors[rows]).all(axis=1))
        if len(bad):
            raise InputError(
                f"the embedding of row {embeddings.row_id[rows.start + bad[0]]} holds NaN or infinity. "
                "Embed the rows again, or mend the file they came from."
            )


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
