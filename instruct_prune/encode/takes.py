"""Which messages a chat template takes, learnt by writing small conversations with it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instruct_prune.encode.rendering import RenderError

Turn = dict[str, Any]
Write = Callable[..., str]  # (messages, tools=(), prompt=False) -> text; raises RenderError

# Letters and digits only, so that no template's escaping changes them.
OPEN, CLOSE = "Zq7mOPEN", "Zq7mCLOSE"
ASKS: Turn = {"role": "user", "content": "Hi"}
CALL: dict[str, Any] = {"id": "c00010000", "type": "function", "function": {"name": "f", "arguments": {"a": "b"}}}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string", "description": "d"}},
            "required": ["a"],
        },
    },
}
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Takes:
    """Which messages a template takes.

    Attributes:
        system, tools, calls, results: whether it writes them.
        arguments: "object" or "text": how it wants the arguments of calls.
        quiet: the content of a turn that calls and says nothing: "" or None.
        reasoning: the key under which it takes a thought, or "" where it takes none.
        inline: whether it speaks of thoughts in the text of a turn (``</think>``).
    """

    system: bool
    tools: bool
    calls: bool
    results: bool
    arguments: str
    quiet: str | None
    reasoning: str
    inline: bool

    @classmethod
    def of(cls, write: Write, source: str) -> Takes:
        plain = answer("x")
        # With an answer at the end, since Mistral's template moves the system message to the last turn of the user.
        system = _writes(write, {"role": "system", "content": OPEN}, ASKS, plain)
        tools = _writes(write, ASKS, plain, tools=[_named(_TOOL, OPEN)])
        ways: tuple[tuple[str, str | None], ...] = (("object", ""), ("text", ""), ("object", None), ("text", None))
        way = next((way for way in ways if _writes_call(write, *way)), None)
        calls, (arguments, quiet) = way is not None, way or ways[0]
        called = called_turn("f", arguments, quiet) if calls else plain
        result = {"role": "tool", "content": OPEN, "tool_call_id": CALL["id"], "name": "f"}
        results = _writes(write, ASKS, called, result)
        reasoning = ""
        for key in _REASONING:
            if re.search(rf"\b{key}\b", source) and (
                _writes(write, ASKS, {**plain, key: OPEN})
                or (calls and _writes(write, ASKS, {**called, key: OPEN}))
                or (calls and _writes(write, ASKS, {**called, key: OPEN}, {**result, "content": "x"}))
            ):
                reasoning = key
                break
        return cls(system, tools, calls, results, arguments, quiet, reasoning, "</think>" in source)


def called_turn(name: str, arguments: str, quiet: str | None, value: str = "b") -> Turn:
    """A turn that calls a function and says nothing."""
    given: Any = {"a": value}
    function = {"name": name, "arguments": json.dumps(given) if arguments == "text" else given}
    return {"role": "assistant", "content": quiet, "tool_calls": [{**CALL, "function": function}]}


def answer(text: str) -> Turn:
    return {"role": "assistant", "content": text}


def _writes(write: Write, *messages: Turn, tools: Sequence[Mapping[str, Any]] = ()) -> bool:
    """Whether the template accepts these and writes the marker that is in one of them."""
    try:
        return OPEN in write(list(messages), tools)
    except RenderError:
        return False


def _writes_call(write: Write, arguments: str, quiet: str | None) -> bool:
    """Whether name and argument are written, and the argument as JSON or in a form of its own."""
    try:
        text = write([ASKS, called_turn(OPEN, arguments, quiet, CLOSE)])
    except RenderError:
        return False
    as_python, twice = f"'{CLOSE}'" in text, f'\\"{CLOSE}' in text
    return OPEN in text and CLOSE in text and not as_python and not twice


def _named(call: dict[str, Any], name: str) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "name": name}}
