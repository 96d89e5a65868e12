"""Streams between a file and its reader: hashed as it lies on disk, decompressed (zstd), and never much longer than rows can be."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any, BinaryIO

from instruct_prune.errors import InputError

MOST_GROWTH = 200  # a guess at what no text of rows reaches; one row written a million times does (360, by gzip)
FREE_BYTES = 1 << 26  # so many bytes may come of any file
CHUNK = 1 << 12  # a piece of 4 KiB can become 128 MiB, all at once
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # the skippable frame with which pzstd begins its files


class _Readable(io.RawIOBase):
    def readable(self) -> bool:
        return True


class Hashed(_Readable):
    """A file that hashes what is read from it. It cannot seek, so every byte is hashed once and in order."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file
        self.sha256 = hashlib.sha256()
        self.count = 0

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.sha256.update(data)
        self.count += len(data)
        return len(data)

    def close(self) -> None:
        self.file.close()
        super().close()


class Bounded(_Readable):
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


def open_zstd(raw: io.BufferedReader) -> Any:
    """Frames of zstd, skippable ones among them; windows above 128 MiB where the package zstandard is there."""
    try:
        import zstandard
    except ImportError:
        import pyarrow as pa

        return pa.input_stream(pa.PythonFile(raw, mode="r"), compression="zstd")
    return io.BufferedReader(_Frames(raw, zstandard))


class _Frames(_Readable):
    """All frames of a zstd file, and an error where the last one is not whole."""

    def __init__(self, raw: io.BufferedReader, zstandard: Any) -> None:
        super().__init__()
        self.raw, self.zstandard = raw, zstandard
        self.frame: Any = None
        self.packed = b""
        self.out = memoryview(b"")

    def readinto(self, buffer: Any) -> int:
        while not self.out:
            packed, self.packed = self.packed or self.raw.read(CHUNK), b""
            if not packed:
                if self.frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            if self.frame is None:
                self.frame = self.zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            try:
                self.out = memoryview(self.frame.decompress(packed))
            except self.zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            if self.frame.eof:
                self.packed, self.frame = self.frame.unused_data, None
        count = min(len(buffer), len(self.out))
        buffer[:count] = self.out[:count]
        self.out = self.out[count:]
        return count
