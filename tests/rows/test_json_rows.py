"""JSON Lines and JSON arrays: what breaks other loaders is one rejected row here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import instruct_prune.rows.json_rows as json_rows
from instruct_prune.errors import InputError
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Reject, Row

GOOD = [{"instruction": f"q{i}", "input": "", "output": f"a{i}"} for i in range(6)]


def write(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def lines(*rows: str | dict[str, Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def read(path: str, **options: Any) -> tuple[list[Row], list[Reject]]:
    rows = list(open_data([path], **options))
    assert [row.row_id for row in rows] == list(range(len(rows)))
    return [row for row in rows if isinstance(row, Row)], [row for row in rows if isinstance(row, Reject)]


# ---- one line a row ----


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"instruction": "q", "output": "a"', "not JSON: Expecting ',' delimiter at character 35"),
        ('{"instruction": "q", "output": "a",}', "not JSON: "),
        ('{"instruction": "q", "output": "a", "output": "b"}', "the field 'output' appears twice in one object"),
        ('{"instruction": "q", "output": "a\\ud83d"}', "half of a surrogate pair"),
        ('["q", "a"]', "a row must be a JSON object, this is a list"),
        ("42", "a row must be a JSON object, this is a number"),
        ("null", "a row must be a JSON object, this is null"),
        ("garbage", "not JSON: Expecting value at character 1"),
        ("[" * 100_000, "not usable JSON: nested too deeply"),
        ('{"output": ' + "9" * 5000 + "}", "not usable JSON: Exceeds the limit"),
        ('{"instruction": "q"}', "there is no field 'output'"),
    ],
)
def test_one_bad_line_is_one_rejected_row(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "x.jsonl", lines(GOOD[0], line, GOOD[1]))
    samples, [reject] = read(path)
    assert [json.loads(row.raw) for row in samples if isinstance(row.raw, bytes)] == GOOD[:2]
    assert (reject.row_id, reject.line, reject.source) == (1, 2, path)
    assert reason in reject.reason


def test_latin1_line_names_the_conversion(tmp_path: Path) -> None:
    data = (
        lines(GOOD[0]).encode() + '{"instruction": "über", "output": "a"}\n'.encode("latin-1") + lines(GOOD[1]).encode()
    )
    samples, [reject] = read(write(tmp_path / "x.jsonl", data))
    assert len(samples) == 2
    assert reject.line == 2
    assert "byte 0xfc at position 17" in reject.reason
    assert "iconv -f WINDOWS-1252" in reject.reason


def test_lines_are_kept_to_the_byte(tmp_path: Path) -> None:
    odd = [
        b'{ "output" :  "a" ,"instruction":"q" }\r',
        '{"instruction": "a\u2028b", "output": "\u00e9\U0001f600"}'.encode(),
        b'{"instruction": "\\u00e9\\ud83d\\ude00", "output": "a\\u0000b"}',
        b'\t{"output": "1", "instruction": "", "n": 1.0, "big": 12345678901234567890, "nan": NaN}  ',
    ]
    path = write(tmp_path / "x.jsonl", b"\xef\xbb\xbf" + b"\n".join(odd[:2]) + b"\n\n  \r\n" + b"\n".join(odd[2:]))
    samples, rejects = read(path)
    assert [row.raw for row in samples] == odd
    assert [row.line for row in samples] == [1, 2, 5, 6]  # blank lines are no rows, but lines
    assert rejects == []
    assert samples[2].messages[0].text == "é😀"


def test_strict_stops_at_the_first_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", lines(GOOD[0], '{"instruction": "q", "output": 3}', GOOD[1]))
    rows = iter(open_data([path], strict=True))
    assert isinstance(next(rows), Row)
    with pytest.raises(InputError, match=r"x\.jsonl, line 2, field 'output': .*must be text"):
        next(rows)


def test_limit_counts_rows_read(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", lines("broken", *GOOD))
    samples, rejects = read(path, limit=3)
    assert ([row.row_id for row in samples], [row.row_id for row in rejects]) == ([1, 2], [0])
    with pytest.raises(InputError, match="--limit 0"):
        open_data([path], limit=0)


# ---- arrays ----

LAYOUTS = {
    "one line": lambda rows: "[" + ", ".join(rows) + "]",
    "a row a line": lambda rows: "[\n" + ",\n".join(rows) + "\n]\n",
    "indented": lambda rows: "[\n" + ",\n".join("    " + row.replace("\n", "\n    ") for row in rows) + "\n]",
}


def pretty(row: dict[str, Any]) -> str:
    return json.dumps(row, indent=4, ensure_ascii=False)


@pytest.mark.parametrize("layout", [None, 0, 1, 4, "\t"])
@pytest.mark.parametrize("chunk", [7, 64, 1 << 16])
def test_sound_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Any, chunk: int) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    nested = {"messages": [{"role": "user", "content": '}, {"a": ["\\"'}, {"role": "assistant", "content": "]\\"}]}
    awkward = [{"a": {"b": [[], {}, ""]}}, {"\\": '"', "é": "\u2028\U0001f600"}, {"n": [1, -2.5e3, True, None]}]
    rows: list[dict[str, Any]] = [nested, *awkward, nested]
    path = write(tmp_path / "x.json", " \n" + json.dumps(rows, indent=layout, ensure_ascii=False) + "\n")
    samples, rejects = read(path)
    assert [row.raw for row in samples] == [nested, nested]
    assert [(row.row_id, row.reason) for row in rejects] == [(i, "there is no field 'messages'") for i in (1, 2, 3)]


def test_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.json", json.dumps(GOOD, indent=2))
    assert [row.line for row in read(path)[0]] == [2 + 5 * i for i in range(6)]


DAMAGE = {
    "trailing comma": lambda row: row.replace('"a2"', '"a2",'),
    "no comma": lambda row: row.replace('"q2",', '"q2"'),
    "no closing brace": lambda row: row.rstrip().removesuffix("}"),
    "no opening quote": lambda row: row.replace('"a2"', 'a2"'),
    "no closing quote": lambda row: row.replace('"a2"', '"a2'),
    "no colon": lambda row: row.replace('"output":', '"output"'),
    "wrong bracket": lambda row: row.rstrip().removesuffix("}") + "]",
    "extra quote": lambda row: row.replace('"q2"', '"q"2"'),
    "bare word": lambda row: row.replace('"a2"', "a2"),
    "key twice": lambda row: row.replace('"input"', '"output"'),
    "open list": lambda row: row.replace('"a2"', '["a2"'),
    "open object": lambda row: row.replace('"a2"', '{"a": "a2"'),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("chunk", [5, 1 << 16])
def test_one_damaged_element_is_one_rejected_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, damage: str, chunk: int
) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    rows = [pretty(row) if layout == "indented" else json.dumps(row) for row in GOOD]
    rows[2] = DAMAGE[damage](rows[2])
    samples, rejects = read(write(tmp_path / "x.json", LAYOUTS[layout](rows)))
    assert [row.raw for row in samples] == GOOD[:2] + GOOD[3:]
    assert [row.row_id for row in rejects] == [2]
    first = {"one line": 1, "a row a line": 4, "indented": 12}[layout]
    assert rejects[0].line == first


@pytest.mark.parametrize("chunk", [3, 1 << 16])
def test_damage_in_a_nested_list_splits_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_rows, "CHUNK", chunk)
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    text = json.dumps([{"messages": turns, "id": i} for i in range(4)], indent=2)
    second = text.index('"id": 0')
    damaged = text[:second] + text[second:].replace('"content": "user"', '"content": "us"er"', 1)
    samples, rejects = read(write(tmp_path / "x.json", damaged))
    assert [row.columns["id"] for row in samples] == [0, 2, 3]
    assert [row.row_id for row in rejects] == [1]


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    text = json.dumps(GOOD, indent=2)
    samples, rejects = read(write(tmp_path / "x.json", text[: text.index("a4")]))
    assert [row.raw for row in samples] == GOOD[:4]
    assert [(row.row_id, row.line) for row in rejects] == [(4, 22)]
    samples, rejects = read(write(tmp_path / "x.json", text.removesuffix("]")))
    assert [row.raw for row in samples] == GOOD
    assert "may have been cut off" in rejects[0].reason


def test_text_after_the_list_is_not_passed_over(tmp_path: Path) -> None:
    samples, rejects = read(write(tmp_path / "x.json", json.dumps(GOOD[:2]) + "\n" + json.dumps(GOOD[2:])))
    assert [row.raw for row in samples] == GOOD
    assert "text after the end of the list" in rejects[0].reason


def test_elements_that_are_no_objects(tmp_path: Path) -> None:
    text = json.dumps([GOOD[0], 1, "two", ["three"], None, True, GOOD[1]])
    samples, rejects = read(write(tmp_path / "x.json", text))
    assert [row.raw for row in samples] == GOOD[:2]
    assert [row.reason.rpartition("is ")[2] for row in rejects] == [
        "a number",
        "text",
        "a list",
        "null",
        "true or false",
    ]


def test_an_element_that_never_ends_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "MAX_ROW", 1 << 12)
    monkeypatch.setattr(json_rows, "CHUNK", 1 << 8)
    path = write(tmp_path / "x.json", json.dumps([GOOD[0]]).removesuffix("]") + ',\n {"output": [' + "1, " * 5000)
    with pytest.raises(InputError, match=r"x\.json, line 2: the element that begins here is longer"):
        list(open_data([path]))
    with pytest.raises(InputError, match=r"line 1 is longer"):
        open_data([write(tmp_path / "x.jsonl", b"x" * 5000)])


def test_rows_are_cut_alike_whatever_the_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = random.Random(0)
    text = json.dumps([{**row, "output": row["output"] * 40} for row in GOOD] * 5, indent=1)
    for _ in range(60):
        place = generator.randrange(len(text))
        broken = text[:place] + generator.choice('{}[]",:\\\n x') + text[place + generator.randrange(3) :]
        found = []
        for chunk in (1, 13, 1 << 16):
            monkeypatch.setattr(json_rows, "CHUNK", chunk)
            try:
                found.append(
                    [
                        (row.row_id, row.line, getattr(row, "raw", None))
                        for row in open_data([write(tmp_path / "x.json", broken)])
                    ]
                )
            except InputError as error:
                found.append([str(error)])
        assert found[0] == found[1] == found[2]


# ---- whole files ----


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("x.json", b"", "is empty"),
        ("x.jsonl", b" \n \n", "is empty"),
        ("x.json", b"[]", "has no rows"),
        ("x.json", b"hello world", r"is not JSON: it begins with 'hello world'"),
        ("x.json", b"<!DOCTYPE html>", r"is not JSON: it begins with '<!DOCTYPE html>'"),
        ("x.jsonl", b"hello\nworld\n", r"none of the first 2 rows can be read. Line 1: not JSON"),
        ("x.json", json.dumps({"data": GOOD}).encode(), r"its field 'data' is a list of 6.*jq '.data'"),
        (
            "x.json",
            json.dumps({"data": GOOD}, indent=2).encode(),
            r"is one JSON object.*its field 'data' is a list.*jq '.data'",
        ),
        ("x.json", json.dumps({"a": {"b": 1}}, indent=2).encode(), r"is one JSON object.*Write a list of objects"),
        ("x.jsonl", json.dumps(GOOD[0]).encode("utf-16"), r"looks like UTF-16LE. Convert it: iconv -f UTF-16LE"),
        ("x.jsonl", json.dumps(GOOD[0]).encode("utf-16-le"), "looks like UTF-16LE"),
        ("x.jsonl", json.dumps(GOOD[0]).encode("utf-16-be"), "looks like UTF-16BE"),
        ("x.jsonl", json.dumps(GOOD[0]).encode("utf-32"), "looks like UTF-32LE"),
        ("x.jsonl", '{"instruction": "ü", "output": "ü"}'.encode("latin-1"), "none of the first 1 rows.*latin-1"),
        ("x.txt", b"plain text", r"is not JSON"),
    ],
)
def test_whole_file_faults_name_the_fix(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data([write(tmp_path / name, data)])


@pytest.mark.parametrize("name", ["x.json", "x.txt", "noname"])
def test_lines_in_a_json_file(tmp_path: Path, name: str) -> None:
    source = open_data([write(tmp_path / name, lines(*GOOD))])
    assert source.kind == "jsonl"
    assert len(list(source)) == 6


def test_an_array_in_a_jsonl_file(tmp_path: Path) -> None:
    source = open_data([write(tmp_path / "x.jsonl", json.dumps(GOOD, indent=1))])
    assert source.kind == "json"
    assert len(list(source)) == 6
