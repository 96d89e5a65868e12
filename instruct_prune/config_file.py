"""Options in a YAML file: read into the dataclasses of `config`, with every key and type checked."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion

Config = TypeVar("Config")


def flatten(config: Any) -> dict[str, Any]:
    """All options of a (nested) configuration by name."""
    flat: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            flat |= flatten(value)
        else:
            flat[f.name] = list(value) if isinstance(value, tuple) else value
    return flat


def load_yaml(path: str, kind: type[Config]) -> Config:
    """Read a configuration file.

    Raises:
        InputError: the file is missing or not a mapping, a key is unknown ("did you mean"), a value has another type.
    """
    import yaml

    file = Path(path)
    if not file.is_file():
        raise InputError(f"--config {path}: there is no such file.")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise InputError(
            f"--config {path}: expected a mapping of options at the top level, found {type(values).__name__}."
        )
    values = {str(key).replace("-", "_"): value for key, value in values.items()}
    known = flatten(kind())
    for key in values:
        if key not in known:
            raise InputError(
                f"--config {path}: unknown option {key!r}.{suggestion(key, known)} Known: {', '.join(known)}."
            )
    return _build(kind, values, path)


def _build(kind: type[Config], values: Mapping[str, Any], path: str) -> Config:
    hints = typing.get_type_hints(kind)
    arguments: dict[str, Any] = {}
    for f in dataclasses.fields(kind):  # type: ignore[arg-type]
        hint = hints[f.name]
        if dataclasses.is_dataclass(hint):
            arguments[f.name] = _build(typing.cast(type[Any], hint), values, path)
        elif f.name in values:
            arguments[f.name] = _convert(values[f.name], hint, f.name, path)
    return kind(**arguments)


def _convert(value: Any, hint: Any, key: str, path: str) -> Any:
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        items = value if isinstance(value, list) else [value]
        return tuple(_convert(item, options[0], key, path) for item in items)
    if origin is Literal:
        if value not in options:
            raise InputError(f"--config {path}: {key} is {value!r}; it must be one of {', '.join(map(str, options))}.")
        return value
    allowed = options if origin in (typing.Union, types.UnionType) else (hint,)
    if value is None and type(None) in allowed:
        return None
    for want in allowed:
        if want is float and type(value) in (int, float) and int not in allowed:
            return float(value)
        if type(value) is want:
            return value
    if str in allowed and type(value) in (int, float):
        return str(value)  # clusters: 8 and split: 0.25 are words on the command line
    names = " or ".join("nothing" if want is type(None) else want.__name__ for want in allowed)
    raise InputError(f"--config {path}: {key} is {value!r}, expected {names}.")
