"""Loss against how much of the model is left: the paper's figure, for each family of subnets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.report.tables import Tables


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
