"""``--dedup-first``: near-duplicates, and rows that repeat a test, are found before scoring, and are not scored."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.config import EmbedConfig, SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import say
from instruct_prune.run.asked import check_budget, check_first, compares_vectors
from instruct_prune.run.contaminated import Contaminated, find_contaminated, sha256_of_file
from instruct_prune.run.drawing import duplicates_of
from instruct_prune.run.embed import by_model, vectors_of
from instruct_prune.run.embed import embed as embed_rows
from instruct_prune.run.folder import ASIDE, RunFolder, left_of
from instruct_prune.run.records import EncodeFacts, SetAside
from instruct_prune.run.row_facts import RowFacts, read_facts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool
from instruct_prune.select.draw import forced_rows
from instruct_prune.select.selection import refuse_both
from instruct_prune.storage import arrow_column, digest, read_parquet, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

MADE_FROM = b"made_from"
"""In the metadata of ``set_aside.parquet``: digest of the options and of the items."""
KEEP: Literal["longest"] = "longest"
"""Which row of a group of near-duplicates stays where no score says which is the hardest."""


class First:
    """The rows of a run that are set aside before scoring.

    Args:
        folder: the run, its rows encoded.
        model: whose items they are.
        items: all of them.
        select: which rows go.
        embed: where vectors come from; they are made where they are needed.

    Attributes:
        identity: all that decides which rows go, beside the rows; JSON-able.

    Raises:
        InputError: as `check_first`.
    """

    def __init__(
        self, folder: RunFolder, model: Model, items: Items, select: SelectConfig | None, embed: EmbedConfig | None
    ) -> None:
        select, self._embed = select or SelectConfig(), embed or EmbedConfig()
        check_first(select, by_model(model, embed) is not None)
        self._folder, self._model, self._items, self._seconds = folder, model, items, 0.0
        self._select = dataclasses.replace(select, dedup_keep=select.dedup_keep or KEEP, stratify=None)
        forced = select.must_keep
        self.identity: dict[str, Any] = {
            "dedup": select.dedup,
            "dedup_keep": self._select.dedup_keep,
            "decontaminate": [sha256_of_file(path) or path for path in select.decontaminate],
            "decontaminate_above": select.decontaminate_above,
            "must_keep": None if forced is None else sha256_of_file(forced) or forced,
            "vectors": vectors_of(model, self._embed) if compares_vectors(select) else None,
        }

    def put_aside(self) -> None:
        """Write ``set_aside.parquet``, unless an interrupted command left it; on the main process.

        Raises:
            InputError: a file of ``--decontaminate`` or ``--must-keep`` is wrong, a row must be kept and must not, or too few
                rows are left for the budget, or none.
        """
        folder, path = self._folder, self._folder / ASIDE
        made_from = digest([self.identity, folder.require(EncodeFacts).fingerprint]).encode()
        if not path.exists() or self.read().schema.metadata.get(MADE_FROM) != made_from:
            if compares_vectors(self._select):
                embed_rows(folder, self._embed, model=self._model)
            began = time.monotonic()
            write_parquet(path, self._find().replace_schema_metadata({MADE_FROM: made_from}))
            self._seconds = round(time.monotonic() - began, 3)
        found, n = self.facts(), int(self._items.scorable.sum())
        say(
            f"dedup first: {found.rows:,} of {n:,} rows are set aside and not scored ({found.duplicates:,} near-duplicates, "
            f"{found.contaminated:,} that repeat a row of --decontaminate)"
        )
        if found.rows == n:
            raise InputError(
                "--dedup-first: every row repeats a row of --decontaminate, so there is nothing left to score. Is one of these files the "
                "data themselves?"
            )
        left = left_of(self._items, self.read())
        check_budget(self._select, left.n_response[left.scorable])

    def facts(self) -> SetAside:
        """How many rows, for the record."""
        reasons = self.read().column("reason").to_pylist()
        return SetAside(reasons.count("duplicate"), reasons.count("contaminated"), self._seconds)

    def read(self) -> pa.Table:
        """What `put_aside` wrote."""
        return read_parquet(self._folder / ASIDE)

    def _find(self) -> pa.Table:
        table = _unmeasured(self._items)
        facts = read_facts(self._folder, table, self._select, naming=False)
        contaminated = find_contaminated(self._folder, table, self._select)
        stands = _stands_for(self._folder, table, facts, self._select, contaminated)
        return _table(table.row_id[table.scored], stands, contaminated)


def _unmeasured(items: Items) -> ScoreTable:
    """The rows that can be scored, all with the same score."""
    n = len(items)
    return ScoreTable(
        row_id=items.row_id,
        content_hash=np.zeros(n, dtype="<U1"),
        status=items.status_names,
        n_prompt=(items.lengths - items.n_response).astype(np.int32),
        n_response=items.n_response,
        n_cut=items.n_cut,
        losses=np.zeros((n, 0), dtype=np.float32),
        subnets=(),
        score=np.zeros(n, dtype=np.float32),
        score_name="",
        backbone="",
    )


def _stands_for(
    folder: RunFolder, table: ScoreTable, facts: RowFacts, select: SelectConfig, contaminated: Contaminated | None
) -> Int64:
    """int64 [n]: for each row that can be scored the row id that stands for it, -1 where it stands for itself."""
    out = np.zeros(int(table.scored.sum()), dtype=bool) if contaminated is None else contaminated.rows
    pool = build_pool(table, embeddings=folder.read_embeddings() if select.dedup is not None else None)
    forced = forced_rows(pool, facts.must_keep)
    refuse_both(pool.row_id[forced & out])
    found = duplicates_of(select, pool, facts, table, out)
    return np.full(len(pool), -1, dtype=np.int64) if found is None else np.where(forced | out, -1, found)


def _table(row_id: Int64, stands: Int64, contaminated: Contaminated | None) -> pa.Table:
    """The rows that go: row_id, reason, duplicate_of, and what a contaminated one repeats (as in ``selection.parquet``)."""
    import pyarrow as pa

    out = np.zeros(len(row_id), dtype=bool) if contaminated is None else contaminated.rows
    at = np.flatnonzero(out | (stands >= 0))
    columns: dict[str, Any] = {
        "row_id": arrow_column(row_id[at]),
        "reason": pa.array(np.where(out[at], "contaminated", "duplicate").tolist(), pa.string()),
        "duplicate_of": pa.array(stands[at], pa.int64(), mask=stands[at] < 0),
    }
    if contaminated is not None:
        columns |= {name: column.take(pa.array(at)) for name, column in contaminated.columns().items()}
    return pa.table(columns)
