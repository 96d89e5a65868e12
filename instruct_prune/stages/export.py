"""Export: the kept rows, exactly as they came."""

from __future__ import annotations

from pathlib import Path

from instruct_prune.config import ExportConfig
from instruct_prune.export.rows import write_pruned
from instruct_prune.load import read_raw
from instruct_prune.run_folder import RunFolder, row_ids_hash, sha256_of
from instruct_prune.stages.encode import source_of


def export(folder: RunFolder, config: ExportConfig) -> Path:
    """``pruned.jsonl``: the kept rows, exactly as they came, in input order."""
    folder.require("select", f"select --out {folder.path} --keep ...")
    selection = folder.read_selection()
    source = source_of(folder)
    target = folder / "pruned.jsonl"
    written = write_pruned(read_raw(source, selection.kept.tolist()), target)
    if written != len(selection.kept):
        raise AssertionError(f"{written} rows were written, {len(selection.kept)} were kept")
    folder.begin("export", {"selected": row_ids_hash(selection.kept), "to": list(config.to)}, restart=True)
    folder.finish("export", rows=written, sha256=sha256_of(target))
    return target
