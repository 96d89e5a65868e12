"""How the kept rows are distributed beside all rows: histograms, shares of categories, distance in embedding space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.geometry import WholeSet
from instruct_prune.report.rows import Column

BINS = 48
"""At most; fewer where the rows are few."""
CATEGORIES = 12
"""Categories that are shown one by one; the rest are counted together."""
RANDOM_SUBSETS = 8


@dataclass(frozen=True)
class Histogram:
    """Counts between edges; the first and the last bin also hold what lies beyond.

    Attributes:
        edges: b + 1 numbers, ascending.
        counts: {series: b counts}.
        log: drawn on a logarithmic axis.
    """

    edges: list[float]
    counts: dict[str, list[int]]
    log: bool = False


@dataclass(frozen=True)
class Shift:
    """One column, kept beside all rows: a histogram for numbers, counts of categories otherwise."""

    column: str
    histogram: Histogram | None = None
    categories: list[str] | None = None
    counts: dict[str, list[int]] | None = None


@dataclass(frozen=True)
class Mmd:
    """Squared maximum mean discrepancy to the full set, unbiased, on at most ``rows`` rows of each side.

    Attributes:
        kept: of the kept rows.
        random: of random subsets with as many rows.
        width: of the Gaussian kernel (median distance).
        rows: rows compared of each side, at most.
    """

    kept: float
    random: list[float]
    width: float
    rows: int


def edges_of(values: NDArray[np.floating] | NDArray[np.integer], log: bool = False) -> list[float]:
    """Edges of at most BINS bins over the values; the far ends of long tails are cut off where there are many rows.

    Whole numbers get bins of whole width.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return [0.0, 1.0]
    low, high = (float(q) for q in np.quantile(finite, (0.002, 0.998) if len(finite) > 1000 else (0.0, 1.0)))
    bins = min(BINS, max(12, round(2 * len(finite) ** 0.5)))
    whole = np.issubdtype(values.dtype, np.integer)
    if log:
        edges = np.geomspace(max(low, 1.0), max(high, low, 1.0) + 1, bins + 1)
    else:
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    if whole:
        edges = np.unique(np.floor(edges))
        edges[-1] = max(edges[-1], np.floor(edges[0]) + 1)
    # Exactly what float32 holds, so that the page sorts the rows into the same bins.
    unique = np.unique(edges.astype(np.float32))
    return [float(edge) for edge in (unique if len(unique) > 1 else np.array([low, low + 1], dtype=np.float32))]


def bin_of(values: NDArray[np.floating] | NDArray[np.integer], edges: list[float]) -> Int64:
    """int64 [n]: each value's bin, -1 for NaN."""
    inner = np.searchsorted(np.asarray(edges), values, side="right") - 1
    return np.where(np.isfinite(values), np.clip(inner, 0, len(edges) - 2), -1)


def histogram(
    values: NDArray[np.floating] | NDArray[np.integer], series: dict[str, Bool], log: bool = False
) -> Histogram:
    """Count the values of each series (bool [n]) between common edges."""
    edges = edges_of(values, log)
    bins = bin_of(values, edges)
    counts = {
        name: np.bincount(bins[mask & (bins >= 0)], minlength=len(edges) - 1).tolist() for name, mask in series.items()
    }
    return Histogram(edges, counts, log)


def column_shift(column: Column, series: dict[str, Bool]) -> Shift:
    """A column of the data, counted in each series (bool [n])."""
    if column.numbers is not None:
        return Shift(column.name, histogram(column.numbers, series))
    assert column.codes is not None
    shown = list(column.values[:CATEGORIES])
    codes = np.where(column.codes >= CATEGORIES, CATEGORIES, column.codes)
    if len(column.values) > CATEGORIES:
        shown.append(f"{len(column.values) - CATEGORIES} others")
    if (codes < 0).any():
        codes = np.where(codes < 0, len(shown), codes)
        shown.append("(none)")
    counts = {name: np.bincount(codes[mask], minlength=len(shown)).tolist() for name, mask in series.items()}
    return Shift(column.name, categories=shown, counts=counts)


def mmd_to_full(vectors: Float32, at: Int64, subsets: Iterable[Bool], seed: int = 0) -> list[Mmd | None]:
    """How far each subset lies from all rows, beside random subsets of the same size; the numbers are those of ``compare``.

    Args:
        vectors: float32 [m, d].
        at: int64 [n], the rows.
        subsets: bool [n] each; None is returned for one of fewer than two rows.
        seed: of the samples.
    """
    if len(at) < 2:
        return [None for _ in subsets]
    all_rows = len(at) == len(vectors) and bool((at == np.arange(len(at))).all())
    whole = WholeSet(vectors if all_rows else vectors[at], seed)
    found: list[Mmd | None] = []
    for mask in subsets:
        kept = np.flatnonzero(mask)
        if len(kept) < 2:
            found.append(None)
            continue
        rng = np.random.default_rng(seed)
        draws = (rng.choice(len(at), len(kept), replace=False) for _ in range(RANDOM_SUBSETS))
        random = [whole.mmd_squared(rows) for rows in draws]
        found.append(Mmd(whole.mmd_squared(kept), random, whole.width, min(whole.SAMPLE, len(at))))
    return found
