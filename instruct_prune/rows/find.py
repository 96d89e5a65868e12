"""What people write after ``--data`` -> readers."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from instruct_prune.errors import InputError
from instruct_prune.progress import say
from instruct_prune.registry import suggestion
from instruct_prune.rows.arrow_tables import ArrowTable, ParquetTable
from instruct_prune.rows.delimited import DelimitedText
from instruct_prune.rows.files import DataFile, check_container, check_encoding, spool_stdin
from instruct_prune.rows.json_rows import JsonArray, JsonLines
from instruct_prune.rows.memory import MemoryRows
from instruct_prune.rows.reader import Reader, RowError, as_mapping
from instruct_prune.rows.saved import HubDataset, is_saved_dataset, open_hub, open_saved
from instruct_prune.rows.tree import LISTINGS, is_run_folder, open_tree

if TYPE_CHECKING:
    import datasets

Data: TypeAlias = "Sequence[str] | Sequence[Mapping[str, Any]] | datasets.Dataset"
KINDS = ("json", "jsonl", "ndjson", "csv", "tsv", "parquet", "arrow")
_COMPRESSED = (".gz", ".zst", ".xz")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def find_readers(data: Data, split: str | None, subset: str | None) -> Iterator[Reader]:
    """Readers for paths, globs, Hub ids and "-", in the order given; a glob's files are sorted by name.

    Each file is opened when its reader is asked for, and its first rows can be read without opening it again.

    Args:
        data: names, or rows in memory: a list of dictionaries or a ``datasets.Dataset``.
        split: of a Hub dataset, a saved DatasetDict or a tree of pictures.
        subset: configuration of a Hub dataset.

    Raises:
        InputError: nothing there, or nothing that can be read.
    """
    if hasattr(data, "with_format"):
        yield HubDataset("dataset in memory", "memory", None, data)
        return
    if not len(data):
        raise InputError("no data: give --data with a file, a glob, a Hub dataset id, or - for standard input.")
    if not isinstance(data[0], str):
        yield MemoryRows(cast(Sequence[Mapping[str, Any]], data))
        return
    names = cast(Sequence[str], data)
    if list(names).count("-") > 1:
        raise InputError("--data names standard input (-) twice; it can be read once.")
    for item in names:
        yield from _readers(item, split, subset)


def _readers(item: str, split: str | None, subset: str | None) -> Iterator[Reader]:
    path = Path(item).expanduser()
    if item == "-":
        yield reader_of(spool_stdin())
    elif path.is_file():
        yield reader_of(DataFile(path, item))
    elif path.is_dir():
        yield _of_folder(path, item, split)
    elif glob.has_magic(item):
        found = matching(item)
        if not found:
            raise InputError(f"no file matches {item!r}. Check the folder and the pattern.")
        for name in found:
            yield reader_of(DataFile(Path(name), name))
    elif path.exists():
        raise InputError(
            f"{item} is a pipe or a device, which can be read only once. Pipe it into the command, and write --data - for it."
        )
    elif is_hub_id(item):
        yield open_hub(item, split, subset)
    else:
        raise InputError(_missing(path, item))


def matching(pattern: str) -> list[str]:
    """The files of a glob, sorted by name; ``**`` passes over run folders."""
    path = str(Path(pattern).expanduser())
    found = sorted(name for name in glob.glob(path, recursive=True) if Path(name).is_file())
    return _without_runs(found) if "**" in pattern else found


def _without_runs(found: Sequence[str]) -> list[str]:
    """Files that ``**`` found, without those of run folders: what a run writes into the data's folder is no data."""
    folders = {folder: is_run_folder(folder) for folder in {each for name in found for each in Path(name).parents}}
    own = [name for name in found if any(folders[each] for each in Path(name).parents)]
    if own:
        say(f"data: {len(own)} files lie in run folders and are left out, {own[0]} for one")
    return [name for name in found if name not in set(own)]


def is_hub_id(item: str) -> bool:
    """Whether a name is that of a dataset on the Hub: owner/name, and no path."""
    path = Path(item).expanduser()
    there = path.exists() or path.parent.is_dir()
    return _HUB_ID.fullmatch(item) is not None and _kind_by_name(item) not in KINDS and not there


def _of_folder(path: Path, item: str, split: str | None) -> Reader:
    if is_saved_dataset(path):
        return open_saved(path, item, split)
    listing = next((path / name for name in LISTINGS if (path / name).is_file()), None)
    if listing is not None:
        return reader_of(DataFile(listing, str(listing)))
    tree = open_tree(path, item, split)
    if tree is None:
        ending = next((kind for kind in ("jsonl", *KINDS) if any(path.glob(f"*.{kind}"))), "jsonl")
        raise InputError(
            f"{item} is a folder, and not one that datasets' save_to_disk wrote; it holds no pictures either. Name the"
            f" files in it, for example --data '{item.rstrip('/')}/*.{ending}'."
        )
    return tree


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
    head = file.head()
    kind = _kind_by_name(file.name)
    begin = head.lstrip()
    is_json = begin.startswith(b"{") or (begin.startswith(b"[") and begin[1:].lstrip()[:1] in (b"{", b"[", b"]", b'"'))
    if head.startswith(b"PAR1"):
        return ParquetTable(_uncompressed(file))
    if head.startswith(b"ARROW1") or (kind == "arrow" and head and not is_json):
        return ArrowTable(_uncompressed(file))
    check_container(file, head)
    check_encoding(file, head)
    if kind in ("csv", "tsv") and not (begin.startswith(b"{") and _is_row(begin)):
        return DelimitedText(file, kind)
    if begin.startswith(b"[") and not (kind in ("jsonl", "ndjson") and _is_list_a_line(begin)):
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


def _is_list_a_line(begin: bytes) -> bool:
    """Whether the first line is a whole list and others follow: rows without the names of their fields."""
    first, _, rest = begin.partition(b"\n")
    try:
        return isinstance(json.loads(first), list) and bool(rest.strip())
    except (ValueError, RecursionError):
        return False


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
