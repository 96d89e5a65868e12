"""Who works on which arm, told through files: processes, on one machine or several, need only the folder in common."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

BEAT_SECONDS = 5.0
DEAD_AFTER_SECONDS = 90.0  # more than the minute for which network file systems may show an old file


class Claims:
    """Claims on work in one folder. A claim whose process has died is taken over.

    Two processes that take over the same claim at once do the same work twice, and write the same file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[Path, tuple[float, float]] = {}

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim a piece of work for as long as the block runs; False where another process has it."""
        path = self.folder / f"{name}.claim"
        if not self._take(path):
            yield False
            return
        ended = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, ended), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            path.unlink(missing_ok=True)

    def _take(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._dead(path):
            path.unlink(missing_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}")
        except FileExistsError:
            return False
        return True

    def _dead(self, path: Path) -> bool:
        """Whether a claim is there and its process is not: gone from this machine, or silent for long by our own clock."""
        try:
            changed, words = path.stat().st_mtime, path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            return False
        if len(words) == 2 and words[0] == socket.gethostname() and not _alive(int(words[1])):
            return True
        now = time.monotonic()
        if self._seen.get(path, (None, 0.0))[0] != changed:
            self._seen[path] = (changed, now)
        return now - self._seen[path][1] > DEAD_AFTER_SECONDS


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        with suppress(FileNotFoundError):
            os.utime(path)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
