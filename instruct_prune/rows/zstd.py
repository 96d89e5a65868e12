"""Zstandard: files of several frames, with skippable frames among them, and with windows of any size."""

from __future__ import annotations

import io
import re
from typing import Any

CHUNK = 1 << 12  # a piece of 4 KiB can become 128 MiB, all at once
SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # the skippable frame with which pzstd begins its files


def open_zstd(raw: io.BufferedReader) -> Any:
    """Frames of zstd, skippable ones among them; windows above 128 MiB where the package zstandard is there."""
    try:
        import zstandard
    except ImportError:
        import pyarrow as pa

        return pa.input_stream(pa.PythonFile(raw, mode="r"), compression="zstd")
    return io.BufferedReader(_Frames(raw, zstandard))


class _Frames(io.RawIOBase):
    """All frames of a zstd file, and an error where the last one is not whole."""

    def __init__(self, raw: io.BufferedReader, zstandard: Any) -> None:
        super().__init__()
        self.raw, self.zstandard = raw, zstandard
        self.frame: Any = None
        self.packed = b""
        self.out = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.out:
            if self.frame is None:
                self._skip()
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

    def _skip(self) -> None:
        """Drop the skippable frames that come next."""
        while True:
            while len(self.packed) < 8 and (more := self.raw.read(CHUNK)):
                self.packed += more
            if not SKIPPABLE.match(self.packed):
                return
            left = 8 + int.from_bytes(self.packed[4:8], "little")
            while left:
                self.packed = self.packed or self.raw.read(CHUNK)
                if not self.packed:
                    raise EOFError("a skippable frame has no end")
                dropped = min(left, len(self.packed))
                self.packed = self.packed[dropped:]
                left -= dropped
