"""Turns of a conversation, as ShareGPT, OpenAI, TRL and the Hub write them -> Messages."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from instruct_prune.rows.reader import RowError, named_type
from instruct_prune.rows.row import Message

ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "function_call",
    "tool_call": "function_call",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "ipython": "tool",
}
_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")  # what the strictest chat template (Mistral's) accepts
Tools = tuple[Mapping[str, Any], ...]


def messages_of(turns: object, field: str) -> list[Message]:
    """Convert a list of {role, content} or {from, value} turns; every assistant turn is trained unless its weight is 0.

    Raises:
        RowError: naming the turn and what is wrong with it.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a list as JSON text, as in a CSV file
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError) as error:
            raise RowError(f"expected a list of turns, found text that is not JSON: {error}", field) from None
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RowError(f"expected a list of turns, found {named_type(turns)}", field)
    return [_message(turn, f"{field}[{i}]", i) for i, turn in enumerate(turns)]


def _message(turn: object, field: str, position: int) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError(f"expected a turn with role and content, found {named_type(turn)}", field)
    tag = turn.get("role", turn.get("from"))
    if tag is None:
        raise RowError("the turn has neither 'role' nor 'from'", field)
    role = ROLES.get(tag.strip().lower()) if isinstance(tag, str) else None
    if role is None:
        raise RowError(f"unknown role {tag!r}; known: {', '.join(ROLES)}", field)
    content = _content(turn, field)
    trained = _weight(turn, field) > 0
    if role == "function_call":
        calls = _written_calls(content, position)
        return Message("assistant", "" if calls else content, trained, tool_calls=calls)
    if role == "assistant":
        calls = _calls(turn.get("tool_calls"), f"{field}.tool_calls", position)
        return Message("assistant", content, trained, tool_calls=calls)
    return Message(role, content)


def _content(turn: Mapping[str, Any], field: str) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return content
    if content is None:
        if turn.get("tool_calls"):
            return ""
        raise RowError("the turn has no content", field)
    if isinstance(content, Sequence):
        return "".join(_part(part, f"{field}.content[{i}]") for i, part in enumerate(content))
    raise RowError(f"content must be text or a list of parts, this is {named_type(content)}", field)


def _part(part: object, field: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        text = part.get("text")
        text = part.get("value") if text is None else text
        if isinstance(text, str):
            return text
    kind = part.get("type") if isinstance(part, Mapping) else named_type(part)
    raise RowError(f"only text parts can be scored, this part is {kind!r}", field)


def _weight(turn: Mapping[str, Any], field: str) -> float:
    weight = turn.get("weight")
    if weight is None:
        return 1
    if isinstance(weight, bool | int | float):
        return float(weight)
    raise RowError(f"weight must be 0 or 1, this is {weight!r}", field)


def _written_calls(text: str, position: int) -> Tools:
    """Calls written as JSON in the text of a ShareGPT function_call turn; none if it is not such JSON."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return ()
    calls = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        return ()
    return tuple(_call(call["name"], call.get("arguments", {}), position, i, None) for i, call in enumerate(calls))


def _calls(value: object, field: str, position: int) -> Tools:
    if not value:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(f"expected a list of calls, found {named_type(value)}", field)
    calls = []
    for i, call in enumerate(value):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("the call has no function name", f"{field}[{i}]")
        calls.append(_call(function["name"], function.get("arguments"), position, i, call.get("id")))
    return tuple(calls)


def _call(name: str, arguments: object, position: int, i: int, identifier: object) -> Mapping[str, Any]:
    if isinstance(arguments, str):  # OpenAI writes JSON text; chat templates want the object
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    if not (isinstance(identifier, str) and _CALL_ID.fullmatch(identifier)):
        identifier = f"c{position % 10**4:04d}{i % 10**4:04d}"
    function = {"name": name, "arguments": {} if arguments is None else arguments}
    return {"id": identifier, "type": "function", "function": function}


def tools_of(value: object, field: str) -> Tools:
    """Tool definitions: a list, or JSON text of one; bare definitions are wrapped as OpenAI's are.

    Raises:
        RowError: it is neither.
    """
    if value is None or value == "":
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"expected a list of tools as JSON text: {error}", field) from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("expected a list of tool definitions", field)
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)


_TRANSCRIPT = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]*")


def transcript(text: str) -> list[Message] | None:
    """Anthropic HH's "\\n\\nHuman: ... \\n\\nAssistant: ..." text as turns, or None if it is not one."""
    pieces = _TRANSCRIPT.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return None
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[tag], said, tag == "Assistant") for tag, said in zip(pieces[1::2], pieces[2::2], strict=True)]
