"""CSV and TSV: text stays text, and a quotation mark that is never closed costs its own line only."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.files import OfFile
from instruct_prune.rows.reader import RowData, RowError
from instruct_prune.storage import atomic

LOOK_AHEAD = 100  # lines that are read on to see whether a broken record swallowed another
MAX_FIELD = 1 << 26  # characters; the csv module's own limit of 131,072 is shorter than many a document


class _Records:
    """Records of delimited text, with the lines that each one takes, and a way back to them."""

    def __init__(self, lines: Iterable[str], delimiter: str) -> None:
        self.lines, self.delimiter = iter(lines), delimiter
        self.ahead: deque[str] = deque()  # lines that were given back
        self.taken: list[str] = []  # lines of the last record
        self.line = 0  # the number of its first line
        self.next_line = 1
        self.records = self._reader()

    def _reader(self) -> Any:
        return csv.reader(self._fed(), delimiter=self.delimiter, strict=True)

    def _line(self) -> str | None:
        return self.ahead.popleft() if self.ahead else next(self.lines, None)

    def _fed(self) -> Iterator[str]:
        while (line := self._line()) is not None:
            self.taken.append(line)
            self.next_line += 1
            yield line

    def next(self) -> list[str] | None:
        """The next record, empty for a blank line; None at the end.

        Raises:
            csv.Error: it is none; `give_back` and go on.
        """
        self.taken.clear()
        self.line = self.next_line
        return next(self.records, None)

    def give_back(self) -> None:
        """Take the first line of the last record as all of it: those after it are read again."""
        self.ahead.extendleft(reversed(self.taken[1:]))
        self.next_line -= len(self.taken) - 1
        del self.taken[1:]
        self.restart()

    def restart(self) -> None:
        self.records = self._reader()

    def swallowed(self, n_fields: int) -> bool:
        """Whether a whole record begins after the first line of this one, so that this one swallowed it."""
        if len(self.taken) < 2:
            return False
        seen = self.taken[1:]
        n_taken = len(seen)

        def lines() -> Iterator[str]:
            yield from self.taken[1:]
            while len(seen) < n_taken + LOOK_AHEAD and (line := self._line()) is not None:
                seen.append(line)
                yield line

        trial = csv.reader(lines(), delimiter=self.delimiter, strict=True)
        try:
            record = next(trial, [])
        except csv.Error:
            record = []
        self.ahead.extendleft(reversed(seen[n_taken:]))
        # The end of a broken cell may look like a record too, but it has one quotation mark without a partner.
        return len(record) == n_fields and "".join(seen[: trial.line_num]).count('"') % 2 == 0


@dataclass(frozen=True)
class DelimitedText(OfFile):
    """CSV or TSV with a header line. No value is converted: "NA" and "00705" stay what they are."""

    kind: str

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        csv.field_size_limit(MAX_FIELD)
        with self.file.open() as stream:
            # Undecodable bytes become lone surrogates here and are found again below: one bad row, not a bad file.
            delimiter = self._delimiter(stream)
            text = io.TextIOWrapper(stream, encoding="utf-8", errors="surrogateescape", newline="")
            records = _Records(text, delimiter)
            header = self._header(records)
            while True:
                row = self._next(records, header)
                if row is None:
                    break
                if row:
                    yield records.line, row
            text.detach()

    def _next(self, records: _Records, header: list[str]) -> RowData | RowError | None:
        """The next row, an empty one for a blank line; None at the end."""
        try:
            record = records.next()
        except csv.Error as error:
            at_end = "unexpected end" in str(error) or "field larger" in str(error)
            if at_end or records.swallowed(len(header)):
                lines = len(records.taken)
                records.give_back()
                return RowError(
                    f"not {self.kind.upper()}: a quotation mark in this line is never closed ({error} {lines} lines on);"
                    " the lines after it were read as rows of their own"
                )
            records.restart()
            return RowError(f"not {self.kind.upper()}: {error}{_lines(records)}")
        if record is None or not record:
            return None if record is None else {}
        if len(record) != len(header):
            if records.swallowed(len(header)):
                records.give_back()
                return RowError(
                    f"not {self.kind.upper()}: a quotation mark in this line is closed in a later row only; the lines after"
                    " it were read as rows of their own"
                )
            return RowError(f"the row has {len(record)} fields, the header has {len(header)}{_lines(records)}")
        return _row(header, record)

    def _delimiter(self, stream: Any) -> str:
        """Tab, comma, or the semicolon of spreadsheets, by the first line of the file."""
        if self.kind == "tsv":
            return "\t"
        first = stream.peek().partition(b"\n")[0]
        return ";" if first.count(b";") > first.count(b",") else ","

    def _header(self, records: _Records) -> list[str]:
        reason: object = "no line"
        try:
            header = records.next()
            while header is not None and not header:
                header = records.next()
        except csv.Error as error:
            header, reason = None, error
        if header is None:
            raise InputError(f"{self.name} has no header line that can be read ({reason}).")
        twice = next((name for name in header if header.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{self.name}: two columns are named {twice!r}. Rename one of them in the first line.")
        if any(not _is_text(name) for name in header):
            raise InputError(
                f"{self.name} is not UTF-8: its header cannot be read. It may be latin-1 or Windows-1252; convert it:"
                f" iconv -f WINDOWS-1252 -t UTF-8 {self.name} > NEW"
            )
        return header

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path:
        """The rows as text of the same delimiter."""
        target = stem.with_name(f"{stem.name}.{self.kind}")
        with self.file.open() as stream:
            delimiter = self._delimiter(stream)
        with atomic(target) as file:
            # RFC 4180: lines end with CRLF, so that a lone \r or \n in a field is quoted and comes back as it was.
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer: Any = None
            for raw in raws:
                if writer is None:
                    writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
                    writer.writerow(raw)
                writer.writerow(raw.values())
            text.detach()
        return target


def _lines(records: _Records) -> str:
    return f" (lines {records.line} to {records.next_line - 1})" if len(records.taken) > 1 else ""


def _row(header: list[str], record: list[str]) -> RowData | RowError:
    for name, value in zip(header, record, strict=True):
        if not _is_text(value):
            return RowError(
                "not UTF-8; the file may be latin-1 or Windows-1252 (convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD"
                " > NEW)",
                name,
            )
    return dict(zip(header, record, strict=True))


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
