"""Training sequences -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from instruct_prune.train.rows import IGNORED, TrainRow

if TYPE_CHECKING:
    from instruct_prune.models.vision_language import VisionLanguage


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
        at, targets = _targets(labels)
        batch |= {"logits_to_keep": at, "shift_labels": targets}
    return batch


def collate_pictured(rows: Sequence[TrainRow], held: VisionLanguage, keep_logits: bool = True) -> dict[str, Any]:
    """Rows of which some show pictures, and what a model is given of these; its loss is `loss_of_kept`.

    Args:
        rows: as in `collate`.
        held: the model as it measures, which keeps the features of pictures.
        keep_logits: as in `collate`.

    Returns:
        labels [b, t]; input_ids, padded as ``held`` does; what ``forward`` takes of the pictures; with ``keep_logits`` logits_to_keep.
    """
    batch, shown = collate(rows, keep_logits=keep_logits), held.collate([row.tokens for row in rows], -1)
    batch.pop("shift_labels", None)
    return {**batch, "input_ids": shown.input_ids, **shown.more}


def loss_of_kept(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int) -> Tensor:
    """Nats per learnt token, of logits at all positions or at those alone that some row learns something at.

    The losses of vision-language models in transformers differ in what they take and in how they average.

    Args:
        outputs: with ``logits`` [b, t, v] or [b, k, v].
        labels: int64 [b, t].
        num_items_in_batch: learnt tokens of the step, over all processes.
    """
    at, targets = _targets(labels)
    logits = outputs.logits if outputs.logits.shape[1] == len(at) else outputs.logits[:, at]
    wanted = targets != IGNORED
    return F.cross_entropy(logits[wanted].float(), targets[wanted], reduction="sum") / num_items_in_batch


def _targets(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [k] at which some row predicts a learnt token, and the tokens [b, k] that are predicted there."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    at = (following != IGNORED).any(dim=0).nonzero()[:, 0]
    return at, following[:, at]
