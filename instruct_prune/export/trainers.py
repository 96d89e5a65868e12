"""Files that many trainers read: Alpaca rows and OpenAI's messages."""

from __future__ import annotations

from typing import Any

from instruct_prune.export.conversations import alpaca_row, messages_row
from instruct_prune.export.job import CannotExpressError, Exported, ExportJob, write_json_rows
from instruct_prune.rows.row import Row


def alpaca(job: ExportJob) -> Exported:
    """``alpaca.jsonl``: instruction, input, output (and system, history where any row has them)."""
    job.refuse_pairs("alpaca")
    found = job.survey

    def convert(sample: Row) -> dict[str, Any]:
        check_masks(job, sample)
        return alpaca_row(sample, system=found.systems > 0, history=found.many_turns > 0)

    return write_json_rows(job, "alpaca", job.folder / "alpaca.jsonl", convert, notes=mask_notes(job))


def messages(job: ExportJob) -> Exported:
    """``messages.jsonl``: OpenAI's form, which TRL and axolotl take; ``weight`` 0 marks turns that are not trained."""
    job.refuse_pairs("messages")
    found = job.survey

    def convert(sample: Row) -> dict[str, Any]:
        return messages_row(sample, job.trained(sample), weights=found.untrained > 0, tools=found.tools > 0)

    notes = []
    if job.text.template != "chat":
        said = f"the rows were scored under the template {job.text.template!r}"
        notes.append(f"{said}; messages are rendered by the trainer's chat template")
    if found.untrained:
        notes.append("turns with weight 0 were not scored; TRL trains them all the same, axolotl does not")
    return write_json_rows(job, "messages", job.folder / "messages.jsonl", convert, notes=tuple(notes))


def check_masks(job: ExportJob, sample: Row) -> None:
    """Refuse a row whose untrained turns would be trained, unless all rows train their last turn only."""
    answers = {i for i, m in enumerate(sample.messages) if m.role == "assistant"}
    if job.survey.earlier_trained and answers - job.trained(sample):
        raise CannotExpressError("one of its assistant turns is not trained, and this format cannot say so")


def mask_notes(job: ExportJob) -> tuple[str, ...]:
    """What to tell the trainer where only the last turns were scored."""
    if job.survey.untrained and not job.survey.earlier_trained:
        return ("only the last turn of each row was scored: train with mask_history: true",)
    return ()
