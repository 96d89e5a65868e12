"""From parts to ``scores.parquet``: every row exactly once, a status for those without a score, subnet health."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from instruct_prune.config import ScoreConfig
from instruct_prune.encode.item import Status
from instruct_prune.encode.pictures import ImageIndex
from instruct_prune.encode.store import TokenStore
from instruct_prune.measure.engine import Work, merge_parts
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.encode import list_rejected
from instruct_prune.run.folder import RunFolder
from instruct_prune.score.aggregate import rescored
from instruct_prune.score.health import left_out_of, subnet_health
from instruct_prune.score.table import ScoreTable


def merge(
    folder: RunFolder,
    store: TokenStore | ImageIndex,
    work: Work,
    ladder: tuple[SubnetSpec, ...],
    config: ScoreConfig,
    facts: dict[str, Any],
    name: str,
) -> ScoreTable:
    """Parts -> ``scores.parquet`` under the score ``name``, statuses, health, accounting."""
    losses, errors = merge_parts(work, len(store))
    status = store.status_names.astype("<U16")
    for i in errors:
        status[i] = Status.FAILED.value
    alone = SubnetSpec("alone")
    for spec, column in losses.items():
        planned = store.scorable if spec != alone else np.zeros(len(store), dtype=bool)
        known = np.isin(status, (Status.FAILED.value, Status.NONFINITE.value))  # the first reason stands
        broken = planned & ~np.isfinite(column) & ~known
        errors = {**errors, **{int(i): f"loss under {spec.name} is {column[i]}" for i in np.flatnonzero(broken)}}
        status[broken] = Status.NONFINITE.value
    scored = np.isin(status, [s.value for s in Status if s.scored])
    for column in losses.values():
        column[~scored] = np.nan
    health = subnet_health(losses, scored, store.unigram_losses(np.flatnonzero(scored)))
    (hashes,) = store.text_columns("content_hash")
    specs = tuple(losses)
    table = ScoreTable(
        row_id=store.row_id,
        content_hash=np.asarray(hashes, dtype=np.str_),
        status=status,
        n_prompt=(store.lengths - store.n_response).astype(np.int32),
        n_response=store.n_response,
        n_cut=store.n_cut,
        losses=np.stack([losses[s] for s in specs], axis=1),
        subnets=specs,
        score=np.full(len(store), np.nan, dtype=np.float32),
        score_name=name,
        backbone=config.model,
    )
    collapsed = left_out_of(health, ladder)
    table = rescored(table, name, subnets=ladder, leave_out=collapsed)
    list_rejected(folder, store, status, errors)
    folder.write_scores(table)
    folder.finish(
        "score",
        ladder=[dataclasses.astuple(spec) for spec in ladder],
        collapsed=collapsed,
        health={
            "unigram_loss": health.unigram_loss,
            "subnets": [dataclasses.asdict(row) for row in health.subnets],
            "rho": health.rho.tolist(),
        },
        warnings=health.warnings,
        accounting=_score_accounting(folder, int(scored.sum())),
        **facts,
    )
    return table


def _score_accounting(folder: RunFolder, scored: int) -> dict[str, int]:
    read = folder.stage("encode")["accounting"]["read"]
    with open(folder / "rejected.jsonl", "rb") as file:
        rejected = sum(1 for _ in file)
    if read != scored + rejected:
        raise AssertionError(f"rows were lost: {read} read, {scored} scored, {rejected} rejected")
    return {"read": read, "scored": scored, "rejected": rejected}


def ladder_of(stage: Mapping[str, Any]) -> tuple[SubnetSpec, ...]:
    """The subnets a score stage was asked for, repeated as often as they count."""
    return tuple(SubnetSpec(*spec) for spec in stage["ladder"])
