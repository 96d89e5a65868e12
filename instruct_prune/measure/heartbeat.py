"""How processes know of each other that they live: small files in the run folder, no collectives."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

HEARTBEAT_SECONDS = 1.0
DEAD_AFTER_SECONDS = 90.0  # more than the minute for which network file systems may show an old file


class Heartbeat:
    """Rewrites a file as long as this process lives, and says in it when it is done.

    Files, not collectives: a collective would hang or abort with the first rank that dies, and the run folder is all
    that several machines share.

    Args:
        path: the file; its folder is there.
        about: JSON-able, what the file says beside that.
        seconds: between two beats.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None, seconds: float = HEARTBEAT_SECONDS) -> None:
        self.path = path
        self._about = dict(about or {})
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._count = 0

    def __enter__(self) -> Heartbeat:
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        with suppress(OSError):
            self._write("done" if exception[0] is None else "stopped")

    def _beat(self) -> None:
        while not self._stop.wait(self._seconds):
            # A disk that is full or a folder that is gone is told by the work itself when it writes; this thread has nobody
            # to tell, and tries again.
            with suppress(OSError):
                self._write("running")

    def _write(self, state: str) -> None:
        self._count += 1
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps({"count": self._count, "state": state, **self._about}))
            temporary.replace(self.path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def beat_of_rank(folder: Path, rank: int) -> Path:
    """The file in which a rank beats."""
    return folder / f"rank-{rank:04d}.json"


def wait_for_ranks(folder: Path, ranks: Sequence[int]) -> None:
    """Return when every rank is done, stopped, or silent for DEAD_AFTER_SECONDS of this machine's clock.

    Counters are compared, not file times: clocks of several machines differ.
    """
    seen: dict[int, tuple[str, float]] = {}
    waiting = set(ranks)
    while waiting:
        for rank in sorted(waiting):
            text = '{"state": "missing"}'
            with suppress(FileNotFoundError):
                text = beat_of_rank(folder, rank).read_text()
            now = time.monotonic()
            if rank not in seen or seen[rank][0] != text:
                seen[rank] = (text, now)
            finished = '"done"' in text or '"stopped"' in text
            if finished or now - seen[rank][1] > DEAD_AFTER_SECONDS:
                waiting.discard(rank)
        if waiting:
            time.sleep(0.2)


def still_beats(path: Path) -> bool:
    """Whether the file is rewritten within DEAD_AFTER_SECONDS."""
    before, end = path.read_text(), time.monotonic() + DEAD_AFTER_SECONDS
    while time.monotonic() < end:
        time.sleep(min(HEARTBEAT_SECONDS, DEAD_AFTER_SECONDS / 4))
        if not path.exists():
            return False
        if path.read_text() != before:
            return True
    return False
