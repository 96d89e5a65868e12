"""Rows that tests score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOPICS = ("rivers", "the number seven", "old trains", "bread", "a Python list", "the moon", "tax law", "chess openings")


def alpaca_rows(n: int) -> list[dict[str, str]]:
    """n rows of varied length, some with an input, all different."""
    rows = []
    for i in range(n):
        topic = TOPICS[i % len(TOPICS)]
        words = " ".join(f"{topic} {j * (i + 3) % 17}" for j in range(1 + i * 7 % 23))
        rows.append(
            {
                "instruction": f"Tell me about {topic}, case {i}.",
                "input": f"Consider part {i % 5}." if i % 3 == 0 else "",
                "output": f"About {words}: it is number {i}.",
            }
        )
    return rows


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
