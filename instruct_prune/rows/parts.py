"""Content that is a list of parts: text, pictures, thoughts, calls and results, as OpenAI, Anthropic and LLaMA-Factory write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instruct_prune.rows.calls import Call, call_id, call_of
from instruct_prune.rows.pictures import OF_PARTS, part_of
from instruct_prune.rows.reader import RowError, loads, named_type
from instruct_prune.rows.row import Part

_TEXT = ("text", "input_text", "output_text")
_THOUGHTS = ("reasoning", "thinking", "think", "thought", "reasoning_content")
_CALLS = ("tool_call", "tool_calls", "function_call", "tool_use", "function")
_RESULTS = ("tool_result", "tool_response")
_ORDER = ("thoughts", "text", "calls")


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a turn says.

    Attributes:
        text: its words.
        thoughts: what it thought before.
        calls: in OpenAI's form.
        results: (id of the call as the data have it, text) of results that a turn of the user carries (Anthropic).
        remarks: how it was read, where that is not what the data say.
        shown: its words and pictures in order, where it shows pictures.
    """

    text: str
    thoughts: str = ""
    calls: tuple[Call, ...] = ()
    results: tuple[tuple[str, str], ...] = ()
    remarks: tuple[str, ...] = ()
    shown: tuple[Part, ...] = ()

    @property
    def content(self) -> str | tuple[Part, ...]:
        """As `Message` has it."""
        return self.shown or self.text


def parts_of(parts: Sequence[object], field: str, position: int) -> Spoken:
    """Read the parts of one turn.

    Args:
        parts: strings and ``{"type", "text"}``; LLaMA-Factory has ``value`` in place of ``text``. Those of the type image hold a
            picture, or stand where one of the row's ``images`` is shown.
        field: where they stand, for messages.
        position: of the turn, for the ids of calls.

    Raises:
        RowError: naming the part that cannot be read.
    """
    said: list[Part] = []
    thoughts: list[str] = []
    calls: list[Call] = []
    results: list[tuple[str, str]] = []
    seen: list[str] = []
    for i, part in enumerate(parts):
        where = f"{field}[{i}]"
        if isinstance(part, str):
            part = {"type": "text", "text": part}
        kind = part.get("type", "text") if isinstance(part, Mapping) else named_type(part)
        if not isinstance(part, Mapping) or not isinstance(kind, str):
            raise RowError(f"only text parts can be scored, this part is {kind!r}", where)
        if kind in _THOUGHTS:
            thoughts.append(_words(part, kind, where))
        elif kind in _CALLS:
            calls += _calls(part, kind, where, position, len(calls))
        elif kind in _RESULTS:
            results.append((str(part.get("tool_use_id", part.get("tool_call_id"))), _result(part, where)))
        elif kind in _TEXT:
            said.append(Part("text", _words(part, kind, where)))
        elif kind in OF_PARTS:
            said.append(part_of(part, where))
        else:
            raise RowError(f"only text parts can be scored, this part is {kind!r}", where)
        seen.append("thoughts" if kind in _THOUGHTS else "calls" if kind in _CALLS else "text")
    remarks: tuple[str, ...] = ()
    if seen != sorted(seen, key=_ORDER.index):
        remarks = ("parts of a turn in another order are put in this one: thoughts, text, calls",)
    text = "".join(part.value for part in said if isinstance(part.value, str))
    shown = tuple(said) if any(part.kind == "image" for part in said) else ()
    return Spoken(text, "\n\n".join(thoughts), tuple(calls), tuple(results), remarks, shown)


def _words(part: Mapping[str, Any], kind: str, field: str) -> str:
    for key in ("text", "value", kind, "content", "summary"):
        value = part.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, Sequence) and value:  # Mistral: a thought is a list of text parts
            return "".join(_words(_as_part(piece), "text", field) for piece in value)
    raise RowError(f"only text parts can be scored, this part is {kind!r}", field)


def _as_part(piece: object) -> Mapping[str, Any]:
    return piece if isinstance(piece, Mapping) else {"text": piece}


def _calls(part: Mapping[str, Any], kind: str, field: str, position: int, before: int) -> list[Call]:
    value = next((part[key] for key in ("value", kind, "function") if part.get(key) is not None), part)
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            value = loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"the call is no JSON: {error}", field) from None
    values = value if isinstance(value, list) else [value]
    calls = []
    for i, each in enumerate(values, before):
        call = call_of(each if isinstance(each, Mapping) else part, call_id(position, i))
        if call is None:
            raise RowError("the call has no function name", field)
        calls.append(call)
    return calls


def _result(part: Mapping[str, Any], field: str) -> str:
    value = next((part[key] for key in ("content", "value", "text") if part.get(key) is not None), "")
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):
        return "".join(_words(_as_part(piece), "text", field) for piece in value)
    raise RowError("a result must be text", field)
