"""The pruned file in the input's own format holds the kept rows, value for value."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import kept_of

from instruct_prune.errors import InputError
from instruct_prune.export import tables
from instruct_prune.export.own_format import write_own_format, write_pruned
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Row

KEEP = [0, 2, 3]
ROWS = [
    {"instruction": "a", "input": "", "output": "NA"},
    {"instruction": "b", "input": "x", "output": "dropped"},
    {"instruction": 'c "quoted", comma; semicolon\ttab', "input": "two\nlines\r\nand \r alone", "output": "00705"},
    {"instruction": "d \u2028 line separator, emoji \U0001f600", "input": " ", "output": "null"},
]


def own(folder: Path, *data: Path | str, keep: list[int] | None = None, **options: Any) -> list[Path]:
    source = open_data([str(each) for each in data], split=options.get("split"))
    kept = kept_of(folder.with_name(f"{folder.name}-stored"), source, KEEP if keep is None else keep)
    return write_own_format(kept, source.kind, folder, **options)


def csv_text(path: Path, delimiter: str, rows: list[dict[str, str]] = ROWS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_csv(path: Path, delimiter: str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter=delimiter, strict=True))


def test_jsonl_and_mixed_inputs_are_left_to_pruned_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert own(tmp_path / "out", path) == []


@pytest.mark.parametrize("indent", [None, 2])
def test_json_array_keeps_values_and_the_order_of_keys(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "a.json"
    text = json.dumps([{**row, "z": 1, "a": 2} for row in ROWS], indent=indent, ensure_ascii=False)
    path.write_text(text.replace('"z": 1', '"z": 123456789012345678901234567890'), encoding="utf-8")
    (written,) = own(tmp_path / "out", path)
    assert written.name == "pruned.json"
    assert json.loads(written.read_text()) == [json.loads(path.read_text())[i] for i in KEEP]
    assert list(json.loads(written.read_text())[0]) == ["instruction", "input", "output", "z", "a"]


def test_compressed_json_comes_out_plain(tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json.dumps(ROWS).encode()))
    (written,) = own(tmp_path / "out", path)
    assert json.loads(written.read_text()) == [ROWS[i] for i in KEEP]


@pytest.mark.parametrize(
    ("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")], ids=["comma", "semicolon", "tab"]
)
def test_delimited_text_stays_text(tmp_path: Path, name: str, delimiter: str) -> None:
    path = csv_text(tmp_path / name, delimiter)
    (written,) = own(tmp_path / "out", path)
    assert written.name == f"pruned{path.suffix}"
    assert read_csv(written, delimiter) == [ROWS[i] for i in KEEP]


def test_compressed_semicolon_csv(tmp_path: Path) -> None:
    plain = csv_text(tmp_path / "a.csv", ";")
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    (written,) = own(tmp_path / "out", packed)
    assert read_csv(written, ";") == [ROWS[i] for i in KEEP]


def test_several_inputs_give_one_file_each_and_replace_those_of_another_selection(tmp_path: Path) -> None:
    first = csv_text(tmp_path / "first.csv", ",")
    second = csv_text(tmp_path / "second.csv", ",", [{"prompt": str(i), "completion": "y"} for i in range(3)])
    out = tmp_path / "out"
    assert [p.name for p in own(out, first, second, keep=[1, 4, 6])] == ["pruned-01-first.csv", "pruned-02-second.csv"]
    assert read_csv(out / "pruned-02-second.csv", ",") == [{"prompt": str(i), "completion": "y"} for i in (0, 2)]
    assert [p.name for p in own(out, first, second, keep=[2])] == ["pruned.csv"]
    assert sorted(p.name for p in out.iterdir()) == ["pruned.csv"]


def typed_table() -> pa.Table:
    return pa.table(
        {
            "instruction": pa.array([row["instruction"] for row in ROWS], pa.large_string()),
            "output": [row["output"] for row in ROWS],
            "n": pa.array([1, None, 3, 4], pa.int16()),
            "when": pa.array([datetime.datetime(2024, 1, i + 1) for i in range(4)], pa.timestamp("ns", "UTC")),
            "kind": pa.array(["x", "y", "x", None]).dictionary_encode(),
            "tags": [[{"a": 1}], [], None, [{"a": None}]],
        }
    )


def test_parquet_keeps_its_schema(tmp_path: Path) -> None:
    table = typed_table().replace_schema_metadata({"who": "me"})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    (written,) = own(tmp_path / "out", tmp_path / "a.parquet")
    source, back = pq.read_table(tmp_path / "a.parquet"), pq.read_table(written)
    assert back.schema.equals(source.schema, check_metadata=True)
    assert back.equals(source.take(KEEP))


@pytest.mark.parametrize("container", ["stream", "file"])
def test_arrow_files(tmp_path: Path, container: str) -> None:
    table = typed_table()
    path = tmp_path / "a.arrow"
    with getattr(pa.ipc, f"new_{container}")(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)
    (written,) = own(tmp_path / "out", path)
    with pa.memory_map(str(written)) as source:
        assert pa.ipc.open_stream(source).read_all().equals(table.take(KEEP))


def test_saved_dataset_keeps_its_features_and_takes_the_split(tmp_path: Path) -> None:
    features = datasets.Features(
        {
            "instruction": datasets.Value("string"),
            "output": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )
    rows = {"instruction": list("abcd"), "output": list("wxyz"), "label": [0, 1, 1, 0]}
    test = datasets.Dataset.from_dict(rows, features=features)
    other = datasets.Dataset.from_dict({**rows, "output": list("0000")}, features=features)
    datasets.DatasetDict(train=other, test=test).save_to_disk(str(tmp_path / "saved"))
    (written,) = own(tmp_path / "out", tmp_path / "saved", split="test")
    back = datasets.load_from_disk(str(written))
    assert back.features == features
    assert back.to_dict() == {name: [values[i] for i in KEEP] for name, values in rows.items()}


def test_the_same_selection_gives_the_same_bytes(tmp_path: Path) -> None:
    pq.write_table(typed_table(), tmp_path / "a.parquet")
    datasets.Dataset(typed_table().drop_columns(["kind"])).save_to_disk(str(tmp_path / "saved"))
    for name in ("a.parquet", "saved"):
        first, second = (own(tmp_path / f"{name}-{i}", tmp_path / name)[0] for i in (1, 2))
        files = [first] if first.is_file() else sorted(p for p in first.iterdir())
        for file in files:
            twin = second if first.is_file() else second / file.name
            assert file.read_bytes() == twin.read_bytes(), file.name


def test_pictures_of_a_table_stand_in_the_lines_and_are_read_from_there(tmp_path: Path) -> None:
    import io

    from PIL import Image

    pictures = []
    for shade, kind in ((10, "PNG"), (20, "JPEG"), (30, "TIFF")):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(held := io.BytesIO(), kind)
        pictures.append(held.getvalue())
    says = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    rows = [{"image": {"bytes": data, "path": None}, "messages": says, "key": b"\x00\xff"} for data in pictures]
    source = open_data(rows)
    kept = kept_of(tmp_path / "stored", source)
    assert [row.raw for row in kept] == rows
    held_once = (tmp_path / "stored" / "pictures.bin").read_bytes()
    assert [held_once.count(data) for data in pictures] == [1, 1, 1]
    write_pruned(kept.table.raw(kept.row_id), tmp_path / "pruned.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "pruned.jsonl").read_text().splitlines()]
    assert [line["image"]["bytes"].split(",")[0] for line in lines] == [
        "data:image/png;base64", "data:image/jpeg;base64", "data:image/tiff;base64",
    ]  # fmt: skip
    assert lines[0]["key"] == "data:application/octet-stream;base64,AP8="
    again = open_data([str(tmp_path / "pruned.jsonl")])
    assert [row.messages[0].images[0].read() for row in again if isinstance(row, Row)] == pictures


def test_rows_made_in_python_with_pictures_become_tables(tmp_path: Path) -> None:
    from PIL import Image

    says = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    shades = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 20, 30)]
    rows = [{"image": shade, "messages": says, "n": np.int64(i), "v": np.arange(2)} for i, shade in enumerate(shades)]
    source = open_data(rows)
    assert source.model_kind == "vision_language"
    assert source.identity() == open_data([{**row, "image": row["image"].copy()} for row in rows]).identity()
    kept = kept_of(tmp_path / "stored", source)
    table = tables.inferred(kept)
    features = datasets.Features.from_arrow_schema(table.schema)
    assert features["image"] == datasets.Image()
    made = datasets.Dataset(pa.concat_tables(table.chunks()).cast(features.arrow_schema))
    assert [row["image"].getpixel((0, 0)) for row in made] == [(10, 0, 0), (20, 0, 0), (30, 0, 0)]
    assert [(row["n"], row["v"]) for row in made] == [(i, [0, 1]) for i in range(3)]


@pytest.mark.parametrize("held", [b"\xff", b"\xc0\x80"])
def test_bytes_among_values_of_other_types_are_refused_in_words(tmp_path: Path, held: bytes) -> None:
    rows = [{"instruction": "q", "output": "a", "odd": odd} for odd in ({"a": 1}, held)]
    kept = kept_of(tmp_path / "stored", open_data(rows))
    with pytest.raises(
        InputError, match=r"holds bytes beside nulls or values of other types|holds values of different types"
    ):
        list(tables.inferred(kept).chunks())


def test_pictures_of_pillow_that_cannot_be_used_are_rejected(tmp_path: Path) -> None:
    import io

    from PIL import Image

    from instruct_prune.rows.row import Reject

    Image.new("RGB", (64, 64), (9, 9, 9)).save(held := io.BytesIO(), "PNG")
    torn = Image.open(io.BytesIO(held.getvalue()[:60]))
    says = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "Red."}]
    colours = [Image.new(mode, (8, 8)) for mode in ("RGB", "CMYK", "HSV", "P", "F")]
    rows = [{"image": image, "messages": says} for image in (*colours, torn)]
    source = open_data(rows)
    assert source.identity() == open_data(rows).identity() != open_data(rows[1:]).identity()
    found = list(source)
    assert [type(row) for row in found] == [Row] * 5 + [Reject]
    assert found[-1].reason.startswith("a picture cannot be read")  # type: ignore[union-attr]


def test_sounds_are_no_pictures(tmp_path: Path) -> None:
    rows = [{"instruction": "q", "output": "a", "audio": {"bytes": b"RIFF....WAVEfmt ", "path": "a.wav"}}] * 2
    table = tables.inferred(kept_of(tmp_path / "stored", open_data(rows)))
    assert datasets.Features.from_arrow_schema(table.schema)["audio"] == {
        "bytes": datasets.Value("binary"), "path": datasets.Value("string"),
    }  # fmt: skip


def test_a_picture_by_its_path_beside_pictures_in_bytes(tmp_path: Path) -> None:
    import io

    from PIL import Image

    Image.new("RGB", (8, 8)).save(held := io.BytesIO(), "PNG")
    (tmp_path / "p.png").write_bytes(held.getvalue())
    pictures = [{"bytes": held.getvalue(), "path": None}, {"bytes": None, "path": str(tmp_path / "p.png")}]
    rows = [{"instruction": "q", "output": "a", "shot": shot} for shot in pictures]
    kept = kept_of(tmp_path / "stored", open_data(rows, columns={"instruction": "instruction", "output": "output"}))
    table = tables.inferred(kept)
    made = datasets.Dataset(pa.concat_tables(table.chunks()))
    assert [row["shot"].size for row in made] == [(8, 8), (8, 8)]
