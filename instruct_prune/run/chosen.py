"""What selection reads and says beside the rows themselves: the target, stability over mask seeds, tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int64, positions_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts, TargetFacts, TokenCounts
from instruct_prune.score.health import by_seed, rank_spread
from instruct_prune.score.scores import LADDER, find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Pool, Selection
from instruct_prune.select.target import Target
from instruct_prune.select.targeted import attribute


def load_target(folder: RunFolder, table: ScoreTable) -> Target | None:
    """The target of a run beside its scored rows, or None where there is none.

    Raises:
        InputError: it is stale.
    """
    record = folder.record(TargetFacts)
    if record is None:
        return None
    facts = folder.facts(TargetFacts)
    tasks = [folder / "targets" / task.name for task in facts.tasks]
    queries = [np.load(path / "queries.npy", allow_pickle=False) for path in tasks]
    rows: list[Int64] = [np.load(path / "rows.npy", allow_pickle=False) for path in tasks]
    there = "embeddings_rows.npy" if facts.vectors == "embeddings.npy" else "states/rows.npy"
    row_id = np.load(folder / there, allow_pickle=False)
    return Target(
        tasks=tuple(task.name for task in facts.tasks),
        task=np.repeat(np.arange(len(tasks), dtype=np.int32), [len(each) for each in rows]),
        row_id=np.concatenate(rows),
        queries=np.concatenate(queries),
        vectors=np.load(folder / facts.vectors, mmap_mode="r", allow_pickle=False),
        at=positions_of(table.row_id[table.scored], row_id, str(folder / facts.vectors)),
    )


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


def taken_by(pool: Pool, selection: Selection) -> dict[str, Any]:
    """Columns of ``selection.parquet``: which task and query took a row, at which turn, with which similarity."""
    import pyarrow as pa

    assert pool.target is not None
    picked = selection.selected & (np.asarray(selection.reasons)[selection.reason] == "picked")
    found = attribute(pool, picked)
    nobody = found.query < 0
    return {
        "target_task": pa.DictionaryArray.from_arrays(pa.array(found.task, mask=nobody), list(pool.target.tasks)),
        "target_row": pa.array(found.query, mask=nobody),
        "target_turn": pa.array(found.turn, mask=nobody),
        "similarity": found.similarity,
    }


def token_counts(table: ScoreTable, selection: Selection) -> TokenCounts:
    response = table.n_response[table.scored].astype(np.int64)
    both = response + table.n_prompt[table.scored]
    kept = selection.selected
    return TokenCounts(int(response.sum()), int(response[kept].sum()), int(both.sum()), int(both[kept].sum()))
