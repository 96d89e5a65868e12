"""What is known of the rows that were read, and whether the input is still as it was."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.rows.find import matching
from instruct_prune.rows.inputs import IMAGES_AND_TEXT
from instruct_prune.rows.source import Source, open_data
from instruct_prune.storage import what_changed

VERSION = 2


@dataclass(frozen=True)
class RowFacts:
    """What is known of a table of rows.

    Attributes:
        description: what was found, in one sentence for people.
        format: name of the row format.
        kind: how the rows were stored.
        model_kind: the kind of model that they are for, "causal_lm", "image_encoder" or "vision_language".
        strata: the column that says by itself which rows belong together, or None.
        files: paths and Hub ids.
        identity: of each file path, sha256 and bytes (`Source.identity`).
        stamps: of each file on disk its absolute path, size in bytes and time of change in ns, by name.
        read: rows read.
        rejected: rows that cannot be used; the others are in the table.
        opened_with: the arguments of `open_data`; its "data" is None for rows that lay in memory.
        version: of the files.
    """

    description: str
    format: str
    kind: str
    model_kind: str
    strata: str | None
    files: tuple[str, ...]
    identity: tuple[Mapping[str, Any], ...]
    stamps: Mapping[str, tuple[str, int, int]]
    read: int
    rejected: int
    opened_with: Mapping[str, Any]
    version: int = VERSION

    def changed(self) -> list[str]:
        """The files that are not as they were read: gone, or of other bytes.

        A glob that finds more files now has changed, too. Size and time of change are looked at first; a file is hashed only
        where these differ. Of trees and listings of pictures, names and sizes are looked at.
        """
        sha256 = {entry["path"]: entry["sha256"] for entry in self.identity if "sha256" in entry}
        changed = [
            name
            for name, (path, size, time) in self.stamps.items()
            if what_changed(Path(path), size, time, sha256.get(name)) is not None
        ]
        globs = [name for name in self.opened_with["data"] or () if glob.has_magic(name) and name not in self.stamps]
        changed += [name for name in globs if set(matching(name)) - self.stamps.keys()]
        listed = {name: digest for name, digest in sha256.items() if name not in self.stamps}
        if not listed or changed or self.opened_with["data"] is None:
            return changed
        try:
            now = {entry["path"]: entry.get("sha256") for entry in self.opened_again().identity()}
        except InputError:
            now = {}
        return [name for name, digest in listed.items() if now.get(name) != digest]

    def opened_again(self) -> Source:
        """The input, opened as it was.

        Raises:
            InputError: it lay in memory, or is not there any more.
        """
        arguments = dict(self.opened_with)
        if arguments["data"] is None:
            raise InputError("these rows lay in the memory of a program that has ended: give them again.")
        arguments["data"] = [self.stamps[name][0] if name in self.stamps else name for name in self.opened_with["data"]]
        return open_data(**arguments)

    def opened_like(self, path: str) -> Source:
        """Another file, read as these rows were: the same format and columns, and its pictures beside it where they have no folder.

        Raises:
            InputError: as `open_data`.
        """
        opened, folder = self.opened_with, self.opened_with.get("image_folder")
        if self.model_kind == IMAGES_AND_TEXT and folder is None:
            folder = str(Path(path).expanduser().parent)
        return open_data([path], format=opened.get("format"), columns=opened.get("columns"), image_folder=folder)

    def require_unchanged(self) -> None:
        """Refuse to go on with data that changed.

        Raises:
            InputError: naming the files.
        """
        changed = self.changed()
        if changed:
            gone = all(name in self.stamps and not Path(self.stamps[name][0]).exists() for name in changed)
            how = "the data are not there any more" if gone else "the data changed since it was read (another SHA-256)"
            raise InputError(f"{', '.join(changed)}: {how}. Put them back, or score anew in another --out.")


def content_of(identity: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the data were, wherever they lay: hashes of files, else all that is known of a data set (`Source.identity`)."""
    return [entry.get("sha256") or dict(entry) for entry in identity]


Stamps = Mapping[str, tuple[str, int, int]]


def stamps_of(source: Source) -> Stamps:
    """``RowFacts.stamps``, taken before reading begins: a file that is changed meanwhile is not as it was read."""
    stats = {name: (path, path.stat()) for name, path in source.paths().items()}
    return {name: (str(path.resolve()), stat.st_size, stat.st_mtime_ns) for name, (path, stat) in stats.items()}


def facts_of(source: Source, stamps: Stamps, read: int, rejected: int) -> RowFacts:
    """The facts of a source that was read to its end."""
    return RowFacts(
        description=source.description,
        format=source.format,
        kind=source.kind,
        model_kind=source.model_kind,
        strata=source.strata,
        files=source.files,
        identity=tuple(source.identity()),
        stamps=stamps,
        read=read,
        rejected=rejected,
        opened_with=source.opened_with,
    )
