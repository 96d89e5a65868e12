"""A run's tables side by side: everything the report says is counted from these columns, one entry per scored row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32, Int32, Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.report.aim import Aim, read_aim
from instruct_prune.rows.facts import RowFacts
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts, SelectFacts
from instruct_prune.run.target_facts import COMPARED, TargetFacts
from instruct_prune.select.data import Selection

FATES = ("dropped", "kept: easy pool", "kept: hard pool", "kept", "scored")
"""What a row's bar is coloured by. "kept" is for methods without pools, "scored" for runs without a selection."""
DROPPED, KEPT_EASY, KEPT_HARD, KEPT, SCORED = range(len(FATES))

UInt8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Records:
    """What the stages of a run say about themselves; None where a stage has not run.

    Attributes:
        source: what is known of the rows.
        chosen: the options of the selection.
        target_seconds: that reading a target and comparing it with the pool took, in all ways that were tried; None without one.
    """

    source: RowFacts
    rows: RowsFacts
    encode: EncodeFacts
    score: ScoreFacts
    embed: EmbedFacts | None
    select: SelectFacts | None
    chosen: Mapping[str, Any]
    target_seconds: float | None


@dataclass(frozen=True)
class Tables:
    """The scored rows of a run, n of them, in ascending row id.

    Attributes:
        name: of the run's folder.
        row_id: int64 [n].
        score: float32 [n], what the selection ranked by (higher = harder).
        score_name: which aggregate.
        n_prompt, n_response: int32 [n], tokens.
        truncated: bool [n].
        losses: float32 [n, s], nats per response token.
        subnets: the s columns' subnets.
        selection: the n rows' fates, or None where nothing was selected yet.
        vectors: float32 [m, d], memory-mapped, or None.
        vector_at: int64 [n], each row's place in ``vectors``.
        labels: int32 [n], the cluster (or stratum) of each row; all 0 where there is one.
        label_names: name of label i at position i.
        label_kind: "cluster", "stratum", or "" where all rows are together.
        distance: float32 [n] to the cluster's centre, or None.
        aim: who took each row; None where the selection has no target.
        unstable: bool [n], rows that another mask seed would have decided otherwise; None with fewer than two seeds.
        run: the records of the stages that these tables come from.
    """

    name: str
    row_id: Int64
    score: Float32
    score_name: str
    n_prompt: Int32
    n_response: Int32
    truncated: Bool
    losses: Float32
    subnets: tuple[SubnetSpec, ...]
    selection: Selection | None
    vectors: Float32 | None
    vector_at: Int64
    labels: Int32
    label_names: tuple[str, ...]
    label_kind: str
    distance: Float32 | None
    unstable: Bool | None
    aim: Aim | None
    run: Records

    def __len__(self) -> int:
        return len(self.row_id)

    @property
    def kept(self) -> Bool:
        """bool [n]; all False where nothing was selected yet."""
        return np.zeros(len(self), dtype=bool) if self.selection is None else self.selection.selected

    @property
    def fate(self) -> UInt8:
        """uint8 [n], an index into FATES."""
        chosen = self.selection
        if chosen is None:
            return np.full(len(self), SCORED, dtype=np.uint8)
        by_reason = {"easy pool": KEPT_EASY, "hard pool": KEPT_HARD}
        lookup = np.array([by_reason.get(reason, KEPT) for reason in chosen.reasons], dtype=np.uint8)
        return np.where(chosen.selected, lookup[chosen.reason], DROPPED).astype(np.uint8)

    @property
    def representative(self) -> Int64:
        """int64 [n]: position of the row that stands for this one, -1 where none does."""
        if self.selection is None or self.selection.duplicate_of is None:
            return np.full(len(self), -1, dtype=np.int64)
        leader = self.selection.duplicate_of
        return np.where(leader >= 0, np.searchsorted(self.row_id, leader), -1)


def read_tables(folder: RunFolder) -> Tables:
    """Read what the run folder has; embeddings, clusters and selection may be missing.

    Raises:
        InputError: nothing was scored, or tables of the folder belong to different runs.
    """
    records = read_records(folder)
    table = folder.read_scores()
    chosen = None if records.select is None else folder.read_selection()
    scored = table.scored & ~np.isin(table.row_id, () if chosen is None else chosen.of_reason("no score"))
    row_id = table.row_id[scored]
    selection = None if chosen is None else _ranked(folder, chosen, row_id)
    vectors, vector_at = _vectors(folder, records, row_id)
    labels, names, kind, distance = _groups(folder, records, row_id, selection)
    return Tables(
        name=folder.path.resolve().name,
        row_id=row_id,
        score=table.score[scored] if selection is None else selection.score,
        score_name=table.score_name if records.select is None else records.select.score,
        n_prompt=table.n_prompt[scored],
        n_response=table.n_response[scored],
        truncated=table.status[scored] == "truncated",
        losses=table.losses[scored],
        subnets=table.subnets,
        selection=selection,
        vectors=vectors,
        vector_at=vector_at,
        labels=labels,
        label_names=names,
        label_kind=kind,
        distance=distance,
        unstable=_unstable(folder) if selection is not None else None,
        aim=None if records.select is None else read_aim(folder, records.chosen.get("by"), table.n_response[scored]),
        run=records,
    )


def read_records(folder: RunFolder) -> Records:
    """The records of a scored run.

    Raises:
        InputError: nothing was scored, or what the scores or the selection were made from has changed.
    """
    score, embed, select = folder.facts(ScoreFacts), folder.find(EmbedFacts), folder.record(SelectFacts)
    if select is not None:
        select = folder.require(SelectFacts) if select.facts is not None else None
    rows = folder.facts(RowsFacts)
    return Records(
        source=RowTable.open(folder / "rows").facts,
        rows=rows,
        encode=folder.facts(EncodeFacts),
        score=score,
        embed=None if embed is None else embed.facts,
        select=None if select is None else select.facts,
        chosen={} if select is None else select.config,
        target_seconds=_target_seconds(folder),
    )


def _target_seconds(folder: RunFolder) -> float | None:
    read = folder.find(TargetFacts)
    compared = [record.facts for kind in COMPARED.values() if (record := folder.find(kind)) is not None]
    return None if read is None else sum(facts.seconds for facts in (read.facts, *compared) if facts is not None)


def _ranked(folder: RunFolder, chosen: Selection, row_id: Int64) -> Selection:
    """The ranked rows of a selection, which are those of these ids."""
    selection = chosen.ranked()
    if not np.array_equal(selection.row_id, row_id):
        raise InputError(
            f"{folder / 'selection.parquet'} has {len(selection)} rows and the scores have {len(row_id)}: it was made "
            f"before these scores. Run `instruct-prune select --out {folder.path} --keep ...` again."
        )
    return selection


def _unstable(folder: RunFolder) -> Bool | None:
    table = folder.read_fates("unstable", "rank")
    if "unstable" not in table.column_names:
        return None
    scored = table.column("rank").to_numpy() >= 0
    return np.asarray(table.column("unstable").to_numpy()[scored], dtype=bool)


def _vectors(folder: RunFolder, records: Records, row_id: Int64) -> tuple[Float32 | None, Int64]:
    if records.embed is None:
        return None, np.empty(0, dtype=np.int64)
    embeddings = folder.read_embeddings()
    return embeddings.vectors, positions_of(row_id, embeddings.row_id, str(folder / "embeddings.npy"))


def _groups(
    folder: RunFolder, records: Records, row_id: Int64, selection: Selection | None
) -> tuple[Int32, tuple[str, ...], str, Float32 | None]:
    """Clusters where there are any (named as the strata are, where they are the strata), else the strata, else one."""
    if records.select is not None and records.select.clustered:
        labels, distance = folder.read_clusters(row_id)
        names = tuple(f"cluster {i}" for i in range(int(labels.max(initial=0)) + 1))
        if selection is not None and np.array_equal(selection.stratum, labels):
            names = selection.strata_names
        return labels, names, "cluster", distance
    if selection is not None and len(selection.strata_names) > 1:
        return selection.stratum.astype(np.int32), selection.strata_names, "stratum", None
    return np.zeros(len(row_id), dtype=np.int32), ("all rows",), "", None
