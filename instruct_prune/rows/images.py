"""Labelled pictures: ImageFolder trees, listings of paths (CSV, JSONL), tables that hold the pictures themselves."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.rows.files import DataFile
from instruct_prune.rows.find import find_readers
from instruct_prune.rows.hub import HubDataset, is_saved_dataset
from instruct_prune.rows.reader import Reader, RowError, as_mapping
from instruct_prune.rows.row import Message, Reject, Row
from instruct_prune.rows.tables import ParquetTable

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".gif",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".tga",
        ".ico",
        ".avif",
    ]
)
IMAGE_COLUMNS = (
    "image",
    "img",
    "path",
    "image_path",
    "img_path",
    "file_name",
    "filename",
    "filepath",
    "file",
    "photo",
    "picture",
)
LABEL_COLUMNS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval")
LOOK_AT = 20  # rows that are looked at to tell a listing of pictures from text


@dataclass(frozen=True, slots=True)
class Picture:
    """One row of an image set, its file not opened yet.

    Attributes:
        row_id: 0-based position among all rows read.
        path: the file, or a name for a picture that a table holds.
        data: the encoded bytes, for a picture that a table holds; else None.
        label: its class.
        source: the listing or table it came from; of a tree, the file itself.
        line: 1-based position in ``source``.
        columns: the row's other fields.
    """

    row_id: int
    path: str
    data: bytes | None = field(repr=False)
    label: str
    source: str
    line: int
    columns: Mapping[str, Any] = field(default_factory=dict)

    def read(self) -> bytes:
        """The encoded bytes.

        Raises:
            RowError: the file is not there or cannot be read.
        """
        if self.data is not None:
            return self.data
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise RowError(f"the file cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class ImageTree:
    """A folder of class folders of pictures, as torchvision's ImageFolder and `datasets`' imagefolder read it.

    The class is the first folder below the root; files may lie deeper. Hidden files and other kinds are passed over.

    Attributes:
        name: the folder as given.
        root: where the class folders are (a split's folder, where the tree has splits).
    """

    name: str
    root: Path
    kind: str = "imagefolder"

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any] | RowError]]:
        for number, path in enumerate(self.files(), 1):
            inside = path.relative_to(self.root).parts
            yield number, {"image": str(path), "label": inside[0] if len(inside) > 1 else None}

    def files(self) -> list[Path]:
        """All pictures, sorted by path, so that the order is that of no file system."""
        found: list[Path] = []
        above = {str(self.root): {os.path.realpath(self.root)}}  # real folders on the way to each
        for folder, folders, names in os.walk(self.root, followlinks=True):
            folders[:] = sorted(f for f in folders if not f.startswith("."))
            # A link to a folder that it lies in would be followed until the path is too long.
            real = {name: os.path.realpath(Path(folder, name)) for name in folders}
            folders[:] = [name for name in folders if real[name] not in above[folder]]
            above |= {os.path.join(folder, name): above[folder] | {real[name]} for name in folders}
            found += [Path(folder, n) for n in names if not n.startswith(".") and Path(n).suffix.lower() in SUFFIXES]
        return sorted(found, key=lambda path: path.relative_to(self.root).parts)

    def identity(self) -> list[dict[str, Any]]:
        """A hash of names and sizes: the bytes themselves are hashed picture by picture when they are decoded."""
        return [{"path": self.name, "sha256": listing_hash(self.root, self.files())}]


def listing_hash(root: Path, files: Sequence[Path]) -> str:
    """Hash of the files' names below ``root`` and their sizes."""
    total = hashlib.sha256()
    for path in files:
        size = path.stat().st_size if path.exists() else -1
        total.update(f"{os.path.relpath(path, root)}\0{size}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


@dataclass(frozen=True)
class _Input:
    """One reader and where its rows keep picture and label.

    Attributes:
        names: class names of an integer label, or None.
    """

    reader: Reader | ImageTree
    image: str
    label: str
    names: Sequence[str] | None

    def picture(self, row_id: int, line: int, data: Any) -> Picture | Reject:
        try:
            row = as_mapping(data)
            label = self._label(row.get(self.label))
            path, content = self._content(row.get(self.image), line)
        except RowError as error:
            here = isinstance(self.reader, ImageTree)
            return Reject(
                row_id, data["image"] if here else self.reader.name, 1 if here else line, error.reason, error.field
            )
        columns = {name: value for name, value in row.items() if name not in (self.image, self.label)}
        columns |= {"path": path, "label": label}
        if isinstance(self.reader, ImageTree):
            return Picture(row_id, path, None, label, path, 1, columns)
        return Picture(row_id, path, content, label, self.reader.name, line, columns)

    def _label(self, value: Any) -> str:
        if value is None or value == "" or (self.names is not None and value == -1):
            where = ": it lies in no class folder" if isinstance(self.reader, ImageTree) else ""
            raise RowError(f"the picture has no label{where}", self.label)
        if self.names is not None and isinstance(value, int) and 0 <= value < len(self.names):
            return self.names[value]
        return str(value)

    def _content(self, value: Any, line: int) -> tuple[str, bytes | None]:
        if isinstance(value, Mapping):
            path, content = value.get("path"), value.get("bytes")
            if content is not None:
                return str(path or f"row-{line - 1}"), bytes(content)
            value = path
        if isinstance(value, bytes):
            return f"row-{line - 1}", value
        if not isinstance(value, str) or not value:
            raise RowError("there is no picture in this row", self.image)
        if isinstance(self.reader, ImageTree):
            return value, None
        return str(Path(self.reader.name).expanduser().parent / Path(value).expanduser()), None


class ImageSource:
    """The pictures of one or more inputs, streamed; iterate as often as needed. Nothing is decoded here.

    Iteration yields a Row or a Reject for every row, as `Source` does for text: the path is the turn of the user, the
    class that of the assistant, and both are columns (``path``, ``label``).

    Attributes:
        format: "images".
        kind: "imagefolder", or how the listing or table is stored ("csv", "jsonl", "parquet", "dataset", "hub", ...).
        description: what was found, in one sentence for people.
        files: trees, listings and tables.
    """

    format = "images"

    def __init__(self, inputs: Sequence[_Input], description: str, limit: int | None, strict: bool) -> None:
        self._inputs = tuple(inputs)
        self._limit = limit
        self._strict = strict
        self.description = description
        kinds = {each.reader.kind for each in inputs}
        self.kind = kinds.pop() if len(kinds) == 1 else "mixed"
        self.files = tuple(each.reader.name for each in inputs)

    def pictures(self) -> Iterator[Picture | Reject]:
        """Yield rows.

        Raises:
            InputError: an input cannot be read on, or ``strict`` and a row was rejected.
        """
        everything = ((each, line, data) for each in self._inputs for line, data in each.reader.rows())
        for row_id, (each, line, data) in enumerate(islice(everything, self._limit)):
            found = each.picture(row_id, line, data)
            if self._strict and isinstance(found, Reject):
                raise InputError(
                    f"{found.source}, line {found.line}: {found.reason}. Mend it, or run without --strict."
                )
            yield found

    def __iter__(self) -> Iterator[Row | Reject]:
        return (row if isinstance(row, Reject) else sample_of(row) for row in self.pictures())

    def identity(self) -> list[dict[str, Any]]:
        """What the data were; a listing is followed by a hash of the names and sizes of the files it names."""
        entries = [entry for each in self._inputs for entry in each.reader.identity()]
        listed = [
            Path(row.path)
            for row in self.pictures()
            if isinstance(row, Picture) and row.data is None and self.kind != "imagefolder"
        ]
        if listed:
            entries.append({"path": "files that are listed", "sha256": listing_hash(Path("/"), listed)})
        return entries


def sample_of(picture: Picture) -> Row:
    """A picture as the rooms after this one know rows."""
    turns = (Message("user", picture.path), Message("assistant", picture.label, trained=True))
    raw = {"path": picture.path, "label": picture.label}
    return Row(picture.row_id, turns, picture.source, picture.line, raw, dict(picture.columns))


def open_images(
    data: Sequence[str],
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    strict: bool = False,
    split: str | None = None,
    subset: str | None = None,
) -> ImageSource | None:
    """Open image data, or return None where the data are something else (text).

    Image data are: a folder of class folders (with or without split folders above them), a CSV, TSV, JSON or JSONL file
    with a column of paths and one of labels, and Parquet files, saved datasets and Hub ids with an image column.

    Args:
        data: as given to ``open_data``; all of it must be images if the first is.
        columns: {"image": ..., "label": ...} where the columns have other names.
        limit: stop after this many rows.
        strict: raise at the first row that would be rejected.
        split: split of a tree or dataset; "train" where it is not given and there is one.
        subset: configuration of a Hub dataset.

    Raises:
        InputError: images that have no label column, an unknown split, images beside text, nothing there.
    """
    if "-" in data:
        return None
    inputs: list[_Input] = []
    told: list[str] = []
    for item in data:
        found = _tree(item, split) or _tables(item, split, subset, columns or {})
        if found is None:
            if inputs:
                raise InputError(
                    f"{item} holds no images, but {data[0]} does. Score images and text in runs of their own."
                )
            return None
        inputs += found
        told += [_tell(each) for each in found]
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: give the number of rows to read, at least 1.")
    return ImageSource(inputs, "; ".join(told), limit, strict) if inputs else None


def _tell(each: _Input) -> str:
    if isinstance(each.reader, ImageTree):
        return f"images in class folders of {each.reader.root}"
    return f"images ({each.image}) with labels ({each.label}), listed in {each.reader.name}"


def _tree(item: str, split: str | None) -> list[_Input] | None:
    path = Path(item).expanduser()
    if not path.is_dir() or is_saved_dataset(path):
        return None
    listing = next((path / n for n in ("metadata.csv", "metadata.jsonl") if (path / n).is_file()), None)
    if listing is not None:
        return _tables(str(listing), None, None, {})
    folders = sorted(each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    root = path
    if folders and all(name.lower() in SPLITS for name in folders):
        wanted = split or ("train" if "train" in folders else None)
        if wanted not in folders:
            problem = (
                f"has no split {split!r}.{suggestion(split, folders)}"
                if split
                else "has split folders, but no 'train'."
            )
            raise InputError(f"{item} {problem} Choose one with --data-split: {', '.join(folders)}.")
        root = path / wanted
    elif split is not None and folders:
        raise InputError(f"{item} has class folders and no split folders, so there is no split {split!r}.")
    tree = ImageTree(item, root)
    return [_Input(tree, "image", "label", None)] if tree.files() else None


def _tables(item: str, split: str | None, subset: str | None, columns: Mapping[str, str]) -> list[_Input] | None:
    try:
        readers = find_readers([item], split, subset)
    except InputError:
        return None  # the text road says what is wrong with it
    found = [_input(reader, columns) for reader in readers]
    return None if any(each is None for each in found) else [each for each in found if each is not None]


def _input(reader: Reader, columns: Mapping[str, str]) -> _Input | None:
    rows: list[Mapping[str, Any]] = []
    try:
        for _, data in islice(reader.rows(), LOOK_AT):
            try:
                rows.append(as_mapping(data))
            except RowError:
                continue
    except (InputError, csv.Error):
        return None
    if not rows:
        return None
    candidates = [columns["image"]] if "image" in columns else [n for n in IMAGE_COLUMNS if n in rows[0]]
    image = next((name for name in candidates if any(_is_image(row.get(name)) for row in rows)), None)
    if image is None:
        return None
    label = columns.get("label") or next((name for name in LABEL_COLUMNS if name in rows[0] and name != image), None)
    if label is None or label not in rows[0]:
        raise InputError(
            f"{reader.name} lists images ({image}), but no labels: its columns are {', '.join(rows[0])}. Name the column of "
            "the classes: --columns label=COLUMN."
        )
    return _Input(reader, image, label, _class_names(reader, label))


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "bytes" in value and "path" in value
    return isinstance(value, bytes) or (isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES)


def _class_names(reader: Reader, column: str) -> Sequence[str] | None:
    """The names behind integer labels, as `datasets` stores them."""
    if isinstance(reader, HubDataset):
        names: Sequence[str] | None = getattr(reader.table.features.get(column), "names", None)
        return names
    if isinstance(reader, ParquetTable):
        import pyarrow.parquet as pq

        file: DataFile = reader.file
        text = (pq.read_schema(file.path).metadata or {}).get(b"huggingface")
        features = json.loads(text).get("info", {}).get("features", {}) if text else {}
        found: Sequence[str] | None = features.get(column, {}).get("names") if isinstance(features, dict) else None
        return found
    return None
