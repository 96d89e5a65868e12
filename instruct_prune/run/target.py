"""Target: read the rows that show what the model should become good at, and measure how near the pool's rows are to them.

The tasks' rows are read and encoded once, into ``RUN/targets/tasks``. Each way to compare (``--by``) is a stage of its own,
beside the others, in ``RUN/targets/by``. The pool is not scored again.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instruct_prune.config import TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.models.model import Model
from instruct_prune.progress import Progress, say
from instruct_prune.rows.table import RowTable, write_rows
from instruct_prune.run.by import DEFAULT, find_by, options_of, tasks_of
from instruct_prune.run.contaminated import SIMILAR, repeats_of, similar_rows, told
from instruct_prune.run.embed import is_encoder
from instruct_prune.run.encode import model_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.lock import writes
from instruct_prune.run.measure import remove_parts
from instruct_prune.run.measuring import Measuring, Task
from instruct_prune.run.records import EmbedFacts, EncodeFacts, ScoreFacts
from instruct_prune.run.target_facts import COMPARED, TargetFacts, TaskFacts
from instruct_prune.select.contamination import EMBEDDING, HOW, References
from instruct_prune.storage import arrow_column, sha256_of, write_array, write_parquet


@writes
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
    how, options = find_by(by), options_of(by, config)
    after = {"score": ScoreFacts, "embed": EmbedFacts}[how.after]
    for kind in (ScoreFacts, after):
        folder.require(kind)
    pool = RowTable.open(folder / "rows")
    tasks = tasks_of(config, pool.facts.model_kind)
    model = model_of(folder)
    _read(folder, model, tasks, pool)
    began = time.monotonic()
    found = [_open(folder, model, task) for task in tasks]
    kind = COMPARED[by]
    known = folder.record(kind)
    other = known is not None and dict(known.config) != options
    if folder.begin(kind, options, (TargetFacts, after), replace=other):
        say(f"target by {by}: done before, skipped")
        return
    compared = how.measure(Measuring(folder, by, model, found, options))
    took = round(time.monotonic() - began, 3)
    files = (compared.pool, compared.rows, compared.queries)
    folder.finish(kind(*files, took), *filter(None, files))
    remove_parts(folder, f"target/{by}")


def _read(folder: RunFolder, model: Model, tasks: dict[str, str], pool: RowTable) -> None:
    """The stage of the tasks' rows and items; another target takes the place of the last."""
    began = time.monotonic()
    identity = {"tasks": [[name, sha256_of(Path(path).expanduser())] for name, path in tasks.items()]}  # in turn
    known = folder.record(TargetFacts)
    other = known is not None and dict(known.config) != identity
    if folder.begin(TargetFacts, identity, (EncodeFacts,), replace=other):
        return
    if other and known is not None and known.facts is not None:
        before = ", ".join(task.name for task in known.facts.tasks)
        say(
            f"note: this target takes the place of the last one ({before}), and what was compared with that one is stale. To aim at "
            "several tasks at once, name all of them after --target"
        )
    shutil.rmtree(folder / "targets" / "tasks", ignore_errors=True)
    found = [_task(folder, model, name, path, pool) for name, path in tasks.items()]
    repeats = _repeats(folder, model, pool, found)
    facts = [
        TaskFacts(task.name, path, task.table.facts.read, len(task.row_id), counts)
        for task, path, counts in zip(found, tasks.values(), repeats, strict=True)
    ]
    folder.finish(
        TargetFacts(tasks=tuple(facts), seconds=round(time.monotonic() - began, 3)),
        "targets/tasks/**/*",
        "targets/*.parquet",
    )


def _repeats(folder: RunFolder, model: Model, pool: RowTable, tasks: Sequence[Task]) -> list[dict[str, int]]:
    """Rows of the pool that repeat a row of each task, counted by how that was seen; which they are: ``repeats.parquet``."""
    import pyarrow as pa

    texts = [row.text for task in tasks for row in task.table.take(task.row_id)]
    owner = np.repeat(np.arange(len(tasks)), [len(task.row_id) for task in tasks])
    items = model.open_items(folder / "items")
    row_id = items.row_id[items.scorable]
    found = repeats_of(References(texts), pool, row_id)
    embedded = folder.find(EmbedFacts)
    compared = embedded is not None and embedded.facts is not None and is_encoder(embedded.facts.embedder)
    if compared:
        found = found.with_similar(similar_rows(folder, row_id, texts, SIMILAR))
    rows = np.flatnonzero(found.of >= 0)
    of, how = found.of[rows], found.how[rows]
    columns = {
        "row_id": row_id[rows],
        "task": [tasks[t].name for t in owner[of]],
        "target_row": np.concatenate([task.row_id for task in tasks])[of],
        "how": [HOW[code] for code in how],
    }
    write_parquet(
        folder / "targets" / "repeats.parquet", pa.table({name: arrow_column(c) for name, c in columns.items()})
    )
    known = HOW if compared else HOW[:EMBEDDING]
    counts = [
        {word: int((how[owner[of] == t] == code).sum()) for code, word in enumerate(known)} for t in range(len(tasks))
    ]
    if len(rows):
        say(
            f"note: {len(rows):,} rows of the pool repeat a row of the target ({told(found)}; {folder / 'targets/repeats.parquet'} "
            "lists them). Rows that will judge the model are taken out with select --decontaminate FILE"
        )
    return counts


def _open(folder: RunFolder, model: Model, name: str) -> Task:
    own = folder / "targets" / "tasks" / name
    return Task(name, own, RowTable.open(own / "rows"), model.open_items(own / "items"))


def _task(folder: RunFolder, model: Model, name: str, path: str, pool: RowTable) -> Task:
    """Read and encode the rows of one task."""
    own = folder / "targets" / "tasks" / name
    source = pool.facts.opened_like(path)
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
    if table.facts.format.split("-")[0] != pool.facts.format.split("-")[0]:
        say(
            f"WARNING: the target {name} is in the format {table.facts.format}, the pool in {pool.facts.format}. Rows are near to a "
            "target that looks like them: where the target's format differs from that of the rows that will judge the model, "
            "selection towards it can do harm (docs/targets.md). Give the target in the format of the task that is meant."
        )
    return task
