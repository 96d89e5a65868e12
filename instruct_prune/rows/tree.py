"""Folders of pictures: one folder a class, as torchvision's ImageFolder and `datasets`' imagefolder read them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.reader import Reader, RowData, RowError, chosen_split

SUFFIXES = frozenset(
    (
        ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
        ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".tga", ".ico", ".avif",
    )
)  # fmt: skip
LISTINGS = ("metadata.csv", "metadata.jsonl")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")


@dataclass(frozen=True)
class ImageTree(Reader):
    """A folder of class folders of pictures.

    The class is the first folder below the root; files may lie deeper. Hidden files and other kinds are passed over.

    Attributes:
        name: the folder as given.
        root: where the class folders are (a split's folder, where the tree has splits).
    """

    name: str
    root: Path
    kind: str = "imagefolder"
    _seen: list[str] = field(default_factory=list, repr=False, compare=False)

    def rows(self) -> Iterator[tuple[int, RowData | RowError]]:
        hashed = hashlib.sha256()
        for number, path in enumerate(self.files(), 1):
            hashed.update(listing_line(path, self.root))
            inside = path.relative_to(self.root).parts
            yield number, {"image": str(path), "label": inside[0] if len(inside) > 1 else None}
        self._seen[:] = [hashed.hexdigest()]

    def files(self) -> list[Path]:
        """All pictures, sorted by path, so that the order is that of no file system."""
        found: list[Path] = []
        above = {str(self.root): {os.path.realpath(self.root)}}  # real folders on the way to each
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            # A link to a folder that it lies in would be followed until the path is too long.
            real = {name: os.path.realpath(Path(folder, name)) for name in folders}
            folders[:] = [name for name in folders if real[name] not in above[folder]]
            # What a run writes into the folder of its pictures is no data.
            folders[:] = [name for name in folders if not is_run_folder(Path(folder, name))]
            above |= {os.path.join(folder, name): above[folder] | {real[name]} for name in folders}
            found += [Path(folder, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
        return sorted(found, key=lambda path: path.relative_to(self.root).parts)

    def identity(self) -> list[dict[str, Any]]:
        """A hash of names and sizes: the bytes themselves are hashed picture by picture when they are decoded."""
        if not self._seen:
            for _ in self.rows():
                pass
        return [{"path": self.name, "sha256": self._seen[0]}]


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is that of a run (``run.manifest`` says what is in it)."""
    try:
        found = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"layout", "stages", "argv"} <= found.keys()


def listing_line(path: Path, root: Path) -> bytes:
    """A file's name below a folder and its size, for the hash of a listing of files."""
    size = path.stat().st_size if path.exists() else -1
    return f"{os.path.relpath(path, root)}\0{size}\n".encode("utf-8", "surrogateescape")


def open_tree(folder: Path, name: str, split: str | None) -> ImageTree | None:
    """The pictures of a folder, or None where it holds none.

    Raises:
        InputError: it has no such split.
    """
    folders = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    root = folder
    if folders and all(each.lower() in SPLITS for each in folders):
        root = folder / chosen_split(name, folders, split, "has split folders, but")
    tree = ImageTree(name, root)
    if not tree.files():
        return None
    if split is not None and folders and root == folder:
        raise InputError(f"{name} has class folders and no split folders, so there is no split {split!r}.")
    return tree
