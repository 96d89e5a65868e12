"""A dataset as a stream of rows and rejects, in input order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.find import Data, find_readers
from instruct_prune.rows.formats import find_format
from instruct_prune.rows.inputs import IMAGES, TEXT, Input, open_input
from instruct_prune.rows.reader import RowData, RowError
from instruct_prune.rows.row import ImageRef, Reject, Row
from instruct_prune.rows.tree import listing_line


class Source:
    """The rows of one or more files, streamed; iterate as often as needed.

    Iteration yields a Row or a Reject for every row, in input order. ``row_id`` counts every row read, rejected
    ones included.

    Attributes:
        format: name of the row format ("alpaca"); several files of different formats give "alpaca+messages".
            Formats that take text or turns say "-messages" when the rows hold turns ("preference-messages").
        kind: how the rows are stored ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "dataset", "hub", "imagefolder",
            "memory"); "mixed" when files differ.
        model_kind: the kind of model that the rows are for: "causal_lm", "image_encoder" or "vision_language".
        strata: the column that says by itself which rows belong together, or None.
        description: what was found, in one sentence for people.
        files: paths or Hub ids.
        opened_with: the arguments of `open_data` that open the same rows again; "data" is None for rows in memory.
    """

    def __init__(
        self, inputs: Sequence[Input], description: str, limit: int | None, strict: bool, opened_with: Mapping[str, Any]
    ) -> None:
        self._inputs = tuple(inputs)
        self._limit = limit
        self._strict = strict
        self._listed: str | None = None
        self.opened_with = opened_with
        self.description = description
        self.format = "+".join(dict.fromkeys(each.shown_format for each in inputs))
        self.model_kind = inputs[0].model_kind
        self.strata = inputs[0].format.strata
        kinds = {each.reader.kind for each in inputs}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        self.files = tuple(each.reader.name for each in inputs)

    def __iter__(self) -> Iterator[Row | Reject]:
        """Yield rows.

        Raises:
            InputError: a file cannot be read on, or ``strict`` and a row was rejected.
        """
        listed = hashlib.sha256()
        any_listed = False
        for row_id, (each, line, data) in enumerate(self._rows()):
            found = each.row(row_id, line, data)
            if isinstance(found, Reject):
                if self._strict:
                    raise InputError(_strictly(found))
            elif each.model_kind != TEXT and each.reader.kind != "imagefolder":
                for picture in _pictures(found):
                    if picture.data is None:
                        any_listed = True
                        listed.update(listing_line(Path(picture.path), Path("/")))
            yield found
        self._listed = listed.hexdigest() if any_listed else ""

    def _rows(self) -> Iterator[tuple[Input, int, RowData | RowError]]:
        everything = ((each, line, data) for each in self._inputs for line, data in each.reader.rows())
        return islice(everything, self._limit and min(self._limit, 2**62))

    def identity(self) -> list[dict[str, Any]]:
        """What the data were, one entry per file: path, sha256 and bytes; Hub: id, revision and fingerprint.

        A listing of pictures is followed by a hash of the names and sizes of the files that it names. What was read to
        the end was hashed on the way, and is not opened again.
        """
        entries = [entry for each in self._inputs for entry in each.reader.identity()]
        if self.model_kind == TEXT or self.kind == "imagefolder":
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


def open_data(
    data: Data,
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    split: str | None = None,
    subset: str | None = None,
    image_folder: str | None = None,
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
        image_folder: that paths of pictures are relative to; the folder of each file when None.

    Raises:
        InputError: nothing there, unreadable, or no row fits a format; the message says what to do.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give the number of rows to read, at least 1.")
    if format is not None:
        find_format(format)
    if image_folder is not None and not Path(image_folder).expanduser().is_dir():
        raise InputError(f"--image-folder {image_folder}: there is no such folder.")
    inputs: list[Input] = []
    told = []
    for reader in find_readers(data, split, subset):
        chosen, sentence = open_input(reader, format, columns or {}, image_folder)
        if inputs and chosen.format.model != inputs[0].format.model:
            pictures, text = inputs[0].reader.name, reader.name
            if chosen.format.model == IMAGES:
                pictures, text = text, pictures
            raise InputError(
                f"{text} holds no images, but {pictures} does. Score images and text in runs of their own."
            )
        inputs.append(chosen)
        told.append(sentence)
    if any(each.shows for each in inputs):  # files of text alone are read as rows without a picture
        inputs = [replace(each, shows=True) for each in inputs]
    _check_split(inputs, split, subset)
    named = isinstance(data, Sequence) and all(isinstance(item, str) for item in data)
    arguments = {
        "data": list(data) if named else None,
        "format": format,
        "columns": dict(columns or {}),
        "limit": limit,
    }
    arguments |= {"split": split, "subset": subset, "image_folder": image_folder}
    return Source(inputs, "; ".join(told), limit, strict, arguments)


def _check_split(inputs: Sequence[Input], split: str | None, subset: str | None) -> None:
    """Refuse a split or subset of data that have none."""
    kinds = {each.reader.kind for each in inputs}
    split_of, subset_of = {"hub", "dataset", "imagefolder"}, {"hub"}
    for option, given, known in (("--data-split", split, split_of), ("--data-subset", subset, subset_of)):
        if given is not None and not kinds & known:
            raise InputError(
                f"{option} {given}: {inputs[0].reader.name} has none (it is {inputs[0].reader.kind}). Leave it out."
            )
