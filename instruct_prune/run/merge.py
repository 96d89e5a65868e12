"""From parts to ``scores.parquet``: every row exactly once, a status for those without a score, subnet health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32
from instruct_prune.encode.item import Status
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models.model import Items
from instruct_prune.rows.table import RowTable
from instruct_prune.run.embed import save_states
from instruct_prune.run.encode import list_rejected
from instruct_prune.run.folder import ASIDE, RunFolder
from instruct_prune.run.measure import shared_tokens
from instruct_prune.run.records import RowsFacts, ScoreFacts, SetAside
from instruct_prune.run.reuse import write_measured
from instruct_prune.run.row_facts import columns_for
from instruct_prune.run.waves import Measured, Wanted
from instruct_prune.score.health import Health, left_out_of, subnet_health
from instruct_prune.score.pilot import Decision
from instruct_prune.score.scores import rescored
from instruct_prune.score.table import ScoreTable
from instruct_prune.storage import arrow_column, write_parquet


def merge(
    folder: RunFolder,
    items: Items,
    measured: Measured,
    wanted: Wanted,
    dtype: str,
    ranks: Ranks,
    aside: SetAside | None,
) -> ScoreTable:
    """Parts -> ``scores.parquet`` under the score that is wanted, statuses, health, accounting.

    Args:
        folder: the run.
        items: its rows as the model was given them.
        measured: finished passes.
        wanted: the subnets that were asked for, and the score.
        dtype: of the weights.
        ranks: the processes, for the record.
        aside: how many rows were set aside before.
    """
    ladder, name = wanted.ladder, wanted.score
    columns, errors = measured.columns(items)
    losses = {spec: column for one, column in columns.items() if isinstance(one.probe, Loss) for spec in [one.spec]}
    whole = {spec: losses[spec] for spec in sorted(losses, key=ladder.index)}
    piloted = measured.piloted
    if piloted is not None:
        ladder = tuple(spec for spec in ladder if spec in piloted.kept)
    losses = {spec: column for spec, column in whole.items() if spec in ladder}
    status = _statuses(items, losses, errors)
    scored = np.isin(status, [s.value for s in Status if s.scored])
    for column in columns.values():
        column[~scored] = np.nan
    health = subnet_health(losses, scored, items.guess_losses(np.flatnonzero(scored)))
    table = ScoreTable(
        row_id=items.row_id,
        content_hash=np.asarray(items.text_columns("content_hash")[0], dtype=np.str_),
        status=status,
        n_prompt=(items.lengths - items.n_response).astype(np.int32),
        n_response=items.n_response,
        n_cut=items.n_cut,
        losses=np.stack([losses[s] for s in losses], axis=1),
        subnets=tuple(losses),
        score=np.full(len(items), np.nan, dtype=np.float32),
        score_name=name,
        backbone=measured.model.name,
        more={one.column: column for one, column in columns.items() if not isinstance(one.probe, Loss)},
    )
    save_states(folder.path, items, measured.vectors())
    write_measured(folder.path, items, shared_tokens(measured.model, items))
    more = columns_for(folder, RowTable.open(folder / "rows"), table, name)
    averaged = tuple(spec for spec in ladder if spec.is_averaged)
    collapsed = tuple(left_out_of(health, ladder)) if piloted is None else piloted.collapsed
    table = rescored(table, name, subnets=averaged, leave_out=collapsed, more=more)
    if piloted is not None:
        table = _predicted(folder, table, piloted, whole)
    list_rejected(folder, items, status, errors)
    folder.write_scores(table)
    _finish(folder, measured, table, health, ladder, collapsed, dtype, ranks, aside)
    return table


def _predicted(
    folder: RunFolder, table: ScoreTable, piloted: Decision, losses: Mapping[SubnetSpec, Float32]
) -> ScoreTable:
    """The table with the whole ladder's score: measured on the pilot, which is written down, and predicted elsewhere."""
    import pyarrow as pa

    at = piloted.rows
    averaged = [column[at] for spec, column in losses.items() if spec.name not in piloted.collapsed]
    measured = np.mean(averaged, axis=0, dtype=np.float64).astype(np.float32)
    score = piloted.predict(losses, table.n_response) if piloted.saved else table.score
    columns = {"row_id": table.row_id[at], **{f"loss_{spec.name}": losses[spec][at] for spec in losses}}
    columns |= {"score": measured, "predicted": score[at]}
    write_parquet(folder / "pilot.parquet", pa.table({name: arrow_column(c) for name, c in columns.items()}))
    score = score.copy()
    score[at] = np.where(np.isfinite(measured), measured, score[at])
    score[~table.scored] = np.nan
    return replace(table, score=score)


def _statuses(items: Items, losses: Mapping[SubnetSpec, Float32], errors: dict[int, str]) -> NDArray[np.str_]:
    """str [n]: what became of each row; rows whose loss is no number are added to ``errors``."""
    status = items.status_names.astype("<U16")
    for i in errors:
        status[i] = Status.FAILED.value
    for spec, column in losses.items():
        planned = items.scorable if spec.is_full else np.zeros(len(items), dtype=bool)
        # A row keeps the first reason that was found.
        known = np.isin(status, (Status.FAILED.value, Status.NONFINITE.value))
        broken = planned & ~np.isfinite(column) & ~known
        errors |= {int(i): f"loss under {spec.name} is {column[i]}" for i in np.flatnonzero(broken)}
        status[broken] = Status.NONFINITE.value
    return status


def _finish(
    folder: RunFolder,
    measured: Measured,
    table: ScoreTable,
    health: Health,
    ladder: tuple[SubnetSpec, ...],
    collapsed: tuple[str, ...],
    dtype: str,
    ranks: Ranks,
    aside: SetAside | None,
) -> None:
    """Count the rows and write the record of the stage."""
    read, scored = folder.facts(RowsFacts).read, int(table.scored.sum())
    rejected = _count_lines(folder / "rejected.jsonl")
    set_aside = 0 if aside is None else aside.rows
    if read != scored + rejected + set_aside:
        raise AssertionError(
            f"rows were lost: {read} read, {scored} scored, {rejected} rejected, {set_aside} set aside"
        )
    spent = measured.spent
    folder.finish(
        ScoreFacts(
            model=measured.model.name,
            dtype=dtype,
            score=table.score_name,
            ladder=ladder,
            collapsed=collapsed,
            health=health,
            read=read,
            scored=scored,
            rejected=rejected,
            tokens=spent.cost,
            passes=tuple(one.name for work in measured.works for one in work.passes),
            unit=measured.model.unit,
            processes=ranks.world,
            device=ranks.describe(),
            switching_seconds=spent.switching_seconds,
            scoring_seconds=spent.scoring_seconds,
            seconds=spent.seconds,
            left_whole=spent.left_whole,
            notes=tuple(measured.model.remarks),
            earned=None if measured.piloted is None else measured.piloted.earned(scored),
            aside=aside,
        ),
        "scores.parquet",
        "measured.parquet",
        "pilot.parquet",
        "states/*.npy",
        *([] if aside is None else [ASIDE]),
    )


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)
