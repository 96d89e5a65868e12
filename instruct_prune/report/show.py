"""A run in the terminal: what was kept, cluster by cluster, and some rows of either side. Dataset text is shown, never obeyed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.report.aim import Query, TargetNumbers, as_line, target_numbers, with_sources
from instruct_prune.report.facts import counts_of, facts_of, warnings_of
from instruct_prune.report.numbers import groups_of
from instruct_prune.report.page import TOOK
from instruct_prune.report.rows import Text, read_rows
from instruct_prune.report.summary import accounting_line
from instruct_prune.report.tables import Tables, read_tables
from instruct_prune.rows.row import Reject, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.terminal import one_line, safe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

EXAMPLES = 4
"""Kept and dropped rows that are shown, from the easiest to the hardest."""
GROUPS = 20


def show(folder: RunFolder, rows: Iterable[Row | Reject], console: Console | None = None) -> None:
    """Print a summary, the clusters, and kept and dropped rows.

    Args:
        folder: a scored run.
        rows: its data.
        console: where to; standard output when None.

    Raises:
        InputError: nothing was scored, or the data changed.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    tables = read_tables(folder)
    _summary(console, folder, tables)
    if tables.label_kind:
        console.print(_groups(tables))
    sides = {"scored": np.arange(len(tables))}
    if tables.selection is not None:
        sides = {"kept": np.flatnonzero(tables.kept), "dropped": np.flatnonzero(~tables.kept)}
    picks = {name: _spread(tables, at) for name, at in sides.items()}
    target = target_numbers(folder, tables.aim, tables.row_id)
    took = [] if target is None else [query for query in target.queries if query.took]
    queries = [took[at] for at in _evenly(len(took))]
    taken = np.searchsorted(tables.row_id, [row for query in queries for row in query.took[:TOOK]]).astype(np.int64)
    found = read_rows(rows, tables.row_id, np.concatenate([*picks.values(), taken]), 2000)
    texts = found.texts
    target = with_sources(target, tables.aim, found.columns)
    if target is not None:
        console.print(_tasks(target))
        console.print(_queries(queries, tables, texts))
    for name, chosen in picks.items():
        table = _table(f"{name}, from the easiest to the hardest", ["row", "score", "why"], ["text"])
        for at in chosen.tolist():
            text = one_line(as_line(texts[at]), 300)
            _add(table, str(tables.row_id[at]), f"{tables.score[at]:.3f}", _reason(tables, at), text)
        console.print(table)


def _summary(console: Console, folder: RunFolder, tables: Tables) -> None:
    facts, counts = facts_of(folder, tables), counts_of(tables)
    lines = [
        f"run:      {folder.path}",
        f"data:     {facts.data}",
        f"model:    {facts.model}; score {facts.score} over {', '.join(facts.subnets)}",
        *([f"auto:     {facts.earned}"] if facts.earned else []),
        accounting_line(folder),
    ]
    if tables.selection is not None:
        lines += [
            *(
                [f"tokens:   {counts.response_tokens_kept:,} of {counts.response_tokens:,} response tokens kept"]
                if tables.run.score.unit == "tokens"
                else []
            ),
            "selected: "
            + ", ".join(
                [
                    facts.method,
                    facts.budget,
                    *(f"{key} {value}" for key, value in facts.params.items() if key != "method"),
                ]
            )
            + f"; seed {facts.seed}",
        ]
    lines += [f"WARNING:  {line}" for line in warnings_of(tables)]
    for line in lines:
        console.print(safe(line), markup=False, soft_wrap=True)


def _groups(tables: Tables) -> Table:
    """The largest clusters (or strata)."""
    groups = sorted(groups_of(tables), key=lambda group: -group.size)
    title = f"{len(groups)} {'clusters' if tables.label_kind == 'cluster' else 'strata'}"
    if len(groups) > GROUPS:
        title += f", the {GROUPS} largest"
    table = _table(title, ["rows", "kept", "share", "mean score"], ["name"])
    for group in groups[:GROUPS]:
        share = f"{group.kept / group.size:.0%}" if group.size else "-"
        _add(table, f"{group.size:,}", f"{group.kept:,}", share, f"{group.mean_score:.3f}", one_line(group.name, 60))
    return table


def _tasks(target: TargetNumbers) -> Table:
    """What each task of the target took, and from where."""
    of = f" ({target.column}; in brackets its share of all rows)" if target.column else ""
    table = _table(
        f"target, compared by {target.by}", ["queries", "rows taken", "tokens", "similarity"], ["task", f"from{of}"]
    )
    for task in target.tasks:
        sources = ", ".join(f"{v} {share:.1%} ({whole:.1%})" for v, rows, share, whole in task.sources[:5] if rows)
        numbers = [f"{task.queries:,}", f"{task.rows:,}", f"{task.tokens:,}", f"{task.similarity:.3f}"]
        _add(table, *numbers, one_line(task.name, 60), one_line(sources, 300))
    return table


def _queries(queries: list[Query], tables: Tables, texts: Mapping[int, Text]) -> Table:
    """Some queries, each above the rows that it took."""
    table = _table("queries and the rows that they took first", ["row", "similarity"], ["text"])
    for query in queries:
        _add(table, f"{one_line(query.task, 30)} {query.row}", "", one_line(query.text, 300))
        for row, similarity in zip(query.took[:TOOK], query.similarity, strict=False):
            at = int(np.searchsorted(tables.row_id, row))
            _add(table, f"took {row}", f"{similarity:.3f}", "  " + one_line(as_line(texts[at]), 300))
    return table


def _evenly(n: int) -> Int64:
    """int64 [min(EXAMPLES, n)]: some of n places, evenly from the first to the last."""
    return np.unique(np.linspace(0, max(n - 1, 0), min(EXAMPLES, n)).round().astype(np.int64))


def _table(title: str, numbers: list[str], words: list[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False)
    for name in numbers:
        table.add_column(name, justify="right" if name != "why" else "left", no_wrap=True)
    for name in words:
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, *cells: str) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))  # a plain str would be read as rich's markup


def _spread(tables: Tables, at: Int64) -> Int64:
    """int64 [<= EXAMPLES]: some of these rows, evenly from the easiest to the hardest."""
    order = at[np.argsort(tables.score[at], kind="stable")]
    return order[_evenly(len(order))]


def _reason(tables: Tables, at: int) -> str:
    chosen, aim = tables.selection, tables.aim
    reason = "" if chosen is None else chosen.reasons[chosen.reason[at]]
    if aim is None or aim.task[at] < 0:
        return reason
    query = "" if aim.query[at] < 0 else f" {aim.query[at]}"
    return f"{reason} by {one_line(aim.tasks[aim.task[at]].name, 30)}{query}"
