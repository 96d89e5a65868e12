"""A fresh LoRA adapter on a base model (arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from transformers import set_seed

from instruct_prune.errors import InputError
from instruct_prune.train.config import TrainConfig


def attach_lora(model: Any, config: TrainConfig) -> Any:
    """The model with a fresh adapter, the same for the same seed; it changes no output until it is trained.

    ``model.unload()`` of what is returned gives the base model back, as it was.

    Args:
        model: a transformers causal language model, frozen.
        config: rank, alpha, dropout, target modules, seed, gradient checkpointing.

    Raises:
        InputError: the model has no modules of the names in target_modules.
    """
    set_seed(config.seed)
    targets: str | list[str] = list(config.target_modules)
    if targets == ["all-linear"]:
        targets = "all-linear"
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    # With a cache of keys and values transformers does not look at positions, and packed rows would see each other.
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        if "target modules" not in str(error).lower():
            raise
        raise InputError(
            f"--target-modules {' '.join(config.target_modules)}: {type(model).__name__} has none of these. Use all-linear."
        ) from None
