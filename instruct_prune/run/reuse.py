"""What an earlier run measured of rows that are there still: not measured again (docs/updating.md)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Int32, Int64
from instruct_prune.errors import InputError
from instruct_prune.measure.engine import Known
from instruct_prune.measure.measurement import Measurement
from instruct_prune.models.model import Items
from instruct_prune.registry import CODE, class_name, own_code
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.manifest import MANIFEST, differences
from instruct_prune.run.records import ScoreFacts
from instruct_prune.storage import arrow_column, read_parquet, replaced_folder, write_parquet

BEFORE = "before"
"""Inside a run's folder, while it is updated: what it had measured until then."""
KEPT = (MANIFEST, "scores.parquet", "measured.parquet", "pilot.parquet", "states")
OF_THE_LADDER = ("subnets", "probes", "batch", "auto", "dedup_first", "adapters")
"""Options that decide which columns and rows there are, and none of the numbers that are reused: losses with an adapter are not."""

CODE_DIFFERS = (
    "A number that code of your own made is that of the same code alone, and no column says which code made it: --subnets and "
    "--probes of your own may be added, not changed or left out."
)


def keep_before(folder: RunFolder) -> None:
    """Before a finished run is updated: keep what it measured, until the update is finished too.

    Where an update was interrupted, what it kept lies there already.
    """
    record = folder.record(ScoreFacts) if folder.exists else None
    if record is None or record.facts is None:
        return
    with replaced_folder(folder / BEFORE) as temporary:
        for path in (folder / name for name in KEPT):
            if path.is_dir():
                shutil.copytree(path, temporary / path.name, copy_function=_link)
            elif path.exists():
                _link(str(path), str(temporary / path.name))


def _link(source: str, target: str) -> None:
    """Files of a run are never written to but replaced, so a second name for one is a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def before_of(folder: RunFolder, update: bool, reuse: str | None) -> Before | None:
    """What may be reused, as the options say; None where nothing is.

    Raises:
        InputError: ``--reuse`` names no scored run, or this run itself.
    """
    if update and reuse:
        raise InputError("--update reuses what is in --out itself, --reuse what is in another run. Give one of them.")
    if update:
        return Before(folder / BEFORE) if (folder / BEFORE / MANIFEST).exists() else None
    if reuse is None:
        return None
    if Path(reuse).resolve() == folder.path.resolve():
        raise InputError(f"--reuse {reuse} is --out itself. To score edited data in the same folder, pass --update.")
    found = RunFolder(reuse)
    record = found.record(ScoreFacts) if found.exists else None
    if record is None or record.facts is None:
        raise InputError(f"--reuse {reuse}: there is no scored run here.")
    return Before(Path(reuse))


class Before:
    """The measurements of a finished run, by what was measured.

    Args:
        path: of its folder.

    Raises:
        InputError: it was made by a version that did not write down what a row was measured with.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "measured.parquet").exists():
            raise InputError(
                f"{path} does not say what its rows were measured with (measured.parquet). Score without it."
            )
        record = RunFolder(path).record(ScoreFacts)
        assert record is not None
        assert record.facts is not None
        self.config, self.facts = record.config, record.facts

    def check(self, identity: Mapping[str, Any]) -> None:
        """Refuse measurements of another model, type of weights or code.

        Code of the user's own that took no part then is no difference: what it measures is measured for all rows (`known`).

        Raises:
            InputError: the message lists what differs.
        """
        added = {name for name in identity if name.startswith(CODE) and name not in self.config}
        passed = {*OF_THE_LADDER, *added}
        old, new = ({k: v for k, v in each.items() if k not in passed} for each in (self.config, identity))
        lines = differences(old, json.loads(json.dumps(new, default=str)))
        if lines:
            raise InputError(
                f"nothing of {self.path} can be reused: it was measured in another way. What differs (there -> asked for):\n"
                + "\n".join(lines)
                + ("\n" + CODE_DIFFERS if any(line.strip().startswith(CODE) for line in lines) else "")
                + "\nUse the same options, or score without --update and --reuse."
            )

    def _column(self, one: Measurement) -> tuple[Int64, NDArray[Any]] | None:
        """What is there of a measurement; nothing where code takes part in it that took none then."""
        code = own_code([one.spec.kind, one.spec.view, class_name(one.probe)], "--reuse")
        return self._columns.get(one.column) if code.keys() <= self.config.keys() else None

    @cached_property
    def _rows(self) -> dict[tuple[str, int], int]:
        """{(content, tokens of the shared prefix): row id}."""
        table = read_parquet(self.path / "measured.parquet")
        columns = [table.column(name).to_pylist() for name in ("content_hash", "shared", "row_id")]
        return {(name, shared): row_id for name, shared, row_id in zip(*columns, strict=True)}

    @cached_property
    def _columns(self) -> dict[str, tuple[Int64, NDArray[Any]]]:
        """{column: (row ids, values [m] or [m, d])}; those of all rows in place of those of a pilot."""
        found: dict[str, tuple[Int64, NDArray[Any]]] = {}
        for name in ("pilot.parquet", "scores.parquet"):
            if (self.path / name).exists():
                table = read_parquet(self.path / name)
                ids = table.column("row_id").to_numpy()
                found |= {c: (ids, table.column(c).to_numpy()) for c in table.column_names if c != "row_id"}
        for path in sorted((self.path / "states").glob("*_dense.npy")):
            ids = np.load(path.with_name("rows.npy"), allow_pickle=False)
            found[path.stem] = (ids, np.load(path, mmap_mode="r", allow_pickle=False))
        return found

    def known(
        self, measurements: tuple[Measurement, ...], rows: Int64, names: list[str], shared: Int32
    ) -> tuple[Bool, Known | None]:
        """Which rows need not be measured.

        Args:
            measurements: of one pass.
            rows: int64 [m], positions.
            names: hashes of their contents [m].
            shared: int32 [m], tokens that each shares with others and that are computed once for all.

        Returns:
            bool [m], and what is known of those rows; None where nothing is.
        """
        none = np.zeros(len(rows), dtype=np.bool_)
        columns = [self._column(one) for one in measurements]
        if any(column is None for column in columns):
            return none, None
        row_id = np.asarray(
            [self._rows.get(key, -1) for key in zip(names, shared.tolist(), strict=True)], dtype=np.int64
        )
        there = row_id >= 0
        at: dict[str, Int64] = {}
        for one, found in zip(measurements, columns, strict=True):
            assert found is not None
            ids, values = found
            place = np.minimum(np.searchsorted(ids, row_id), len(ids) - 1)
            there &= ids[place] == row_id
            if values.ndim == 1:
                there &= np.isfinite(values[place])
            else:
                there[there] = [bool(np.isfinite(values[i]).all()) for i in place[there].tolist()]
            at[one.column] = place
        if not there.any():
            return none, None
        arrays = {one.column: found[1] for one, found in zip(measurements, columns, strict=True) if found is not None}
        return there, Known(rows[there], {name: (arrays[name], place[there]) for name, place in at.items()})


def write_measured(folder: Path, items: Items, shared: Int32) -> None:
    """Write ``measured.parquet``: what the number of each row follows from, beside model and subnet.

    Args:
        folder: the run.
        items: its rows.
        shared: int32 [number of scorable rows], as in `Before.known`.
    """
    import pyarrow as pa

    rows = np.flatnonzero(items.scorable)
    names = items.text_columns("content_hash")[0]
    columns = {
        "row_id": arrow_column(items.row_id[rows]),
        "content_hash": pa.array([names[i] for i in rows.tolist()], type=pa.string()),
        "shared": arrow_column(shared),
    }
    write_parquet(folder / "measured.parquet", pa.table(columns))
