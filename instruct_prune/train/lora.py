"""A fresh LoRA adapter on a base model (arXiv 2106.09685)."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import set_seed

from instruct_prune.errors import InputError
from instruct_prune.train.config import TrainConfig


def _language_layers(model: Any) -> list[str]:
    """Names of the linear layers of the language part of a model that sees; none of a model of text."""
    if model.config.get_text_config() is model.config:
        return []
    decoder = model.get_decoder()
    inside = {id(layer) for layer in decoder.modules() if isinstance(layer, nn.Linear)}
    return [name for name, layer in model.named_modules() if id(layer) in inside]


def attach_lora(model: Any, config: TrainConfig) -> Any:
    """The model with a fresh adapter, the same for the same seed; it changes no output until it is trained.

    ``model.unload()`` of what is returned gives the base model back, as it was.

    Args:
        model: a transformers causal language model, frozen.
        config: rank, alpha, dropout, target modules, seed, gradient checkpointing. "all-linear" is the language part alone.

    Raises:
        InputError: the model has no modules of the names in target_modules.
    """
    set_seed(config.seed)
    targets: str | list[str] = list(config.target_modules)
    if targets == ["all-linear"]:
        targets = _language_layers(model) or "all-linear"
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
