"""Ways to compare (``--by``): by a vector for each row, or by a number for each row and task.

Vectors are gradients, pooled states and the embedder's; numbers say how much the loss falls with what the target teaches.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.shown import Shown
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.measure.adapter import AdapterFolder, adapter_name
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.probes import Gradient, Loss, State
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.models.model import Items
from instruct_prune.models.text_model import TextModel
from instruct_prune.progress import Progress, say
from instruct_prune.run.by import Compared
from instruct_prune.run.embed import encode_texts
from instruct_prune.run.measure import GRADIENT_SHARE
from instruct_prune.run.measuring import Measuring, Task
from instruct_prune.run.records import EmbedFacts, ScoreFacts
from instruct_prune.score.losses import relative_drop
from instruct_prune.select.target import Cosine
from instruct_prune.storage import digest
from instruct_prune.train.adapter import train_adapter
from instruct_prune.train.config import TrainConfig

STATES = Measurement(DENSE, State("weighted"))
LOSS = Measurement(DENSE, Loss())
OF_TARGET = TrainConfig(rank=1, alpha=1, dropout=0.0, learning_rate=5e-3, warmup=0.1, batch_size=8, max_steps=16)
"""The least adapter there is, and few steps: it is to learn what the rows of a target have in common, not these rows (Yang et
al., arXiv 2605.09404, take rank 1 and the first checkpoint)."""
WARM_UP = TrainConfig(rank=8, alpha=16, dropout=0.0, learning_rate=2e-4, warmup=0.1, schedule="constant", batch_size=8)
"""On the pool, as LESS begins (Xia et al., arXiv 2402.04333), with fewer rows."""


def _trained(measuring: Measuring, items: Items, config: TrainConfig, path: str) -> SubnetSpec:
    """The model with an adapter trained on these rows, in a folder inside the run."""
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


def by_gradients(measuring: Measuring) -> Compared:
    """Sketches of gradients (LESS, Xia et al., arXiv 2402.04333), with ``--warmup-steps`` after a short training on the pool."""
    steps, spec = int(measuring.options["warmup_steps"]), DENSE
    if steps:
        warm_up = replace(WARM_UP, max_steps=steps)
        spec = _trained(measuring, measuring.pool, warm_up, f"targets/pool/warmup_{steps}")
    return _by_probe(measuring, Measurement(spec, Gradient()))


def by_states(measuring: Measuring) -> Compared:
    """Hidden states, later tokens counting more (RDS+, Ivison et al., arXiv 2503.01807)."""
    return _by_probe(measuring, STATES)


def by_embedder(measuring: Measuring) -> Compared:
    """The vectors that clusters and near-duplicates are found by.

    Raises:
        InputError: they come from no embedding model.
    """
    embedder = measuring.folder.facts(EmbedFacts).embedder
    found = [encode_texts(embedder, [row.text for row in task.table.take(task.row_id)]) for task in measuring.tasks]
    return Compared("embeddings.npy", "embeddings_rows.npy", measuring.save_queries(found))


def _by_probe(measuring: Measuring, one: Measurement) -> Compared:
    pool = pool_vectors(measuring, one)
    found = [measuring.array(task.items, one, f"tasks/{task.name}") for task in measuring.tasks]
    return Compared(pool, measuring.save_rows(), measuring.save_queries(found))


def pool_vectors(measuring: Measuring, one: Measurement) -> str:
    """The file of the pool's vectors: read in the run that scored, or before, or now."""
    folder = measuring.folder
    if (
        one.spec == DENSE
        and one.probe.name in measuring.scored["probes"]
        and (folder / "states" / f"{one.column}.npy").exists()
    ):
        return f"states/{one.column}.npy"
    # They are those of the scores that are there now: a target that is added later finds them by this name.
    path = f"targets/pool/{one.column}_{folder.require(ScoreFacts).fingerprint}.npy"
    if not (folder / path).exists():
        say(f"target: the pool was not measured by {measuring.by} yet: one more pass over it")
        for old in (folder / "targets" / "pool").glob(f"{one.column}_*.npy"):
            old.unlink()
        rows = np.flatnonzero(measuring.pool.scorable).astype(np.int64)
        measuring.run(measuring.pool, [one], "pool", for_any_target=True)[0].save(folder / path, rows)
    return path


def by_drop(measuring: Measuring) -> Compared:
    """(L0 - L1) / L0, L1 with a LoRA adapter of rank 1 trained on the rows of the task (Yang et al., arXiv 2605.09404)."""
    before, values = _dense_losses(measuring), []
    for task in measuring.tasks:
        spec = _trained(measuring, task.items, OF_TARGET, measuring.path(f"{task.name}/adapter"))
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
