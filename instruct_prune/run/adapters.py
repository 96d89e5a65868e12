"""Adapters that a run trains for its own measurements: on the rows of a target, and on random rows of the pool."""

from __future__ import annotations

from dataclasses import replace

from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.measure.adapter import adapter_name
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.model import Items
from instruct_prune.progress import Progress
from instruct_prune.run.measure import GRADIENT_SHARE
from instruct_prune.run.measuring import Measuring, Task
from instruct_prune.storage import digest
from instruct_prune.train.adapter import train_adapter
from instruct_prune.train.config import TrainConfig

OF_TARGET = TrainConfig(rank=1, alpha=1, dropout=0.0, learning_rate=5e-3, warmup=0.1, batch_size=8, max_steps=16)
"""The least adapter there is, and few steps: it is to learn what the rows of a target have in common, not these rows (Yang et
al., arXiv 2605.09404, take rank 1 and the first checkpoint)."""
WARM_UP = TrainConfig(rank=8, alpha=16, dropout=0.0, learning_rate=2e-4, warmup=0.1, schedule="constant", batch_size=8)
"""On the pool, as LESS begins (Xia et al., arXiv 2402.04333), with fewer rows."""


def of_task(measuring: Measuring, task: Task) -> SubnetSpec:
    """The model with an adapter trained on the rows of a task, in ``RUN/targets/by/drop/TASK/adapter``."""
    return _trained(measuring, task.items, OF_TARGET, measuring.path(f"{task.name}/adapter"))


def warmed_up(measuring: Measuring, steps: int) -> SubnetSpec:
    """The model with an adapter trained on random rows of the pool, in ``RUN/targets/pool/warmup_STEPS``."""
    return _trained(measuring, measuring.pool, replace(WARM_UP, max_steps=steps), f"targets/pool/warmup_{steps}")


def _trained(measuring: Measuring, items: Items, config: TrainConfig, path: str) -> SubnetSpec:
    if not isinstance(items, TokenStore):
        raise InputError(f"--by {measuring.by}: adapters are trained on texts, and these rows are none. Use --by rds.")
    folder = measuring.folder / path
    identity = {
        "model": measuring.scored["model"],
        "dtype": measuring.scored["dtype"],
        "content": digest(items.text_columns("content_hash")[0]),
    }
    batch = measuring.batch // GRADIENT_SHARE
    with Progress(f"training the adapter {adapter_name(str(folder))}", config.max_steps, "steps") as progress:
        train_adapter(measuring.model, items, config, folder, identity, batch_tokens=batch, advance=progress.advance)
    return SubnetSpec("adapter", folder=str(folder), label=adapter_name(str(folder)))
