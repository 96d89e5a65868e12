"""What a score is made of: the measured columns of a run, by name, and the subnets that are averaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec

LOSS = "loss_"
"""Begins the name of a column of losses: "loss_dense", "loss_magnitude_0800"; float32 [n], nats per response token."""
ADAPTED = "loss_adapter_"
"""Begins the name of a column of losses of the model with an adapter: "loss_adapter_math"; float32 [n]."""
POOLED = "pooled_"
"""Begins the name of a column of pooled hidden states, one for each depth, shallow first; float32 [n, d]."""
LABEL = "label"
"""The column of classes; integers [n]."""


@dataclass(frozen=True)
class Columns:
    """The measured columns of a run, one entry for each of n rows in every one of them.

    Rows without a measurement hold NaN.

    Example:
        >>> columns["loss_dense"] - columns["loss_alone"]

    Attributes:
        values: {name: array [n] or [n, d]}.
        ladder: {name of a column of losses: its weight}, the subnets that are averaged.
    """

    values: Mapping[str, NDArray[Any]]
    ladder: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({len(column) for column in self.values.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(column)}" for name, column in self.values.items())
            raise ValueError(f"columns differ in length: {lengths}")

    @classmethod
    def of_losses(
        cls,
        losses: Mapping[SubnetSpec, Float32],
        subnets: Sequence[SubnetSpec] | None = None,
        weights: Sequence[float] | None = None,
        leave_out: Sequence[SubnetSpec] = (),
        more: Mapping[str, NDArray[Any]] | None = None,
    ) -> Columns:
        """Columns of per-subnet losses.

        Args:
            losses: {subnet: float32 [n]}.
            subnets: which are averaged, repeated as often as they count; those of `SubnetSpec.is_averaged` when not given.
            weights: one for each of ``subnets``.
            leave_out: collapsed subnets, which are not averaged.
            more: further columns by name.

        Raises:
            InputError: weights that do not fit the subnets, or are negative or not finite.
        """
        wanted = list(subnets) if subnets is not None else [spec for spec in losses if spec.is_averaged]
        factors = list(weights) if weights is not None else [1.0] * len(wanted)
        if len(factors) != len(wanted):
            raise InputError(f"{len(factors)} weights were given for {len(wanted)} subnets; give one for each.")
        if any(not np.isfinite(f) or f < 0 for f in factors):
            raise InputError("weights of subnets must be finite and not negative.")
        ladder: dict[str, float] = {}
        for spec, factor in zip(wanted, factors, strict=True):
            if spec not in leave_out and factor:
                ladder[LOSS + spec.name] = ladder.get(LOSS + spec.name, 0.0) + factor
        return cls({LOSS + spec.name: column for spec, column in losses.items()} | dict(more or {}), ladder)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self.values:
            raise InputError(
                f"the column {name!r} was not measured (there are: {', '.join(self.values) or 'none'}). Measure it first."
            )
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    def __iter__(self) -> Iterator[str]:
        return iter(self.values)

    def __len__(self) -> int:
        """The number of rows."""
        return len(next(iter(self.values.values()))) if self.values else 0

    def pooled(self) -> tuple[Float32, ...]:
        """float32 [n, d] for each depth: the pooled states, in the order in which they were measured."""
        return tuple(column for name, column in self.values.items() if name.startswith(POOLED))

    def adapted(self) -> tuple[str, ...]:
        """Names of the columns of losses with an adapter."""
        return tuple(name for name in self.values if name.startswith(ADAPTED))

    def average(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """float64 [n]: the weighted mean over the ladder of a function of each subnet's losses.

        Raises:
            InputError: a subnet of the ladder was not scored.
        """
        mean = np.zeros(len(self))
        for name, factor in self.ladder.items():
            mean += factor * function(self[name].astype(np.float64))
        return mean / sum(self.ladder.values())
