"""Select: an exact budget from a scored run; no model is needed, so it may be done many times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune.arrays import Int64
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.run.asked import Asked, check_selection
from instruct_prune.run.chosen import seed_stability, taken_by, token_counts
from instruct_prune.run.contaminated import sha256_of_file
from instruct_prune.run.drawing import prepare
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.lock import writes
from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts, SetAside
from instruct_prune.run.target_facts import COMPARED, TargetFacts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Clusters, Selection
from instruct_prune.select.stratum import NO_SCORE, REASONS
from instruct_prune.storage import row_ids_hash

if TYPE_CHECKING:
    import pyarrow as pa


@writes
def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget and write ``selection.parquet`` (and ``clusters.parquet``).

    Raises:
        InputError: an option is wrong, or a stage that it needs has not run or is stale.
    """
    if config.method is None and folder.record(TargetFacts) is not None:
        config = dataclasses.replace(config, method="targeted")
    check_selection(config)
    began = time.monotonic()
    drawing, aside = prepare(folder, config, folder.read_scores()), folder.read_aside()
    if aside is not None:
        _refuse_aside(np.intersect1d(drawing.facts.must_keep, aside.column("row_id").to_numpy()))
    asked, table = drawing.asked, drawing.table
    selection = drawing.draw(table)
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    more: dict[str, Any] = dict(seed_stability(drawing.scored, table, drawing.draw, drawing.rescore) or {})
    more |= {} if drawing.target is None or selection.taken is None else taken_by(drawing.target, selection.taken)
    more |= {} if drawing.contaminated is None else drawing.contaminated.columns()
    more_rows = _with_unranked(aside, drawing.unranked)
    _write(folder, asked, table, selection, drawing.clusters, more, more_rows, began)
    return selection if more_rows is None else folder.read_selection()


def _with_unranked(aside: pa.Table | None, row_id: Int64) -> pa.Table | None:
    """The rows of a selection that are in no pool: those that were set aside, and those that cannot be ranked."""
    import pyarrow as pa

    if not len(row_id):
        return aside
    unranked = pa.table({"row_id": row_id, "reason": [REASONS[NO_SCORE]] * len(row_id)})
    return unranked if aside is None else pa.concat_tables([aside, unranked], promote_options="permissive")


def _write(
    folder: RunFolder,
    asked: Asked,
    table: ScoreTable,
    selection: Selection,
    clusters: Clusters | None,
    more: Mapping[str, Any],
    others: pa.Table | None,
    began: float,
) -> None:
    """The tables of a selection and its record; what an earlier selection left goes."""
    inputs = (ScoreFacts, *((EmbedFacts,) if asked.clustered or asked.embeddings else ()))
    inputs = (*inputs, *(() if asked.by is None else (COMPARED[asked.by],)))
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(asked.config).items()}
    options["decontaminate"] = [[path, sha256_of_file(path)] for path in asked.config.decontaminate]
    folder.begin(SelectFacts, options, inputs, replace=True)
    gone = folder.facts(ScoreFacts).aside or SetAside(0, 0, 0.0)
    folder.write_selection(selection, more, others)
    if clusters is None:
        (folder / "clusters.parquet").unlink(missing_ok=True)
    else:
        folder.write_clusters(clusters)
    kept, n_others = int(selection.selected.sum()), 0 if others is None else len(others)
    folder.finish(
        SelectFacts(
            scored=len(selection) + n_others - gone.rows,
            kept=kept,
            dropped=len(selection) - kept + n_others,
            tokens=token_counts(table, selection),
            score=table.score_name,
            duplicates=_count(selection, "duplicate") + gone.duplicates,
            contaminated=_count(selection, "contaminated") + gone.contaminated,
            unstable=int(more["unstable"].sum()) if "unstable" in more else None,
            selected_hash=row_ids_hash(selection.kept),
            params=dict(selection.params),
            clustered=clusters is not None,
            strata=len(selection.strata_names),
            seconds=round(time.monotonic() - began, 3),
        ),
        "selection.parquet",
        "clusters.parquet",
    )


def _refuse_aside(row_id: Int64) -> None:
    """Refuse rows that must be kept and were not scored."""
    if len(row_id):
        raise InputError(
            f"row {row_id[0]} (and {len(row_id) - 1} more) must be kept, and was set aside before scoring, so it has no score. Take it "
            "off the list of rows to keep, or score with --must-keep beside --dedup-first (--restart score)."
        )


def _count(selection: Selection, reason: str) -> int:
    return int((selection.reason == selection.reasons.index(reason)).sum())


def selection_of(folder: RunFolder) -> Selection:
    """The run's selection.

    Raises:
        InputError: there is none, or it is stale.
    """
    facts, selection = folder.facts(SelectFacts), folder.read_selection()
    if facts.selected_hash != row_ids_hash(selection.kept):
        raise InputError(
            f"{folder / 'selection.parquet'} is not the selection that the manifest tells of (interrupted, or edited?). Run "
            f"`instruct-prune select --keep ... --out {folder.path}` again."
        )
    return selection
