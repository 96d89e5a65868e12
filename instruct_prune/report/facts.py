"""What was run, on how much, and how long it took: the top of the report and of ``show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from instruct_prune.report.tables import Tables
from instruct_prune.run.folder import RunFolder

TRAINING_COST = 3.0
"""Forward passes that a training step costs: the backward pass is about two (Kaplan et al., arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Facts:
    """What was run, in words. ``images``: pictures were scored, which have no tokens."""

    name: str
    data: str
    files: list[str]
    images: bool
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
    unstable: int
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


def by_tokens(tables: Tables) -> bool:
    """Whether the budget was in response tokens."""
    config = tables.stages.get("select", {}).get("config", {})
    return config.get("keep") is None and config.get("keep_tokens") is not None


def facts_of(folder: RunFolder, tables: Tables) -> Facts:
    manifest, stages, chosen = folder.manifest, tables.stages, tables.selection
    encode, score = stages.get("encode", {}), stages.get("score", {})
    files = [str(entry.get("path") or entry.get("id") or "?") for entry in encode.get("inputs", [])]
    return Facts(
        name=tables.name,
        data=_named(str(encode.get("description", "")), files),
        files=files,
        images=bool(encode.get("images")),
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


def _named(description: str, files: list[str]) -> str:
    """The description with the files' names in place of their paths: reports are passed on, paths say where one works."""
    for path in sorted(files, key=len, reverse=True):
        description = description.replace(path, PurePath(path).name)
    return description


def _budget(tables: Tables) -> str:
    config = tables.stages.get("select", {}).get("config", {})
    if tables.selection is None:
        return ""
    if by_tokens(tables):
        return f"{config['keep_tokens']:,} response tokens"
    keep = config.get("keep")
    return f"{100 * keep:.4g}% of the scored rows" if isinstance(keep, float) else f"{int(tables.kept.sum()):,} rows"


def counts_of(tables: Tables) -> Counts:
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
        unstable=0 if tables.unstable is None else int(tables.unstable.sum()),
        response_tokens=int(length.sum()),
        response_tokens_kept=int(length[kept].sum()),
        tokens=int(whole.sum()),
        tokens_kept=int(whole[kept].sum()),
    )


def seconds_of(tables: Tables) -> Seconds:
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


def warnings_of(tables: Tables) -> list[str]:
    lines = [str(line) for stage in tables.stages.values() for line in stage.get("warnings", [])]
    truncated, duplicates = int(tables.truncated.sum()), int((tables.representative >= 0).sum())
    if truncated:
        lines.append(
            f"{truncated:,} of the {len(tables):,} scored rows were longer than the model's context or --max-length and were "
            "cut: their scores are of what was left."
        )
    if tables.unstable is not None and tables.unstable.any():
        lines.append(
            f"{int(tables.unstable.sum()):,} rows are unstable: with another mask seed they would have been decided otherwise."
        )
    if duplicates:
        lines.append(f"{duplicates:,} rows are near-duplicates of another row, which stands for them.")
    return lines
