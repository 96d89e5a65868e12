"""Calls of functions, however a dataset writes them, in OpenAI's one form.

Objects, JSON text, and the text that model families write themselves: Hermes and Qwen (``<tool_call>``), Llama
(``<|python_tag|>``), Mistral (``[TOOL_CALLS]``), Glaive (``<functioncall>``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from instruct_prune.rows.reader import loads

_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")  # what the strictest chat template (Mistral's) accepts
_ARGUMENTS = ("arguments", "parameters", "args", "input")
_OPENING = re.compile(r"<tool_call>|<\|tool_call\|?>|<\|python_tag\|>|\[TOOL_CALLS\]|<functioncall>|<function_call>")
_BETWEEN = re.compile(
    r"(?:[\s;,]|</?(?:tool_call|function_call|functioncall)>|<\|/?tool_call\|?>|\[TOOL_CALLS\]|<\|e(?:om|ot)_id\|>"
    r"|<\|endoftext\|>|<\|im_end\|>|</s>)*"
)
_NAMED = re.compile(r"([\w.-]+)(?:\[CALL_ID\]\w+)?(?:\[ARGS\])?\s*(?=\{)")  # Mistral since 2025: name, then arguments
_QUOTED = re.compile(r"""\{\s*"name"\s*:\s*"([^"]+)"\s*,\s*"arguments"\s*:\s*'(.*?)'\s*\}""", re.DOTALL)  # Glaive
_DECODER = json.JSONDecoder()

Call = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WrittenCalls:
    """Calls that a turn writes in its text.

    Attributes:
        before: what stands before them.
        calls: in OpenAI's form.
        marker: the text that opens the first of them ("" where it is bare JSON): it tells the model family.
    """

    before: str
    calls: tuple[Call, ...]
    marker: str


def call_of(value: object, identifier: str) -> Call | None:
    """One call in OpenAI's form, or None where the value is no call.

    Args:
        value: ``{"function": {"name", "arguments"}}``, ``{"name", "arguments"}`` or one with ``parameters``, ``input``.
        identifier: the id of a call that brings none that every chat template takes (nine letters and digits).
    """
    if not isinstance(value, Mapping):
        return None
    function = value.get("function", value)
    if isinstance(function, str):  # {"function": name, "arguments": ...}
        function = {**value, "name": function}
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return None
    arguments = next((function[key] for key in _ARGUMENTS if function.get(key) is not None), None)
    if isinstance(arguments, str):  # OpenAI writes JSON text; most chat templates want the object
        with suppress(ValueError, RecursionError):
            arguments = loads(arguments)
    own = value.get("id")
    if isinstance(own, str) and _CALL_ID.fullmatch(own):
        identifier = own
    said = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {"id": identifier, "type": "function", "function": said}


def call_id(position: int, i: int) -> str:
    """An id for call ``i`` of the turn at ``position``."""
    return f"c{position % 10**4:04d}{i % 10**4:04d}"


def bare_calls(text: str, position: int) -> WrittenCalls | None:
    """Calls that are JSON and nothing else (ShareGPT's function_call turns), after a thought perhaps.

    Returns:
        None where the text holds anything else.
    """
    thought = text.rfind("</think>")
    begin = thought + len("</think>") if thought >= 0 else 0
    calls = _parsed(text, begin, position)
    return WrittenCalls(text[:begin], calls, "") if calls else None


def written_calls(text: str, position: int) -> WrittenCalls | None:
    """Calls that a turn writes in its text as a model family does, up to its end.

    Returns:
        None where there are none, or where something else follows them.
    """
    opening = _OPENING.search(text)
    if opening is None:
        return None
    calls = _parsed(text, opening.start(), position)
    return WrittenCalls(text[: opening.start()].rstrip(), calls, opening[0]) if calls else None


def _parsed(text: str, begin: int, position: int) -> tuple[Call, ...]:
    """All calls from ``begin`` to the end of the text; none where anything else stands among them."""
    calls: list[Call] = []
    while True:
        skipped = _BETWEEN.match(text, _begin_of(text, begin))
        assert skipped is not None  # it matches nothing at all, too
        begin = skipped.end()
        if begin == len(text):
            return tuple(calls)
        found, begin = _values(text, begin)
        for value in found:
            call = call_of(value, call_id(position, len(calls)))
            if call is None:
                return ()
            calls.append(call)
        if not found:
            return ()


def _begin_of(text: str, begin: int) -> int:
    opening = _OPENING.match(text, begin)
    return opening.end() if opening else begin


def _values(text: str, begin: int) -> tuple[list[object], int]:
    """The next call or list of calls, and where it ends."""
    quoted = _QUOTED.match(text, begin)
    if quoted:
        return [{"name": quoted[1], "arguments": quoted[2]}], quoted.end()
    named = _NAMED.match(text, begin)
    try:
        value, end = _DECODER.raw_decode(text, named.end() if named else begin)
    except (ValueError, RecursionError):
        return [], begin
    if named:
        return [{"name": named[1], "arguments": value}], end
    return (value if isinstance(value, list) else [value]), end
