"""Find the part of an instruction-tuning dataset worth training on, without training."""

from __future__ import annotations

from typing import Any

__version__ = "0.2.0.dev0"

_PUBLIC: dict[str, str] = {
    "Budget": "instruct_prune.select.data:Budget",
    "CannotExpressError": "instruct_prune.export.job:CannotExpressError",
    "Codes": "instruct_prune.select.stratum:Codes",
    "Columns": "instruct_prune.score.columns:Columns",
    "DataConfig": "instruct_prune.config:DataConfig",
    "EmbedConfig": "instruct_prune.config:EmbedConfig",
    "EncodeConfig": "instruct_prune.config:EncodeConfig",
    "Encoded": "instruct_prune.encode.item:Encoded",
    "Encoder": "instruct_prune.encode.tokenize:Encoder",
    "ExportConfig": "instruct_prune.config:ExportConfig",
    "ExportJob": "instruct_prune.export.job:ExportJob",
    "Exported": "instruct_prune.export.job:Exported",
    "Fields": "instruct_prune.rows.formats:Fields",
    "Format": "instruct_prune.rows.formats:Format",
    "ImageRef": "instruct_prune.rows.row:ImageRef",
    "IncompleteRunError": "instruct_prune.errors:IncompleteRunError",
    "InputError": "instruct_prune.errors:InputError",
    "LabelledImage": "instruct_prune.encode.item:LabelledImage",
    "Message": "instruct_prune.rows.row:Message",
    "Model": "instruct_prune.models.model:Model",
    "Part": "instruct_prune.rows.row:Part",
    "Pool": "instruct_prune.select.data:Pool",
    "Probe": "instruct_prune.measure.probes:Probe",
    "ProveConfig": "instruct_prune.prove.config:ProveConfig",
    "Reject": "instruct_prune.rows.row:Reject",
    "Row": "instruct_prune.rows.row:Row",
    "RowError": "instruct_prune.rows.reader:RowError",
    "Run": "instruct_prune.api:Run",
    "RunFacts": "instruct_prune.run.own_facts:RunFacts",
    "ScoreConfig": "instruct_prune.config:ScoreConfig",
    "ScoreTable": "instruct_prune.score.table:ScoreTable",
    "SelectConfig": "instruct_prune.config:SelectConfig",
    "Selection": "instruct_prune.select.data:Selection",
    "States": "instruct_prune.models.model:States",
    "Stratum": "instruct_prune.select.stratum:Stratum",
    "SubnetSpec": "instruct_prune.measure.subnet:SubnetSpec",
    "TargetConfig": "instruct_prune.config:TargetConfig",
    "Tokens": "instruct_prune.encode.item:Tokens",
    "aggregate": "instruct_prune.score.scores:aggregate",
    "build_pool": "instruct_prune.select:build_pool",
    "load_data": "instruct_prune.rows:open_data",
    "method": "instruct_prune.select.methods:method",
    "resolve_budget": "instruct_prune.select:resolve_budget",
    "score_rule": "instruct_prune.score.scores:score",  # not "score", which is the room once something of it is imported
    "select_rows": "instruct_prune.select:select_rows",
    "subnet": "instruct_prune.measure.subnets:subnet",
    "verdicts": "instruct_prune.prove.statistics:verdicts",
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
