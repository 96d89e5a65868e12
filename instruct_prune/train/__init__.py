"""Training: what `recipes/lora.py`, the study and adapters for measurements share. Everything here is public.

The names are imported on first use, so that a script's `--help` does not wait for torch.
"""

from __future__ import annotations

from typing import Any

_PUBLIC: dict[str, str] = {
    "Base": "base",
    "IGNORED": "rows",
    "TokenLosses": "losses",
    "TrainConfig": "config",
    "TrainResult": "trainer",
    "TrainRow": "rows",
    "attach_lora": "lora",
    "claim": "claim",
    "collate": "collate",
    "evaluate": "losses",
    "evaluate_shared": "losses",
    "find_base": "base",
    "finish": "claim",
    "is_main": "processes",
    "learning_rate_share": "schedule",
    "pack": "rows",
    "parse": "script",
    "run_script": "script",
    "say": "processes",
    "step_count": "config",
    "train": "trainer",
    "train_rows": "rows",
    "training_order": "rows",
    "world_size": "processes",
    "Classifier": "images",
    "Pictures": "images",
    "accuracy_of": "images",
    "features_of": "images",
    "fine_tune": "images",
    "load_backbone": "images",
    "load_pictures": "images",
    "principal_components": "images",
    "probe_accuracy": "images",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'instruct_prune.train' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"instruct_prune.train.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
