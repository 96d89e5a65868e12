"""Arrow tables of the kept rows: Parquet, Arrow files, ``datasets`` folders. Streamed, a few thousand rows at a time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.rows.row import Row
from instruct_prune.storage import atomic, sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2048


@dataclass(frozen=True)
class KeptTable:
    """The kept rows as Arrow: a schema, and tables that can be read many times.

    Attributes:
        schema: with the metadata by which ``datasets`` knows its features.
        chunks: starts a new pass over the rows.
    """

    schema: pa.Schema
    chunks: Callable[[], Iterator[pa.Table]]


# ---- where the rows come from ----


def kept_table(kind: str, source: str, lines: Sequence[int], split: str | None, subset: str | None) -> KeptTable:
    """Rows of one Parquet file, Arrow file, saved or Hub dataset, with their own types.

    Args:
        kind: "parquet", "arrow", "dataset" or "hub".
        source: path or Hub id.
        lines: 1-based positions, ascending.
        split: as given to ``open_data``.
        subset: likewise.

    Raises:
        InputError: the input cannot be read again.
    """
    positions = np.asarray(lines, dtype=np.int64) - 1
    path = Path(source).expanduser()
    if kind == "parquet":
        return _of_parquet(path, positions)
    if kind == "arrow":
        return _of_arrow(path, positions)
    return _of_dataset(_open_dataset(kind, source, split, subset), positions)


def _of_parquet(path: Path, positions: np.ndarray[Any, Any]) -> KeptTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def chunks() -> Iterator[pa.Table]:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            batches = (pa.Table.from_batches([batch]) for batch in file.iter_batches(BATCH_ROWS))
            yield from _taken(batches, positions)

    try:
        return KeptTable(pq.read_schema(path), chunks)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read again as Parquet: {error}.") from None


def _of_arrow(path: Path, positions: np.ndarray[Any, Any]) -> KeptTable:
    import pyarrow as pa

    def open_it() -> Any:
        source = pa.memory_map(str(path))
        return pa.ipc.open_file(source) if source.read_at(6, 0) == b"ARROW1" else pa.ipc.open_stream(source)

    def chunks() -> Iterator[pa.Table]:
        reader = open_it()
        found = (
            (reader.get_batch(i) for i in range(reader.num_record_batches))
            if hasattr(reader, "num_record_batches")
            else iter(reader)
        )
        yield from _taken((pa.Table.from_batches([batch]) for batch in found), positions)

    try:
        return KeptTable(open_it().schema, chunks)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read again as Arrow: {error}.") from None


def _taken(tables: Iterable[pa.Table], positions: np.ndarray[Any, Any]) -> Iterator[pa.Table]:
    """The rows at these positions, table by table."""
    start = 0
    for table in tables:
        low, high = np.searchsorted(positions, [start, start + table.num_rows])
        if high > low:
            yield table.take(positions[low:high] - start)
        start += table.num_rows
        if high == len(positions):
            return
    raise InputError(f"row {positions[-1] + 1} is not there any more: the data were changed during the run.")


def _of_dataset(dataset: Any, positions: np.ndarray[Any, Any]) -> KeptTable:
    chosen = dataset.select(positions).with_format("arrow")
    return KeptTable(dataset.features.arrow_schema, lambda: chosen.iter(batch_size=BATCH_ROWS))


def _open_dataset(kind: str, source: str, split: str | None, subset: str | None) -> Any:
    import datasets

    try:
        if kind == "hub":
            found = datasets.load_dataset(source, name=subset, split=split)
        else:
            found = datasets.load_from_disk(str(Path(source).expanduser()))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{source} cannot be read again: {error}.") from None
    if isinstance(found, dict):  # as when it was read: the named split, else train, else the only one
        return found[split or ("train" if "train" in found else next(iter(found)))]
    return found


def table_of(job: ExportJob) -> KeptTable:
    """The kept rows of all inputs as one table: their own Arrow types where they have them, else inferred from the JSON.

    Raises:
        InputError: a number is too large for Arrow.
    """
    from instruct_prune.export.own_format import kept_by_input

    if job.kind in ("parquet", "arrow", "dataset", "hub"):
        tables = [kept_table(job.kind, k.source, k.lines, job.split, job.subset) for k in kept_by_input(job.samples)]
        if all(table.schema.equals(tables[0].schema) for table in tables):
            return KeptTable(tables[0].schema, lambda: (chunk for table in tables for chunk in table.chunks()))
    return _inferred(job.samples)


# ---- JSON rows: types are found in one pass and applied in the next ----


def _inferred(samples: Iterable[Row]) -> KeptTable:
    import datasets

    features: dict[str, Any] = {}
    for rows in _batches(samples):
        found = _features(rows)
        for name, feature in found.items():
            features[name] = _merged(features[name], feature) if name in features else feature
    whole = datasets.Features(features)

    def chunks() -> Iterator[pa.Table]:
        for rows in _batches(samples):
            filled = [{name: row.get(name) for name in whole} for row in rows]
            yield datasets.Dataset.from_list(filled, features=whole).data.table.cast(whole.arrow_schema)

    return KeptTable(whole.arrow_schema, chunks)


def _batches(samples: Iterable[Row]) -> Iterator[list[Mapping[str, Any]]]:
    rows = (json.loads(s.raw) if isinstance(s.raw, bytes) else s.raw for s in samples)
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


def _features(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The types of some rows; columns that Arrow cannot hold as they are become ``datasets.Json``."""
    import datasets

    names = dict.fromkeys(name for row in rows for name in row)  # from_list looks at the first row's keys only
    filled = [{name: row.get(name) for name in names} for row in rows]
    try:
        return datasets.Dataset.from_list(filled, on_mixed_types="use_json").features  # type: ignore[no-any-return]
    except OverflowError as error:
        raise InputError(
            f"a number of the kept rows does not fit in 64 bits ({error}), so they cannot be written as Parquet or as a dataset. "
            "Export alpaca or messages, or use pruned.jsonl, which has the rows as they came."
        ) from None


def _merged(a: Any, b: Any) -> Any:
    """The type that holds the values of both, without changing any."""
    import datasets

    null = datasets.Value("null")
    if a == b or b == null:
        return a
    if a == null:
        return b
    if isinstance(a, datasets.List) and isinstance(b, datasets.List):
        return datasets.List(_merged(a.feature, b.feature))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {name: _merged(a[name], b[name]) for name in a}
    numbers = {datasets.Value("int64").dtype, datasets.Value("float64").dtype}
    if isinstance(a, datasets.Value) and isinstance(b, datasets.Value) and {a.dtype, b.dtype} == numbers:
        return datasets.Value("float64")
    return datasets.Json()


# ---- what is written ----


def write_parquet_table(table: KeptTable, target: Path) -> int:
    """Write a Parquet file and return its number of rows."""
    import pyarrow.parquet as pq

    rows = 0
    with atomic(target) as file, pq.ParquetWriter(file, table.schema, compression="zstd") as writer:
        for chunk in table.chunks():
            writer.write_table(chunk.cast(table.schema))
            rows += chunk.num_rows
    return rows


def write_arrow(table: KeptTable, target: Path) -> int:
    """Write an Arrow stream, as ``datasets`` does, and return its number of rows."""
    import pyarrow as pa

    rows = 0
    with atomic(target) as file, pa.ipc.new_stream(file, table.schema) as writer:
        for chunk in table.chunks():
            writer.write_table(chunk.cast(table.schema))
            rows += chunk.num_rows
    return rows


def save_dataset(table: KeptTable, target: Path) -> int:
    """Write a folder for ``datasets.load_from_disk`` and return its number of rows."""
    import datasets

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
        rows = write_arrow(table, Path(scratch) / "rows.arrow")
        features = datasets.Features.from_arrow_schema(table.schema)
        mapped = datasets.table.MemoryMappedTable.from_file(str(Path(scratch) / "rows.arrow"))
        # The fingerprint is that of the rows, or datasets would make one from the time of day.
        fingerprint = sha256_of(Path(scratch) / "rows.arrow")[:16]
        dataset = datasets.Dataset(mapped, datasets.DatasetInfo(features=features), fingerprint=fingerprint)
        dataset.save_to_disk(str(Path(scratch) / "saved"))
        if target.exists():
            shutil.rmtree(target)
        os.replace(Path(scratch) / "saved", target)
    return rows


def parquet(job: ExportJob) -> Exported:
    """``NAME.parquet``: the kept rows with all their columns."""
    target = job.folder / f"{job.slug}.parquet"
    return Exported("parquet", (target,), write_parquet_table(table_of(job), target))


def disk(job: ExportJob) -> Exported:
    """``disk/``: the kept rows with all their columns, for ``datasets.load_from_disk``."""
    target = job.folder / "disk"
    return Exported("disk", (target,), save_dataset(table_of(job), target))
