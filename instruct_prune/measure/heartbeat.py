"""How the processes of a run know of each other: files in the run folder, no collectives."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

HEARTBEAT_SECONDS = 1.0
DEAD_AFTER_SECONDS = 90.0  # more than the minute for which network file systems may show an old file


class Heartbeat:
    """Tells the other ranks, through the run folder, that this one is alive and when it is done.

    Files, not collectives: a collective would hang or abort with the first rank that dies, and the run folder is all
    that several machines share.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / f"rank-{rank:04d}.json"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._count = 0

    def __enter__(self) -> Heartbeat:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write("running")
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()
        self._write("done" if exception[0] is None else "stopped")

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_SECONDS):
            self._write("running")

    def _write(self, state: str) -> None:
        self._count += 1
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps({"count": self._count, "state": state}))
        temporary.replace(self.path)


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
                text = (folder / f"rank-{rank:04d}.json").read_text()
            now = time.monotonic()
            if rank not in seen or seen[rank][0] != text:
                seen[rank] = (text, now)
            finished = '"done"' in text or '"stopped"' in text
            if finished or now - seen[rank][1] > DEAD_AFTER_SECONDS:
                waiting.discard(rank)
        if waiting:
            time.sleep(0.2)
