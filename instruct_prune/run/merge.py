"""From parts to ``scores.parquet``: every row exactly once, a status for those without a score, subnet health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32
from instruct_prune.encode.item import Status
from instruct_prune.measure.engine import Work
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import Stored, find, merge_columns
from instruct_prune.measure.subnet import DENSE, SubnetSpec
from instruct_prune.models.model import Items, Model
from instruct_prune.rows.table import RowTable
from instruct_prune.run.columns import columns_for
from instruct_prune.run.embed import save_states
from instruct_prune.run.encode import list_rejected
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measure import Took
from instruct_prune.run.records import RowsFacts, ScoreFacts
from instruct_prune.score.aggregate import rescored
from instruct_prune.score.health import Health, left_out_of, subnet_health
from instruct_prune.score.table import ScoreTable


@dataclass(frozen=True)
class Measured:
    """Finished passes.

    Attributes:
        model: that was measured.
        works: the waves of passes, all parts written.
        derived: losses that follow from stored states of the dense model.
        took: what it took.
    """

    model: Model
    works: tuple[Work, ...]
    derived: tuple[Measurement, ...]
    took: Took

    def columns(self, items: Items) -> tuple[dict[Measurement, Float32], dict[int, str]]:
        """Every measurement of one number a row, float32 [n], and {position: error of a failed row}."""
        found: dict[Measurement, Float32] = {}
        errors: dict[int, str] = {}
        for work in self.works:
            some, failed = merge_columns(work, len(items))
            found |= some
            errors |= failed
        for one in self.derived:
            column = found[one] = np.full(len(items), np.nan, dtype=np.float32)
            for positions, values in find(self.works[0], f"mean_{DENSE.name}").blocks():
                column[positions] = self.model.losses_of(items, positions, values)
        return found, errors

    def vectors(self) -> list[Stored]:
        """The measurements of several numbers a row."""
        return [
            find(work, one.column)
            for work in self.works
            for a_pass in work.passes
            for one in a_pass.measurements
            if one.probe.width(self.model) > 1
        ]


def merge(
    folder: RunFolder,
    items: Items,
    measured: Measured,
    ladder: tuple[SubnetSpec, ...],
    name: str,
    dtype: str,
    ranks: Ranks,
) -> ScoreTable:
    """Parts -> ``scores.parquet`` under the score ``name``, statuses, health, accounting.

    Args:
        folder: the run.
        items: its rows as the model was given them.
        measured: finished passes.
        ladder: the subnets that were asked for, repeated as often as they count.
        name: of the score.
        dtype: of the weights.
        ranks: the processes, for the record.
    """
    columns, errors = measured.columns(items)
    losses = {spec: column for one, column in columns.items() if isinstance(one.probe, Loss) for spec in [one.spec]}
    losses = {spec: losses[spec] for spec in sorted(losses, key=ladder.index)}
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
    more = columns_for(folder, RowTable.open(folder / "rows"), table, name)
    full = tuple(spec for spec in ladder if spec.is_full)
    table = rescored(table, name, subnets=full, leave_out=left_out_of(health, ladder), more=more)
    list_rejected(folder, items, status, errors)
    folder.write_scores(table)
    _finish(folder, measured, table, health, ladder, dtype, ranks)
    return table


def _statuses(items: Items, losses: Mapping[SubnetSpec, Float32], errors: dict[int, str]) -> NDArray[np.str_]:
    """str [n]: what became of each row; rows whose loss is no number are added to ``errors``."""
    status = items.status_names.astype("<U16")
    for i in errors:
        status[i] = Status.FAILED.value
    for spec, column in losses.items():
        planned = items.scorable if spec.is_full else np.zeros(len(items), dtype=bool)
        known = np.isin(
            status, (Status.FAILED.value, Status.NONFINITE.value)
        )  # a row keeps the first reason that was found
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
    dtype: str,
    ranks: Ranks,
) -> None:
    """Count the rows and write the record of the stage."""
    read, scored = folder.facts(RowsFacts).read, int(table.scored.sum())
    rejected = _count_lines(folder / "rejected.jsonl")
    if read != scored + rejected:
        raise AssertionError(f"rows were lost: {read} read, {scored} scored, {rejected} rejected")
    took = measured.took
    folder.finish(
        ScoreFacts(
            model=measured.model.name,
            dtype=dtype,
            score=table.score_name,
            ladder=ladder,
            collapsed=tuple(left_out_of(health, ladder)),
            health=health,
            read=read,
            scored=scored,
            rejected=rejected,
            tokens=took.cost,
            passes=tuple(a_pass.name for work in measured.works for a_pass in work.passes),
            unit=measured.model.unit,
            processes=ranks.world,
            device=ranks.describe(),
            switching_seconds=took.spent.switching_seconds,
            scoring_seconds=took.spent.scoring_seconds,
            seconds=took.seconds,
            left_whole=took.spent.left_whole,
            notes=tuple(measured.model.remarks),
        )
    )


def _count_lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(1 for _ in file)
