"""Target: read and measure the rows that show what the model should become good at; the pool is not scored again."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32
from instruct_prune.config import EncodeConfig, ScoreConfig, TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import parse_probe
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import find
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import Progress, say
from instruct_prune.rows import open_data
from instruct_prune.rows.table import RowTable, write_rows
from instruct_prune.run.embed import encode_texts, save_states, unit_rows
from instruct_prune.run.encode import make_model
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measure import batch_cost, plan_work, run_work
from instruct_prune.run.records import EmbedFacts, EncodeFacts, ScoreFacts, TargetFacts, TaskFacts
from instruct_prune.select.duplicates import text_keys
from instruct_prune.storage import digest, sha256_of, write_array

PROBES = {"gradient": ("gradient",), "rds": ("weighted",)}
"""What is read off the scoring model for each ``--by``; ``embedding`` takes the embedder's vectors."""


def target(folder: RunFolder, config: TargetConfig, restart: bool = False) -> None:
    """Measure the target's rows as the pool was measured, into ``RUN/targets``.

    Raises:
        InputError: no target, a task without rows that can be encoded, or a pool without the vectors that are compared.
    """
    began = time.monotonic()
    tasks = config.tasks()
    encoded, scored = folder.facts(EncodeFacts), folder.require(ScoreFacts)
    inputs = (EncodeFacts, ScoreFacts, *((EmbedFacts,) if config.by == "embedding" else ()))
    identity = {"by": config.by, "tasks": {n: sha256_of(Path(p).expanduser()) for n, p in tasks.items()}}
    # Another target takes the place of the last: only its own few rows are measured.
    if folder.begin(TargetFacts, identity, inputs, replace=restart or _changed(folder, identity)):
        say("target: done before, skipped")
        return
    pool = RowTable.open(folder / "rows")
    options = EncodeConfig(**encoded.options)
    name = ScoreConfig(model=encoded.model, model_revision=encoded.revision)
    model = make_model(name, options, pool.facts.model_kind, pool.facts.format)
    shutil.rmtree(folder / "targets", ignore_errors=True)
    measure = _Measure(folder, model, config.by, dict(scored.config))
    vectors = measure.pool()
    keys = set(text_keys(row.text for row in pool).tolist())
    facts = [_task(folder, model, measure, task, path, pool, keys) for task, path in tasks.items()]
    took = round(time.monotonic() - began, 3)
    folder.finish(TargetFacts(by=config.by, tasks=tuple(facts), vectors=vectors, seconds=took))
    shutil.rmtree(folder / "parts" / "target", ignore_errors=True)


def _changed(folder: RunFolder, identity: dict[str, Any]) -> bool:
    """Whether the folder holds another target."""
    known = folder.record(TargetFacts)
    return known is not None and dict(known.config) != identity


class _Measure:
    """Vectors of items, read in the way that ``--by`` asks for; the model is loaded when it is first needed."""

    def __init__(self, folder: RunFolder, model: Model, by: str, scored: dict[str, Any]) -> None:
        self.folder, self.model, self.by, self.scored = folder, model, by, scored
        self._ranks: Ranks | None = None

    def pool(self) -> str:
        """The file of the pool's vectors, L2-normalised; read now where scoring did not read them."""
        if self.by == "embedding":
            return "embeddings.npy"
        one = Measurement(DENSE, parse_probe(PROBES[self.by][0]))
        states = self.folder / "states" / f"{one.column}.npy"
        if PROBES[self.by][0] not in self.scored["probes"] or not states.exists():
            say(f"target: the pool has no {self.by} vectors yet: one more pass over it")
            self._run(self.model.open_items(self.folder / "items"), one, "pool", self.folder.path)
        if one.probe.half:  # sketches have length one
            return f"states/{one.column}.npy"
        unit_rows(states, self.folder / "targets" / "pool.npy", centred=False)
        return "targets/pool.npy"

    def of(self, items: Items, table: RowTable, folder: Path) -> Float32:
        """float32 [m, d], L2-normalised, of the scorable rows of a task."""
        if self.by == "embedding":
            facts = self.folder.facts(EmbedFacts)
            return encode_texts(facts.embedder, [row.text for row in table.take(items.row_id[items.scorable])])
        one = Measurement(DENSE, parse_probe(PROBES[self.by][0]))
        self._run(items, one, folder.name, folder)
        found = np.load(folder / "states" / f"{one.column}.npy", allow_pickle=False).astype(np.float32)
        unit: Float32 = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
        return unit

    def _run(self, items: Items, one: Measurement, name: str, into: Path) -> None:
        if self._ranks is None:
            self._ranks = Ranks()
            self.model.load(self.scored["dtype"], self._ranks.device)
        parts = PartStore(self.folder / "parts" / "target" / name, digest([self.scored, one.column, name]))
        config = ScoreConfig(model=self.model.name)
        work = plan_work(self.model, items, [one], batch_cost(self.model, config, self._ranks.device.type), parts)
        run_work(self.folder, self.model, work, config, self._ranks)
        save_states(into, items, [find(work, one.column)])


def _task(
    folder: RunFolder, model: Model, measure: _Measure, name: str, path: str, pool: RowTable, keys: set[int]
) -> TaskFacts:
    """Read, encode and measure the rows of one task."""
    own = folder / "targets" / name
    opened = pool.facts.opened_with
    source = open_data([path], format=opened.get("format"), columns=opened.get("columns"))
    if source.model_kind != pool.facts.model_kind:
        raise InputError(f"--target {path}: its rows are of another kind ({source.format}) than the pool's.")
    table = write_rows(own / "rows", source)
    with Progress(f"encoding {name}", len(table), "rows") as progress:
        model.write_items(own / "items", table, lambda n: progress.advance(n, n), False)
    items = model.open_items(own / "items")
    scorable = items.row_id[items.scorable]
    if not len(scorable):
        raise InputError(
            f"--target {path}: none of its {table.facts.read} rows can be encoded, so there is nothing to aim at."
        )
    queries = measure.of(items, table, own)
    write_array(own / "queries.npy", queries)
    write_array(own / "rows.npy", scorable)
    repeated = len(keys & set(text_keys(row.text for row in table.take(scorable)).tolist()))
    if table.facts.format.split("-")[0] != pool.facts.format.split("-")[0]:
        say(
            f"note: the target {name} is in the format {table.facts.format}, the pool in {pool.facts.format}: both are written "
            "by the same template, and selection pays where they look alike"
        )
    if repeated:
        say(f"note: {repeated} rows of the target {name} stand in the pool too (the same words)")
    return TaskFacts(name, path, table.facts.read, len(scorable), repeated)
