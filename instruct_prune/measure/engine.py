"""The only distributed loop of the project: every pass over every chunk, one Parquet part each.

There is no collective inside the loop. A rank writes the parts of its chunks and stops; what is missing afterwards is
what a later run, with any number of processes, has to do.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from instruct_prune.arrays import Float32, Int64
from instruct_prune.encode.batching import Batch, Plan
from instruct_prune.errors import IncompleteRunError
from instruct_prune.measure.measurement import Pass
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.subnets import SubnetSwitch
from instruct_prune.models.model import Model

Advance = Callable[[int, int], None]
"""Called with (rows, cost) after each batch."""

Todo = list[tuple[int, int]]
"""(pass, chunk) pairs."""


class ByPosition(Protocol):
    """Items as a pass sees them."""

    def __getitem__(self, i: int) -> Any: ...


SHORT = 256
"""A row that would be alone in its batch runs beside a copy of itself when it has at most so many tokens (see `run_batch`)."""
KNOWN_ROWS = 65536
"""Rows in a part of what was measured before."""


@dataclass(frozen=True)
class Known:
    """What an earlier run measured of some rows of a pass.

    Attributes:
        positions: int64 [m].
        columns: {column: (values [n] or [n, d] of that run, int64 [m], places of the m rows in them)}.
        again: batches of a few of the rows, which are measured once more to see that the same comes out.
    """

    positions: Int64
    columns: Mapping[str, tuple[NDArray[Any], Int64]]
    again: tuple[Batch, ...] = ()

    @property
    def chunks(self) -> tuple[tuple[Batch, ...], ...]:
        """The last chunks of a plan: rows that cost nothing."""
        starts = range(0, len(self.positions), KNOWN_ROWS)
        return tuple((Batch(self.positions[at : at + KNOWN_ROWS], -1, 0),) for at in starts)

    def values(self, column: str, some: slice) -> NDArray[Any]:
        """[k] or [k, d]: of the rows in a slice of ``positions``."""
        values, places = self.columns[column]
        return np.asarray(values[places[some]])

    def part(self, some: slice) -> dict[str, Any]:
        """The columns of a part, as `measure_chunk` makes them."""
        positions = self.positions[some]
        columns: dict[str, Any] = {"position": positions}
        for name in self.columns:
            columns[name] = _listed(self.values(name, some))
        return columns | {"error": np.full(len(positions), None, dtype=object)}


@dataclass(frozen=True)
class Planned:
    """One pass, ready to run.

    Attributes:
        a_pass: what is read, under which weights.
        items: the rows, as its view shows them.
        plan: their batches.
        known: what need not be measured; the last chunks of the plan.
    """

    a_pass: Pass
    items: ByPosition
    plan: Plan
    known: Known | None = None

    @property
    def name(self) -> str:
        return self.a_pass.name

    def start(self, model: Model) -> None:
        """Tell the model; its weights are those of the pass already."""
        model.start_pass(self.plan, self.a_pass.depths, self.a_pass.pooled)


@dataclass(frozen=True)
class Work:
    """Everything a rank needs: what to measure and where to put it.

    Attributes:
        passes: in the order in which they run.
        parts: where results go.
    """

    passes: tuple[Planned, ...]
    parts: PartStore

    def missing(self) -> Todo:
        """Parts that are absent, torn or foreign."""
        return [
            (p, chunk)
            for p, one in enumerate(self.passes)
            for chunk in self.parts.missing(one.name, len(one.plan.chunks))
        ]

    @property
    def n_parts(self) -> int:
        return sum(len(one.plan.chunks) for one in self.passes)

    def cost(self, todo: Todo) -> int:
        """Padded tokens (or pictures) of these parts."""
        return sum(batch.width * len(batch.rows) for p, chunk in todo for batch in self.passes[p].plan.chunks[chunk])

    def describe(self, todo: Todo) -> str:
        rows = {int(row) for p, chunk in todo for row in self.passes[p].plan.rows_of(chunk)}
        names = sorted({self.passes[p].name for p, _ in todo})
        return f"{len(todo)} of {self.n_parts} parts, {len(rows)} rows, of {', '.join(names)}"


@dataclass(frozen=True)
class Spent:
    """What passes took.

    Attributes:
        switching_seconds: of one process, on making subnets.
        scoring_seconds: of one process, on its parts of the passes.
        left_whole: weights that no mask touched, with the reason.
        seconds: of the clock, until all processes were done.
        cost: tokens or pictures that all processes computed.
    """

    switching_seconds: float = 0.0
    scoring_seconds: float = 0.0
    left_whole: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    cost: int = 0

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.switching_seconds + other.switching_seconds,
            self.scoring_seconds + other.scoring_seconds,
            {**self.left_whole, **other.left_whole},
            round(self.seconds + other.seconds, 3),
            self.cost + other.cost,
        )


def share(todo: Todo, rank: int, world: int) -> Todo:
    """The parts of one rank: every world-th missing one, so that each pass is spread over all ranks."""
    return todo[rank::world]


def measure_parts(
    model: Model, work: Work, todo: Todo, *, include_head: bool = False, advance: Advance = lambda rows, cost: None
) -> Spent:
    """Compute and write the parts in ``todo``; weights are bit-identical afterwards, whatever happens.

    A SIGTERM (a scheduler's preemption, a sibling's death) lets the chunk in hand finish first.

    Raises:
        IncompleteRunError: stopped by SIGTERM.
    """
    switching = scoring = 0.0
    with SubnetSwitch(model.module, include_head, model.backbone) as switch, _sigterm() as stopped:
        for p, one in enumerate(work.passes):
            chunks = [chunk for q, chunk in todo if q == p]
            if not chunks:
                continue
            began = time.perf_counter()
            switch.to(one.a_pass.weights)
            one.start(model)
            switched = time.perf_counter()
            switching += switched - began
            for chunk in chunks:
                if stopped:
                    raise IncompleteRunError(f"stopped by signal {stopped[0]} after a finished part", stopped[0])
                work.parts.write(one.name, chunk, measure_chunk(model, one, one.plan.chunks[chunk], advance))
            scoring += time.perf_counter() - switched
        return Spent(switching, scoring, switch.left_whole())


def measure_chunk(model: Model, one: Planned, batches: Sequence[Batch], advance: Advance) -> dict[str, Any]:
    """One chunk's columns: position int64, what each probe reads (float32, or a list of them), error (None where it ran)."""
    positions: list[Int64] = []
    values: list[Float32] = []
    errors: list[str | None] = []
    for batch in batches:
        for rows, found, error in _with_halving(model, one, batch):
            positions.append(rows)
            values.append(found)
            errors += [error] * len(rows)
        advance(len(batch.rows), batch.width * len(batch.rows))
    table = np.concatenate(values)
    columns: dict[str, Any] = {"position": np.concatenate(positions)}
    at = 0
    for measurement in one.a_pass.measurements:
        width = measurement.probe.width(model)
        piece = np.ascontiguousarray(
            table[:, at : at + width], dtype=np.float16 if measurement.probe.half else np.float32
        )
        at += width
        columns[measurement.column] = _listed(piece[:, 0] if width == 1 else piece)
    return columns | {"error": np.asarray(errors, dtype=object)}


def _listed(values: NDArray[Any]) -> Any:
    """An Arrow column of numbers [m], or of lists of numbers [m, d]."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def run_batch(model: Model, a_pass: Pass, items: ByPosition, batch: Batch) -> torch.Tensor:
    """Float32 [b, sum of widths]: what the probes of a pass read off one batch, side by side."""
    with ExitStack() as around:
        around.enter_context(torch.enable_grad() if a_pass.needs_grad else torch.inference_mode())
        seen = [items[int(i)] for i in batch.rows]
        # A short row by itself would go through other kernels than in a batch, which round otherwise: it runs twice.
        twice = len(seen) == 1 and 1 < batch.width <= SHORT and not batch.alone
        ready = model.collate(seen * 2 if twice else seen, batch.prefix)
        for measurement in a_pass.measurements:
            around.enter_context(measurement.probe.watch(model, ready))
        states = model.forward(ready)
        found = [m.probe(model, ready, states).float() for m in a_pass.measurements]
        return torch.cat(found, dim=1).detach()[: len(seen)]


def _with_halving(model: Model, one: Planned, batch: Batch) -> Iterator[tuple[Int64, Float32, str | None]]:
    """Run a batch; where memory does not suffice, run its halves, down to one row, which then fails with a reason."""
    problem = None
    try:
        yield batch.rows, run_batch(model, one.a_pass, one.items, batch).cpu().numpy(), None
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        problem = str(error).splitlines()[0][:200]
    # Outside the handler: the exception's traceback would keep the failed batch's tensors alive.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch.rows) == 1:
        width = sum(measurement.probe.width(model) for measurement in one.a_pass.measurements)
        nothing = np.full((1, width), np.nan, dtype=np.float32)
        yield batch.rows, nothing, f"out of memory with this row alone: {problem}"
        return
    middle = (len(batch.rows) + 1) // 2
    for rows in (batch.rows[:middle], batch.rows[middle:]):
        yield from _with_halving(model, one, replace(batch, rows=rows))


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
