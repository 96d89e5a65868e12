"""The kept rows, exactly as they came, in input order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from instruct_prune.rows.reader import line_of
from instruct_prune.storage import atomic


def write_pruned(rows: Iterable[tuple[int, bytes | Mapping[str, Any]]], target: Path) -> int:
    """Write the kept rows as JSONL, streamed, under a temporary name until complete; return how many."""
    written = 0
    with atomic(target) as file:
        for _, raw in rows:
            file.write(line_of(raw) + b"\n")
            written += 1
    return written
