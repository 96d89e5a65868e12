"""Two dimensions to draw the embeddings in."""

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
"""Above this many rows UMAP takes longer than a report should; the map then has principal components only."""


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
        say(f"report: UMAP of {len(at):,} rows (extra `umap`)")
        found.append(_umap(vectors, at, seed))
    return found


def _has_umap() -> bool:
    spec = importlib.util.find_spec("umap")
    return spec is not None and spec.origin is not None  # an empty folder of that name is a spec without origin


def principal_components(vectors: Float32, at: Int64, seed: int = 0, steps: int = 30) -> Projection:
    """The first two principal components, by subspace iteration; memory is FIT_ROWS x d whatever n is.

    Source: Halko, Martinsson, Tropp, "Finding structure with randomness", SIAM Review 2011, algorithm 4.4.
    """
    rng = np.random.default_rng(seed)
    rows = at if len(at) <= FIT_ROWS else np.sort(rng.choice(at, FIT_ROWS, replace=False))
    fitted = np.asarray(vectors[rows], dtype=np.float64)
    mean = fitted.mean(axis=0)
    fitted -= mean
    total = float((fitted**2).sum()) or 1.0
    basis = rng.standard_normal((fitted.shape[1], min(10, *fitted.shape)))
    for _ in range(steps):
        basis, _ = np.linalg.qr(fitted.T @ (fitted @ basis))
    _, singular, rotation = np.linalg.svd(fitted @ basis, full_matrices=False)
    axes = (basis @ rotation.T)[:, :2]
    # The sign of an axis is arbitrary: the largest number of each is made positive, so that the map is the same every time.
    largest = axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])]
    axes *= np.where(largest < 0, -1, 1)
    xy = np.zeros((len(at), 2), dtype=np.float32)
    for part in blocks(len(at)):
        xy[part, : axes.shape[1]] = (vectors[at[part]] - mean.astype(np.float32)) @ axes.astype(np.float32)
    shares = [*(singular**2 / total), 0.0, 0.0]
    return Projection(
        "PCA", xy, (f"component 1 ({shares[0]:.0%} of variance)", f"component 2 ({shares[1]:.0%} of variance)")
    )


def _umap(vectors: Float32, at: Int64, seed: int) -> Projection:
    import umap

    # A seed makes UMAP run on one thread; n_jobs says so itself and spares a warning.
    xy = umap.UMAP(n_components=2, random_state=seed, n_jobs=1).fit_transform(np.asarray(vectors[at]))
    return Projection("UMAP", np.asarray(xy, dtype=np.float32), ("UMAP 1", "UMAP 2"))
