"""Everything the report says, as numbers: counted from the run's own tables, written as ``report.json``, drawn by the page."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool
from instruct_prune.report.aim import TakenOut, TargetNumbers, read_contaminated, target_numbers
from instruct_prune.report.facts import Counts, Facts, Seconds, by_tokens, counts_of, facts_of, seconds_of, warnings_of
from instruct_prune.report.losses import Family, VisualNumbers, families_of, visual_numbers
from instruct_prune.report.others import Other, OtherNumbers, other_numbers
from instruct_prune.report.pools import Boundary, find_boundary
from instruct_prune.report.rows import Column, visible
from instruct_prune.report.shift import Histogram, Mmd, Shift, column_shift, histogram, mmd_to_full
from instruct_prune.report.tables import FATES, Tables
from instruct_prune.run.folder import RunFolder
from instruct_prune.storage import json_able

TYPICAL = 3
REJECT_FIELDS = ("row_id", "file", "line", "status", "field", "reason")
LISTED = 500
"""Rejected rows and groups of duplicates that are listed; all of them are counted."""


@dataclass(frozen=True)
class Group:
    """A cluster or stratum. ``typical``: row ids nearest to its centre (or of middling score)."""

    name: str
    size: int
    kept: int
    mean_score: float
    typical: list[int]


@dataclass(frozen=True)
class DuplicateGroup:
    """``row`` stands for ``others`` (row ids)."""

    row: int
    others: list[int]


@dataclass(frozen=True)
class Pools:
    """The boundary that was drawn in each stratum: quartiles of it, and how many rows lie below it."""

    between: str
    split: float | None
    low: float
    median: float
    high: float
    below: int


@dataclass(frozen=True)
class Rejected:
    """Rows without a score: how many for each reason, and the first of them."""

    reasons: list[tuple[str, str, int]]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Numbers:
    """The whole report."""

    facts: Facts
    counts: Counts
    seconds: Seconds
    warnings: list[str]
    score: Histogram
    lengths: dict[str, Histogram]
    pools: Pools | None
    families: list[Family]
    group_kind: str
    groups: list[Group]
    shifts: list[Shift]
    mmd: Mmd | None
    split_curve: list[list[float]]
    health: dict[str, Any]
    duplicates: list[DuplicateGroup]
    rejected: Rejected
    others: list[OtherNumbers]
    target: TargetNumbers | None
    contaminated: TakenOut | None
    visual: VisualNumbers | None

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become null."""
        plain: dict[str, Any] = json_able(dataclasses.asdict(self))
        return plain


def compute(folder: RunFolder, tables: Tables, others: Sequence[Other] = ()) -> Numbers:
    """Count everything that the run's own files say.

    Args:
        folder: the run, for its manifest and ``rejected.jsonl``.
        tables: the run's tables.
        others: selections over the same rows to compare with.

    Returns:
        The report without ``shifts`` and the sources of ``target``, which need the data (`shifts_of`, `with_sources`).
    """
    fate = tables.fate
    fates = {name: fate == i for i, name in enumerate(FATES) if (fate == i).any()}
    everything = _series(tables, others)
    mmds: list[Mmd | None] = [None] * (1 + len(others))
    if tables.vectors is not None and tables.selection is not None:
        mmds = mmd_to_full(tables.vectors, tables.vector_at, [tables.kept, *(o.kept for o in others)])
    selection = tables.selection
    curve = selection.params.get("mmd", []) if selection is not None else []
    return Numbers(
        facts=facts_of(folder, tables),
        counts=counts_of(tables),
        seconds=seconds_of(tables),
        warnings=warnings_of(tables),
        score=histogram(tables.score, fates),
        lengths={
            "response tokens": histogram(tables.n_response, everything, log=True),
            "prompt tokens": histogram(tables.n_prompt, everything, log=True),
        },
        pools=_pools(tables, boundary_of(tables)),
        families=families_of(tables),
        group_kind=tables.label_kind,
        groups=groups_of(tables),
        shifts=[],
        mmd=mmds[0],
        split_curve=[[float(split), float(value)] for split, value in curve],
        health=dataclasses.asdict(tables.run.score.health),
        duplicates=_duplicates(tables),
        rejected=_rejected(folder),
        target=target_numbers(folder, tables.aim, tables.row_id),
        contaminated=read_contaminated(folder, 0 if tables.run.select is None else tables.run.select.contaminated),
        visual=visual_numbers(tables),
        others=[other_numbers(tables, o, mmd) for o, mmd in zip(others, mmds[1:], strict=True)],
    )


def shifts_of(tables: Tables, columns: Sequence[Column], others: Sequence[Other] = ()) -> list[Shift]:
    """The columns of the data, kept beside all rows."""
    return [column_shift(column, _series(tables, others)) for column in columns]


def _series(tables: Tables, others: Sequence[Other]) -> dict[str, Bool]:
    """The sets of rows whose distributions are put beside each other."""
    kept = {} if tables.selection is None else {"kept": tables.kept}
    return {"all": np.ones(len(tables), dtype=bool), **kept, **{other.name: other.kept for other in others}}


def boundary_of(tables: Tables) -> Boundary | None:
    """Where the pools meet, or kept and dropped."""
    return find_boundary(tables.selection, tables.n_response.astype(np.int64) if by_tokens(tables) else None)


def _pools(tables: Tables, boundary: Boundary | None) -> Pools | None:
    if boundary is None or not np.isfinite(boundary.score).any():
        return None
    low, median, high = (float(q) for q in np.nanquantile(boundary.score, (0.25, 0.5, 0.75)))
    split = tables.selection.params.get("split") if tables.selection is not None else None
    return Pools(boundary.between, split, low, median, high, int(boundary.in_easy.sum()))


def groups_of(tables: Tables) -> list[Group]:
    k = len(tables.label_names)
    size = np.bincount(tables.labels, minlength=k)
    kept = np.bincount(tables.labels[tables.kept], minlength=k)
    total = np.bincount(tables.labels, weights=tables.score, minlength=k)
    with np.errstate(invalid="ignore"):
        mean = total / size
    off = tables.distance if tables.distance is not None else np.abs(tables.score - mean[tables.labels])
    order = np.lexsort((off, tables.labels))
    starts = np.concatenate([[0], np.cumsum(size)])
    typical = [tables.row_id[order[a:b][:TYPICAL]].tolist() for a, b in itertools.pairwise(starts.tolist())]
    return [Group(tables.label_names[i], int(size[i]), int(kept[i]), float(mean[i]), typical[i]) for i in range(k)]


def _duplicates(tables: Tables) -> list[DuplicateGroup]:
    """The largest groups first."""
    leader = tables.representative
    members = np.flatnonzero(leader >= 0)
    order = members[np.argsort(leader[members], kind="stable")]
    heads, starts = np.unique(leader[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(heads) else []
    groups = [
        DuplicateGroup(int(tables.row_id[head]), tables.row_id[rows].tolist())
        for head, rows in zip(heads.tolist(), parts, strict=True)
    ]
    return sorted(groups, key=lambda group: (-len(group.others), group.row))[:LISTED]


def _rejected(folder: RunFolder) -> Rejected:
    path = folder / "rejected.jsonl"
    counts: dict[tuple[str, str], int] = {}
    listed: list[dict[str, Any]] = []
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in file:
                row = {k: visible(v[:300]) if isinstance(v, str) else v for k, v in json.loads(line).items()}
                key = (str(row.get("status", "")), str(row.get("reason", "")))
                counts[key] = counts.get(key, 0) + 1
                if len(listed) < LISTED:
                    listed.append({name: row.get(name) for name in REJECT_FIELDS})
    reasons = sorted(((*key, count) for key, count in counts.items()), key=lambda entry: (-entry[2], entry[:2]))
    return Rejected(reasons[:50], listed)
