"""The kept pictures: a tree of links, a tree of copies, or a `datasets` folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.storage import replaced_folder

Kept = tuple[str, str, int]
"""Path (or a name), class, position."""

SUFFIX_OF = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"GIF8": ".gif",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


def write_images(folder: Path, to: Sequence[str], kept: Sequence[Kept], encoded: Callable[[int], bytes]) -> list[str]:
    """Write the kept pictures in each of the forms ``to``: "links", "copies", "disk".

    Args:
        folder: the run folder; the trees are ``pruned_links/CLASS/FILE`` and ``pruned_copies/CLASS/FILE``, the dataset
            is ``pruned_dataset`` (``datasets.load_from_disk``, features image and label).
        to: forms, each once.
        kept: the kept pictures, in input order.
        encoded: a picture's bytes by position.

    Returns:
        A line about each, for people.

    Raises:
        InputError: an unknown form, or links to pictures that are no files.
    """
    forms: dict[str, Callable[[Path, Sequence[Kept], Callable[[int], bytes]], Path]] = {
        "links": _links,
        "copies": _copies,
        "disk": _disk,
    }
    for name in to:
        if name not in forms:
            raise InputError(f"--to {name}: unknown for images.{suggestion(name, forms)} Known: {', '.join(forms)}.")
    return [f"{name}: {len(kept)} images in {forms[name](folder, kept, encoded)}" for name in dict.fromkeys(to)]


def _links(folder: Path, kept: Sequence[Kept], encoded: Callable[[int], bytes]) -> Path:
    if not all(os.path.isabs(path) for path, _, _ in kept):
        raise InputError("--to links: the pictures lie inside a table and are no files. Use --to copies or --to disk.")
    return _tree(folder / "pruned_links", kept, lambda target, path, _: target.symlink_to(path))


def _copies(folder: Path, kept: Sequence[Kept], encoded: Callable[[int], bytes]) -> Path:
    return _tree(folder / "pruned_copies", kept, lambda target, _, i: _write(target, encoded(i)))


def _write(target: Path, data: bytes) -> None:
    if not target.suffix:
        target = target.with_suffix(next((s for magic, s in SUFFIX_OF.items() if data.startswith(magic)), ".img"))
    target.write_bytes(data)


def _tree(target: Path, kept: Sequence[Kept], put: Callable[[Path, str, int], object]) -> Path:
    """A tree of class folders, made beside and renamed into place."""
    with replaced_folder(target) as scratch:
        taken: set[Path] = set()
        for path, label, i in kept:
            folder = scratch / (re.sub(r"[/\\\0]+", "_", label).strip(".") or "_")
            folder.mkdir(parents=True, exist_ok=True)
            name = folder / Path(path).name
            if name in taken:  # the same name from two folders
                name = folder / f"{i:07d}-{Path(path).name}"
            taken.add(name)
            put(name, path, i)
    return target


def _disk(folder: Path, kept: Sequence[Kept], encoded: Callable[[int], bytes]) -> Path:
    import datasets

    target = folder / "pruned_dataset"
    names = sorted({label for _, label, _ in kept})
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})

    def rows() -> Any:
        for path, label, i in kept:
            yield {"image": {"path": Path(path).name, "bytes": encoded(i)}, "label": label}

    made = datasets.Dataset.from_list(list(rows()), features=features)
    with replaced_folder(target) as scratch:
        made.save_to_disk(str(scratch))
    return target
