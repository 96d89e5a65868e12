"""What a measurement left in its parts, read back: columns for the table, vectors for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.errors import IncompleteRunError
from instruct_prune.measure.engine import KNOWN_ROWS, Planned, Work
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.parts import PartStore
from instruct_prune.storage import array_file


@dataclass(frozen=True)
class Stored:
    """One measurement of a finished pass."""

    parts: PartStore
    of: Planned
    measurement: Measurement

    def blocks(self) -> Iterator[tuple[Int64, Float32]]:
        """positions int64 [m] and values float32 [m, d], part by part in a fixed order."""
        for chunk in range(len(self.of.plan.chunks)):
            table = self.parts.read(self.of.name, chunk)
            if table is None:
                raise IncompleteRunError(f"part {chunk} of {self.of.name} is missing")
            positions = table.column("position").to_numpy()
            column = table.column(self.measurement.column).combine_chunks()
            flat = column.flatten() if hasattr(column, "flatten") and column.type.num_fields else column
            yield positions, flat.to_numpy(zero_copy_only=False).reshape(len(positions), -1)

    def array(self, rows: Int64) -> Float32:
        """float32 [len(rows), d] for these positions, ascending; NaN where a row was not measured."""
        found = np.zeros((len(rows), 0), dtype=np.float32)
        for positions, values in self.blocks():
            found = found if found.shape[1] else np.full((len(rows), values.shape[1]), np.nan, dtype=np.float32)
            found[np.searchsorted(rows, positions)] = values
        return found

    def save(self, target: Path, rows: Int64) -> int:
        """Write float32 (float16 of a probe in half precision) [len(rows), d] for these positions, ascending, as .npy; return d."""
        width = next((values.shape[1] for _, values in self.blocks()), 0)
        kind = np.float16 if self.measurement.probe.half else np.float32
        with array_file(target, kind, (len(rows), width)) as whole:
            for positions, values in self.blocks():
                whole[np.searchsorted(rows, positions)] = values
        return width


def write_known(work: Work) -> None:
    """Write the parts of what was measured before, where they are not there yet; on the main process."""
    for one in work.passes:
        if one.known is None:
            continue
        first = len(one.plan.chunks) - len(one.known.chunks)
        for chunk in range(first, len(one.plan.chunks)):
            if work.parts.read(one.name, chunk) is None:
                at = (chunk - first) * KNOWN_ROWS
                work.parts.write(one.name, chunk, one.known.part(slice(at, at + KNOWN_ROWS)))


def find(work: Work, column: str) -> Stored:
    """The stored measurement of this column name."""
    return next(
        Stored(work.parts, planned, one)
        for planned in work.passes
        for one in planned.a_pass.measurements
        if one.column == column
    )


def merge_columns(work: Work, n_rows: int) -> tuple[dict[Measurement, Float32], dict[int, str]]:
    """Put the parts together, counting every row exactly once for each pass.

    Args:
        work: passes, plans and parts.
        n_rows: rows of the table.

    Returns:
        {measurement of width one: float32 [n_rows], NaN where a row was not to be measured} and
        {position: error of a failed row}.

    Raises:
        IncompleteRunError: parts are missing; the message says which.
    """
    found: dict[Measurement, Float32] = {}
    errors: dict[int, str] = {}
    for planned in work.passes:
        expected, counted = np.zeros(n_rows, dtype=np.int8), np.zeros(n_rows, dtype=np.int8)
        for chunk in range(len(planned.plan.chunks)):
            expected[planned.plan.rows_of(chunk)] += 1
            table = work.parts.read(planned.name, chunk)
            if table is None:
                continue
            positions = table.column("position").to_numpy()
            np.add.at(counted, positions, 1)
            for one in planned.a_pass.measurements:
                values = table.column(one.column).combine_chunks()
                if not values.type.num_fields:
                    column = found.setdefault(one, np.full(n_rows, np.nan, dtype=np.float32))
                    column[positions] = values.to_numpy(zero_copy_only=False)
            for position, error in zip(positions, table.column("error").to_pylist(), strict=True):
                if error is not None:
                    errors[int(position)] = error
        if not np.array_equal(expected, counted):
            raise IncompleteRunError(
                f"{int((expected != counted).sum())} rows of {planned.name} are missing or doubled"
            )
    return found, errors
