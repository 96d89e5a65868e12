"""The folder of a run: the records of its stages, and its tables."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.manifest import Manifest
from instruct_prune.run.records import EmbedFacts
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Clusters, Embeddings, Selection
from instruct_prune.storage import arrow_column, read_parquet, write_parquet


class RunFolder(Manifest):
    """One run's folder: records of its stages in ``manifest.json``, tables beside it."""

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
        columns = {name: arrow.column(name).to_numpy() for name in arrow.column_names}
        subnets = tuple(SubnetSpec(*spec) for spec in meta["subnets"])
        losses = np.stack([columns[f"loss_{s.name}"] for s in subnets], axis=1)
        names = ("row_id", "content_hash", "status", "n_prompt", "n_response", "n_cut")
        fixed = {n: columns[n].astype(str) if columns[n].dtype == object else columns[n] for n in names}
        return ScoreTable(
            **fixed,
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

    def write_clusters(self, clusters: Clusters) -> None:
        import pyarrow as pa

        columns = {"row_id": clusters.row_id, "cluster": clusters.labels, "distance": clusters.distances}
        write_parquet(self / "clusters.parquet", pa.table({name: arrow_column(c) for name, c in columns.items()}))

    def write_selection(self, selection: Selection, more: Mapping[str, Any] | None = None) -> None:
        """Write ``selection.parquet``; ``more`` are further columns, aligned with the selection."""
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
        table = pa.table(columns).replace_schema_metadata({"instruct_prune": json.dumps(facts, default=str)})
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
            codes[name] = (column.indices.to_numpy(), tuple(column.dictionary.to_pylist()))
        duplicate_of = None
        if "duplicate_of" in arrow.column_names:
            duplicate_of = arrow.column("duplicate_of").fill_null(-1).to_numpy()
        return Selection(
            **plain, reason=codes["reason"][0], reasons=codes["reason"][1], stratum=codes["stratum"][0],
            strata_names=codes["stratum"][1], method=facts["method"], seed=facts["seed"], params=facts["params"],
            duplicate_of=duplicate_of,
        )  # fmt: skip


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
