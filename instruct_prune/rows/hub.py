"""Hugging Face datasets: ids on the Hub, and folders written by ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.rows.files import DataFile
from instruct_prune.rows.reader import RowData, RowError
from instruct_prune.rows.tables import BATCH_ROWS, numbered


@dataclass(frozen=True)
class HubDataset:
    """One split of a ``datasets.Dataset``, memory-mapped from its Arrow files.

    Attributes:
        name: folder or Hub id.
        kind: "dataset" for a folder, "hub" for an id.
        split: the split that was taken.
        table: the ``datasets.Dataset``.
    """

    name: str
    kind: str
    split: str | None
    table: Any = field(repr=False)

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        # Arrow format: no feature is decoded, so what comes out is what is stored.
        yield from numbered(self.table.with_format("arrow").iter(batch_size=BATCH_ROWS))

    def identity(self) -> list[dict[str, Any]]:
        files = sorted({Path(entry["filename"]) for entry in self.table.cache_files})
        if self.kind == "dataset":
            parts = [Path(self.name, self.split if each.parent.name == self.split else "", each.name) for each in files]
            return [DataFile(each, str(part)).identity()[0] for each, part in zip(files, parts, strict=True)]
        return [
            {
                "path": self.name,
                "subset": self.table.info.config_name,
                "split": self.split,
                "revision": files[0].parent.name if files else None,  # the cache folder is named by the commit
                "fingerprint": self.table._fingerprint,
            }
        ]


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
            " (owner/name), --split and --subset, and that the Hub can be reached (log in for gated data); or"
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
    wanted = split or ("train" if "train" in loaded else None)
    if wanted is None and len(loaded) == 1:
        wanted = next(iter(loaded))
    if wanted is None or wanted not in loaded:
        what = f"has no split {split!r}.{suggestion(split, loaded)}" if split else "has several splits and no 'train'."
        raise InputError(f"{name} {what} Choose one with --split: {', '.join(loaded)}.")
    return loaded[wanted], wanted


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
