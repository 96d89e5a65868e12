"""One parameter of a function that is named on the command line: what it takes, read off its annotation."""

from __future__ import annotations

import inspect
import numbers
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

import annotated_types

from instruct_prune.errors import InputError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Value = bool | int | float | str | None

SIMPLE = (bool, int, float, str)
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
"""The bounds of a number, as annotated_types names them, in words."""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a plug-in.

    Attributes:
        name: as in the signature.
        types: those of bool, int, float and str that its annotation allows.
        words: single values that it allows besides (members of a Literal, None).
        bounds: what a number must be: ("ge", 0) is "at least 0".
        hint: its annotation.
        default: its value when the user sets none; ``inspect.Parameter.empty`` where it must be set.
    """

    name: str
    types: tuple[type, ...]
    words: tuple[Value, ...]
    bounds: tuple[tuple[str, float], ...]
    hint: Any
    default: Any

    @classmethod
    def of(cls, owner: str, name: str, hint: Any, default: Any) -> Parameter:
        """The parameter that an annotation declares.

        Args:
            owner: what it is a parameter of, for messages.
            name: as in the signature.
            hint: its annotation.
            default: as in the signature.

        Raises:
            InputError: the annotation is none that text can be read by.
        """
        leaves = list(_leaves(hint))
        kinds = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        words = tuple(leaf for leaf in leaves if not isinstance(leaf, type))
        if not leaves or not set(kinds) <= set(SIMPLE) or not all(isinstance(w, (*SIMPLE, type(None))) for w in words):
            raise InputError(
                f"{owner}: the parameter {name!r} has the type {hint}, which cannot be read from text. Annotate it with "
                "bool, int, float, str, None, a Literal of such values, or a union of these."
            )
        return cls(name, kinds, words, tuple(_bounds(hint)), hint, default)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def takes(self) -> str:
        """What may be written: "float above 0 and below 1, auto or mmd"."""
        within = " and ".join(f"{BOUNDS[name]} {bound:g}" for name, bound in self.bounds)
        options = [f"{kind.__name__} {within if kind in (int, float) else ''}".strip() for kind in self.types]
        options += [_written(word) for word in self.words]
        return " or ".join([", ".join(options[:-1]), options[-1]]) if len(options) > 1 else options[0]

    def read(self, text: str) -> Value:
        """The value that a text stands for.

        Raises:
            ValueError: it stands for none.
        """
        for word in self.words:
            if text == _written(word):
                return word
        found: Value = self._adapter.validate_strings(text)
        return found

    def accept(self, value: Any) -> Value:
        """A value given in Python, as one of the plain types (a numpy integer becomes an int).

        Raises:
            ValueError: it is none that the parameter takes.
        """
        plain = value.item() if isinstance(value, numbers.Number) and hasattr(value, "item") else value
        found: Value = self._adapter.validate_python(plain, strict=True)
        return found

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        from pydantic import TypeAdapter  # takes longer to import than many a selection

        return TypeAdapter(self.hint)


def _leaves(hint: Any) -> Iterable[Any]:
    """Types and single values that an annotation allows."""
    origin = typing.get_origin(hint)
    if origin is Annotated:
        yield from _leaves(typing.get_args(hint)[0])
    elif origin is Literal:
        yield from typing.get_args(hint)
    elif origin in (typing.Union, types.UnionType):
        for member in typing.get_args(hint):
            yield from _leaves(member)
    else:
        yield None if hint in (None, type(None)) else hint


def _bounds(hint: Any) -> Iterable[tuple[str, float]]:
    """The bounds that ``Annotated[float, Interval(gt=0, le=1)]`` sets, alone or as a member of a union."""
    if typing.get_origin(hint) is not Annotated:
        for member in typing.get_args(hint):
            yield from _bounds(member)
        return
    for note in hint.__metadata__:
        grouped = isinstance(note, annotated_types.GroupedMetadata)
        for bound in note if grouped else getattr(note, "metadata", [note]):  # pydantic.Field has a list of them
            yield from ((name, getattr(bound, name)) for name in BOUNDS if hasattr(bound, name))


def _written(word: Value) -> str:
    return "none" if word is None else str(word)
