"""One input of a dataset: a reader, and how its rows are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.formats import DETECTION_ROWS, FORMATS, Format, detect, shown_name
from instruct_prune.rows.formats.format import Parsed
from instruct_prune.rows.formats.images import is_picture, lists_pictures, refuse_pictures
from instruct_prune.rows.pictures import LISTED, listed_in, with_pictures
from instruct_prune.rows.reader import Reader, RowData, RowError, as_mapping
from instruct_prune.rows.row import Reject, Row
from instruct_prune.rows.tree import ImageTree

TEXT, IMAGES, IMAGES_AND_TEXT = "causal_lm", "image_encoder", "vision_language"
"""Kinds of models that rows are for."""


@dataclass(frozen=True)
class Input:
    """A reader with the format of its rows.

    Attributes:
        reader: of the file or data set.
        format: of its rows.
        shown_format: what the format is called.
        columns: field name of the format -> column of the file.
        image_folder: that paths of pictures are relative to; the file's own folder where it is not given.
        shows: whether its conversations show pictures.
    """

    reader: Reader
    format: Format
    shown_format: str
    columns: Mapping[str, str]
    image_folder: str | None = None
    shows: bool = False

    @property
    def model_kind(self) -> str:
        """The kind of model that the rows are for."""
        return IMAGES_AND_TEXT if self.shows and self.format.model == TEXT else self.format.model

    @cached_property
    def used(self) -> frozenset[str]:
        """The file's columns that are part of the conversation."""
        names = (*self.format.names, *(LISTED if self.shows else ()))
        return frozenset(self.columns.get(name, name) for name in names)

    @cached_property
    def _needed(self) -> tuple[str, ...]:
        return tuple(name for group in self.format.needs for name in group)

    @cached_property
    def _base(self) -> Path:
        if self.image_folder is not None:
            return Path(self.image_folder).expanduser()
        return Path() if isinstance(self.reader, ImageTree) else Path(self.reader.name).expanduser().parent

    @cached_property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        return self.reader.class_names()

    def row(self, row_id: int, line: int, data: RowData | RowError) -> Row | Reject:
        """One row, or why it cannot be used."""
        source = self.reader.name
        if isinstance(self.reader, ImageTree) and isinstance(data, Mapping):
            source, line = data["image"], 1
        try:
            stored = as_mapping(data)
            seen = self._named(stored)
            messages, tools = self._parsed(seen, line)
        except RowError as error:
            return Reject(row_id, source, line, error.reason, error.field)
        raw = data if isinstance(data, bytes) and self.reader.kind == "jsonl" else stored
        rest = {name: value for name, value in seen.items() if name not in self.used and not _is_held(value)}
        if self.format.summary is not None:
            raw = self.format.summary(messages)
            rest |= raw
        return Row(row_id, tuple(messages), source, line, raw, rest, tools)

    def _parsed(self, seen: Mapping[str, Any], line: int) -> Parsed:
        """Messages and tools of a row.

        Raises:
            RowError: they cannot be read, or show pictures where they should not, or not the right ones.
        """
        if self.model_kind == TEXT and not self.columns:
            refuse_pictures(seen, self._needed)
        messages, tools = self.format.parse(self.format.fields(seen, self.columns, self._base, line))
        if self.format.model != TEXT:
            return messages, tools
        turns = next((name for name in self._needed if self.columns.get(name, name) in seen), self._needed[0])
        if not self.shows:
            if any(message.images for message in messages):
                raise RowError("a turn shows a picture, and the other rows are read as text alone", turns)
            return messages, tools
        column, listed = listed_in(seen, self.columns)
        return with_pictures(messages, column, listed, self._base, turns), tools

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


def open_input(
    reader: Reader, wanted: str | None, columns: Mapping[str, str], image_folder: str | None
) -> tuple[Input, str]:
    """Look at the first rows of a reader: the input, and what was found in one sentence.

    Raises:
        InputError: no row fits a format, or none can be read.
    """
    if isinstance(reader, ImageTree) and wanted in (None, "image-classification"):
        chosen = FORMATS["image-classification"]
        return Input(reader, chosen, chosen.name, columns), f"images in class folders of {reader.root}"
    parsed = _first_rows(reader)
    chosen = detect(parsed, reader.name, wanted, columns)
    shown = shown_name(chosen, parsed, columns)
    found = dict.fromkeys(columns.get(name, name) for name in chosen.names)
    needed = [column for column in found if any(column in row for row in parsed)]
    how = "as given by --format" if wanted else f"detected on the first {len(parsed)} rows"
    sentence = f"{shown} ({', '.join(needed)}), {how} of {reader.name}"
    listed = [
        columns.get(name, name)
        for name in LISTED
        if any(lists_pictures(row, columns.get(name, name)) for row in parsed)
    ]
    shows = chosen.model == TEXT and _shows(chosen, parsed, columns, listed, image_folder)
    if shows:
        sentence += f", with pictures ({', '.join(listed) or 'parts of turns'})"
    elif listed and columns and chosen.model == TEXT:
        sentence += f", without its pictures ({', '.join(listed)})"
    return Input(reader, chosen, shown, columns, image_folder, shows), sentence


def _shows(
    chosen: Format,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    listed: Sequence[str],
    image_folder: str | None,
) -> bool:
    """Whether the first rows show pictures, or are said to; a mapping that names the text alone leaves pictures out."""
    if image_folder is not None:
        return True
    if columns and not set(columns) & set(LISTED):
        return False
    if listed:
        return True
    for row in rows:
        try:
            messages, _ = chosen.parse(chosen.fields(row, columns, Path(), 1))
        except RowError:
            continue
        if any(message.images for message in messages):
            return True
    return False


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
