"""What a person sees while work goes on: a bar in a terminal, a plain line now and then in a log file."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from instruct_prune.terminal import safe

LOG_EVERY_SECONDS = 15.0


_quiet = False


def be_quiet(quiet: bool) -> None:
    """Whether neither `say` nor `Progress` writes anything from now on."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """One line on standard error: what is being done, or a warning."""
    if not _quiet:
        print(safe(text), file=sys.stderr, flush=True)


class Progress:
    """Counts units (rows, tokens) towards a total; shows rate and time left.

    Args:
        what: label, such as "scoring".
        total: number of units that the estimate of time is made of; None where it is not known.
        unit: their name.
        enabled: False on other processes than the main one.
    """

    def __init__(self, what: str, total: int | None, unit: str, enabled: bool = True) -> None:
        self.what, self.total, self.unit, self.enabled = what, total, unit, enabled and not _quiet
        self.done = 0
        self.rows = 0
        self._bar: Any = None
        self._last = self._began = time.monotonic()

    def __enter__(self) -> Progress:
        if self.enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total, desc=self.what, unit=self.unit, unit_scale=True, file=sys.stderr, mininterval=0.5
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self.enabled and self.done:
            self._log()

    def advance(self, units: int, rows: int = 0) -> None:
        self.done += units
        self.rows += rows
        if not self.enabled:
            return
        if self._bar is not None:
            if self.rows:
                self._bar.set_postfix_str(
                    f"{self.rows / (time.monotonic() - self._began + 1e-9):.1f} rows/s", refresh=False
                )
            self._bar.update(units)
        elif time.monotonic() - self._last >= LOG_EVERY_SECONDS:
            self._log()

    def _log(self) -> None:
        self._last = time.monotonic()
        elapsed = self._last - self._began + 1e-9
        rate = self.done / elapsed
        rows = f", {self.rows / elapsed:.1f} rows/s" if self.rows and self.unit != "rows" else ""
        done, time_left = f"{self.done:,} {self.unit}", ""
        if self.total:
            left = max(0, self.total - self.done) / rate if rate else 0.0
            done, time_left = f"{min(1.0, self.done / self.total):.0%}", f", {clock(left)} left"
        line = f"{self.what}: {done}, {rate:,.0f} {self.unit}/s{rows}{time_left}"
        print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
