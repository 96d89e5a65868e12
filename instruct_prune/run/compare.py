"""Compare: selections of several runs over the same rows, with random at the same budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instruct_prune.arrays import Int32, Int64
from instruct_prune.errors import InputError
from instruct_prune.report.compare import Comparison
from instruct_prune.report.compare import compare as put_side_by_side
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts
from instruct_prune.run.select import selection_of
from instruct_prune.select import build_pool
from instruct_prune.select.budget import check_seed


def compare(folders: Sequence[RunFolder], seed: int = 0) -> Comparison:
    """Compare the runs' selections; score, clusters and embeddings are those of the first run that has them.

    Raises:
        InputError: a run has no selection, or the runs are not over the same rows.
    """
    check_seed(seed)
    for folder in folders:
        folder.require(ScoreFacts)
    tables = [folder.read_scores() for folder in folders]
    first = tables[0]
    for folder, table in zip(folders[1:], tables[1:], strict=True):
        same = np.array_equal(table.row_id, first.row_id)
        both = table.scored & first.scored if same else slice(0)
        if not same or not np.array_equal(table.content_hash[both], first.content_hash[both]):
            raise InputError(
                f"{folder.path} and {folders[0].path} are not over the same rows (their content hashes differ), so their "
                "selections cannot be compared. Compare runs with the same --data, --limit, template and tokenizer."
            )
    with_vectors = next((f for f in folders if f.find(EmbedFacts) is not None), None)
    pool = build_pool(tables[0], embeddings=with_vectors.read_embeddings() if with_vectors else None)
    names = _names(folders)
    kept = {name: selection_of(folder).kept for name, folder in zip(names, folders, strict=True)}
    return put_side_by_side(pool, kept, clusters=_cluster_labels(folders, pool.row_id), seed=seed)


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """Folder names, or whole paths where names repeat."""
    short = [folder.path.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder.path) for folder in folders]


def _cluster_labels(folders: Sequence[RunFolder], row_id: Int64) -> Int32 | None:
    chosen = next((f for f in folders if f.facts(SelectFacts).clustered), None)
    return None if chosen is None else chosen.read_clusters(row_id)[0]
