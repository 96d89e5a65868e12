"""Hugging Face datasets: ids on the Hub, folders written by ``save_to_disk``, and datasets in memory."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.arrow_tables import READ_ROWS, WRITE_ROWS, KeptTable, numbered, write_arrow
from instruct_prune.rows.exact import hash_of_rows
from instruct_prune.rows.files import DataFile
from instruct_prune.rows.reader import Reader, RowData, RowError, chosen_split
from instruct_prune.storage import sha256_of


@dataclass(frozen=True)
class HubDataset(Reader):
    """One split of a ``datasets.Dataset``, memory-mapped from its Arrow files or held in memory.

    Attributes:
        name: folder or Hub id.
        kind: "dataset" for a folder, "hub" for an id, "memory" for an object made in Python.
        split: the split that was taken.
        table: the ``datasets.Dataset``.
    """

    name: str
    kind: str
    split: str | None
    table: Any = field(repr=False)

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        # Arrow format: pictures stay encoded, labels stay numbers.
        stored = self.table.with_format("arrow")
        yield from numbered(stored.iter(batch_size=READ_ROWS), self.table.features.arrow_schema)
        _ = self._identity  # the files of a folder are hashed now, and not in a later stage

    def identity(self) -> list[dict[str, Any]]:
        return self._identity

    @cached_property
    def _identity(self) -> list[dict[str, Any]]:
        if self.kind == "memory":
            stored = self.table.with_format("arrow").iter(batch_size=READ_ROWS)
            rows = (row for _, row in numbered(stored, self.table.features.arrow_schema) if isinstance(row, Mapping))
            return [{"path": self.name, "sha256": hash_of_rows(rows)}]
        if self.kind == "dataset":
            return [DataFile(path, name).identity()[0] for name, path in self.paths().items()]
        files = [Path(entry["filename"]) for entry in self.table.cache_files]
        return [
            {
                "path": self.name,
                "subset": self.table.info.config_name,
                "split": self.split,
                "revision": files[0].parent.name if files else None,  # the cache folder is named by the commit
                "fingerprint": self.table._fingerprint,
            }
        ]

    def paths(self) -> Mapping[str, Path]:
        if self.kind != "dataset":
            return {}
        files = sorted({Path(entry["filename"]) for entry in self.table.cache_files})
        return {
            str(Path(self.name, (self.split or "") if f.parent.name == self.split else "", f.name)): f for f in files
        }

    def class_names(self) -> Mapping[str, Sequence[str]]:
        found = {name: getattr(feature, "names", None) for name, feature in self.table.features.items()}
        return {name: names for name, names in found.items() if names}

    def kept(self, lines: Sequence[int]) -> KeptTable:
        """The rows at these 1-based positions, ascending, with their own types."""
        chosen = self.table.select([line - 1 for line in lines]).with_format("arrow")
        return KeptTable(self.table.features.arrow_schema, lambda: chosen.iter(batch_size=WRITE_ROWS))

    def write(self, kept: Sequence[int], raws: Iterator[Mapping[str, Any]], stem: Path) -> Path | None:
        """The rows as a folder for ``datasets.load_from_disk``."""
        save_dataset(self.kept(kept), stem)
        return stem


def is_saved_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def open_saved(folder: Path, name: str, split: str | None) -> HubDataset:
    """Open a folder written by ``save_to_disk``.

    Raises:
        InputError: it cannot be read, or has no such split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{name} cannot be read as a saved dataset: {_first_line(error)}.") from None
    table, chosen = _one_split(loaded, name, split)
    return HubDataset(name, "dataset", chosen, table)


def open_hub(name: str, split: str | None, subset: str | None) -> HubDataset:
    """Download (or take from the cache) a dataset of the Hugging Face Hub. Its code is never run.

    Raises:
        InputError: no such dataset, split or subset, or the Hub cannot be reached.
    """
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        loaded = datasets.load_dataset(name, name=subset, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"the dataset {name!r} cannot be loaded from the Hugging Face Hub: {_first_line(error)}. Check the id"
            " (owner/name), --data-split and --data-subset, and that the Hub can be reached (log in for gated data); or"
            " download its files and give their paths."
        ) from None
    table, chosen = _one_split(loaded, name, split)
    return HubDataset(name, "hub", chosen, table)


def _one_split(loaded: Any, name: str, split: str | None) -> tuple[Any, str | None]:
    if not isinstance(loaded, dict):
        found = str(loaded.split) if loaded.split is not None else None
        if split is not None and found is not None and not split.startswith(found):
            raise InputError(f"{name} is the split {found!r}; it has no split {split!r}.")
        return loaded, split or found
    only = next(iter(loaded)) if len(loaded) == 1 else None
    wanted = chosen_split(name, loaded, split or only, "has several splits and")
    return loaded[wanted], wanted


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")


def save_silently(dataset: Any, target: Path) -> None:
    """``save_to_disk`` without a bar for each folder, which would stand among our own lines."""
    import datasets

    silent = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        dataset.save_to_disk(str(target))
    finally:
        if not silent:
            datasets.enable_progress_bars()


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
        save_silently(dataset, Path(scratch) / "saved")
        if target.exists():
            shutil.rmtree(target)
        os.replace(Path(scratch) / "saved", target)
    return rows
