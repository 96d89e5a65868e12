"""Jobs over small files, read, stored and encoded by the other rooms as in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stored import kept_of

from instruct_prune.encode.rendering import Writing
from instruct_prune.encode.store import write_store
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.export import ExportJob
from instruct_prune.export.job import KeptTokens
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row


def unused(row: Row) -> list[tuple[str, bool]]:
    raise AssertionError("this format renders no rows")


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., ExportJob]:
    """A job over data files that keeps the given row ids (all rows when none are given).

    With an ``encoder`` the job has its text and its tokens; without one, ``template`` and the like say how rows are
    written, and nothing renders them.
    """

    def make(
        *data: Path | str, keep: Sequence[int] | None = None, encoder: Encoder | None = None, **options: Any
    ) -> ExportJob:
        source = open_data([str(each) for each in data], columns=options.get("columns"))
        kept = kept_of(tmp_path / "stored", source, keep)
        said = {"template": "alpaca", "max_length": 256, "turns": "all", "render": unused, "bos": "", "eos": ""}
        said |= {name: options.pop(name) for name in said if name in options}
        settings: dict[str, Any] = {"folder": tmp_path / "exports", "name": "pruned set", "model": "owner/base"}
        settings |= {"kind": source.kind, "format": source.format, "writing": Writing(**said)}
        if encoder is not None:
            rows = list(kept.table)
            encoded = zip(encoder.encode(rows), rows, strict=True)
            store = write_store(tmp_path / "items", ((each, row.source, row.line) for each, row in encoded))
            settings |= {"writing": encoder.writing, "tokens": KeptTokens(store, kept.row_id)}
        return ExportJob(kept, **(settings | options))

    return make
