"""The folder of a run: the records of its stages, and its tables."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32, Int32, Int64, positions_of
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.manifest import Manifest
from instruct_prune.run.records import EmbedFacts, EncodeFacts, ScoreFacts
from instruct_prune.score.table import PLAIN, ScoreTable
from instruct_prune.select.data import Clusters, Embeddings, Selection
from instruct_prune.storage import arrow_column, read_parquet, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

    from instruct_prune.models.model import Items

ASIDE = "set_aside.parquet"
"""The rows that ``--dedup-first`` took out before scoring."""
TEXTS = 1 << 16
"""Texts of a table that are Python objects at a time."""


class RunFolder(Manifest):
    """One run's folder: records of its stages in ``manifest.json``, tables beside it.

    Attributes:
        loaded: the model that scored here, where it was made in Python and has no name to find it by: (model, tokenizer).
    """

    loaded: tuple[Any, Any] | None = None

    def scored_by(self) -> tuple[str, str | None]:
        """Name and Hub revision of the model that scored the run; of the one that encoded it before it is scored.

        They are not the same where the run was scored anew by a model that has the same tokenizer.
        """
        scored, encoded = self.find(ScoreFacts), self.facts(EncodeFacts)
        if scored is None or scored.facts is None:
            return encoded.model, encoded.revision
        return scored.facts.model, scored.config.get("model", {}).get("revision")

    def write_scores(self, table: ScoreTable) -> None:
        import pyarrow as pa

        meta = {
            "subnets": [dataclasses.astuple(spec) for spec in table.subnets],
            "more": list(table.more),
            "score_name": table.score_name,
            "backbone": table.backbone,
        }
        arrow = pa.table({name: arrow_column(column) for name, column in table.columns().items()})
        write_parquet(self / "scores.parquet", arrow.replace_schema_metadata({"instruct_prune": json.dumps(meta)}))

    def read_scores(self) -> ScoreTable:
        """Read ``scores.parquet``.

        Raises:
            InputError: it is missing, damaged, or was written by something else.
        """
        import pyarrow as pa

        path = self / "scores.parquet"
        if not path.exists():
            raise InputError(f"{path} does not exist. Run `instruct-prune score --data ... --out {self.path}` first.")
        try:
            arrow = read_parquet(path)
            meta = json.loads((arrow.schema.metadata or {})[b"instruct_prune"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a score table ({error}). Score again with --restart score."
            ) from error
        texts = ("content_hash", "status")
        columns = {name: arrow.column(name).to_numpy() for name in arrow.column_names if name not in texts}
        columns |= {name: _text(arrow.column(name)) for name in texts}
        subnets = tuple(SubnetSpec(*spec) for spec in meta["subnets"])
        losses = np.stack([columns[f"loss_{s.name}"] for s in subnets], axis=1)
        return ScoreTable(
            **{name: columns[name] for name in PLAIN},
            losses=losses,
            subnets=subnets,
            score=columns["score"],
            score_name=meta["score_name"],
            backbone=meta["backbone"],
            more={name: columns[name] for name in meta["more"]},
        )

    def read_embeddings(self) -> Embeddings:
        """Memory-map ``embeddings.npy``; its rows are those of ``embeddings_rows.npy``, in input order."""
        facts = self.facts(EmbedFacts)
        vectors = np.load(self / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        row_id = np.load(self / "embeddings_rows.npy", allow_pickle=False)
        return Embeddings(row_id, vectors, facts.embedder)

    def read_aside(self) -> pa.Table | None:
        """The rows that ``--dedup-first`` set aside before a finished run was scored; None where it set none aside."""
        return None if self.facts(ScoreFacts).aside is None else read_parquet(self / ASIDE)

    def write_clusters(self, clusters: Clusters) -> None:
        import pyarrow as pa

        columns = {"row_id": clusters.row_id, "cluster": clusters.labels, "distance": clusters.distances}
        write_parquet(self / "clusters.parquet", pa.table({name: arrow_column(c) for name, c in columns.items()}))

    def read_clusters(self, row_id: Int64) -> tuple[Int32, Float32]:
        """The cluster of each of these rows (int32 [n]), and the distance to its centre (float32 [n])."""
        table = read_parquet(self / "clusters.parquet")
        at = positions_of(row_id, table.column("row_id").to_numpy(), str(self / "clusters.parquet"))
        label, distance = (table.column(name).to_numpy()[at] for name in ("cluster", "distance"))
        return label.astype(np.int32), distance

    def write_selection(
        self, selection: Selection, more: Mapping[str, Any] | None = None, aside: pa.Table | None = None
    ) -> None:
        """Write ``selection.parquet``; ``more`` are further columns, aligned with the selection.

        Rows that were set aside before scoring, and those that cannot be ranked, stand there as dropped: their reason, no score,
        no stratum, rank -1.
        """
        import pyarrow as pa

        strata = pa.DictionaryArray.from_arrays(arrow_column(selection.stratum), list(selection.strata_names))
        reasons = pa.DictionaryArray.from_arrays(arrow_column(selection.reason), list(selection.reasons))
        columns = {"row_id": selection.row_id, "selected": selection.selected, "reason": reasons, "stratum": strata}
        columns |= {"score": selection.score, "rank": selection.rank}
        if selection.duplicate_of is not None:
            absent = selection.duplicate_of < 0
            columns["duplicate_of"] = pa.array(selection.duplicate_of, mask=absent)
        columns |= dict(more or {})
        facts = {"method": selection.method, "seed": selection.seed, "params": dict(selection.params)}
        table = pa.table(columns)
        if aside is not None and len(aside):
            both = [table, _dropped(aside, selection.reasons)]
            table = pa.concat_tables(both, promote_options="default").unify_dictionaries().sort_by("row_id")
        table = table.replace_schema_metadata({"instruct_prune": json.dumps(facts, default=str)})
        write_parquet(self / "selection.parquet", table)

    def read_selection(self) -> Selection:
        path = self / "selection.parquet"
        if not path.exists():
            raise InputError(f"{path} does not exist. Run `instruct-prune select --out {self.path} --keep ...` first.")
        arrow = read_parquet(path).combine_chunks()
        facts = json.loads((arrow.schema.metadata or {})[b"instruct_prune"])
        plain = {n: arrow.column(n).to_numpy() for n in ("row_id", "selected", "score", "rank")}
        codes = {}
        for name in ("reason", "stratum"):
            column = arrow.column(name).combine_chunks()
            indices = column.indices.fill_null(-1).to_numpy()  # rows that were set aside have no stratum
            codes[name] = (indices, tuple(column.dictionary.to_pylist()))
        duplicate_of = None
        if "duplicate_of" in arrow.column_names:
            duplicate_of = arrow.column("duplicate_of").fill_null(-1).to_numpy()
        return Selection(
            **plain, reason=codes["reason"][0], reasons=codes["reason"][1], stratum=codes["stratum"][0],
            strata_names=codes["stratum"][1], method=facts["method"], seed=facts["seed"], params=facts["params"],
            duplicate_of=duplicate_of,
        )  # fmt: skip

    def read_fates(self, *columns: str) -> pa.Table:
        """Columns of ``selection.parquet``, those of them that it has; rows that were set aside before scoring are in it too."""
        return read_parquet(self / "selection.parquet", columns)


def left_of(items: Items, aside: pa.Table | None) -> Items:
    """The items of a run; those of rows that were set aside can be scored no more."""
    if aside is None or not len(aside):
        return items
    return items.without(positions_of(aside.column("row_id").to_numpy(), items.row_id, ASIDE))


def _text(column: pa.ChunkedArray) -> NDArray[np.str_]:
    """str [n], made piece by piece: Python objects for all the rows at once would take twice the memory."""
    import pyarrow.compute as pc

    width = max(1, pc.max(pc.binary_length(column)).as_py() or 1)
    found: NDArray[np.str_] = np.empty(len(column), dtype=f"<U{width}")
    for some in blocks(len(column), TEXTS):
        found[some] = column.slice(some.start, some.stop - some.start).to_pylist()
    return found


def _dropped(aside: pa.Table, reasons: tuple[str, ...]) -> pa.Table:
    """Rows that were set aside, with the columns of a selection."""
    import pyarrow as pa

    n = len(aside)
    codes = np.asarray([reasons.index(reason) for reason in aside.column("reason").to_pylist()], dtype=np.int8)
    columns = {name: aside.column(name) for name in aside.column_names}
    columns |= {
        "reason": pa.DictionaryArray.from_arrays(arrow_column(codes), list(reasons)),
        "selected": arrow_column(np.zeros(n, dtype=bool)),
        "score": arrow_column(np.full(n, np.nan, dtype=np.float32)),
        "rank": arrow_column(np.full(n, -1, dtype=np.int32)),
    }
    return pa.table(columns)


def open_run(out: str) -> RunFolder:
    """The run folder of this path; it need not exist yet."""
    if not out:
        raise InputError("--out is missing: name the folder of the run.")
    return RunFolder(out)


def new_run(out: str) -> RunFolder:
    """The run folder of this path, which will be written to.

    Raises:
        InputError: it cannot be, as far as can be seen without making it.
    """
    folder = open_run(out)
    there = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "it is a file" if there.is_file() else "no files can be written there: read-only, or another user's"
        what = "it cannot be used" if there == folder.path.absolute() else f"the folder cannot be made in {there}"
        raise InputError(f"--out {out}: {what} ({why}).")
    return folder


def existing_run(out: str) -> RunFolder:
    """The run folder of this path, which must exist."""
    folder = open_run(out)
    if not folder.exists:
        raise InputError(f"{out}: there is no run here. Make one with `instruct-prune score --data ... --out ...`.")
    return folder
