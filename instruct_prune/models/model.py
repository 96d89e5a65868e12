"""What the rest of the house asks of a model. One file a kind of model: the engine never looks inside an item."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.tokenize import Writing
from instruct_prune.rows.row import Row

States = Mapping[int | None, Tensor]
"""What one forward pass leaves to be read: states by depth (blocks passed through); None is the end of the model."""

Blocks = Callable[[], Iterator[tuple[Int64, Float32]]]
"""Starts a pass over stored numbers: positions int64 [m] with float32 [m, d], in a fixed order."""

Advance = Callable[[int], None]
"""Called with a number of rows done."""


class Items(Protocol):
    """All rows as items on disk, by position: encoded once, read by every pass and process.

    Attributes:
        folder: where they are.
        row_id: int64 [n], ascending.
        status_names: str [n], a `Status` value each.
        scorable: bool [n], rows whose status allows a score.
        lengths: int32 [n], what each item costs in a batch (tokens, pictures).
        n_response: int32 [n], tokens that are scored.
        n_cut: int32 [n], response tokens that were cut.
    """

    @property
    def folder(self) -> Path: ...
    @property
    def row_id(self) -> Int64: ...
    @property
    def status_names(self) -> NDArray[np.str_]: ...
    @property
    def scorable(self) -> Bool: ...
    @property
    def lengths(self) -> Int32: ...
    @property
    def n_response(self) -> Int32: ...
    @property
    def n_cut(self) -> Int32: ...
    def __len__(self) -> int: ...
    def __getitem__(self, i: int) -> Any: ...

    def text_columns(self, *names: str) -> tuple[list[str], ...]:
        """Columns that are only needed at the end: "content_hash", "source", "line", "reason"."""

    def guess_losses(self, rows: Int64) -> Float32:
        """float32 [len(rows)]: the loss of guessing without a model, or empty where there is no such guess."""


class Model(ABC):
    """One kind of model. Making one reads no weights; `load` does.

    Attributes:
        default: the name that is taken when the user names none.
        unit: what items cost: "tokens" or "images".
        batch: cost of a batch when not given, by device type; "other" is any accelerator.
        ladders: presets of ``--subnets`` for this kind, beside or in place of the general ones: {name: (subnets, score,
            about, probes)}.
        compares: whether its loss compares states with those of the dense model, which must then be measured first.
        embeds: whether the rows are clustered by the model's own pooled states unless the user names an embedder.
        name: as the user wrote it.
        module: what subnets act on, after `load`.
        notes: what people should know of the encoding, after `write_items`.
    """

    default: ClassVar[str]
    unit: ClassVar[str] = "tokens"
    batch: ClassVar[Mapping[str, int]]
    ladders: ClassVar[Mapping[str, tuple[tuple[str, ...], str, str, tuple[str, ...]]]] = {}
    compares: ClassVar[bool] = False
    embeds: ClassVar[bool] = False
    name: str
    module: nn.Module

    # ---- rows become items: on the main process, without weights ----

    @property
    @abstractmethod
    def encoding(self) -> Mapping[str, Any]:
        """Everything that decides what items are; JSON-able. Items made under another encoding are not reused."""

    @property
    def notes(self) -> Sequence[str]:
        return ()

    @abstractmethod
    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        """Turn every row into an item or a status with a reason, and write them to ``folder``.

        Raises:
            InputError: ``strict``, and a row cannot be used.
        """

    @abstractmethod
    def open_items(self, folder: Path) -> Items:
        """What `write_items` wrote."""

    def cost(self, item: Any) -> int:
        """What an item costs in a batch."""
        return 1

    def shared_prefixes(self, items: Items, rows: Int64) -> tuple[Int32 | None, tuple[Int32, ...]]:
        """For each of the rows, which shared beginning it has (an index or -1), and the beginnings; (None, ()) without."""
        return None, ()

    def alone(self, lengths: Int32) -> Bool | None:
        """bool [len(lengths)]: items of which costs cannot share a forward pass with others; None where all can."""
        return None

    def writing(self) -> Writing | None:
        """How rows are written as text for this model; None where they are not."""
        return None

    # ---- items become numbers ----

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """Name and content of the weights; JSON-able. May be asked for after `load` only."""

    def dtype(self, wanted: str, device: torch.device) -> str:
        """The type of the weights: "auto" resolved."""
        return "float32" if wanted == "auto" else wanted

    @abstractmethod
    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        """Read the weights onto ``device``; with ``offload``, spread them over all devices, the rest in that folder."""

    @property
    def shortcuts(self) -> Mapping[str, Any]:
        """What `load` found that items may share; JSON-able. It decides `shared_prefixes` and `alone`."""
        return {}

    @shortcuts.setter
    def shortcuts(self, found: Mapping[str, Any]) -> None:
        """Set to what the main process found, so that all processes plan alike."""

    @property
    def remarks(self) -> Sequence[str]:
        """What people should know of how items are run, once the passes are planned."""
        return ()

    @abstractmethod
    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None:
        """The weights have changed: forget what older ones computed.

        Args:
            plan: whose prefixes batches refer to.
            depths: which states will be read beside the last.
            pooled: whether pooled states will be read, so that every token of a row must be run.

        Raises:
            InputError: a depth that the model does not have.
        """

    @abstractmethod
    def collate(self, items: Sequence[Any], prefix: int) -> Any:
        """One batch; ``prefix`` is an index into the plan's prefixes, or -1."""

    @abstractmethod
    def forward(self, batch: Any) -> States:
        """One forward pass: the states at each depth that `start_pass` named, and at None."""

    @abstractmethod
    def losses(self, batch: Any, states: States, depth: int | None) -> Tensor:
        """float32 [b]: mean loss of each row in nats, read at a depth."""

    @abstractmethod
    def pool(self, batch: Any, states: States, depth: int | None, how: str) -> Tensor:
        """float32 [b, d]: one vector a row: "mean" over positions, "weighted" (later ones count more), or "last"."""

    def width(self, depth: int | None) -> int:
        """Numbers of a pooled state."""
        raise NotImplementedError

    def fit(self, blocks: Blocks, items: Items) -> None:
        """Prepare the loss from the pooled states of the dense model (only where ``compares``)."""
        raise NotImplementedError

    def losses_of(self, items: Items, positions: Int64, pooled: Float32) -> Float32:
        """float32 [m]: the loss of rows whose pooled dense states [m, d] are known (only where ``compares``)."""
        raise NotImplementedError

    def depths(self) -> tuple[int, ...]:
        """All depths at which states can be read."""
        return ()
