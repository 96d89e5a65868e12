"""Two dimensions to draw the embeddings in: the map of the report and of the export `viewer`."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.geometry import blocks
from instruct_prune.progress import say

FIT_ROWS = 20_000
"""Rows the principal axes are learnt from, at random: their sampling error is far below what an eye can see."""
UMAP_ROWS = 50_000
"""Above this many rows UMAP takes longer than a map should; the map then has principal components only."""


@dataclass(frozen=True)
class Projection:
    """A map of the rows.

    Attributes:
        name: "PCA", "UMAP".
        xy: float32 [n, 2].
        axes: what the two axes are.
    """

    name: str
    xy: Float32
    axes: tuple[str, str]


def project(vectors: Float32, at: Int64, seed: int = 0) -> list[Projection]:
    """Principal components, and UMAP where it is installed and the rows are not too many.

    Args:
        vectors: float32 [m, d], possibly memory-mapped.
        at: int64 [n], the rows to draw.
        seed: of the sample the axes are learnt from, and of UMAP.
    """
    found = [principal_components(vectors, at, seed)]
    if _has_umap() and 15 < len(at) <= UMAP_ROWS:
        say(f"map: UMAP of {len(at):,} rows (extra `umap`)")
        found.append(_umap(vectors, at, seed))
    return found


def _has_umap() -> bool:
    spec = importlib.util.find_spec("umap")
    return spec is not None and spec.origin is not None  # an empty folder of that name is a spec without origin


def principal_components(vectors: Float32, at: Int64, seed: int = 0) -> Projection:
    """The first two principal components, learnt from at most FIT_ROWS rows; memory is FIT_ROWS x d whatever n is."""
    from sklearn.decomposition import PCA

    rng = np.random.default_rng(seed)
    rows = at if len(at) <= FIT_ROWS else np.sort(rng.choice(at, FIT_ROWS, replace=False))
    xy = np.zeros((len(at), 2), dtype=np.float32)
    shares = [0.0, 0.0]
    if len(rows) > 1:  # one row varies in no direction
        fitted = PCA(min(2, len(rows), vectors.shape[1]), random_state=seed).fit(vectors[rows])
        for part in blocks(len(at)):
            xy[part, : fitted.n_components_] = fitted.transform(vectors[at[part]])
        shares = [*np.nan_to_num(fitted.explained_variance_ratio_).tolist(), 0.0]
    return Projection(
        "PCA", xy, (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%} of variance)")
    )


def _umap(vectors: Float32, at: Int64, seed: int) -> Projection:
    import umap

    # A seed makes UMAP run on one thread; n_jobs says so itself and spares a warning.
    xy = umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(np.asarray(vectors[at]))
    return Projection("UMAP", np.asarray(xy, dtype=np.float32), ("UMAP 1", "UMAP 2"))
