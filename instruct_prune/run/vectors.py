"""Ways to compare (``--by``) that give each row a vector: gradients, pooled states, the embedder's vectors."""

from __future__ import annotations

import numpy as np

from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.probes import Gradient, State
from instruct_prune.measure.subnet import DENSE
from instruct_prune.progress import say
from instruct_prune.run.adapters import warmed_up
from instruct_prune.run.by import Compared
from instruct_prune.run.embed import encode_texts
from instruct_prune.run.measuring import Measuring
from instruct_prune.run.records import EmbedFacts, ScoreFacts

STATES = Measurement(DENSE, State("weighted"))


def by_gradients(measuring: Measuring) -> Compared:
    """Sketches of gradients (LESS, Xia et al., arXiv 2402.04333), with ``--warmup-steps`` after a short training on the pool."""
    steps = int(measuring.options["warmup_steps"])
    return _by_probe(measuring, Measurement(warmed_up(measuring, steps) if steps else DENSE, Gradient()))


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
