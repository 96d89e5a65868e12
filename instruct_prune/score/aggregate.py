"""From measured columns to one score a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score.columns import Columns
from instruct_prune.score.scores import Rule, Score, find_score
from instruct_prune.score.table import ScoreTable


def aggregate(columns: Columns, name: str | Rule | Score = "dlc", params: Mapping[str, Any] | None = None) -> Float32:
    """One score a row from measured columns, higher = harder; NaN where a column is NaN.

    Example:
        >>> aggregate(Columns({"loss_dense": np.array([1.0, 2.0])}), "perplexity")
        array([2.7182817, 7.389056 ], dtype=float32)

    Args:
        columns: of n rows.
        name: as `find_score` takes it.
        params: the score's parameters by name.

    Returns:
        float32 [n].

    Raises:
        InputError: unknown score or parameter, a column that it needs is missing, nothing is left to average, or a score
            of the user's own returns something else than one number a row.
    """
    found = find_score(name)
    bound = found.bind(params)
    found.check(columns, bound)
    values = np.asarray(found(columns, **bound))
    if values.shape != (len(columns),) or values.dtype.kind not in "fiub":
        raise InputError(
            f"{found} returned {values.dtype} {values.shape} for {len(columns)} rows; it must return one number a row."
        )
    return values.astype(np.float32, copy=False)


def rescored(
    table: ScoreTable,
    name: str | Rule | Score,
    *,
    subnets: Sequence[SubnetSpec] | None = None,
    weights: Sequence[float] | None = None,
    leave_out: Sequence[str] = (),
    params: Mapping[str, Any] | None = None,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> ScoreTable:
    """The same losses under another score.

    Args:
        table: of n rows.
        name: as `find_score` takes it.
        subnets: which are averaged, repeated as often as they count; those of `SubnetSpec.is_averaged` when not given.
        weights: one for each of ``subnets``.
        leave_out: names of collapsed subnets. Only an average can leave a subnet out: other scores name their columns.
        params: the score's parameters by name.
        more: further columns by name, [n] or [n, d] (pooled states, classes, those of the user's probes).

    Raises:
        InputError: as `aggregate` and `Columns.of_losses`.
    """
    losses = {spec: table.losses[:, j] for j, spec in enumerate(table.subnets)}
    out = [spec for spec in table.subnets if spec.name in leave_out]
    found = find_score(name)
    values = aggregate(Columns.of_losses(losses, subnets, weights, out, more), found, params)
    return replace(table, score=values, score_name=found.name)
