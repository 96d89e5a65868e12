"""The export room: the kept rows in their own format, in trainers' formats, on disk and on the Hub."""

from __future__ import annotations

from collections.abc import Sequence

from instruct_prune.export.job import Exported, ExportJob, KeptSamples
from instruct_prune.registry import resolve

EXPORTS: dict[str, str] = {
    "alpaca": "instruct_prune.export.trainers:alpaca",
    "messages": "instruct_prune.export.trainers:messages",
    "llamafactory": "instruct_prune.export.trainers:llamafactory",
    "axolotl": "instruct_prune.export.trainers:axolotl",
    "trl": "instruct_prune.export.trainers:trl",
    "parquet": "instruct_prune.export.tables:parquet",
    "disk": "instruct_prune.export.tables:disk",
    "hub": "instruct_prune.export.hub:hub",
}


def export_selection(to: Sequence[str], job: ExportJob) -> list[Exported]:
    """Write the kept rows in each of the formats ``to``, in this order, each once.

    Raises:
        InputError: an unknown format, nothing was kept, or a format that cannot hold the rows.
    """
    exporters = {name: resolve(EXPORTS, name, "export format") for name in dict.fromkeys(to)}
    return [exporter(job) for exporter in exporters.values()]


__all__ = ["EXPORTS", "ExportJob", "Exported", "KeptSamples", "export_selection"]
