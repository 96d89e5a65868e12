"""Files that many trainers read: Alpaca rows and OpenAI's messages."""

from __future__ import annotations

from typing import Any

from instruct_prune.export.conversations import alpaca_row, check_masks, mask_notes, messages_row
from instruct_prune.export.job import Exported, ExportJob, write_json_rows
from instruct_prune.export.pictured import files_in, turns_of
from instruct_prune.rows.row import Row


def alpaca(job: ExportJob) -> Exported:
    """``alpaca.jsonl``: instruction, input, output (and system, history where any row has them)."""
    found = job.survey

    def convert(sample: Row) -> dict[str, Any]:
        check_masks(job, sample)
        return alpaca_row(sample, system=found.systems > 0, history=found.many_turns > 0)

    return write_json_rows(job, "alpaca", job.folder / "alpaca.jsonl", convert, notes=mask_notes(job))


def messages(job: ExportJob) -> Exported:
    """``messages.jsonl``: OpenAI's form, which TRL and axolotl take; ``weight`` 0 marks turns that are not trained.

    A picture is a part of its turn, with the path of its file.
    """
    found, files = job.survey, files_in(job.folder / "messages_pictures")
    weights, tools = found.untrained > 0, found.tools > 0

    def convert(sample: Row) -> dict[str, Any]:
        row = messages_row(sample, job.trained(sample), weights=weights, tools=tools, pictures=True)
        return {**row, "messages": list(turns_of(sample, row["messages"], iter(files(sample))))}

    notes = []
    if not found.pictures and job.text.template != "chat":
        said = f"the rows were scored under the template {job.text.template!r}"
        notes.append(f"{said}; messages are rendered by the trainer's chat template")
    if found.untrained:
        notes.append("turns with weight 0 were not scored; TRL trains them all the same, axolotl does not")
    return write_json_rows(job, "messages", job.folder / "messages.jsonl", convert, notes=tuple(notes))
