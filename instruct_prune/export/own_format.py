"""The kept rows as they came: line by line, and in the input's own format, which the reader of its kind writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.rows.find import find_readers
from instruct_prune.rows.reader import as_mapping, line_of
from instruct_prune.rows.row import Row
from instruct_prune.storage import atomic

WITH_A_FILE = ("json", "csv", "tsv", "parquet", "arrow", "dataset", "hub")


@dataclass(frozen=True)
class KeptOf:
    """The kept rows of one input: 1-based lines (text) or positions (tables), in order."""

    source: str
    lines: list[int] = field(default_factory=list)


def write_pruned(rows: Iterable[tuple[int, bytes | Mapping[str, Any]]], target: Path) -> int:
    """Write the kept rows as JSONL, streamed, under a temporary name until complete; return how many."""
    written = 0
    with atomic(target) as file:
        for _, raw in rows:
            file.write(line_of(raw) + b"\n")
            written += 1
    return written


def write_own_format(
    samples: Iterable[Row], kind: str, folder: Path, *, split: str | None = None, subset: str | None = None
) -> list[Path]:
    """Write ``pruned.json``, ``pruned.csv``, ``pruned.parquet``, ...; several inputs give one file each.

    Args:
        samples: the kept rows in input order, iterable more than once.
        kind: ``Source.kind``; nothing is written for "jsonl" and "mixed", whose rows are in ``pruned.jsonl``, for
            pictures in folders and for rows in memory.
        folder: the run folder.
        split: of a saved or Hub dataset, as given to ``open_data``.
        subset: of a Hub dataset, likewise.

    Returns:
        The files (folders for datasets), in input order.

    Raises:
        InputError: an input file cannot be read again.
    """
    if kind not in WITH_A_FILE:
        return []
    inputs = kept_by_input(samples)
    for old in folder.glob("pruned-[0-9][0-9]*-*"):  # of another selection
        if old.is_file():
            old.unlink()
    rows = iter(samples)
    paths = []
    for number, kept in enumerate(inputs, 1):
        name = "pruned" if len(inputs) == 1 else f"pruned-{number:02d}-{_stem(kept.source)}"
        raws = (as_mapping(row.raw) for row in islice(rows, len(kept.lines)))
        written = next(find_readers([kept.source], split, subset)).write(kept.lines, raws, folder / name)
        paths += [written] if written else []
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
