"""Training configurations beside the data: a LoRA run that starts as it is, for people to change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_prune.export.job import ExportJob
from instruct_prune.storage import atomic

EPOCHS, SFT_RATE, DPO_RATE, BETA = 3, 2e-4, 5e-6, 0.1
RANK, ALPHA, ROWS_PER_STEP = 16, 32, 16


def write_yaml(path: Path, stanza: Mapping[str, Any], command: str) -> None:
    """Write a configuration with the command that runs it in its first line."""
    import yaml

    with atomic(path, "w") as file:
        file.write(
            f"# Written by instruct-prune export. Run in this folder: {command}\n"
            "# Rank, learning rate and epochs are common starting points.\n"
        )
        # JSON strings are YAML strings: safe_dump quotes what needs it.
        yaml.safe_dump(json.loads(json.dumps(stanza)), file, sort_keys=False, allow_unicode=True, width=10_000)


def _schedule(dpo: bool) -> dict[str, Any]:
    """What TRL, LLaMA-Factory and ms-swift all hand to transformers' `TrainingArguments`."""
    return {
        "learning_rate": DPO_RATE if dpo else SFT_RATE,
        "lr_scheduler_type": "cosine",
        "num_train_epochs": 1 if dpo else EPOCHS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": ROWS_PER_STEP,
        "report_to": "none",
        "output_dir": "out",
    }


def _model(job: ExportJob, name: str, revision: str = "model_revision") -> dict[str, str]:
    """The model that scored, under the names that a trainer has for a model and its revision."""
    return {name: job.model} | ({} if job.revision is None else {revision: job.revision})


def for_trl(job: ExportJob, data: Mapping[str, Any], *, dpo: bool = False) -> dict[str, Any]:
    """For ``trl sft`` or ``trl dpo``.

    Args:
        job: says what to train, and how many tokens a row has at most.
        data: how the rows are loaded, and options that they need.
        dpo: the rows are preference pairs.
    """
    return {
        **_model(job, "model_name_or_path"),
        **data,
        "max_length": job.text.max_length,
        **({"beta": BETA} if dpo else {"packing": False}),
        "use_peft": True,
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "lora_target_modules": "all-linear",
        **_schedule(dpo),
    }


def for_llamafactory(job: ExportJob, data: Mapping[str, Any], stage: str) -> dict[str, Any]:
    """For ``llamafactory-cli train``; ``stage`` is "sft", "dpo" or "pt", the rest as in `for_trl`."""
    dpo = stage == "dpo"
    return {
        **_model(job, "model_name_or_path"),
        "stage": stage,
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "lora_target": "all",
        **({"pref_beta": BETA, "pref_loss": "sigmoid"} if dpo else {}),
        **data,
        "cutoff_len": job.text.max_length,
        **_schedule(dpo),
    }


def for_axolotl(job: ExportJob, source: Mapping[str, Any], *, dpo: bool = False) -> dict[str, Any]:
    """For ``axolotl train``; ``source`` is the entry of ``datasets``, the rest as in `for_trl`."""
    return {
        **_model(job, "base_model", "revision_of_model"),
        **({"rl": "dpo", "rl_beta": BETA} if dpo else {}),
        "datasets": [dict(source)],
        **({} if dpo else {"train_on_inputs": False, "sample_packing": False}),
        "sequence_len": job.text.max_length,
        "adapter": "lora",
        "lora_r": RANK,
        "lora_alpha": ALPHA,
        "lora_dropout": 0.05,
        "lora_target_linear": True,
        "learning_rate": DPO_RATE if dpo else SFT_RATE,
        "lr_scheduler": "cosine",
        "warmup_ratio": 0.03,
        "optimizer": "adamw_torch",
        "num_epochs": 1 if dpo else EPOCHS,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": ROWS_PER_STEP,
        "bf16": "auto",
        "output_dir": "./out",
    }


def for_swift(job: ExportJob, data: Mapping[str, Any]) -> dict[str, Any]:
    """For ``swift sft``; as in `for_trl`."""
    return {
        **_model(job, "model"),
        "use_hf": True,
        **data,
        "max_length": job.text.max_length,
        "truncation_strategy": "left",  # by default ms-swift leaves out rows that are too long
        "tuner_type": "lora",
        "lora_rank": RANK,
        "lora_alpha": ALPHA,
        "target_modules": "all-linear",
        **_schedule(False),
    }
