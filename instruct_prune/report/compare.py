"""How selections differ from one another and from random, and how far scores agree on what is hard: numbers and tables."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.errors import InputError
from instruct_prune.geometry import WholeSet, nearest_similarity
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Pool
from instruct_prune.terminal import safe

if TYPE_CHECKING:
    from rich.table import Table

Float64 = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Profile:
    """What one selection is like.

    Attributes:
        name: of the selection; "random, 100 rows" for a reference.
        rows: kept.
        tokens: response tokens kept.
        score: score at 5, 25, 50, 75 and 95% of the kept rows.
        length: response tokens at the same places.
        clusters_met: share of the clusters with at least one kept row, or None without clusters.
        cluster_shift: share of the kept rows that would have to change cluster for the clusters to have the shares that
            they have in the whole set (total variation distance), or None.
        mmd: squared maximum mean discrepancy to the whole set in embedding space, unbiased, or None without embeddings.
        nearest: mean cosine distance of a kept row to its nearest other kept row (it falls with the number of rows, so
            compare equal budgets), or None.
    """

    name: str
    rows: int
    tokens: int
    score: tuple[float, ...]
    length: tuple[float, ...]
    clusters_met: float | None
    cluster_shift: float | None
    mmd: float | None
    nearest: float | None


@dataclass(frozen=True)
class Comparison:
    """Several selections from the same rows.

    Attributes:
        profiles: of the whole set, of each selection, and of random at each of their budgets.
        names: m selections, the random references last.
        jaccard: float64 [m, m], rows kept by both over rows kept by either.
    """

    profiles: tuple[Profile, ...]
    names: tuple[str, ...]
    jaccard: Float64


@dataclass(frozen=True)
class Correlation:
    """How far m score columns agree.

    Attributes:
        names: of the columns.
        rows: on which all have a value.
        left_out: rows on which some have none.
        top: share of the rows that the overlap looks at.
        spearman, kendall: float64 [m, m], rank correlations; Kendall's is tau-b. NaN where a column is constant.
        overlap: float64 [m, m], share of the hardest ``top`` of one that is in the hardest ``top`` of the other; by
            chance it is ``top``.
    """

    names: tuple[str, ...]
    rows: int
    left_out: int
    top: float
    spearman: Float64
    kendall: Float64
    overlap: Float64


def compare(pool: Pool, kept: Mapping[str, Int64], *, clusters: Int32 | None = None, seed: int = 0) -> Comparison:
    """Put selections from the same rows side by side, always with random at the same number of rows.

    Args:
        pool: the scored rows; with embeddings for the discrepancy and the nearest neighbours.
        kept: row ids kept, by name of the selection.
        clusters: int32 [n], the cluster of each row of the pool.
        seed: of the random references and the samples that embeddings are compared on.

    Raises:
        InputError: no selection is given, one is empty, or one keeps rows that are not in the pool.
    """
    if not kept:
        raise InputError("there is nothing to compare: name at least one run with a selection.")
    chosen = {name: _chosen(name, row_ids, pool) for name, row_ids in kept.items()}
    for rows in sorted({int(mask.sum()) for mask in chosen.values()}):
        reference = np.zeros(len(pool), dtype=bool)
        reference[np.random.default_rng(seed).choice(len(pool), rows, replace=False)] = True
        chosen[f"random, {rows} rows"] = reference
    measure = _Measure(pool, clusters, seed)
    whole = measure.profile("(all)", np.ones(len(pool), dtype=bool))
    profiles = (whole, *(measure.profile(name, mask) for name, mask in chosen.items()))
    jaccard = np.eye(len(chosen))
    for (a, x), (b, y) in itertools.combinations(enumerate(chosen.values()), 2):
        jaccard[a, b] = jaccard[b, a] = (x & y).sum() / (x | y).sum()
    return Comparison(profiles, tuple(chosen), jaccard)


def score_columns(tables: Mapping[str, ScoreTable]) -> dict[str, Float32]:
    """Scores, losses and columns of probes of runs over the same rows, as "run:score", "run:loss_dense", for `correlate`.

    Args:
        tables: score tables by name of the run. Rows without a score are NaN.

    Raises:
        InputError: the runs did not read the same rows.
    """
    columns: dict[str, Float32] = {}
    first_name, first = next(iter(tables.items()))
    for name, table in tables.items():
        if not np.array_equal(table.row_id, first.row_id):
            raise InputError(
                f"{name} and {first_name} have scores of different rows ({len(table)} and {len(first)}): only runs over "
                "the same data with the same --limit can be correlated."
            )
        measured = {"score": table.score, **{f"loss_{s.name}": table.losses[:, j] for j, s in enumerate(table.subnets)}}
        for column, values in (measured | dict(table.more)).items():
            columns[f"{name}:{column}"] = np.where(table.scored, values, np.float32(np.nan))
    return columns


def correlate(columns: Mapping[str, Float32], top: float = 0.3) -> Correlation:
    """Correlate the ranks of every two score columns, which is how the papers judge a cheaper score.

    Args:
        columns: float [n] by name. Rows on which any of them is not a finite number are left out, and counted.
        top: share of the rows for the overlap of the hardest, in (0, 1].

    Raises:
        InputError: fewer than two columns, different lengths, ``top`` out of range, or fewer than two rows in common.
    """
    from scipy.stats import kendalltau, rankdata

    if len(columns) < 2 or len({len(column) for column in columns.values()}) != 1:
        raise InputError("correlate needs two or more score columns over the same rows.")
    if not 0 < top <= 1:
        raise InputError(
            f"--top {top} must lie above 0 and be at most 1: it is the share of hardest rows that are compared."
        )
    table = np.stack([np.asarray(column, dtype=np.float64) for column in columns.values()])
    common = np.isfinite(table).all(axis=0)
    n = int(common.sum())
    table = table[:, common]
    if n < 2:
        raise InputError(f"the score columns have {n} rows in common; at least 2 are needed to correlate them.")
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = np.corrcoef(rankdata(table, axis=1))
    hardest = np.argsort(-table, axis=1, kind="stable")[:, : max(1, round(top * n))]
    m = len(table)
    kendall, overlap = np.eye(m), np.eye(m)
    for a, b in itertools.combinations(range(m), 2):
        kendall[a, b] = kendall[b, a] = kendalltau(table[a], table[b]).statistic
        overlap[a, b] = overlap[b, a] = len(np.intersect1d(hardest[a], hardest[b])) / hardest.shape[1]
    return Correlation(tuple(columns), n, len(next(iter(columns.values()))) - n, top, spearman, kendall, overlap)


def comparison_tables(comparison: Comparison) -> list[Table]:
    """For the terminal: one table of profiles, one of overlaps."""
    numbers = ["rows", "tokens", "score 5 / 50 / 95%", "length 5 / 50 / 95%", "clusters"]
    profiles = _table("Selections", "selection", [*numbers, "shift", "MMD² x 1000", "nearest"])
    for p in comparison.profiles:
        profiles.add_row(
            safe(p.name),
            f"{p.rows:,}",
            f"{p.tokens:,}",
            " / ".join(f"{p.score[i]:.2f}" for i in (0, 2, 4)),
            " / ".join(f"{p.length[i]:.0f}" for i in (0, 2, 4)),
            _number(p.clusters_met, "{:.0%}"),
            _number(p.cluster_shift, "{:.3f}"),
            _number(None if p.mmd is None else 1000 * p.mmd, "{:.2f}"),
            _number(p.nearest, "{:.3f}"),
        )
    return [profiles, _matrix("Overlap (Jaccard)", comparison.names, comparison.jaccard)]


def correlation_tables(correlation: Correlation) -> list[Table]:
    """For the terminal: one table per measure."""
    names, rows = correlation.names, f"{correlation.rows:,} rows"
    return [
        _matrix(f"Spearman rho ({rows})", names, correlation.spearman),
        _matrix(f"Kendall tau-b ({rows})", names, correlation.kendall),
        _matrix(f"Overlap of the hardest {correlation.top:.0%} ({rows})", names, correlation.overlap),
    ]


class _Measure:
    """Profiles of selections from one pool, with what they share computed once."""

    def __init__(self, pool: Pool, clusters: Int32 | None, seed: int) -> None:
        self.pool, self.clusters = pool, clusters
        self.cluster_shares = None if clusters is None else np.bincount(clusters) / len(clusters)
        self.whole = None if pool.embeddings is None or len(pool) < 2 else WholeSet(pool.embeddings, seed)

    def profile(self, name: str, mask: Bool) -> Profile:
        pool, rows = self.pool, np.flatnonzero(mask)
        length = pool.n_response[rows].astype(np.int64)
        met, shift = self._clusters(rows)
        mmd = nearest = None
        if self.whole is not None and len(rows) > 1:
            mmd = 0.0 if mask.all() else self.whole.mmd_squared(rows)
            nearest = _nearest(self.whole, rows)
        return Profile(
            name=name,
            rows=len(rows),
            tokens=int(length.sum()),
            score=tuple(np.quantile(pool.score[rows], QUANTILES).tolist()),
            length=tuple(np.quantile(length, QUANTILES).tolist()),
            clusters_met=met,
            cluster_shift=shift,
            mmd=mmd,
            nearest=nearest,
        )

    def _clusters(self, rows: Int64) -> tuple[float | None, float | None]:
        if self.clusters is None or self.cluster_shares is None:
            return None, None
        shares = np.bincount(self.clusters[rows], minlength=len(self.cluster_shares)) / len(rows)
        met = (shares[self.cluster_shares > 0] > 0).mean()
        return float(met), float(np.abs(shares - self.cluster_shares).sum() / 2)


def _nearest(whole: WholeSet, rows: Int64) -> float:
    """Mean over a sample of the kept rows; their neighbours are looked for among all kept rows."""
    queries = whole.sample(rows)
    vectors = np.asarray(whole.vectors[queries], dtype=np.float32)
    return float(1 - nearest_similarity(vectors, whole.vectors, own=queries, rows=rows).mean(dtype=np.float64))


def _chosen(name: str, row_ids: Int64, pool: Pool) -> Bool:
    unknown = np.setdiff1d(row_ids, pool.row_id)
    if len(unknown):
        raise InputError(
            f"{name} keeps row {unknown[0]} (and {len(unknown) - 1} more), which the first run did not score: only selections "
            "from the same data can be compared."
        )
    if not len(row_ids):
        raise InputError(f"{name} keeps no rows, so there is nothing to compare.")
    return np.isin(pool.row_id, row_ids)


def _matrix(title: str, names: Sequence[str], values: Float64) -> Table:
    table = _table(title, "", [str(i + 1) for i in range(len(names))])
    for i, name in enumerate(names):
        table.add_row(f"{i + 1} {safe(name)}", *(_number(v, "{:.3f}") for v in values[i].tolist()))
    return table


def _table(title: str, first: str, headings: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for heading in headings:
        table.add_column(heading, justify="right")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or np.isnan(value) else form.format(value)
