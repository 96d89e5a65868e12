"""What a kind of model defines for the engine, which never looks inside an item. Each kind has a file of its own."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.config import EncodeConfig, Preset, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.json_items import JsonItems, write_json_items
from instruct_prune.encode.rendering import Counts, Writing
from instruct_prune.errors import InputError
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

    def without(self, at: Int64) -> Items:
        """The same, the rows at these positions set aside: they can be scored no more."""

    def text_columns(self, *names: str) -> tuple[list[str], ...]:
        """Columns that are only needed at the end: "content_hash", "source", "line", "reason"."""

    def guess_losses(self, rows: Int64) -> Float32:
        """float32 [len(rows)]: the loss of guessing without a model, or empty where there is no such guess."""


class Model(ABC):
    """One kind of model. Making one reads no weights; `load` does.

    A kind of one's own gives `item`, `load`, `forward` and `losses`, and what else it needs; everything here that is not
    abstract has a default that fits small models (docs/extending.md has a whole one).

    Args:
        config: the model's name and how it is run.
        encode: options of the encoding.
        data_format: of the rows.
        loaded: a model made in Python, in place of what ``config.model`` names.

    Attributes:
        default: the name that is taken when the user names none; "" where one must be named.
        unit: what items cost: "tokens" or "images".
        batch: cost of a batch when not given, by device type; "other" is any accelerator.
        ladders: presets of ``--subnets`` for this kind, beside or in place of the general ones.
        compares: whether its loss compares states with those of the dense model, which must then be measured first.
        embeds: whether the rows are clustered by the model's own pooled states unless the user names an embedder.
        pooling: how a row becomes one vector for ``--embedder model``, unless the user says otherwise.
        name: as the user wrote it.
        module: the whole model, after `load`.
        notes: what people should know of the encoding, after `write_items`.
        shortcuts: after `load`, what was found out about the weights that decides `shared_prefixes` and `alone`; of a type with
            a repr of its content. It is set to what the main process found, so that all processes plan alike.
    """

    default: ClassVar[str] = ""
    unit: ClassVar[str] = "tokens"
    batch: ClassVar[Mapping[str, int]] = {"cpu": 4096, "other": 32768}
    ladders: ClassVar[Mapping[str, Preset]] = {}
    compares: ClassVar[bool] = False
    embeds: ClassVar[bool] = False
    pooling: ClassVar[str] = "mean"
    name: str
    module: nn.Module
    shortcuts: Any = None

    @property
    def backbone(self) -> nn.Module:
        """The part of ``module`` that subnets remove weights and units from, and gradients are read of. Default: all of it."""
        return self.module

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        """Take the name, and refuse what only other kinds have.

        Raises:
            InputError: an option of the encoding, or a model made in Python.
        """
        self.name = config.model or self.default
        kind = type(self).__name__
        for option, value in vars(encode).items():
            if value != getattr(EncodeConfig(), option):
                raise InputError(f"--{option.replace('_', '-')}: {kind} has no such option. Leave it out.")
        if loaded is not None:
            raise InputError(f"{kind} takes no model that is loaded already; give its name.")

    # ---- rows become items: on the main process, without weights ----

    @property
    def encoding(self) -> Mapping[str, Any]:
        """Everything beside the code that decides what items are; JSON-able. Items of another encoding are not reused."""
        return {}

    @property
    def notes(self) -> Sequence[str]:
        return ()

    def item(self, row: Row) -> Any:
        """What `collate` is given of a row: numbers, texts, lists and dictionaries, which are stored as JSON.

        Raises:
            RowError: the row cannot be used; it is listed in ``rejected.jsonl`` with the reason.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither item() nor write_items() of its own")

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        """Turn every row into an item or a status with a reason, and write them to ``folder``.

        Raises:
            InputError: ``strict``, and a row cannot be used.
        """
        write_json_items(folder, rows, self, advance, strict)

    def content(self, row: Row, item: Any) -> bytes:
        """What is hashed to know a row again in another run (`compare`, ``--reuse``). Default: the item as JSON."""
        return json.dumps(item, ensure_ascii=False).encode()

    @property
    def splits(self) -> bool:
        """Whether processes may write the items of some rows each, which `join_items` puts together. Default: no."""
        return False

    @property
    def counts(self) -> Counts:
        """What ``notes`` are made of, where ``splits``: what other processes counted is added to it."""
        return ()

    def join_items(self, folder: Path, parts: Sequence[Path], counts: Sequence[Counts]) -> None:
        """Put together what the processes wrote, in order; ``counts`` are theirs, this one's first (only where ``splits``)."""
        raise NotImplementedError

    def open_items(self, folder: Path) -> Items:
        """What `write_items` wrote."""
        return JsonItems.open(folder)

    def cost(self, item: Any) -> int:
        """What an item costs in a batch: its tokens, or 1 where all items cost the same."""
        return 1

    def n_response(self, item: Any) -> int:
        """How much of the cost is scored: the response tokens. (Asked for by the default `write_items` alone.)"""
        return self.cost(item)

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
    def identity(self) -> Mapping[str, Any]:
        """Name and content of the weights; JSON-able. Asked for after `open_items`, before `load`."""
        return {"name": self.name}

    def dtype(self, wanted: str, device: torch.device) -> str:
        """The type of the weights: "auto" resolved."""
        return "float32" if wanted == "auto" else wanted

    @abstractmethod
    def load(self, dtype: str, device: torch.device, offload: Path | None = None) -> None:
        """Read the weights onto ``device``; with ``offload``, spread them over all devices, the rest in that folder."""

    @property
    def remarks(self) -> Sequence[str]:
        """What people should know of how items are run, once the passes are planned."""
        return ()

    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None:
        """The weights have changed: forget what older ones computed.

        Args:
            plan: whose prefixes batches refer to.
            depths: which states will be read beside the last.
            pooled: whether pooled states will be read, so that every token of a row must be run.

        Raises:
            InputError: a depth that the model does not have.
        """
        known = self.depths()
        wrong = [depth for depth in depths if depth not in known]
        if wrong:
            raise InputError(
                f"depth {wrong[0]} was asked for, but {self.name} has {len(known)} depths (blocks, or stages of an image "
                "model) to read states at."
            )

    def collate(self, items: Sequence[Any], prefix: int) -> Any:
        """One batch; ``prefix`` is an index into the plan's prefixes, or -1. Default: the items as they are."""
        return items

    @abstractmethod
    def forward(self, batch: Any) -> States:
        """One forward pass: the states at each depth that `start_pass` named, and at None."""

    @abstractmethod
    def losses(self, batch: Any, states: States, depth: int | None) -> Tensor:
        """float32 [b]: mean loss of each row in nats, read at a depth."""

    def pool(self, batch: Any, states: States, depth: int | None, how: str) -> Tensor:
        """float32 [b, d]: one vector a row: "mean" over positions, "weighted" (later ones count more), or "last".

        Default: the states, which then are one vector a row already.

        Raises:
            InputError: there is no order of positions.
        """
        if how != "mean":
            raise InputError(f"the probe {how!r} is for texts: {self.name} has no order of positions. Use mean.")
        return states[depth]

    def width(self, depth: int | None) -> int:
        """Numbers of a pooled state.

        Raises:
            InputError: the model has no pooled states.
        """
        raise InputError(f"{self.name} has no pooled states: its kind, {type(self).__name__}, defines no width().")

    def blind(self, item: Any) -> Any:
        """The row as the same template writes it without its pictures, for the view of that name; rows without any as they are.

        Raises:
            InputError: rows of this kind show none that could be left out.
        """
        raise InputError(
            "the view blind (and so the score visual) is for conversations that show pictures. Leave it out."
        )

    def fit(self, blocks: Blocks, items: Items) -> None:
        """Prepare the loss from the pooled states of the dense model (only where ``compares``)."""
        raise NotImplementedError

    def losses_of(self, items: Items, positions: Int64, pooled: Float32) -> Float32:
        """float32 [m]: the loss of rows whose pooled dense states [m, d] are known (only where ``compares``)."""
        raise NotImplementedError

    def depths(self) -> tuple[int, ...]:
        """All depths at which states can be read."""
        return ()
