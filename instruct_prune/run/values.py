"""Ways to compare (``--by``) that give each row a number for each task: how much its loss falls with what the target teaches."""

from __future__ import annotations

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.shown import Shown
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.measure.adapter import AdapterFolder
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models.text_model import TextModel
from instruct_prune.progress import say
from instruct_prune.run.adapters import of_task
from instruct_prune.run.by import Compared
from instruct_prune.run.measuring import Measuring, Task
from instruct_prune.run.vectors import STATES, pool_vectors
from instruct_prune.score.losses import relative_drop
from instruct_prune.select.target import Cosine

LOSS = Measurement(DENSE, Loss())


def by_drop(measuring: Measuring) -> Compared:
    """(L0 - L1) / L0, L1 with a LoRA adapter of rank 1 trained on the rows of the task (Yang et al., arXiv 2605.09404)."""
    before, values = _dense_losses(measuring), []
    for task in measuring.tasks:
        spec = of_task(measuring, task)
        name = f"{task.name}_{AdapterFolder.open(spec.folder).identity}"
        after = measuring.array(measuring.pool, Measurement(spec, Loss()), name)[:, 0]
        values.append(relative_drop(before, after))
    return Compared(measuring.save_values(np.stack(values)), measuring.save_rows())


def by_shown(measuring: Measuring) -> Compared:
    """L(y|x) - L(y|q, x) with the nearest rows q of the task before the row (Zhang et al., arXiv 2510.14459, who show the same ones
    to all rows); near by hidden states, as `rds`."""
    store, model = measuring.pool, measuring.model
    if type(store) is not TokenStore or not isinstance(model, TextModel):  # a store of more than tokens is none
        raise InputError("--by shown: rows of the target are shown as text alone, and these are more. Use --by rds.")
    before, vectors, values = _dense_losses(measuring), pool_vectors(measuring, STATES), []
    for task in measuring.tasks:
        near = _nearest(measuring, task, vectors, store)
        demonstrations = [task.items[int(i)] for i in np.flatnonzero(task.items.scorable)]
        rows = Shown.of(store, demonstrations, near, model.bos_token_id, model.context)
        _tell_short(rows, task, model.context)
        after = measuring.array(rows, LOSS, f"{task.name}_behind")[:, 0]
        values.append(before - after)
    return Compared(measuring.save_values(np.stack(values)), measuring.save_rows())


def _dense_losses(measuring: Measuring) -> Float32:
    """float32 [m]: of the pool's scorable rows; measured now where the scores are those of other subnets."""
    table = measuring.folder.read_scores()
    if DENSE in table.subnets:
        found: Float32 = table.losses[measuring.pool.scorable, table.subnets.index(DENSE)]
        return found
    say("target: the loss of the whole model was not among the scores: one more pass over the pool")
    return measuring.array(measuring.pool, LOSS, "dense")[:, 0]


def _nearest(measuring: Measuring, task: Task, vectors: str, store: TokenStore) -> Int64:
    """int64 [n, k]: the rows of the task nearest to each row of the pool, the nearest first; -1 for rows that are not scored."""
    k, q = int(measuring.options["shown"]), len(task.row_id)
    if k > q:
        raise InputError(f"--shown {k}: the target {task.name} has {q} rows that can be shown. Ask for no more.")
    states = measuring.array(task.items, STATES, f"tasks/{task.name}")
    cosine = Cosine(states, np.load(measuring.folder / vectors, mmap_mode="r", allow_pickle=False))
    found = np.full((len(store), k), -1, dtype=np.int64)
    rows = np.flatnonzero(store.scorable)
    for block in blocks(len(rows)):
        far = -np.nan_to_num(cosine(np.arange(q), np.arange(block.start, block.stop)).T, nan=-2.0)
        found[rows[block]] = np.argsort(far, axis=1, kind="stable")[:, :k]
    return found


def _tell_short(rows: Shown, task: Task, longest: int) -> None:
    k = rows.before.shape[1]
    short = int((rows.scorable & ((rows.before >= 0).sum(axis=1) < k)).sum())
    if short:
        say(
            f"note: {short:,} of {int(rows.scorable.sum()):,} rows have fewer than {k} rows of {task.name} before them, since the "
            f"model takes {longest:,} tokens"
        )
