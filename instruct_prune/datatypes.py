"""What flows through the house: load -> encode -> score -> embed -> select -> export.

Frozen dataclasses; arrays name their shape in a comment, and shapes are checked once, at construction.
Rows keep one fixed order everywhere: the order of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import datasets
    import pandas

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


class Status(StrEnum):
    """What became of a row in encoding and scoring. Only OK and TRUNCATED carry a score."""

    OK = "ok"
    TRUNCATED = "truncated"
    EMPTY_RESPONSE = "empty_response"
    ALL_MASKED = "all_masked"
    NONFINITE = "nonfinite"
    TOO_LONG = "too_long"
    FAILED = "failed"

    @property
    def scored(self) -> bool:
        return self in (Status.OK, Status.TRUNCATED)


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: "system", "user", "assistant", "tool", or "text" (plain language modelling: no turns, no template).
        content: the text of the turn.
        trained: whether the tokens of this turn are scored and trained on.
        context: Alpaca's ``input``: what the instruction is about. Templates without a place for it
            append it to ``content`` after a newline.
        tool_calls: OpenAI-style calls of an assistant turn, passed to the chat template as they are.
    """

    role: str
    content: str
    trained: bool = False
    context: str = ""
    tool_calls: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Sample:
    """One row of the dataset, in one shape whatever its format was.

    Attributes:
        row_id: 0-based position among all rows read, rejected ones included.
        messages: the conversation, oldest turn first.
        source: the file (or Hub id) the row came from.
        line: 1-based line in ``source`` for line-based files, else the 1-based position of the row in it.
        raw: the untouched row: the exact bytes of its line for JSONL, the parsed object for other formats.
        columns: the row's fields that are not part of the conversation (strata, labels), by name.
        tools: tool definitions for chat templates that take them.
    """

    row_id: int
    messages: tuple[Message, ...]
    source: str
    line: int
    raw: bytes | Mapping[str, Any]
    columns: Mapping[str, Any] = field(default_factory=dict)
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """A row that was read but cannot be a sample; it is listed in ``rejected.jsonl``, never dropped in silence."""

    row_id: int
    source: str
    line: int
    reason: str
    field: str | None = None
    status: str = "rejected"


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenized row.

    Attributes:
        row_id: as in Sample.
        input_ids: int32 [T].
        response_mask: bool [T]; True where the token is a target of the loss.
        status: what encoding found.
        n_cut: response tokens that truncation removed.
        reason: why, when the status is not OK.
        content_hash: hexadecimal digest of token ids and mask.
    """

    row_id: int
    input_ids: Int32
    response_mask: Bool
    status: Status
    n_cut: int = 0
    reason: str = ""
    content_hash: str = ""

    def __post_init__(self) -> None:
        if self.input_ids.shape != self.response_mask.shape or self.input_ids.ndim != 1:
            raise ValueError(
                f"row {self.row_id}: ids {self.input_ids.shape} and mask {self.response_mask.shape} differ"
            )


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a text backbone needs of one row: ids int32 [T] and response_mask bool [T]."""

    ids: Int32
    response_mask: Bool


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """What an image backbone needs of one row: its class, and its pixels when asked.

    Attributes:
        label: index of the class.
        open: decodes the picture: PIL.Image.Image in mode RGB.
    """

    label: int
    open: Callable[[], Any]


SUBNET_KINDS = ("dense", "magnitude", "random", "dropout", "depth", "alone")


@dataclass(frozen=True, slots=True, order=True)
class SubnetSpec:
    """One sub-network of the base model (METHOD: part of its capacity removed, nothing trained).

    Attributes:
        kind: one of SUBNET_KINDS. "alone" is the dense model on the response without its prompt (for IFD).
        value: density in (0, 1] for magnitude and random, rate in [0, 1) for dropout, number of blocks for depth.
        seed: for random and dropout.
        scope: "layerwise" or "global", for magnitude.
    """

    kind: str
    value: float = 1.0
    seed: int = 0
    scope: str = "layerwise"

    @property
    def name(self) -> str:
        """The column suffix: ``magnitude_0800``, ``random_0800_s1``, ``dropout_0100_s0``, ``depth_06``."""
        thousandths = f"{round(self.value * 1000):04d}"
        if self.kind in ("dense", "alone", "features"):
            return self.kind
        if self.kind == "magnitude":
            return f"magnitude_{thousandths}" + ("_global" if self.scope == "global" else "")
        if self.kind == "depth":
            return f"depth_{int(self.value):02d}"
        return f"{self.kind}_{thousandths}_s{self.seed}"


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

    def __post_init__(self) -> None:
        n = len(self.row_id)
        for name in ("content_hash", "status", "n_prompt", "n_response", "n_cut", "score"):
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
        flat: dict[str, NDArray[Any]] = {
            name: getattr(self, name)
            for name in ("row_id", "content_hash", "status", "n_prompt", "n_response", "n_cut")
        }
        flat |= {f"loss_{spec.name}": self.losses[:, j] for j, spec in enumerate(self.subnets)}
        flat["score"] = self.score
        return flat

    def to_pandas(self) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(self.columns())

    def to_dataset(self) -> datasets.Dataset:
        import datasets

        return datasets.Dataset.from_dict(self.columns())


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
    """All that a selector may see: the scored rows (rows without a score are not in the pool).

    Attributes:
        row_id: int64 [n], ascending.
        score: float32 [n], higher = harder, finite.
        n_response: int32 [n], response tokens.
        strata: int32 [n], the stratum of each row (all 0 when there is one stratum).
        strata_names: name of stratum i at position i.
        embeddings: float32 [n, d] or None.
        losses: {subnet name: float32 [n]}, the raw per-subnet losses, for baselines that want another column.
    """

    row_id: Int64
    score: Float32
    n_response: Int32
    strata: Int32
    strata_names: tuple[str, ...] = ("all",)
    embeddings: Float32 | None = None
    losses: Mapping[str, Float32] = field(default_factory=dict)

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

    Attributes:
        rows: number of rows.
        tokens: number of response tokens, never exceeded.
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
        rank: int32 [n], 0 = easiest of its stratum.
        strata_names: name of stratum i at position i.
        duplicate_of: int64 [n], the row_id that stands for this one, -1 where none does; or None.
        method, seed, params: how to make this selection again.
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

    def __post_init__(self) -> None:
        n = len(self.row_id)
        for name in ("selected", "reason", "stratum", "score", "rank"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"{name} has {len(getattr(self, name))} rows, row_id has {n}")

    def __len__(self) -> int:
        return len(self.row_id)

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

        names = np.asarray(self.strata_names, dtype=object)
        return pandas.DataFrame(
            {
                "row_id": self.row_id,
                "selected": self.selected,
                "reason": pandas.Categorical.from_codes(self.reason, list(self.reasons)),
                "stratum": names[self.stratum] if len(names) else self.stratum,
                "score": self.score,
                "rank": self.rank,
            }
        )


Picks = NDArray[np.int64]
"""Positions (not row ids) in the pool."""

Selector = Callable[[Pool, Budget, np.random.Generator], Selection]
