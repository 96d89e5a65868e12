"""The kept rows, exactly as they came, in input order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instruct_prune.datatypes import Int64, Reject, Sample
from instruct_prune.errors import InputError


def line_of(raw: bytes | Mapping[str, Any]) -> bytes:
    """One JSONL line without its newline: the row's own bytes, or its object as JSON (same keys, order, values)."""
    if isinstance(raw, bytes):
        return raw
    return json.dumps(raw, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def write_pruned(rows: Iterable[Sample | Reject], kept: Int64, target: Path) -> int:
    """Stream the data once more and write the rows whose ids are in ``kept``.

    Args:
        rows: the source, in input order.
        kept: int64, ascending row ids.
        target: ``pruned.jsonl``.

    Returns:
        Number of rows written.

    Raises:
        InputError: the source no longer has a kept row.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    written = 0
    with open(temporary, "wb") as file:
        for row in rows:
            if written == len(kept):
                break
            if row.row_id == kept[written] and isinstance(row, Sample):
                file.write(line_of(row.raw) + b"\n")
                written += 1
        file.flush()
        os.fsync(file.fileno())
    if written != len(kept):
        temporary.unlink()
        raise InputError(f"row {int(kept[written])} was kept but is no longer in the data: the input has changed since it was scored.")
    os.replace(temporary, target)
    return written
