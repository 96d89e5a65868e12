"""The jobs of the export room, for rows that go out and come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instruct_prune.export import ExportJob, KeptSamples
from instruct_prune.rows import open_data


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[[Path], ExportJob]:
    """A job over all rows of a data file."""

    def make(data: Path) -> ExportJob:
        source = open_data([str(data)])
        kept = KeptSamples(source, np.arange(1000))
        settings: dict[str, Any] = {"template": "alpaca", "model": "owner/base", "max_length": 256}
        return ExportJob(kept, tmp_path / "exports", "pruned", kind=source.kind, **settings)

    return make
