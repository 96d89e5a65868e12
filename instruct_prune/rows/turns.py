"""Turns of a conversation, as ShareGPT, OpenAI, TRL and the Hub write them -> Messages."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from instruct_prune.rows.calls import bare_calls, call_id, call_of
from instruct_prune.rows.flags import MASKED, TRAINED, flags_of
from instruct_prune.rows.parts import Spoken, parts_of
from instruct_prune.rows.reader import RowError, loads, named_type
from instruct_prune.rows.row import Message

_TAGS = {
    "system": ("system", "developer"),
    "user": ("human", "user"),
    "assistant": ("gpt", "assistant", "chatgpt", "model"),
    "function_call": ("function_call", "tool_call"),
    "tool": ("tool", "observation", "function", "function_response", "tool_response", "ipython"),
}
ROLES = {tag: role for role, tags in _TAGS.items() for tag in tags}
Tools = tuple[Mapping[str, Any], ...]

REASONING = ("reasoning_content", "thinking", "reasoning")
_PLAIN = frozenset(("role", "content", "from", "value"))  # keys of most turns
_OF_ASSISTANTS = frozenset(("tool_calls", "function_call", *REASONING))
_OF_TOOLS = frozenset(("tool_call_id", "name"))


def messages_of(turns: object, field: str) -> list[Message]:
    """Convert a list of {role, content} or {from, value} turns; every assistant turn is trained unless it says not.

    Keys that are not read go to ``Message.extra``.

    Raises:
        RowError: naming the turn and what is wrong with it.
    """
    if isinstance(turns, str) and turns.lstrip().startswith("["):  # a list as JSON text, as in a CSV file
        try:
            turns = loads(turns)
        except (ValueError, RecursionError) as error:
            raise RowError(f"expected a list of turns, found text that is not JSON: {error}", field) from None
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RowError(f"expected a list of turns, found {named_type(turns)}", field)
    said: list[Message] = []
    answers: dict[str, str] = {}  # the data's id (or name) of a call -> the id that it has here
    open_calls = False  # whether the turn before is a function_call turn
    for i, turn in enumerate(turns):
        more, is_calls = _messages(turn, f"{field}[{i}]", i, answers)
        if is_calls and said and _same_turn(said[-1], more[0], open_calls):
            said[-1] = replace(said[-1], tool_calls=said[-1].tool_calls + more[0].tool_calls)
        else:
            said += more
        open_calls = is_calls
    return said


def _same_turn(before: Message, calls: Message, open_calls: bool) -> bool:
    """Whether calls in a turn of their own (ms-swift, LLaMA-Factory) belong to the assistant's turn before it.

    They do where it has no calls yet, or none but parallel ones in turns of their own.
    """
    if before.role != "assistant" or before.trained != calls.trained or not calls.tool_calls:
        return False
    return (open_calls or not before.tool_calls) and not (calls.text or calls.reasoning or calls.extra)


def _messages(turn: object, field: str, position: int, answers: dict[str, str]) -> tuple[list[Message], bool]:
    """The messages of one turn (several where it answers several calls), and whether it is a function_call turn."""
    if not isinstance(turn, Mapping):
        raise RowError(f"expected a turn with role and content, found {named_type(turn)}", field)
    tag = turn.get("role")
    tag = turn.get("from") if tag is None else tag
    if tag is None:
        raise RowError("the turn has neither 'role' nor 'from'", field)
    role = ROLES.get(tag.strip().lower()) if isinstance(tag, str) else None
    if role is None:
        raise RowError(f"unknown role {tag!r}; known: {', '.join(ROLES)}", field)
    spoken = _spoken(turn, role, field, position)
    extra = _unread(turn, role) if len(turn) > 2 else {}
    flags, more = flags_of(turn, field, role) if len(turn) > 2 else ((), {})
    extra |= more
    trained = all(flags)
    if role in ("function_call", "assistant"):
        return [_assistant(turn, spoken, field, position, trained, extra, answers)], role == "function_call"
    if spoken.thoughts or spoken.calls:
        raise RowError(f"thoughts and calls belong to assistant turns, this is {tag!r}", field)
    if spoken.results:
        results = [Message("tool", text, call_id=answers.get(call, "")) for call, text in spoken.results]
        rest = [Message(role, spoken.content, extra=extra)] if spoken.text.strip() or spoken.shown else []
        return results + rest, False
    answered = ""
    if role == "tool" and (turn.get("tool_call_id") or turn.get("name")):
        answered = answers.get(str(turn.get("tool_call_id")), "") or answers.get(f"name {turn.get('name')}", "")
    return [Message(role, spoken.content, extra=extra, call_id=answered)], False


def _spoken(turn: Mapping[str, Any], role: str, field: str, position: int) -> Spoken:
    content = turn.get("content")
    content = turn.get("value") if content is None else content
    if isinstance(content, str):
        return Spoken(content)
    if content is None and role == "function_call" and isinstance(turn.get("name"), str):  # ms-swift
        call = call_of(turn, call_id(position, 0))
        return Spoken("", calls=(call,) if call else ())
    if content is None:
        others = (*REASONING, "tool_calls", "function_call") if role == "assistant" else ()
        if any(turn.get(key) for key in others):
            return Spoken("")
        raise RowError("the turn has no content", field)
    if isinstance(content, Mapping):
        content = [content]
    if isinstance(content, Sequence) and not isinstance(content, bytes):
        return parts_of(content, f"{field}.content", position)
    raise RowError(f"content must be text or a list of parts, this is {named_type(content)}", field)


def _assistant(
    turn: Mapping[str, Any],
    spoken: Spoken,
    field: str,
    position: int,
    trained: bool,
    extra: dict[str, Any],
    answers: dict[str, str],
) -> Message:
    remarks = spoken.remarks
    text, calls = spoken.text, spoken.calls
    if ROLES[str(turn.get("role") or turn.get("from")).strip().lower()] == "function_call" and not calls:
        found = bare_calls(text, position)
        if found is None:
            remarks += ("function_call turns that hold no JSON of a call are taken as text",)
        else:
            text, calls = found.before, found.calls
    calls += _calls(turn.get("tool_calls"), f"{field}.tool_calls", position, len(calls), answers)
    legacy = turn.get("function_call")
    if legacy is not None and not calls:
        calls = _calls([_parsed(legacy)], f"{field}.function_call", position, 0, answers)
        extra.pop("function_call", None)
    for call in calls:
        answers.setdefault(call["id"], call["id"])
    for call in reversed(calls):  # where a result says nothing but a name, it answers the first call of that name
        answers[f"name {call['function']['name']}"] = call["id"]
    reasoning = spoken.thoughts
    for key in REASONING:
        thought = _thought(turn.get(key), extra, key)
        if thought is None:
            continue
        if not reasoning:
            reasoning = thought
        elif thought.strip() != reasoning.strip():
            extra[key] = turn[key]
    content = spoken.shown or text
    return Message("assistant", content, trained, tool_calls=calls, reasoning=reasoning, extra=extra, remarks=remarks)


def _thought(value: object, extra: dict[str, Any], key: str) -> str | None:
    """The words of a reasoning key; what is in no known form is left in ``extra``."""
    if value is None or value == "":
        return None
    if isinstance(value, str):
        return value
    pieces = value if isinstance(value, list) else [value]
    words = [piece.get("text", piece.get("thinking")) if isinstance(piece, Mapping) else piece for piece in pieces]
    if all(isinstance(word, str) for word in words):
        return "\n".join(map(str, words))
    extra[key] = value
    return None


def _unread(turn: Mapping[str, Any], role: str) -> dict[str, Any]:
    """The keys that are neither read nor null. A flag of a turn that is not trained anyway is not among them."""
    read = set(_PLAIN)
    if role in ("assistant", "function_call"):
        read |= _OF_ASSISTANTS
    elif role == "tool":
        read |= _OF_TOOLS
    if role == "function_call" and turn.get("content", turn.get("value")) is None:
        read |= {"name", "arguments", "parameters"}
    read.update(TRAINED, MASKED, ("train_detail",))
    extra = {key: value for key, value in turn.items() if key not in read and value is not None}
    if turn.get("content") is not None and turn.get("value") not in (None, turn["content"]):
        extra["value"] = turn["value"]
    if turn.get("role") is not None and turn.get("from") not in (None, turn["role"]):
        extra["from"] = turn["from"]
    if turn.get("function_call") is not None and role in ("assistant", "function_call"):
        extra["function_call"] = turn["function_call"]  # taken out again where it is the call
        if _names([turn["function_call"]]) == _names(turn.get("tool_calls")):
            del extra["function_call"]
    return extra


def _names(calls: object) -> list[object]:
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        return []
    found = [call_of(_parsed(call), "") for call in calls]
    return [call and call["function"] for call in found]


def _calls(value: object, field: str, position: int, before: int, answers: dict[str, str]) -> Tools:
    value = _parsed(value)
    if not value:
        return ()
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RowError(f"expected a list of calls, found {named_type(value)}", field)
    calls: list[Mapping[str, Any]] = []
    for i, entry in enumerate(value, before):
        call = call_of(_parsed(entry), call_id(position, i))
        if call is None:
            raise RowError("the call has no function name", f"{field}[{i - before}]")
        if isinstance(entry, Mapping) and entry.get("id") is not None:
            answers[str(entry["id"])] = call["id"]
        calls.append(call)
    return tuple(calls)


def _parsed(value: object) -> object:
    """A value that may be JSON text of a list or an object."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def tools_of(value: object, field: str) -> Tools:
    """Tool definitions: a list, or JSON text of one; bare definitions are wrapped as OpenAI's are.

    Blank text, "null", "[]" and "{}" are no tools.

    Raises:
        RowError: it is neither.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return ()
    if isinstance(value, str):
        try:
            value = loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"expected a list of tools as JSON text: {error}", field) from None
    if not value and not isinstance(value, bool | int | float):
        return ()
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence) and not isinstance(value, str):  # each of them may be JSON text, too
        value = [_parsed(tool) for tool in value]
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
