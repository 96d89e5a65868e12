"""Every family of chat templates writes the same conversations; what is scored is compared with forms written by hand."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from chat_cases import conversation, scored_pieces
from families import FAMILIES, Family, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_prune.encode.item import Status
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.rows.row import Message, Row

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def call(city: str, turn: int = 1, i: int = 0) -> dict[str, Any]:
    function = {"name": "weather", "arguments": {"city": city}}
    return {"id": f"c{turn:04d}{i:04d}", "type": "function", "function": function}


def says(text: str, *calls: Any, reasoning: str = "") -> Message:
    return Message("assistant", text, True, tool_calls=calls, reasoning=reasoning)


def written(form: str, text: str = "", thought: str = "", calls: str = "") -> str:
    return form.replace("TEXT", text).replace("THOUGHT", thought).replace("@CALLS", calls)


@cache
def encoder_of(family: str) -> tuple[Any, Encoder]:
    tokenizer = tokenizer_of(family)
    return tokenizer, Encoder(tokenizer, "chat", max_length=10_000)


def pieces_of(family: str, row: Row) -> list[str] | str:
    """What is scored; the reason where the row is refused."""
    tokenizer, encoder = encoder_of(family)
    [encoded] = encoder.encode([row])
    return scored_pieces(tokenizer, encoded) if encoded.status is Status.OK else encoded.reason


each_family = pytest.mark.parametrize("family", FAMILIES)


def answer(form: Family, text: str) -> str:
    return written(form.after_tool or form.last, text)


@each_family
def test_one_turn(family: str) -> None:
    row = conversation(("user", "ask one"), ("assistant", "reply one"))
    assert pieces_of(family, row) == [written(FAMILIES[family].last, "reply one")]


@each_family
def test_many_turns_and_a_system_message(family: str) -> None:
    form = FAMILIES[family]
    turns = [("user", "ask one"), ("assistant", "reply one"), ("user", "ask two"), ("assistant", "reply two")]
    expected = [written(form.text, "reply one"), written(form.last, "reply two")]
    assert pieces_of(family, conversation(*turns)) == expected
    assert pieces_of(family, conversation(("system", "be kind"), *turns)) == expected
    untrained = conversation(turns[0], Message("assistant", "reply one"), *turns[2:])
    assert pieces_of(family, untrained) == expected[1:]


@each_family
def test_a_thought_of_its_own(family: str) -> None:
    form = FAMILIES[family]
    row = conversation(("user", "ask one"), says("reply one", reasoning="idea one"))
    found = pieces_of(family, row)
    if form.thought is not None:
        assert found == [written(form.thought, "reply one", "idea one")]
        return
    assert isinstance(found, list)
    assert [piece.strip() for piece in found] == [written(form.last, "reply one").strip()]
    assert any("thoughts" in note for note in encoder_of(family)[1].notes)


@each_family
def test_a_thought_in_the_text_is_scored_or_said_to_be_left_out(family: str) -> None:
    row = conversation(("user", "ask one"), says("<think>\nidea one\n</think>\n\nreply one"))
    found = pieces_of(family, row)
    assert isinstance(found, list)
    assert "reply one" in found[0]
    if "idea one" not in found[0]:
        assert any("leaves out thoughts" in note for note in encoder_of(family)[1].notes)


@each_family
def test_calls(family: str) -> None:
    form = FAMILIES[family]
    turns = [("user", "ask one"), says("", call("Oslo")), ("tool", "rain"), ("assistant", "reply one")]
    first = written(form.calls, calls=form.called("Oslo"))
    assert pieces_of(family, conversation(*turns, tools=(TOOL,))) == [first, answer(form, "reply one")]
    last = written(form.last_calls or form.calls, calls=form.called("Oslo"))
    assert pieces_of(family, conversation(*turns[:2], tools=(TOOL,))) == [last]


@each_family
def test_calls_one_after_the_other(family: str) -> None:
    form = FAMILIES[family]
    turns = [("user", "ask one"), says("", call("Oslo")), ("tool", "rain"), says("", call("Bern", 3)), ("tool", "sun")]
    first, second = (written(form.calls, calls=form.called(city)) for city in ("Oslo", "Bern"))
    second = second.replace("c00010000", "c00030000")
    row = conversation(*turns, ("assistant", "reply one"), tools=(TOOL,))
    assert pieces_of(family, row) == [first, second, answer(form, "reply one")]


@each_family
def test_parallel_calls(family: str) -> None:
    form = FAMILIES[family]
    two = says("", call("Oslo"), call("Bern", i=1))
    turns = [("user", "ask one"), two, ("tool", "rain"), ("tool", "sun"), ("assistant", "reply one")]
    found = pieces_of(family, conversation(*turns, tools=(TOOL,)))
    if form.strict or not form.parallel:
        assert isinstance(found, str)
        assert "the chat template refuses this conversation" in found
        return
    assert found == [written(form.calls, calls=form.called("Oslo", "Bern")), answer(form, "reply one")]
    if form.parallel == "first":
        assert any("leaves out calls" in note for note in encoder_of(family)[1].notes)


@each_family
def test_a_call_with_text(family: str) -> None:
    form = FAMILIES[family]
    turns = [("user", "ask one"), says("look one", call("Oslo")), ("tool", "rain"), ("assistant", "reply one")]
    found = pieces_of(family, conversation(*turns, tools=(TOOL,)))
    calls = form.called("Oslo")
    if form.text_calls is None:
        assert found == [written(form.calls, calls=calls), answer(form, "reply one")]
        assert any("what turns say beside a call" in note for note in encoder_of(family)[1].notes)
        return
    forms = (form.text_calls,) if isinstance(form.text_calls, str) else form.text_calls
    assert found == [*(written(each, "look one", calls=calls) for each in forms), answer(form, "reply one")]


@each_family
def test_leading_blanks_are_scored_where_they_are_written(family: str) -> None:
    row = conversation(("user", "ask one"), ("assistant", "    return 1"))
    found = pieces_of(family, row)
    assert isinstance(found, list)
    _, encoder = encoder_of(family)
    text = "".join(text for text, _ in encoder.render(row))
    assert ("    return 1" in text) == ("    return 1" in found[0])


# ---- any conversation ----

INSIDE = st.sampled_from(["x", "é", "漢", " y", "\nz", '"q"', "\\", "<b>"])


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Row, list[list[str]], list[str]]:
    """A row, what each assistant turn says, and what others say; no word twice."""
    count = iter(range(10**6))
    blank = st.sampled_from(["", " ", "\n", "  \n"])

    def word(kind: str) -> str:
        return f"{kind}{next(count)}{draw(INSIDE)}end"

    messages: list[Message] = []
    said: list[list[str]] = []
    others: list[str] = []
    for turn in range(draw(st.integers(1, 4))):
        others.append(word("user"))
        messages.append(Message("user", draw(blank) + others[-1] + draw(blank)))
        kind = draw(st.sampled_from(["text", "text", "thought", "inline", "call", "both"]))
        text = word("text") if kind != "call" else ""
        thought = word("thought") if kind == "thought" else ""
        calls = ()
        if kind in ("call", "both"):
            calls = (call(word("city"), 2 * turn + 1),)
        shown = f"<think>\n{word('idea')}\n</think>\n\n{text}" if kind == "inline" else draw(blank) + text + draw(blank)
        messages.append(Message("assistant", shown if text else "", True, tool_calls=calls, reasoning=thought))
        said.append([piece for piece in (text, *(c["function"]["arguments"]["city"] for c in calls)) if piece])
        if calls:
            others.append(word("result"))
            messages.append(Message("tool", others[-1]))
            said.append([word("answer")])
            messages.append(Message("assistant", said[-1][0], True))
    return conversation(*messages, tools=(TOOL,) if draw(st.booleans()) else ()), said, others


def escaped(piece: str) -> tuple[str, ...]:
    """A piece as it is, and as JSON writes it."""
    return piece, json.dumps(piece, ensure_ascii=False)[1:-1], json.dumps(piece)[1:-1]


@each_family
@settings(max_examples=25, deadline=None)
@given(given_row=conversations())
def test_any_conversation(family: str, given_row: tuple[Row, list[list[str]], list[str]]) -> None:
    row, said, others = given_row
    tokenizer, _ = encoder_of(family)
    encoder = Encoder(tokenizer, "chat", max_length=100_000)
    [encoded] = encoder.encode([row])
    if encoded.status is Status.FAILED:
        assert encoded.reason
        return
    pieces = scored_pieces(tokenizer, encoded)
    scored = "\0".join(pieces)
    for word in (word for turn in said for word in turn):
        if not any(form in scored for form in escaped(word)):
            assert any("leaves out" in note for note in encoder.notes), word
    for word in others:
        assert not any(form in scored for form in escaped(word)), word
    ends = {end for form in (FAMILIES[family].text, FAMILIES[family].last) for end in [form.rpartition("TEXT")[2]]}
    ends.add(FAMILIES[family].calls.rpartition("@CALLS")[2])
    forms = FAMILIES[family].text_calls
    if isinstance(forms, tuple):
        ends |= {form.rpartition("@CALLS")[2] or form.rpartition("TEXT")[2] for form in forms}
    if all(ends):
        assert all(piece.endswith(tuple(ends)) for piece in pieces), pieces
