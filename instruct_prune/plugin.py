"""Functions that are named on the command line: what each needs and which parameters it takes, read off its signature.

A selection method and a score are such functions, of the package or of the user. Their first parameter is what they work
on; all others are parameters that the user may set, by name: ``--param name=value``.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

from instruct_prune.errors import InputError
from instruct_prune.parameter import Parameter, Value
from instruct_prune.registry import resolve, suggestion

Needs = Sequence[str] | Callable[..., Sequence[str]]
"""Names of columns, or a function that takes the parameters by name and returns them."""


@dataclass(frozen=True)
class Plugin:
    """A function with what it declares.

    Attributes:
        name: as the user writes it.
        function: called with what it works on and its parameters by name.
        needs: see `Needs`; `needs_of` gives them for one set of parameters.
    """

    word: ClassVar[str] = "plug-in"

    name: str
    function: Callable[..., Any]
    needs: Needs

    def __str__(self) -> str:
        return f"the {self.word} {self.name!r}"

    @property
    def about(self) -> str:
        """The first sentence of the docstring, on one line."""
        paragraph = " ".join((inspect.getdoc(self.function) or "").partition("\n\n")[0].split())
        return paragraph.partition(". ")[0].removesuffix(".")

    @functools.cached_property
    def parameters(self) -> dict[str, Parameter]:
        """Every parameter after the first, by name.

        Raises:
            InputError: the signature is one that cannot be read: no first parameter, ``*args`` or ``**kwargs``, or an
                annotation other than bool, int, float, str, None, a Literal of such, or a union of these.
        """
        by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        listed = list(inspect.signature(self.function).parameters.values())
        if not listed or listed[0].kind not in by_position:
            raise InputError(f"{self}: its first parameter must be what it works on, given by position.")
        rest = listed[1:]
        for parameter in rest:
            if parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
                raise InputError(f"{self}: {parameter} cannot be set by name. Give each parameter a name of its own.")
        hints = _annotations(self, [parameter.name for parameter in rest])
        return {p.name: Parameter.of(str(self), p.name, hints.get(p.name, type(p.default)), p.default) for p in rest}

    def parse(self, texts: Iterable[str], option: str = "--param") -> dict[str, Value]:
        """Read ``name=value`` texts by the annotated types.

        Args:
            texts: as written on the command line.
            option: where they were written, for messages.

        Raises:
            InputError: a text is not written so, a name is unknown or given twice, or a value is of another type.
        """
        params: dict[str, Value] = {}
        for text in texts:
            name, sign, value = text.partition("=")
            if not sign:
                raise InputError(f"{option} {text}: write name=value, as in {option} neighbors=20.")
            if name in params:
                raise InputError(f"{option} {text}: {name} is given twice.")
            parameter = self._known(name)
            try:
                params[name] = parameter.read(value)
            except ValueError:
                raise self._refused(parameter, value) from None
        return params

    def bind(self, params: Mapping[str, Any] | None) -> dict[str, Value]:
        """Every parameter's value: what is given, and the defaults of the others.

        Raises:
            InputError: a name is unknown, a value is of another type, or a parameter without a default is not given.
        """
        given: dict[str, Value] = {}
        for name, value in (params or {}).items():
            parameter = self._known(name)
            try:
                given[name] = parameter.accept(value)
            except ValueError:
                raise self._refused(parameter, value) from None
        for parameter in self.parameters.values():
            if parameter.required and parameter.name not in given:
                raise InputError(f"{self} needs a value for {parameter.name!r} ({parameter.takes}).")
        return {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}

    def needs_of(self, params: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Names of the columns that it needs under these parameters.

        Raises:
            InputError: the parameters are wrong.
        """
        bound = self.bind(params)
        return tuple(self.needs(**bound) if callable(self.needs) else self.needs)

    def _known(self, name: str) -> Parameter:
        if name not in self.parameters:
            takes = f"It takes {', '.join(self.parameters)}." if self.parameters else "It takes none."
            raise InputError(f"{self} has no parameter {name!r}.{suggestion(name, self.parameters)} {takes}")
        return self.parameters[name]

    def _refused(self, parameter: Parameter, value: Any) -> InputError:
        return InputError(f"{self}: {parameter.name} is {value!r}, it takes {parameter.takes}.")


P = TypeVar("P", bound=Plugin)


def find_plugin(
    kind: type[P],
    table: Mapping[str, str],
    name: str | P | Callable[..., Any],
    option: str,
    declare: Callable[[Any], P],
) -> P:
    """The plug-in that a name stands for, or one of the user's own.

    Args:
        kind: the class of the plug-in.
        table: {name: "module:attribute"}, those of the package.
        name: a name in the table, a ``package.module:function`` of the user's, or, in Python, the function itself.
        option: where the name was written, for messages ("--method").
        declare: makes a plug-in of a function that declares nothing.

    Raises:
        InputError: there is no such plug-in.
    """

    def fits(found: object) -> bool:
        return isinstance(found, kind) or inspect.isfunction(found)

    if isinstance(name, str):
        found = resolve(table, name, option, f"a function or a @{kind.word}", fits)
        return replace(found if isinstance(found, kind) else declare(found), name=name)
    if isinstance(name, kind):
        return name
    return replace(declare(name), name=f"{name.__module__}:{getattr(name, '__qualname__', type(name).__name__)}")


def _annotations(plugin: Plugin, names: Sequence[str]) -> dict[str, Any]:
    """The annotations of these parameters alone: others may name what only a type checker imports."""
    function = inspect.unwrap(plugin.function)
    if not isinstance(function, types.FunctionType):
        raise InputError(f"{plugin} is an object of type {type(function).__name__}; a function is expected.")
    bare = types.FunctionType(function.__code__, function.__globals__, closure=function.__closure__)
    bare.__annotations__ = {name: hint for name, hint in function.__annotations__.items() if name in names}
    try:
        return typing.get_type_hints(bare, include_extras=True)
    except NameError as error:
        raise InputError(
            f"{plugin}: the type of a parameter cannot be found: {error}. Import it when the module runs, not only under "
            "TYPE_CHECKING."
        ) from error
