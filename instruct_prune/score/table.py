"""The table of scores: one row of numbers for each row of the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.encode.item import Status
from instruct_prune.measure.subnet import SubnetSpec

if TYPE_CHECKING:
    import datasets
    import pandas


PLAIN = ("row_id", "content_hash", "status", "n_prompt", "n_response", "n_cut")
"""Columns of the table that every run has, beside the score."""


@dataclass(frozen=True)
class ScoreTable:
    """Every row's loss under every subnet. Score once, save, then try many selections without a GPU.

    Attributes:
        row_id: int64 [n], ascending.
        content_hash: str [n].
        status: Status values as str [n]; rows that are not "ok" or "truncated" have NaN losses and scores.
        n_prompt: int32 [n], prompt tokens.
        n_response: int32 [n], response tokens that are scored.
        n_cut: int32 [n], response tokens cut by truncation.
        losses: float32 [n, s], nats per response token.
        subnets: the s columns' subnets.
        score: float32 [n], the aggregate, higher = harder.
        score_name: which aggregate ("dlc", "lc", "loss", "perplexity", "ifd").
        backbone: model identity.
        more: {name: float32 [n]}, what probes of the user's own read.
    """

    row_id: Int64
    content_hash: NDArray[np.str_]
    status: NDArray[np.str_]
    n_prompt: Int32
    n_response: Int32
    n_cut: Int32
    losses: Float32
    subnets: tuple[SubnetSpec, ...]
    score: Float32
    score_name: str
    backbone: str
    more: Mapping[str, Float32] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.row_id)
        for name in (*PLAIN, "score"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, row_id has {n}")
        if self.losses.shape != (n, len(self.subnets)):
            raise ValueError(f"losses are {self.losses.shape}, expected {(n, len(self.subnets))}")

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def scored(self) -> Bool:
        """bool [n]: the rows that carry a score."""
        return np.isin(self.status, [s.value for s in Status if s.scored])

    def columns(self) -> dict[str, NDArray[Any]]:
        """The table as flat columns, in the order of ``scores.parquet``."""
        flat: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in PLAIN}
        flat |= {f"loss_{spec.name}": self.losses[:, j] for j, spec in enumerate(self.subnets)}
        flat |= dict(self.more)
        flat["score"] = self.score
        return flat

    def to_pandas(self) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(self.columns())

    def to_dataset(self) -> datasets.Dataset:
        import datasets

        return datasets.Dataset.from_dict(self.columns())
