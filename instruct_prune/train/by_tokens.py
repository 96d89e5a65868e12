"""Training in steps of equal response tokens, in one process: what arms of rows of different lengths are compared by."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.train.config import TrainConfig
from instruct_prune.train.processes import resolved_dtype
from instruct_prune.train.rows import IGNORED, TrainRow
from instruct_prune.train.schedule import learning_rate_share

MICRO_TOKENS = 1024
"""Padded tokens in a forward pass; a longer row goes alone."""
LARGEST_NORM = 1.0
"""Gradients are clipped to it, as by the Trainer of transformers."""


@dataclass(frozen=True)
class Piece:
    """Response tokens ``first`` to ``last`` (not included) of a row."""

    row: int
    first: int
    last: int


def steps_of(sizes: Sequence[int], steps: int, total: int, seed: int) -> list[list[Piece]]:
    """What each step takes: whole shuffled epochs one after the other, cut into steps of about equal response tokens.

    A step ends at the end of a row where one is near (within a quarter of a step), else inside a row, so that every step has
    tokens also where rows are longer than a step.

    Args:
        sizes: response tokens of n rows, each at least 1.
        steps: how many.
        total: response tokens of all steps together, at least one a step.
        seed: of the order.
    """
    rng = np.random.default_rng(seed)
    epochs = math.ceil(total / sum(sizes))
    order = np.concatenate([rng.permutation(len(sizes)) for _ in range(epochs)])
    ends = np.cumsum(np.asarray(sizes, dtype=np.int64)[order])
    wanted = np.arange(1, steps) * total / steps
    near = ends[np.clip(np.searchsorted(ends, wanted), 0, len(ends) - 1)]
    before = ends[np.clip(np.searchsorted(ends, wanted) - 1, 0, len(ends) - 1)]
    near = np.where(np.abs(before - wanted) <= np.abs(near - wanted), before, near)
    cuts = np.where(np.abs(near - wanted) <= total / steps / 4, near, np.round(wanted)).astype(np.int64)
    borders = [0, *cuts.tolist(), total]
    found: list[list[Piece]] = []
    for start, end in pairwise(borders):
        first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, end)
        begins = ends[first : last + 1] - np.asarray(sizes)[order[first : last + 1]]
        found.append(
            [
                Piece(int(row), max(0, int(start - begin)), min(sizes[row], int(end - begin)))
                for row, begin in zip(order[first : last + 1].tolist(), begins.tolist(), strict=True)
            ]
        )
    return found


def train_by_tokens(
    model: Any,
    rows: Sequence[TrainRow],
    steps: Sequence[Sequence[Piece]],
    config: TrainConfig,
    held: CausalLM,
) -> None:
    """Train the adapter of a model by AdamW; each step takes the mean loss over its response tokens.

    Args:
        model: as `attach_lora` returns it; its adapter is changed in place.
        rows: n rows.
        steps: as `steps_of` makes them.
        config: learning rate, schedule, weight decay and dtype.
        held: the same model as it measures, held before it had an adapter.
    """
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    dtype = resolved_dtype(config.dtype)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "float16")
    warmup = math.ceil(config.warmup * len(steps))
    model.train()
    for number, step in enumerate(steps):
        share = learning_rate_share(number, len(steps), warmup, config.schedule)
        optimizer.param_groups[0]["lr"] = config.learning_rate * share
        targets = sum(piece.last - piece.first for piece in step)
        for batch in _micro_batches([_cut(rows[piece.row], piece) for piece in step], held):
            torch.autograd.backward(scaler.scale(_summed_loss(held, batch, dtype) / targets))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(trained, LARGEST_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    model.eval()


def _cut(row: TrainRow, piece: Piece) -> TrainRow:
    """The row with the piece's labels alone, up to the last of them: a causal model does not see what comes after."""
    targets = np.flatnonzero(row.labels[1:] != IGNORED) + 1
    end = int(targets[piece.last - 1]) + 1
    labels = row.labels[:end].copy()
    labels[targets[: piece.first]] = IGNORED
    return TrainRow(row.input_ids[:end], labels, row.position_ids[:end], row.item)


def _micro_batches(rows: Sequence[TrainRow], held: CausalLM) -> Iterator[list[TrainRow]]:
    rows = sorted(rows, key=len, reverse=True)
    alone = held.alone(np.asarray([len(row) for row in rows], dtype=np.int32))
    batch: list[TrainRow] = []
    for i, row in enumerate(rows):
        by_itself = alone is not None and (alone[i] or alone[i - 1])  # this row, or what is in the batch
        if batch and (by_itself or (len(batch) + 1) * len(batch[0]) > MICRO_TOKENS):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _summed_loss(held: CausalLM, rows: Sequence[TrainRow], dtype: str) -> torch.Tensor:
    """Nats, summed over the response tokens of rows, by the code that measures them."""
    wanted = getattr(torch, dtype)
    ready = held.collate([row.tokens for row in rows], -1)
    with torch.autocast(ready.input_ids.device.type, dtype=wanted, enabled=wanted != torch.float32):
        return held.token_losses(ready, held.forward(ready)).sum()
