"""Training: what `recipes/lora.py`, the study and adapters for measurements share. Everything here is public.

The names are imported on first use, so that `TrainConfig` and `TrainRow` can be had without waiting for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; what is imported when is said below
    from instruct_prune.train.base import *  # noqa: F403
    from instruct_prune.train.batch import *  # noqa: F403
    from instruct_prune.train.by_tokens import *  # noqa: F403
    from instruct_prune.train.config import *  # noqa: F403
    from instruct_prune.train.folder import *  # noqa: F403
    from instruct_prune.train.images import *  # noqa: F403
    from instruct_prune.train.lora import *  # noqa: F403
    from instruct_prune.train.losses import *  # noqa: F403
    from instruct_prune.train.processes import *  # noqa: F403
    from instruct_prune.train.rows import *  # noqa: F403
    from instruct_prune.train.script import *  # noqa: F403
    from instruct_prune.train.trainer import *  # noqa: F403

_HOMES = {
    "base": "Base find_base",
    "batch": "collate",
    "by_tokens": "Piece steps_of train_by_tokens",
    "config": "TrainConfig step_count",
    "folder": "claim finish",
    "images": "Classifier Pictures accuracy_of decoded_once features_of fine_tune load_backbone load_pictures principal_components "
    "probe_accuracy",
    "lora": "attach_lora",
    "losses": "TokenLosses evaluate evaluate_shared",
    "processes": "compute_device is_main resolved_dtype say world_size",
    "rows": "IGNORED TrainRow pack train_rows",
    "script": "parse run_script",
    "trainer": "TrainResult train",
}
"""{module: its public names}."""
_PUBLIC = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'instruct_prune.train' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"instruct_prune.train.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
