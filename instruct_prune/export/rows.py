"""The kept rows, exactly as they came, in input order."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def line_of(raw: bytes | Mapping[str, Any]) -> bytes:
    """One JSONL line without its newline: the row's own bytes, or its object as JSON (same keys, order, values)."""
    if isinstance(raw, bytes):
        return raw
    return json.dumps(raw, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")


def write_pruned(rows: Iterable[tuple[int, bytes | Mapping[str, Any]]], target: Path) -> int:
    """Write the kept rows as JSONL, streamed, under a temporary name until complete; return how many."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.tmp")
    written = 0
    with open(temporary, "wb") as file:
        for _, raw in rows:
            file.write(line_of(raw) + b"\n")
            written += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, target)
    return written
