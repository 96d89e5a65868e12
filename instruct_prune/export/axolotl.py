"""axolotl 0.19: its own readers where they give what was scored, else the tokens that were scored.

Read in prompters.py, prompt_strategies/ and utils/data/ (rl.py for preference pairs).
"""

from __future__ import annotations

from typing import Any

from instruct_prune.export import stanzas
from instruct_prune.export.conversations import alpaca_row, messages_row, text_row
from instruct_prune.export.job import Convert, Exported, ExportJob, write_json_rows
from instruct_prune.export.scored import pair_of
from instruct_prune.export.tokens import write_dataset
from instruct_prune.rows.row import Row

COMMAND = "axolotl train axolotl.yaml"


def axolotl(job: ExportJob) -> Exported:
    """``axolotl/axolotl.yaml`` and its data file.

    Stanford's Alpaca text and the chat templates exist in axolotl. It has no place for systems and several turns under
    ``alpaca``, for ``plain``, and for tool calls that a chat template does not write (it trains an empty turn there);
    such rows go as the tokens that were scored, and so do all where one of them is cut, or where the tokenizer begins every
    piece of text with a blank.

    Raises:
        InputError: no row can be written so.
    """
    found, folder = job.survey, job.folder / "axolotl"
    config = folder / "axolotl.yaml"
    notes = (f"run in {folder}: {COMMAND}",)
    target = folder / f"{job.slug}.jsonl"
    kind, convert = _kind(job)
    if kind is None:
        dataset, rows = write_dataset(job, "axolotl", folder)
        exported = Exported(
            "axolotl", (dataset, config), rows, notes=(*notes, "the rows are tokens, as they were scored")
        )
        source: dict[str, Any] = {"path": dataset.name}
    else:
        exported = write_json_rows(job, "axolotl", target, convert, (config,), notes)
        source = {"path": target.name, "ds_type": "json"} | kind
    stanza = stanzas.for_axolotl(job, source, dpo=found.pairs > 0)
    stanzas.write_yaml(config, stanza, COMMAND)
    return exported


def _kind(job: ExportJob) -> tuple[dict[str, Any] | None, Convert]:
    """What axolotl is told about the rows (None: they go as tokens), and how one is written."""
    found = job.survey

    def messages(sample: Row) -> dict[str, Any]:
        return messages_row(sample, job.trained(sample), weights=found.untrained > 0, tools=found.tools > 0)

    if found.pairs:
        # axolotl hands them to TRL, whose tokenizer puts BOS before the prompt.
        return {"split": "train", "type": "passthrough"}, lambda sample: pair_of(job, sample, opened=False)
    if job.parted:
        return None, messages
    if found.text == found.rows:
        return {"type": "completion"}, lambda sample: text_row(sample, job.text.bos, job.text.eos)
    if job.text.template == "alpaca" and not (found.systems or found.many_turns or found.calls or found.text):
        return {"type": "alpaca"}, lambda sample: alpaca_row(sample, system=False, history=False)
    if not job.chat or found.calls or found.text:
        return None, messages
    kind = {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]}
    kind |= {"train_on_eos": "turn", "chat_template": "tokenizer_default"}
    if job.text.template != "chat":
        kind |= {"chat_template": "jinja", "chat_template_jinja": job.text.template}
    if found.tools:
        kind["field_tools"] = "tools"
    if found.untrained:
        kind["message_field_training"] = "weight"
    return kind, messages
