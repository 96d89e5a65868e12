"""Kept rows as the export stage has them: read once, stored, taken from the table."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from instruct_prune.rows.source import Source
from instruct_prune.rows.table import RowTable, write_rows
from instruct_prune.run.export import Kept


def kept_of(folder: Path, source: Source, keep: Sequence[int] | None = None) -> Kept:
    """The rows of these ids that could be read (all of them when none are given)."""
    shutil.rmtree(folder, ignore_errors=True)
    table: RowTable = write_rows(folder, source)
    wanted = table.row_id if keep is None else table.row_id[np.isin(table.row_id, keep)]
    return Kept(table, wanted)
