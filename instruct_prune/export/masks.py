"""Which turns are learnt, for formats that cannot say so of each turn."""

from __future__ import annotations

from instruct_prune.export.job import CannotExpressError, ExportJob
from instruct_prune.rows.row import Row


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
