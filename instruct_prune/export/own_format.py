"""The kept rows in the input's own format, value for value: JSON arrays, CSV, TSV, Parquet, Arrow, saved datasets.

JSONL needs nothing here: ``pruned.jsonl`` (rows.py) holds the very bytes of its lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.export.rows import line_of
from instruct_prune.export.tables import kept_table, save_dataset, write_arrow, write_parquet_table
from instruct_prune.rows.row import Row
from instruct_prune.storage import atomic

SUFFIXES = {
    "json": ".json",
    "csv": ".csv",
    "tsv": ".tsv",
    "parquet": ".parquet",
    "arrow": ".arrow",
    "dataset": "",
    "hub": "",
}


@dataclass(frozen=True)
class KeptOf:
    """The kept rows of one input: 1-based lines (text) or positions (tables), in order."""

    source: str
    lines: list[int] = field(default_factory=list)


def write_own_format(
    samples: Iterable[Row], kind: str, folder: Path, *, split: str | None = None, subset: str | None = None
) -> list[Path]:
    """Write ``pruned.json``, ``pruned.csv``, ``pruned.parquet``, ...; several inputs give one file each.

    Args:
        samples: the kept rows in input order, iterable more than once.
        kind: ``Source.kind``; nothing is written for "jsonl" and "mixed", whose rows are in ``pruned.jsonl``.
        folder: the run folder.
        split: of a saved or Hub dataset, as given to ``open_data``.
        subset: of a Hub dataset, likewise.

    Returns:
        The files (folders for datasets), in input order.

    Raises:
        InputError: an input file cannot be read again.
    """
    if kind not in SUFFIXES:
        return []
    inputs = kept_by_input(samples)
    for old in folder.glob("pruned-[0-9][0-9]*-*"):  # of another selection
        if old.is_file():
            old.unlink()
    rows = iter(samples)
    paths = []
    for number, kept in enumerate(inputs, 1):
        name = "pruned" if len(inputs) == 1 else f"pruned-{number:02d}-{_stem(kept.source)}"
        target = folder / (name + SUFFIXES[kind])
        own = islice(rows, len(kept.lines))
        if kind == "json":
            _write_array(own, target)
        elif kind in ("csv", "tsv"):
            _write_delimited(own, "\t" if kind == "tsv" else _delimiter(kept.source), target)
        else:
            table = kept_table(kind, kept.source, kept.lines, split, subset)
            {"parquet": write_parquet_table, "arrow": write_arrow}.get(kind, save_dataset)(table, target)
        paths.append(target)
    return paths


def kept_by_input(samples: Iterable[Row]) -> list[KeptOf]:
    """Which rows of each input are kept, in input order; an input that is given twice may count as two."""
    inputs: list[KeptOf] = []
    for sample in samples:
        if not inputs or sample.source != inputs[-1].source or sample.line < inputs[-1].lines[-1]:
            inputs.append(KeptOf(sample.source))
        inputs[-1].lines.append(sample.line)
    return inputs


def _stem(source: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", Path(source).name.partition(".")[0]).strip("-.") or "data"


def _delimiter(source: str) -> str:
    """Comma, or the semicolon of spreadsheets, by the first line of the file."""
    import pyarrow as pa

    path = Path(source).expanduser()
    with open(path, "rb") as file:
        magic = file.read(2)
    openers: dict[bytes, Callable[[Path], Any]] = {
        b"\x1f\x8b": gzip.open,
        b"\xfd7": lzma.open,
        b"\x28\xb5": lambda packed: pa.input_stream(str(packed), compression="zstd"),
    }
    opener: Any = openers.get(magic, lambda plain: open(plain, "rb"))  # noqa: SIM115
    with opener(path) as stream:
        first = stream.read(1 << 16).partition(b"\n")[0]
    return ";" if first.count(b";") > first.count(b",") else ","


def _write_array(samples: Iterator[Row], target: Path) -> None:
    """A JSON list of the elements as they were written, number by number."""
    with atomic(target) as file:
        for i, sample in enumerate(samples):
            file.write((b",\n" if i else b"[\n") + line_of(sample.raw))
        file.write(b"\n]\n")


def _write_delimited(samples: Iterator[Row], delimiter: str, target: Path) -> None:
    with atomic(target) as file:
        # RFC 4180: lines end with CRLF, so that a lone \r or \n in a field is quoted and comes back as it was.
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer: Any = None
        for sample in samples:
            if isinstance(sample.raw, bytes):
                raise InputError(f"{sample.source} is not a table of text; it was read as JSON.")
            if writer is None:
                writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")
                writer.writerow(sample.raw)
            writer.writerow(sample.raw.values())
        text.detach()
