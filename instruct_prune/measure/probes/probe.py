"""The base of all probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from instruct_prune.models.model import Model, States


class Probe(ABC):
    """Reads numbers off one forward pass. Several probes share a pass.

    Attributes:
        name: what its columns begin with; letters, digits and underscores.
        depth: the number of blocks after which states are read, None for all of them.
        pooled: whether it reads states of all positions, and not only of those that predict a response token.
        needs_grad: whether it reads gradients: its pass, which other probes share, then has smaller batches and no shared prefixes.
        half: whether what it reads is kept in half precision.
    """

    name: str
    depth: int | None = None
    pooled: bool = False
    needs_grad: bool = False
    half: bool = False

    def width(self, model: Model) -> int:
        """Numbers a row: one makes a column of ``scores.parquet``, more make a file of vectors."""
        return 1

    def watch(self, model: Model, batch: Any) -> AbstractContextManager[Any]:
        """Entered around the forward pass of each batch: the place to put hooks on the model."""
        return nullcontext()

    @abstractmethod
    def __call__(self, model: Model, batch: Any, states: States) -> Tensor:
        """Float [b, width] for the b rows of a batch.

        Args:
            model: whose `losses` and `pool` read states.
            batch: what the model's `collate` made.
            states: what its `forward` left.
        """
