"""What scores and selection want of the rows beside their losses: columns, strata, texts, states."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Int64, batched, positions_of
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.rows.exact import dumps
from instruct_prune.rows.formats.conversations import PREFERENCE
from instruct_prune.rows.reader import as_mapping
from instruct_prune.rows.row import Row
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.rows import rows_of
from instruct_prune.score.columns import LABEL, POOLED
from instruct_prune.score.scores import find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.duplicates import text_keys

SOURCE = "source"
NAMED_ROWS = 50_000  # rows that clusters are named by
NAMED_CHARACTERS = 500
BATCH_ROWS = 1024


@dataclass
class RowFacts:
    """Facts in the order of the score table.

    Attributes:
        strata: value of --stratify's column for each row, or None.
        keys: int64 [n], hash of each row's normalised text; empty without --dedup.
        apart: int64 [n], hash of what a row trains besides its text (`beside_text`); likewise.
        named_rows: row ids of the rows in ``texts``.
        texts: some rows' texts, for the names of clusters.
        must_keep: int64, row ids.
    """

    strata: list[Any] | None = None
    keys: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    apart: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    named_rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    must_keep: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))


def read_facts(folder: RunFolder, table: ScoreTable, config: SelectConfig, naming: bool) -> RowFacts:
    """Read the stored rows once more, if something is wanted of them; with ``naming`` also texts for the names of clusters.

    Raises:
        InputError: no such column, a predicate or file of --must-keep that makes no sense, data that changed.
    """
    facts = RowFacts()
    column, value, facts.must_keep = must_keep_of(config.must_keep)
    if not (config.stratify or column or naming or config.dedup is not None):
        return facts
    facts.strata = [] if config.stratify else None
    rows = rows_of(folder)
    rejected = rejected_of(rows)
    every = max(1, len(table) // NAMED_ROWS)
    forced: list[int] = []
    keys, apart = [facts.keys], [facts.apart]
    numbered = zip(range(len(table)), table.scored.tolist(), rows.take(table.row_id), strict=True)
    for batch in batched(numbered, BATCH_ROWS):
        for i, scored, row in batch:
            if facts.strata is not None:
                facts.strata.append(stratum_of(row, str(config.stratify)))
            if column is not None and scored and str(field_of(row, column)) == value:
                forced.append(row.row_id)
            if naming and scored and i % every == 0:
                facts.named_rows.append(row.row_id)
                facts.texts.append(row.text[:NAMED_CHARACTERS])
        if config.dedup is not None:
            keys.append(text_keys(row.text for _, _, row in batch))
            apart.append(text_keys(beside_text(row, rejected) for _, _, row in batch))
    facts.keys, facts.apart = np.concatenate(keys), np.concatenate(apart)
    if facts.strata is not None and all(v is None for v in facts.strata):
        raise InputError(_no_column(str(config.stratify)))
    if column is not None:
        if not forced:
            raise InputError(f"--must-keep {config.must_keep}: no scored row has {column!r} equal to {value!r}.")
        facts.must_keep = np.asarray(forced, dtype=np.int64)
    return facts


def rejected_of(rows: RowTable) -> str | None:
    """The column of the rejected answers, where rows are pairs of a chosen and a rejected one."""
    pairs = any(name.startswith(PREFERENCE.name) for name in rows.facts.format.split("+"))
    return (rows.facts.opened_with.get("columns") or {}).get("rejected", "rejected") if pairs else None


def beside_text(row: Row, rejected: str | None) -> str:
    """What a row trains besides its text: calls, thoughts, and its rejected answer (of this column); "" where it has none.

    Rows that differ here are no copies of one another, however alike their texts are.
    """
    said: list[Any] = []
    for message in row.messages:
        if message.tool_calls or message.reasoning.strip():
            said.append([message.reasoning, [call.get("function") for call in message.tool_calls]])
    other = None if rejected is None else field_of(row, rejected)
    return dumps([said, other]) if said or other is not None else ""


def field_of(sample: Row, name: str) -> Any:
    """A column of a row: one of `Row.columns`, else a field of the row as it lay in the input; None where it has none."""
    if name in sample.columns:
        return sample.columns[name]
    return as_mapping(sample.raw).get(name)


def stratum_of(row: Row, column: str) -> Any:
    """A column of a row; for the column "source", the name of its file where the row has none."""
    value = field_of(row, column)
    return Path(row.source).name.partition(".")[0] if value is None and column == SOURCE else value


def check_columns(rows: RowTable, config: SelectConfig) -> None:
    """Refuse columns and rows that the data do not have, before they are scored; reading ends where they are found.

    Raises:
        InputError: ``--stratify`` or ``--must-keep`` names what is not there.
    """
    column, value, wanted = must_keep_of(config.must_keep)
    if config.stratify is not None and all(stratum_of(row, config.stratify) is None for row in rows):
        raise InputError(_no_column(config.stratify))
    if column is not None and not any(str(field_of(row, column)) == value for row in rows):
        raise InputError(f"--must-keep {config.must_keep}: no row has {column!r} equal to {value!r}.")
    missing = np.setdiff1d(wanted, rows.row_id)
    if len(missing):
        more = f" (nor {len(missing) - 1} more of them)" if len(missing) > 1 else ""
        raise InputError(f"--must-keep {config.must_keep}: there is no row {missing[0]} that can be used{more}.")


def _no_column(name: str) -> str:
    return f"--stratify {name}: the data has no column of this name (or it is empty in every row)."


def must_keep_of(text: str | None) -> tuple[str | None, str, Int64]:
    """("source", "identity", no rows) of source=identity; (None, "", the row ids) of a file of them.

    Raises:
        InputError: it is neither.
    """
    if text is None:
        return None, "", np.empty(0, dtype=np.int64)
    if Path(text).expanduser().is_file():
        return None, "", _listed(text)
    column, sign, value = text.partition("=")
    if not (column and sign):
        raise InputError(
            f"--must-keep {text}: there is no such file, and it is no predicate either. Name a file of row ids, one a line, or "
            "write column=value, as in --must-keep source=identity."
        )
    return column, value, np.empty(0, dtype=np.int64)


def _listed(path: str) -> Int64:
    lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    ids: list[int] = []
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if not word:
            continue
        if not word.isdigit():
            raise InputError(
                f"--must-keep {path}, line {number}: {word[:80]!r} is not a row id (a whole number, 0 for the first row)."
            )
        ids.append(int(word))
    return np.unique(np.asarray(ids, dtype=np.int64))


def columns_for(folder: RunFolder, rows: RowTable, table: ScoreTable, score: str) -> dict[str, NDArray[Any]]:
    """What a score may read beside losses, one entry for each of the table's n rows.

    Columns of one number a row are always there; pooled states (float32 [n, d] for each depth) and classes are read only
    where the score declares that it needs them.
    """
    needs = find_score(score).needs_of()
    found: dict[str, NDArray[Any]] = dict(table.more)
    if POOLED in needs:
        places = np.load(folder / "states" / "rows.npy", allow_pickle=False)
        at = positions_of(places, table.row_id, "the table of scores")
        for path in sorted((folder / "states").glob("mean_[0-9]*_dense.npy")):
            values = np.load(path, mmap_mode="r", allow_pickle=False)
            column = np.full((len(table), values.shape[1]), np.nan, dtype=np.float32)
            column[at] = values
            found[POOLED + path.stem.split("_")[1]] = column
    strata = rows.facts.strata
    if LABEL in needs and strata is not None:
        found[LABEL] = np.asarray([field_of(row, strata) for row in rows.take(table.row_id)], dtype=np.str_)
    return found
