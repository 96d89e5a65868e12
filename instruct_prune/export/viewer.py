"""All scored rows as one table to look at, in tools that draw maps of data: embedding-atlas, FiftyOne, Argilla, the Hub's viewer."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from instruct_prune.arrays import Float32, positions_of
from instruct_prune.export.job import Exported, ExportJob
from instruct_prune.rows.arrow_tables import KeptTable, write_parquet_table
from instruct_prune.rows.table import RowTable
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts
from instruct_prune.select.data import Selection
from instruct_prune.select.projection import project

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS = 2048


def viewer(job: ExportJob) -> Exported:
    """``viewer.parquet``: all rows that were ranked, kept and dropped: row_id, text, x, y, score, kept, reason, cluster.

    x and y are the map of the report (UMAP where it is installed, else principal components), null without embeddings;
    ``cluster`` names the stratum that the row was selected in.
    """
    folder = RunFolder(job.folder)
    selection = folder.read_selection().ranked()
    xy = _map(folder, selection)
    target = folder / "viewer.parquet"
    rows = write_parquet_table(_table(RowTable.open(folder / "rows"), selection, xy), target)
    note = f"look at it: embedding-atlas {target} --text text --x x --y y"
    if xy is None:
        note = f"x and y are empty, because the rows have no embeddings: instruct-prune embed {folder.path}"
    return Exported("viewer", (target,), rows, notes=(note,))


def _map(folder: RunFolder, selection: Selection) -> Float32 | None:
    """float32 [n, 2]: where each row lies."""
    record = folder.find(EmbedFacts)
    if record is None or record.facts is None:
        return None
    embeddings = folder.read_embeddings()
    at = positions_of(selection.row_id, embeddings.row_id, str(folder / "embeddings.npy"))
    return project(embeddings.vectors, at)[-1].xy


def _table(rows: RowTable, selection: Selection, xy: Float32 | None) -> KeptTable:
    import pyarrow as pa

    def named(codes: np.ndarray, names: tuple[str, ...]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(codes, pa.int32()), list(names)).cast(pa.string())

    kinds = {"row_id": "int64", "text": "string", "x": "float32", "y": "float32", "score": "float32", "kept": "bool"}
    kinds |= {"reason": "string", "cluster": "string"}
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in kinds.items()])

    def chunks() -> Iterator[pa.Table]:
        samples = rows.take(selection.row_id)
        for start in range(0, len(selection), BATCH_ROWS):
            part = slice(start, start + BATCH_ROWS)
            ids = selection.row_id[part]
            x, y = (pa.nulls(len(ids), pa.float32()) if xy is None else pa.array(xy[part, i]) for i in (0, 1))
            columns = {
                "row_id": ids,
                "text": [row.text for row in islice(samples, len(ids))],
                "x": x,
                "y": y,
                "score": selection.score[part],
                "kept": selection.selected[part],
                "reason": named(selection.reason[part], selection.reasons),
                "cluster": named(selection.stratum[part], selection.strata_names),
            }
            yield pa.table(columns, schema=schema)

    return KeptTable(schema, chunks)
