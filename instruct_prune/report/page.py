"""What the page's script works on: the numbers, a column for everything that is drawn row by row, and the texts of some rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Int64
from instruct_prune.geometry import nearest_neighbors
from instruct_prune.report.aim import Query
from instruct_prune.report.losses import thirds
from instruct_prune.report.numbers import DuplicateGroup, Group, Numbers
from instruct_prune.report.others import Other
from instruct_prune.report.pack import pack, small_codes, spread
from instruct_prune.report.pools import Boundary
from instruct_prune.report.rows import ReadRows
from instruct_prune.report.tables import FATES, Tables
from instruct_prune.select.projection import Projection, project

TOOK = 3
"""Rows of each query that are shown with their text."""
NEIGHBORS = 4
NEAR = 0.03
"""Rows within this share of their stratum from the boundary are "near the boundary"."""

Part = tuple[dict[str, Any], dict[str, NDArray[Any]]]
"""A part of the header, and columns by name."""


def page_data(
    tables: Tables,
    numbers: Numbers,
    boundary: Boundary | None,
    picks: Int64,
    facts: ReadRows,
    others: Sequence[Other] = (),
) -> str:
    """Pack it all (see `pack`).

    Args:
        tables: n scored rows.
        numbers: the report.
        boundary: of the selection's pools.
        picks: ascending positions of the rows whose texts are in ``facts``.
        facts: texts and columns of the data.
        others: selections to put beside this one.
    """
    header: dict[str, Any] = {"numbers": numbers.to_json(), "fates": FATES, "n": len(tables)}
    arrays: dict[str, NDArray[Any]] = {}
    for more, columns in (
        _fates(tables, boundary, others),
        _takers(tables, numbers),
        _losses(tables),
        _maps(tables),
        _columns(facts),
        _texts(tables, facts, picks),
    ):
        header |= more
        arrays |= columns
    return pack(header, arrays)


def _fates(tables: Tables, boundary: Boundary | None, others: Sequence[Other]) -> Part:
    arrays: dict[str, NDArray[Any]] = {
        "row": np.diff(tables.row_id, prepend=0).astype(np.uint32),
        "score": tables.score.astype(np.float32),
        "fate": tables.fate,
        "label": small_codes(tables.labels),
        "prompt": small_codes(tables.n_prompt),
        "response": small_codes(tables.n_response),
    }
    if tables.selection is not None:
        arrays["reason"] = tables.selection.reason.astype(np.uint8)
    if tables.unstable is not None:
        arrays["unstable"] = tables.unstable.astype(np.uint8)
    if boundary is not None:
        arrays["near"] = (boundary.distance <= NEAR).astype(np.uint8)
    if (tables.representative >= 0).any():
        arrays["leader"] = small_codes(tables.representative, missing=True)
    for i, other in enumerate(others):  # 0 not scored, 1 dropped, 2 kept
        arrays[f"other{i}"] = np.where(other.scored, 1 + other.kept.astype(np.uint8), 0).astype(np.uint8)
    return {"reasons": [] if tables.selection is None else tables.selection.reasons}, arrays


def _takers(tables: Tables, numbers: Numbers) -> Part:
    """Which query took each row, as its place among the report's queries; those that are not in the page have a task alone."""
    aim = tables.aim
    if aim is None or numbers.target is None:
        return {}, {}
    place = {(query.task, query.row): i for i, query in enumerate(numbers.target.queries)}
    names = [task.name for task in aim.tasks]
    query = np.full(len(tables), -1, dtype=np.int64)
    for at in np.flatnonzero(aim.task >= 0).tolist():
        query[at] = place.get((names[aim.task[at]], int(aim.query[at])), -1)
    arrays: dict[str, NDArray[Any]] = {
        "task": small_codes(aim.task, missing=True),
        "query": small_codes(query, missing=True),
        "turn": small_codes(aim.turn, missing=True),
        "similarity": aim.similarity,
    }
    return {}, arrays


def _losses(tables: Tables) -> Part:
    subnets: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {"third": small_codes(thirds(tables))}
    for j, spec in enumerate(tables.subnets):
        arrays[f"loss{j}"], low, high = spread(tables.losses[:, j])
        subnets.append({"name": spec.name, "low": low, "high": high})
    return {"subnets": subnets}, arrays


def _maps(tables: Tables) -> Part:
    """Maps of the embeddings, and length against score, which every run has."""
    length = np.log10(np.maximum(tables.n_response, 1))
    plain = Projection(
        "length and score",
        np.stack([length, tables.score], axis=1).astype(np.float32),
        ("response tokens (powers of ten)", f"score ({tables.score_name})"),
    )
    views = [*([] if tables.vectors is None else project(tables.vectors, tables.vector_at)), plain]
    projections: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for i, view in enumerate(views):
        arrays[f"x{i}"], *x = spread(view.xy[:, 0])
        arrays[f"y{i}"], *y = spread(view.xy[:, 1])
        projections.append({"name": view.name, "axes": view.axes, "x": x, "y": y})
    return {"projections": projections}, arrays


def _columns(facts: ReadRows) -> Part:
    arrays: dict[str, NDArray[Any]] = {}
    for i, column in enumerate(facts.columns):
        if column.codes is not None:
            arrays[f"column{i}"] = small_codes(column.codes, missing=True)
        elif column.numbers is not None:
            arrays[f"column{i}"] = column.numbers
    return {"columns": [{"name": column.name, "values": column.values} for column in facts.columns]}, arrays


def _texts(tables: Tables, facts: ReadRows, picks: Int64) -> Part:
    found = (facts.texts[at] for at in picks.tolist())
    header: dict[str, Any] = {
        "texts": [
            [text.source, text.line, [dataclasses.astuple(turn) for turn in text.turns], text.image] for text in found
        ]
    }
    arrays: dict[str, NDArray[Any]] = {"picks": picks.astype(np.uint32)}
    if tables.vectors is not None and len(picks) > 1:
        near, cosine = nearest_neighbors(tables.vectors[tables.vector_at[picks]], NEIGHBORS)
        header["neighbors"] = near.shape[1]
        arrays |= {"neighbor": small_codes(near.ravel()), "cosine": cosine.ravel().astype(np.float32)}
    return header, arrays


def pick_rows(
    tables: Tables,
    boundary: Boundary | None,
    groups: Iterable[Group],
    duplicates: Iterable[DuplicateGroup],
    count: int,
    queries: Iterable[Query] = (),
    shown: Iterable[int] = (),
) -> Int64:
    """int64 [min(count, n)], ascending positions: what people ask for first, then kept and dropped rows at random, half and half.

    First come the rows that each query of a target took first and rows typical of the largest clusters (a quarter of the room
    each at most), ``shown`` rows, the largest groups of duplicates, the rows nearest to the pools' boundary, and the easiest and hardest rows
    (an eighth each).
    """
    n = len(tables)
    if count >= n:
        return np.arange(n)
    by_size = sorted(groups, key=lambda group: -group.size)
    typical = _positions(tables, (row for group in by_size for row in group.typical))
    taken = _positions(tables, (row for query in queries for row in query.took[:TOOK]))
    copies = _positions(tables, (row for group in duplicates for row in (group.row, *group.others)))
    near = np.empty(0, dtype=np.int64)
    if boundary is not None:
        near = np.argsort(boundary.distance, kind="stable")[: int(np.isfinite(boundary.distance).sum())]
    by_score = np.argsort(tables.score, kind="stable")
    ends = np.stack([by_score, by_score[::-1]], axis=1).ravel()
    part = count // 8
    chosen = [
        taken[: 2 * part],
        typical[: 2 * part],
        _positions(tables, shown)[:part],
        copies[:part],
        near[:part],
        ends[:part],
    ]
    rng = np.random.default_rng(0)
    kept, dropped = (rng.permutation(np.flatnonzero(side)) for side in (tables.kept, ~tables.kept))
    both = min(len(kept), len(dropped))
    mixed = np.stack([kept[:both], dropped[:both]], axis=1).ravel()
    order = np.concatenate([*chosen, mixed, kept[both:], dropped[both:]])
    _, first = np.unique(order, return_index=True)
    return np.sort(order[np.sort(first)[:count]])


def _positions(tables: Tables, row_ids: Iterable[int]) -> Int64:
    return np.searchsorted(tables.row_id, np.fromiter(row_ids, dtype=np.int64))
