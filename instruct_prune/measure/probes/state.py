"""Pooled hidden states: one vector a row."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from instruct_prune.measure.probes.probe import Probe
from instruct_prune.models.model import Model, States

HOW = ("mean", "weighted", "last")


class State(Probe):
    """The hidden states of a row's tokens (prompt and response), or a picture's feature map, as one vector.

    "mean" is over all positions; "weighted" is sum_i i h_i / sum_i i, so that later tokens, which have seen more, count more
    (RDS+, Ivison et al., arXiv 2503.01807); "last" is the state of the last token.
    """

    pooled = True

    def __init__(self, how: str = "mean", depth: int | None = None) -> None:
        self.how, self.depth = how, depth
        self.name = how if depth is None else f"{how}_{depth:02d}"

    def width(self, model: Model) -> int:
        return model.width(self.depth)

    def __call__(self, model: Model, batch: Any, states: States) -> Tensor:
        return model.pool(batch, states, self.depth, self.how)
