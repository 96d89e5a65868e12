"""Training: what `recipes/lora.py`, the study and adapters for measurements share. Everything here is public.

The names are imported on first use, so that `TrainConfig` and `TrainRow` can be had without waiting for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; what is imported when is said below
    from instruct_prune.train.adapter import train_adapter as train_adapter
    from instruct_prune.train.base import Base as Base
    from instruct_prune.train.base import find_base as find_base
    from instruct_prune.train.batch import collate as collate
    from instruct_prune.train.by_tokens import Piece as Piece
    from instruct_prune.train.by_tokens import steps_of as steps_of
    from instruct_prune.train.by_tokens import train_by_tokens as train_by_tokens
    from instruct_prune.train.config import TrainConfig as TrainConfig
    from instruct_prune.train.config import step_count as step_count
    from instruct_prune.train.folder import claim as claim
    from instruct_prune.train.folder import finish as finish
    from instruct_prune.train.images import Classifier as Classifier
    from instruct_prune.train.images import Pictures as Pictures
    from instruct_prune.train.images import accuracy_of as accuracy_of
    from instruct_prune.train.images import decoded_once as decoded_once
    from instruct_prune.train.images import features_of as features_of
    from instruct_prune.train.images import fine_tune as fine_tune
    from instruct_prune.train.images import load_backbone as load_backbone
    from instruct_prune.train.images import load_pictures as load_pictures
    from instruct_prune.train.images import principal_components as principal_components
    from instruct_prune.train.images import probe_accuracy as probe_accuracy
    from instruct_prune.train.lora import attach_lora as attach_lora
    from instruct_prune.train.losses import TokenLosses as TokenLosses
    from instruct_prune.train.losses import evaluate as evaluate
    from instruct_prune.train.losses import evaluate_shared as evaluate_shared
    from instruct_prune.train.processes import compute_device as compute_device
    from instruct_prune.train.processes import is_main as is_main
    from instruct_prune.train.processes import resolved_dtype as resolved_dtype
    from instruct_prune.train.processes import say as say
    from instruct_prune.train.processes import world_size as world_size
    from instruct_prune.train.rows import IGNORED as IGNORED
    from instruct_prune.train.rows import TrainRow as TrainRow
    from instruct_prune.train.rows import pack as pack
    from instruct_prune.train.rows import train_rows as train_rows
    from instruct_prune.train.script import parse as parse
    from instruct_prune.train.script import run_script as run_script
    from instruct_prune.train.trainer import TrainResult as TrainResult
    from instruct_prune.train.trainer import train as train

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
