"""The only distributed loop of the project: every pass over every chunk, one Parquet part each.

There is no collective inside the loop. A rank writes the parts of its chunks and stops; what is missing afterwards is
what a later run, with any number of processes, has to do.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.batching import Batch, Plan
from instruct_prune.errors import IncompleteRunError
from instruct_prune.measure.passes import Pass
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.measure.subnets import SubnetSwitch
from instruct_prune.models.backbone import Backbone, Items
from instruct_prune.run.folder import PartStore

HEARTBEAT_SECONDS = 1.0
DEAD_AFTER_SECONDS = 90.0  # more than the minute for which network file systems may show an old file

Advance = Callable[[int, int], None]
"""Called with (rows, tokens) after each batch."""

ComputeChunk = Callable[["Backbone", "Items", Sequence[Batch], Sequence[SubnetSpec], Advance], dict[str, Any]]
"""A chunk's columns, by name."""

Todo = list[tuple[int, int]]
"""(pass, chunk) pairs."""


@dataclass(frozen=True)
class Work:
    """Everything a rank needs: what to score and where to put it.

    Attributes:
        passes: in the order in which they run.
        items: the rows of each pass (the "alone" pass sees responses without prompts).
        plans: the batches of each pass.
    """

    passes: tuple[Pass, ...]
    items: tuple[Items, ...]
    plans: tuple[Plan, ...]
    parts: PartStore

    def missing(self) -> Todo:
        """Parts that are absent, torn or foreign."""
        return [
            (p, chunk)
            for p, a_pass in enumerate(self.passes)
            for chunk in self.parts.missing(a_pass.name, len(self.plans[p].chunks))
        ]

    @property
    def n_parts(self) -> int:
        return sum(len(plan.chunks) for plan in self.plans)

    def cost(self, todo: Todo) -> int:
        """Padded tokens of these parts."""
        return sum(batch.width * len(batch.rows) for p, chunk in todo for batch in self.plans[p].chunks[chunk])

    def describe(self, todo: Todo) -> str:
        rows = {int(row) for p, chunk in todo for row in self.plans[p].rows_of(chunk)}
        names = sorted({self.passes[p].name for p, _ in todo})
        return f"{len(todo)} of {self.n_parts} parts, {len(rows)} rows, of {', '.join(names)}"


def share(todo: Todo, rank: int, world: int) -> Todo:
    """The parts of one rank: every world-th missing one, so that each pass is spread over all ranks."""
    return todo[rank::world]


def score_parts(
    backbone: Backbone,
    work: Work,
    todo: Todo,
    *,
    include_head: bool = False,
    advance: Advance = lambda rows, tokens: None,
    compute: ComputeChunk | None = None,
) -> dict[str, Any]:
    """Compute and write the parts in ``todo``; weights are bit-identical afterwards, whatever happens.

    ``compute`` makes the columns of a chunk: `score_chunk` (losses) unless given.

    A SIGTERM (a scheduler's preemption, a sibling's death) lets the chunk in hand finish first.

    Returns:
        Facts: seconds spent switching subnets and scoring, weights left whole.

    Raises:
        IncompleteRunError: stopped by SIGTERM.
    """
    switching = scoring = 0.0
    backbone.fit(work.items[0])
    with SubnetSwitch(backbone.model, include_head) as switch, _sigterm() as stopped:
        for p, a_pass in enumerate(work.passes):
            chunks = [chunk for q, chunk in todo if q == p]
            if not chunks:
                continue
            began = time.perf_counter()
            switch.to(a_pass)
            backbone.start_pass(a_pass.subnets, work.plans[p])
            switched = time.perf_counter()
            switching += switched - began
            for chunk in chunks:
                if stopped:
                    raise IncompleteRunError(f"stopped by signal {stopped[0]} after a finished part")
                batches = work.plans[p].chunks[chunk]
                columns = (compute or score_chunk)(backbone, work.items[p], batches, a_pass.subnets, advance)
                work.parts.write(a_pass.name, chunk, columns)
            scoring += time.perf_counter() - switched
        return {"switching_seconds": switching, "scoring_seconds": scoring, "left_whole": switch.left_whole()}


def score_chunk(
    backbone: Backbone, items: Items, batches: Sequence[Batch], subnets: Sequence[SubnetSpec], advance: Advance
) -> dict[str, Any]:
    """One chunk's columns: position int64, a float32 loss for each subnet, and error (None where the row ran)."""
    positions, table, errors = run_chunk(backbone, items, batches, len(subnets), advance)
    named = {f"loss_{spec.name}": table[:, j] for j, spec in enumerate(subnets)}
    return {"position": positions, **named, "error": errors}


def run_chunk(
    backbone: Backbone, items: Items, batches: Sequence[Batch], n_columns: int, advance: Advance
) -> tuple[Int64, Float32, Any]:
    """Run the batches of a chunk: positions int64 [m], values float32 [m, n_columns], errors [m] (None where it ran)."""
    positions: list[Int64] = []
    values: list[Float32] = []
    errors: list[str | None] = []
    for batch in batches:
        for rows, found, error in _with_halving(backbone, items, batch, n_columns):
            positions.append(rows)
            values.append(found)
            errors += [error] * len(rows)
        advance(len(batch.rows), batch.width * len(batch.rows))
    return np.concatenate(positions), np.concatenate(values), np.asarray(errors, dtype=object)


def _with_halving(
    backbone: Backbone, items: Items, batch: Batch, n_subnets: int
) -> Iterator[tuple[Int64, Float32, str | None]]:
    """Run a batch; where memory does not suffice, run its halves, down to one row, which then fails with a reason."""
    problem = None
    try:
        values = backbone.losses(backbone.collate([items[int(i)] for i in batch.rows], batch.prefix))
        yield batch.rows, values.float().cpu().numpy(), None
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        problem = str(error).splitlines()[0][:200]
    # Outside the handler: the exception's traceback would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch.rows) == 1:
        yield (
            batch.rows,
            np.full((1, n_subnets), np.nan, dtype=np.float32),
            f"out of memory with this row alone: {problem}",
        )
        return
    middle = (len(batch.rows) + 1) // 2
    for rows in (batch.rows[:middle], batch.rows[middle:]):
        yield from _with_halving(backbone, items, Batch(rows, batch.prefix, batch.width), n_subnets)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return "out of memory" in text or "DefaultCPUAllocator: can't allocate memory" in text


@contextmanager
def _sigterm() -> Iterator[list[int]]:
    """A list that receives SIGTERM's number instead of the process dying of it (main thread only)."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, before)


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


def merge_parts(work: Work, n_rows: int) -> tuple[dict[SubnetSpec, Float32], Mapping[int, str]]:
    """Put the parts together, counting every row exactly once for each subnet.

    Args:
        work: passes, plans and parts.
        n_rows: rows of the store.

    Returns:
        {subnet: float32 [n_rows], NaN where a row was not to be scored} and {position: error of a failed row}.

    Raises:
        IncompleteRunError: parts are missing; the message says which.
    """
    losses: dict[SubnetSpec, Float32] = {}
    errors: dict[int, str] = {}
    for p, a_pass in enumerate(work.passes):
        expected = np.zeros(n_rows, dtype=np.int8)
        counted = np.zeros(n_rows, dtype=np.int8)
        columns = {spec: np.full(n_rows, np.nan, dtype=np.float32) for spec in a_pass.subnets}
        for chunk in range(len(work.plans[p].chunks)):
            expected[work.plans[p].rows_of(chunk)] += 1
            table = work.parts.read(a_pass.name, chunk)
            if table is None:
                continue
            positions = table.column("position").to_numpy()
            np.add.at(counted, positions, 1)
            for spec, column in columns.items():
                column[positions] = table.column(f"loss_{spec.name}").to_numpy()
            for position, error in zip(positions, table.column("error").to_pylist(), strict=True):
                if error is not None:
                    errors[int(position)] = error
        if not np.array_equal(expected, counted):
            raise IncompleteRunError(f"{int((expected != counted).sum())} rows of {a_pass.name} are missing or doubled")
        losses |= columns
    return losses, errors
