"""Find the part of an instruction-tuning dataset worth training on, without training."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0.dev0"

_HOMES = {
    "api": "Run",
    "config": "DataConfig EmbedConfig EncodeConfig ExportConfig ScoreConfig SelectConfig TargetConfig",
    "encode.item": "Encoded LabelledImage Tokens",
    "encode.tokenize": "Encoder",
    "errors": "IncompleteRunError InputError",
    "export.job": "CannotExpressError ExportJob Exported",
    "measure.probes": "Probe",
    "measure.subnet": "SubnetSpec",
    "measure.subnets": "subnet",
    "models.model": "Model States",
    "prove.config": "ProveConfig",
    "prove.statistics": "verdicts",
    "rows.formats": "Fields Format",
    "rows.reader": "RowError",
    "rows.row": "ImageRef Message Part Reject Row",
    "run.own_facts": "RunFacts",
    "score.columns": "Columns",
    "score.scores": "aggregate",
    "score.table": "ScoreTable",
    "select": "build_pool resolve_budget select_rows",
    "select.data": "Budget Pool Selection",
    "select.methods": "method",
    "select.stratum": "Codes Stratum",
}
"""{module: its public names}."""
_PUBLIC = {name: (module, name) for module, names in _HOMES.items() for name in names.split()} | {
    "load_data": ("rows", "open_data"),
    "score_rule": ("score.scores", "score"),  # not "score", which is the room once something of it is imported
}
"""{public name: (module, its name there)}."""

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import instruct_prune` stays instant (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'instruct_prune' has no attribute {name!r}")
    import importlib

    module, attribute = _PUBLIC[name]
    return getattr(importlib.import_module(f"instruct_prune.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
