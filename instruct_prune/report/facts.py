"""What was run, on how much, and how long it took: the top of the report and of ``show``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from instruct_prune.report.tables import Records, Tables
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts

TRAINING_COST = 3.0
"""Forward passes that a training step costs: the backward pass is about two (Kaplan et al., arXiv 2001.08361, section 2.1)."""


@dataclass(frozen=True)
class Facts:
    """What was run, in words.

    ``tokens``: whether rows have tokens (pictures have none); ``earned``: what the pilot of ``--subnets auto`` found, or "".
    """

    name: str
    data: str
    files: list[str]
    tokens: bool
    model: str
    device: str
    score: str
    subnets: list[str]
    earned: str
    embedder: str
    method: str
    budget: str
    params: dict[str, Any]
    seed: int | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Counts:
    """Rows and tokens. Rows read = scored + rejected + set_aside, and scored + set_aside = kept + dropped."""

    read: int
    rejected: int
    set_aside: int
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
        saved_per_epoch: `epoch_seconds` of the dropped rows. None where scoring was not timed or nothing was selected.
    """

    stages: dict[str, float]
    selecting: float
    saved_per_epoch: float | None


def by_tokens(tables: Tables) -> bool:
    """Whether the budget was in response tokens."""
    chosen = tables.run.chosen
    return chosen.get("keep") is None and chosen.get("keep_tokens") is not None


def facts_of(folder: RunFolder, tables: Tables) -> Facts:
    run, chosen = tables.run, tables.selection
    files = [str(entry.get("path") or entry.get("id") or "?") for entry in run.source.identity]
    return Facts(
        name=tables.name,
        data=_named(run.source.description, files),
        files=files,
        tokens=run.score.unit == "tokens",
        model=run.score.model,
        device=run.score.device,
        score=tables.score_name,
        subnets=[spec.name for spec in tables.subnets],
        earned="" if run.score.earned is None else run.score.earned.told(),
        embedder="" if run.embed is None else run.embed.embedder,
        method="" if chosen is None else chosen.method,
        budget=_budget(tables),
        params={} if chosen is None else {k: v for k, v in chosen.params.items() if not isinstance(v, list | dict)},
        seed=None if chosen is None else chosen.seed,
        versions={str(k): str(v) for k, v in folder.manifest.get("versions", {}).items()},
    )


def _named(description: str, files: list[str]) -> str:
    """The description with the files' names in place of their paths: reports are passed on, paths say where one works."""
    for path in sorted(files, key=len, reverse=True):
        description = description.replace(path, PurePath(path).name)
    return description


def _budget(tables: Tables) -> str:
    config = tables.run.chosen
    if tables.selection is None:
        return ""
    if by_tokens(tables):
        return f"{config['keep_tokens']:,} response tokens"
    keep = config.get("keep")
    return f"{100 * keep:.4g}% of the scored rows" if isinstance(keep, float) else f"{int(tables.kept.sum()):,} rows"


def counts_of(tables: Tables) -> Counts:
    kept, length = tables.kept, tables.n_response.astype(np.int64)
    whole = length + tables.n_prompt
    aside, scored = tables.run.score.set_aside, tables.run.score.scored
    dropped = 0 if tables.selection is None else scored + aside - int(kept.sum())
    return Counts(
        read=tables.run.score.read,
        rejected=tables.run.score.rejected,
        set_aside=aside,
        scored=scored,
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
    run = tables.run
    stages = seconds_by_stage(run)
    saved = None
    if run.select is not None:
        whole, kept = (epoch_seconds(run.score, n) for n in (run.select.tokens.scored, run.select.tokens.kept))
        saved = None if whole is None or kept is None else whole - kept
    return Seconds(stages, sum(stages.values()), saved)


def seconds_by_stage(run: Records) -> dict[str, float]:
    """Seconds that each finished stage took."""
    found = {"read": run.rows.seconds, "encode": run.encode.seconds, "score": run.score.seconds}
    found |= {} if run.score.aside is None else {"dedup first": run.score.aside.seconds}
    found |= {} if run.embed is None else {"embed": run.embed.seconds}
    found |= {} if run.target_seconds is None else {"target": run.target_seconds}
    return found | ({} if run.select is None else {"select": run.select.seconds})


def epoch_seconds(score: ScoreFacts, tokens: int) -> float | None:
    """Estimate of one epoch of fine-tuning the same model on the same machine; None where nothing was timed.

    Args:
        score: says how many tokens (or pictures) a second were computed.
        tokens: of the rows that are trained on, prompts included.
    """
    if not score.scoring_seconds or not score.tokens:
        return None
    return TRAINING_COST * tokens * score.scoring_seconds / score.tokens


def warnings_of(tables: Tables) -> list[str]:
    lines = list(tables.run.score.health.warnings)
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
    aside = tables.run.score.aside
    if aside is not None and aside.rows:
        lines.append(
            f"{aside.rows:,} rows were set aside before scoring ({aside.duplicates:,} near-duplicates, {aside.contaminated:,} that "
            "repeat a row of --decontaminate): they are dropped, have no score, and are not in the figures below."
        )
    unranked = tables.run.score.scored - len(tables)
    if unranked:
        lines.append(
            f"{unranked:,} scored rows could not be ranked (no score): they are dropped, and are not in the figures below."
        )
    contaminated = 0 if tables.run.select is None else tables.run.select.contaminated
    if contaminated:
        lines.append(f"{contaminated:,} rows repeat a row of --decontaminate and were dropped.")
    if duplicates:
        lines.append(f"{duplicates:,} rows are near-duplicates of another row, which stands for them.")
    return lines
