"""Files for trainers: what each trainer reads out of them is what was scored."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import yaml

from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.export import ExportJob, export_selection

ALPACA = [
    {"instruction": "Name a river.", "input": "", "output": "The Rhine."},
    {"instruction": "Dropped.", "input": "", "output": "no"},
    {"instruction": "Add.", "input": "2 and 3", "output": "5"},
]
CHAT = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello.", "weight": 0},
            {"role": "user", "content": "Bye"},
            {"role": "assistant", "content": "Goodbye."},
        ]
    },
    {"messages": [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]},
]
CALL = {"id": "c00010000", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
WITH_TOOLS = [
    {
        "messages": [
            {"role": "user", "content": "Rain?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": '{"rain": true}'},
            {"role": "assistant", "content": "Yes."},
        ],
        "tools": [TOOL],
    },
    {
        "messages": [
            {"role": "user", "content": "Hm"},
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": "!"},
        ]
    },
    {"messages": [{"role": "user", "content": "Ok?"}, {"role": "assistant", "content": "Ok."}]},
]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def loaded(path: Path, cache: Path) -> list[dict[str, Any]]:
    """As the datasets library reads it."""
    return list(datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache)))


def test_alpaca_has_the_kept_rows(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    job = job_of(jsonl(tmp_path / "a.jsonl", ALPACA), keep=[0, 2])
    (done,) = export_selection(["alpaca"], job)
    assert (done.rows, done.left_out, done.paths[0].name) == (2, 0, "alpaca.jsonl")
    assert loaded(done.paths[0], tmp_path / "cache") == [ALPACA[0], ALPACA[2]]


def test_alpaca_history_and_system(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    rows = [*CHAT[1:], {"messages": [{k: v for k, v in m.items() if k != "weight"} for m in CHAT[0]["messages"]]}]
    (done,) = export_selection(["alpaca"], job_of(jsonl(tmp_path / "a.jsonl", rows)))
    assert lines(done.paths[0]) == [
        {"instruction": "One?", "input": "", "output": "Two.", "system": "", "history": []},
        {"instruction": "Bye", "input": "", "output": "Goodbye.", "system": "Be brief.", "history": [["Hi", "Hello."]]},
    ]


def test_a_row_that_does_not_fit_is_listed_and_not_lost(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    path = jsonl(tmp_path / "a.jsonl", WITH_TOOLS)
    (done,) = export_selection(["alpaca"], job_of(path))
    assert (done.rows, done.left_out) == (1, 2)
    assert done.left_out_file is not None
    listed = lines(done.left_out_file)
    assert [(row["line"], row["row_id"]) for row in listed] == [(1, 0), (2, 1)]
    assert listed[0]["file"] == str(path)
    assert "tools" in listed[0]["reason"]
    assert "alternate" in listed[1]["reason"]
    with pytest.raises(InputError, match=r"none of the 1 kept rows.*line 1: .*tools"):
        export_selection(["alpaca"], job_of(path, keep=[0]))


def test_messages_mark_what_is_not_trained(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    (done,) = export_selection(["messages"], job_of(jsonl(tmp_path / "a.jsonl", CHAT), template="chat"))
    first, second = lines(done.paths[0])
    assert [turn.get("weight") for turn in first["messages"]] == [None, None, 0, None, 1]
    assert [turn["content"] for turn in first["messages"]] == ["Be brief.", "Hi", "Hello.", "Bye", "Goodbye."]
    assert second["messages"][1] == {"role": "assistant", "content": "Two.", "weight": 1}
    assert any("weight 0" in note for note in done.notes)


def test_messages_keep_tool_calls_and_answer_them(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    (done,) = export_selection(["messages"], job_of(jsonl(tmp_path / "a.jsonl", WITH_TOOLS), template="chat"))
    first, _, third = loaded(done.paths[0], tmp_path / "cache")
    assert first["messages"][1]["tool_calls"] == [CALL]
    # datasets before 4.7 fills up turns with the keys of others.
    assert {key: value for key, value in first["messages"][2].items() if value is not None} == {
        "role": "tool", "content": '{"rain": true}', "tool_call_id": "c00010000", "name": "weather"
    }  # fmt: skip
    assert first["tools"] == [TOOL]
    assert third["tools"] is None


def test_turns_last_marks_earlier_turns(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}
    job = job_of(jsonl(tmp_path / "a.jsonl", [row]), template="chat", turns="last")
    (done,) = export_selection(["messages"], job)
    assert [turn.get("weight") for turn in lines(done.paths[0])[0]["messages"]] == [None, 0, None, 1]


@pytest.mark.parametrize(("turns", "expected"), [("last", [None, 1, None, 0]), ("all", [None, 1, None, 0])])
def test_a_blank_turn_was_not_scored_and_is_not_trained(
    tmp_path: Path, job_of: Callable[..., ExportJob], turns: str, expected: list[int | None]
) -> None:
    said = (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", " "))
    row = {"messages": [{"role": role, "content": text} for role, text in said]}
    job = job_of(jsonl(tmp_path / "a.jsonl", [row]), template="chat", turns=turns)
    (done,) = export_selection(["messages"], job)
    assert [turn.get("weight") for turn in lines(done.paths[0])[0]["messages"]] == expected


# ---- LLaMA-Factory: its rules, as in data/parser.py and data/converter.py of 0.9.5 ----


def llamafactory_reads(folder: Path, name: str) -> list[tuple[list[tuple[str, str]], str, str]]:
    """(turns, system, tools) of every row; a column that is not named in dataset_info.json is None there."""
    info = json.loads((folder / "dataset_info.json").read_text())[name]
    rows = lines(folder / info["file_name"])
    columns = info["columns"]
    named = set(columns.values())
    assert all(set(row) <= named for row in rows), "a column is not named, so LLaMA-Factory would not see it"
    found = []
    for row in rows:
        system = row[columns["system"]] if "system" in columns else ""
        tools = row[columns["tools"]] if "tools" in columns else ""
        if info.get("formatting", "alpaca") == "alpaca":
            query = [row[columns[c]] for c in ("prompt", "query") if c in columns and row[columns[c]]]
            answers = [("assistant", row[columns["response"]])] if "response" in columns else []
            found.append(([("user", "\n".join(query)), *answers], system, tools))
            continue
        tags = {info["tags"][f"{role}_tag"]: role for role in ("user", "assistant", "observation", "function")}
        turns = [
            (tags[turn[info["tags"]["role_tag"]]], turn[info["tags"]["content_tag"]])
            for turn in row[columns["messages"]]
        ]
        asking = [role in ("user", "observation") for role, _ in turns]
        assert asking == [i % 2 == 0 for i in range(len(turns))], "LLaMA-Factory skips rows that do not alternate"
        assert len(turns) % 2 == 0
        found.append((turns, system, tools))
    return found


def chat(tokenizer: Any) -> Encoder:
    return Encoder(tokenizer, "chat", max_length=256)


def test_llamafactory_trains_the_text_that_was_scored(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    export_selection(["llamafactory"], job_of(jsonl(tmp_path / "a.jsonl", CHAT), encoder=chat(tiny_tokenizer)))
    folder = tmp_path / "exports" / "llamafactory"
    asked = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"
    asked += "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"  # the turn with weight 0 is no answer
    assert llamafactory_reads(folder, "pruned-set")[0] == (
        [("user", asked), ("assistant", "Goodbye.<|im_end|>")],
        "",
        "",
    )
    stanza = yaml.safe_load((folder / "llamafactory.yaml").read_text())
    assert (stanza["dataset"], stanza["template"], stanza["stage"]) == ("pruned-set", "empty", "sft")
    assert "tokenized_path" not in stanza


def test_llamafactory_trains_tokens_where_rows_are_cut(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=40)
    (done,) = export_selection(["llamafactory"], job_of(jsonl(tmp_path / "a.jsonl", ALPACA), encoder=encoder))
    folder = tmp_path / "exports" / "llamafactory"
    assert yaml.safe_load((folder / "llamafactory.yaml").read_text())["tokenized_path"] == "dataset"
    assert len(datasets.load_from_disk(str(folder / "dataset"))) == 3
    assert any("3 rows are cut to 40 tokens" in note for note in done.notes)


def test_llamafactory_alpaca_names_every_column(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    encoder = Encoder(tiny_tokenizer, "alpaca", max_length=256)
    export_selection(["llamafactory"], job_of(jsonl(tmp_path / "a.jsonl", ALPACA), keep=[0, 2], encoder=encoder))
    assert llamafactory_reads(tmp_path / "exports" / "llamafactory", "pruned-set-conversations") == [
        ([("user", "Name a river."), ("assistant", "The Rhine.")], "", ""),
        ([("user", "Add.\n2 and 3"), ("assistant", "5")], "", ""),
    ]


def test_llamafactory_conversations_with_tools(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    job = job_of(jsonl(tmp_path / "a.jsonl", WITH_TOOLS), encoder=chat(tiny_tokenizer))
    (done,) = export_selection(["llamafactory"], job)
    (first, last) = llamafactory_reads(tmp_path / "exports" / "llamafactory", "pruned-set-conversations")
    call = '{"name": "weather", "arguments": {"city": "Bern"}}'
    assert first[0] == [("user", "Rain?"), ("function", call), ("observation", '{"rain": true}'), ("assistant", "Yes.")]
    assert json.loads(first[2]) == [TOOL]
    assert last == ([("user", "Ok?"), ("assistant", "Ok.")], "", "")
    assert (done.rows, done.left_out) == (3, 0)  # two questions in a row are no fault where the text is given
    assert any("2 rows for LLaMA-Factory's own templates; 1 are left out" in note for note in done.notes)


def test_llamafactory_masks(tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any) -> None:
    folder = tmp_path / "exports" / "llamafactory"
    both = job_of(jsonl(tmp_path / "a.jsonl", [*CHAT, WITH_TOOLS[0]]), encoder=chat(tiny_tokenizer))
    (done,) = export_selection(["llamafactory"], both)
    assert done.rows == 3
    assert (
        len(lines(folder / "pruned-set-conversations.jsonl")) == 2
    )  # these cannot leave out one turn among trained ones
    assert len(lines(folder / "pruned-set-conversations.left_out.jsonl")) == 1
    (done,) = export_selection(
        ["llamafactory"], job_of(jsonl(tmp_path / "b.jsonl", CHAT), encoder=chat(tiny_tokenizer))
    )
    assert len(lines(folder / "pruned-set-conversations.jsonl")) == 2
    assert any("mask_history" in note for note in done.notes)


# ---- axolotl: the columns that its prompt strategies take (0.19) ----


def axolotl_source(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    stanza = yaml.safe_load((folder / "axolotl.yaml").read_text())
    (source,) = stanza["datasets"]
    assert stanza["train_on_inputs"] is False
    return source, lines(folder / source["path"])


def test_axolotl_alpaca(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    export_selection(["axolotl"], job_of(jsonl(tmp_path / "a.jsonl", ALPACA)))
    source, rows = axolotl_source(tmp_path / "exports" / "axolotl")
    assert source == {"path": "pruned-set.jsonl", "ds_type": "json", "type": "alpaca"}
    assert rows == ALPACA


def test_axolotl_chat_template_trains_what_was_scored(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    export_selection(["axolotl"], job_of(jsonl(tmp_path / "a.jsonl", CHAT), template="chat"))
    source, rows = axolotl_source(tmp_path / "exports" / "axolotl")
    assert source["type"] == "chat_template"
    assert source["chat_template"] == "tokenizer_default"
    field = source["message_field_training"]
    trained = [
        t["content"] for row in rows for t in row["messages"] if t.get(field, t["role"] in source["roles_to_train"])
    ]
    assert trained == ["Goodbye.", "Two."]


@pytest.mark.parametrize(
    ("rows", "template"), [(CHAT, "alpaca"), (CHAT, "plain"), (WITH_TOOLS, "chat")], ids=["turns", "plain", "calls"]
)
def test_axolotl_has_no_place_for_these_rows_so_they_go_as_tokens(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any, rows: list[dict[str, Any]], template: str
) -> None:
    encoder = Encoder(tiny_tokenizer, template, max_length=256)
    job = job_of(jsonl(tmp_path / "a.jsonl", rows), encoder=encoder)
    (done,) = export_selection(["axolotl"], job)
    stanza = yaml.safe_load((tmp_path / "exports" / "axolotl" / "axolotl.yaml").read_text())
    assert stanza["datasets"] == [{"path": "dataset"}]
    back = datasets.load_from_disk(str(tmp_path / "exports" / "axolotl" / "dataset"))
    assert done.rows == len(back)
    for row, encoded in zip(back, encoder.encode(list(job.samples)), strict=True):
        assert row["input_ids"] == encoded.input_ids.tolist()
        learnt = [label for label in row["labels"] if label != -100]
        assert learnt == encoded.input_ids[encoded.response_mask].tolist()


# ---- ms-swift: one question and one answer, put together as they are (4.6) ----


def test_swift_says_of_every_piece_whether_it_is_learnt(
    tmp_path: Path, job_of: Callable[..., ExportJob], tiny_tokenizer: Any
) -> None:
    encoder = chat(tiny_tokenizer)
    several = {"messages": [{**turn, "weight": 1} for turn in CHAT[0]["messages"]]}
    job = job_of(jsonl(tmp_path / "a.jsonl", [*CHAT, several]), encoder=encoder)
    export_selection(["swift"], job)
    folder = tmp_path / "exports" / "swift"
    stanza = yaml.safe_load((folder / "swift.yaml").read_text())
    assert stanza["use_chat_template"] is False
    rows = lines(folder / stanza["dataset"][0])
    assert [[turn["loss"] for turn in row["messages"]] for row in rows] == [
        [False, True],
        [False, True],
        [False, True, False, True],
    ]
    for row, encoded in zip(rows, encoder.encode(list(job.samples)), strict=True):
        assert [turn["role"] for turn in row["messages"]] == ["user"] + ["assistant"] * (len(row["messages"]) - 1)
        learnt = "".join(turn["content"] for turn in row["messages"] if turn["loss"])
        assert learnt == tiny_tokenizer.decode(encoded.input_ids[encoded.response_mask])


# ---- plain text, errors ----


def test_plain_text_rows(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    rows = [{"text": "one"}, {"text": "two"}]
    job = job_of(jsonl(tmp_path / "a.jsonl", rows), template="plain")
    factory, axolotl, trl = export_selection(["llamafactory", "axolotl", "trl"], job)
    for done in (factory, axolotl, trl):
        assert lines(done.paths[0]) == rows
    assert json.loads(factory.paths[1].read_text())["pruned-set"]["columns"] == {"prompt": "text"}
    assert axolotl_source(tmp_path / "exports" / "axolotl")[0]["type"] == "completion"
    with pytest.raises(InputError, match="plain text"):
        export_selection(["messages"], job)


def test_unknown_format_says_what_is_known(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    with pytest.raises(InputError, match=r"unknown --to 'lamafactory'. Did you mean 'llamafactory'\?"):
        export_selection(["lamafactory"], job_of(jsonl(tmp_path / "a.jsonl", ALPACA)))


def test_samples_must_be_readable_twice(tmp_path: Path, job_of: Callable[..., ExportJob]) -> None:
    job = job_of(jsonl(tmp_path / "a.jsonl", ALPACA))
    with pytest.raises(TypeError, match="more than once"):
        ExportJob(iter(job.samples), tmp_path, "x", "m", None)
