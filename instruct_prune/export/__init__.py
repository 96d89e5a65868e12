"""The export room: the kept rows in their own format, in trainers' formats, on disk and on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.registry import resolve

Exporter = Callable[[ExportJob], Exported]

EXPORTS: dict[str, str] = {
    "tokens": "instruct_prune.export.tokens:tokens",
    "alpaca": "instruct_prune.export.trainers:alpaca",
    "messages": "instruct_prune.export.trainers:messages",
    "llava": "instruct_prune.export.pictured:llava",
    "llamafactory": "instruct_prune.export.llamafactory:llamafactory",
    "axolotl": "instruct_prune.export.axolotl:axolotl",
    "trl": "instruct_prune.export.trl:trl",
    "swift": "instruct_prune.export.swift:swift",
    "parquet": "instruct_prune.export.tables:parquet",
    "disk": "instruct_prune.export.tables:disk",
    "viewer": "instruct_prune.export.viewer:viewer",
    "hub": "instruct_prune.export.hub:hub",
    "links": "instruct_prune.export.images:links",
    "copies": "instruct_prune.export.images:copies",
}
"""{name: "module:function"}. One file and one line here add a format."""


def exporters_of(to: Sequence[str]) -> dict[str, Exporter]:
    """The exporters of these names, each once: those of the package, or the user's own as ``module:function``.

    Raises:
        InputError: an unknown format.
    """
    return {name: resolve(EXPORTS, name, "--to") for name in dict.fromkeys(to)}


def export_selection(to: Sequence[str], job: ExportJob) -> list[Exported]:
    """Write the kept rows in each of the formats ``to``, in this order, each once.

    Raises:
        InputError: an unknown format, nothing was kept, or a format that cannot hold the rows.
    """
    return [exporter(job) for exporter in exporters_of(to).values()]


__all__ = ["EXPORTS", "ExportJob", "Exported", "export_selection", "exporters_of"]
