"""The export room: the kept rows in their own format, in trainers' formats, on disk and on the Hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from instruct_prune.errors import InputError
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.registry import resolve
from instruct_prune.rows.inputs import IMAGES, IMAGES_AND_TEXT, TEXT

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

CANNOT_HOLD: dict[str, tuple[str, ...]] = {
    TEXT: ("links", "copies"),
    IMAGES_AND_TEXT: ("tokens", "links", "copies"),
    IMAGES: ("tokens", "alpaca", "messages", "llava", "llamafactory", "axolotl", "trl", "swift"),
}
"""{kind of model: the formats that cannot hold its rows, or those of them that show pictures}."""

NO_PAIRS = {
    TEXT: ("tokens", "alpaca", "messages", "swift"),
    IMAGES_AND_TEXT: ("alpaca", "messages", "llava", "llamafactory", "axolotl", "trl", "swift"),
}
"""{kind of model: formats that have no place for a rejected answer}."""


def check_holds(to: Sequence[str], kind: str | None, row_format: str | None = None) -> None:
    """Refuse formats that cannot hold rows of a kind and format, before the rows are scored.

    Raises:
        InputError: one cannot.
    """
    if row_format is not None and row_format.startswith("preference"):
        _refuse_pairs(to, kind, "the rows are pairs")
    if kind not in CANNOT_HOLD:  # not known yet, or the user's own kind
        return
    wrong = [name for name in to if name in CANNOT_HOLD[kind]]
    if wrong:
        rows = {TEXT: "text", IMAGES_AND_TEXT: "conversations that show pictures", IMAGES: "labelled pictures"}[kind]
        held = [name for name in EXPORTS if name not in CANNOT_HOLD[kind]]
        raise InputError(
            f"--to {' '.join(wrong)}: the rows are {rows}, which it cannot hold. There is: {', '.join(held)}."
        )


def _refuse_pairs(to: Sequence[str], kind: str | None, what: str) -> None:
    """Refuse formats without a place for the rejected answer of pairs, of rows of a kind."""
    single = [name for name in to if name in NO_PAIRS.get(str(kind), ())]
    if single:
        instead = "Use --to trl, llamafactory or axolotl (DPO), or pruned.jsonl, which has the rows as they came."
        if kind == IMAGES_AND_TEXT:
            instead = "Use --to parquet or disk, which have the rows as they came, for TRL's DPO."
        raise InputError(
            f"--to {' '.join(single)}: {what} of a chosen and a rejected answer, and it has no place for the rejected one. {instead}"
        )


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
    exporters = exporters_of(to)
    if set(to) & {name for names in NO_PAIRS.values() for name in names} and job.survey.pairs:
        shown = IMAGES_AND_TEXT if job.survey.pictures else TEXT
        _refuse_pairs(to, shown, f"{job.survey.pairs} of the {job.survey.rows} kept rows are pairs")
    return [exporter(job) for exporter in exporters.values()]


__all__ = ["EXPORTS", "ExportJob", "Exported", "check_holds", "export_selection", "exporters_of"]
