"""JSON that gives back what went in, also where JSON has no such type: bytes, dates, decimals.

Bytes are written in base64, or held by somebody else, who is given them and gives them back.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

_NAMED: dict[str, tuple[type, Callable[[Any], Any], Callable[[Any], Any]]] = {
    "$bytes": (bytes, lambda value: base64.b64encode(value).decode(), base64.b64decode),
    "$datetime": (datetime.datetime, lambda value: value.isoformat(), datetime.datetime.fromisoformat),
    "$date": (datetime.date, lambda value: value.isoformat(), datetime.date.fromisoformat),
    "$time": (datetime.time, lambda value: value.isoformat(), datetime.time.fromisoformat),
    "$seconds": (
        datetime.timedelta,
        lambda value: [value.days, value.seconds, value.microseconds],
        lambda value: datetime.timedelta(*value),
    ),
    "$decimal": (decimal.Decimal, str, decimal.Decimal),
    "$object": (type(None), lambda value: value, lambda value: value),  # an object with a key of this table
    "$held": (type(None), lambda value: value, lambda value: value),  # bytes that somebody else holds
}

Hold = Callable[[bytes], Any]
"""Takes bytes, and says by what they are found again: something that JSON knows."""
Held = Callable[[Any], bytes]
"""Gives the bytes back."""


def dumps(value: Any, hold: Hold | None = None) -> str:
    """Text of a value made of what JSON knows and of bytes, dates, times, decimals; other objects become their text.

    Args:
        value: the value.
        hold: who takes the bytes; may be given the same ones twice.
    """
    named = partial(_named, hold=hold)
    text = json.dumps(value, ensure_ascii=False, default=named, separators=(",", ":"))
    # Only an object with one of our own keys must be told from what we write: seldom, so looked for in the text.
    return json.dumps(_escaped(value, named), ensure_ascii=False, separators=(",", ":")) if '{"$' in text else text


def loads(text: str | bytes, held: Held | None = None) -> Any:
    """The value that `dumps` was given; ``held`` gives back what its ``hold`` took."""
    return json.loads(text, object_hook=partial(_restored, held=held))


def hash_of_rows(rows: Iterable[Mapping[str, Any]]) -> str:
    """SHA-256 of rows that lie in no file."""
    total = hashlib.sha256()
    for row in rows:
        total.update(dumps(row).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()


def _named(value: Any, hold: Hold | None) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if hold is not None and isinstance(value, bytes):
        return {"$held": hold(value)}
    for name, (kind, write, _) in _NAMED.items():
        if isinstance(value, kind):
            return {name: write(value)}
    return str(value)


def _escaped(value: Any, named: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        inside = {name: _escaped(part, named) for name, part in value.items()}
        return {"$object": [[name, part] for name, part in inside.items()]} if _is_ours(inside) else inside
    if isinstance(value, list | tuple):
        return [_escaped(part, named) for part in value]
    return value if value is None or isinstance(value, str | int | float) else named(value)


def _is_ours(value: Mapping[str, Any]) -> bool:
    return len(value) == 1 and next(iter(value)) in _NAMED


def _restored(value: dict[str, Any], held: Held | None) -> Any:
    if not _is_ours(value):
        return value
    name, content = next(iter(value.items()))
    if name == "$held" and held is not None:
        return held(content)
    return dict(content) if name == "$object" else _NAMED[name][2](content)
