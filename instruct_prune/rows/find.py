"""What people write after ``--data`` -> readers."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.rows.files import DataFile, check_encoding, spool_stdin
from instruct_prune.rows.hub import is_saved_dataset, open_hub, open_saved
from instruct_prune.rows.json_rows import JsonArray, JsonLines
from instruct_prune.rows.reader import Reader, RowError, as_mapping
from instruct_prune.rows.tables import ArrowTable, DelimitedText, ParquetTable

KINDS = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow")
_COMPRESSED = (".gz", ".zst", ".xz")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_readers(data: Sequence[str], split: str | None, subset: str | None) -> list[Reader]:
    """Readers for paths, globs, Hub ids and "-", in the order given; a glob's files are sorted by name.

    Raises:
        InputError: nothing there, or nothing that can be read.
    """
    if not data:
        raise InputError("no data: give --data with a file, a glob, a Hub dataset id, or - for standard input.")
    if list(data).count("-") > 1:
        raise InputError("--data names standard input (-) twice; it can be read once.")
    return [reader for item in data for reader in _readers(item, split, subset)]


def _readers(item: str, split: str | None, subset: str | None) -> Iterator[Reader]:
    path = Path(item).expanduser()
    if item == "-":
        yield reader_of(spool_stdin())
    elif path.is_file():
        yield reader_of(DataFile(path, item))
    elif path.is_dir():
        if not is_saved_dataset(path):
            raise InputError(
                f"{item} is a folder, and not one that datasets' save_to_disk wrote. Name the files in it, for"
                f" example --data '{item.rstrip('/')}/*.jsonl'."
            )
        yield open_saved(path, item, split)
    elif glob.has_magic(item):
        found = sorted(name for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
        if not found:
            raise InputError(f"no file matches {item!r}. Check the folder and the pattern.")
        for name in found:
            yield reader_of(DataFile(Path(name), name))
    elif _HUB_ID.fullmatch(item) and _kind_by_name(item) not in KINDS and not path.parent.is_dir():
        yield open_hub(item, split, subset)
    else:
        raise InputError(_missing(path, item))


def _missing(path: Path, item: str) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{item} does not exist: there is no folder {folder}."
    near = suggestion(path.name, [each.name for each in folder.iterdir()])
    return f"{item} does not exist.{near} Give a file, a glob, or a Hub dataset id (owner/name)."


def _kind_by_name(name: str) -> str:
    """The file's ending without the dot and without ".gz"."""
    path = Path(name.lower())
    if path.suffix in _COMPRESSED:
        path = path.with_suffix("")
    return path.suffix[1:]


def reader_of(file: DataFile) -> Reader:
    """Choose the reader by what the file holds; only CSV and TSV go by their names.

    Raises:
        InputError: empty, not UTF-8, or of an unknown kind.
    """
    try:
        head = file.head()
    except OSError as error:
        raise InputError(f"{file.name} cannot be read: {error.strerror}.") from None
    kind = _kind_by_name(file.name)
    if head.startswith(b"PAR1"):
        return ParquetTable(_uncompressed(file))
    if head.startswith(b"ARROW1") or (kind == "arrow" and head):
        return ArrowTable(_uncompressed(file))
    check_encoding(file, head)
    begin = head.lstrip()
    if kind in ("csv", "tsv"):
        return DelimitedText(file, kind)
    if begin.startswith(b"[") and not _is_row(begin):
        return JsonArray(file)
    if begin.startswith(b"{") or kind in ("jsonl", "ndjson"):
        if kind not in ("jsonl", "ndjson"):
            _refuse_single_object(file, begin)
        return JsonLines(file)
    first = begin.partition(b"\n")[0]
    if kind == "" and (b"," in first or b"\t" in first):  # standard input has no name to go by
        return DelimitedText(file, "tsv" if b"\t" in first else "csv")
    shown = begin[:40].decode("utf-8", "replace")
    raise InputError(
        f"{file.name} is not JSON: it begins with {shown!r}. Rows are read from {', '.join(KINDS)} files (the text ones"
        " also as .gz, .zst or .xz), saved datasets and Hub ids."
    )


def _uncompressed(file: DataFile) -> DataFile:
    if file.compression:
        raise InputError(f"{file.name} is a compressed Parquet or Arrow file, which is unusual. Decompress it first.")
    return file


def _is_row(begin: bytes) -> bool:
    try:
        as_mapping(begin.partition(b"\n")[0])
    except RowError:
        return False
    return True


def _refuse_single_object(file: DataFile, begin: bytes) -> None:
    """A file that is one object over several lines is no list of rows.

    Raises:
        InputError: it is one.
    """
    first, _, rest = begin.partition(b"\n")
    if _is_row(first) or not rest or rest.lstrip().startswith(b"{"):
        return
    lists = re.findall(rb'"([^"\\]+)"\s*:\s*\[\s*\{', begin)
    field = lists[0].decode("utf-8", "replace") if lists else None
    fix = ". Write a list of objects, [{...}, {...}], or one object a line (.jsonl)."
    if field:
        fix = f"; its field {field!r} is a list. Write that list to a file of its own: jq '.{field}' {file.name} > NEW"
    raise InputError(f"{file.name} is one JSON object, not a list of rows{fix}")
