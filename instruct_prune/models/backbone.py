"""What the scorer asks of a model, text or images alike; it never looks inside an item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from instruct_prune.encode.batching import Plan
from instruct_prune.measure.subnet import SubnetSpec


class Items(Protocol):
    """The rows, by position."""

    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...


class Backbone(Protocol):
    """A model together with the way its loss is computed.

    Attributes:
        model: what subnets act on.
    """

    model: nn.Module

    def fit(self, items: Items) -> None:
        """Prepare with the dense model, once: images compute class centroids, text checks its output head."""

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None:
        """The weights are now those of ``subnets`` (several only for "depth"): forget what older weights computed."""

    def collate(self, items: Sequence[Any], prefix: int) -> Any:
        """One batch; ``prefix`` is an index into the plan's prefixes, or -1."""

    def losses(self, batch: Any) -> Tensor:
        """float32 [b, s]: mean loss of each row in nats, a column for each subnet of the pass."""
