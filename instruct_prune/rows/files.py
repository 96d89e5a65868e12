"""Files as bytes: found, decompressed, hashed; faults of a whole file become errors that name the fix."""

from __future__ import annotations

import atexit
import codecs
import gzip
import hashlib
import io
import lzma
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from instruct_prune.errors import InputError

_MAGIC = ((b"\x1f\x8b", "gz"), (b"\x28\xb5\x2f\xfd", "zst"), (b"\xfd7zXZ\x00", "xz"))
_WIDE_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)


@dataclass(frozen=True)
class DataFile:
    """A file on disk, read as decompressed bytes.

    Attributes:
        path: where it lies.
        name: what people call it (the path as given; "-" for standard input).
    """

    path: Path
    name: str

    @cached_property
    def compression(self) -> str | None:
        """ "gz", "zst", "xz" or None, from the first bytes and not from the name."""
        with open(self.path, "rb") as stream:
            head = stream.read(8)
        return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open for reading, decompressed, after a UTF-8 byte order mark if there is one.

        Raises:
            InputError: it cannot be read, or the compressed data are damaged or cut off (also later, while reading).
        """
        try:
            with self._decompressed() as raw:
                stream = io.BufferedReader(raw, 1 << 16)
                if stream.peek(3)[:3] == codecs.BOM_UTF8:
                    stream.read(3)
                yield stream
        except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
            if self.compression is None:
                raise InputError(f"{self.name} cannot be read: {error}.") from None
            raise InputError(
                f"{self.name} is damaged or was cut off: its {self.compression} data cannot be read to the end"
                f" ({error}). Copy or download it again."
            ) from None

    def _decompressed(self) -> Any:
        if self.compression == "gz":
            return gzip.open(self.path)
        if self.compression == "xz":
            return lzma.open(self.path)
        if self.compression == "zst":
            import pyarrow as pa

            return pa.input_stream(str(self.path), compression="zstd")
        return open(self.path, "rb")

    def head(self, size: int = 1 << 16) -> bytes:
        with self.open() as stream:
            return stream.read(size)

    def identity(self) -> list[dict[str, Any]]:
        with open(self.path, "rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return [{"path": self.name, "sha256": digest, "bytes": self.path.stat().st_size}]


def check_encoding(file: DataFile, head: bytes) -> None:
    """Refuse empty files and 16- or 32-bit encodings.

    Raises:
        InputError: naming what the file looks like and how to convert it.
    """
    if not head.strip():
        raise InputError(f"{file.name} is empty: it has no rows. Check that it was written or downloaded completely.")
    encoding = next((name for bom, name in _WIDE_BOMS if head.startswith(bom)), None)
    if encoding is None and head[:4].count(0) >= 2:
        encoding = "UTF-16LE" if head[1:2] == b"\0" else "UTF-16BE"
    if encoding:
        raise InputError(
            f"{file.name} is not UTF-8: it looks like {encoding}. Convert it:"
            f" iconv -f {encoding} -t UTF-8 {file.name} > NEW"
        )


def spool_stdin() -> DataFile:
    """Copy standard input to a temporary file, because the data are read more than once."""
    stream = sys.stdin.buffer
    if stream.isatty():
        raise InputError("--data - reads standard input, which is the keyboard here. Pipe a file into the command.")
    handle, path = tempfile.mkstemp(prefix="instruct-prune-stdin-")
    atexit.register(lambda: Path(path).unlink(missing_ok=True))
    with os.fdopen(handle, "wb") as out:
        shutil.copyfileobj(stream, out)
    return DataFile(Path(path), "-")
