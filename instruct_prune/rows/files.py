"""Files as bytes: found, decompressed, hashed while they are read; faults of a whole file become errors that name the fix."""

from __future__ import annotations

import atexit
import codecs
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from instruct_prune.errors import InputError
from instruct_prune.rows.reader import Reader
from instruct_prune.rows.streams import SKIPPABLE, Bounded, Hashed, open_zstd

HEAD = 1 << 16
_MAGIC = ((b"\x1f\x8b", "gz"), (b"\x28\xb5\x2f\xfd", "zst"), (b"\xfd7zXZ\x00", "xz"), (b"\x5d\x00\x00", "xz"))
_WIDE_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"),
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
_FOREIGN = (
    (b"PK\x03\x04", "a ZIP archive (a spreadsheet of Excel is one too)", "Unpack it, and name the files in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it, and name the files in it"),
    (b"Rar!\x1a\x07", "a RAR archive", "Unpack it, and name the files in it"),
    (b"BZh", "compressed with bzip2", "Unpack it: bunzip2 FILE"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "Unpack it: lz4 -d FILE"),
    (b"\x1f\x9d", "compressed with compress", "Unpack it: uncompress FILE"),
    (b"\xff\x06\x00\x00sNaPpY", "compressed with snappy", "Unpack it"),
    (b"SQLite format 3\0", "an SQLite database", "Write its table to a CSV file"),
    (b"%PDF-", "a PDF document", "Write its rows to a JSONL file"),
    (b"\x93NUMPY", "a NumPy array", "Write its rows to a JSONL file"),
    (b"\x80\x04\x95", "a Python pickle, which is never opened (it could run code)", "Write its rows to a JSONL file"),
    (b"FEA1", "a Feather file of version 1", "Write it again as Feather 2, Arrow or Parquet"),
    (b"ORC", "an ORC file", "Write it again as Parquet"),
)
_HTML = re.compile(rb"<(?:!doctype html|html|head|body)\b", re.IGNORECASE)
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, OSError)


class DataFile:
    """A file on disk, read as decompressed bytes.

    Attributes:
        path: where it lies.
        name: what people call it (the path as given; "-" for standard input).
        begin: the first bytes as they lie on disk, empty until the file was opened.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self.begin = b""
        self._identity: dict[str, Any] | None = None
        self._begun: tuple[io.BufferedReader, Hashed] | None = None  # opened for `head`, to be gone on with

    @property
    def compression(self) -> str | None:
        """ "gz", "zst", "xz" or None, from the first bytes and not from the name; known once the file was opened."""
        if SKIPPABLE.match(self.begin):
            return "zst"
        return next((kind for magic, kind in _MAGIC if self.begin.startswith(magic)), None)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open for reading, decompressed, after a UTF-8 byte order mark if there is one.

        A reader that reads to the end has hashed the file: `identity` then opens nothing.

        Raises:
            InputError: it cannot be read, or the compressed data are damaged or cut off (also later, while reading).
        """
        with self._faults():
            stream, hashed = self._begun or self._begin()
            self._begun = None
            with hashed, stream:
                if stream.peek(3).startswith(codecs.BOM_UTF8):
                    stream.read(3)
                yield stream
                if not stream.read(1):
                    self._identity = self._named(hashed.sha256.hexdigest(), hashed.count)

    def head(self) -> bytes:
        """The first 64 KiB, decompressed. The file stays open, and the next ``open`` goes on with it."""
        with self._faults():
            self._begun = self._begun or self._begin()
            return self._begun[0].peek(HEAD).removeprefix(codecs.BOM_UTF8)

    def _begin(self) -> tuple[io.BufferedReader, Hashed]:
        file = open(self.path, "rb")  # noqa: SIM115
        try:
            self.begin = file.read(8)
            file.seek(0)
            hashed = Hashed(file)
            raw: io.BufferedReader = io.BufferedReader(hashed, HEAD)
            stream = raw
            if self.compression:
                stream = io.BufferedReader(Bounded(self._decompressed(raw), hashed, self.name), HEAD)
            stream.peek(HEAD)
        except BaseException:
            file.close()
            raise
        return stream, hashed

    def _decompressed(self, raw: io.BufferedReader) -> Any:
        if self.compression == "gz":
            return gzip.GzipFile(fileobj=raw)
        return lzma.LZMAFile(raw) if self.compression == "xz" else open_zstd(raw)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except _UNREADABLE as error:
            if self.compression is None:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise InputError(f"{self.name} cannot be read: {reason}.") from None
            if self.compression == "zst" and re.search("memory|window", str(error), re.IGNORECASE):
                raise InputError(
                    f"{self.name} was compressed with a window that is too large for this reader (zstd --long). Install the"
                    f" package zstandard, which reads it, or decompress it: zstd -d --long=31 {self.name}"
                ) from None
            if self.compression == "zst" and re.search("dictionary", str(error), re.IGNORECASE):
                raise InputError(
                    f"{self.name} was compressed with a dictionary that is not in the file. Decompress it with that"
                    f" dictionary: zstd -d -D DICTIONARY {self.name}"
                ) from None
            raise InputError(
                f"{self.name} is damaged or was cut off: its {self.compression} data cannot be read to the end"
                f" ({error}). Copy or download it again."
            ) from None

    @contextmanager
    def mapped(self) -> Iterator[Any]:
        """The file as a memory map of Arrow's, for readers that jump about in it; hashed when it was read to the end."""
        import pyarrow as pa

        if self._begun is not None:
            for opened in self._begun:
                opened.close()
            self._begun = None
        with pa.memory_map(str(self.path)) as content:
            yield content
            content.seek(0)
            sha256 = hashlib.sha256()
            while piece := content.read(1 << 20):
                sha256.update(piece)
            self._identity = self._named(sha256.hexdigest(), content.tell())

    def identity(self) -> list[dict[str, Any]]:
        """Path, SHA-256 and size of the bytes on disk, as they were when they were last read to the end."""
        if self._identity is None:
            with open(self.path, "rb") as stream:
                self._identity = self._named(hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell())
        return [self._identity]

    def _named(self, sha256: str, count: int) -> dict[str, Any]:
        return {"path": self.name, "sha256": sha256, "bytes": count}


@dataclass(frozen=True)
class OfFile(Reader):
    """What all readers of one file have in common (see `reader.Reader`).

    Attributes:
        file: the file.
    """

    file: DataFile

    @property
    def name(self) -> str:  # type: ignore[override]  # nobody sets it
        return self.file.name

    def identity(self) -> list[dict[str, Any]]:
        return self.file.identity()

    def paths(self) -> Mapping[str, Path]:
        return {self.file.name: self.file.path}


def check_container(file: DataFile, head: bytes) -> None:
    """Refuse files that are no text at all, whatever their name says: archives, web pages, pointers to other files.

    Raises:
        InputError: naming what the file is and what to do.
    """
    if head.startswith(LFS_POINTER):
        raise InputError(
            f"{file.name} is a Git LFS pointer: a few lines that name the data, and not the data. Fetch them with"
            " `git lfs pull`, or download the file itself."
        )
    found = next((rest for magic, *rest in _FOREIGN if head.startswith(magic)), None)
    if head[257:262] == b"ustar":
        found = ["a tar archive", "Unpack it, and name the files in it"]
    if found is not None:
        raise InputError(f"{file.name} is not what its name says: it is {found[0]}. {found[1]}.")
    begin = head.lstrip()
    if _HTML.match(begin):
        shown = begin[:40].decode("utf-8", "replace")
        raise InputError(
            f"{file.name} is not JSON: it begins with {shown!r}. It is a web page (a login or an error, as a rule) that was"
            " saved in place of the data. Download the file itself."
        )


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
