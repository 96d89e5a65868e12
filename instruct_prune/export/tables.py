"""Arrow tables of the kept rows: Parquet, Arrow files, ``datasets`` folders. Streamed, a few thousand rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from instruct_prune.arrays import batched
from instruct_prune.errors import InputError
from instruct_prune.export.images import dataset
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.export.own_format import kept_by_input
from instruct_prune.rows.arrow_tables import KeptTable, TableFile, write_parquet_table
from instruct_prune.rows.find import find_readers
from instruct_prune.rows.reader import as_mapping, is_turn
from instruct_prune.rows.row import Row, suffix_of
from instruct_prune.rows.saved import HubDataset, save_dataset

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

BATCH_ROWS = 2048
BYTES = (
    "a column of the kept rows holds bytes beside nulls or values of other types, and can neither be written as Parquet nor as a "
    "dataset. Use pruned.jsonl, where bytes are data URIs."
)
MIXED = (
    "a column of the kept rows holds values of different types, which an Arrow table takes only as JSON, from version 4.7 of the "
    "library `datasets` on. Install it (pip install 'datasets>=4.7'), or use pruned.jsonl, which has the rows as they came."
)


def table_of(job: ExportJob) -> KeptTable:
    """The kept rows of all inputs as one table: their own Arrow types where they have them, else inferred from the JSON.

    Raises:
        InputError: a number is too large for Arrow.
    """
    if job.kind in ("parquet", "arrow", "dataset", "hub"):
        inputs = [
            (kept, next(find_readers([kept.source], job.split, job.subset))) for kept in kept_by_input(job.samples)
        ]
        tables = [reader.kept(kept.lines) for kept, reader in inputs if isinstance(reader, TableFile | HubDataset)]
        if all(table.schema.equals(tables[0].schema) for table in tables):
            return KeptTable(tables[0].schema, lambda: (chunk for table in tables for chunk in table.chunks()))
    return inferred(job.samples)


def dataset_of(rows: list[Mapping[str, Any]]) -> datasets.Dataset:
    """Rows as a table in memory, with the columns of any of them.

    Raises:
        InputError: Arrow cannot hold them.
    """
    import datasets

    whole = datasets.Features(dict(_features(rows)))
    return datasets.Dataset.from_list([{name: row.get(name) for name in whole} for row in rows], features=whole)


# ---- JSON rows: types are found in one pass and applied in the next ----


def inferred(samples: Iterable[Row]) -> KeptTable:
    """Rows as a table whose types are found in one pass and applied in the next."""
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
            try:
                found = datasets.Dataset.from_list(filled, features=whole)
            except (OverflowError, UnicodeDecodeError):
                raise InputError(BYTES) from None
            yield found.data.table.cast(whole.arrow_schema)

    return KeptTable(whole.arrow_schema, chunks)


def _batches(samples: Iterable[Row]) -> Iterator[list[Mapping[str, Any]]]:
    return batched((as_mapping(sample.raw) for sample in samples), BATCH_ROWS)


def _features(rows: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The types of some rows; columns that Arrow cannot hold as they are become ``datasets.Json``."""
    import datasets
    import pyarrow as pa

    names = dict.fromkeys(name for row in rows for name in row)  # from_list looks at the first row's keys only
    filled = [{name: row.get(name) for name in names} for row in rows]
    try:
        if hasattr(datasets, "Json"):
            found = datasets.Dataset.from_list(filled, on_mixed_types="use_json").features
        else:
            found = datasets.Dataset.from_list(filled).features
        return {name: _with_nulls(found[name], [row[name] for row in filled]) for name in names}
    except pa.ArrowException as error:
        raise InputError(f"{MIXED} Arrow says: {' '.join(str(error).split())[:200]}") from None
    except (OverflowError, UnicodeDecodeError) as error:
        if "UTF-8" in str(error).upper():
            raise InputError(BYTES) from None
        raise InputError(
            f"a number of the kept rows does not fit in 64 bits ({error}), so they cannot be written as Parquet or as a dataset. "
            "Export alpaca or messages, or use pruned.jsonl, which has the rows as they came."
        ) from None


def _with_nulls(feature: Any, values: list[Any]) -> Any:
    """The type itself, ``Image`` for the bytes of pictures, or ``Json`` where an object among the values has a null of its own.

    Arrow fills up objects with nulls for the keys that they have not, so that a null of their own could not be told from
    these. In a turn of a conversation both mean the same.
    """
    import datasets

    there = [value for value in values if value is not None]
    if isinstance(feature, datasets.List):
        return datasets.List(_with_nulls(feature.feature, [part for value in there for part in value]))
    if not isinstance(feature, dict):
        return feature
    held = [value["bytes"] for value in there if value.get("bytes") is not None]
    if (
        set(feature) == {"bytes", "path"}
        and held
        and all(isinstance(h, bytes) and suffix_of(h) != ".img" for h in held)
    ):
        return datasets.Image()
    if any(None in value.values() and not is_turn(value) for value in there):
        return _json()
    return {name: _with_nulls(part, [value.get(name) for value in there]) for name, part in feature.items()}


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
    return _json()


def _json() -> Any:
    import datasets

    if not hasattr(datasets, "Json"):
        raise InputError(MIXED)
    return datasets.Json()


def parquet(job: ExportJob) -> Exported:
    """``NAME.parquet``: the kept rows with all their columns."""
    target = job.folder / f"{job.slug}.parquet"
    return Exported("parquet", (target,), write_parquet_table(table_of(job), target))


def disk(job: ExportJob) -> Exported:
    """``disk/``: the kept rows with all their columns, for ``datasets.load_from_disk``; pictures as `images.dataset`."""
    if job.model_kind == "image_encoder":
        return dataset(job)
    target = job.folder / "disk"
    return Exported("disk", (target,), save_dataset(table_of(job), target))
