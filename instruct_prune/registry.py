"""Names people write on the command line, resolved on first use: those of the package, and functions of their own."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from instruct_prune.errors import InputError

REFERENCE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def is_reference(name: str) -> bool:
    """Whether the name is written as package.module:attribute, which is how users name their own functions."""
    return REFERENCE.fullmatch(name) is not None


def resolve(
    table: Mapping[str, str],
    name: str,
    option: str,
    kind: str = "a function",
    fits: Callable[[object], bool] = callable,
) -> Any:
    """The object that a name stands for: ``table[name]``, or the user's own ``package.module:attribute``.

    Args:
        table: {name: "package.module:attribute"}.
        name: what the user wrote.
        option: where it was written, for messages ("--method").
        kind: what it must be, for messages.
        fits: whether an object is of that kind.

    Raises:
        InputError: the name is not in the table (the message lists the names and the nearest one), or as `load_attribute`.
    """
    if ":" in name:
        return load_attribute(name, option, kind, fits)
    if name not in table:
        raise InputError(
            f"unknown {option} {name!r}.{suggestion(name, table)} Known: {', '.join(sorted(table))}; or your own, "
            "as package.module:function."
        )
    module, attribute = table[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def load_attribute(name: str, option: str, kind: str = "a function", fits: Callable[[object], bool] = callable) -> Any:
    """Import the user's own ``package.module:attribute``, from the working folder or from what is installed.

    An error inside the user's module is raised as it is, because its traceback says where it is.

    Args:
        name: what the user wrote.
        option: where it was written, for messages ("--method").
        kind: what it must be, for messages.
        fits: whether an object is of that kind.

    Raises:
        InputError: it is not written so, there is no such module or attribute, a module that it imports is missing,
            its source cannot be read as Python, or the object is of another kind.
    """
    if not is_reference(name):
        raise InputError(f"{option} {name!r}: write package.module:attribute, as in my_rules:by_length.")
    module_name, _, attribute = name.partition(":")
    module = _import(module_name, f"{option} {name}")
    if not hasattr(module, attribute):
        names = [found for found in vars(module) if not found.startswith("_")]
        file = getattr(module, "__file__", None) or "a folder without __init__.py"
        raise InputError(
            f"{option} {name}: the module {module_name} ({file}) has no {attribute!r}.{suggestion(attribute, names)}"
        )
    found = getattr(module, attribute)
    if not fits(found):
        raise InputError(f"{option} {name}: this is an object of type {type(found).__name__}; {kind} is expected.")
    return found


CODE = "code of "


def class_name(thing: object) -> str:
    """The class of an object as ``package.module:Class``."""
    return f"{type(thing).__module__}:{type(thing).__qualname__}"


def own_code(names: Iterable[str], option: str) -> dict[str, str]:
    """What the users' own code was: a result that it made is not that of the code as it was changed since.

    Args:
        names: of what takes part; those as ``package.module:attribute`` are the users' own, unless they are of this package.
        option: where the names were written, for messages.

    Returns:
        {"code of MODULE": SHA-256 of its file}; {} where all is the package's.

    Raises:
        InputError: as `load_attribute`.
    """
    found: dict[str, str] = {}
    for name in names:
        module = name.partition(":")[0]
        if is_reference(name) and module.partition(".")[0] != "instruct_prune":
            load_attribute(name, option, "something", lambda thing: True)
            file = getattr(sys.modules[module], "__file__", None)
            if file is not None:
                found[CODE + module] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return found


def _import(name: str, where: str) -> ModuleType:
    """Import a module with the working folder first on the import path, as Python itself does for a script."""
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
        importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise InputError(
                f"{where}: there is no module {error.name!r} in the working folder ({here}) or among the installed ones."
            ) from error
        raise InputError(f"{where}: {name} imports {error.name!r}, which is not installed.") from error
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{where}: {name} cannot be imported: {error}.") from error
    finally:
        if added:
            sys.path.remove(here)
