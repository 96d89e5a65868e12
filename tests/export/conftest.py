"""Jobs over small files, read by the rows room as in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.encode.tokenize import Writing
from instruct_prune.export import ExportJob
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row


def no_text(row: Row) -> list[tuple[str, bool]]:
    raise AssertionError("this export renders no text")


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., ExportJob]:
    """A job over data files that keeps the given row ids (all rows when none are given)."""

    def make(*data: Path | str, keep: Sequence[int] | None = None, **options: Any) -> ExportJob:
        source = open_data([str(each) for each in data])
        kept = [row for row in source if isinstance(row, Row) and (keep is None or row.row_id in keep)]
        how = {"template": "alpaca", "max_length": 256, "turns": "all", "render": no_text}
        how |= {name: options.pop(name) for name in (*how, "bos", "eos") if name in options}
        settings = {"folder": tmp_path / "exports", "name": "pruned set", "model": "owner/base", "kind": source.kind}
        return ExportJob(kept, writing=Writing(**how), **(settings | options))  # type: ignore[arg-type]

    return make
