"""The loss of each row (docs/method.md, section 1)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from instruct_prune.measure.probes.probe import Probe
from instruct_prune.models.model import Model, States


class Loss(Probe):
    """Mean loss in nats: per response token of a language model, of the row's class for an image model."""

    name = "loss"

    def __init__(self, depth: int | None = None) -> None:
        self.depth = depth

    def __call__(self, model: Model, batch: Any, states: States) -> Tensor:
        return model.losses(batch, states, self.depth)[:, None]
