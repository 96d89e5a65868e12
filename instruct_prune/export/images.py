"""Labelled pictures: a tree of links, a tree of copies, or a `datasets` folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.rows.row import ImageRef, Row, suffix_of
from instruct_prune.rows.saved import save_silently
from instruct_prune.storage import replaced_folder


def links(job: ExportJob) -> Exported:
    """``pruned_links/CLASS/FILE``: a tree of links to the pictures."""

    def put(target: Path, picture: ImageRef) -> None:
        if not os.path.isabs(picture.path):
            raise InputError(
                "--to links: the pictures lie inside a table and are no files. Use --to copies or --to disk."
            )
        target.symlink_to(picture.path)

    return _tree(job, "links", put)


def copies(job: ExportJob) -> Exported:
    """``pruned_copies/CLASS/FILE``: a tree of the pictures themselves."""

    def put(target: Path, picture: ImageRef) -> None:
        data = picture.read()
        if not target.suffix:
            target = target.with_suffix(suffix_of(data))
        target.write_bytes(data)

    return _tree(job, "copies", put)


def dataset(job: ExportJob) -> Exported:
    """``pruned_dataset``: for ``datasets.load_from_disk``, features image and label."""
    import datasets

    target = job.folder / "pruned_dataset"
    kept = [(*_labelled(row, "disk"), row) for row in job.samples]
    names = sorted({label for _, label, _ in kept})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    rows: list[Any] = [
        {"image": {"path": Path(picture.path).name, "bytes": picture.read()}, "label": label}
        for picture, label, _ in kept
    ]
    with replaced_folder(target) as scratch:
        save_silently(datasets.Dataset.from_list(rows, features=features), scratch)
    return Exported("disk", (target,), len(rows))


def _labelled(row: Row, to: str) -> tuple[ImageRef, str]:
    """The picture and the class of a row.

    Raises:
        InputError: it is no labelled picture.
    """
    images = [image for message in row.messages for image in message.images]
    if len(images) != 1 or row.messages[-1].role != "assistant":
        raise InputError(f"--to {to} is for labelled pictures, and row {row.row_id} ({row.source}) is none.")
    return images[0], row.messages[-1].text


def _plain_name(text: str) -> str:
    """What data say, as the name of one file: no way out of the folder, no control characters, no more than 200 bytes."""
    name = re.sub(r"[/\\\x00-\x1f\x7f]+", "_", text).strip(".")
    return os.fsencode(name)[-200:].decode("utf-8", "ignore") or "_"


def _tree(job: ExportJob, to: str, put: Callable[[Path, ImageRef], None]) -> Exported:
    """A tree of class folders, made beside and renamed into place."""
    target = job.folder / f"pruned_{to}"
    taken: set[Path] = set()
    with replaced_folder(target) as scratch:
        for row in job.samples:
            picture, label = _labelled(row, to)
            folder = scratch / _plain_name(label)
            folder.mkdir(parents=True, exist_ok=True)
            name = folder / _plain_name(Path(picture.path).name)
            if name in taken:  # the same name from two folders
                name = folder / f"{row.row_id:07d}-{name.name}"
            taken.add(name)
            put(name, picture)
    return Exported(to, (target,), len(taken))
