"""The same rows in every container come out as the same rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from instruct_prune.export import ExportJob, export_selection
from instruct_prune.rows import open_data
from instruct_prune.rows.containers import undone
from instruct_prune.rows.row import Row


def call(i: int) -> dict[str, Any]:
    """Calls of other functions with other arguments, as text or as an object, in each row."""
    arguments: Any = [{"city": f"Oslo {i}"}, {"a": i, "b": [1, 2]}, {"deep": {"x": "y"}}][i % 3]
    return {"name": f"tool{i % 3}", "arguments": json.dumps(arguments) if i % 2 else arguments}


def tool(i: int) -> dict[str, Any]:
    properties = {["city", "a", "deep"][i % 3]: {"type": ["string", "integer", "object"][i % 3]}}
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": f"tool{i % 3}", "description": "d", "parameters": parameters}}


def row(i: int) -> dict[str, Any]:
    turns: list[dict[str, Any]] = [{"role": "user", "content": f'question {i} [] {{}} "null"'}]
    if i % 4 == 1:
        turns.append({"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call(i)}]})
        turns.append({"role": "tool", "content": f"result {i}"})
    if i % 4 == 2:
        turns.append({"role": "assistant", "content": f"answer {i}", "reasoning_content": f"thought {i}", "weight": 1})
        turns.append({"role": "user", "content": "and?"})
    turns.append({"role": "assistant", "content": f"last {i}", "weight": i % 2})
    found: dict[str, Any] = {"messages": turns, "source": f"s{i % 5}"}
    if i % 4 == 1:
        found["tools"] = [tool(i)]
    if i % 7 == 0:
        found["note"] = None
    return found


ROWS = [row(i) for i in range(200)]


def as_text(one: dict[str, Any]) -> dict[str, Any]:
    """A row as a CSV file or a set of JSON text columns has it."""
    return {
        "messages": json.dumps(one["messages"]),
        "source": one["source"],
        "tools": json.dumps(one["tools"]) if "tools" in one else "",
    }


def with_text_calls(one: dict[str, Any]) -> dict[str, Any]:
    """A row whose calls have arguments as text, so that Arrow has one type for all of them."""
    turns = []
    for turn in one["messages"]:
        calls = [{"type": "function", "function": {**c["function"], "arguments": json.dumps(c["function"]["arguments"])
                  if not isinstance(c["function"]["arguments"], str) else c["function"]["arguments"]}}
                 for c in turn.get("tool_calls", [])]  # fmt: skip
        turns.append({**turn, "tool_calls": calls} if calls else turn)
    return {**one, "messages": turns}


NO_JSON = "columns of values of different types need datasets 4.7"
needs_json = pytest.mark.skipif(not hasattr(datasets, "Json"), reason=NO_JSON)


def as_dataset() -> Any:
    if not hasattr(datasets, "Json"):
        pytest.skip(NO_JSON)
    names = dict.fromkeys(name for one in ROWS for name in one)  # from_list looks at the keys of the first row only
    return datasets.Dataset.from_list([{n: one.get(n) for n in names} for one in ROWS], on_mixed_types="use_json")


def write(kind: str, folder: Path) -> Path:
    path = folder / kind
    made = as_dataset()
    if kind == "x.jsonl":
        path.write_text("".join(json.dumps(one) + "\n" for one in ROWS))
    elif kind == "x.json":
        path.write_text(json.dumps(ROWS))
    elif kind == "x.csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, ["messages", "source", "tools"])
            writer.writeheader()
            writer.writerows(map(as_text, ROWS))
    elif kind == "x.parquet":
        made.to_parquet(str(path))
    elif kind == "text.parquet":
        pq.write_table(pa.Table.from_pylist(list(map(as_text, ROWS))), path)
    elif kind == "structs.parquet":
        rows = list(map(with_text_calls, ROWS))
        names = dict.fromkeys(name for one in rows for name in one)
        pq.write_table(pa.Table.from_pylist([{n: one.get(n) for n in names} for one in rows]), path)
    elif kind == "turn_texts.parquet":
        rows = [as_text(one) | {"messages": [json.dumps(turn) for turn in one["messages"]]} for one in ROWS]
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "x.arrow":
        with pa.ipc.new_stream(str(path), made.data.table.schema) as out:
            out.write_table(made.data.table)
    elif kind == "saved":
        made.save_to_disk(str(path))
    else:
        datasets.DatasetDict(train=made).save_to_disk(str(path))
    return path


KINDS = [
    "x.json", "x.csv", "x.parquet", "text.parquet", "structs.parquet", "turn_texts.parquet", "x.arrow", "saved", "dict",
]  # fmt: skip


def said(source: Any) -> list[tuple[Any, ...]]:
    rows = list(source)
    assert all(isinstance(each, Row) for each in rows), next(each for each in rows if not isinstance(each, Row))
    return [(each.row_id, each.messages, each.tools, each.columns) for each in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_rows_in_every_container(tmp_path: Path, kind: str) -> None:
    expected = said(open_data([str(write("x.jsonl", tmp_path))]))
    assert len(expected) == 200
    assert expected[1][1][1].tool_calls[0]["function"] == {"name": "tool1", "arguments": {"a": 1, "b": [1, 2]}}
    assert expected[0][3] == {"source": "s0"}
    assert said(open_data([str(write(kind, tmp_path))])) == expected


def test_the_same_rows_in_memory() -> None:
    assert said(open_data(as_dataset())) == said(open_data(ROWS))


@needs_json
@pytest.mark.parametrize("to", ["parquet", "disk"])
def test_exports_read_back_as_what_they_were(tmp_path: Path, job_of: Callable[..., ExportJob], to: str) -> None:
    rows = [row | {"messages": [{**turn, "name": None} for turn in row["messages"]]} for row in ROWS]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (done,) = export_selection([to], job_of(path))
    assert said(open_data([str(done.paths[0])])) == said(open_data([str(path)]))


@needs_json
@pytest.mark.parametrize(
    "arguments",
    [
        [{"a": 1, "b": None}, {"a": 2, "b": "x"}, {"a": 3}],
        [{"a": 1, "b": None}, {"a": 2, "b": "x"}],
        [{"a": [{"b": None}]}],
    ],
)
def test_nulls_inside_arguments_survive_an_export(
    tmp_path: Path, job_of: Callable[..., ExportJob], arguments: list[dict[str, Any]]
) -> None:
    def conversation(arguments: dict[str, Any]) -> dict[str, Any]:
        calls = [{"type": "function", "function": {"name": "f", "arguments": arguments}}]
        # All turns have the same keys, so that Arrow keeps them as they are and not as JSON text.
        asked = {"role": "user", "content": "q", "tool_calls": []}
        return {"messages": [asked, {"role": "assistant", "content": "a", "tool_calls": calls}]}

    path = tmp_path / "x.jsonl"
    rows = list(map(conversation, arguments))
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    (done,) = export_selection(["parquet"], job_of(path))
    assert said(open_data([str(done.paths[0])])) == said(open_data([str(path)]))


def test_nan_blank_and_null_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"instruction": "q", "input": NaN, "output": "a", "kind": NaN, "id": 1}\n'
        '{"instruction": "q", "input": null, "output": "a", "kind": null, "id": 1}\n'
        '{"instruction": "q", "output": "a", "id": 1}\n'
    )
    assert len({str(each[1:]) for each in said(open_data([str(path)]))}) == 1
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    blank = [
        {"conversations": turns, "tools": tools} for tools in (None, "", " ", "\n", "null", "[]", [], float("nan"))
    ]
    assert len({str(each[1:]) for each in said(open_data(blank))}) == 1


def test_lists_that_old_versions_of_datasets_keep_as_objects() -> None:
    kept = {"messages": {"role": ["user", "assistant"], "content": ["q", "a"], "name": [None, None]}}
    plain = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    assert said(open_data([kept])) == said(open_data([plain]))


@pytest.mark.parametrize("answer", ['{"role": "x"}', "[1, 2]", "null", '[{"a": 1}]', "{}", "  "])
def test_text_that_looks_like_json_stays_what_somebody_said(answer: str) -> None:
    [(_, messages, _, _)] = said(open_data([{"prompt": "q", "completion": answer}]))
    assert messages[1].text == answer
    turns = [{"role": "user", "content": answer}, {"role": "assistant", "content": answer}]
    [(_, messages, _, _)] = said(open_data([{"messages": json.dumps(turns)}]))
    assert [message.text for message in messages] == [answer, answer]


def test_completions_and_preferences_as_json_text() -> None:
    user, assistant = [{"role": "user", "content": "q"}], [{"role": "assistant", "content": "a"}]
    for row in (
        {"prompt": user, "completion": assistant},
        {"prompt": user, "chosen": assistant, "rejected": assistant},
    ):
        assert said(open_data([{name: json.dumps(value) for name, value in row.items()}])) == said(open_data([row]))
    history = {"instruction": "q", "output": "a", "history": json.dumps([["p", "[1]"]])}
    [(_, messages, _, _)] = said(open_data([history]))
    assert [message.text for message in messages] == ["p", "[1]", "q", "a"]


def test_structures_are_named_by_their_columns() -> None:
    assert undone({"a": "[1]", "b": "[1]"}, {"a"}, ()) == {"a": [1], "b": "[1]"}


TURNS = [{"role": "user", "content": 'it\'s "q"'}, {"role": "assistant", "content": "a\nb"}]


@pytest.mark.parametrize(
    "text",
    [json.dumps(TURNS), repr(TURNS), json.dumps(json.dumps(TURNS)), "\n " + json.dumps(TURNS, indent=2), json.dumps(list(map(json.dumps, TURNS)))],
    ids=["json", "python, as pandas writes it", "json of json", "indented", "a list of json"],
)  # fmt: skip
def test_turns_as_text(text: str) -> None:
    assert said(open_data([{"messages": text}])) == said(open_data([{"messages": TURNS}]))


def test_a_null_beside_another_key_says_nothing() -> None:
    turns = [
        {"role": "user", "from": None, "content": 'it\'s "q"', "value": None, "tool_calls": None},
        {"role": None, "from": "gpt", "content": None, "value": "a\nb", "weight": None},
    ]
    assert said(open_data([{"messages": turns, "conversations": None}])) == said(open_data([{"messages": TURNS}]))


def test_python_text_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = "[{'role': open(" + repr(str(marker)) + ", 'w')}]"
    (reject,) = open_data([{"messages": text}])
    assert not isinstance(reject, Row)
    assert "not JSON" in reject.reason
    assert not marker.exists()
