"""Clusters of embeddings (k-means), and names for them that people can read."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from instruct_prune.arrays import Float32, Int32
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.select.data import Clusters, Embeddings

TRAIN = 256
"""Rows per cluster that the centres are learnt from, drawn at random: more cost time and gain nothing."""
NAMED = 300
"""Rows per cluster that its name is made from."""


def auto_clusters(n: int) -> int:
    """How many clusters n rows get when nobody says: sqrt(n / 2), at least 8, at most 1000, and 8 rows or more each.

    So a cluster has about sqrt(2 n) rows: enough for an easy and a hard pool, few enough to be about one thing.
    150 rows get 9 clusters, 400 get 14, 9,000 get 67, a million get 707. Below 64 rows it is n // 8.
    """
    return max(1, min(max(8, round(math.sqrt(n / 2))), 1000, n // 8))


def cluster(embeddings: Embeddings, k: int | str = "auto", seed: int = 0) -> Clusters:
    """Seeded k-means: mini-batch k-means of scikit-learn (Sculley, "Web-Scale K-Means Clustering", WWW 2010).

    Centres are learnt from at most 256 rows a cluster; then every row is given its nearest centre, block by block, so a
    memory-mapped file is never copied whole. Arithmetic runs on one thread, so the clusters do not depend on the number
    of cores. Clusters that end up empty (fewer distinct rows than k) are removed and the rest numbered without gaps, so
    k is the most there can be.

    Args:
        embeddings: n rows, L2-normalised.
        k: number of clusters, or "auto" (see `auto_clusters`).
        seed: of the rows that are learnt from, the initial centres and the batches.

    Raises:
        InputError: k is not between 1 and n, or a vector holds NaN or infinity.
    """
    vectors, n = embeddings.vectors, len(embeddings.row_id)
    if not n:
        raise InputError("there is nothing to cluster: no row has an embedding.")
    if k != "auto" and (isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n):
        raise InputError(f"--clusters {k} must be a whole number from 1 to {n}, the number of rows, or auto.")
    _check_finite(embeddings)
    centers = learn_centers(vectors, auto_clusters(n) if k == "auto" else int(k), seed)
    labels, distances = nearest_center(vectors, centers)
    used, renumbered = np.unique(labels, return_inverse=True)
    return Clusters(embeddings.row_id, renumbered.astype(np.int32), distances, centers[used])


def learn_centers(vectors: Float32, k: int, seed: int) -> Float32:
    """float32 [k, d]: centres of float32 [n, d], learnt from a sample; see `cluster`."""
    rng = np.random.default_rng(seed)
    sample = vectors
    if len(vectors) > TRAIN * k:
        sample = vectors[np.sort(rng.choice(len(vectors), TRAIN * k, replace=False))]
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    model = MiniBatchKMeans(k, random_state=seed, batch_size=max(1024, 2 * k), n_init=1, compute_labels=False)
    with threadpool_limits(limits=1):
        return np.asarray(model.fit(sample).cluster_centers_, dtype=np.float32)


def nearest_center(vectors: Float32, centers: Float32) -> tuple[Int32, Float32]:
    """Each row's nearest centre (int32 [n]) and its Euclidean distance (float32 [n])."""
    from threadpoolctl import threadpool_limits

    labels, distances = np.empty(len(vectors), dtype=np.int32), np.empty(len(vectors), dtype=np.float32)
    offset = (centers**2).sum(axis=1)
    with threadpool_limits(limits=1):
        for rows in blocks(len(vectors)):
            block = np.asarray(vectors[rows])
            nearest = (offset - 2 * (block @ centers.T)).argmin(axis=1)
            labels[rows] = nearest
            away = block - centers[nearest]
            distances[rows] = np.sqrt(np.einsum("ij,ij->i", away, away))
    return labels, distances


def name_clusters(texts: Sequence[str], labels: Int32, terms: int = 3) -> tuple[str, ...]:
    """Name each cluster by the terms that tell it from the others: "sql, table, query".

    The terms of a cluster are those whose TF-IDF weight, averaged over at most 300 of its rows, is furthest above the
    average of all clusters. Equal names get the cluster's number.

    Args:
        texts: the text of each row.
        labels: int32 [n], the cluster of each row, in 0..k-1.
        terms: words in a name.

    Returns:
        k names; "cluster 3" where a cluster has no words.
    """
    k = int(labels.max()) + 1 if len(labels) else 0
    rows = np.concatenate([_spread(np.flatnonzero(labels == c), NAMED) for c in range(k)]) if k else np.empty(0, int)
    names = _terms([texts[row][:2000] for row in rows.tolist()], labels[rows], k, terms)
    return tuple(
        f"{name} ({c})" if name and names.count(name) > 1 else name or f"cluster {c}" for c, name in enumerate(names)
    )


def _terms(texts: list[str], labels: Int32, k: int, terms: int) -> list[str]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        max_df=0.5 if k > 2 else 1.0,
        max_features=50_000,
        stop_words="english",
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
        dtype=np.float32,
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no text has a word that counts
        return [""] * k
    words = vectorizer.get_feature_names_out()
    members = [np.flatnonzero(labels == c) for c in range(k)]

    def mean(c: int) -> Float32:
        """float32 [words]: one cluster at a time, since a thousand of them would be a gigabyte."""
        found = weights[members[c]].sum(axis=0) / max(
            len(members[c]), 1
        )  # no row of a small cluster may be among the texts
        return np.asarray(found, dtype=np.float32).ravel()

    average = sum((mean(c) for c in range(k)), np.zeros(len(words), dtype=np.float32)) / k if k > 1 else 0
    names = []
    for c in range(k):
        distinct = mean(c) - average
        above = np.flatnonzero(distinct > 0)
        best = above[np.argsort(-distinct[above], kind="stable")[:terms]]
        names.append(", ".join(words[j] for j in best))
    return names


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the rows, evenly spread."""
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(int)]


def _check_finite(embeddings: Embeddings) -> None:
    for rows in blocks(len(embeddings.row_id)):
        bad = np.flatnonzero(~np.isfinite(embeddings.vectors[rows]).all(axis=1))
        if len(bad):
            raise InputError(
                f"the embedding of row {embeddings.row_id[rows.start + bad[0]]} holds NaN or infinity. "
                "Embed the rows again, or mend the file they came from."
            )
