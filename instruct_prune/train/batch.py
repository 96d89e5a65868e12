"""Training sequences -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from instruct_prune.train.rows import IGNORED, TrainRow


def collate(rows: Sequence[TrainRow], packing: bool = False, keep_logits: bool = True) -> dict[str, Tensor]:
    """Right-padded rows; no attention mask is needed, because a causal model cannot see what comes after.

    Args:
        rows: b sequences, t tokens in the longest.
        packing: give ``position_ids``, by which packed rows do not see each other.
        keep_logits: run the output head only where some row of the batch has a target (models whose ``forward`` takes
            ``logits_to_keep``). The head and its softmax are a third of the work of a small model with a large vocabulary,
            and most of the memory.

    Returns:
        int64 tensors: input_ids and labels [b, t], with ``packing`` position_ids [b, t], with ``keep_logits`` logits_to_keep [k]
        and shift_labels [b, k], the targets that those positions predict.
    """
    width = max(len(row) for row in rows)
    ids, labels, positions = (torch.full((len(rows), width), fill) for fill in (0, IGNORED, 0))
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.input_ids)
        labels[i, : len(row)] = torch.from_numpy(row.labels)
        positions[i, : len(row)] = torch.from_numpy(row.position_ids)
    batch = {"input_ids": ids, "labels": labels}
    if packing:
        batch["position_ids"] = positions
    if keep_logits:
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        at = (targets != IGNORED).any(dim=0).nonzero()[:, 0]
        batch |= {"logits_to_keep": at, "shift_labels": targets[:, at]}
    return batch
