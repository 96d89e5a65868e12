"""Files of every kind, several at once, standard input, and reading rows again."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.errors import InputError
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Reject, Row

ROWS = [{"instruction": f"do {i}", "input": "NA" if i % 2 else "", "output": f"0070{i}\né\u2028x"} for i in range(700)]


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The rows in every kind of file."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = as_jsonl(ROWS)
    (tmp_path / "x.jsonl").write_bytes(data)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "x.jsonl.xz").write_bytes(lzma.compress(data))
    zstd = pa.Codec("zstd")
    frames = b"".join(zstd.compress(piece, asbytes=True) for piece in (data[:5000], data[5000:]))
    (tmp_path / "x.jsonl.zst").write_bytes(frames)
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    for kind, delimiter in (("csv", ","), ("tsv", "\t")):
        with open(tmp_path / f"x.{kind}", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(ROWS)
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress((tmp_path / "x.csv").read_bytes()))
    table = pa.Table.from_pylist(ROWS)
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as arrow:
        arrow.write_table(table)
    with pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as out, pa.ipc.new_stream(out, table.schema) as arrow:
        arrow.write_table(table)
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(str(tmp_path / "saved"))
    datasets.DatasetDict({"train": saved, "test": saved.select(range(3))}).save_to_disk(str(tmp_path / "splits"))
    return {path.name: str(path) for path in tmp_path.iterdir()}


KINDS = {
    "x.jsonl": "jsonl",
    "x.jsonl.gz": "jsonl",
    "x.jsonl.xz": "jsonl",
    "x.jsonl.zst": "jsonl",
    "x.json": "json",
    "x.csv": "csv",
    "x.csv.gz": "csv",
    "x.tsv": "tsv",
    "x.parquet": "parquet",
    "file.arrow": "arrow",
    "stream.arrow": "arrow",
    "saved": "dataset",
    "splits": "dataset",
}


def test_every_kind_holds_the_same_rows(files: dict[str, str]) -> None:
    assert set(files) == set(KINDS)
    for name, kind in KINDS.items():
        source = open_data([files[name]])
        assert source.kind == kind
        for _ in range(2):  # iterable many times
            rows = [row for row in source if isinstance(row, Row)]
            assert [row.row_id for row in rows] == list(range(700))
            raw = [json.loads(row.raw) if isinstance(row.raw, bytes) else row.raw for row in rows]
            assert raw == ROWS, name
        assert [row.messages[0].context for row in rows[:2]] == ["", "NA"]


def test_identity_is_of_the_files_as_they_lie(files: dict[str, str]) -> None:
    for name in ("x.jsonl.gz", "x.csv", "x.parquet"):
        data = Path(files[name]).read_bytes()
        expected = {"path": files[name], "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
        assert open_data([files[name]]).identity() == [expected]
    [entry] = open_data([files["splits"]], split="test").identity()
    assert entry["path"] == files["splits"] + "/test/data-00000-of-00001.arrow"
    assert open_data([files["x.jsonl"], files["x.csv"]]).identity()[1]["path"] == files["x.csv"]


def test_several_files_keep_their_own_formats(files: dict[str, str], tmp_path: Path) -> None:
    turns = tmp_path / "turns.jsonl"
    turns.write_bytes(
        as_jsonl([{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}])
    )
    source = open_data([files["x.jsonl"], str(turns), files["x.jsonl.gz"]])
    assert (source.format, source.kind) == ("alpaca+messages", "jsonl")
    assert source.files == (files["x.jsonl"], str(turns), files["x.jsonl.gz"])
    rows = list(source)
    assert [row.row_id for row in rows] == list(range(1401))
    assert (rows[700].source, rows[700].line, rows[701].line) == (str(turns), 1, 1)
    assert len(list(open_data([files["x.jsonl"], str(turns)], limit=701))) == 701


def test_globs_are_sorted(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.jsonl").write_bytes(as_jsonl([{"instruction": name, "output": name}]))
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "d.jsonl").write_bytes(as_jsonl([{"instruction": "d", "output": "d"}]))
    source = open_data([f"{tmp_path}/*.jsonl"])
    assert [Path(name).stem for name in source.files] == ["a", "b", "c"]
    assert [Path(name).stem for name in open_data([f"{tmp_path}/**/*.jsonl"]).files] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.zst", "x.json", "x.csv", "x.tsv", "x.parquet", "file.arrow"])
def test_standard_input(files: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = Path(files[name]).read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    source = open_data(["-"])
    assert source.files == ("-",)
    assert len(list(source)) == len(list(source)) == 700
    assert source.identity()[0]["sha256"] == hashlib.sha256(data).hexdigest()


def test_splits(files: dict[str, str]) -> None:
    assert len(list(open_data([files["splits"]]))) == 700  # train
    assert len(list(open_data([files["splits"]], split="test"))) == 3
    with pytest.raises(
        InputError, match=r"no split 'tests'. Did you mean 'test'\? Choose one with --data-split: train, test"
    ):
        open_data([files["splits"]], split="tests")


# ---- text tables ----


def table(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_text_stays_text(tmp_path: Path) -> None:
    path = table(
        tmp_path / "x.csv",
        "instruction,output\nq,None\nq,NA\nq,null\nq,00705\nq,2024-01-01\nq,1e5\nq,True\nq,\nq, padded \n",
    )
    rows = [row for row in open_data([path]) if isinstance(row, Row)]
    said = ["None", "NA", "null", "00705", "2024-01-01", "1e5", "True", "", " padded "]
    assert [row.messages[1].text for row in rows] == said


def test_csv_rows_that_do_not_fit(tmp_path: Path) -> None:
    text = "\n".join(
        ["instruction,output", "q,a", "q", "q,a,b", '"q"x,a', "", '"line\nbreak","say ""hi"""', 'q,"never closed\nq,a']
    )
    rows = list(open_data([table(tmp_path / "x.csv", "\ufeff" + text)]))
    assert [row.row_id for row in rows] == list(range(7))
    kept = [row for row in rows if isinstance(row, Row)]
    assert [row.raw for row in kept] == [
        {"instruction": "q", "output": "a"},
        {"instruction": "line\nbreak", "output": 'say "hi"'},
        {"instruction": "q", "output": "a"},  # the row after the quotation mark that is never closed
    ]
    rejects = [(row.line, row.reason) for row in rows if isinstance(row, Reject)]
    assert [line for line, _ in rejects] == [3, 4, 5, 9]
    assert rejects[0][1] == "the row has 1 fields, the header has 2"
    assert "not CSV" in rejects[2][1]
    assert "unexpected end of data" in rejects[3][1]


def test_csv_encodings_and_headers(tmp_path: Path) -> None:
    text = "instruction,output\nq,a\nüber,a\n"
    rows = list(open_data([table(tmp_path / "x.csv", text.encode("latin-1"))]))
    assert isinstance(rows[1], Reject)
    assert rows[1].field == "instruction"
    assert "WINDOWS-1252" in rows[1].reason
    for data, message in (
        ("frage_ü,output\nq,a\n".encode("latin-1"), "its header cannot be read"),
        (text.encode("utf-16"), "looks like UTF-16LE"),
        (b"instruction,output,output\nq,a,b\n", "two columns are named 'output'"),
        (b"instruction,output\n", "has no rows"),
        (b'"instruction,output\n', "has no header line"),
    ):
        with pytest.raises(InputError, match=message):
            open_data([table(tmp_path / "y.csv", data)])
    semicolons = open_data([table(tmp_path / "z.csv", "instruction;output\nq, or;a\n")])
    assert [row.messages[0].text for row in semicolons if isinstance(row, Row)] == ["q, or"]


def test_a_long_field_is_no_error(tmp_path: Path) -> None:
    [row] = open_data([table(tmp_path / "x.csv", "instruction,output\nq," + "a" * 300_000 + "\n")])
    assert isinstance(row, Row)


# ---- damage and absence ----


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.xz", "x.jsonl.zst", "x.parquet", "file.arrow", "stream.arrow"])
def test_cut_off_files_are_errors(files: dict[str, str], tmp_path: Path, name: str) -> None:
    data = Path(files[name]).read_bytes()
    path = table(tmp_path / f"cut.{name}", data[: len(data) * 2 // 3])
    with pytest.raises(InputError, match=rf"cut\.{name}.*(damaged|cannot be read as)"):
        list(open_data([path]))


def test_absent_files(tmp_path: Path, files: dict[str, str]) -> None:
    for data, message in (
        ([files["x.jsonl"] + "l"], r"does not exist. Did you mean 'x.jsonl'\?"),
        ([f"{tmp_path}/none/x.jsonl"], "there is no folder"),
        ([f"{tmp_path}/*.txt"], "no file matches"),
        ([str(tmp_path)], r"is a folder.*/\*.jsonl"),
        ([], "no data"),
        (["-", "-"], "twice"),
        (["alpaca"], r"does not exist.*owner/name"),
    ):
        with pytest.raises(InputError, match=message):
            open_data(data)


def test_a_hub_id_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked = []

    def fail(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        raise ConnectionError("Couldn't reach 'someone/something' on the Hub\nlong story")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match=r"'someone/something'.*Couldn't reach.*--data-split and --data-subset"):
        open_data(["someone/something"], split="train", subset="en")
    assert asked == [(("someone/something",), {"name": "en", "split": "train"})]  # and no remote code


def test_a_hub_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    splits = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}

    def load(path: str, name: str | None = None, split: str | None = None) -> Any:
        return splits[split] if split else datasets.DatasetDict(splits)

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = open_data(["someone/something"])
    assert (source.kind, source.format, len(list(source))) == ("hub", "alpaca", 700)
    [entry] = source.identity()
    assert (entry["path"], entry["split"]) == ("someone/something", "train")
    assert entry["fingerprint"]
    assert len(list(open_data(["someone/something"], split="test"))) == 2


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "found", "count"),
    [
        ("alpaca_9k", "alpaca", 9229),
        ("dolly_3k", "alpaca", 2996),
        ("gsm8k_7k", "alpaca", 7473),
        ("codealpaca_2k", "alpaca", 2017),
        ("sharegpt_tools_300", "sharegpt", 300),
        ("messages_kto_300", "messages", 300),
    ],
)
def test_real_data(name: str, found: str, count: int) -> None:
    path = SHARED / f"{name}.json"
    if not path.is_file():
        pytest.skip("the real data are not on this machine")
    source = open_data([str(path)])
    rows = [row for row in source if isinstance(row, Row)]
    assert (source.format, len(rows)) == (found, count)
    assert [row.raw for row in rows] == json.loads(path.read_bytes())
