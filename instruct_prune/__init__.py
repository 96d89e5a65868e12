"""Find the part of an instruction-tuning dataset worth training on, without training."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_PUBLIC: dict[str, str] = {
    "DataConfig": "instruct_prune.config:DataConfig",
    "EmbedConfig": "instruct_prune.config:EmbedConfig",
    "EncodeConfig": "instruct_prune.config:EncodeConfig",
    "ExportConfig": "instruct_prune.config:ExportConfig",
    "IncompleteRunError": "instruct_prune.errors:IncompleteRunError",
    "Probe": "instruct_prune.measure.probes:Probe",
    "Run": "instruct_prune.api:Run",
    "ScoreConfig": "instruct_prune.config:ScoreConfig",
    "SelectConfig": "instruct_prune.config:SelectConfig",
    "load_data": "instruct_prune.rows:open_data",
    "select_rows": "instruct_prune.select:select_rows",
    "subnet": "instruct_prune.measure.subnets:subnet",
    "InputError": "instruct_prune.errors:InputError",
    "Row": "instruct_prune.rows.row:Row",
    "Message": "instruct_prune.rows.row:Message",
    "ScoreTable": "instruct_prune.score.table:ScoreTable",
    "Selection": "instruct_prune.select.data:Selection",
    "SubnetSpec": "instruct_prune.measure.subnet:SubnetSpec",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import instruct_prune` stays instant (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'instruct_prune' has no attribute {name!r}")
    import importlib

    module, attribute = _PUBLIC[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
