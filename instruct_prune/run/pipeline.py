"""All stages of a run, in order: read -> encode -> score -> embed -> select -> export -> report.

Each stage reads what the last one left in the run folder and writes its own files there; a finished stage is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from instruct_prune.config import RunConfig
from instruct_prune.measure.ranks import Ranks
from instruct_prune.report.html import write_report
from instruct_prune.rows import Source
from instruct_prune.run.by import DEFAULT, find_by
from instruct_prune.run.embed import embed
from instruct_prune.run.export import export
from instruct_prune.run.folder import RunFolder, open_run
from instruct_prune.run.lock import alone, writes
from instruct_prune.run.rows import rows_of
from instruct_prune.run.score import Scoring
from instruct_prune.run.select import select
from instruct_prune.run.target import target
from instruct_prune.select.data import Selection


def run(config: RunConfig, source: Source | None = None) -> Selection | None:
    """Dataset file in, pruned dataset file out. None on processes other than the main one, and for a dry run.

    Args:
        config: all options.
        source: the data, where they are open already.

    Raises:
        InputError: `check_run` finds most of it before anything is imported or read.
    """
    folder = open_run(config.run.out)
    with alone(folder, Ranks()):
        return _run(folder, config, source)


def _run(folder: RunFolder, config: RunConfig, source: Source | None) -> Selection | None:
    aims = bool(config.target.target)
    choice = config.select
    probes: tuple[str, ...] = ()
    if aims:
        probes = find_by(choice.by or DEFAULT).probes_of(config.target)
        choice = replace(choice, method=choice.method or "targeted")
    scoring = Scoring(
        folder, config.data, config.encode, config.score, choice, config.embed, source=source,
        dedup_first=config.dedup_first, target=probes,
    )  # fmt: skip
    if scoring.run() is None:
        return None
    embed(folder, config.embed, restart=config.score.restart == "embed")
    if aims:
        target(folder, config.target, choice.by)
    selection = select(folder, choice)
    export(folder, config.export)
    report(folder)
    return selection


@writes
def report(folder: RunFolder, others: Sequence[RunFolder] = (), samples: int = 5000) -> Path:
    """``report.html`` and ``report.json``: what was kept, what was dropped and why."""
    return write_report(folder, rows_of(folder), samples=samples, others=others)
