"""What the stages of a target say about themselves; `records` has those of the other stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from instruct_prune.run.by import BY


@dataclass(frozen=True)
class StageFacts:
    """What a stage says about itself.

    Attributes:
        stage: its name.
        command: the one that makes it, for messages.
    """

    stage: ClassVar[str] = ""
    command: ClassVar[str] = ""


@dataclass(frozen=True)
class TaskFacts:
    """One task of a target.

    Attributes:
        name: of the task.
        file: where its rows came from.
        read: rows read.
        queries: rows that steer the selection.
        repeats: {how: rows of the pool that repeat one of them} by text, by 13-gram and, where the pool has vectors of an
            embedding model, by embedding; each row counts once, for the first row that it repeats.
    """

    name: str
    file: str
    read: int
    queries: int
    repeats: Mapping[str, int]


@dataclass(frozen=True)
class TargetFacts(StageFacts):
    """What the selection aims at: the rows of a target, read and encoded.

    Attributes:
        tasks: the target's tasks.
        seconds: time taken.
    """

    stage = "target"
    command = "target --target ..."

    tasks: tuple[TaskFacts, ...]
    seconds: float


@dataclass(frozen=True)
class ComparedFacts(StageFacts):
    """How near the rows of the pool are to a target, by one way to compare (``--by``); `COMPARED` has a kind for each.

    Attributes:
        pool, rows, queries: files inside the run folder, as in `Compared`.
        seconds: time taken.
    """

    pool: str
    rows: str
    queries: str
    seconds: float


def _compared(by: str) -> type[ComparedFacts]:
    class Facts(ComparedFacts):
        stage = f"target by {by}"
        command = f"target --target ... --by {by}"

    return Facts


COMPARED: dict[str, type[ComparedFacts]] = {by: _compared(by) for by in BY}
"""The stage of each way to compare: they stand side by side, so that one more leaves the others as they are."""
