"""Files that are not what they seem: each is recognised, in words, with what to do."""

from __future__ import annotations

import gzip
import io
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from instruct_prune.errors import InputError
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Reject, Row

zstandard = pytest.importorskip("zstandard")
ROWS = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(40)]
DATA = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("x.jsonl", DATA)
    return out.getvalue()


def tarred() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("x.jsonl")
        info.size = len(DATA)
        archive.addfile(info, io.BytesIO(DATA))
    return out.getvalue()


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv", "x"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (POINTER, "Git LFS pointer.*git lfs pull"),
        (zipped(), "a ZIP archive.*Unpack it"),
        (tarred(), "a tar archive"),
        (gzip.compress(tarred()), "a tar archive"),
        (b"BZh91AY&SY", "bzip2.*bunzip2"),
        (b"\n<!DOCTYPE html>\n<html>", "web page"),
        (b"<html><body>Sign in</body>", "web page"),
        (b"SQLite format 3\0" + b"\0" * 80, "SQLite"),
        (b"\x80\x04\x95\x10", "pickle, which is never opened"),
    ],
)
def test_foreign_files(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as refused:
        open_data([str(path)])
    assert name in str(refused.value)


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow", "x.csv", "x.tsv", "x.txt"])
def test_rows_are_read_by_what_the_file_holds(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(DATA)
    assert len(list(open_data([str(path)]))) == 40
    path.write_bytes(gzip.compress(DATA))
    assert open_data([str(path)]).kind == "jsonl"


BARE = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


def test_bare_lists_of_turns_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(2 * (json.dumps(BARE) + "\n"))
    with pytest.raises(InputError, match=r"list of turns without a name; write \{\"messages\": \[\.\.\.\]\}"):
        open_data([str(path)])
    path.write_text(json.dumps({"messages": BARE}) + "\n" + json.dumps(BARE) + "\n")
    [_, reject] = open_data([str(path)])
    assert isinstance(reject, Reject)
    assert "list of turns" in reject.reason
    for rows in ([BARE, BARE], BARE, [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]):
        path = tmp_path / "x.json"
        path.write_text(json.dumps(rows))
        with pytest.raises(InputError, match=r"turns where rows are expected.*\"messages\""):
            open_data([str(path)])


# ---- zstd ----


def frame(data: bytes, window: int = 20) -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=window, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return bytes(packer.compress(data) + packer.flush())


def skippable(size: int, number: int = 0) -> bytes:
    return bytes([0x50 + number]) + b"\x2a\x4d\x18" + size.to_bytes(4, "little") + b"x" * size


@pytest.mark.parametrize("with_zstandard", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        skippable(4) + frame(DATA[:500]) + skippable(4, 15) + frame(DATA[500:]),
        skippable(100_000) + frame(DATA),
        frame(DATA) + skippable(3),
        frame(b"") + frame(DATA),
    ],
    ids=["pzstd", "a long skippable frame", "one at the end", "an empty frame"],
)
def test_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, with_zstandard: bool) -> None:
    if not with_zstandard:
        monkeypatch.setitem(sys.modules, "zstandard", None)
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(data)
    rows = list(open_data([str(path)]))
    assert [row.messages[0].text for row in rows if isinstance(row, Row)] == [row["instruction"] for row in ROWS]


def test_long_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(frame(DATA, 31))
    assert len(list(open_data([str(path)]))) == 40
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(InputError, match=r"window that is too large.*zstd -d --long=31 .*x\.jsonl\.zst"):
        open_data([str(path)])


def test_a_dictionary_that_is_missing(tmp_path: Path) -> None:
    dictionary = zstandard.train_dictionary(
        4096, [json.dumps({**row, "n": i}).encode() * 5 for i, row in enumerate(ROWS * 20)]
    )
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(zstandard.ZstdCompressor(dict_data=dictionary).compress(DATA))
    with pytest.raises(InputError, match="zstd -d -D DICTIONARY"):
        open_data([str(path)])


@pytest.mark.parametrize("cut", [3, 6, 12, 40])
def test_cut_off_frames_are_damaged(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes((skippable(20) + frame(DATA))[:-cut] if cut < 40 else skippable(20)[:-4])
    with pytest.raises(InputError, match="zst data cannot be read to the end"):
        list(open_data([str(path)]))


# ---- quotation marks ----


def csv_of(tmp_path: Path, *lines: str) -> list[Row | Reject]:
    path = tmp_path / "x.csv"
    path.write_text("instruction,output\n" + "\n".join(lines) + "\n")
    rows = list(open_data([str(path)]))
    assert [row.row_id for row in rows] == list(range(len(rows)))
    return rows


def plain(first: int, last: int) -> list[str]:
    return [f"q{i},a{i}" for i in range(first, last)]


@pytest.mark.parametrize(
    ("lines", "lost"),
    [
        ([*plain(0, 9), 'say,"', *plain(10, 40)], {9}),
        ([*plain(0, 9), 'say,"', *plain(10, 20), 'say,"oh', *plain(21, 40)], {9, 20}),
        ([*plain(0, 9), 'say,"', '"q, 10",a10', *plain(11, 40)], {9}),
        ([*plain(0, 9), 'say,"', *plain(10, 20), '"q, 20",a20', *plain(21, 40)], {9}),
        ([*plain(0, 9), '"say,a', *plain(10, 20), 'q20,"a, 20"', *plain(21, 40)], {9}),
        ([*plain(0, 39), 'say,"'], {39}),
    ],
)
def test_an_unclosed_quotation_mark_costs_its_own_line(tmp_path: Path, lines: list[str], lost: set[int]) -> None:
    rows = csv_of(tmp_path, *lines)
    assert len(rows) == 40
    assert {row.row_id for row in rows if isinstance(row, Reject)} == lost
    assert [row.line for row in rows] == list(range(2, 42))
    assert all("quotation mark" in row.reason for row in rows if isinstance(row, Reject))
    kept = [row.raw for row in rows if isinstance(row, Row)]
    assert all(set(raw.values()) != {""} and "\n" not in "".join(raw.values()) for raw in kept)  # type: ignore[union-attr]


def test_cells_of_many_lines_are_cells(tmp_path: Path) -> None:
    rows = csv_of(tmp_path, 'q0,"one\n\nq9,a9\n""two"""', *plain(1, 4), '"a\nb","c\nd"')
    assert [row.line for row in rows] == [2, 6, 7, 8, 9]
    assert next(row.raw for row in rows if isinstance(row, Row)) == {
        "instruction": "q0",
        "output": 'one\n\nq9,a9\n"two"',
    }
    assert all(isinstance(row, Row) for row in rows)


def test_a_cell_of_many_lines_after_an_unclosed_quotation_mark(tmp_path: Path) -> None:
    rows = csv_of(tmp_path, *plain(0, 2), 'say,"', '"q\n\n3",a3', *plain(4, 6))
    assert [(type(row).__name__, row.line) for row in rows] == [
        ("Row", 2), ("Row", 3), ("Reject", 4), ("Row", 5), ("Row", 8), ("Row", 9),
    ]  # fmt: skip
    assert [row.messages[0].text for row in rows if isinstance(row, Row)] == ["q0", "q1", "q\n\n3", "q4", "q5"]


def test_a_broken_cell_of_many_lines_is_one_row(tmp_path: Path) -> None:
    rows = csv_of(tmp_path, *plain(0, 2), 'q,"one\ntwo" three,x', *plain(3, 5))
    assert [type(row).__name__ for row in rows] == ["Row", "Row", "Reject", "Row", "Row"]
    assert "lines 4 to 5" in rows[2].reason  # type: ignore[union-attr]
