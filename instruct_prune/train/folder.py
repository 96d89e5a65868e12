"""The folder of a training: claimed for one set of options and rows, gone on with, never overwritten by another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.storage import write_json
from instruct_prune.train.processes import is_main, world_size

IDENTITY = "identity.json"
RESULT = "training.json"


def claim(out: Path, identity: Mapping[str, Any], restart: bool = False) -> bool:
    """Claim ``out`` for a training; True when it is finished there already. Every process gets the same answer.

    Args:
        out: the folder.
        identity: all that decides the result, as JSON can hold it.
        restart: discard what is there.

    Raises:
        InputError: the folder holds another training, or something else.
    """
    from accelerate.utils import broadcast_object_list

    found: bool | str = False
    if is_main():
        try:
            found = _claim(out, json.loads(json.dumps(identity, default=str)), restart)
        except InputError as error:
            found = str(error)
    if world_size() > 1:
        found = broadcast_object_list([found])[0]
    if isinstance(found, str):
        raise InputError(found)
    return found


def finish(out: Path, facts: Mapping[str, Any]) -> None:
    """Write ``training.json``, which says that the training is finished."""
    write_json(out / RESULT, facts)


def _claim(out: Path, identity: dict[str, Any], restart: bool) -> bool:
    if out.is_file():
        raise InputError(f"--out {out} is a file. Name a folder.")
    known = out / IDENTITY
    if not known.exists() and out.is_dir() and any(out.iterdir()):
        raise InputError(
            f"--out {out} exists, is not empty and holds no training (it has no {IDENTITY}). Nothing was written. Name a new or "
            "empty folder."
        )
    if known.exists() and not restart:
        there = json.loads(known.read_text(encoding="utf-8"))
        if there != identity:
            lines = "\n".join(
                f"  {key}: {json.dumps(there.get(key))} -> {json.dumps(identity.get(key))}"
                for key in sorted({*there, *identity})
                if there.get(key) != identity.get(key)
            )
            raise InputError(
                f"{out} holds another training, and nothing of it was overwritten. What differs (there -> asked for):\n{lines}\n"
                "Use another --out, the same options, or --restart to discard it."
            )
        return (out / RESULT).exists()
    if restart:
        (out / RESULT).unlink(missing_ok=True)
        for name in ("checkpoints", "adapter", "merged"):
            shutil.rmtree(out / name, ignore_errors=True)
    write_json(known, identity)
    return False
