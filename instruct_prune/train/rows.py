"""Training sequences: the scorer's tokens and mask as ids and labels, packed, and the order in which they are seen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.encode.item import Encoded, PicturedTokens, Tokens
from instruct_prune.errors import InputError

IGNORED = -100
"""Label of a token that nothing is learnt from, as in transformers and PyTorch."""


@dataclass(frozen=True)
class TrainRow:
    """One training sequence.

    Attributes:
        input_ids: int64 [t].
        labels: int64 [t]; the token itself where it is learnt, else IGNORED.
        position_ids: int64 [t]; begins at 0 again with every row of a packed sequence.
        item: of a row that shows pictures, what the model is given of it; None elsewhere.
    """

    input_ids: Int64
    labels: Int64
    position_ids: Int64
    item: PicturedTokens | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def tokens(self) -> Tokens:
        """As a model's ``collate`` takes it."""
        ids, learnt = self.input_ids.astype(np.int32), self.labels != IGNORED
        return Tokens(ids, learnt) if self.item is None else replace(self.item, ids=ids, response_mask=learnt)

    @property
    def n_targets(self) -> int:
        """Tokens that are learnt: those with a label, without the first, which nothing predicts."""
        return int((self.labels[1:] != IGNORED).sum())


def train_rows(encoded: Iterable[Encoded]) -> list[TrainRow]:
    """The scorer's tokens and masks as training sequences, so that what was scored is what is trained on."""
    rows = []
    for row in encoded:
        ids = row.input_ids.astype(np.int64)
        rows.append(TrainRow(ids, np.where(row.response_mask, ids, IGNORED), np.arange(len(ids)), row.item))
    return rows


def pack(rows: Sequence[TrainRow], length: int) -> list[TrainRow]:
    """Rows joined into sequences of at most ``length`` tokens, longest first, each where it fits first.

    transformers keeps the rows of a sequence from seeing each other by their positions, which begin at 0 with every row.

    Raises:
        InputError: a row shows pictures.
    """
    if any(row.item is not None for row in rows):
        raise InputError("--packing: rows that show pictures cannot share a sequence. Train without it.")
    bins: list[list[TrainRow]] = []
    room: list[int] = []
    for row in sorted(rows, key=lambda row: -len(row)):
        for i, free in enumerate(room):
            if len(row) <= free:
                bins[i].append(row)
                room[i] -= len(row)
                break
        else:
            bins.append([row])
            room.append(length - len(row))
    names = ("input_ids", "labels", "position_ids")
    joined = ([np.concatenate([getattr(row, name) for row in group]) for name in names] for group in bins)
    return [TrainRow(ids, labels, positions) for ids, labels, positions in joined]


def training_order(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> Int64:
    """int64 [steps * batch_size]: whole shuffled epochs, one after the other; long rows first inside a step.

    The rows of a step depend on the seed only, not on the number of processes or the micro-batch. Sorting them puts rows of
    similar length into one micro-batch.
    """
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(len(lengths)) for _ in range(math.ceil(steps * batch_size / len(lengths)))]
    order = np.concatenate(epochs)[: steps * batch_size].reshape(steps, batch_size)
    sizes = np.asarray(lengths)[order]
    return np.take_along_axis(order, np.argsort(-sizes, axis=1, kind="stable"), axis=1).reshape(-1)
