"""Named files: the tasks of a target, as ``--target`` names them, and tests."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from instruct_prune.config import TargetConfig
from instruct_prune.errors import InputError
from instruct_prune.rows.inputs import IMAGES

NAME = re.compile(r"[^\W_][\w.-]*")
"""Of a task: it is that of a folder too."""


def tasks_of(config: TargetConfig, kind: str | None) -> dict[str, str]:
    """{task: file} of a target, for rows of a kind.

    Raises:
        InputError: there is none, the rows are labelled pictures, or as `named_files`.
    """
    if kind == IMAGES:
        raise InputError("--target: the rows are labelled pictures, and a target is of texts. Leave it out.")
    if not config.target:
        raise InputError("--target is missing: name a file of rows that show what the model should become good at.")
    return named_files(config.target, "--target")


def named_files(named: Sequence[str], option: str) -> dict[str, str]:
    """{name: file} of FILE or NAME=FILE.

    Args:
        named: as the user wrote them.
        option: where, for messages.

    Raises:
        InputError: a name is used twice or cannot be that of a folder, or a file is not there.
    """
    found: dict[str, str] = {}
    for text in named:
        name, sign, path = text.partition("=")
        if Path(text).expanduser().exists() or not sign:
            name, path = Path(text).name.partition(".")[0] or "target", text
        if name in found:
            raise InputError(f"{option}: two tasks are called {name!r}. Name them: {option} math=a.jsonl code=b.jsonl.")
        if not NAME.fullmatch(name):
            raise InputError(
                f"{option} {text}: the name of a task has letters, digits, '_', '-' and '.', and begins with a letter or digit. "
                f"Name it otherwise, as in: {option} math={path}"
            )
        if not Path(path).expanduser().is_file():
            folder = " (it is a folder)" if Path(path).expanduser().is_dir() else ""
            raise InputError(f"{option} {text}: there is no such file{folder}.")
        found[name] = path
    return found
