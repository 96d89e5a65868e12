"""What people write after ``--data`` -> readers."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.load.files import DataFile, check_encoding, spool_stdin
from instruct_prune.load.json_rows import JsonArray, JsonLines
from instruct_prune.load.rows import Reader, RowError, as_mapping
from instruct_prune.registry import suggestion


def find_readers(data: Sequence[str], split: str | None, subset: str | None) -> list[Reader]:
    """Readers for paths, globs and "-", in the order given; a glob's files are sorted by name.

    Raises:
        InputError: nothing there, or nothing that can be read.
    """
    if not data:
        raise InputError("no data: give --data with a file, a glob, a Hub dataset id, or - for standard input.")
    return [reader for item in data for reader in _readers(item, split, subset)]


def _readers(item: str, split: str | None, subset: str | None) -> Iterator[Reader]:
    if item == "-":
        yield reader_of(spool_stdin())
        return
    path = Path(item).expanduser()
    if path.is_file():
        yield reader_of(DataFile(path, item))
    elif path.is_dir():
        raise InputError(f"{item} is a folder. Name its files, for example --data '{item.rstrip('/')}/*.jsonl'.")
    elif glob.has_magic(item):
        found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise InputError(f"no file matches {item!r}. Check the folder and the pattern.")
        for name in found:
            yield reader_of(DataFile(Path(name), name))
    else:
        raise InputError(_missing(path, item))


def _missing(path: Path, item: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{item} does not exist: there is no folder {folder}."
    near = suggestion(path.name, [each.name for each in folder.iterdir()])
    return f"{item} does not exist.{near} Give a file, a glob, or a Hub dataset id (owner/name)."


def reader_of(file: DataFile) -> Reader:
    """Choose the reader from what the file holds, not from its name alone.

    Raises:
        InputError: empty, not UTF-8, or of an unknown kind.
    """
    try:
        head = file.head()
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {error.strerror}.") from None
    check_encoding(file, head)
    begin = head.lstrip()
    suffixes = [suffix.lower() for suffix in Path(file.name).suffixes]
    if begin.startswith(b"[") and not _is_row(begin):
        return JsonArray(file)
    if begin.startswith(b"{") or ".jsonl" in suffixes or ".ndjson" in suffixes:
        _refuse_single_object(file, begin, suffixes)
        return JsonLines(file)
    shown = begin[:40].decode("utf-8", "replace")
    raise InputError(
        f"{file.name} is not JSON: it begins with {shown!r}. Rows are read from .json, .jsonl, .csv, .tsv, .parquet and"
        " .arrow files."
    )


def _is_row(begin: bytes) -> bool:
    try:
        as_mapping(begin.partition(b"\n")[0])
    except RowError:
        return False
    return True


def _refuse_single_object(file: DataFile, begin: bytes, suffixes: list[str]) -> None:
    """A .json file that is one object over several lines is no list of rows."""
    first, _, rest = begin.partition(b"\n")
    if ".json" not in suffixes or _is_row(first) or not rest or rest.lstrip().startswith(b"{"):
        return
    lists = re.findall(rb'"([^"\\]+)"\s*:\s*\[\s*\{', begin)
    field = lists[0].decode("utf-8", "replace") if lists else None
    raise InputError(
        f"{file.name} is one JSON object, not a list of rows"
        + (
            f"; its field {field!r} is a list. Write that list to a file of its own:"
            f" jq '.{field}' {file.name} > rows.json"
            if field
            else ". Write a list of objects, [{...}, {...}], or one object a line (.jsonl)."
        )
    )
