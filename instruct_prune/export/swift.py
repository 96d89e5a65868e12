"""ms-swift 4.6: the scored text without a template of ms-swift's, where a row has one learnt answer.

Read in template/base.py (``_swift_encode``), template/template_meta.py and cli/main.py.
"""

from __future__ import annotations

from typing import Any

from instruct_prune.export import stanzas
from instruct_prune.export.conversations import messages_row
from instruct_prune.export.job import Convert, Exported, ExportJob, write_json_rows
from instruct_prune.export.scored import prompt_and_answer
from instruct_prune.rows.row import Row

COMMAND = "swift sft swift.yaml"


def swift(job: ExportJob) -> Exported:
    """``swift/swift.yaml`` and its data file.

    With ``use_chat_template: false`` ms-swift puts prompt and answer together as they are, but takes the last two turns
    only; conversations with several learnt answers go as messages, which ms-swift's template for the model writes.

    Raises:
        InputError: the rows are preference pairs, or none can be written so.
    """
    job.refuse_pairs("swift")
    found, folder = job.survey, job.folder / "swift"
    target, config = folder / f"{job.slug}.jsonl", folder / "swift.yaml"
    as_scored = found.last_only and found.text == 0
    notes: tuple[str, ...] = (f"run in {folder}: {COMMAND}",)
    if not as_scored:
        notes += ("ms-swift writes these conversations with its own template for the model",)
    exported = write_json_rows(job, "swift", target, _convert(job, as_scored), (config,), notes)
    data = {"dataset": [target.name]} | ({"use_chat_template": False} if as_scored else {})
    stanzas.write_yaml(config, stanzas.for_swift(job.model, data, job.text.max_length), COMMAND)
    return exported


def _convert(job: ExportJob, as_scored: bool) -> Convert:
    def scored(sample: Row) -> dict[str, Any]:
        prompt, answer = prompt_and_answer(job, sample, opened=False)
        return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}

    def conversation(sample: Row) -> dict[str, Any]:
        trained = job.trained(sample)
        row = messages_row(sample, trained, tools=job.survey.tools > 0)
        for i, turn in enumerate(row["messages"]):
            if turn["role"] == "assistant":
                turn["loss"] = i in trained
        return row

    return scored if as_scored else conversation
