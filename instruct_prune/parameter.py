"""One parameter of a function that is named on the command line: what it takes, read off its annotation."""

from __future__ import annotations

import inspect
import numbers
import operator
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import annotated_types

from instruct_prune.errors import InputError

Value = bool | int | float | str | None

SIMPLE = (bool, int, float, str)
COMPARES = {
    "gt": (operator.gt, "above"),
    "ge": (operator.ge, "at least"),
    "lt": (operator.lt, "below"),
    "le": (operator.le, "at most"),
}
"""The bounds of a number, as annotated_types names them: {name: (comparison, in words)}."""
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a plug-in.

    Attributes:
        name: as in the signature.
        types: those of bool, int, float and str that its annotation allows.
        words: single values that it allows besides (members of a Literal, None).
        bounds: what a number must be: ("ge", 0) is "at least 0".
        default: its value when the user sets none; ``inspect.Parameter.empty`` where it must be set.
    """

    name: str
    types: tuple[type, ...]
    words: tuple[Value, ...]
    bounds: tuple[tuple[str, float], ...]
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
        return cls(name, kinds, words, tuple(_bounds(hint)), default)

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    @property
    def takes(self) -> str:
        """What may be written: "float above 0 and below 1, auto or mmd"."""
        within = " and ".join(f"{COMPARES[name][1]} {bound:g}" for name, bound in self.bounds)
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
        if bool in self.types and text.lower() in TRUTH:
            return TRUTH[text.lower()]
        for kind in (int, float):
            if kind in self.types:
                try:
                    number = kind(text)
                except ValueError:
                    continue
                return self._within(number)
        if str in self.types:
            return text
        raise ValueError(text)

    def accept(self, value: Any) -> Value:
        """A value given in Python, as one of the plain types (a numpy integer becomes an int).

        Raises:
            ValueError: it is none that the parameter takes.
        """
        for word in self.words:
            if type(value) is type(word) and value == word:
                return word
        if isinstance(value, bool | str):
            if type(value) in self.types:
                return value
        elif isinstance(value, numbers.Integral) and int in self.types:
            return self._within(int(value))
        elif isinstance(value, numbers.Real) and float in self.types:
            return self._within(float(value))
        raise ValueError(value)

    def _within(self, number: int | float) -> int | float:
        if not all(COMPARES[name][0](number, bound) for name, bound in self.bounds):
            raise ValueError(number)
        return number


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
        for bound in note if isinstance(note, annotated_types.GroupedMetadata) else [note]:
            yield from ((name, getattr(bound, name)) for name in COMPARES if hasattr(bound, name))


def _written(word: Value) -> str:
    return "none" if word is None else str(word)
