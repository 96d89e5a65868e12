"""Thoughts, calls and keys that nobody reads, as other tools are given them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from instruct_prune.export.conversations import alpaca_row, messages_row, sharegpt_row, text_row
from instruct_prune.export.job import CannotExpressError
from instruct_prune.rows.row import Message, Row
from instruct_prune.rows.turns import messages_of


def call(name: str, i: int = 0) -> dict[str, Any]:
    return {"id": f"c0001{i:04d}", "type": "function", "function": {"name": name, "arguments": {"city": "Oslo"}}}


def row(*messages: Message) -> Row:
    return Row(0, messages, "x.jsonl", 1, b"{}")


ASKS = Message("user", "q", extra={"name": "Ann"})
THINKS = Message("assistant", "", True, tool_calls=(call("weather"),), reasoning="hm")
SAYS = Message("assistant", "a", True, reasoning="so", extra={"mood": "merry"})


def test_messages_carry_thoughts_and_other_keys() -> None:
    written = messages_row(row(ASKS, THINKS, Message("tool", "rain"), SAYS), {1, 3})["messages"]
    assert written[0] == {"role": "user", "content": "q", "name": "Ann"}
    assert written[1]["reasoning_content"] == "hm"
    assert written[3] == {"role": "assistant", "content": "a", "reasoning_content": "so", "mood": "merry"}


def test_messages_are_read_as_what_they_were() -> None:
    before = row(ASKS, THINKS, Message("tool", "rain", call_id="c00010000"), SAYS)
    assert tuple(messages_of(messages_row(before, {1, 3})["messages"], "messages")) == before.messages


def test_results_name_their_calls() -> None:
    calls = Message("assistant", "", True, tool_calls=(call("weather"), call("time", 1)))
    results = Message("tool", "nine", call_id="c00010001"), Message("tool", "rain", call_id="c00010000")
    written = messages_row(row(ASKS, calls, *results), {1})["messages"]
    assert [turn["name"] for turn in written[2:]] == ["time", "weather"]


@pytest.mark.parametrize("thought", [{"reasoning": "hm"}, {"content": "<think>\nhm\n</think>"}])
def test_sharegpt_writes_a_thought_before_its_call(thought: dict[str, str]) -> None:
    turn = Message(
        "assistant",
        thought.get("content", ""),
        True,
        tool_calls=(call("weather"),),
        reasoning=thought.get("reasoning", ""),
    )
    written = sharegpt_row(row(Message("user", "q"), turn))["conversations"][1]
    assert written["from"] == "function_call"
    assert written["value"] == '<think>\nhm\n</think>\n{"name": "weather", "arguments": {"city": "Oslo"}}'
    with pytest.raises(CannotExpressError, match="both text and tool calls"):
        sharegpt_row(row(Message("user", "q"), Message("assistant", "look", True, tool_calls=(call("weather"),))))


def test_alpaca_writes_a_thought_into_the_output() -> None:
    written = alpaca_row(row(Message("user", "q"), SAYS))
    assert written["output"] == "<think>\nso\n</think>\n\na"
    assert json.dumps(written)


def test_text_leaves_bos_and_eos_to_the_trainer() -> None:
    assert text_row(row(Message("text", "<s>Fig </s>\n", True)), "<s>", "</s>") == {"text": "Fig "}
    assert text_row(row(Message("text", "Fig\n", True)), "<s>", "</s>") == {"text": "Fig\n"}
