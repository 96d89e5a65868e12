"""Items as JSON on disk: what was made comes back, and what cannot be made is told."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.encode.json_items import ROWS_PER_GROUP, JsonItems, write_json_items
from instruct_prune.errors import InputError
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message, Row


def rows(n: int) -> list[Row]:
    return [Row(i, (Message("text", f"é{i}"),), "data.jsonl", i + 1, b"{}") for i in range(n)]


@dataclass
class Lists:
    """Makes items that cost their length, one number of which is scored."""

    item: Callable[[Row], Any]

    def content(self, row: Row, item: Any) -> bytes:
        return row.text.encode()

    def cost(self, item: Any) -> int:
        return len(item)

    def n_response(self, item: Any) -> int:
        return 1


def write(folder: Path, item: Callable[[Row], Any], n: int = 3, strict: bool = False) -> JsonItems:
    counted: list[int] = []
    write_json_items(folder, rows(n), Lists(item), counted.append, strict)
    assert sum(counted) == n
    return JsonItems.open(folder)


def odd(row: Row) -> list[str]:
    if row.row_id == 1:
        raise RowError("one is no odd thing")
    return [row.text] * row.row_id


def test_items_come_back(tmp_path: Path) -> None:
    items = write(tmp_path, odd)
    assert [items[i] for i in range(3)] == [[], None, ["é2", "é2"]]
    assert items.scorable.tolist() == [True, False, True]
    assert items.status_names.tolist() == ["ok", "failed", "ok"]
    assert items.lengths.tolist() == [0, 0, 2]
    assert items.n_response.tolist() == [1, 0, 1]
    hashes, lines, reasons = items.text_columns("content_hash", "line", "reason")
    assert lines == [1, 2, 3]
    assert reasons == ["", "one is no odd thing", ""]
    assert hashes == [
        hashlib.blake2b("é0".encode(), digest_size=16).hexdigest(),
        "",
        hashlib.blake2b("é2".encode(), digest_size=16).hexdigest(),
    ]


def test_more_rows_than_are_written_at_a_time(tmp_path: Path) -> None:
    n = 2 * ROWS_PER_GROUP + 1
    items = write(tmp_path, lambda row: {"id": row.row_id}, n)
    assert [items[i]["id"] for i in range(n)] == list(range(n))


def test_what_is_wrong_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl, line 2: one is no odd thing\. Mend it"):
        write(tmp_path, odd, strict=True)
    with pytest.raises(InputError, match=r"line 1, cannot be written as JSON .*set"):
        write(tmp_path, lambda row: {row.row_id})
    assert list(tmp_path.iterdir()) == []
