"""What a reader hands on: rows as they lie in the file, and why some of them cannot be read."""

from __future__ import annotations

import base64
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.rows.row import suffix_of

RowData = bytes | Mapping[str, Any]


class RowError(ValueError):
    """One row cannot be used; the rest of the file can.

    Attributes:
        reason: what is wrong with it, for people.
        field: the field at fault, where there is one.
    """

    def __init__(self, reason: str, field: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field


class Reader(ABC):
    """One file, folder or dataset: an iterator over its rows that can be started many times, and the writer of its kind.

    Attributes:
        name: the path or Hub id, as shown to people.
        kind: "jsonl", "json", "csv", "tsv", "parquet", "arrow", "dataset", "hub", "imagefolder" or "memory".
    """

    name: str
    kind: str

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        """Yield (1-based line, row) in file order; bytes are JSON text that ``as_mapping`` parses."""

    @abstractmethod
    def identity(self) -> list[dict[str, Any]]:
        """What the data was: path, SHA-256 and size per file; id and fingerprint for the Hub.

        Rows that were read to their end were hashed on the way: then nothing is opened.
        """

    def paths(self) -> Mapping[str, Path]:
        """The files on disk, by the names that `identity` has for them; empty where a folder or the Hub is read."""
        return {}

    def class_names(self) -> Mapping[str, Sequence[str]]:
        """The names behind the integers of a column, where the kind of file keeps them; by column."""
        return {}

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path | None:
        """Write some of the rows as a file (or folder) of this kind.

        Args:
            kept: their lines, as ``rows`` numbers them.
            raws: the rows.
            stem: where to, without the ending of the kind.

        Returns:
            What was written; None for kinds that need no file of their own: JSONL lines are written as they are anyway.
        """
        return None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RowError(f"the field {twice!r} appears twice in one object", twice)
    return found


MOST_NESTED = 100
"""Lists and objects inside each other; Python's own limit depends on who calls, so that it may be met anywhere."""


def loads(text: str) -> Any:
    """The value of JSON text.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    check_depth(value, text.count("[") + text.count("{"))
    return value


def check_depth(value: object, brackets: int) -> None:
    """Refuse what is nested more than ``MOST_NESTED`` deep.

    Args:
        value: of JSON.
        brackets: how many open in its text: few cannot be deep.

    Raises:
        ValueError: it is.
    """
    level, depth = [value], 0
    while brackets > MOST_NESTED and level:
        depth += 1
        if depth > MOST_NESTED + 1:
            raise ValueError("nested too deeply")
        level = [
            part
            for each in level
            if isinstance(each, dict | list)
            for part in (each.values() if isinstance(each, dict) else each)
            if isinstance(part, dict | list)
        ]


_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def as_mapping(data: RowData | RowError) -> Mapping[str, Any]:
    """Parse a row.

    Raises:
        RowError: it is not UTF-8, not JSON, not an object, or holds text that no UTF-8 file can hold.
    """
    if isinstance(data, RowError):
        raise data
    if not isinstance(data, bytes):
        return data
    try:
        row = _DECODER.decode(data.decode("utf-8"))
        check_depth(row, data.count(b"[") + data.count(b"{"))
    except UnicodeDecodeError as error:
        raise RowError(
            f"not UTF-8: byte 0x{data[error.start]:02x} at position {error.start}; the file may be latin-1 or"
            " Windows-1252 (convert it: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW)"
        ) from None
    except json.JSONDecodeError as error:
        raise RowError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RecursionError:
        raise RowError("not usable JSON: nested too deeply") from None
    except RowError:
        raise
    except ValueError as error:  # an integer of more than 4300 digits
        raise RowError(f"not usable JSON: {error}") from None
    if not isinstance(row, dict):
        raise RowError(f"a row must be a JSON object, this is {named_type(row)}{_bare(row)}")
    if _SURROGATE.search(data):
        check_encodable(row)
    return row


def is_turn(value: object) -> bool:
    """Whether a value looks like one turn of a conversation."""
    return isinstance(value, Mapping) and (
        ("role" in value and ("content" in value or "tool_calls" in value)) or ("from" in value and "value" in value)
    )


def _bare(row: object) -> str:
    if isinstance(row, list) and row and all(is_turn(turn) for turn in row):
        return ' of turns without a name; write {"messages": [...]}'
    return ""


def line_of(raw: bytes | Mapping[str, Any]) -> bytes:
    """One JSONL line without its newline: the row's own bytes, or its object as JSON (same keys, order, values).

    What JSON has no type for is written as text: bytes as a data URI, by which pictures are found in a row.
    """
    if isinstance(raw, bytes):
        return raw
    return json.dumps(raw, ensure_ascii=False, default=_as_text).encode("utf-8", "surrogatepass")


def _as_text(value: object) -> str:
    if not isinstance(value, bytes):
        return str(value)
    suffix = suffix_of(value)
    kind = {".img": "application/octet-stream", ".jpg": "image/jpeg", ".tif": "image/tiff"}.get(
        suffix, f"image/{suffix[1:]}"
    )
    return f"data:{kind};base64,{base64.b64encode(value).decode()}"


def check_encodable(row: Mapping[str, Any]) -> None:
    """Refuse half surrogate pairs ("\\ud83d" alone): no tokenizer and no UTF-8 file can take them.

    Raises:
        RowError: naming the field.
    """
    for name, value in row.items():
        try:
            json.dumps([name, value], ensure_ascii=False, default=str).encode("utf-8")
        except UnicodeEncodeError:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise RowError("half of a surrogate pair, which is no character", shown) from None
        except RecursionError:
            raise RowError("not usable JSON: nested too deeply") from None


def named_type(value: object) -> str:
    """What people call the type of a JSON value."""
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "true or false"),
        ((int, float), "a number"),
        (str, "text"),
        ((list, tuple), "a list"),
        (Mapping, "an object"),
        (type(None), "null"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), f"a {type(value).__name__}")


def chosen_split(name: str, known: Collection[str], split: str | None, several: str) -> str:
    """The split that was asked for, or "train" where none was.

    Args:
        name: of the data.
        known: its splits.
        split: the one asked for.
        several: what the data have, for the message where no split was asked for.

    Raises:
        InputError: the data have no such split.
    """
    wanted = split or "train"
    if wanted not in known:
        problem = f"has no split {split!r}.{suggestion(split, known)}" if split else f"{several} no 'train'."
        raise InputError(f"{name} {problem} Choose one with --data-split: {', '.join(known)}.")
    return wanted
