"""What selection reads and says beside the rows themselves: the target, stability over mask seeds, tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.run.by import DEFAULT, find_by
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts, TokenCounts
from instruct_prune.run.target_facts import COMPARED, TargetFacts
from instruct_prune.score.health import by_seed, rank_spread
from instruct_prune.score.scores import LADDER, find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Selection
from instruct_prune.select.target import Cosine, Target, Values
from instruct_prune.select.turns import Taken


def chosen_by(folder: RunFolder, by: str | None) -> str:
    """How a selection compares rows with the target: as asked for, else the default where it was measured, else what was.

    Raises:
        InputError: there is no such way, it was not measured for the target or is stale, or one of several must be named.
    """
    if by is not None:
        find_by(by)
    record = folder.record(TargetFacts)
    if record is None or record.facts is None:
        raise InputError(
            f"{folder.path} has no target. Give rows that show what the model should become good at: "
            f"instruct-prune target {folder.path} --target FILE" + (f" --by {by}" if by else "")
        )
    done = [name for name, kind in COMPARED.items() if folder.find(kind) is not None]
    if by is None and len(done) > 1 and DEFAULT not in done:
        raise InputError(f"the target was compared in several ways: {', '.join(done)}. Say which: --by {done[0]}")
    wanted = by or (DEFAULT if DEFAULT in done or not done else done[0])
    if wanted not in done:
        known = folder.record(COMPARED[wanted])
        state = "was not measured" if known is None else "is not finished" if known.facts is None else "is stale"
        files = " ".join(f"{task.name}={task.file}" for task in record.facts.tasks)
        there = f" There is: {', '.join(done)}." if done else ""
        raise InputError(
            f"--by {wanted} {state} for the target of {folder.path}.{there} Measure it: "
            f"instruct-prune target {folder.path} --target {files} --by {wanted}"
        )
    return wanted


def load_target(folder: RunFolder, table: ScoreTable, by: str) -> Target:
    """The target of a run beside its scored rows, compared in one way.

    Raises:
        InputError: it is stale.
    """
    facts, compared = folder.facts(TargetFacts), folder.facts(COMPARED[by])
    names = tuple(task.name for task in facts.tasks)
    row_id: Int64 = np.load(folder / compared.rows, allow_pickle=False)
    at = positions_of(table.row_id[table.scored], row_id, str(folder / compared.rows))
    measured = np.load(folder / compared.pool, mmap_mode="r", allow_pickle=False)
    if not compared.queries:
        whole = np.arange(len(names), dtype=np.int32)
        return Target(names, whole, np.full(len(names), -1, dtype=np.int64), Values(measured), at)
    rows: list[Int64] = [
        np.load(folder / "targets" / "tasks" / name / "rows.npy", allow_pickle=False) for name in names
    ]
    task = np.repeat(np.arange(len(names), dtype=np.int32), [len(each) for each in rows])
    queries = np.load(folder / compared.queries, allow_pickle=False)
    return Target(names, task, np.concatenate(rows), Cosine(queries, measured), at)


def seed_stability(
    scored: ScoreFacts, table: ScoreTable, draw: Callable[..., Selection], rescore: Callable[..., ScoreTable]
) -> dict[str, Float32 | Bool] | None:
    """With several mask seeds: how far each row's rank moves, and whether its selection would flip."""
    if LADDER not in find_score(table.score_name).needs_of():
        return None
    ladders = by_seed(scored.ladder)
    if len(ladders) < 2:
        return None
    tables = [rescore(subnets=each) for each in ladders]
    chosen = np.stack([draw(one).selected for one in tables])
    spread = rank_spread(np.stack([one.score[table.scored] for one in tables]))
    unstable: Bool = np.logical_and(chosen.any(axis=0), np.logical_not(chosen.all(axis=0)))
    return {"rank_spread": spread, "unstable": unstable}


def taken_by(target: Target, taken: Taken) -> dict[str, Any]:
    """Columns of ``selection.parquet``: which task and query took a row, at which turn, with which similarity."""
    import pyarrow as pa

    nobody = taken.turn < 0
    return {
        "target_task": pa.DictionaryArray.from_arrays(pa.array(taken.task, mask=nobody), list(target.tasks)),
        "target_row": pa.array(taken.query, mask=taken.query < 0),
        "target_turn": pa.array(taken.turn, mask=nobody),
        "similarity": pa.array(taken.similarity, mask=np.isnan(taken.similarity)),
    }


def token_counts(table: ScoreTable, selection: Selection) -> TokenCounts:
    response = table.n_response[table.scored].astype(np.int64)
    both = response + table.n_prompt[table.scored]
    kept = selection.selected
    return TokenCounts(int(response.sum()), int(response[kept].sum()), int(both.sum()), int(both[kept].sum()))
