"""A study: arms in a folder, each written when it is finished; stopped at any time, it goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instruct_prune.progress import clock, say
from instruct_prune.prove.arms import Arm
from instruct_prune.prove.bench import Bench
from instruct_prune.prove.claims import Claims
from instruct_prune.prove.readings import Judged, Readings
from instruct_prune.storage import write_json

WAIT_SECONDS = 1.0


@dataclass(frozen=True)
class Done:
    """A finished arm.

    Attributes:
        arm: what was trained.
        response, total: tokens of its rows.
        judged: what it was found to be.
        seconds: time taken.
    """

    arm: Arm
    response: int
    total: int
    judged: Judged
    seconds: float

    def facts(self) -> dict[str, Any]:
        """All that is the same whenever and wherever the arm is made."""
        arm = dataclasses.asdict(self.arm)
        rows = len(arm.pop("rows"))
        losses = {name: dataclasses.asdict(reading) for name, reading in self.judged.readings.items()}
        facts = {**arm, "rows": rows, "response_tokens": self.response, "total_tokens": self.total, "losses": losses}
        return {**facts, "lm_eval": self.judged.tasks} if self.judged.tasks else facts


class Study:
    """The arms of one folder.

    Args:
        folder: where arms are kept, in ``arms/``.
        bench: trains them.
        told: words about what is known so far, said after each arm.
    """

    def __init__(self, folder: Path, bench: Bench, told: Callable[[Sequence[Done]], str] = lambda done: "") -> None:
        self.folder, self.bench, self._told = folder, bench, told
        self.done: dict[Arm, Done] = {}
        self._claims = Claims(folder / "arms")
        self._expected = 0.0
        self._left = 0

    def expect(self, arms: int, seconds: float) -> None:
        """How many arms are still to come, and how long they take in all."""
        self._left, self._expected = arms, seconds

    def once(self, path: Path, make: Callable[[], Any]) -> None:
        """Write what is made of it into a file that is not there yet; another process that is at it is waited for."""
        claims = Claims(path.parent)
        while not path.exists():
            with claims.claim(path.stem) as mine:
                if mine and not path.exists():
                    write_json(path, make())
            if not path.exists():
                time.sleep(WAIT_SECONDS)

    def finish(self, arms: Sequence[Arm]) -> list[Done]:
        """Make the arms that are missing, in this order; those that other processes work on are waited for.

        Returns:
            all of them, in this order.
        """
        waiting = list(dict.fromkeys(arm for arm in arms if arm not in self.done))
        before = {arm: found for arm in waiting if (found := self.find(arm)) is not None}
        for arm, found in before.items():
            self._note(arm, found, self._expected / max(1, self._left))
        if len(before) > 1:
            say(f"{len(before)} arms were made before; about {clock(self._expected)} left")
        waiting = [arm for arm in waiting if arm not in before]
        while waiting:
            left = [arm for arm in waiting if not self._made(arm)]
            if len(left) == len(waiting):
                time.sleep(WAIT_SECONDS)
            waiting = left
        return [self.done[arm] for arm in arms]

    def find(self, arm: Arm) -> Done | None:
        """An arm that is finished, made here or elsewhere."""
        try:
            found = json.loads(self._path(arm).read_text(encoding="utf-8"))
            readings = {name: Readings(**values) for name, values in found["losses"].items()}
            judged = Judged(readings, found["lm_eval"] if self.bench.tasks else {})
        except (FileNotFoundError, ValueError, KeyError, TypeError):  # not made yet, or edited by hand
            return None
        return Done(arm, found["response_tokens"], found["total_tokens"], judged, found["seconds"])

    def _path(self, arm: Arm) -> Path:
        return self.folder / "arms" / f"{arm.name}-{self.bench.identity(arm)[:12]}.json"

    def _made(self, arm: Arm) -> bool:
        """Find the arm or make it; False where another process is at it."""
        found = self.find(arm)
        if found is None:
            with self._claims.claim(self._path(arm).stem) as mine:
                if not mine:
                    return False
                found = self.find(arm) or self._make(arm)
        self._note(arm, found, found.seconds)
        return True

    def _note(self, arm: Arm, found: Done, seconds: float) -> None:
        self.done[arm] = found
        self._left -= 1
        self._expected = max(0.0, self._expected - seconds)

    def _make(self, arm: Arm) -> Done:
        began = time.monotonic()
        judged = self.bench.run(arm)
        done = Done(arm, *self.bench.tokens(arm), judged, round(time.monotonic() - began, 3))
        write_json(self._path(arm), {**done.facts(), "row_ids": list(arm.rows), "seconds": done.seconds})
        first = next(iter(judged.readings.values())).per_token
        made = [*self.done.values(), done]
        told = self._told(made)
        # Arms that take longer than was planned use up the planned time before the last is made.
        usual = statistics.fmean(each.seconds for each in made)
        left = max(0.0, self._expected - done.seconds, (self._left - 1) * usual)
        say(
            f"arm {len(made)} of {len(self.done) + self._left}, {arm.name}: loss {first:.4f}; about {clock(left)} left"
            f"{'; ' if told else ''}{told}"
        )
        return done
