"""LLaMA-Factory 0.9.5: the scored text under its template ``empty``, and conversations for its other templates.

Read in data/parser.py, data/converter.py, data/template.py and data/processor/.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.export import pictured, stanzas
from instruct_prune.export.conversations import alpaca_row, check_masks, mask_notes, sharegpt_row, text_row
from instruct_prune.export.job import CannotExpressError, Convert, Exported, ExportJob, write_json_rows
from instruct_prune.export.pictured import TAGS
from instruct_prune.export.scored import pair_of, pieces_of
from instruct_prune.export.tokens import write_dataset
from instruct_prune.rows.row import Row
from instruct_prune.storage import write_json

COMMAND = "llamafactory-cli train llamafactory.yaml"


def llamafactory(job: ExportJob) -> Exported:
    """``llamafactory/``: dataset_info.json, the data files it names, and ``llamafactory.yaml`` to train on the first.

    ``NAME`` holds the text that was scored; the template ``empty`` writes it as it is. LLaMA-Factory's own templates
    write something else (its ``alpaca`` has another header and two line breaks after the answer), so that rows for them
    are the dataset ``NAME-conversations``. A column that dataset_info.json does not name is None there, without a word:
    every column is named. Where the text would be read as other tokens, ``llamafactory.yaml`` trains on ``dataset``,
    the tokens that were scored.

    Raises:
        InputError: no row can be written so.
    """
    if job.survey.pictures:
        return pictured.llamafactory(job)
    folder = job.folder / "llamafactory"
    target = folder / f"{job.slug}.jsonl"
    described, config = folder / "dataset_info.json", folder / "llamafactory.yaml"
    stage, entry, convert = _scored(job)
    notes = (f"run in {folder}: {COMMAND}",)
    exported = write_json_rows(job, "llamafactory", target, convert, (described, config), notes)
    info = {job.slug: {"file_name": target.name} | entry}
    if stage == "sft":
        exported, more = _conversations(job, exported)
        info |= more
    write_json(described, info)
    data = {"dataset": job.slug, "dataset_dir": ".", **({"template": "empty"} if stage != "pt" else {})}
    if job.parted and not job.survey.pairs and job.tokens is not None:
        dataset, _ = write_dataset(job, "llamafactory", folder)
        data |= {"tokenized_path": dataset.name}
        note = f"llamafactory.yaml trains on the tokens that were scored, because {job.parted}"
        exported = dataclasses.replace(exported, paths=(*exported.paths, dataset), notes=(*exported.notes, note))
        stage = "sft"
    stanzas.write_yaml(config, stanzas.for_llamafactory(job, data, stage), COMMAND)
    return exported


def _scored(job: ExportJob) -> tuple[str, dict[str, Any], Convert]:
    """The stage, what dataset_info.json says of the rows, and how one is written: as it was scored."""
    found = job.survey
    entry: dict[str, Any]
    if found.pairs:
        entry = {"ranking": True, "formatting": "alpaca"}
        entry["columns"] = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
        return "dpo", entry, lambda sample: pair_of(job, sample, opened=True)
    if found.text == found.rows:
        return "pt", {"columns": {"prompt": "text"}}, lambda sample: text_row(sample, job.text.bos, job.text.eos)

    def turns(sample: Row) -> dict[str, Any]:
        pieces = pieces_of(job, sample, opened=True)
        if pieces[0][1]:
            raise CannotExpressError("the row has no prompt")
        return {"conversations": [{"from": "gpt" if learnt else "human", "value": text} for text, learnt in pieces]}

    entry = {"formatting": "sharegpt", "columns": {"messages": "conversations"}, "tags": TAGS}
    return "sft", entry, turns


def _conversations(job: ExportJob, exported: Exported) -> tuple[Exported, dict[str, Any]]:
    """Write ``NAME-conversations.jsonl`` where rows can be; the export with a word about it, and its entry."""
    found = job.survey
    target = job.folder / "llamafactory" / f"{job.slug}-conversations.jsonl"
    convert: Convert
    if found.calls or found.tools or found.many_turns:
        columns = {"messages": "conversations", "system": "system"} | ({"tools": "tools"} if found.tools else {})
        entry: dict[str, Any] = {"formatting": "sharegpt", "columns": columns, "tags": TAGS}

        def convert(sample: Row) -> dict[str, Any]:
            check_masks(job, sample)
            return sharegpt_row(sample, tools=found.tools > 0)
    else:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        entry = {"formatting": "alpaca", "columns": columns | ({"system": "system"} if found.systems else {})}

        def convert(sample: Row) -> dict[str, Any]:
            return alpaca_row(sample, system=found.systems > 0, history=False)

    try:
        done = write_json_rows(job, "llamafactory", target, convert)
    except InputError as error:
        return dataclasses.replace(exported, notes=(*exported.notes, f"no {target.name}: {error}")), {}
    left_out = f"; {done.left_out} are left out, listed in {done.left_out_file}" if done.left_out else ""
    note = f"{target.stem} has {done.rows} rows for LLaMA-Factory's own templates{left_out}"
    notes = (*exported.notes, note, *mask_notes(job))
    more = dataclasses.replace(exported, paths=(*exported.paths, target), notes=notes)
    return more, {target.stem: {"file_name": target.name} | entry}
