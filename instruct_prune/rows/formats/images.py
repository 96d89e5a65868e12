"""Pictures and their classes: a folder tree, a listing of paths, or a table that holds the pictures."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from instruct_prune.rows.formats.format import Fields, Format, Parsed
from instruct_prune.rows.pictures import LISTED, picture_of
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import ImageRef, Message, Part
from instruct_prune.rows.tree import SUFFIXES

IMAGES = (
    "image", "img", "path", "image_path", "img_path", "file_name", "filename", "filepath", "file", "photo", "picture",
)  # fmt: skip
LABELS = ("label", "labels", "class", "class_name", "category", "target", "fine_label", "y")


def is_picture(value: Any) -> bool:
    """Whether a value is a picture: its bytes, a path that ends like one, a data URI, or as `datasets` keeps them."""
    if isinstance(value, Mapping):
        return "bytes" in value and "path" in value
    if isinstance(value, str):
        return value.startswith("data:image/") or Path(value).suffix.lower() in SUFFIXES
    return isinstance(value, bytes)


def holds_picture(value: Any) -> bool:
    """Whether a value is a picture or a list with one in it."""
    return any(map(is_picture, value)) if isinstance(value, list | tuple) else is_picture(value)


def lists_pictures(row: Mapping[str, Any], column: str) -> bool:
    """Whether a row lists pictures in this column."""
    value = row.get(column)
    return bool(value) and (holds_picture(value) or column in ("images", "image_url"))


def refuse_pictures(row: Mapping[str, Any], columns: Collection[str]) -> None:
    """Refuse a row of text that shows pictures too.

    Args:
        row: the row.
        columns: names of the columns that may hold its text; those that do are named in the message.

    Raises:
        RowError: naming the field.
    """
    for name in LISTED:
        if lists_pictures(row, name):
            named = " ".join(f"{column}={column}" for column in columns if column in row)
            raise RowError(
                f"the row shows pictures, and the first rows did not, so all are read as text; to score the text alone: --columns {named}",
                name,
            )


def _image_name(fields: Fields) -> str | None:
    """The field of the picture: the one that was named, else the first that holds a picture."""
    named = next((name for name in IMAGES if name in fields.columns), None)
    return named or next((name for name in IMAGES if is_picture(fields.get(name))), None)


def _shows_a_picture(fields: Fields) -> bool:
    name = _image_name(fields)
    return name is not None and fields.get(name) is not None


def _image_and_label(fields: Fields) -> Parsed:
    name = _image_name(fields) or fields.present(*IMAGES) or IMAGES[0]
    named = next((n for n in LABELS if n in fields.columns), None)
    label = named or next((n for n in LABELS if n != name and fields.column(n) in fields.row), LABELS[0])
    picture = _reference(fields.get(name), fields, fields.column(name) or name)
    said = fields.get(label)
    if said is None or said == "":
        raise RowError(
            "the picture has no label: the field is empty, or it lies in no class folder", fields.column(label)
        )
    return [Message("user", (Part("image", picture),)), Message("assistant", str(said), trained=True)], ()


def _reference(value: Any, fields: Fields, column: str) -> ImageRef:
    name = f"row-{fields.line - 1}"
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return ImageRef(str(value.get("path") or name), bytes(value["bytes"]))
        value = value.get("path")
    if isinstance(value, bytes):
        return ImageRef(name, value)
    if not isinstance(value, str) or not value:
        raise RowError("there is no picture in this row", column)
    picture = picture_of(value, column)
    return picture if picture.data is not None else ImageRef(str(fields.folder / Path(picture.path).expanduser()))


def _summary(messages: Sequence[Message]) -> dict[str, Any]:
    return {"path": messages[0].images[0].path, "label": messages[1].text}


IMAGE_CLASSIFICATION = Format(
    "image-classification",
    (IMAGES, LABELS),
    (),
    _image_and_label,
    model="image_encoder",
    strata="label",
    check=_shows_a_picture,
    summary=_summary,
)
