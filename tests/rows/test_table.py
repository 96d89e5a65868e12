"""The stored table: what was read comes back, equal, in order, and the input is opened no more."""

from __future__ import annotations

import builtins
import datetime
import decimal
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rejected_rows import rejects_of

from instruct_prune.errors import InputError
from instruct_prune.rows import RowTable, open_data, write_rows
from instruct_prune.rows.exact import dumps, loads
from instruct_prune.rows.row import Reject, Row

ROWS = [{"instruction": f"do {i}", "output": f"é\u2028 {i}", "kind": "ab"[i % 2], "none": None} for i in range(60)]


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + "\n" for r in rows))
    return str(path)


def ids(*wanted: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.asarray(wanted, dtype=np.int64)


def stored(tmp_path: Path, *data: Any, **options: Any) -> RowTable:
    given_data = data[0] if len(data) == 1 and not isinstance(data[0], str | Path) else [str(each) for each in data]
    write_rows(tmp_path / "rows", open_data(given_data, **options))
    return RowTable.open(tmp_path / "rows")


def test_jsonl_is_opened_twice_and_hashed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines(tmp_path / "x.jsonl", ROWS)
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(
        builtins, "open", lambda name, *more, **o: (opened.append(str(name)), real(name, *more, **o))[1]
    )
    monkeypatch.setattr(io, "open", builtins.open)  # what pathlib calls
    source = open_data([path])
    table = write_rows(tmp_path / "rows", source)
    [entry] = source.identity()
    assert table.facts.identity == (entry,)
    assert table.facts.changed() == []
    list(table), list(table.raw(ids(3)))
    assert opened.count(path) == 2
    data = Path(path).read_bytes()
    assert entry == {"path": path, "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.xz", "x.jsonl.zst", "x.csv", "x.json", "x.parquet", "x.arrow"])
def test_hashes_are_of_the_bytes_on_disk(tmp_path: Path, name: str) -> None:
    import gzip
    import lzma

    import pyarrow as pa
    import pyarrow.parquet as pq

    data = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    plain = [{"instruction": row["instruction"], "output": row["output"]} for row in ROWS]
    packed = {
        "x.jsonl.gz": gzip.compress(data) + gzip.compress(data),
        "x.jsonl.xz": lzma.compress(data),
        "x.jsonl.zst": pa.Codec("zstd").compress(data, asbytes=True),
        "x.csv": ("instruction,output\n" + "q,a\n" * 9 + "\n\n").encode(),
        "x.json": json.dumps(ROWS).encode() + b"\n\n",
    }
    path = tmp_path / name
    if name in packed:
        path.write_bytes(packed[name])
    elif name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(plain), path)
    else:
        with pa.ipc.new_file(str(path), pa.Table.from_pylist(plain).schema) as out:
            out.write_table(pa.Table.from_pylist(plain))
    source = open_data([str(path)])
    table = write_rows(tmp_path / "rows", source)
    path_now = path.rename(tmp_path / "away")  # identity must not look at it again
    [entry] = source.identity()
    assert entry["sha256"] == hashlib.sha256(path_now.read_bytes()).hexdigest()
    assert entry["bytes"] == path_now.stat().st_size
    assert list(table) == [row for row in open_data([str(path_now)]) if isinstance(row, Row)] or len(table) > 0


def test_rows_rejects_and_counts(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [ROWS[0], "broken", "", ROWS[1], {"instruction": "q"}, ROWS[2]])
    told: list[int] = []
    source = open_data([path])
    table = write_rows(tmp_path / "rows", source, told.append)
    assert (table.facts.read, table.facts.rejected, len(table), sum(told)) == (5, 2, 3, 5)
    assert table.row_id.tolist() == [0, 2, 4]
    read = list(source)
    assert list(table) == [row for row in read if isinstance(row, Row)]
    assert rejects_of(table) == [row for row in read if isinstance(row, Reject)]
    first = json.loads((tmp_path / "rows" / "rejects.jsonl").read_text().splitlines()[0])
    assert list(first) == ["file", "line", "row_id", "status", "field", "reason"]
    assert (first["file"], first["line"], first["status"]) == (path, 2, "rejected")
    assert [row.row_id for row in table.take(ids(2, 4))] == [2, 4]
    assert list(table.take(ids())) == []
    raw = Path(path).read_bytes().split(b"\n")
    assert list(table.raw(ids(0, 4))) == [(0, raw[0]), (4, raw[5])]
    with pytest.raises(InputError, match="lacks row 1"):
        list(table.raw(ids(1, 2)))
    assert (table.facts.format, table.facts.kind, table.facts.model_kind) == ("alpaca", "jsonl", "causal_lm")


def test_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import instruct_prune.rows.stored as module

    monkeypatch.setattr(module, "BATCH_ROWS", 7)
    table = stored(tmp_path, lines(tmp_path / "x.jsonl", ROWS))
    assert [row.row_id for row in table.take(ids(6, 7, 13, 59))] == [6, 7, 13, 59]
    assert [row.columns["kind"] for row in table] == [row["kind"] for row in ROWS]


def test_a_table_that_was_not_finished_is_none(tmp_path: Path) -> None:
    path = lines(tmp_path / "x.jsonl", [*ROWS, "broken"])
    stored(tmp_path, lines(tmp_path / "y.jsonl", ROWS))
    with pytest.raises(InputError, match="without --strict"):
        write_rows(tmp_path / "rows", open_data([path], strict=True))
    with pytest.raises(InputError, match="not read to the end"):
        RowTable.open(tmp_path / "rows")
    assert not [p for p in (tmp_path / "rows").iterdir() if p.name.endswith(".tmp")]


def test_changed_files_are_named(tmp_path: Path) -> None:
    first, second = (lines(tmp_path / name, ROWS) for name in ("a.jsonl", "b.jsonl"))
    facts = stored(tmp_path, first, second).facts
    os.utime(first)  # another time, the same bytes
    assert facts.changed() == []
    Path(second).write_bytes(Path(second).read_bytes().replace(b"do 59", b"do 58"))
    assert facts.changed() == [second]
    with pytest.raises(InputError, match=r"b\.jsonl: the data changed"):
        facts.require_unchanged()
    Path(second).unlink()
    assert facts.changed() == [second]


def png(shade: int) -> bytes:
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(out, "PNG")
    return out.getvalue()


def test_changed_pictures_are_noticed(tmp_path: Path) -> None:
    for name in ("a/1", "b/2"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / f"{name}.png").write_bytes(png(3))
    listing = tmp_path / "list.csv"
    listing.write_text("path,label\ntree/a/1.png,x\ntree/b/2.png,y\n")
    tables = [stored(tmp_path / kind, data) for kind, data in (("t", tmp_path / "tree"), ("l", listing))]
    assert [table.facts.changed() for table in tables] == [[], []]
    (tmp_path / "tree/a/1.png").write_bytes(b"another size")
    assert [table.facts.changed() for table in tables] == [[str(tmp_path / "tree")], ["files that are listed"]]


def test_pictures_of_tables_are_stored_once_and_come_back(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    pictures = [{"bytes": png(i), "path": None} for i in range(3)]
    made = datasets.Dataset.from_dict({"image": pictures, "label": [1, 0, 1]}, features=features)
    made.to_parquet(str(tmp_path / "x.parquet"))
    table = stored(tmp_path, tmp_path / "x.parquet")
    assert list(table) == list(open_data([str(tmp_path / "x.parquet")]))
    assert [row.messages[0].images[0].data for row in table] == [png(i) for i in range(3)]
    assert [raw for _, raw in table.raw(table.row_id)] == [
        {"path": f"row-{i}", "label": label} for i, label in enumerate(["bee", "ant", "bee"])
    ]
    held = sum((tmp_path / "rows" / name).read_bytes().count(png(1)) for name in ("rows.arrow", "pictures.bin"))
    assert held == 1
    assert table.facts.model_kind == "image_encoder"


def test_rows_beside_pictures_are_stored_whole(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"instruction": f"q{i}", "output": "a", "image": {"bytes": png(i), "path": None}} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert all(isinstance(row, Reject) and row.field == "image" for row in open_data([str(tmp_path / "x.parquet")]))
    table = stored(tmp_path, tmp_path / "x.parquet", columns={"instruction": "instruction", "output": "output"})
    assert "without its pictures (image)" in table.facts.description
    (tmp_path / "x.parquet").unlink()
    assert [(row.columns, row.raw) for row in table] == [({}, row) for row in rows]
    assert list(table.raw(ids(0, 2))) == [(0, rows[0]), (2, rows[2])]


def test_rows_in_memory(tmp_path: Path) -> None:
    import datasets

    table = stored(tmp_path / "list", ROWS)
    assert (table.facts.kind, table.facts.files) == ("memory", ("rows in memory",))
    assert [raw for _, raw in table.raw(table.row_id)] == ROWS
    again = open_data(datasets.Dataset.from_list(ROWS))
    assert again.kind == "memory"
    assert [row.messages for row in again if isinstance(row, Row)] == [row.messages for row in table]
    same, other = open_data([dict(row) for row in ROWS]), open_data(ROWS[1:])
    assert same.identity() == open_data(ROWS).identity() != other.identity()
    other_set = open_data(datasets.Dataset.from_list(ROWS[1:]))
    assert again.identity() == open_data(datasets.Dataset.from_list(ROWS)).identity() != other_set.identity()
    odd: list[Any] = [ROWS[0], "no row", {"instruction": "\ud83d", "output": "a"}, {1: 2}]
    assert [type(row).__name__ for row in open_data(odd)] == ["Row", "Reject", "Reject", "Reject"]


# ---- anything that a row can hold ----

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), text, st.binary(max_size=5), st.dates(),
    st.datetimes(), st.times(), st.timedeltas(), st.decimals(allow_nan=False),
    st.sampled_from(["{\"$", '{"$bytes":', "$bytes"]),
)  # fmt: skip
keys = st.one_of(text, st.sampled_from(["$bytes", "$object", "$date"]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@given(values)
def test_exact_json_gives_back_what_went_in(value: Any) -> None:
    back = loads(dumps(value))
    assert back == value
    assert repr(back) == repr(value).replace(", fold=1", "")  # 1 is not True, and 1.0 not 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
)
turns = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": text},
        optional={
            "weight": st.sampled_from([0, 1]),
            "tool_calls": st.lists(
                st.builds(
                    lambda name, arguments: {"type": "function", "function": {"name": name, "arguments": arguments}},
                    text,
                    st.dictionaries(text, json_values, max_size=2),
                ),
                max_size=2,
            ),
        },
    ),
    min_size=1,
    max_size=4,
)
samples = st.fixed_dictionaries(
    {"messages": turns},
    optional={"tools": st.lists(st.dictionaries(text, json_values, max_size=2), max_size=2), "more": json_values},
)


@given(st.lists(samples, min_size=1, max_size=4))
def test_rows_come_back_equal(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    source = open_data([*rows, ROWS[0]], format="messages")
    table = write_rows(folder, source)
    read = list(source)
    assert list(RowTable.open(folder)) == [row for row in read if isinstance(row, Row)]
    assert rejects_of(table) == [row for row in read if isinstance(row, Reject)]
    assert len(read) == len(rows) + 1


def test_values_that_json_has_not(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "output": "a", "when": datetime.datetime(2024, 1, 2), "cost": decimal.Decimal("1.10")},
        {"instruction": "q", "output": "a", "pair": (1, [2])},
    ]
    table = stored(tmp_path, rows)
    first, second = table
    assert first.columns == {"when": datetime.datetime(2024, 1, 2), "cost": decimal.Decimal("1.10")}
    assert second.columns == {"pair": [1, [2]]}
    assert first.raw == rows[0]


def test_an_object_with_a_key_of_the_store_is_told_from_bytes(tmp_path: Path) -> None:
    rows = [
        {"instruction": "q", "output": "a", "odd": {name: value}, "data": b"x"}
        for name, value in (("$held", [0, 1]), ("$bytes", "eA=="), ("$object", [["k", 1]]), ("$held", {"$held": b"y"}))
    ]
    assert [raw for _, raw in stored(tmp_path, rows).raw(ids(0, 1, 2, 3))] == rows
