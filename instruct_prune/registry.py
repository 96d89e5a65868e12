"""Names people write on the command line, resolved on first use."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from instruct_prune.errors import InputError


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def resolve(table: Mapping[str, str], name: str, what: str) -> Any:
    """Import and return the object that ``table[name]`` ("module:attribute") points to.

    Raises:
        InputError: the name is not in the table; the message lists the names and the nearest one.
    """
    if name not in table:
        raise InputError(f"unknown {what} {name!r}.{suggestion(name, table)} Known: {', '.join(sorted(table))}.")
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)
