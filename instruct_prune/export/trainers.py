"""Files that trainers read as they are: Alpaca, messages, LLaMA-Factory, axolotl, TRL.

What each of them does with its file was read in LLaMA-Factory 0.9.5 (data/parser.py, data/converter.py), axolotl 0.19
(prompters.py, prompt_strategies/) and TRL 1.16 (trainer/sft_trainer.py, scripts/utils.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.export.conversations import (
    alpaca_row,
    messages_row,
    prompt_completion_row,
    sharegpt_row,
    text_row,
)
from instruct_prune.export.job import CannotExpressError, Exported, ExportJob, write_json_rows
from instruct_prune.rows.row import Row
from instruct_prune.storage import atomic, write_json

Convert = Callable[[Row], Mapping[str, Any]]


def alpaca(job: ExportJob) -> Exported:
    """``alpaca.jsonl``: instruction, input, output (and system, history where any row has them)."""
    found = job.survey
    target = job.folder / "alpaca.jsonl"

    def convert(sample: Row) -> dict[str, Any]:
        _check_masks(job, sample)
        return alpaca_row(sample, system=found.systems > 0, history=found.many_turns > 0)

    return _exported(job, "alpaca", target, convert, (), _mask_notes(job))


def messages(job: ExportJob) -> Exported:
    """``messages.jsonl``: OpenAI's form, which TRL and axolotl take; ``weight`` 0 marks turns that are not trained."""
    found = job.survey
    target = job.folder / "messages.jsonl"

    def convert(sample: Row) -> dict[str, Any]:
        return messages_row(sample, job.trained(sample), weights=found.untrained > 0, tools=found.tools > 0)

    notes = (
        []
        if job.text.template == "chat"
        else [_other_template(job, "messages are rendered by the trainer's chat template")]
    )
    if found.untrained:
        notes.append("turns with weight 0 were not scored; TRL trains them all the same, axolotl does not")
    return _exported(job, "messages", target, convert, (), tuple(notes))


def llamafactory(job: ExportJob) -> Exported:
    """``llamafactory/dataset_info.json`` and its data file; every column is named.

    A column that dataset_info.json does not name is None in LLaMA-Factory, without a word.
    """
    found, folder = job.survey, job.folder / "llamafactory"
    target = folder / f"{job.slug}.jsonl"
    info: dict[str, Any] = {"file_name": target.name}
    conversations = found.calls or found.tools or found.many_turns
    convert: Convert
    if found.text == found.rows:
        info |= {"columns": {"prompt": "text"}}
        convert = _text(job)
    elif conversations:
        columns = {"messages": "conversations", "system": "system"} | ({"tools": "tools"} if found.tools else {})
        tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
        tags |= {"observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}
        info |= {"formatting": "sharegpt", "columns": columns, "tags": tags}

        def convert(sample: Row) -> dict[str, Any]:
            _check_masks(job, sample)
            return sharegpt_row(sample, tools=found.tools > 0)
    else:
        columns = {"prompt": "instruction", "query": "input", "response": "output"}
        info |= {"formatting": "alpaca", "columns": columns | ({"system": "system"} if found.systems else {})}

        def convert(sample: Row) -> dict[str, Any]:
            return alpaca_row(sample, system=found.systems > 0, history=False)

    notes = [f"in the training file: dataset: {job.slug}, dataset_dir: {folder}", *_mask_notes(job)]
    if found.text == found.rows:
        notes.append("plain text is trained on with stage: pt")
    else:
        notes.append(_other_template(job, "LLaMA-Factory renders with its own `template`"))
    exported = _exported(job, "llamafactory", target, convert, (folder / "dataset_info.json",), tuple(notes))
    write_json(folder / "dataset_info.json", {job.slug: info})
    return exported


def axolotl(job: ExportJob) -> Exported:
    """``axolotl/axolotl.yaml`` and its data file: the scorer's text and mask under every template.

    Stanford's Alpaca and chat templates exist in axolotl; any other text goes as ``input_output`` segments.
    """
    found, folder = job.survey, job.folder / "axolotl"
    target = folder / f"{job.slug}.jsonl"
    source: dict[str, Any] = {"path": target.name, "ds_type": "json"}
    convert: Convert
    if found.text == found.rows:
        source["type"] = "completion"
        convert = _text(job)
    elif job.text.template == "alpaca" and not (found.systems or found.many_turns or found.calls or found.text):
        source["type"] = "alpaca"

        def convert(sample: Row) -> dict[str, Any]:
            return alpaca_row(sample, system=False, history=False)
    elif _is_chat(job):
        source |= {"type": "chat_template", "field_messages": "messages", "roles_to_train": ["assistant"]}
        source |= {"train_on_eos": "turn"} | _jinja(job, "chat_template", "chat_template_jinja")
        if found.tools:
            source["field_tools"] = "tools"
        if found.untrained:
            source["message_field_training"] = "weight"

        def convert(sample: Row) -> dict[str, Any]:
            return messages_row(sample, job.trained(sample), weights=found.untrained > 0, tools=found.tools > 0)
    else:
        source["type"] = "input_output"

        def convert(sample: Row) -> dict[str, Any]:
            opening = [{"label": False, "text": job.text.bos}] if job.text.bos else []
            return {"segments": opening + [{"label": said, "text": text} for text, said in _rendered(job, sample)]}

    stanza = {
        "base_model": job.model,
        "datasets": [source],
        "train_on_inputs": False,
        "sequence_len": job.text.max_length,
        "sample_packing": False,
        **{"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_linear": True},
        **{"learning_rate": 0.0002, "lr_scheduler": "cosine", "warmup_ratio": 0.03, "optimizer": "adamw_torch"},
        **{"num_epochs": 3, "micro_batch_size": 1, "gradient_accumulation_steps": 16, "bf16": "auto"},
        "output_dir": "./out",
    }
    config = folder / "axolotl.yaml"
    exported = _exported(job, "axolotl", target, convert, (config,), (f"run in {folder}: axolotl train axolotl.yaml",))
    _write_yaml(config, stanza, "axolotl train axolotl.yaml, in this folder")
    return exported


def trl(job: ExportJob) -> Exported:
    """``trl/trl.yaml`` and its data file, for ``trl sft``: the scorer's text and mask, or an error that says why not."""
    found, folder = job.survey, job.folder / "trl"
    target = folder / f"{job.slug}.jsonl"
    options: dict[str, Any] = {}
    convert: Convert
    if found.text == found.rows:
        convert = _text(job)
    elif _is_chat(job):
        options |= _jinja(job, None, "chat_template_path")
        convert = _trl_chat(job, options)
    else:
        if found.many_turns and not found.last_only:
            raise InputError(
                f"--to trl: rows with several trained turns under the template {job.text.template!r} have no place in TRL's data "
                "formats. Export axolotl (its segments keep text and mask), or score again with --template chat."
            )
        options["completion_only_loss"] = True

        def convert(sample: Row) -> dict[str, Any]:
            return _prompt_and_completion(job, sample)

    stanza = {
        "model_name_or_path": job.model,
        "datasets": [{"path": "json", "data_files": target.name, "split": "train"}],
        **options,
        "max_length": job.text.max_length,
        "packing": False,
        **{"use_peft": True, "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "lora_target_modules": "all-linear"},
        **{"learning_rate": 0.0002, "lr_scheduler_type": "cosine", "num_train_epochs": 3},
        **{"per_device_train_batch_size": 1, "gradient_accumulation_steps": 16, "report_to": "none"},
        "output_dir": "out",
    }
    config = folder / "trl.yaml"
    exported = _exported(job, "trl", target, convert, (config,), (f"run in {folder}: trl sft --config trl.yaml",))
    _write_yaml(config, stanza, "trl sft --config trl.yaml, in this folder")
    return exported


def _text(job: ExportJob) -> Convert:
    return lambda sample: text_row(sample, job.text.bos, job.text.eos)


def _trl_chat(job: ExportJob, options: dict[str, Any]) -> Convert:
    """Prompt and completion where only the last turn is learnt (exact under any chat template), else messages."""
    found = job.survey
    if found.last_only:
        options["completion_only_loss"] = True
        return lambda sample: prompt_completion_row(sample, tools=found.tools > 0)
    # TRL swaps in a template with {% generation %} marks for the families it knows, and refuses others.
    options["assistant_only_loss"] = True

    def convert(sample: Row) -> dict[str, Any]:
        answers = {i for i, m in enumerate(sample.messages) if m.role == "assistant"}
        if answers - job.trained(sample):
            raise CannotExpressError("TRL trains every assistant turn, and one of this row was not scored")
        return messages_row(sample, answers, tools=found.tools > 0)

    return convert


def _prompt_and_completion(job: ExportJob, sample: Row) -> dict[str, str]:
    pieces = _rendered(job, sample)
    n_prompt = sum(not said for _, said in pieces)
    if any(said for _, said in pieces[:n_prompt]):
        raise CannotExpressError("text that is not trained follows the response")
    prompt, completion = ("".join(text for text, _ in part) for part in (pieces[:n_prompt], pieces[n_prompt:]))
    if not prompt:
        raise CannotExpressError("the row has no prompt")
    return {"prompt": prompt, "completion": completion.removesuffix(job.text.eos)}  # TRL appends the end token itself


def _rendered(job: ExportJob, sample: Row) -> list[tuple[str, bool]]:
    if job.text.render is None:
        raise TypeError(f"the template {job.text.template!r} needs ExportJob.render (Encoder.render)")
    return job.text.render(sample)


def _is_chat(job: ExportJob) -> bool:
    """The tokenizer's chat template, or a Jinja file written like one."""
    return job.text.template not in ("alpaca", "plain")


def _jinja(job: ExportJob, name_key: str | None, path_key: str) -> dict[str, Any]:
    if job.text.template == "chat":
        return {name_key: "tokenizer_default"} if name_key else {}
    return ({name_key: "jinja"} if name_key else {}) | {path_key: job.text.template}


def _check_masks(job: ExportJob, sample: Row) -> None:
    """Refuse a row whose untrained turns would be trained, unless all rows train their last turn only."""
    answers = {i for i, m in enumerate(sample.messages) if m.role == "assistant"}
    if job.survey.earlier_trained and answers - job.trained(sample):
        raise CannotExpressError("one of its assistant turns is not trained, and this format cannot say so")


def _mask_notes(job: ExportJob) -> tuple[str, ...]:
    if job.survey.untrained and not job.survey.earlier_trained:
        return ("only the last turn of each row was scored: train with mask_history: true",)
    return ()


def _other_template(job: ExportJob, who: str) -> str:
    return f"the rows were scored under the template {job.text.template!r}; {who}"


def _exported(
    job: ExportJob, to: str, target: Path, convert: Convert, more: tuple[Path, ...], notes: tuple[str, ...]
) -> Exported:
    rows, left_out, listed = write_json_rows(job, to, target, convert)
    return Exported(to, (target, *more), rows, left_out, listed, notes)


def _write_yaml(path: Path, stanza: Mapping[str, Any], command: str) -> None:
    import yaml

    with atomic(path, "w") as file:
        file.write(
            f"# Written by instruct-prune export. Run: {command}\n# Rank, learning rate and epochs are common starting points.\n"
        )
        # JSON strings are YAML strings: safe_dump quotes what needs it.
        yaml.safe_dump(json.loads(json.dumps(stanza)), file, sort_keys=False, allow_unicode=True, width=10_000)
