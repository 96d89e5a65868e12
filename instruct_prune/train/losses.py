"""The loss of rows under a model, with or without an adapter, in float32: by the scorer's own code (docs/method.md, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.batching import plan_batches, shared_prefixes
from instruct_prune.encode.item import Encoded, Tokens
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.train.processes import state


@dataclass(frozen=True)
class TokenLosses:
    """Nats of every response token of n rows.

    Attributes:
        values: float32 [m], row after row.
        offset: int64 [n + 1]; row i's values are ``values[offset[i]:offset[i + 1]]``.
    """

    values: Float32
    offset: Int64

    def __post_init__(self) -> None:
        if self.offset[-1] != len(self.values):
            raise ValueError(f"{len(self.values)} losses, but offsets end at {self.offset[-1]}")

    def __len__(self) -> int:
        return len(self.offset) - 1

    def __getitem__(self, i: int) -> Float32:
        return self.values[self.offset[i] : self.offset[i + 1]]

    @property
    def per_row(self) -> Float32:
        """float32 [n]: loss per response token of each row."""
        totals = np.concatenate([[0], np.cumsum(self.values, dtype=np.float64)])
        return (np.diff(totals[self.offset]) / np.diff(self.offset)).astype(np.float32)


def evaluate(
    model: Any, rows: Sequence[Encoded], batch_tokens: int = 4096, held: CausalLM | None = None
) -> TokenLosses:
    """The loss of every response token, computed in this process.

    Args:
        model: a causal language model of transformers, or one of peft with an adapter. It is left in the mode (training or
            evaluation) that it had.
        rows: at least one, each with a response token.
        batch_tokens: padded tokens in a forward pass.
        held: the same model as it measures.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    training = base.training
    items = [row.item or Tokens(row.input_ids, row.response_mask) for row in rows]
    lengths = np.asarray([len(item.ids) for item in items], dtype=np.int32)
    first = np.asarray([item.response_mask.argmax() for item in items], dtype=np.int32)
    at = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    positions = np.arange(len(items), dtype=np.int64)
    base.eval()
    held = held or CausalLM.holding(base)
    group, prefixes = held.allowed(
        *shared_prefixes(np.concatenate([i.ids for i in items]), at, positions, first), lengths
    )
    plan = plan_batches(
        positions, lengths, batch_tokens=batch_tokens, group=group, prefixes=prefixes, alone=held.alone(lengths)
    )
    counts = np.asarray([int(item.response_mask[1:].sum()) for item in items], dtype=np.int64)
    offset = np.concatenate([[0], np.cumsum(counts)])
    values = np.empty(offset[-1], dtype=np.float32)
    held.start_pass(plan, (), pooled=False)
    for chunk in plan.chunks:
        for batch in chunk:
            with torch.inference_mode():
                ready = held.collate([items[i] for i in batch.rows], batch.prefix)
                found = held.token_losses(ready, held.forward(ready)).float().cpu().numpy()
            for i, piece in zip(batch.rows, np.split(found, np.cumsum(counts[batch.rows])[:-1]), strict=True):
                values[offset[i] : offset[i + 1]] = piece
    base.train(training)
    return TokenLosses(values, offset)


def evaluate_shared(model: Any, rows: Sequence[Encoded], held: CausalLM | None = None) -> TokenLosses:
    """`evaluate`, each of the launched processes a share of the rows; all of them get the result."""
    from accelerate.utils import gather_object

    processes = state()
    rank, world = processes.process_index, processes.num_processes
    mine = rows[rank::world]
    found = evaluate(model, mine, held=held) if mine else None
    pairs = gather_object(
        [(rank + i * world, found[i].tolist()) for i in range(len(found))] if found is not None else []
    )
    values = [value for _, value in sorted(pairs)]
    offset = np.concatenate([[0], np.cumsum([len(value) for value in values], dtype=np.int64)])
    return TokenLosses(np.asarray([v for value in values for v in value], dtype=np.float32), offset)
