"""Read: every input row is read, hashed and parsed once, into ``RUN/rows``; later stages read that table."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.config import DataConfig
from instruct_prune.errors import InputError
from instruct_prune.progress import Progress, say
from instruct_prune.registry import own_code
from instruct_prune.rows import Source, open_data
from instruct_prune.rows.facts import content_of
from instruct_prune.rows.table import RowTable, first_rejects, write_rows
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import Record, RowsFacts
from instruct_prune.storage import atomic, sha256_of

if TYPE_CHECKING:
    import datasets

InMemory = Sequence[Mapping[str, Any]]
"""Rows made in Python."""


def open_source(data: DataConfig, memory: InMemory | datasets.Dataset | None = None) -> Source:
    """The data that the options name, or rows made in Python."""
    if memory is None and not data.data:
        raise InputError("--data is missing: name a dataset file (JSON, JSONL, CSV, Parquet), a folder or a Hub id.")
    return open_data(
        data.data if memory is None else memory,
        format=data.format,
        columns=data.column_map(),
        limit=data.limit,
        strict=data.strict,
        split=data.data_split,
        subset=data.data_subset,
        image_folder=data.image_folder,
    )


def read_rows(
    folder: RunFolder,
    data: DataConfig,
    restart: bool = False,
    memory: InMemory | datasets.Dataset | None = None,
    source: Source | None = None,
    update: bool = False,
) -> RowTable:
    """The stored table of the data's rows; read now, or found where the same data were read before.

    With ``update``, data that changed are read anew, and all that was made from them is discarded.

    Raises:
        InputError: nothing to read, or the folder holds rows of other data.
    """
    if update and "-" in data.data:
        raise InputError("--update reads data that changed again, and standard input is read once. Name a file.")
    data = _lasting(folder, data, restart)
    known = None if restart else folder.find(RowsFacts)
    if update and known is not None:
        restart = stored(folder, known) is None or _config(folder, known, data, memory, source) != dict(known.config)
        known = None if restart else known
    if known is not None and stored(folder, known) is None:
        # The rows are read again only where the data are still those of then.
        source = source or open_source(data, memory)
        folder.begin(RowsFacts, {"inputs": content_of(source.identity()), **_options(data)})
    # Not so where the record is of a version that had fewer options: then they are read again.
    elif known is not None and folder.begin(RowsFacts, _config(folder, known, data, memory, source)):
        table = RowTable.open(folder / "rows")
        say(f"data: {table.facts.description} (read before)")
        return table
    folder.create()
    began = time.monotonic()
    source = source or open_source(data, memory)
    say(f"data: {source.description}")
    with Progress("reading", None, "rows") as progress:
        table = write_rows(folder / "rows", source, lambda n: progress.advance(n, n))
    facts = table.facts
    if not len(table):
        raise InputError(
            f"{', '.join(facts.files)}: none of the {facts.read} rows can be used. {first_rejects(folder / 'rows' / 'rejects.jsonl')}"
        )
    folder.begin(RowsFacts, {"inputs": content_of(facts.identity), **_options(data)}, restart=restart)
    took = round(time.monotonic() - began, 3)
    folder.finish(RowsFacts(names=data.data, read=facts.read, rejected=facts.rejected, seconds=took), "rows/*")
    return table


def stored(folder: RunFolder, known: Record[RowsFacts]) -> RowTable | None:
    """The stored rows that a record tells of; None where their files changed, or another version of this program wrote them."""
    if folder.changed_file(known) is not None:
        return None
    try:
        return RowTable.open(folder / "rows")
    except InputError:
        return None


def _config(
    folder: RunFolder,
    known: Record[RowsFacts],
    data: DataConfig,
    memory: InMemory | datasets.Dataset | None,
    source: Source | None,
) -> dict[str, Any]:
    """What the record of the rows would say of the data as they are now."""
    assert known.facts is not None
    same_names = memory is None and list(known.facts.names) == list(data.data)
    # Files whose size and time are as they were are not opened again.
    if same_names and not RowTable.open(folder / "rows").facts.changed():
        inputs = known.config["inputs"]
    else:
        inputs = content_of((source or open_source(data, memory)).identity())
    found: dict[str, Any] = json.loads(json.dumps({"inputs": inputs, **_options(data)}, default=str))
    return found


def rows_of(folder: RunFolder) -> RowTable:
    """The stored rows of a run.

    Raises:
        InputError: nothing was read, or the data changed since.
    """
    folder.require(RowsFacts)
    table = RowTable.open(folder / "rows")
    table.facts.require_unchanged()
    return table


def _options(data: DataConfig) -> dict[str, Any]:
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("data", "strict")}
    return options | own_code([data.format or ""], "--format")


def _lasting(folder: RunFolder, data: DataConfig, restart: bool) -> DataConfig:
    """Paths made absolute, so that later commands find them; standard input copied into the run folder."""
    if "-" not in data.data:
        return absolute(data)
    folder.create()
    kept = _copied_stdin(folder, begun=not restart and folder.find(RowsFacts) is not None)
    return dataclasses.replace(absolute(data), data=tuple(str(kept.resolve()) if d == "-" else d for d in data.data))


def _copied_stdin(folder: RunFolder, begun: bool) -> Path:
    """What came from standard input, in the run folder. Where it is empty, as when a command is run again, the copy is used.

    Args:
        folder: the run.
        begun: whether the run was made of the copy that is there.

    Raises:
        InputError: nothing came, or other rows than those that the run was made of.
    """
    target, fresh = folder / "stdin", folder / "stdin.new"
    stream = None if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer
    with atomic(fresh) as file:
        if stream is not None:
            shutil.copyfileobj(stream, file)
    if not fresh.stat().st_size and target.exists():
        fresh.unlink()
    elif not fresh.stat().st_size:
        fresh.unlink()
        raise InputError("--data - reads standard input, and nothing came. Pipe a file into the command.")
    elif begun and target.exists() and sha256_of(fresh) != sha256_of(target):
        fresh.unlink()
        raise InputError(
            f"{folder.path} was made of other rows from standard input. Use another --out, or --restart read, which discards "
            "what the folder holds."
        )
    else:
        os.replace(fresh, target)
    return target


def absolute(data: DataConfig) -> DataConfig:
    """The same data, paths made absolute."""
    paths = tuple(os.path.abspath(d) if os.path.exists(d) else d for d in data.data)
    pictures = data.image_folder and os.path.abspath(os.path.expanduser(data.image_folder))
    return dataclasses.replace(data, data=paths, image_folder=pictures)
