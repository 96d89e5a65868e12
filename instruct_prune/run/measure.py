"""Measure: plan the passes, run them on as many processes as were launched, make sure that nothing is missing."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.config import ScoreConfig
from instruct_prune.encode.batching import Plan, plan_batches
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.engine import Spent, Work, measure_parts, share
from instruct_prune.measure.heartbeat import Heartbeat, wait_for_ranks
from instruct_prune.measure.lora import read_added
from instruct_prune.measure.measurement import Measurement, plan_passes
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.subnet import FULL
from instruct_prune.measure.subnets import block_outputs
from instruct_prune.measure.views import Viewed, view_of
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import Progress, say
from instruct_prune.run.folder import RunFolder

GRADIENT_SHARE = 4
"""Batches of a pass with gradients are so many times smaller."""


@dataclass(frozen=True)
class Took:
    """What a wave of passes took: `Spent` of the main process, seconds of the clock, tokens or pictures computed."""

    spent: Spent
    seconds: float
    cost: int

    def __add__(self, other: Took) -> Took:
        spent = Spent(
            self.spent.switching_seconds + other.spent.switching_seconds,
            self.spent.scoring_seconds + other.spent.scoring_seconds,
            self.spent.left_whole | other.spent.left_whole,
        )
        return Took(spent, round(self.seconds + other.seconds, 3), self.cost + other.cost)

    @classmethod
    def nothing(cls) -> Took:
        return cls(Spent(0.0, 0.0, {}), 0.0, 0)


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
) -> Work:
    """Passes over all scorable rows; the plan depends on data and configuration, never on the number of processes.

    Args:
        model: loaded.
        items: its rows.
        measurements: what is read.
        batch: tokens (or pictures) in a batch.
        parts: where results go.
        some: int64, positions of the rows to measure, ascending; all that can be scored when not given.

    Raises:
        InputError: a view that leaves nothing of any row; a depth, a dropout subnet or an adapter that does not fit the model.
    """
    passes = plan_passes(measurements)
    scorable = np.flatnonzero(items.scorable).astype(np.int64)
    rows = scorable if some is None else some
    shown: list[Any] = []
    plans: list[Plan] = []
    full: Plan | None = None
    for a_pass in passes:
        if a_pass.needs_grad:
            # Activations of the whole batch are kept for the way back, and a shared prefix would hide its own gradients.
            shown.append(items)
            lengths = items.lengths[rows]
            small = max(1, batch // GRADIENT_SHARE)
            plans.append(plan_batches(rows, lengths, batch_tokens=small, alone=model.alone(lengths)))
            continue
        if a_pass.view == FULL:
            if full is None:
                # Prefixes are those of all rows, so that a row's own computation is the same whichever are measured.
                group, prefixes = model.shared_prefixes(items, scorable)
                group = None if group is None else group[np.searchsorted(scorable, rows)]
                lengths = items.lengths[rows]
                full = plan_batches(
                    rows, lengths, batch_tokens=batch, group=group, prefixes=prefixes, alone=model.alone(lengths)
                )
            shown.append(items)
            plans.append(full)
            continue
        view = Viewed(items, view_of(a_pass.view), model)
        own = view.rows(rows)
        if not len(own):
            raise InputError(f"--subnets: the view {a_pass.view!r} leaves nothing to predict of any row.")
        shown.append(view)
        lengths = view.lengths[own]
        plans.append(plan_batches(own, lengths, batch_tokens=batch, alone=model.alone(lengths)))
    for a_pass, plan in zip(passes, plans, strict=True):
        model.start_pass(plan, a_pass.depths, a_pass.pooled)
        if a_pass.weights.kind == "dropout":
            block_outputs(model.module)
        if a_pass.weights.kind == "adapter":
            read_added(model.module, a_pass.weights.folder)
    return Work(passes, tuple(shown), tuple(plans), parts)


def run_work(folder: RunFolder, model: Model, work: Work, config: ScoreConfig, ranks: Ranks) -> Took:
    """Write this rank's parts; the main one then waits for the others and makes sure that nothing is missing.

    Raises:
        IncompleteRunError: parts are missing; the same command, with any number of processes, completes them.
    """
    # One broadcast before the loop, none inside it: every rank must see the same list of missing parts.
    todo, nonce = ranks.broadcast((work.missing(), uuid.uuid4().hex[:8]) if ranks.is_main else None)
    if ranks.is_main and 0 < len(todo) < work.n_parts:
        say(f"resuming: {work.describe(todo)} to do")
    mine = share(todo, ranks.rank, ranks.world)
    beats = folder / "parts" / "alive" / nonce
    began = time.monotonic()
    try:
        with Heartbeat(beats, ranks.rank), Progress("scoring", work.cost(mine), model.unit, ranks.is_main) as progress:
            spent = measure_parts(
                model,
                work,
                mine,
                include_head=config.include_head,
                advance=lambda rows, cost: progress.advance(cost, rows),
            )
    except IncompleteRunError as stop:
        raise IncompleteRunError(_incomplete(folder, work, str(stop))) from stop
    if ranks.is_main:
        wait_for_ranks(beats, range(1, ranks.world))
        if work.missing():
            raise IncompleteRunError(_incomplete(folder, work, "a process ended before its parts were written"))
    return Took(spent, round(time.monotonic() - began, 3), work.cost(todo))


def describe(work: Work, model: Model, names: Sequence[str]) -> str:
    """The plan in one line for people: the first pass's rows, and the names of all passes."""
    plan = work.plans[0]
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
