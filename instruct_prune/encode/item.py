"""What a model is given of one row, and what became of the row on the way there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Int32, Int64
from instruct_prune.rows.row import ImageRef


class Status(StrEnum):
    """What became of a row in encoding and scoring. Only OK and TRUNCATED carry a score; SET_ASIDE is no fault of the row."""

    OK = "ok"
    TRUNCATED = "truncated"
    EMPTY_RESPONSE = "empty_response"
    ALL_MASKED = "all_masked"
    NONFINITE = "nonfinite"
    TOO_LONG = "too_long"
    FAILED = "failed"
    SET_ASIDE = "set_aside"

    @property
    def scored(self) -> bool:
        return self in (Status.OK, Status.TRUNCATED)


def set_aside(names: NDArray[np.str_], at: Int64) -> NDArray[np.str_]:
    """str [n]: the statuses, those at these positions being SET_ASIDE."""
    longest = max(len(status.value) for status in Status)
    found: NDArray[np.str_] = names.astype(f"<U{longest}")
    found[at] = Status.SET_ASIDE.value
    return found


@dataclass(frozen=True, slots=True)
class Encoded:
    """One tokenized row.

    Attributes:
        row_id: as in Row.
        input_ids: int32 [T].
        response_mask: bool [T]; True where the token is a target of the loss.
        status: what encoding found.
        n_cut: response tokens that truncation removed.
        reason: why, when the status is not OK.
        content_hash: hexadecimal digest of token ids and mask.
        item: what the model is given of the row, where that is more than its tokens; None elsewhere.
    """

    row_id: int
    input_ids: Int32
    response_mask: Bool
    status: Status
    n_cut: int = 0
    reason: str = ""
    content_hash: str = ""
    item: PicturedTokens | None = None

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
class PicturedTokens(Tokens):
    """A row that shows pictures.

    Attributes:
        pictures: in order.
        asked: what the processor is asked for, as JSON of its arguments.
        blind: the row without its pictures; no tokens where its response would be other tokens then.
        key: of this row among all that a model is given.
    """

    pictures: tuple[ImageRef, ...]
    asked: str
    blind: Tokens
    key: str


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """What an image backbone needs of one row: its class, and its pixels when asked.

    Attributes:
        label: index of the class.
        open: decodes the picture: PIL.Image.Image in mode RGB.
        pixels: what the model's transform made of it, where that is kept: a tensor float32 [3, h, w].
    """

    label: int
    open: Callable[[], Any]
    pixels: Any = None
