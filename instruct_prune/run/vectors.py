"""Ways to compare (``--by``) that give each row a vector: gradients, pooled states, the embedder's vectors."""

from __future__ import annotations

import numpy as np

from instruct_prune.arrays import Float32
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.probes import parse_probe
from instruct_prune.measure.stored import Stored
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models.model import Items
from instruct_prune.progress import say
from instruct_prune.run.by import BY, Compared
from instruct_prune.run.embed import encode_texts
from instruct_prune.run.measuring import Measuring
from instruct_prune.run.records import EmbedFacts, ScoreFacts


def by_gradients(measuring: Measuring) -> Compared:
    """Sketches of gradients (LESS, Xia et al., arXiv 2402.04333, here without its warm-up)."""
    return _by_probe(measuring, *BY["gradient"].probes)


def by_states(measuring: Measuring) -> Compared:
    """Hidden states, later tokens counting more (RDS+, Ivison et al., arXiv 2503.01807)."""
    return _by_probe(measuring, *BY["rds"].probes)


def by_embedder(measuring: Measuring) -> Compared:
    """The vectors that clusters and near-duplicates are found by.

    Raises:
        InputError: they come from no embedding model.
    """
    embedder = measuring.folder.facts(EmbedFacts).embedder
    found = [encode_texts(embedder, [row.text for row in task.table.take(task.row_id)]) for task in measuring.tasks]
    return Compared("embeddings.npy", "embeddings_rows.npy", measuring.save_queries(found))


def _by_probe(measuring: Measuring, text: str) -> Compared:
    one = Measurement(DENSE, parse_probe(text))
    pool = _pool(measuring, one, text)
    found = [_array(measuring.run(task.items, [one], f"tasks/{task.name}")[0], task.items) for task in measuring.tasks]
    return Compared(pool, measuring.save_rows(), measuring.save_queries(found))


def _pool(measuring: Measuring, one: Measurement, text: str) -> str:
    """The file of the pool's vectors: read in the run that scored, or before, or now."""
    folder = measuring.folder
    if text in measuring.scored["probes"] and (folder / "states" / f"{one.column}.npy").exists():
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


def _array(stored: Stored, items: Items) -> Float32:
    """float32 [q, d]: what was measured of the scorable items, in their order."""
    rows = np.flatnonzero(items.scorable)
    found = np.zeros((len(rows), 0), dtype=np.float32)
    for positions, values in stored.blocks():
        found = found if found.shape[1] else np.full((len(rows), values.shape[1]), np.nan, dtype=np.float32)
        found[np.searchsorted(rows, positions)] = values
    return found
