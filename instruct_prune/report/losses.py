"""What the report says of losses: the paper's figure, for each family of subnets; and how much each row's picture helps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.measure.subnet import BLIND, DENSE, SubnetSpec
from instruct_prune.report.tables import Tables

LISTED = 200
"""Rows that a picture misleads, or helps most, that are listed; all of them are counted."""
HARDLY = 0.05
"""Nats per response token below which a picture is hardly needed."""


@dataclass(frozen=True)
class Family:
    """Loss against density (or rate, or depth) in one family of subnets; quantiles over thirds of the rows by score.

    Attributes:
        kind: "magnitude", ...
        values: density, rate or depth of each point, from the whole model down.
        columns: each point's column of losses.
        bands: {"easy" | "middle" | "hard": {"low" | "median" | "high": a number each point}}: quartiles.
    """

    kind: str
    values: list[float]
    columns: list[int]
    bands: dict[str, dict[str, list[float]]]


def thirds(tables: Tables) -> Int64:
    """int64 [n]: 0, 1, 2 for the easy, middle and hard third of the rows by score."""
    third = np.empty(len(tables), dtype=np.int64)
    third[np.argsort(tables.score, kind="stable")] = np.arange(len(tables)) * 3 // max(len(tables), 1)
    return third


def families_of(tables: Tables) -> list[Family]:
    """Families with at least two points; the dense model is the first point of each."""
    third = thirds(tables)
    kinds = dict.fromkeys(spec.kind for spec in tables.subnets if spec.kind != "dense" and spec.is_averaged)
    found = []
    for kind in kinds:
        points = [(j, spec) for j, spec in enumerate(tables.subnets) if spec.kind in (kind, "dense") and spec.is_full]
        points.sort(key=lambda point: _whole_first(point[1], kind))
        columns = [j for j, _ in points]
        bands = {
            name: _band(tables.losses[third == i][:, columns]) for i, name in enumerate(("easy", "middle", "hard"))
        }
        values = [_dense_value(kind) if spec.kind == "dense" else spec.value for _, spec in points]
        if len(points) > 1:
            found.append(Family(kind, values, columns, bands))
    return found


def _dense_value(kind: str) -> float:
    """Where the dense model stands on a family's axis. For depth it stands beyond the deepest: NaN, "all blocks"."""
    return {"dropout": 0.0, "depth": math.nan}.get(kind, 1.0)


def _whole_first(spec: SubnetSpec, kind: str) -> tuple[float, int]:
    if spec.kind == "dense":
        return (-math.inf, 0)
    return (spec.value if kind == "dropout" else -spec.value, spec.seed)


def _band(losses: Any) -> dict[str, list[float]]:
    if not len(losses):
        return {name: [math.nan] * losses.shape[1] for name in ("low", "median", "high")}
    low, median, high = np.nanquantile(losses, (0.25, 0.5, 0.75), axis=0)
    return {"low": low.tolist(), "median": median.tolist(), "high": high.tolist()}


@dataclass(frozen=True)
class VisualNumbers:
    """The loss without the pictures less the loss with them, ``visual`` (docs/multimodal.md).

    Attributes:
        rows: that have it, and show a picture.
        misleads: how many are below 0.
        hardly: how many lie from 0 to HARDLY.
        needed: the others.
        median: of all of them.
        lowest: (row id, visual) of those below 0, the lowest first.
        highest: the same of those that need their picture most.
    """

    rows: int
    misleads: int
    hardly: int
    needed: int
    median: float
    lowest: list[tuple[int, float]]
    highest: list[tuple[int, float]]


def visual_numbers(tables: Tables) -> VisualNumbers | None:
    """What the losses say of pictures; None where the view ``blind`` was not measured."""
    blind = SubnetSpec(DENSE.kind, view=BLIND)
    if blind not in tables.subnets or DENSE not in tables.subnets:
        return None
    visual = tables.losses[:, tables.subnets.index(blind)] - tables.losses[:, tables.subnets.index(DENSE)]
    there = np.flatnonzero(np.isfinite(visual) & (visual != 0))  # a row without pictures has twice the same loss
    order = there[np.argsort(visual[there], kind="stable")]
    listed = [(int(tables.row_id[at]), float(visual[at])) for at in order.tolist()]
    misleads, hardly = int((visual[there] < 0).sum()), int((visual[there] < HARDLY).sum())
    return VisualNumbers(
        rows=len(there),
        misleads=misleads,
        hardly=hardly - misleads,
        needed=len(there) - hardly,
        median=float(np.median(visual[there])) if len(there) else float("nan"),
        lowest=listed[: min(misleads, LISTED)],
        highest=listed[max(misleads, len(listed) - LISTED // 4) :][::-1],
    )
