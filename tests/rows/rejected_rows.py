"""The rows that a table lists as rejected, read back."""

from __future__ import annotations

import json

from instruct_prune.rows.row import Reject
from instruct_prune.rows.table import RowTable


def rejects_of(table: RowTable) -> list[Reject]:
    """In input order."""
    lines = (table.folder / "rejects.jsonl").read_text(encoding="utf-8").splitlines()
    return [Reject(source=entry.pop("file"), **entry) for entry in map(json.loads, lines)]
