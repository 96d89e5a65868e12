"""Whether files are still what a stage left in the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from instruct_prune.storage import sha256_of

Stamps = Mapping[str, tuple[int, int, str]]
"""{path relative to the run folder: (bytes, time of change in ns, SHA-256)}."""


def stamps_of(root: Path, patterns: Iterable[str]) -> Stamps:
    """The stamps of the files that these patterns name."""
    found = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    return {
        path.relative_to(root).as_posix(): (path.stat().st_size, path.stat().st_mtime_ns, sha256_of(path))
        for path in sorted(found)
    }


@lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, time: int) -> str:
    """Of a file, read once for each size and time that it has."""
    return sha256_of(path)


def changed_file(root: Path, stamps: Stamps) -> str | None:
    """The first file that is no more as it was, and what is wrong with it, in words; None where all are.

    Size and time are looked at; where the time is another, as of a copy, the content is.
    """
    for name, (size, time, sha256) in stamps.items():
        path = root / name
        if not path.is_file():
            return f"{path} is missing"
        now = path.stat()
        if now.st_size != size:
            return f"{path} has {now.st_size} bytes in place of {size}"
        if now.st_mtime_ns != time and _sha256(path, now.st_size, now.st_mtime_ns) != sha256:
            return f"{path} has another content (SHA-256)"
    return None
