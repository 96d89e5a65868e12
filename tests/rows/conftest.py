"""The jobs of the export room, for rows that go out and come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from instruct_prune.export import ExportJob
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[[Path], ExportJob]:
    """A job over all rows of a data file."""

    def make(data: Path) -> ExportJob:
        source = open_data([str(data)])
        rows = [row for row in source if isinstance(row, Row)]
        return ExportJob(rows, tmp_path / "exports", "pruned", "owner/base", None, kind=source.kind)

    return make
