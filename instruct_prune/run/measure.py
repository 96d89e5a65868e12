"""Measure: plan the passes, run them on as many processes as were launched, make sure that nothing is missing."""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from instruct_prune.arrays import Int32, Int64
from instruct_prune.config import ScoreConfig
from instruct_prune.encode.batching import Plan, plan_batches
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.engine import Known, Planned, Spent, Work, measure_parts, run_batch, share
from instruct_prune.measure.heartbeat import Heartbeat, beat_of_rank, wait_for_ranks
from instruct_prune.measure.lora import read_added
from instruct_prune.measure.measurement import Measurement, Pass, plan_passes
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import write_known
from instruct_prune.measure.subnet import DENSE, FULL
from instruct_prune.measure.subnets import block_outputs
from instruct_prune.measure.views import Viewed, view_of
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import Progress, say
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.reuse import Before
from instruct_prune.storage import digest, make_folder, row_ids_hash

GRADIENT_SHARE = 4
"""Batches of a pass with gradients are so many times smaller."""
TRIED = 4
"""Rows of what was measured before that are measured again, to see that the same comes out."""
UNLIKE = 0.05
"""A difference, beside one plus the number, that no rounding of 16-bit weights explains."""


def batch_cost(model: Model, config: ScoreConfig, device_type: str) -> int:
    """Tokens (or pictures) in a batch, as given or as fits the device."""
    return config.batch_tokens or model.batch.get(device_type, model.batch["other"])


def plan_work(
    model: Model,
    items: Items,
    measurements: Sequence[Measurement],
    batch: int,
    parts: PartStore,
    some: Int64 | None = None,
    before: Before | None = None,
) -> Work:
    """Passes over all scorable rows; the plan depends on data and configuration, never on the number of processes.

    Args:
        model: loaded.
        items: its rows.
        measurements: what is read.
        batch: tokens (or pictures) in a batch.
        parts: where results go.
        some: int64, positions of the rows to measure, ascending; all that can be scored when not given.
        before: what an earlier run measured: such rows need not be measured again.

    Raises:
        InputError: a view that leaves nothing of any row; a depth, a dropout subnet or an adapter that does not fit the model.
    """
    planner = _Planner(model, items, batch, some)
    passes = tuple(planner.plan(a_pass, before) for a_pass in plan_passes(measurements))
    for one in passes:
        one.start(model)
        if one.a_pass.weights.kind == "dropout":
            block_outputs(model.backbone)
        if one.a_pass.weights.kind == "adapter":
            read_added(model.module, one.a_pass.weights.folder)
    if any(one.known for one in passes):
        # Which rows are known decides what lies in which part.
        told = [None if one.known is None else row_ids_hash(one.known.positions) for one in passes]
        parts = PartStore(parts.folder, digest([parts.fingerprint, told]))
    return Work(passes, parts)


def shared_tokens(model: Model, items: Items) -> Int32:
    """int32 [number of scorable rows]: tokens at the beginning of each that it shares with others and that are computed once."""
    rows = np.flatnonzero(items.scorable).astype(np.int64)
    group, prefixes = model.shared_prefixes(items, rows)
    lengths = np.asarray([len(prefix) for prefix in prefixes] + [0], dtype=np.int32)
    return np.zeros(len(rows), dtype=np.int32) if group is None else lengths[group]


class _Planner:
    """Plans of passes over the same rows."""

    def __init__(self, model: Model, items: Items, batch: int, some: Int64 | None) -> None:
        self.model, self.items, self.batch = model, items, batch
        scorable = np.flatnonzero(items.scorable).astype(np.int64)
        self.rows = scorable if some is None else some
        # Prefixes are those of all rows, so that a row's own computation is the same whichever rows are measured.
        group, self.prefixes = model.shared_prefixes(items, scorable)
        self.group = np.full(len(items), -1, dtype=np.int32)
        if group is not None:
            self.group[scorable] = group

    def plan(self, a_pass: Pass, before: Before | None) -> Planned:
        seen: Any = self.items
        rows, whole = self.rows, a_pass.view == FULL and not a_pass.needs_grad
        if a_pass.view != FULL:
            seen = Viewed(self.items, view_of(a_pass.view), self.model)
            rows = seen.rows(rows)
            if not len(rows):
                raise InputError(f"--subnets: the view {a_pass.view!r} leaves nothing to predict of any row.")
        # Activations of the whole batch are kept for the way back, and a shared prefix would hide its own gradients.
        batch = max(1, self.batch // GRADIENT_SHARE) if a_pass.needs_grad else self.batch

        def planned(some: Int64) -> Plan:
            lengths = seen.lengths[some]
            return plan_batches(
                some,
                lengths,
                batch_tokens=batch,
                group=self.group[some] if whole else None,
                prefixes=self.prefixes if whole else (),
                alone=self.model.alone(lengths),
            )

        known = None
        # The bits of a gradient depend on the batch, a loss that is relative to other rows' states on these, and what an
        # adapter holds is not in its column's name.
        relative = self.model.compares and any(isinstance(m.probe, Loss) for m in a_pass.measurements)
        other = a_pass.needs_grad or relative or a_pass.weights.kind == "adapter"
        if before is not None and not other:
            rows, known = self._known(a_pass, before, rows, seen.lengths)
        plan = planned(rows)
        if known is not None:
            some = known.positions[np.argsort(seen.lengths[known.positions], kind="stable")]
            again = planned(np.sort(some[np.linspace(0, len(some) - 1, TRIED).round().astype(np.int64)]))
            known = replace(known, again=tuple(batch for chunk in again.chunks for batch in chunk))
            plan = replace(plan, chunks=plan.chunks + known.chunks)
        return Planned(a_pass, seen, plan, known)

    def _known(self, a_pass: Pass, before: Before, rows: Int64, lengths: Int32) -> tuple[Int64, Known | None]:
        names = self.items.text_columns("content_hash")[0]
        shared = np.asarray([len(prefix) for prefix in self.prefixes] + [0], dtype=np.int32)[self.group[rows]]
        there, known = before.known(a_pass.measurements, rows, [names[i] for i in rows.tolist()], shared)
        return rows[~there], known


def check_known(model: Model, work: Work) -> float:
    """Measure a few rows of the dense passes again: by how much the earlier run's numbers differ from what comes out here.

    Raises:
        InputError: by more than rounding.
    """
    worst = 0.0
    for planned in work.passes:
        known = planned.known
        if known is None or planned.a_pass.weights != DENSE:
            continue
        planned.start(model)
        for batch in known.again:
            found = run_batch(model, planned.a_pass, planned.items, batch).cpu().numpy()
            at = 0
            for one in planned.a_pass.measurements:
                width = one.probe.width(model)
                for row, values in zip(batch.rows.tolist(), found[:, at : at + width], strict=True):
                    place = int(np.searchsorted(known.positions, row))
                    old = known.values(one.column, slice(place, place + 1)).reshape(-1)
                    worst = max(worst, float(np.max(np.abs(values - old) / (1 + np.abs(old)))))
                at += width
    if worst > UNLIKE:
        raise InputError(
            f"some rows that were measured before were measured again, and the numbers differ by {worst:.2g}: more than rounding "
            "explains, so they are not reused. Score without --update and --reuse."
        )
    return worst


def run_work(folder: RunFolder, model: Model, work: Work, config: ScoreConfig, ranks: Ranks) -> Spent:
    """Write this rank's parts; the main one then waits for the others and makes sure that nothing is missing.

    Raises:
        IncompleteRunError: parts are missing; the same command, with any number of processes, completes them.
    """
    # One broadcast before the loop, none inside it: every rank must see the same list of missing parts.
    known = [one for one in work.passes if one.known is not None]
    if ranks.is_main and known:
        _reuse(model, work)
    todo, nonce = ranks.broadcast((work.missing(), uuid.uuid4().hex[:8]) if ranks.is_main else None)
    if ranks.is_main and 0 < len(todo) < work.n_parts - sum(len(one.known.chunks) for one in known if one.known):
        say(f"resuming: {work.describe(todo)} to do")
    mine = share(todo, ranks.rank, ranks.world)
    beats = folder / "parts" / "alive" / nonce
    make_folder(beats)
    heart = Heartbeat(beat_of_rank(beats, ranks.rank))
    began = time.monotonic()
    try:
        with heart, Progress("scoring", work.cost(mine), model.unit, ranks.is_main) as progress:
            spent = measure_parts(
                model,
                work,
                mine,
                include_head=config.include_head,
                advance=lambda rows, cost: progress.advance(cost, rows),
            )
    except FileNotFoundError as error:
        if work.parts.folder.exists():
            raise
        raise IncompleteRunError(
            f"{work.parts.folder} is gone: another command has completed this run, or begun it anew, while this process stood still."
        ) from error
    except IncompleteRunError as stop:
        raise IncompleteRunError(_incomplete(folder, work, str(stop)), stop.signal) from stop
    if ranks.is_main:
        wait_for_ranks(beats, range(1, ranks.world))
        if work.missing():
            raise IncompleteRunError(_incomplete(folder, work, "a process ended before its parts were written"))
    return replace(spent, seconds=round(time.monotonic() - began, 3), cost=work.cost(todo))


def remove_parts(folder: RunFolder, of: str) -> None:
    """Remove the parts of work that is done ("embed", "target/rds"), and the signs of life; what other work has half done stays."""
    parts = folder / "parts"
    for used in (parts / of, parts / "alive"):
        shutil.rmtree(used, ignore_errors=True)
    with suppress(OSError):
        (parts / of).parent.rmdir()
        parts.rmdir()


def _reuse(model: Model, work: Work) -> None:
    """Take over what an earlier run measured, and say so."""
    worst = check_known(model, work)
    write_known(work)
    told = [f"{len(one.known.positions):,} ({one.name})" for one in work.passes if one.known is not None]
    say(f"rows that were measured before and are not measured again: {', '.join(told)}")
    if worst:
        say(
            f"note: what was measured before differs by up to {worst:.1g} from what is computed here and now: another number of "
            "threads, machine or version, or a model whose rows touch each other's rounding. --restart score measures all rows."
        )


def describe(work: Work, model: Model, names: Sequence[str]) -> str:
    """The plan in one line for people: the first pass's rows, and the names of all passes."""
    plan = work.passes[0].plan
    shared = f", {len(plan.prefixes)} shared prefixes" if plan.prefixes else ""
    return (
        f"{plan.n_rows:,} rows, {plan.n_tokens:,} {model.unit} a pass ({plan.padding_share:.1%} padding{shared}), "
        f"{len(names)} passes ({', '.join(names)}), {len(plan.chunks)} chunks each"
    )


def _incomplete(folder: RunFolder, work: Work, why: str) -> str:
    left = work.missing()
    return (
        f"scoring is not complete: {why}. Missing: {work.describe(left)}. What is done is kept in {folder / 'parts'}; "
        "run the same command again, with any number of processes, to complete it."
    )
