"""Adapters as PEFT makes and saves them, with matrices that change something."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_adapter(model: Any, folder: Path, seed: int = 0, **options: Any) -> Any:
    """Save an adapter of random matrices; what is returned is PEFT's own model with it.

    Args:
        model: a transformers causal language model, which carries the adapter from now on: give a copy.
        folder: where to.
        seed: of the matrices.
        options: of LoraConfig.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    wanted = {"r": 2, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    wrapped = get_peft_model(model, LoraConfig(**wanted)).eval()
    for name, weight in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.05)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return wrapped
