"""Jobs over small files, read by the load room as in a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instruct_prune.export import ExportJob, KeptSamples
from instruct_prune.rows import open_data


@pytest.fixture
def job_of(tmp_path: Path) -> Callable[..., ExportJob]:
    """A job over data files that keeps the given row ids (all rows when none are given)."""

    def make(*data: Path | str, keep: Sequence[int] | None = None, **options: Any) -> ExportJob:
        source = open_data([str(each) for each in data])
        ids = list(range(1000)) if keep is None else list(keep)
        settings = {"folder": tmp_path / "exports", "name": "pruned set", "template": "alpaca", "model": "owner/base"}
        settings |= {"max_length": 256, "kind": source.kind}
        return ExportJob(KeptSamples(source, np.asarray(ids, dtype=np.int64)), **(settings | options))

    return make
