"""Target: read the rows that show what the model should become good at, and measure how near the pool's rows are to them.

The tasks' rows are read and encoded once, into ``RUN/targets/tasks``. Each way to compare (``--by``) is a stage of its own,
beside the others, in ``RUN/targets/by``. The pool is not scored again.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from instruct_prune.config import EncodeConfig, ScoreConfig, TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.models.model import Model
from instruct_prune.progress import Progress, say
from instruct_prune.rows import open_data
from instruct_prune.rows.table import RowTable, write_rows
from instruct_prune.run.by import DEFAULT, find_by
from instruct_prune.run.encode import make_model
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measuring import Measuring, Task
from instruct_prune.run.records import EmbedFacts, EncodeFacts, ScoreFacts
from instruct_prune.run.target_facts import COMPARED, TargetFacts, TaskFacts
from instruct_prune.run.tasks import tasks_of
from instruct_prune.select.duplicates import text_keys
from instruct_prune.storage import sha256_of, write_array


def target(folder: RunFolder, config: TargetConfig, by: str | None = None) -> None:
    """Read the tasks of a target, and compare the pool with them in one way, beside those that were measured before.

    Args:
        folder: a scored run.
        config: files of the tasks.
        by: how to compare; `by.DEFAULT` when None.

    Raises:
        InputError: no target, a task without rows that can be encoded, no such way to compare, or a pool that it cannot be
            done with.
    """
    by = by or DEFAULT
    how = find_by(by)
    began = time.monotonic()
    tasks = tasks_of(config)
    after = {"score": ScoreFacts, "embed": EmbedFacts}[how.after]
    for kind in (ScoreFacts, after):
        folder.require(kind)
    encoded, pool = folder.facts(EncodeFacts), RowTable.open(folder / "rows")
    name = ScoreConfig(model=encoded.model, model_revision=encoded.revision)
    model = make_model(name, EncodeConfig(**encoded.options), pool.facts.model_kind, pool.facts.format)
    _read(folder, model, tasks, pool)
    found = [_open(folder, model, task) for task in tasks]
    options = how.identity(config)
    kind = COMPARED[by]
    known = folder.record(kind)
    other = known is not None and dict(known.config) != options
    if folder.begin(kind, options, (TargetFacts, after), replace=other):
        say(f"target by {by}: done before, skipped")
        return
    compared = how.measure(Measuring(folder, by, model, found, options))
    took = round(time.monotonic() - began, 3)
    folder.finish(kind(compared.pool, compared.rows, compared.queries, took))
    shutil.rmtree(folder / "parts" / "target" / by, ignore_errors=True)


def _read(folder: RunFolder, model: Model, tasks: dict[str, str], pool: RowTable) -> None:
    """The stage of the tasks' rows and items; another target takes the place of the last."""
    began = time.monotonic()
    identity = {"tasks": [[name, sha256_of(Path(path).expanduser())] for name, path in tasks.items()]}  # in turn
    known = folder.record(TargetFacts)
    if folder.begin(
        TargetFacts, identity, (EncodeFacts,), replace=known is not None and dict(known.config) != identity
    ):
        return
    shutil.rmtree(folder / "targets" / "tasks", ignore_errors=True)
    keys = set(text_keys(row.text for row in pool).tolist())
    facts = [_task(folder, model, task, path, pool, keys) for task, path in tasks.items()]
    folder.finish(TargetFacts(tasks=tuple(facts), seconds=round(time.monotonic() - began, 3)))


def _open(folder: RunFolder, model: Model, name: str) -> Task:
    own = folder / "targets" / "tasks" / name
    return Task(name, own, RowTable.open(own / "rows"), model.open_items(own / "items"))


def _task(folder: RunFolder, model: Model, name: str, path: str, pool: RowTable, keys: set[int]) -> TaskFacts:
    """Read and encode the rows of one task."""
    own = folder / "targets" / "tasks" / name
    opened = pool.facts.opened_with
    source = open_data([path], format=opened.get("format"), columns=opened.get("columns"))
    if source.model_kind != pool.facts.model_kind:
        raise InputError(f"--target {path}: its rows are of another kind ({source.format}) than the pool's.")
    table = write_rows(own / "rows", source)
    with Progress(f"encoding {name}", len(table), "rows") as progress:
        model.write_items(own / "items", table, lambda n: progress.advance(n, n), False)
    task = _open(folder, model, name)
    if not len(task.row_id):
        raise InputError(
            f"--target {path}: none of its {table.facts.read} rows can be encoded, so there is nothing to aim at."
        )
    write_array(own / "rows.npy", task.row_id)
    repeated = len(keys & set(text_keys(row.text for row in table.take(task.row_id)).tolist()))
    if table.facts.format.split("-")[0] != pool.facts.format.split("-")[0]:
        say(
            f"note: the target {name} is in the format {table.facts.format}, the pool in {pool.facts.format}: both are written "
            "by the same template, and selection pays where they look alike"
        )
    if repeated:
        say(f"note: {repeated} rows of the target {name} stand in the pool too (the same words)")
    return TaskFacts(name, path, table.facts.read, len(task.row_id), repeated)
