"""What selection is given and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64
from instruct_prune.select.target import Target
from instruct_prune.select.turns import Taken

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Embeddings:
    """One vector a row: float32 [n, d], L2-normalised, possibly memory-mapped."""

    row_id: Int64
    vectors: Float32
    encoder: str

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or len(self.vectors) != len(self.row_id):
            raise ValueError(f"vectors are {self.vectors.shape} for {len(self.row_id)} rows")


@dataclass(frozen=True)
class Clusters:
    """k-means over embeddings.

    Attributes:
        row_id: int64 [n].
        labels: int32 [n], in 0..k-1.
        distances: float32 [n], Euclidean, to the row's own centre.
        centers: float32 [k, d].
    """

    row_id: Int64
    labels: Int32
    distances: Float32
    centers: Float32

    def __post_init__(self) -> None:
        if not len(self.row_id) == len(self.labels) == len(self.distances):
            raise ValueError("row_id, labels and distances of Clusters differ in length")


@dataclass(frozen=True)
class Pool:
    """All that a selection method may see: the scored rows (rows without a score are not in the pool).

    `build_pool` makes one from the tables of a run; with arrays of your own, make it directly.

    Example:
        >>> pool = Pool(
        ...     row_id=np.arange(3),
        ...     score=np.array([0.5, 1.5, 1.0], dtype=np.float32),
        ...     n_response=np.array([20, 7, 12], dtype=np.int32),
        ...     strata=np.zeros(3, dtype=np.int32),
        ... )
        >>> select_rows(pool, Budget(rows=1), method="hardest").kept
        array([1])

    Attributes:
        row_id: int64 [n], ascending.
        score: float32 [n], higher = harder, finite.
        n_response: int32 [n], response tokens.
        strata: int32 [n], the stratum of each row (all 0 when there is one stratum).
        strata_names: name of stratum i at position i.
        embeddings: float32 [n, d], L2-normalised, possibly memory-mapped; or None.
        losses: {subnet name: float32 [n]}, the raw per-subnet losses, for methods that need another column than the score.
    """

    row_id: Int64
    score: Float32
    n_response: Int32
    strata: Int32
    strata_names: tuple[str, ...] = ("all",)
    embeddings: Float32 | None = None
    losses: Mapping[str, Float32] = field(default_factory=dict)
    target: Target | None = None

    def __post_init__(self) -> None:
        n = len(self.row_id)
        for name in ("score", "n_response", "strata"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, row_id has {n}")
        if self.embeddings is not None and len(self.embeddings) != n:
            raise ValueError(f"embeddings have {len(self.embeddings)} rows, the pool has {n}")

    def __len__(self) -> int:
        return len(self.row_id)


@dataclass(frozen=True)
class Budget:
    """How much to keep: exactly one of the two is set.

    `resolve_budget` makes one from a share and checks it against a pool.

    Example:
        >>> Budget(rows=5000)
        Budget(rows=5000, tokens=None)

    Attributes:
        rows: number of rows.
        tokens: number of response tokens, never exceeded.

    Raises:
        ValueError: both are set, or none.
    """

    rows: int | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.tokens is None):
            raise ValueError("a budget is a number of rows or a number of response tokens")


@dataclass(frozen=True)
class Selection:
    """What was kept and dropped, and why, one entry for every row of the pool.

    Attributes:
        row_id: int64 [n], as in the pool.
        selected: bool [n].
        reason: int8 [n], an index into ``reasons``.
        reasons: the words ("easy pool", "hard pool", "budget", "duplicate", ...); few, so that a
            million rows cost a byte each.
        stratum: int32 [n].
        score: float32 [n].
        rank: int32 [n], 0 = easiest of its stratum; -1 for rows that were set aside before scoring, which are dropped, have no
            score (NaN) and no stratum (-1).
        strata_names: name of stratum i at position i.
        duplicate_of: int64 [n], the row_id that stands for this one, -1 where none does; or None.
        method, seed, params: how to make this selection again.
        taken: which query of a target took each row; or None.
    """

    row_id: Int64
    selected: Bool
    reason: NDArray[np.int8]
    reasons: tuple[str, ...]
    stratum: Int32
    score: Float32
    rank: Int32
    method: str
    seed: int
    params: Mapping[str, Any]
    strata_names: tuple[str, ...] = ("all",)
    duplicate_of: Int64 | None = None
    taken: Taken | None = None

    def __post_init__(self) -> None:
        n = len(self.row_id)
        for name in ("selected", "reason", "stratum", "score", "rank"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, row_id has {n}")

    def __len__(self) -> int:
        return len(self.row_id)

    def ranked(self) -> Selection:
        """The rows that were ranked, without those that were set aside before scoring and those that have no score."""
        there = self.rank >= 0
        if there.all():
            return self
        arrays: dict[str, Any] = {
            f.name: value[there] for f in fields(self) if isinstance(value := getattr(self, f.name), np.ndarray)
        }
        return replace(self, **arrays)

    def of_reason(self, reason: str) -> Int64:
        """int64 [k]: ids of the rows that have this reason."""
        found = [code for code, name in enumerate(self.reasons) if name == reason]
        return self.row_id[np.isin(self.reason, found)]

    @property
    def kept(self) -> Int64:
        """int64 [k]: row ids kept, ascending."""
        return self.row_id[self.selected]

    @property
    def dropped(self) -> Int64:
        """int64 [n - k]: row ids dropped, ascending."""
        return self.row_id[~self.selected]

    def to_pandas(self) -> pandas.DataFrame:
        import pandas

        names = np.asarray([*self.strata_names, None], dtype=object)  # -1, no stratum, takes the last one
        return pandas.DataFrame(
            {
                "row_id": self.row_id,
                "selected": self.selected,
                "reason": pandas.Categorical.from_codes(self.reason, list(self.reasons)),
                "stratum": names[self.stratum] if self.strata_names else self.stratum,
                "score": self.score,
                "rank": self.rank,
            }
        )


Picks = NDArray[np.int64]
"""Positions (not row ids) in the pool."""
