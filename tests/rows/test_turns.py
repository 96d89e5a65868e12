"""Keys and parts of turns, as trainers write them; expectations by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instruct_prune.rows.formats import FORMATS, Fields
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import Message
from instruct_prune.rows.turns import messages_of, tools_of

ASKS = {"role": "user", "content": "q"}


def made(*turns: dict[str, Any]) -> list[Message]:
    return messages_of(list(turns), "messages")


def answer(**keys: Any) -> Message:
    """The one assistant turn of [question, turn with these keys]."""
    return made(ASKS, {"role": "assistant", "content": "a", **keys})[1]


def function(message: Message) -> list[Any]:
    return [call["function"] for call in message.tool_calls]


WEATHER = {"name": "weather", "arguments": {"city": "Oslo"}}
TEXT = '{"name": "weather", "arguments": {"city": "Oslo"}}'


@pytest.mark.parametrize("key", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning(key: str) -> None:
    assert answer(**{key: "because"}) == Message("assistant", "a", True, reasoning="because")
    assert answer(**{key: [{"type": "text", "text": "be"}, {"thinking": "cause"}]}).reasoning == "be\ncause"
    assert answer(**{key: None}) == answer(**{key: ""}) == Message("assistant", "a", True)
    assert answer(**{key: 3}).extra == {key: 3}
    only = made(ASKS, {"role": "assistant", key: "because"})[1]
    assert (only.text, only.reasoning) == ("", "because")


def test_the_same_thought_under_two_keys_is_one() -> None:
    assert answer(reasoning="because", reasoning_content="because").extra == {}
    two = answer(reasoning="other", reasoning_content="because")
    assert (two.reasoning, two.extra) == ("because", {"reasoning": "other"})


def test_keys_that_nobody_reads_are_kept() -> None:
    found = made(
        {**ASKS, "name": "Ann", "reasoning_content": "mine"}, {"role": "assistant", "content": "a", "x": [1], "y": None}
    )
    assert [message.extra for message in found] == [{"name": "Ann", "reasoning_content": "mine"}, {"x": [1]}]
    assert answer(value="b").extra == {"value": "b"}
    assert answer(value="a").extra == {}


@pytest.mark.parametrize(
    ("keys", "trained"),
    [
        ({"weight": 0}, False),
        ({"weight": 1}, True),
        ({"train": False}, False),
        ({"training": True}, True),
        ({"trainable": 0}, False),
        ({"loss": False}, False),
        ({"loss": None}, True),
        ({"loss_weight": 0.0}, False),
        ({"loss_mask": "0"}, False),
        ({"loss_mask": "1"}, True),
        ({"masked": True}, False),
        ({"masked": False}, True),
        ({"train_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]}, False),
        ({"weight": 1, "loss": True, "masked": False}, True),
    ],
)
def test_flags_of_trainers(keys: dict[str, Any], trained: bool) -> None:
    found = answer(**keys)
    assert (found.trained, found.extra) == (trained, {})


def test_flags_that_cannot_be_followed() -> None:
    assert answer(weight=0.5).extra == {"weight": 0.5}
    assert answer(loss=[1, 0]).extra == {"loss": [1, 0]}
    with pytest.raises(RowError, match="both that it is trained and that it is not: weight, masked"):
        answer(weight=1, masked=True)
    with pytest.raises(RowError, match="train_detail trains a part"):
        answer(train_detail=[{"begin_offset": 0, "end_offset": 0, "train": False}, {"begin_offset": 1, "train": True}])
    assert made({**ASKS, "train": True})[0].extra == {"train": True}  # others are never trained
    assert made({**ASKS, "train": False, "masked": True})[0].extra == {}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "Oslo"}'}},
        {"role": "assistant", "content": "", "function_call": WEATHER},
        {"role": "assistant", "content": None, "tool_calls": json.dumps([{"function": WEATHER}])},
        {"role": "assistant", "content": "", "tool_calls": {"function": WEATHER}},
        {"role": "assistant", "content": "", "function_call": WEATHER, "tool_calls": [{"function": WEATHER}]},
        {"role": "assistant", "content": [{"type": "tool_call", "value": TEXT}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "x", "name": "weather", "input": {"city": "Oslo"}}],
        },
        {"role": "tool_call", "content": TEXT},
        {"from": "function_call", "value": "[" + TEXT + "]"},
        {
            "from": "function_call",
            "value": '<tool_call>\n{"name": "weather", "parameters": {"city": "Oslo"}}\n</tool_call>',
        },
    ],
)
def test_one_call_in_many_forms(turn: dict[str, Any]) -> None:
    found = made(ASKS, turn)[1]
    assert (found.role, found.text, function(found), found.extra) == ("assistant", "", [WEATHER], {})


def test_a_thought_before_a_written_call() -> None:
    found = made(ASKS, {"from": "function_call", "value": f"<think>\nhm\n</think>\n{TEXT}\n{TEXT}"})[1]
    assert (found.text, function(found)) == ("<think>\nhm\n</think>", [WEATHER, WEATHER])


def test_calls_in_turns_of_their_own_are_parallel() -> None:
    call = {"role": "tool_call", "content": TEXT}
    found = made(ASKS, call, call, {"role": "tool_response", "content": "1"}, call)
    assert [(message.role, len(message.tool_calls)) for message in found[1:]] == [
        ("assistant", 2), ("tool", 0), ("assistant", 1)
    ]  # fmt: skip
    said = {"role": "assistant", "content": "<think>\nhm\n</think>"}
    one = made(ASKS, said, {"role": "tool_call", **WEATHER}, {"role": "tool_call", **WEATHER})
    assert [(message.text, len(message.tool_calls)) for message in one[1:]] == [(said["content"], 2)]
    two = made(ASKS, {**said, "loss": False}, call)
    assert [(message.trained, len(message.tool_calls)) for message in two[1:]] == [(False, 0), (True, 1)]


def test_results_say_which_call_they_answer() -> None:
    calls = [{"id": "call_x", "function": WEATHER}, {"id": "call_y", "function": {**WEATHER, "name": "time"}}]
    results = [
        {"role": "tool", "tool_call_id": "call_y", "content": "9"},
        {"role": "tool", "name": "weather", "content": "r"},
    ]
    found = made(ASKS, {"role": "assistant", "content": "", "tool_calls": calls}, *results)
    first, second = (call["id"] for call in found[1].tool_calls)
    assert [message.call_id for message in found[2:]] == [second, first]


def test_parts() -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "tool_call", "value": TEXT},
    ]
    found = made(ASKS, {"role": "assistant", "content": parts})[1]
    assert (found.reasoning, found.text, function(found), found.remarks) == ("hm", "a", [WEATHER], ())
    turned = made(ASKS, {"role": "assistant", "content": parts[::-1]})[1]
    assert (turned.reasoning, turned.text, len(turned.remarks)) == ("hm", "a", 1)
    result = {"type": "tool_result", "tool_use_id": "x", "content": [{"type": "text", "text": "rain"}]}
    call = {"type": "tool_use", "id": "x", "name": "weather", "input": {}}
    said = made(ASKS, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]})
    assert (said[2].role, said[2].text) == ("tool", "rain")
    for part in ({"type": "audio", "audio": "x.wav"}, {"type": "redacted_thinking", "data": "x"}, 3):
        with pytest.raises(RowError, match="only text parts can be scored"):
            made({"role": "user", "content": [part]})


@pytest.mark.parametrize("value", [None, "", " ", "\n", "null", "[]", "{}", [], {}])
def test_no_tools(value: object) -> None:
    assert tools_of(value, "tools") == ()


def test_functions_are_tools() -> None:
    row = {"messages": [ASKS, {"role": "assistant", "content": "a"}], "functions": [{"name": "weather"}]}
    _, tools = FORMATS["messages"].parse(Fields(row, {}))
    assert tools == ({"type": "function", "function": {"name": "weather"}},)
