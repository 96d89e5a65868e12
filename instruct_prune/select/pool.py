"""From the tables of a run to the pool that selection methods see: the scored rows, checked and aligned by row id."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, Int32, Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Clusters, Embeddings, Pool
from instruct_prune.select.target import Target


def build_pool(
    table: ScoreTable,
    *,
    embeddings: Embeddings | None = None,
    clusters: Clusters | None = None,
    values: Iterable[Any] | None = None,
    cluster_names: tuple[str, ...] | None = None,
    target: Target | None = None,
) -> Pool:
    """Put the scored rows of a run, their strata and their embeddings side by side.

    Example:
        >>> run = Run("RUN")
        >>> pool = build_pool(run.score(DataConfig("alpaca.jsonl")), embeddings=run.folder.read_embeddings())
        >>> pool.embeddings.shape
        (9000, 384)

    Args:
        table: every row's scores; rows without one (``table.scored`` is False) stay out of the pool.
        embeddings: vectors by row id. They stay memory-mapped when they cover the scored rows and no others.
        clusters: strata by row id; at most one of ``clusters`` and ``values`` is given, without either all rows are one.
        values: the stratum of each row of ``table``, in its order (a column of the dataset, a class); compared as text.
        cluster_names: names of the clusters, instead of "cluster 0", "cluster 1", ...
        target: queries, beside the scored rows.

    Raises:
        InputError: no row is scored, a scored row has a NaN or infinite score, or rows are missing from the embeddings
            or clusters (they belong to another run).
    """
    scored = table.scored
    row_id, score = table.row_id[scored], table.score[scored]
    if not len(row_id):
        raise InputError(
            f"there is nothing to select from: none of the {len(table)} rows has a score. See rejected.jsonl."
        )
    broken = np.flatnonzero(~np.isfinite(score))
    if len(broken):
        raise InputError(
            f"{len(broken)} scored rows have a score that is not a number (first: row {row_id[broken[0]]}), so they "
            f"cannot be ranked. Score them again, or choose another score than {table.score_name!r}."
        )
    if clusters is not None and values is not None:
        raise InputError("strata are the clusters or the values of a column, not both: choose one of them.")
    strata: Int32 = np.zeros(len(row_id), dtype=np.int32)
    names: tuple[str, ...] = ("all",)
    if clusters is not None:
        strata = clusters.labels[_positions(row_id, clusters.row_id, "the table of clusters")]
        names = cluster_names or tuple(f"cluster {i}" for i in range(len(clusters.centers)))
    elif values is not None:
        strata, names = strata_from_values(value for value, ok in zip(values, scored, strict=True) if ok)
    return Pool(
        row_id=row_id,
        score=score,
        n_response=table.n_response[scored],
        strata=strata,
        strata_names=names,
        embeddings=None if embeddings is None else _vectors(row_id, embeddings),
        losses={spec.name: table.losses[scored, j] for j, spec in enumerate(table.subnets)},
        target=target,
    )


def strata_from_values(values: Iterable[Any]) -> tuple[Int32, tuple[str, ...]]:
    """Number the values of a column, in sorted order; None and the empty string are one stratum, "(none)".

    Returns:
        (int32 [n], the values' text): stratum numbers and names.
    """
    text = ["(none)" if value is None or value == "" else str(value) for value in values]
    names = sorted(set(text))
    number = {name: i for i, name in enumerate(names)}
    return np.fromiter((number[t] for t in text), dtype=np.int32, count=len(text)), tuple(names)


def _vectors(row_id: Int64, embeddings: Embeddings) -> Float32:
    at = _positions(row_id, embeddings.row_id, "the table of embeddings")
    covers = len(at) == len(embeddings.row_id) and bool((at == np.arange(len(at))).all())
    return embeddings.vectors if covers else embeddings.vectors[at]


def _positions(row_id: Int64, there: Int64, what: str) -> Int64:
    """int64 [n]: where each row stands in a table whose rows may be in any order."""
    order = np.argsort(there, kind="stable")
    return order[positions_of(row_id, there[order], what)]
