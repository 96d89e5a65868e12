"""Files that are whole or not there: written under a temporary name, flushed to disk, renamed.

A reader (another process, a later resume) sees a whole file or none. Every file of a run folder is written through here.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

UNFINISHED = re.compile(r"\..+\.\d+\.tmp")
"""Names of files and folders that are being written."""


_IN_USE: dict[Path, os.stat_result] = {}


@contextlib.contextmanager
def in_use(root: Path) -> Iterator[None]:
    """While this lasts, nothing is written below ``root`` once that was moved or removed: it does not come back half filled."""
    before = dict(_IN_USE)
    _IN_USE.setdefault(root, os.stat(root))
    try:
        yield
    finally:
        _IN_USE.clear()
        _IN_USE.update(before)


def still_there(root: Path) -> bool:
    """Whether a folder that is in use is the one that it was."""
    try:
        return os.path.samestat(os.stat(root), _IN_USE[root])
    except FileNotFoundError:
        return False


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises:
        FileNotFoundError: it would be in a folder in use that was moved or removed.
    """
    roots = [root for root in _IN_USE if path.is_relative_to(root)]
    for root in roots:
        if not still_there(root):
            raise FileNotFoundError(errno.ENOENT, "the folder was moved or removed", str(root))
    if not roots:
        path.mkdir(parents=True, exist_ok=True)
        return
    below = len(path.parts) - max(len(root.parts) for root in roots)
    for folder in reversed([path, *path.parents][:below]):  # never the root itself, which may go at any moment
        folder.mkdir(exist_ok=True)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary neighbour of ``path`` to write to; on success its bytes are flushed and it is renamed to ``path``."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary neighbour of ``path``; on success flush it to disk and rename it to ``path``."""
    text = "b" not in mode
    with (
        replaced(path) as temporary,
        open(temporary, mode, encoding="utf-8" if text else None, newline="\n" if text else None) as file,
    ):
        yield file


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` to fill; on success it takes the place of ``path``."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def json_able(value: Any) -> Any:
    """The value as JSON has it: null for numbers that are not finite, lists for tuples, text for keys."""
    if isinstance(value, Mapping):
        return {str(key): json_able(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_able(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a JSON document, indented."""
    with atomic(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, default=str)
        file.write("\n")


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with checksums of its pages."""
    import pyarrow.parquet as pq

    with atomic(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet file, its checksums verified."""
    import pyarrow.parquet as pq

    # Not pq.read_table: it imports pyarrow.dataset, which is not needed for one file and takes a while.
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read(columns=None if columns is None else list(columns))


def arrow_column(values: Any) -> pa.Array:
    """An Arrow array of a numpy array, or of what Arrow makes one of."""
    import pyarrow as pa

    if not isinstance(values, np.ndarray) or values.dtype.kind not in "iufb" or values.ndim != 1:
        return values if isinstance(values, pa.Array) else pa.array(values)
    # Not pa.array: it imports pandas where that is installed, which takes longer than many a selection.
    if values.dtype.kind == "b":
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


def write_array(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Write a .npy file."""
    with atomic(path) as file:
        np.save(file, array, allow_pickle=False)


@contextlib.contextmanager
def array_file(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> Iterator[np.ndarray[Any, Any]]:
    """A memory-mapped array to fill, which becomes the .npy file ``path``.

    Its place on the disk is taken before: to write to mapped memory of a file for which there is no place kills the process.
    """
    with replaced(path) as temporary:
        whole = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(temporary, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(temporary))
        yield whole
        whole.flush()


def digest(value: Any) -> str:
    """Short hash of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, time: int) -> str:
    """Of a file, read once for each size and time that it has."""
    return sha256_of(path)


def what_changed(path: Path, size: int, time: int, sha256: str | None) -> str | None:
    """What is wrong with a file that had so many bytes, this time of change (ns) and this content; None where it is as it was.

    Size and time are looked at; where the time is another, as of a copy, the content is.
    """
    try:
        if not path.is_file():
            return f"{path} is missing"
        now = path.stat()
        if now.st_size != size:
            return f"{path} has {now.st_size} bytes in place of {size}"
        if now.st_mtime_ns != time and _sha256(path, now.st_size, now.st_mtime_ns) != sha256:
            return f"{path} has another content (SHA-256)"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror})"
    return None


def row_ids_hash(row_ids: Sequence[int] | np.ndarray[Any, Any]) -> str:
    """Hash of a set of row ids: two selections are equal when these are."""
    return hashlib.sha256(np.sort(np.asarray(row_ids, dtype=np.int64)).tobytes()).hexdigest()
