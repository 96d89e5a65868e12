"""A dataset as a stream of samples and rejects, in input order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.find import find_readers
from instruct_prune.rows.formats import DETECTION_ROWS, Fields, Format, conversational, detect
from instruct_prune.rows.reader import Reader, RowData, RowError, as_mapping
from instruct_prune.rows.row import Reject, Row


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

    def sample(self, row_id: int, line: int, data: RowData | RowError) -> Row | Reject:
        try:
            row = as_mapping(data)
            messages, tools = self.format.parse(Fields(row, self.columns))
        except RowError as error:
            return Reject(row_id, self.reader.name, line, error.reason, error.field)
        raw = data if isinstance(data, bytes) and self.reader.kind == "jsonl" else row
        rest = {name: value for name, value in row.items() if name not in self.used}
        return Row(row_id, tuple(messages), self.reader.name, line, raw, rest, tools)


class Source:
    """The rows of one or more files, streamed; iterate as often as needed.

    Iteration yields a Row or a Reject for every row, in input order. ``row_id`` counts every row read, rejected
    ones included.

    Attributes:
        format: name of the row format ("alpaca"); several files of different formats give "alpaca+messages".
            Formats that take text or turns say "-messages" when the rows hold turns ("preference-messages").
        kind: how the rows are stored ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "dataset", "hub");
            "mixed" when files differ.
        description: what was found, in one sentence for people.
        files: paths or Hub ids.
    """

    def __init__(self, inputs: Sequence[_Input], description: str, limit: int | None, strict: bool) -> None:
        self._inputs = tuple(inputs)
        self._limit = limit
        self._strict = strict
        self.description = description
        self.format = "+".join(dict.fromkeys(each.shown_format for each in inputs))
        kinds = {each.reader.kind for each in inputs}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        self.files = tuple(each.reader.name for each in inputs)

    def __iter__(self) -> Iterator[Row | Reject]:
        """Yield rows.

        Raises:
            InputError: a file cannot be read on, or ``strict`` and a row was rejected.
        """
        for row_id, (each, line, data) in enumerate(self._rows()):
            found = each.sample(row_id, line, data)
            if self._strict and isinstance(found, Reject):
                where = f", field {found.field!r}" if found.field else ""
                raise InputError(
                    f"{found.source}, line {found.line}{where}: {found.reason}. Mend the row, or run without --strict"
                    " to list such rows and go on."
                )
            yield found

    def _rows(self) -> Iterator[tuple[_Input, int, RowData | RowError]]:
        everything = ((each, line, data) for each in self._inputs for line, data in each.reader.rows())
        return islice(everything, self._limit)

    def identity(self) -> list[dict[str, Any]]:
        """What the data were, one entry per file: path, sha256 and bytes; Hub: id, revision and fingerprint."""
        return [entry for each in self._inputs for entry in each.reader.identity()]


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
    data: Sequence[str],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    split: str | None = None,
    subset: str | None = None,
) -> Source:
    """Open files, globs, saved dataset folders, Hub ids or standard input ("-") as one stream of rows.

    Args:
        data: what to read, in this order.
        format: name of a row format (see ``FORMATS``); detected on the first 100 rows of each file if None.
        columns: field name of the format -> column of the file, for files with other names.
        limit: stop after this many rows.
        strict: raise at the first row that would be rejected.
        split: split of a Hub dataset or of a saved DatasetDict.
        subset: configuration of a Hub dataset.

    Raises:
        InputError: nothing there, unreadable, or no row fits a format; the message says what to do.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give the number of rows to read, at least 1.")
    inputs, told = [], []
    for reader in find_readers(data, split, subset):
        chosen, sentence = _open(reader, format, columns or {})
        inputs.append(chosen)
        told.append(sentence)
    return Source(inputs, "; ".join(told), limit, strict)


def _open(reader: Reader, wanted: str | None, columns: Mapping[str, str]) -> tuple[_Input, str]:
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
    chosen = detect(parsed, reader.name, wanted, columns)
    shown = chosen.name
    if conversational(chosen, parsed, columns) and chosen.name in ("preference", "prompt-completion"):
        shown += "-messages"
    needed = [columns.get(n, n) for n in dict.fromkeys(chosen.names) if any(columns.get(n, n) in row for row in parsed)]
    how = "as given by --format" if wanted else f"detected on the first {len(parsed)} rows"
    return _Input(reader, chosen, shown, columns), f"{shown} ({', '.join(needed)}), {how} of {reader.name}"
