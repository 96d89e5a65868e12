"""Compare: selections of several runs over the same rows, with random at the same budgets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instruct_prune.arrays import Float32
from instruct_prune.errors import InputError
from instruct_prune.progress import say
from instruct_prune.report.compare import Comparison, score_columns
from instruct_prune.report.compare import compare as put_side_by_side
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, RowsFacts, ScoreFacts, SelectFacts
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
    chosen = next((f for f in folders if f.facts(SelectFacts).clustered), None)
    clusters = None if chosen is None else chosen.read_clusters(pool.row_id)[0]
    return put_side_by_side(pool, kept, clusters=clusters, seed=seed)


def columns_of(folders: Sequence[RunFolder]) -> dict[str, Float32]:
    """Scores, losses and columns of probes of scored runs over the same rows, for `instruct_prune.report.compare.correlate`.

    Raises:
        InputError: a run is not scored, or they did not read the same rows.
    """
    for folder in folders:
        folder.require(ScoreFacts)
    records = [folder.require(RowsFacts) for folder in folders]
    other = next((f for f, record in zip(folders, records, strict=True) if record.config != records[0].config), None)
    if other is not None:
        say(
            f"note: {other.path} and {folders[0].path} were not read from the same files by the same options: their rows are taken to "
            "be the same by their place alone"
        )
    names = _names(folders)
    return score_columns({name: folder.read_scores() for name, folder in zip(names, folders, strict=True)})


def _names(folders: Sequence[RunFolder]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    parts = [folder.path.absolute().parts for folder in folders]
    different, names = len(set(parts)), [""]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == different:
            break
    return names
