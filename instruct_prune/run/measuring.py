"""What a way to compare (``--by``) has at hand: the pool, the tasks of the target, and the model that scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import Stored, find
from instruct_prune.models.model import Items, Model
from instruct_prune.rows.table import RowTable
from instruct_prune.run.encode import check_unchanged
from instruct_prune.run.folder import RunFolder, left_of
from instruct_prune.run.measure import plan_work, run_work
from instruct_prune.run.records import ScoreFacts
from instruct_prune.run.target_facts import TargetFacts
from instruct_prune.storage import digest, write_array


@dataclass(frozen=True)
class Task:
    """The rows of one task of a target.

    Attributes:
        name: of the task.
        folder: ``RUN/targets/tasks/NAME``.
        table: its rows.
        items: its rows as the model is given them.
    """

    name: str
    folder: Path
    table: RowTable
    items: Items

    @property
    def row_id(self) -> Int64:
        """int64 [q]: the rows that steer the selection, by their place in the task's file."""
        return self.items.row_id[self.items.scorable]


class Measuring:
    """A pool and a target, ready to be measured by one way to compare.

    Args:
        folder: the run, with `ScoreFacts` and `TargetFacts`.
        by: name of the way to compare; its files go to ``RUN/targets/by/NAME``.
        model: without weights.
        tasks: of the target.
        options: those that decide the result (`By.options`), by name.
    """

    def __init__(
        self, folder: RunFolder, by: str, model: Model, tasks: Sequence[Task], options: Mapping[str, Any]
    ) -> None:
        self.folder, self.by, self._model, self.tasks, self.options = folder, by, model, tuple(tasks), options
        self.scored: dict[str, Any] = dict(folder.require(ScoreFacts).config)

    @cached_property
    def pool(self) -> Items:
        return left_of(self._model.open_items(self.folder / "items"), self.folder.read_aside())

    @cached_property
    def ranks(self) -> Ranks:
        """The main process alone: it is the only one that comes here."""
        return Ranks(alone=True)

    @cached_property
    def model(self) -> Model:
        """With its weights, which are read when they are first needed."""
        check_unchanged(self._model, self.scored)
        self._model.load(self.scored["dtype"], self.ranks.device)
        return self._model

    @property
    def batch(self) -> int:
        """What a batch costs at most: as much as one did when the pool was scored."""
        return int(self.scored["batch"])

    def path(self, name: str) -> str:
        """Where a file of this way to compare goes, inside the run folder."""
        return f"targets/by/{self.by}/{name}"

    def run(
        self, items: Items, measurements: Sequence[Measurement], name: str, for_any_target: bool = False
    ) -> list[Stored]:
        """Measure items in passes of their own; parts that an interrupted command left are gone on with.

        Args:
            items: of the pool, or of a task.
            measurements: what to read.
            name: of the folder of parts, different for each call.
            for_any_target: the results do not depend on the target, so that parts of another one serve too.
        """
        columns = [one.column for one in measurements]
        target = None if for_any_target else self.folder.require(TargetFacts).fingerprint
        key = digest([self.folder.require(ScoreFacts).fingerprint, target, self.by, self.options, columns, name])
        parts = PartStore(self.folder / "parts" / "target" / self.by / name, key)
        work = plan_work(self.model, items, measurements, self.batch, parts)
        run_work(self.folder, self.model, work, ScoreConfig(), self.ranks)
        return [find(work, column) for column in columns]

    def array(self, items: Items, one: Measurement, name: str) -> Float32:
        """float32 [q, d]: one measurement of the scorable items, in their order; `run` says what the name is."""
        return self.run(items, [one], name)[0].array(np.flatnonzero(items.scorable))

    def save_rows(self) -> str:
        """Write the row ids of the pool's rows that can be scored; their file."""
        write_array(self.folder / self.path("rows.npy"), self.pool.row_id[self.pool.scorable])
        return self.path("rows.npy")

    def save_queries(self, found: Sequence[Float32]) -> str:
        """Write the vectors of the tasks' rows, [q, d] for each task in order; their file.

        Raises:
            InputError: one of them is no vector of numbers.
        """
        for task, vectors in zip(self.tasks, found, strict=True):
            broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
            if len(broken):
                raise InputError(
                    f"--target: row {task.row_id[broken[0]]} of {task.name} (and {len(broken) - 1} more) could not be "
                    f"measured by {self.by}, most likely for want of memory. Take it out, or cut long rows with --max-length."
                )
        write_array(self.folder / self.path("queries.npy"), np.concatenate(found).astype(np.float32))
        return self.path("queries.npy")

    def save_values(self, values: Float32) -> str:
        """Write values of the pool's rows that can be scored, float32 [tasks, m], NaN for rows without one; their file."""
        expected = (len(self.tasks), int(self.pool.scorable.sum()))
        if values.shape != expected:
            raise ValueError(f"values are {values.shape}, expected {expected}")
        write_array(self.folder / self.path("values.npy"), values.astype(np.float32))
        return self.path("values.npy")
