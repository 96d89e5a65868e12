"""Rows of every format -> messages; expectations by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.errors import InputError
from instruct_prune.rows import FORMATS, open_data
from instruct_prune.rows.formats import Fields, detect
from instruct_prune.rows.formats.conversations import PREFERENCE, answered
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message, Reject, Row

FOLDER = Path(__file__).parents[2] / "data_samples" / "formats"

U = lambda text, context="": Message("user", text, context=context)  # noqa: E731
A = lambda text, trained=True: Message("assistant", text, trained)  # noqa: E731
S = lambda text: Message("system", text)  # noqa: E731

ROWS: list[tuple[str, dict[str, Any], list[Message]]] = [
    ("alpaca", {"instruction": "q", "input": "c", "output": "a"}, [U("q", "c"), A("a")]),
    ("alpaca", {"instruction": "q", "output": "a"}, [U("q"), A("a")]),
    ("alpaca", {"instruction": "q", "input": None, "output": ""}, [U("q"), A("")]),
    (
        "alpaca",
        {"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["p", "b"]], "text": "all of it"},
        [S("s"), U("p"), A("b"), U("q"), A("a")],
    ),
    ("gpteacher", {"instruction": "q", "input": "c", "response": "a"}, [U("q", "c"), A("a")]),
    ("gpteacher", {"instruction": "q", "target": "a"}, [U("q"), A("a")]),
    ("dolly", {"instruction": "q", "context": "c", "response": "a", "category": "open"}, [U("q", "c"), A("a")]),
    ("dolly_hhrlhf", {"prompt": "q", "response": "a"}, [U("q"), A("a")]),
    ("prompt-completion", {"prompt": "q", "completion": "a"}, [U("q"), A("a")]),
    (
        "prompt-completion",
        {
            "prompt": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "b"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        [U("p"), A("b", False), A("a")],
    ),
    ("question", {"question": "q", "answer": "a"}, [U("q"), A("a")]),
    ("question", {"query": "q", "response": "a", "type": "GSM"}, [U("q"), A("a")]),
    ("question", {"system_prompt": "s", "question": "q", "response": "a", "id": 1}, [S("s"), U("q"), A("a")]),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
        [S("s"), U("q"), A("a")],
    ),
    (
        "sharegpt",
        {"conversation": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [U("q"), A("a")],
    ),
    (
        "sharegpt",
        {"conversations": [{"from": "user", "value": "q"}, {"from": "chatgpt", "value": "a"}]},
        [U("q"), A("a")],
    ),
    (
        "messages",  # UltraChat: messages win over the prompt
        {"prompt": "q", "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        [U("q"), A("a")],
    ),
    (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "value": "!"}]},
                {"role": "assistant", "content": "a", "weight": 0},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": "b", "weight": 1},
            ]
        },
        [S("s"), U("q!"), A("a", False), U("r"), A("b")],
    ),
    (
        "messages",
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        [U("q"), A("a")],
    ),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "z"}, [U("q"), A("a")]),
    ("preference", {"system": "s", "question": "q", "chosen": "a", "rejected": "z"}, [S("s"), U("q"), A("a")]),
    ("preference", {"instruction": "q", "input": "c", "chosen": "a", "rejected": "z"}, [U("q", "c"), A("a")]),
    (
        "preference",  # LLaMA-Factory's ShareGPT pairs
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "z"},
        },
        [U("q"), A("a")],
    ),
    (
        "preference",  # UltraFeedback: 'chosen' is the whole conversation; only its last turn was chosen
        {
            "prompt": "q",
            "chosen": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "r"},
                {"role": "assistant", "content": "a"},
            ],
            "rejected": [],
        },
        [U("q"), A("b", False), U("r"), A("a")],
    ),
    (
        "preference",  # Anthropic HH
        {
            "chosen": "\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: a",
            "rejected": "\n\nHuman: q\n\nAssistant: z",
        },
        [U("q"), A("b", False), U("r"), A("a")],
    ),
    ("text", {"text": "all of it"}, [Message("text", "all of it", True)]),
]


@pytest.mark.parametrize(("name", "row", "messages"), ROWS)
def test_rows(name: str, row: Mapping[str, Any], messages: list[Message]) -> None:
    found = detect([row], "x.json", None, {})
    assert found.name == name
    assert found.parse(Fields(row, {}))[0] == messages


WRAPPED = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n"
)
WRAPPED_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a"
    " response that appropriately completes the request.\n\n### Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n"
)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (WRAPPED.format("Do it.\n\nNow."), U("Do it.\n\nNow.")),
        (WRAPPED.format("Do it.").rstrip(), U("Do it.")),
        (WRAPPED_INPUT.format("Do it.", "To\n\nthis."), U("Do it.", "To\n\nthis.")),
        ("Below is a list.", U("Below is a list.")),
        (WRAPPED.partition("\n")[0], U(WRAPPED.partition("\n")[0])),
        ("Explain '### Response:'", U("Explain '### Response:'")),
    ],
)
def test_wrapped_prompts_are_unwrapped(prompt: str, message: Message) -> None:
    for name, row in (
        ("dolly_hhrlhf", {"prompt": prompt, "response": "a"}),
        ("prompt-completion", {"prompt": prompt, "completion": "a"}),
        ("preference", {"prompt": prompt, "chosen": "a", "rejected": "z"}),
    ):
        assert FORMATS[name].parse(Fields(row, {}))[0] == [message, A("a")]


def test_a_wrapping_that_cannot_be_undone_is_refused() -> None:
    with pytest.raises(RowError, match="begins like an Alpaca prompt"):
        FORMATS["dolly_hhrlhf"].parse(Fields({"prompt": WRAPPED.removesuffix("### Response:\n"), "response": "a"}, {}))


BAD: list[tuple[str, dict[str, Any], str, str]] = [
    ("alpaca", {"instruction": "q"}, "output", "there is no field 'output'"),
    ("alpaca", {"instruction": "q", "output": None}, "output", "the field 'output' is null"),
    ("alpaca", {"instruction": "q", "output": 42}, "output", "must be text, this is a number"),
    ("alpaca", {"instruction": True, "output": "a"}, "instruction", "must be text, this is true or false"),
    ("alpaca", {"instruction": ["q"], "output": "a"}, "instruction", "must be text, this is a list"),
    ("alpaca", {"instruction": "q", "output": "a", "input": {}}, "input", "must be text, this is an object"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["p"]]}, "history[0]", "a list of [question, answer]"),
    ("alpaca", {"instruction": "q", "output": "a", "history": 3}, "history", "a list of [question, answer]"),
    ("gpteacher", {"instruction": "q"}, "response", "there is no field 'response' or 'target'"),
    ("messages", {"messages": []}, "messages", "no assistant turn"),
    ("messages", {"messages": [{"role": "user", "content": "q"}]}, "messages", "no assistant turn"),
    ("messages", {"messages": {"role": "user"}}, "messages", "expected a list of turns, found an object"),
    ("messages", {"messages": "q"}, "messages", "expected a list of turns, found text"),
    ("messages", {"messages": "[{'role': 'user'}]"}, "messages", "found text that is not JSON"),
    ("messages", {"messages": ["q"]}, "messages[0]", "expected a turn with role and content, found text"),
    ("messages", {"messages": [{"content": "q"}]}, "messages[0]", "neither 'role' nor 'from'"),
    ("messages", {"messages": [{"role": "narrator", "content": "q"}]}, "messages[0]", "unknown role 'narrator'"),
    ("messages", {"messages": [{"role": 3, "content": "q"}]}, "messages[0]", "unknown role 3"),
    ("messages", {"messages": [{"role": "user"}]}, "messages[0]", "the turn has no content"),
    (
        "messages",
        {"messages": [{"role": "user", "content": 3}]},
        "messages[0]",
        "content must be text or a list of parts",
    ),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
        "messages[0].content[0]",
        "there is no picture in this object",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a", "weight": "yes"}]},
        "messages[0]",
        "weight must be 0 or 1, this is 'yes'",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "x"}]}]},
        "messages[0].tool_calls[0]",
        "the call has no function name",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a"}], "tools": "{not json"},
        "tools",
        "expected a list of tools as JSON text",
    ),
    (
        "messages",
        {"messages": [{"role": "assistant", "content": "a"}], "tools": [3]},
        "tools",
        "list of tool definitions",
    ),
    ("preference", {"chosen": "a", "rejected": "z"}, "prompt", "there is no field 'prompt'"),
    ("prompt-completion", {"prompt": "q", "completion": 3}, "completion", "expected a list of turns, found a number"),
    ("text", {"text": 3}, "text", "must be text, this is a number"),
]


@pytest.mark.parametrize(("name", "row", "field", "reason"), BAD)
def test_rows_that_do_not_fit_name_the_field(name: str, row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        FORMATS[name].parse(Fields(row, {}))
    assert caught.value.field == field
    assert reason in caught.value.reason


def _samples(name: str) -> list[Row]:
    rows = list(open_data([str(FOLDER / name)]))
    assert not [row for row in rows if isinstance(row, Reject)]
    return [row for row in rows if isinstance(row, Row)]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (
            {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}},
            "preference-messages",
        ),
        ({"prompt": "q", "chosen": [{"role": "assistant", "content": "a"}]}, "preference-messages"),
        ({"prompt": "q", "chosen": "a"}, "preference"),
    ],
    ids=["ShareGPT, an object", "TRL, a list", "text"],
)
def test_pairs_of_turns_are_conversations(tmp_path: Path, row: dict[str, Any], found: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({**row, "rejected": row["chosen"]}) + "\n")
    source = open_data([str(path)])
    assert source.format == found  # the template "auto" is chat for the conversations
    (read,) = source
    assert isinstance(read, Row)
    assert read.messages == (Message("user", "q"), Message("assistant", "a", trained=True))


def test_both_answers_of_a_pair_are_read_alike() -> None:
    row = {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "z"}
    fields = PREFERENCE.fields(row, {}, Path(), 1)
    assert answered(fields, "chosen") == [Message("user", "q"), Message("assistant", "a", trained=True)]
    assert answered(fields, "rejected") == [Message("user", "q"), Message("assistant", "z", trained=True)]
    with pytest.raises(RowError, match="there is no field 'rejected'"):
        answered(PREFERENCE.fields({"prompt": "q", "chosen": "a"}, {}, Path(), 1), "rejected")


def test_sharegpt_with_tools() -> None:
    row, thanks = _samples("sharegpt_tools.json")
    assert [message.role for message in row.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
        "assistant",
    ]
    call = {
        "id": "c00010000",
        "type": "function",
        "function": {"name": "bus_times", "arguments": {"stop": "Mill Lane"}},
    }
    assert row.messages[2] == Message("assistant", "", True, tool_calls=(call,))
    assert row.tools[0]["function"]["name"] == "bus_times"
    assert [message.trained for message in row.messages] == [False, False, True, False, True, False, True]
    assert thanks.tools == ()
    assert [message.role for message in thanks.messages] == ["user", "assistant"]  # a blank system prompt is none


def test_messages_with_tools_weights_and_parts() -> None:
    [row] = _samples("messages_tools.jsonl")
    assert [message.trained for message in row.messages] == [False, False, True, False, False, False, True]
    [call] = row.messages[2].tool_calls
    assert call["function"] == {"name": "bus_times", "arguments": {"stop": "Mill Lane"}}  # was JSON text
    assert len(call["id"]) == 9  # "call_a8Kd" has an underscore, which the strictest template refuses
    assert call["id"].isalnum()
    assert row.messages[6].text == "I only see that one. Ask me again in five minutes."
    assert row.columns == {"id": "m-1"}


def test_a_call_that_is_no_json_stays_text() -> None:
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": "call me"}]
    said, _ = FORMATS["sharegpt"].parse(Fields({"conversations": turns}, {}))
    assert replace(said[1], remarks=()) == A("call me")
    assert said[1].remarks == ("function_call turns that hold no JSON of a call are taken as text",)


def test_other_fields_are_columns() -> None:
    assert _samples("dolly.jsonl")[0].columns == {"category": "open"}
    assert _samples("question.csv")[0].columns == {"category": "open"}
    assert _samples("alpaca.json")[0].columns == {}


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("alpaca.json", "alpaca"),
        ("alpaca.jsonl", "alpaca"),
        ("alpaca_history.jsonl", "alpaca"),
        ("dolly.jsonl", "dolly"),
        ("dolly_hhrlhf.jsonl", "dolly_hhrlhf"),
        ("gpteacher.jsonl", "gpteacher"),
        ("messages.jsonl", "messages"),
        ("messages_tools.jsonl", "messages"),
        ("preference.jsonl", "preference"),
        ("prompt_completion.jsonl", "prompt-completion"),
        ("prompt_completion_messages.jsonl", "prompt-completion-messages"),
        ("question.csv", "question"),
        ("sharegpt.json", "sharegpt"),
        ("sharegpt_tools.json", "sharegpt"),
        ("text.jsonl", "text"),
    ],
)
def test_sample_files_load_without_an_option(name: str, found: str) -> None:
    source = open_data([str(FOLDER / name)])
    assert source.format == found
    assert source.description.startswith(found + " (")
    assert source.description.endswith(f" rows of {FOLDER / name}")
    assert all(isinstance(row, Row) for row in source)


def test_detection_is_by_the_majority() -> None:
    alpaca, odd = {"instruction": "q", "output": "a"}, {"text": "t"}
    assert detect([odd, alpaca, alpaca], "x", None, {}).name == "alpaca"
    assert detect([odd, odd, alpaca], "x", None, {}).name == "text"


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"q": "Q", "a": "A", "messages": "m", "text": "t"}) + "\n")
    source = open_data([str(path)], columns={"instruction": "q", "output": "a"})
    [row] = source
    assert isinstance(row, Row)
    assert source.format == "alpaca"
    assert row.messages == (U("Q"), A("A"))
    assert row.columns == {"messages": "m", "text": "t"}
    [row] = open_data([str(path)], columns={"text": "q"})
    assert isinstance(row, Row)
    assert row.messages == (Message("text", "Q", True),)
    with pytest.raises(InputError, match=r"no column 'qq'. Did you mean 'q'\? Its columns: a, messages, q, text"):
        open_data([str(path)], columns={"instruction": "qq"})
    with pytest.raises(InputError, match=r"no format has a field 'instructions'. Did you mean 'instruction'\?"):
        open_data([str(path)], columns={"instructions": "q"})


def test_no_format_fits_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"frage": "Q", "antwort": "A"}\n')
    with pytest.raises(InputError, match=r"Fields found: antwort, frage.*--columns instruction=QUESTION output=ANSWER"):
        open_data([str(path)])
    with pytest.raises(InputError, match=r"fits messages"):
        open_data([str(path)], format="messages")
    with pytest.raises(InputError, match=r"unknown format 'alpacca'. Did you mean 'alpaca'\?"):
        open_data([str(path)], format="alpacca")


def test_functions_are_tools() -> None:
    row = {"messages": [{"role": "assistant", "content": "a"}], "functions": '[{"name": "weather"}]'}
    [found] = open_data([row])
    assert isinstance(found, Row)
    assert found.tools == ({"type": "function", "function": {"name": "weather"}},)
    assert found.columns == {}


# ---- columns are used once ----


def said_with(row: dict[str, Any], **columns: str) -> tuple[tuple[Message, ...], dict[str, Any]]:
    [found] = open_data([row], columns=columns)
    assert isinstance(found, Row)
    return found.messages, dict(found.columns)


def test_a_column_that_was_given_to_one_field_is_no_other() -> None:
    row = {"instruction": "i", "input": "c", "output": "o", "context": "x"}
    assert said_with(row, instruction="input", output="output") == (
        (U("c"), A("o")),
        {"instruction": "i", "context": "x"},
    )
    assert said_with(row, system="instruction", instruction="input") == ((S("i"), U("c"), A("o")), {"context": "x"})
    assert said_with(row, instruction="input", input="instruction")[0] == (U("c", "i"), A("o"))
    assert said_with(row, instruction="instruction") == ((U("i", "c"), A("o")), {"context": "x"})
    with pytest.raises(InputError, match=r"names the column 'input' for instruction and output; a column is used once"):
        open_data([row], columns={"instruction": "input", "output": "input"})


def test_the_hint_about_columns_leads_to_the_rows() -> None:
    row = {"input": "q", "output": "a"}
    with pytest.raises(InputError, match="--columns instruction=input output=output") as told:
        open_data([row])
    hint = re.search(r"--columns (\S+=\S+) (\S+=\S+)\.", str(told.value))
    assert hint
    assert said_with(row, **dict(pair.split("=") for pair in hint.groups()))[0] == (U("q"), A("a"))


# ---- formats of one's own ----

OWN = """
from instruct_prune.rows import Format
from instruct_prune.rows.row import Message

def parse(fields):
    return [Message("user", fields.text("frage")), Message("assistant", fields.text("antwort"), trained=True)], ()

GERMAN = Format("german", (("frage",), ("antwort",)), (), parse)
NOTHING = 3
"""


def test_a_format_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_formats.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    row = {"frage": "q", "antwort": "a", "thema": "t"}
    source = open_data([row], format="own_formats:GERMAN")
    assert (source.format, source.model_kind) == ("german", "causal_lm")
    [found] = source
    assert isinstance(found, Row)
    assert (found.messages, found.columns) == ((U("q"), A("a")), {"thema": "t"})
    [found] = open_data([{"x": "q", "antwort": "a"}], format="own_formats:GERMAN", columns={"frage": "x"})
    assert isinstance(found, Row)
    for name, message in (
        ("own_formats:NOTHING", "a Format is expected"),
        ("own_formats:FRENCH", "has no 'FRENCH'"),
        ("nowhere:GERMAN", "--format nowhere:GERMAN"),
    ):
        with pytest.raises(InputError, match=message):
            open_data([row], format=name)
    with pytest.raises(InputError, match="fits german"):
        open_data([{"a": "b"}], format="own_formats:GERMAN")


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_declared_whole(name: str) -> None:
    found = FORMATS[name]
    assert found.name == name
    assert found.model in ("causal_lm", "image_encoder")
    assert {*found.structures, *found.turns} <= set(found.names) | {"history"}


@pytest.mark.parametrize("missing", [{"context": None}, {}, {"context": ""}])
@pytest.mark.parametrize("n_missing", [1, 3, 5])
def test_a_row_without_its_context_takes_none_away_from_the_others(missing: dict[str, Any], n_missing: int) -> None:
    rows = [{"instruction": f"q{i}", "context": f"c{i}", "response": "a"} for i in range(6)]
    rows[:n_missing] = [{"instruction": f"q{i}", **missing, "response": "a"} for i in range(n_missing)]
    found = [row.messages for row in open_data(rows) if isinstance(row, Row)]
    assert found == [(U(f"q{i}", "" if i < n_missing else f"c{i}"), A("a")) for i in range(6)]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "", "query": "q", "answer": " ", "response": "a"}, [U("q"), A("a")]),
        ({"instruction": "q", "output": "a", "system": "", "system_prompt": "s"}, [S("s"), U("q"), A("a")]),
        ({"instruction": "q", "input": "c", "response": "", "target": "a"}, [U("q", "c"), A("a")]),
        ({"instruction": "q", "output": ""}, [U("q"), A("")]),
    ],
)  # fmt: skip
def test_blank_fields_of_tables_put_together_give_way(row: dict[str, Any], expected: list[Message]) -> None:
    (found,) = open_data([row])
    assert isinstance(found, Row)
    assert list(found.messages) == expected
