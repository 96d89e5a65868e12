"""Pictures that conversations show: how rows name them, and which place in a text each of them has.

LLaVA and LLaMA-Factory list the pictures of a row in a column and mark their places with ``<image>`` in the text; OpenAI, TRL
and ms-swift write them as parts of a turn. Either way each place has one picture, or the row is rejected.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instruct_prune.rows.reader import RowError, named_type
from instruct_prune.rows.row import ImageRef, Message, Part

MARK = "<image>"
"""Where a listed picture stands in a text."""
LISTED = ("images", "image", "img", "pictures", "picture", "photos", "photo", "image_paths", "image_path", "image_url")
"""Columns that list the pictures of a row; the first that is there and not empty counts."""
OF_PARTS = ("image", "image_url", "input_image")
"""Types of parts that show a picture."""
SOURCES = ("image", "image_url", "bytes", "path", "url", "base64", "source", "data", "value")
"""Keys of a part, or of an object in its place, under which its picture stands."""

_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_OPEN = ImageRef("")
"""A part of a turn without a picture of its own: it shows the next one that the row lists."""


def picture_of(value: object, field: str) -> ImageRef:
    """A picture as data name it: a path, a data URI, bytes, or an object that holds one of these.

    Args:
        value: what the data have.
        field: where it stands, for messages.

    Raises:
        RowError: it is no picture, a data URI that is damaged, or at a remote address, which is never fetched.
    """
    if isinstance(value, bytes | bytearray):
        data = bytes(value)
        return ImageRef(f"picture-{hashlib.blake2b(data, digest_size=8).hexdigest()}", data)
    if isinstance(value, Mapping):
        return _of_object(value, field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"there is no picture: it is {'empty' if value == '' else named_type(value)}", field)
    if value.startswith("data:"):
        header, comma, text = value.partition(",")
        if not comma or not header.endswith(";base64"):
            raise RowError("the data URI is damaged: it has no base64 data", field)
        return picture_of(_decoded(text, field), field)
    if value.startswith("file://"):
        return ImageRef(value.removeprefix("file://"))
    if _REMOTE.match(value):
        raise RowError(
            "the picture is at a remote address, and nothing is fetched: download it, and name its file", field
        )
    return ImageRef(value)


def _of_object(value: Mapping[str, Any], field: str) -> ImageRef:
    if value.get("bytes") is not None:
        held = picture_of(value["bytes"], field)
        return ImageRef(str(value["path"]), held.data) if value.get("path") else held
    if value.get("type") == "base64" or value.get("base64") is not None:
        text = value.get("data") or value.get("base64")
        return picture_of(_decoded(text, field), field)
    inside = next((value[key] for key in SOURCES if value.get(key) is not None), None)
    if inside is None or inside is value:
        raise RowError("there is no picture in this object", field)
    return picture_of(inside, field)


def _decoded(text: object, field: str) -> bytes:
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(f"the picture is no base64: {error}", field) from None


def part_of(part: Mapping[str, Any], field: str) -> Part:
    """A part of a turn that shows a picture: its own, or the next one that the row lists.

    Raises:
        RowError: as `picture_of`.
    """
    own = {key: part[key] for key in SOURCES if part.get(key) is not None}
    return Part("image", picture_of(own, field) if own else _OPEN)


def listed_in(row: Mapping[str, Any], column_of: Mapping[str, str]) -> tuple[str, list[object]]:
    """The column that lists a row's pictures, and what it lists; ("", []) where the row has none.

    Args:
        row: the row.
        column_of: name in LISTED -> column of the file, where they differ.
    """
    for name in LISTED:
        column = column_of.get(name, name)
        value = row.get(column)
        if value is None or value == "" or value == [] or value != value:
            continue
        return column, list(value) if isinstance(value, list | tuple) else [value]
    return "", []


def with_pictures(
    messages: Sequence[Message], column: str, listed: Sequence[object], folder: Path, field: str
) -> list[Message]:
    """The turns with every picture in its place.

    Args:
        messages: as the row's format reads them.
        column: that lists the row's pictures.
        listed: what it lists.
        folder: that paths are relative to.
        field: of the turns, for messages.

    Raises:
        RowError: the places and the pictures do not match, a picture is missing or remote, or the assistant shows one.
    """
    fields = [f"{column}[{i}]" if len(listed) > 1 else column for i in range(len(listed))]
    waiting = [picture_of(value, name) for value, name in zip(listed, fields, strict=True)]
    laid = [_laid_out(message) for message in messages]
    places = sum(part.value == _OPEN for parts in laid for part in parts)
    if places != len(waiting):
        raise RowError(
            f"the row lists {len(waiting)} pictures, and its turns have {places} places for them ({MARK} in the text, or a part "
            "of the type image without a picture of its own)",
            column or field,
        )
    following = iter([_found(picture, folder, name) for picture, name in zip(waiting, fields, strict=True)])
    found = [_filled(message, parts, following, folder, field) for message, parts in zip(messages, laid, strict=True)]
    if any(message.images for message in found if message.role == "assistant"):
        raise RowError("an assistant's turn shows a picture, and pictures are no response that could be scored", field)
    return found


def _laid_out(message: Message) -> list[Part]:
    """What a turn says, part by part, each mark in a text as a place of its own."""
    whole = message.content if message.content else ""
    if MARK in message.context:
        whole = f"{message.text}\n{message.context}"
    parts: list[Part] = []
    for part in [Part("text", whole)] if isinstance(whole, str) else whole:
        if isinstance(part.value, ImageRef):
            parts.append(part)
            continue
        for i, text in enumerate(part.value.split(MARK)):
            parts += [*([Part("image", _OPEN)] if i else []), *([Part("text", text)] if text else [])]
    return parts


def _filled(
    message: Message, parts: Sequence[Part], following: Iterator[ImageRef], folder: Path, field: str
) -> Message:
    if not any(isinstance(part.value, ImageRef) for part in parts):
        return message
    filled = [
        Part("image", next(following) if part.value == _OPEN else _found(part.value, folder, field))
        if isinstance(part.value, ImageRef)
        else part
        for part in parts
    ]
    context = "" if MARK in message.context else message.context
    return replace(message, content=tuple(filled), context=context)


def _found(picture: ImageRef, folder: Path, field: str) -> ImageRef:
    """The picture under the path where it lies.

    Raises:
        RowError: there is no such file.
    """
    if picture.data is not None:
        return picture
    path = folder / Path(picture.path).expanduser()
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        there = False
    if not there:
        raise RowError(f"there is no such picture: {path}", field)
    return ImageRef(str(path))
