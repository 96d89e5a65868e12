"""Who works on which arm, told through files: processes, on one machine or several, need only the folder in common."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instruct_prune.measure.heartbeat import DEAD_AFTER_SECONDS, Heartbeat

BEAT_SECONDS = 5.0


class Claims:
    """Claims on work in one folder. A claim whose process has died is taken over.

    Two processes that take over the same claim at once do the same work twice, and write the same file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[Path, tuple[str, float]] = {}

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Claim a piece of work for as long as the block runs; False where another process has it."""
        path = self.folder / f"{name}.claim"
        if not self._take(path):
            yield False
            return
        try:
            with Heartbeat(path, _me(), BEAT_SECONDS):
                yield True
        finally:
            path.unlink(missing_ok=True)

    def _take(self, path: Path) -> bool:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._dead(path):
            path.unlink(missing_ok=True)
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(_me(), file)
        except FileExistsError:
            return False
        return True

    def _dead(self, path: Path) -> bool:
        """Whether a claim is there and its process is not: gone from this machine, or silent for long by our own clock."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        if _is_gone(text):
            return True
        now = time.monotonic()
        if path not in self._seen or self._seen[path][0] != text:
            self._seen[path] = (text, now)
        return now - self._seen[path][1] > DEAD_AFTER_SECONDS


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _is_gone(claim: str) -> bool:
    """Whether a claim is of a process of this machine that has ended."""
    try:
        said = json.loads(claim)
    except ValueError:  # being written
        return False
    if said["host"] != socket.gethostname():
        return False
    try:
        os.kill(int(said["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return False
