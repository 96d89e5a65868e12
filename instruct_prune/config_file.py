"""Options in a YAML file: read into the dataclasses of `config`, with every key and type checked by pydantic."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion

Config = TypeVar("Config")
MOST_NESTED = 8  # the stream, the document and the options are three


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


def take_flags(words: Sequence[str], *switches: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """``--config FILE.yaml`` and switches (the names of each) taken out of the words; what is left stays in order.

    Raises:
        InputError: --config without a file or given twice, or a switch with a value.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", action="append", metavar="FILE.yaml")
    for names in switches:
        parser.add_argument(*names, action="store_true")
    try:
        given, left = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise InputError(f"{error}.") from None
    if given.config and len(given.config) > 1:
        raise InputError(f"--config is given twice: {' and '.join(given.config)}. Give one file.")
    given.config = given.config[0] if given.config else None
    return given, left


def percent(text: str) -> str | float:
    """0.3 for "30%"; any other text as it is."""
    try:
        return float(text.removesuffix("%")) / 100 if text.endswith("%") else text
    except ValueError:
        return text


def load_yaml(path: str, kind: type[Config]) -> Config:
    """Read a configuration file.

    Raises:
        InputError: the file is missing or not a mapping; or keys are unknown ("did you mean") or values have another type,
            all of which are told together.
    """
    from pydantic import TypeAdapter, ValidationError

    values = _mapping(path)
    hints = dict(_options(kind))
    problems = [f"unknown option {key!r}.{suggestion(key, hints)}" for key in values if key not in hints]
    if problems:
        problems[-1] += f" Known: {', '.join(hints)}."
    made: Config | None = None
    try:
        # By way of JSON, in which pydantic's strict rules take a list for a tuple.
        text = json.dumps(_nested(kind, values), default=str)
        made = TypeAdapter(kind).validate_json(text, strict=True)
    except ValidationError as error:
        groups = {name for name, hint in typing.get_type_hints(kind).items() if dataclasses.is_dataclass(hint)}
        wrong = {str(one["loc"][one["loc"][0] in groups]): one for one in error.errors()}
        problems += [_told(key, values[key], hints[key], one) for key, one in wrong.items()]
    if made is None or problems:
        raise InputError(f"--config {path}: " + "\n".join(problems))
    return made


def _mapping(path: str) -> dict[str, Any]:
    import yaml

    file = Path(path)
    if not file.is_file():
        raise InputError(f"--config {path}: there is no such file.")
    try:
        text = file.read_text(encoding="utf-8")
        _check_plain(path, yaml.parse(text, yaml.SafeLoader))
        node = yaml.compose(text, yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number of 5,000 digits is a ValueError
        raise InputError(f"--config {path} is not valid YAML: {' '.join(str(error).split())}") from error
    keys = [key.value for key, _ in node.value] if isinstance(node, yaml.MappingNode) else []
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InputError(f"--config {path}: {twice[0]} is said twice. Say it once.")
    if not isinstance(values or {}, Mapping):
        raise InputError(
            f"--config {path}: expected a mapping of options at the top level, found {type(values).__name__}."
        )
    return {str(key).replace("-", "_"): value for key, value in (values or {}).items()}


def _check_plain(path: str, events: Iterable[Any]) -> None:
    """Refuse what can make a small file large (aliases) or slow to read (lists in lists), before it is read."""
    depth = 0
    for kind in (type(event).__name__ for event in events):
        depth += (kind.endswith("StartEvent")) - (kind.endswith("EndEvent"))
        if kind == "AliasEvent" or depth > MOST_NESTED:
            raise InputError(
                f"--config {path}: an option is text, a number, or a list of them; no aliases (*name), nothing deeper."
            )


def _options(kind: type[Any]) -> Iterator[tuple[str, Any]]:
    """Name and type of every option of a (nested) configuration."""
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _options(typing.cast(type[Any], hint))
        else:
            yield name, hint


def _nested(kind: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Flat values sorted into the dataclasses that have them."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found[name] = _nested(typing.cast(type[Any], hint), values)
        elif name in values:
            found[name] = _as_typed(values[name], hint)
    return found


def _as_typed(value: Any, hint: Any) -> Any:
    """A value as it would be typed on the command line: one entry for a list of one, 8 for the text "8", 30% for 0.3."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return [_as_typed(each, args[0]) for each in (value if isinstance(value, list) else [value])]
    if isinstance(value, str):
        return percent(value) if float in args else value
    return str(value) if type(value) in (int, float) and str in (hint, *args) else value


def _told(key: str, value: Any, hint: Any, error: Any) -> str:
    if error["type"] == "literal_error":
        expected = error["ctx"]["expected"].replace("'", "")
        return f"{key} is {value!r}; it must be one of {expected}."
    entries = typing.get_args(hint)[0] if typing.get_origin(hint) is tuple else hint
    allowed = typing.get_args(entries) if isinstance(entries, types.UnionType) else (entries,)
    names = ("nothing" if one is types.NoneType else getattr(one, "__name__", str(one)) for one in allowed)
    return f"{key} is {value!r}, expected {' or '.join(names)}."
