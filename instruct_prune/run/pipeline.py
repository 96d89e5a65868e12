"""The whole house on one page: load -> encode -> score -> embed -> select -> export.

Each stage reads what the last one left in the run folder and writes its own files there; a finished stage is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from instruct_prune.config import RunConfig
from instruct_prune.errors import InputError
from instruct_prune.report.html import write_report
from instruct_prune.run.compare import compare
from instruct_prune.run.embed import embed
from instruct_prune.run.encode import inspect, source_of
from instruct_prune.run.export import export
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.images import thumbnail
from instruct_prune.run.score import score
from instruct_prune.run.select import check_selection, select
from instruct_prune.select.data import Selection

__all__ = ["compare", "embed", "export", "inspect", "open_run", "report", "run", "score", "select", "source_of"]


def run(config: RunConfig) -> Selection | None:
    """Dataset file in, pruned dataset file out. None on processes other than the main one, and for a dry run."""
    check_selection(config.select)
    folder = open_run(config.run.out)
    table = score(folder, config.data, config.encode, config.score, config.select)
    if table is None:
        return None
    embed(folder, config.embed)
    selection = select(folder, config.select)
    export(folder, config.export)
    report(folder)
    return selection


def report(folder: RunFolder, others: Sequence[RunFolder] = (), samples: int = 5000) -> Path:
    """``report.html`` and ``report.json``: what was kept, what was dropped and why."""
    return write_report(folder, source_of(folder), samples=samples, others=others, thumbnail=thumbnail(folder))


def open_run(out: str) -> RunFolder:
    if not out:
        raise InputError("--out is missing: name the folder of the run.")
    return RunFolder(out)
