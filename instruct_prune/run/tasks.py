"""The tasks of a target, as ``--target`` names them."""

from __future__ import annotations

import re
from pathlib import Path

from instruct_prune.config import TargetConfig
from instruct_prune.errors import InputError

NAME = re.compile(r"[^\W_][\w.-]*")
"""Of a task: it is that of a folder too."""


def tasks_of(config: TargetConfig) -> dict[str, str]:
    """{task: file} of FILE or NAME=FILE.

    Raises:
        InputError: there is none, a name is used twice or cannot be that of a folder, or a file is not there.
    """
    found: dict[str, str] = {}
    for text in config.target:
        name, sign, path = text.partition("=")
        if Path(text).expanduser().exists() or not sign:
            name, path = Path(text).name.partition(".")[0] or "target", text
        if name in found:
            raise InputError(f"--target: two tasks are called {name!r}. Name them: --target math=a.jsonl code=b.jsonl.")
        if not NAME.fullmatch(name):
            raise InputError(
                f"--target {text}: the name of a task has letters, digits, '_', '-' and '.', and begins with a letter or digit. "
                f"Name it otherwise, as in: --target math={path}"
            )
        if not Path(path).expanduser().exists():
            raise InputError(f"--target {text}: there is no such file.")
        found[name] = path
    if not found:
        raise InputError("--target is missing: name a file of rows that show what the model should become good at.")
    return found
