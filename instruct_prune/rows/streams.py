"""Streams between a file and its reader: hashed as it lies on disk, and never much longer than a file of rows can be."""

from __future__ import annotations

import hashlib
import io
from typing import Any, BinaryIO

from instruct_prune.errors import InputError

MOST_GROWTH = 200  # a guess at what no text of rows reaches; one row written a million times does (360, by gzip)
FREE_BYTES = 1 << 26  # so many bytes may come of any file


class Hashed(io.RawIOBase):
    """A file that hashes what is read from it. It cannot seek, so every byte is hashed once and in order."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.sha256.update(data)
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


class Bounded(io.RawIOBase):
    """A decompressed stream, and an error where it grows beyond all measure.

    Args:
        stream: the decompressed stream.
        packed: the file that it is decompressed from.
        name: of the file, for messages.
    """

    def __init__(self, stream: BinaryIO, packed: Hashed, name: str) -> None:
        super().__init__()
        self.stream, self.packed, self.name = stream, packed, name
        self.count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.stream.read(len(buffer))
        buffer[: len(data)] = data
        self.count += len(data)
        if self.count > FREE_BYTES and self.count > MOST_GROWTH * self.packed.count:
            raise InputError(
                f"{self.name} decompresses to more than {MOST_GROWTH} times its size ({self.count >> 20} MiB from"
                f" {self.packed.count >> 10} KiB so far), as no file of rows does: it may be a decompression bomb. If it is"
                " none, decompress it yourself and name the result."
            )
        return len(data)

    def close(self) -> None:
        self.stream.close()
        super().close()
