"""A small LoRA adapter for measurements, trained in this process alone by the code that measures losses."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instruct_prune.encode.batching import plan_batches
from instruct_prune.models.model import Items, Model
from instruct_prune.storage import replaced_folder, write_json
from instruct_prune.train.config import TrainConfig, step_count
from instruct_prune.train.lora import attach_lora
from instruct_prune.train.rows import training_order
from instruct_prune.train.schedule import learning_rate_share

IDENTITY = "trained_on.json"
"""In the adapter's folder, beside what PEFT writes: all that decided it."""


def train_adapter(
    model: Model,
    items: Items,
    config: TrainConfig,
    folder: Path,
    identity: Mapping[str, Any],
    *,
    batch_tokens: int,
    advance: Callable[[int], None] = lambda steps: None,
) -> None:
    """Train a fresh adapter and save it as PEFT does, unless the folder holds the same one; the model is as before afterwards.

    No process waits for another in it, so that the main one can do it while the others have ended. Rows are drawn and the
    adapter begins by ``config.seed``: the same rows, options and number of threads give the same bytes. A training that was
    interrupted begins anew.

    Args:
        model: loaded, of texts.
        items: of which the scorable ones are trained on.
        config: rank, learning rate, steps, ...; its dtype, micro-batch, packing and checkpoints are not used.
        folder: where to; it appears when it is whole.
        identity: all that decides the rows and the model, as JSON can hold it.
        batch_tokens: padded tokens in a forward pass.
        advance: called with 1 after each step.

    Raises:
        InputError: the model has no linear layers.
    """
    steps = step_count(int(items.scorable.sum()), config)
    whole = {"rows": dict(identity), "rank": config.rank, "alpha": config.alpha, "learning_rate": config.learning_rate,
             "batch_size": config.batch_size, "steps": steps, "seed": config.seed}  # fmt: skip
    if _known(folder) == json.loads(json.dumps(whole)):
        advance(steps)
        return
    rows = np.flatnonzero(items.scorable)
    order = rows[training_order(items.lengths[rows].tolist(), steps, config.batch_size, config.seed)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers in a way that it will give up
        wrapped = attach_lora(model.module, config)
    try:
        weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=config.learning_rate, weight_decay=config.weight_decay)
        warmup = math.ceil(config.warmup * steps)
        for step, batch in enumerate(order.reshape(steps, -1)):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_share(step, steps, warmup, config.schedule)
            for loss in _losses(model, items, batch, batch_tokens):
                torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            advance(1)
        with replaced_folder(folder) as temporary:
            wrapped.save_pretrained(temporary, save_embedding_layers=False)
            _tidy(temporary)
            write_json(temporary / IDENTITY, whole)
    finally:
        wrapped.unload()


def _known(folder: Path) -> Any:
    try:
        return json.loads((folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # none is there, or not a whole one: it is trained


def _losses(model: Model, items: Items, rows: Any, batch_tokens: int) -> Iterator[Tensor]:
    """The parts of a step's loss, the mean over all response tokens of its rows, each part to be sent back before the next."""
    total = int(items.n_response[rows].sum())
    places = np.arange(len(rows))  # a row may stand twice in a step: plans are of positions
    plan = plan_batches(places, items.lengths[rows], batch_tokens=batch_tokens)
    model.start_pass(plan, (), pooled=False)
    for chunk in plan.chunks:
        for batch in chunk:
            ready = model.collate([items[int(rows[i])] for i in batch.rows], -1)
            counts = torch.as_tensor(items.n_response[rows[batch.rows]])
            means = model.losses(ready, model.forward(ready), None)
            yield (means * counts.to(means.device)).sum() / total


def _tidy(folder: Path) -> None:
    """Leave out what differs between two trainings of the same adapter: the order of a set, paths of this machine."""
    (folder / "README.md").unlink(missing_ok=True)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    config |= {"target_modules": sorted(config["target_modules"]), "base_model_name_or_path": None}
    write_json(path, config)
