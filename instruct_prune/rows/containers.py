"""What containers do to rows, undone: the one place between a reader and a row format.

Arrow has one type a column: objects with different keys are filled up with nulls, or become JSON text (``arrow.json``, the
``Json`` feature of `datasets`). CSV files, and many people, keep lists and objects as JSON text. pandas writes NaN for a
value that is missing. After this module a row looks as it would have in a JSONL file.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from instruct_prune.rows.reader import RowError, is_turn, loads

Undo = Callable[[Any], Any]


# ---- Arrow ----


def arrow_undo(schema: Any) -> dict[str, Undo]:
    """For each column of an Arrow schema that needs it: a function from its Python value to what was put into it."""
    found = {field.name: _undo_of(field) for field in schema}
    return {name: undo for name, undo in found.items() if undo is not None}


def _undo_of(field: Any) -> Undo | None:
    """The function for one field; None where values come out as they went in."""
    import pyarrow as pa

    kind = field.type
    marked = (field.metadata or {}).get(b"ARROW:extension:name") == b"arrow.json"
    if marked or getattr(kind, "extension_name", None) == "arrow.json":
        return _parsed
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_struct(kind):
        if {part.name for part in kind} == {"bytes", "path"}:  # a picture of `datasets`, one of them null
            return None
        return _struct_undo({part.name: _undo_of(part) for part in kind})
    if pa.types.is_map(kind):
        inner = _undo_of(kind.item_field)
        return lambda pairs: None if pairs is None else {k: inner(v) if inner else v for k, v in pairs}
    if pa.types.is_nested(kind) and hasattr(kind, "value_field"):  # a list of one of Arrow's kinds
        each = _undo_of(kind.value_field)
        return each and (lambda values: None if values is None else [each(value) for value in values])
    return None


def _struct_undo(parts: Mapping[str, Undo | None]) -> Undo:
    def undo(value: Any) -> Any:
        if value is None:
            return None
        return {name: (parts[name] or _same)(part) for name, part in value.items() if part is not None}

    return undo


def _same(value: Any) -> Any:
    return value


def _parsed(text: Any) -> Any:
    if not isinstance(text, str | bytes):
        return text
    try:
        return loads(text if isinstance(text, str) else text.decode())
    except (ValueError, RecursionError) as error:
        raise RowError(f"a value of a JSON column is not JSON: {error}") from None


# ---- JSON as text, NaN ----


def undone(row: Mapping[str, Any], structures: Collection[str], turns: Collection[str]) -> dict[str, Any]:
    """A row as it would have come from a JSONL file.

    Args:
        row: as its reader gives it.
        structures: columns that hold lists or objects.
        turns: columns that hold text, or a list of turns.
    """
    found = {name: None if _is_nan(value) else value for name, value in row.items()}
    for name in found.keys() & structures:
        found[name] = _structure(found[name])
    for name in found.keys() & turns:
        found[name] = _turns(found[name])
    return found


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _structure(value: Any) -> Any:
    """A list or an object: parsed where it is JSON text, none where it is blank. Text that is no JSON stays."""
    if isinstance(value, str):
        found = _json_or_text(value)
        return found if isinstance(found, str) else _structure(found)
    if isinstance(value, Mapping):
        columnwise = value and all(isinstance(part, list) for part in value.values())
        if columnwise and {"role", "from"} & value.keys() and len({len(part) for part in value.values()}) == 1:
            # Old versions of `datasets` keep a list of objects as an object of lists.
            return [_element(dict(zip(value, parts, strict=True))) for parts in zip(*value.values(), strict=True)]
        return _element(value)
    return [_element(part) for part in value] if isinstance(value, list | tuple) else value


def _element(part: Any) -> Any:
    """An element of a list: an object, perhaps as JSON text, with its calls as a list and without NaN.

    A key of a turn that is null is left out: it may be there because other turns have it.
    """
    if isinstance(part, str) and part.lstrip().startswith("{"):
        found = _json_or_text(part)
        part = found if isinstance(found, Mapping) else part
    if not isinstance(part, Mapping):
        return part
    clean = {name: None if _is_nan(value) else value for name, value in part.items()}
    calls = clean.get("tool_calls")
    if isinstance(calls, str):
        clean["tool_calls"] = _json_or_text(calls)
    if "role" in clean or "from" in clean:
        return {name: value for name, value in clean.items() if value is not None}
    return clean


def _turns(value: Any) -> Any:
    """Text, or turns: JSON text that holds turns is parsed, and other text is left as it is."""
    if not isinstance(value, str):
        return _structure(value)
    if not value.lstrip().startswith(("[", "{")):
        return value
    found = _structure(value)
    turns = found if isinstance(found, list) else [found]
    return found if turns and all(is_turn(turn) for turn in turns) else value


def _json_or_text(text: str) -> Any:
    """What JSON text, or Python's way to write the same (pandas in CSV files), stands for; other text as it is."""
    begin = text.strip()
    if not begin or begin == "null":
        return None
    try:
        if begin[0] in "[{":
            return loads(begin)
        if begin.startswith(('"[', '"{')):  # JSON text of JSON text
            inner = loads(begin)
            return _json_or_text(inner) if isinstance(inner, str) else text
    except (ValueError, RecursionError):
        if begin.startswith(("[{'", "{'")):
            return _literal(begin, text)
    return text


def _literal(begin: str, text: str) -> Any:
    try:
        return ast.literal_eval(begin)  # literals only: nothing is run
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
