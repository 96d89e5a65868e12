"""Selection towards a target, as the report and ``show`` tell it: which query took which row, and what was taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np

from instruct_prune.arrays import Float32, Int32, Int64
from instruct_prune.report.rows import Column, Text, shown
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.target_facts import TargetFacts

SOURCES = ("file", "source", "dataset", "category")
"""Columns that say where a row is from, the first that there is."""
QUERIES = 500
"""Queries whose text is in the page."""
QUERY_BYTES = 600
LISTED = 200
"""Rows that repeat a test that are listed; all of them are counted."""


@dataclass(frozen=True)
class Aim:
    """Who took each of the n scored rows.

    Attributes:
        by: how rows were compared.
        tasks: what the target is made of.
        task: int32 [n], an index into ``tasks``, -1 for rows that nobody took.
        query: int64 [n], row of the task's file, -1 where a task took the row as a whole, or nobody.
        turn: int32 [n], how many rows were taken before, -1 likewise.
        similarity: float32 [n], with the query that took the row, else with the nearest one; NaN where it is not known.
    """

    by: str
    tasks: tuple[TaskNumbers, ...]
    task: Int32
    query: Int64
    turn: Int32
    similarity: Float32

    def took(self, task: int, query: int | None = None) -> Int64:
        """int64 [k]: positions of the rows that a task, or one of its queries, took, in order of turns."""
        mine = self.task == task
        rows = np.flatnonzero(mine if query is None else mine & (self.query == query))
        return rows[np.argsort(self.turn[rows])]


@dataclass(frozen=True)
class TaskNumbers:
    """One task of the target: its rows, and what they took.

    Attributes:
        name: of the task.
        file: its file's name, without the folder.
        read, queries: rows of the file, and those that steer the selection.
        repeats: {how: rows of the pool that repeat one of them}.
        rows, tokens: that were taken, and their response tokens.
        similarity: median similarity of these rows.
        sources: (value, rows taken, share of them, share of all rows) of the column that says where rows are from.
    """

    name: str
    file: str
    read: int
    queries: int
    repeats: dict[str, int]
    rows: int
    tokens: int
    similarity: float
    sources: list[tuple[str, int, float, float]]


@dataclass(frozen=True)
class Query:
    """A row of a task, and the rows (row ids) that it took, in order of turns."""

    task: str
    row: int
    text: str
    took: list[int]
    similarity: list[float]


@dataclass(frozen=True)
class TargetNumbers:
    """The section "Targets" of the report.

    Attributes:
        by: how rows were compared.
        column: where ``sources`` of the tasks come from, "" where no column says it.
        tasks: of the target.
        queries: the first of them.
    """

    by: str
    column: str
    tasks: list[TaskNumbers]
    queries: list[Query]


@dataclass(frozen=True)
class TakenOut:
    """Rows that were taken out because they repeat a row of a test: how many, and the first of them (row, file, line, how)."""

    count: int
    rows: list[tuple[int, str, int, str]]


def read_aim(folder: RunFolder, by: str | None, n_response: Int32) -> Aim | None:
    """What the selection says of the target; None where it has none.

    Args:
        folder: the run, whose selection is fresh.
        by: how it compared rows.
        n_response: int32 [n], response tokens of the scored rows.
    """
    if by is None:
        return None
    table = folder.read_fates("target_task", "target_row", "target_turn", "similarity", "rank")
    table = table.filter(table.column("rank").to_numpy() >= 0)  # without rows that were set aside before scoring
    names = table.column("target_task").combine_chunks()
    task = names.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    query, turn = (
        table.column(name).fill_null(-1).to_numpy().astype(kind)
        for name, kind in (("target_row", np.int64), ("target_turn", np.int32))
    )
    similarity = table.column("similarity").to_numpy().astype(np.float32)
    tasks = []
    for i, facts in enumerate(folder.facts(TargetFacts).tasks):
        rows = np.flatnonzero(task == i)
        tasks.append(
            TaskNumbers(
                facts.name, PurePath(facts.file).name, facts.read, facts.queries, dict(facts.repeats),
                len(rows), int(n_response[rows].sum()), float(np.median(similarity[rows])) if len(rows) else np.nan, [],
            )
        )  # fmt: skip
    return Aim(by, tuple(tasks), task, query, turn, similarity)


def target_numbers(folder: RunFolder, aim: Aim | None, row_id: Int64) -> TargetNumbers | None:
    """The queries and what they took, without the sources (`with_sources`)."""
    if aim is None:
        return None
    queries: list[Query] = []
    for i, task in enumerate(aim.tasks):
        for row, text in _texts(folder, task.name, QUERIES - len(queries)):
            took = aim.took(i, row)
            queries.append(Query(task.name, row, text, row_id[took].tolist(), aim.similarity[took].tolist()))
    return TargetNumbers(aim.by, "", list(aim.tasks), queries)


def _texts(folder: RunFolder, task: str, most: int) -> list[tuple[int, str]]:
    """(row, text) of the first queries of a task."""
    own = folder / "targets" / "tasks" / task
    row_id = np.load(own / "rows.npy", allow_pickle=False)[: max(most, 0)]
    return [(row.row_id, as_line(shown(row, QUERY_BYTES))) for row in RowTable.open(own / "rows").take(row_id)]


def as_line(text: Text) -> str:
    """The turns of a row one after the other."""
    return " → ".join(turn.text.strip() for turn in text.turns if turn.role != "system")


def with_sources(numbers: TargetNumbers | None, aim: Aim | None, columns: Sequence[Column]) -> TargetNumbers | None:
    """Where the rows that each task took are from, beside all rows."""
    if numbers is None or aim is None:
        return numbers
    known = {column.name: column for column in columns if column.codes is not None}
    name = next((name for name in SOURCES if name in known), None)
    if name is None:
        return numbers
    column = known[name]
    codes = column.codes
    assert codes is not None
    k = len(column.values)
    all_rows = np.bincount(codes[codes >= 0], minlength=k)
    tasks = []
    for i, task in enumerate(numbers.tasks):
        mine = codes[aim.task == i]
        taken = np.bincount(mine[mine >= 0], minlength=k)
        order = np.argsort(-taken, kind="stable")
        sources = [
            (column.values[v], int(taken[v]), float(taken[v] / max(len(mine), 1)), float(all_rows[v] / len(codes)))
            for v in order.tolist()
        ]
        tasks.append(replace(task, sources=sources))
    return replace(numbers, column=name, tasks=tasks)


def read_contaminated(folder: RunFolder, count: int) -> TakenOut | None:
    """The rows that the selection took out; None where there are none."""
    if not count:
        return None
    table = folder.read_fates("row_id", "repeats_file", "repeats_line", "repeats_how")
    found = table.filter(table.column("repeats_line").is_valid()).slice(0, LISTED).to_pylist()
    rows = [(row["row_id"], row["repeats_file"], row["repeats_line"], row["repeats_how"]) for row in found]
    return TakenOut(count, rows)
