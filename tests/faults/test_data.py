"""Data that change between two commands, come through a pipe, or hold rows that no program should have to read."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_runs import differing
from sample_rows import alpaca_rows
from spoken import kept, refused, tell

import instruct_prune.rows.facts as facts
from instruct_prune.encode.tokenize import MOST_CHARS
from instruct_prune.rows import open_data, write_rows
from instruct_prune.rows.reader import MOST_NESTED

LINES = [json.dumps(row) for row in alpaca_rows(24)]


def rejected(folder: Path) -> list[tuple[int, str, str]]:
    """(line, status, reason) of the rows that have no score."""
    entries = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    return [(entry["line"], entry["status"], entry["reason"]) for entry in entries]


def score_of(data: object, score_words: list[str]) -> list[str]:
    """`score` of other data, dense only."""
    words = ["score", "--data", str(data), *score_words[3:], "--subnets", "dense"]
    return words


# ---- data that change ----


@pytest.fixture
def own(tmp_path: Path, fault_data: Path, run_words: list[str]) -> tuple[Path, list[str]]:
    """A copy of the data that may be changed, and the words that prune it."""
    data = tmp_path / "own.jsonl"
    data.write_bytes(fault_data.read_bytes())
    return data, ["run", "--data", str(data), *run_words[3:]]


CHANGES = {
    "edited": lambda data: data.replace(b"a", b"b", 1),
    "appended": lambda data: data + data[: data.index(b"\n") + 1],
    "cut": lambda data: data[: len(data) // 2],
    "replaced": lambda data: b"".join(reversed(data.splitlines(keepends=True))),
}


def test_changed_data_are_not_used_until_they_are_back(
    own: tuple[Path, list[str]], undisturbed: Path, tmp_path: Path
) -> None:
    (data, words), out = own, tmp_path / "RUN"
    before = data.read_bytes()
    assert tell(*words, "--out", out).is_clean(0)
    scores = (out / "scores.parquet").read_bytes()
    for change in CHANGES.values():
        data.write_bytes(change(before))
        for command in (["export", out], ["report", out], ["show", out]):
            assert refused(tell(*command), "the data changed since it was read")
        assert refused(tell(*words, "--out", out), "nothing of it was overwritten", "--restart read")
        assert (out / "scores.parquet").read_bytes() == scores
    data.unlink()
    assert refused(tell("export", out), "are not there any more")
    data.write_bytes(before)
    assert tell(*words, "--out", out).is_clean(0)
    assert differing(out, undisturbed) == ["rows/rows.arrow", "items/rows.parquet"]  # which name the file


def test_a_file_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault_data: Path) -> None:
    data = tmp_path / "own.jsonl"
    data.write_bytes(fault_data.read_bytes())
    source = open_data([str(data)])
    begun = facts.stamps_of(source)
    with data.open("ab") as file:
        file.write(LINES[0].encode() + b"\n")
    monkeypatch.setattr("instruct_prune.rows.table.stamps_of", lambda source: begun)
    assert write_rows(tmp_path / "rows", source).facts.changed() == [str(data)]


# ---- standard input, pipes, devices ----


def table_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([{"instruction": f"q{i}", "output": f"a {i}"} for i in range(8)]), sink)
    return bytes(sink.getvalue())


def test_standard_input_is_kept_for_later_commands(score_words: list[str], tmp_path: Path) -> None:
    words, out = score_of("-", score_words), tmp_path / "RUN"
    data = "\n".join(LINES).encode()
    assert refused(tell(*words, "--out", out), "nothing came")
    assert refused(tell(*words, "--out", out, stdin=b"x,y\n1,2\n"))
    assert tell(*words, "--out", out, stdin=data).is_clean(0)  # a first failure leaves nothing behind
    scores = (out / "scores.parquet").read_bytes()
    for again in (b"", data):
        assert "done before" in tell(*words, "--out", out, stdin=again).text
    assert refused(tell(*words, "--out", out, stdin=data[:-400]), "other rows from standard input", "--restart read")
    assert (out / "scores.parquet").read_bytes() == scores
    assert tell(*words, "--out", out, "--restart", "read", stdin=data[: data.rindex(b"\n")]).is_clean(0)
    assert len(pq.read_table(out / "scores.parquet")) == 23


@pytest.mark.parametrize(
    "data",
    [
        "\n".join(LINES).encode(),
        json.dumps(alpaca_rows(8)).encode(),
        b"instruction,output\n" + b"".join(b"q%d,a %d\n" % (i, i) for i in range(8)),
        b"instruction\toutput\n" + b"".join(b"q%d\ta %d\n" % (i, i) for i in range(8)),
        gzip.compress("\n".join(LINES).encode()),
        table_bytes(),
    ],
    ids=["jsonl", "json", "csv", "tsv", "gz", "parquet"],
)
def test_every_kind_of_file_may_be_piped(data: bytes, tmp_path: Path, score_words: list[str]) -> None:
    words = [*score_of("-", score_words), "--dry-run", "--out", tmp_path / "RUN"]
    assert tell(*words, stdin=data).is_clean(0)
    assert tell(*words).is_clean(0)


def test_pipes_and_devices_are_refused(tmp_path: Path, score_words: list[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    for data in (tmp_path / "pipe.jsonl", "/dev/zero"):
        assert refused(tell(*score_of(data, score_words), "--out", tmp_path / "RUN"), "a pipe or a device", "--data -")


def test_a_file_more_that_a_glob_finds(tmp_path: Path, fault_data: Path, score_words: list[str]) -> None:
    (tmp_path / "a.jsonl").write_bytes(fault_data.read_bytes())
    words, out = score_of(tmp_path / "*.jsonl", score_words), tmp_path / "RUN"
    assert tell(*words, "--out", out).is_clean(0)
    (tmp_path / "b.jsonl").write_bytes(fault_data.read_bytes())
    assert refused(tell(*words, "--out", out), "nothing of it was overwritten")
    assert refused(tell("show", out), "*.jsonl: the data changed since it was read")
    (tmp_path / "b.jsonl").unlink()
    assert "done before" in tell(*words, "--out", out).text


# ---- a run inside its own data ----


def test_a_run_folder_among_the_data_is_no_data(tmp_path: Path, run_words: list[str]) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    for name, lines in (("a.jsonl", LINES[:12]), ("deep/b.jsonl", LINES[12:])):
        (tmp_path / "data" / name).write_text("\n".join(lines) + "\n")
    words = ["run", "--data", str(tmp_path / "data" / "**" / "*.jsonl"), *run_words[3:]]
    out = tmp_path / "data" / "RUN"
    assert tell(*words, "--to", "messages", "--out", out).is_clean(0)
    before = kept(out)
    again = tell(*words, "--to", "messages", "--out", out)
    assert again.is_clean(0)
    assert "read before" in again.text
    assert kept(out) == before
    assert refused(tell(*words, "--out", tmp_path / "data"), "is not empty and is not a run")
    assert "are left out" in tell("inspect", *words[1:5]).text
    named = open_data([f"{out}/pruned.jsonl"])  # by its name it can be the data of another run
    assert len(list(named)) == 12


# ---- rows that no program should have to read ----


def deep(levels: int, text: bool = False) -> str:
    inner = "[" * levels + "]" * levels
    return json.dumps({"messages": inner}) if text else '{"instruction": "q", "output": "a", "x": ' + inner + "}"


FIELDS = json.dumps({f"f{i}": 0 for i in range(50_000)})  # a million take a while, and no other way
ODD_ROWS: dict[str, tuple[str, str]] = {
    "many fields": (FIELDS, "there is no field"),
    "100,000 deep": (deep(100_000), "nested too deeply"),
    "just too deep": (deep(MOST_NESTED + 1), "nested too deeply"),
    "objects": ('{"a": ' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
    "never closed": ('{"a": ' * 100_000, "not JSON|nested too deeply"),
    "NaN for text": ('{"instruction": "q", "output": NaN}', "null"),
    "a key twice": ('{"instruction": "q", "output": "a", "output": "b"}', "appears twice"),
    "a key twice, deep": ('{"instruction": "q", "output": "a", "m": [{"k": 1, "k": 2}]}', "appears twice"),
    "half a pair": ('{"instruction": "q", "output": "a\\ud83d"}', "half of a surrogate pair"),
    "half a pair, a key": ('{"instruction": "q", "output": "a", "k\\udc00": 1}', "half of a surrogate pair"),
    "a long number": ('{"instruction": "q", "output": "a", "n": ' + "9" * 5000 + "}", "not usable JSON"),
    "zero bytes": ("\0" * 100, "not JSON"),
    "a key of escapes": ('{"\\u001b[2Jq": 1, "\\u001b[2Jq": 2}', "appears twice"),
}
SOUND_ROWS = {
    "as deep as may be": deep(MOST_NESTED - 1),
    "numbers that are none": '{"instruction": "q", "output": "a", "x": NaN, "y": [Infinity, -Infinity, 1e999]}',
    "escapes": '{"instruction": "\\u001b]0;title\\u0007\\u001b[2J", "output": "\\u001b[31m\\u0000 \\u202e", "c": "\\u001b[5m"}',
}


def test_odd_rows_are_rejected_alone_and_sound_ones_kept(tmp_path: Path, run_words: list[str]) -> None:
    odd = list(ODD_ROWS.values())
    lines = [*LINES[:12], *(row for row, _ in odd), *SOUND_ROWS.values(), *LINES[12:]]
    data = tmp_path / "odd.jsonl"
    data.write_text("\n".join(lines) + "\n")
    out = tmp_path / "RUN"
    words = ["run", "--data", str(data), *run_words[3:], "--keep", "1.0", "--out", out]
    told = tell(*words)
    assert told.is_clean(0)
    found = rejected(out)
    assert [line for line, _, _ in found] == list(range(13, 13 + len(odd)))
    for (_, reason), (_, _, said) in zip(odd, found, strict=True):
        assert any(word in said for word in reason.split("|")), said
    bad = set(range(12, 12 + len(odd)))
    assert kept(out).splitlines() == [line.encode() for i, line in enumerate(lines) if i not in bad]
    before = kept(out)
    shown = tell("show", out)
    for text in (told.text, shown.text, tell(*words).text, tell("inspect", *words[1:6]).text):
        assert not set(text) & set("\x1b\x07\0\u202e")
    assert kept(out) == before


@pytest.mark.parametrize("rows", [json.dumps([json.loads(LINES[0])])[:-1] + ", " + deep(100_000) + "]", "[" * 100_000])
def test_a_deep_list_file(rows: str, tmp_path: Path) -> None:
    data = tmp_path / "x.json"
    data.write_text(rows)
    told = tell("inspect", "--data", data, "--model", "smollm2-135m-instruct") if rows[1] == "[" else None
    assert told is None or refused(told, "nested too deeply")
    if told is None:
        assert [type(row).__name__ for row in open_data([str(data)])] == ["Row", "Reject"]


def test_json_text_in_a_field_may_be_no_deeper(tmp_path: Path) -> None:
    data = tmp_path / "x.jsonl"
    sound = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]})
    data.write_text(f"{sound}\n{deep(MOST_NESTED + 50, text=True)}\n")
    assert [type(row).__name__ for row in open_data([str(data)])] == ["Row", "Reject"]


@pytest.fixture
def little_memory() -> Iterator[None]:
    """1 GB more than this process has now: what wants more ends in MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("size", [5_000_000, pytest.param(50_000_000, marks=pytest.mark.nightly)])
def test_a_very_long_row_costs_its_neighbours_nothing(size: int, tmp_path: Path, score_words: list[str]) -> None:
    long = {"instruction": "q", "output": "word " * (size // 5)}
    unread = {"instruction": "q", "output": "a", "extra": "x" * size}
    data = tmp_path / "x.jsonl"
    data.write_text("\n".join([*LINES[:4], json.dumps(long), json.dumps(unread), *LINES[4:]]) + "\n")
    told = tell(*score_of(data, score_words), "--out", tmp_path / "RUN")
    assert told.is_clean(0)
    assert rejected(tmp_path / "RUN") == [(5, "too_long", f"{size + 1:,} characters, more than {MOST_CHARS:,}")]
    assert "26 read = 25 scored + 1 rejected" in told.text
    assert "done before" in tell(*score_of(data, score_words), "--out", tmp_path / "RUN").text


# ---- compression ----


def zst(data: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").ZstdCompressor().compress(data))


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "xz": lambda d: lzma.compress(d, preset=0),
    "zst": zst,
}
MEGABYTES = 1 << 20


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("ending", PACKED)
@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.csv"])
def test_decompression_bombs(name: str, ending: str, tmp_path: Path, score_words: list[str]) -> None:
    first = {"x.jsonl": f"{LINES[0]}\n", "x.json": f"[{LINES[0]}, ", "x.csv": 'instruction,output\nq,"'}[name].encode()
    pack = PACKED[ending]
    data = tmp_path / f"{name}.{ending}"
    data.write_bytes(pack(first + b" " * MEGABYTES) + pack(b" " * 64 * MEGABYTES) * 20)  # 1.3 GB
    told = tell(*score_of(data, score_words), "--out", tmp_path / "RUN")
    assert refused(told, "more than 200 times its size", "decompress it yourself")
    data.write_bytes(pack("\n".join(LINES).encode()))
    if name == "x.jsonl":
        assert tell(*score_of(data, score_words), "--dry-run", "--out", tmp_path / "RUN").is_clean(0)


def test_a_long_gap_in_a_list_is_read_once(tmp_path: Path) -> None:
    data = tmp_path / "x.json"
    data.write_text(f"[{LINES[0]}," + " " * 50 * MEGABYTES + f"{LINES[1]}]")
    assert len(list(open_data([str(data)]))) == 2
