"""Everything the report says, as numbers: counted from the run's own tables, written as ``report.json``, drawn by the page."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from instruct_prune.datatypes import Bool, Int64, SubnetSpec
from instruct_prune.report.others import Other, OtherNumbers, other_numbers
from instruct_prune.report.pools import Boundary, find_boundary
from instruct_prune.report.rows import Column
from instruct_prune.report.shift import Histogram, Mmd, Shift, column_shift, histogram, mmd_to_full
from instruct_prune.report.tables import FATES, Tables
from instruct_prune.run_folder import RunFolder

TYPICAL = 3
LISTED = 500
"""Rejected rows and groups of duplicates that are listed; all of them are counted."""
TRAINING_COST = 3.0
"""Forward passes that a training step costs: the backward pass is about two (Kaplan et al., arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Facts:
    """What was run, in words."""

    name: str
    data: str
    files: list[str]
    model: str
    device: str
    score: str
    subnets: list[str]
    embedder: str
    method: str
    budget: str
    params: dict[str, Any]
    seed: int | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Counts:
    """Rows and tokens. rows read = scored + rejected, scored = kept + dropped."""

    read: int
    rejected: int
    scored: int
    kept: int
    dropped: int
    truncated: int
    duplicates: int
    response_tokens: int
    response_tokens_kept: int
    tokens: int
    tokens_kept: int


@dataclass(frozen=True)
class Seconds:
    """Time spent, and time that training on the kept rows alone saves each epoch.

    Attributes:
        stages: {stage: seconds}.
        selecting: their sum.
        saved_per_epoch: dropped tokens x seconds of a forward pass over one token in this run x TRAINING_COST: training
            the same model on the same machine. None where scoring was not timed.
    """

    stages: dict[str, float]
    selecting: float
    saved_per_epoch: float | None


@dataclass(frozen=True)
class Family:
    """Loss against density (or rate, or depth) in one family of subnets; quantiles over thirds of the rows by score.

    Attributes:
        kind: "magnitude", ...
        values: density, rate or depth of each point, from the whole model down.
        columns: each point's column of losses.
        bands: {"easy" | "middle" | "hard": {"low" | "median" | "high": a number each point}}: quartiles.
    """

    kind: str
    values: list[float]
    columns: list[int]
    bands: dict[str, dict[str, list[float]]]


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

    def to_json(self) -> dict[str, Any]:
        """Plain values; numbers that are not finite become null."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(self))
        return plain


def compute(folder: RunFolder, tables: Tables, others: Sequence[Other] = ()) -> Numbers:
    """Count everything that the run's own files say.

    Args:
        folder: the run, for its manifest and ``rejected.jsonl``.
        tables: the run's tables.
        others: selections over the same rows to compare with.

    Returns:
        The report without ``shifts``, which need the data (`shifts_of`).
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
        facts=_facts(folder, tables),
        counts=_counts(tables),
        seconds=_seconds(tables),
        warnings=_warnings(tables),
        score=histogram(tables.score, fates),
        lengths={
            "response tokens": histogram(tables.n_response, everything, log=True),
            "prompt tokens": histogram(tables.n_prompt, everything, log=True),
        },
        pools=_pools(tables, boundary_of(tables)),
        families=_families(tables),
        group_kind=tables.label_kind,
        groups=_groups(tables),
        shifts=[],
        mmd=mmds[0],
        split_curve=[[float(split), float(value)] for split, value in curve],
        health=_health(tables),
        duplicates=_duplicates(tables),
        rejected=_rejected(folder),
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
    return find_boundary(tables.selection, tables.n_response.astype(np.int64) if _by_tokens(tables) else None)


def _by_tokens(tables: Tables) -> bool:
    config = tables.stages.get("select", {}).get("config", {})
    return config.get("keep") is None and config.get("keep_tokens") is not None


def _facts(folder: RunFolder, tables: Tables) -> Facts:
    manifest, stages, chosen = folder.manifest, tables.stages, tables.selection
    encode, score = stages.get("encode", {}), stages.get("score", {})
    files = [str(entry.get("path") or entry.get("id") or "?") for entry in encode.get("inputs", [])]
    return Facts(
        name=tables.name,
        data=str(encode.get("description", "")),
        files=files,
        model=str(score.get("config", {}).get("model", {}).get("name", "")),
        device=str(score.get("device", "")),
        score=tables.score_name,
        subnets=[spec.name for spec in tables.subnets],
        embedder=str(stages.get("embed", {}).get("config", {}).get("embedder", "")),
        method="" if chosen is None else chosen.method,
        budget=_budget(tables),
        params={} if chosen is None else {k: v for k, v in chosen.params.items() if not isinstance(v, list | dict)},
        seed=None if chosen is None else chosen.seed,
        versions={str(k): str(v) for k, v in manifest.get("versions", {}).items()},
    )


def _budget(tables: Tables) -> str:
    config = tables.stages.get("select", {}).get("config", {})
    if tables.selection is None:
        return ""
    if _by_tokens(tables):
        return f"{config['keep_tokens']:,} response tokens"
    keep = config.get("keep")
    return f"{keep:.4g} of the scored rows" if isinstance(keep, float) else f"{int(tables.kept.sum()):,} rows"


def _counts(tables: Tables) -> Counts:
    rows = tables.stages["score"].get("accounting", {})
    kept, length = tables.kept, tables.n_response.astype(np.int64)
    whole = length + tables.n_prompt
    dropped = 0 if tables.selection is None else int((~kept).sum())
    return Counts(
        read=int(rows.get("read", len(tables))),
        rejected=int(rows.get("rejected", 0)),
        scored=len(tables),
        kept=int(kept.sum()),
        dropped=dropped,
        truncated=int(tables.truncated.sum()),
        duplicates=int((tables.representative >= 0).sum()),
        response_tokens=int(length.sum()),
        response_tokens_kept=int(length[kept].sum()),
        tokens=int(whole.sum()),
        tokens_kept=int(whole[kept].sum()),
    )


def _seconds(tables: Tables) -> Seconds:
    stages = {name: float(stage["seconds"]) for name, stage in tables.stages.items() if "seconds" in stage}
    scoring = tables.stages["score"].get("scoring_seconds")
    whole = tables.n_prompt.astype(np.int64) + tables.n_response
    kinds = [spec.kind for spec in tables.subnets]
    # All depths come out of one forward pass; "alone" reads responses without their prompts.
    passes = sum(kind not in ("alone", "depth") for kind in kinds) + ("depth" in kinds)
    done = passes * int(whole.sum()) + ("alone" in kinds) * int(tables.n_response.sum())
    saved = None
    if scoring and done and tables.selection is not None:
        saved = TRAINING_COST * float(scoring) / done * int(whole[~tables.kept].sum())
    return Seconds(stages, sum(stages.values()), saved)


def _warnings(tables: Tables) -> list[str]:
    lines = [str(line) for stage in tables.stages.values() for line in stage.get("warnings", [])]
    truncated, duplicates = int(tables.truncated.sum()), int((tables.representative >= 0).sum())
    if truncated:
        lines.append(
            f"{truncated:,} of the {len(tables):,} scored rows were longer than the model's context or --max-length and were "
            "cut: their scores are of what was left."
        )
    if duplicates:
        lines.append(f"{duplicates:,} rows are near-duplicates of another row, which stands for them.")
    return lines


def _pools(tables: Tables, boundary: Boundary | None) -> Pools | None:
    if boundary is None or not np.isfinite(boundary.score).any():
        return None
    low, median, high = (float(q) for q in np.nanquantile(boundary.score, (0.25, 0.5, 0.75)))
    split = tables.selection.params.get("split") if tables.selection is not None else None
    return Pools(boundary.between, split, low, median, high, int(boundary.in_easy.sum()))


def thirds(tables: Tables) -> Int64:
    """int64 [n]: 0, 1, 2 for the easy, middle and hard third of the rows by score."""
    third = np.empty(len(tables), dtype=np.int64)
    third[np.argsort(tables.score, kind="stable")] = np.arange(len(tables)) * 3 // max(len(tables), 1)
    return third


def _families(tables: Tables) -> list[Family]:
    """Families with at least two points; the dense model is the first point of each."""
    third = thirds(tables)
    kinds = dict.fromkeys(spec.kind for spec in tables.subnets if spec.kind not in ("dense", "alone"))
    found = []
    for kind in kinds:
        points = [(j, spec) for j, spec in enumerate(tables.subnets) if spec.kind in (kind, "dense")]
        points.sort(key=lambda point: _whole_first(point[1], kind))
        columns = [j for j, _ in points]
        bands = {
            name: _band(tables.losses[third == i][:, columns]) for i, name in enumerate(("easy", "middle", "hard"))
        }
        values = [_dense_value(kind) if spec.kind == "dense" else spec.value for _, spec in points]
        if len(points) > 1:
            found.append(Family(kind, values, columns, bands))
    return found


def _dense_value(kind: str) -> float:
    """Where the dense model stands on a family's axis. For depth it stands beyond the deepest: NaN, "all blocks"."""
    return {"dropout": 0.0, "depth": math.nan}.get(kind, 1.0)


def _whole_first(spec: SubnetSpec, kind: str) -> tuple[float, int]:
    if spec.kind == "dense":
        return (-math.inf, 0)
    return (spec.value if kind == "dropout" else -spec.value, spec.seed)


def _band(losses: Any) -> dict[str, list[float]]:
    if not len(losses):
        return {name: [math.nan] * losses.shape[1] for name in ("low", "median", "high")}
    low, median, high = np.nanquantile(losses, (0.25, 0.5, 0.75), axis=0)
    return {"low": low.tolist(), "median": median.tolist(), "high": high.tolist()}


def _groups(tables: Tables) -> list[Group]:
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
    return [
        Group(tables.label_names[i], int(size[i]), int(kept[i]), float(mean[i]), typical[i]) for i in range(k)
    ]


def _health(tables: Tables) -> dict[str, Any]:
    health = tables.stages["score"].get("health", {})
    return dict(health) if isinstance(health, dict) else {}


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
                row = json.loads(line)
                key = (str(row.get("status", "")), str(row.get("reason", ""))[:200])
                counts[key] = counts.get(key, 0) + 1
                if len(listed) < LISTED:
                    listed.append({name: row.get(name) for name in ("row_id", "file", "line", "status", "field", "reason")})
    reasons = sorted(((*key, count) for key, count in counts.items()), key=lambda entry: (-entry[2], entry[:2]))
    return Rejected(reasons[:50], listed)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list | tuple) else value
