"""A dataset as a stream of rows and rejects, in input order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.find import Data, find_readers
from instruct_prune.rows.formats import DETECTION_ROWS, FORMATS, Format, detect, find_format, shown_name
from instruct_prune.rows.formats.images import SHOWN_IN_TURNS, holds_picture, is_picture, refuse_pictures
from instruct_prune.rows.reader import Reader, RowData, RowError, as_mapping
from instruct_prune.rows.row import ImageRef, Reject, Row
from instruct_prune.rows.tree import ImageTree, ListingHash


@dataclass(frozen=True)
class _Input:
    reader: Reader
    format: Format
    shown_format: str
    columns: Mapping[str, str]

    @cached_property
    def used(self) -> frozenset[str]:
        """The file's columns that are part of the conversation."""
        return frozenset(self.columns.get(name, name) for name in self.format.names)

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        return tuple(name for group in self.format.needs for name in group)

    @cached_property
    def folder(self) -> Path:
        return Path(self.reader.name).expanduser().parent

    @cached_property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self.reader.class_names()

    def row(self, row_id: int, line: int, data: RowData | RowError) -> Row | Reject:
        source = self.reader.name
        if isinstance(self.reader, ImageTree) and isinstance(data, Mapping):
            source, line = data["image"], 1
        try:
            stored = as_mapping(data)
            seen = self._named(stored)
            if self.format.model == "causal_lm" and not self.columns:
                refuse_pictures(seen, self._needed)
            messages, tools = self.format.parse(self.format.fields(seen, self.columns, self._base, line))
        except RowError as error:
            return Reject(row_id, source, line, error.reason, error.field)
        raw = data if isinstance(data, bytes) and self.reader.kind == "jsonl" else stored
        rest = {name: value for name, value in seen.items() if name not in self.used and not _is_held(value)}
        if self.format.summary is not None:
            raw = self.format.summary(messages)
            rest |= raw
        return Row(row_id, tuple(messages), source, line, raw, rest, tools)

    @property
    def _base(self) -> Path:
        return Path() if isinstance(self.reader, ImageTree) else self.folder

    def _named(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row with the names of its classes in place of their numbers."""
        if not self.class_names:
            return row
        found = dict(row)
        for column, names in self.class_names.items():
            number = found.get(column)
            if isinstance(number, int):
                found[column] = names[number] if 0 <= number < len(names) else None
        return found


def _is_held(value: Any) -> bool:
    """Whether a value says nothing about its row, or is a picture with its bytes, which is no column to select by."""
    return (
        value is None
        or value != value
        or isinstance(value, bytes)
        or (isinstance(value, Mapping) and is_picture(value))
    )


class Source:
    """The rows of one or more files, streamed; iterate as often as needed.

    Iteration yields a Row or a Reject for every row, in input order. ``row_id`` counts every row read, rejected
    ones included.

    Attributes:
        format: name of the row format ("alpaca"); several files of different formats give "alpaca+messages".
            Formats that take text or turns say "-messages" when the rows hold turns ("preference-messages").
        kind: how the rows are stored ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "dataset", "hub", "imagefolder",
            "memory"); "mixed" when files differ.
        model_kind: the kind of model that the rows are for: "causal_lm" or "image_encoder".
        strata: the column that says by itself which rows belong together, or None.
        description: what was found, in one sentence for people.
        files: paths or Hub ids.
        opened_with: the arguments of `open_data` that open the same rows again; "data" is None for rows in memory.
    """

    def __init__(
        self,
        inputs: Sequence[_Input],
        description: str,
        limit: int | None,
        strict: bool,
        opened_with: Mapping[str, Any],
    ) -> None:
        self._inputs = tuple(inputs)
        self._limit = limit
        self._strict = strict
        self._listed: str | None = None
        self.opened_with = opened_with
        self.description = description
        self.format = "+".join(dict.fromkeys(each.shown_format for each in inputs))
        self.model_kind = inputs[0].format.model
        self.strata = inputs[0].format.strata
        kinds = {each.reader.kind for each in inputs}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        self.files = tuple(each.reader.name for each in inputs)

    def __iter__(self) -> Iterator[Row | Reject]:
        """Yield rows.

        Raises:
            InputError: a file cannot be read on, or ``strict`` and a row was rejected.
        """
        listed = ListingHash(Path("/"))
        any_listed = False
        for row_id, (each, line, data) in enumerate(self._rows()):
            found = each.row(row_id, line, data)
            if isinstance(found, Reject):
                if self._strict:
                    raise InputError(_strictly(found))
            elif each.format.model == "image_encoder" and each.reader.kind != "imagefolder":
                for picture in _pictures(found):
                    if picture.data is None:
                        any_listed = True
                        listed.add(Path(picture.path))
            yield found
        self._listed = listed.hexdigest() if any_listed else ""

    def _rows(self) -> Iterator[tuple[_Input, int, RowData | RowError]]:
        everything = ((each, line, data) for each in self._inputs for line, data in each.reader.rows())
        return islice(everything, self._limit and min(self._limit, 2**62))

    def identity(self) -> list[dict[str, Any]]:
        """What the data were, one entry per file: path, sha256 and bytes; Hub: id, revision and fingerprint.

        A listing of pictures is followed by a hash of the names and sizes of the files that it names. What was read to
        the end was hashed on the way, and is not opened again.
        """
        entries = [entry for each in self._inputs for entry in each.reader.identity()]
        if self.model_kind != "image_encoder" or self.kind == "imagefolder":
            return entries
        if self._listed is None:
            for _ in self:
                pass
        return [*entries, {"path": "files that are listed", "sha256": self._listed}] if self._listed else entries

    def paths(self) -> dict[str, Path]:
        """The files on disk that the rows lie in, by the names they have in `identity`."""
        return {name: path for each in self._inputs for name, path in each.reader.paths().items()}


def _pictures(row: Row) -> Iterator[ImageRef]:
    return (picture for message in row.messages for picture in message.images)


def _strictly(found: Reject) -> str:
    where = f", field {found.field!r}" if found.field else ""
    return (
        f"{found.source}, line {found.line}{where}: {found.reason}. Mend the row, or run without --strict"
        " to list such rows and go on."
    )


def read_raw(source: Source, row_ids: Iterable[int]) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
    """Read rows again as they lie in the input: exact bytes of the line for JSONL, else the parsed row.

    Args:
        source: where they came from.
        row_ids: ascending; rows that were rejected cannot be asked for.

    Yields:
        (row_id, raw) in input order.

    Raises:
        InputError: the data have changed since, or a row id is not there.
    """
    wanted = iter(row_ids)
    next_id = next(wanted, None)
    for row_id, (each, line, data) in enumerate(source._rows()):
        if next_id is None:
            return
        if row_id != next_id:
            continue
        try:
            raw = data if isinstance(data, bytes) and each.reader.kind == "jsonl" else as_mapping(data)
        except RowError as error:
            raise InputError(
                f"{each.reader.name}, line {line}: this row could be read before and cannot now ({error.reason});"
                " the file was changed during the run."
            ) from None
        yield row_id, raw
        next_id = next(wanted, None)
    if next_id is not None:
        raise InputError(f"{', '.join(source.files)}: there is no row {next_id}; the data were changed during the run.")


def open_data(
    data: Data,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    split: str | None = None,
    subset: str | None = None,
) -> Source:
    """Open files, globs, folders, Hub ids, standard input ("-") or rows in memory as one stream of rows.

    Args:
        data: what to read, in this order; or a list of dictionaries, or a ``datasets.Dataset``.
        format: name of a row format (see ``FORMATS``) or ``package.module:NAME`` of a `Format`; detected on the first 100
            rows of each file if None.
        columns: field name of the format -> column of the file, for files with other names; each column is used once.
        limit: stop after this many rows.
        strict: raise at the first row that would be rejected.
        split: split of a Hub dataset, of a saved DatasetDict or of a tree of pictures.
        subset: configuration of a Hub dataset.

    Raises:
        InputError: nothing there, unreadable, or no row fits a format; the message says what to do.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give the number of rows to read, at least 1.")
    if format is not None:
        find_format(format)
    inputs: list[_Input] = []
    told = []
    for reader in find_readers(data, split, subset):
        chosen, sentence = _open(reader, format, columns or {})
        if inputs and chosen.format.model != inputs[0].format.model:
            pictures, text = inputs[0].reader.name, reader.name
            if chosen.format.model == "image_encoder":
                pictures, text = text, pictures
            raise InputError(
                f"{text} holds no images, but {pictures} does. Score images and text in runs of their own."
            )
        inputs.append(chosen)
        told.append(sentence)
    named = isinstance(data, Sequence) and all(isinstance(item, str) for item in data)
    arguments = {
        "data": list(data) if named else None,
        "format": format,
        "columns": dict(columns or {}),
        "limit": limit,
    }
    return Source(inputs, "; ".join(told), limit, strict, arguments | {"split": split, "subset": subset})


def _open(reader: Reader, wanted: str | None, columns: Mapping[str, str]) -> tuple[_Input, str]:
    if isinstance(reader, ImageTree) and wanted in (None, "image-classification"):
        chosen = FORMATS["image-classification"]
        return _Input(reader, chosen, chosen.name, columns), f"images in class folders of {reader.root}"
    parsed = _first_rows(reader)
    chosen = detect(parsed, reader.name, wanted, columns)
    shown = shown_name(chosen, parsed, columns)
    found = dict.fromkeys(columns.get(name, name) for name in chosen.names)
    needed = [column for column in found if any(column in row for row in parsed)]
    how = "as given by --format" if wanted else f"detected on the first {len(parsed)} rows"
    sentence = f"{shown} ({', '.join(needed)}), {how} of {reader.name}"
    left_out = [name for name in SHOWN_IN_TURNS if any(holds_picture(row.get(name)) for row in parsed)]
    if left_out and columns and chosen.model == "causal_lm":
        sentence += f", without its pictures ({', '.join(left_out)})"
    return _Input(reader, chosen, shown, columns), sentence


def _first_rows(reader: Reader) -> list[Mapping[str, Any]]:
    parsed: list[Mapping[str, Any]] = []
    faults: list[tuple[int, str]] = []
    for line, data in islice(reader.rows(), DETECTION_ROWS):
        try:
            parsed.append(as_mapping(data))
        except RowError as error:
            faults.append((line, error.reason))
    if not parsed:
        if not faults:
            raise InputError(f"{reader.name} has no rows.")
        line, reason = faults[0]
        raise InputError(f"{reader.name}: none of the first {len(faults)} rows can be read. Line {line}: {reason}.")
    return parsed
