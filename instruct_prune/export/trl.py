"""TRL 1.16: text where its own reading of it gives the tokens that were scored, else these tokens.

Read in trainer/sft_trainer.py, trainer/dpo_trainer.py and scripts/utils.py.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from instruct_prune.export import pictured, stanzas
from instruct_prune.export.conversations import text_row
from instruct_prune.export.job import Convert, Exported, ExportJob, write_json_rows
from instruct_prune.export.scored import pair_of, prompt_and_answer
from instruct_prune.export.tokens import FOR_TRL, write_tokens
from instruct_prune.rows.row import Row


def trl(job: ExportJob) -> Exported:
    """``trl/trl.yaml`` and its data file: ``trl sft``, or ``trl dpo`` for preference pairs.

    Rows with one learnt answer under ``alpaca`` and ``plain`` go as prompt and completion. TRL trains several answers of
    a conversation only under chat templates that mark them with ``{% generation %}``, and learns the line break after the
    last one; such rows go as the tokens that were scored, and so do all where one of them is cut.

    Raises:
        InputError: no row can be written so.
    """
    if job.survey.pictures:
        return pictured.trl(job)
    found, folder = job.survey, job.folder / "trl"
    config = folder / "trl.yaml"
    dpo = found.pairs > 0
    command = f"trl {'dpo' if dpo else 'sft'} --config trl.yaml"
    notes: tuple[str, ...] = (f"run in {folder}: {command}",)
    target = folder / f"{job.slug}.jsonl"
    data: dict[str, Any] = {"datasets": [{"path": "json", "data_files": target.name, "split": "train"}]}
    if not dpo and (job.cut or (found.text < found.rows and (job.chat or not found.last_only))):
        target, rows = write_tokens(job, "trl", folder)
        exported = Exported("trl", (target, config), rows, notes=(*notes, "the rows are tokens, as they were scored"))
        data = dict(FOR_TRL)
    else:
        exported = write_json_rows(job, "trl", target, _convert(job), (config,), notes)
        data |= {} if dpo or found.text == found.rows else {"completion_only_loss": True}
    stanzas.write_yaml(config, stanzas.for_trl(job, data, dpo=dpo), command)
    return dataclasses.replace(exported, notes=(*exported.notes, *_pair_notes(job, target))) if dpo else exported


def _convert(job: ExportJob) -> Convert:
    if job.survey.pairs:
        return lambda sample: pair_of(job, sample, opened=False)
    if job.survey.text == job.survey.rows:
        return lambda sample: text_row(sample, job.text.bos, job.text.eos)

    def prompt_and_completion(sample: Row) -> dict[str, str]:
        prompt, answer = prompt_and_answer(job, sample, opened=False)
        return {"prompt": prompt, "completion": answer.removesuffix(job.text.eos)}  # TRL appends the end token itself

    return prompt_and_completion


def _pair_notes(job: ExportJob, written: Path) -> tuple[str, ...]:
    with open(written, encoding="utf-8") as file:
        chosen = json.loads(file.readline())["chosen"]
    ends = f"TRL appends {job.text.eos!r} to the answers, which the chat template ends otherwise"
    return (*(() if chosen.endswith(job.text.eos) else (ends,)), *((job.cut,) if job.cut else ()))
