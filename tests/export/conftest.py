"""Jobs over small files, read and stored by the rows room as in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from stored import kept_of

from instruct_prune.encode.tokenize import Writing
from instruct_prune.export import ExportJob
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row


def unused(row: Row) -> list[tuple[str, bool]]:
    raise AssertionError("this format renders no rows")


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., ExportJob]:
    """A job over data files that keeps the given row ids (all rows when none are given)."""

    def make(*data: Path | str, keep: Sequence[int] | None = None, **options: Any) -> ExportJob:
        source = open_data([str(each) for each in data])
        said = {"template": "alpaca", "max_length": 256, "turns": "all", "render": unused, "bos": "", "eos": ""}
        said |= {name: options.pop(name) for name in said if name in options}
        settings: dict[str, Any] = {"folder": tmp_path / "exports", "name": "pruned set", "model": "owner/base"}
        settings |= {"kind": source.kind, "writing": Writing(**said)}
        return ExportJob(kept_of(tmp_path / "stored", source, keep), **(settings | options))

    return make
