"""A batch of token sequences, and vectors pooled over it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from instruct_prune.encode.batching import padded
from instruct_prune.encode.item import Tokens

LEAST = 16
"""Fewest tokens of a row that is padded: products over a handful of positions go through kernels that round otherwise."""


@dataclass(frozen=True)
class TextBatch:
    """Right-padded rows.

    Attributes:
        input_ids: int64 [b, t], without the shared prefix and, where no states are pooled, without what comes after the
            last but one target.
        lengths: int64 [b], tokens of each row in ``input_ids``.
        rows, positions: int64 [m], where the states that predict the m targets lie.
        targets: int64 [m].
        counts: int64 [b], targets of each row.
        prefix: index of the shared prefix, or -1.
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    positions: Tensor
    targets: Tensor
    counts: Tensor
    prefix: int

    @classmethod
    def of(
        cls, items: Sequence[Tokens], prefix: int, skip: int, pooled: bool, device: torch.device, most: int | None
    ) -> TextBatch:
        """Rows as one batch.

        Args:
            items: the rows.
            prefix: index of the prefix that they share, or -1.
            skip: its length.
            pooled: whether every token is run, also those after the last but one target.
            device: where the batch goes.
            most: positions that the model has for a row without the prefix; None where rows are not padded further than to
                the longest of them.
        """
        inputs, rows, positions, targets = [], [], [], []
        for i, item in enumerate(items):
            own = torch.from_numpy(item.ids[skip:].astype("int64"))
            at = torch.from_numpy(item.response_mask[skip + 1 :].nonzero()[0])  # state at p predicts token p + 1
            # Nothing comes of the states from the last target on, unless states are pooled.
            inputs.append(own if pooled else own[: int(at[-1]) + 1])
            rows.append(torch.full_like(at, i))
            positions.append(at)
            targets.append(own[at + 1])

        ids = nn.utils.rnn.pad_sequence(inputs, batch_first=True)
        if most is not None:
            # The width follows from the rows' own lengths, and not from which of them happen to be in the batch.
            longest = np.asarray([max(len(item.ids) for item in items) - skip], dtype=np.int32)
            width = min(max(int(padded(longest)[0]), LEAST), most) - (0 if pooled else 1)
            ids = nn.functional.pad(ids, (0, max(0, width - ids.shape[1])))

        def there(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return cls(
            input_ids=there(ids),
            lengths=there(torch.as_tensor([len(ids) for ids in inputs])),
            rows=there(torch.cat(rows)),
            positions=there(torch.cat(positions)),
            targets=there(torch.cat(targets)),
            counts=there(torch.as_tensor([len(p) for p in positions])),
            prefix=prefix,
        )


def pooled_states(batch: TextBatch, own: Tensor, before: Tensor, how: str, first: int = 0) -> Tensor:
    """float32 [b, h]: one vector a row.

    Args:
        batch: b rows.
        own: float32 [b, t, h], their states.
        before: float32 [p, h], the states of the prefix that they share.
        how: "mean" over positions, "weighted" by position counted from 1, or "last".
        first: positions at the beginning of a row that "mean" and "weighted" leave out.
    """
    if how == "last":
        return own[torch.arange(len(own), device=own.device), batch.lengths - 1]
    place = torch.arange(own.shape[1], device=own.device)[None] + len(before)
    inside = ((place < batch.lengths[:, None] + len(before)) & (place >= first)).float()
    weights = inside if how == "mean" else inside * (place + 1)
    there = torch.arange(len(before), device=own.device)
    head = (there >= first).float() if how == "mean" else (there >= first) * (there + 1.0)
    total = torch.einsum("bt,bth->bh", weights, own) + head @ before
    return total / (weights.sum(dim=1) + head.sum())[:, None]
