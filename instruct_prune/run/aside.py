"""``set_aside.parquet``: rows that ``--dedup-first`` took out before scoring, and the items of a run without them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instruct_prune.arrays import positions_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts, SetAside
from instruct_prune.storage import read_parquet

if TYPE_CHECKING:
    import pyarrow as pa

    from instruct_prune.models.model import Items

FILE = "set_aside.parquet"
MADE_FROM = b"made_from"
"""In the file's metadata: digest of the options and of the items."""


def read_aside(folder: RunFolder) -> pa.Table | None:
    """The rows that a finished run set aside; None where it set none aside."""
    return None if folder.facts(ScoreFacts).aside is None else read_parquet(folder / FILE)


def left_of(items: Items, aside: pa.Table | None) -> Items:
    """The items of a run; those of rows that were set aside can be scored no more."""
    if aside is None or not len(aside):
        return items
    return items.without(positions_of(aside.column("row_id").to_numpy(), items.row_id, FILE))


def facts_of(aside: pa.Table, seconds: float) -> SetAside:
    """How many rows, for the record."""
    reasons = aside.column("reason").to_pylist()
    return SetAside(reasons.count("duplicate"), reasons.count("contaminated"), seconds)
