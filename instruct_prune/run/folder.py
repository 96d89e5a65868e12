"""The files of a run: atomic writes, the manifest, what a finished stage looks like, and the parts of the scorer.

Every file is written under a temporary name, flushed to disk and renamed, so a reader (another process, a later
resume) sees a whole file or none.
"""

from __future__ import annotations

import contextlib
import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Clusters, Embeddings, Selection
from instruct_prune.storage import write_json, write_parquet

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "manifest.json"
PACKAGES = (
    "instruct-prune",
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "sentence-transformers",
    "scikit-learn",
    "numpy",
    "pyarrow",
)


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Lines "key: old -> new" for every leaf in which two nested mappings differ."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines: list[str] = []
        for key in sorted({*old, *new}):
            lines += differences(old.get(key), new.get(key), f"{prefix}{key}.")
        return lines
    if json.dumps(old, default=str) == json.dumps(new, default=str):
        return []
    return [f"  {prefix.rstrip('.')}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 160 else text[:157] + "..."


class RunFolder:
    """One run's folder and its manifest.

    Raises:
        InputError: the folder holds other files, so it is not a run's.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_file():
            raise InputError(f"--out {self.path} is a file. Name a folder.")
        if self.path.is_dir() and not (self.path / MANIFEST).exists() and any(self.path.iterdir()):
            raise InputError(
                f"--out {self.path} exists, is not empty and is not a run of instruct-prune (it has no {MANIFEST}). "
                "Nothing was written. Name a new or empty folder."
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def manifest(self) -> dict[str, Any]:
        path = self.path / MANIFEST
        if not path.exists():
            return {}
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is not valid JSON ({error}). Restore it, or use another --out.") from error
        if not isinstance(value, dict):
            raise InputError(f"{path} is not a manifest of instruct-prune. Use another --out.")
        return value

    def update(self, **sections: Any) -> None:
        """Replace top-level sections of the manifest, atomically."""
        manifest = self.manifest | sections
        manifest |= {"argv": sys.argv, "versions": versions()}
        write_json(self.path / MANIFEST, manifest)

    def stage(self, name: str) -> dict[str, Any]:
        found = self.manifest.get("stages", {}).get(name, {})
        return found if isinstance(found, dict) else {}

    def begin(self, stage: str, config: Mapping[str, Any], restart: bool = False) -> bool:
        """Claim a stage for a configuration; True when it is already finished under the same one.

        Raises:
            InputError: the folder holds this stage of another run; the message lists what differs.
        """
        known = self.stage(stage)
        wanted = json.loads(json.dumps(config, default=str))
        if known and known.get("config") != wanted and not restart:
            lines = "\n".join(differences(known.get("config"), wanted))
            raise InputError(
                f"{self.path} holds the {stage} stage of another run, and nothing of it was overwritten. What differs "
                f"(there -> asked for):\n{lines}\nUse another --out, the same options, or --restart to discard it."
            )
        if known.get("config") == wanted and known.get("complete") and not restart:
            return True
        if not known or restart or known.get("config") != wanted:
            self._mark(stage, {"config": wanted, "complete": False})
        return False

    def finish(self, stage: str, **facts: Any) -> None:
        """Mark a stage complete: written last, when all its files are in place."""
        self._mark(stage, {**self.stage(stage), "complete": True, **facts})

    def forget(self, *stages: str) -> None:
        """Drop stages that depended on one that has changed."""
        kept = {name: value for name, value in self.manifest.get("stages", {}).items() if name not in stages}
        self.update(stages=kept)

    def _mark(self, stage: str, value: Mapping[str, Any]) -> None:
        self.update(stages={**self.manifest.get("stages", {}), stage: value})

    def require(self, stage: str, command: str) -> dict[str, Any]:
        """The finished stage, or an InputError that names the command to run first."""
        found = self.stage(stage)
        if not found.get("complete"):
            state = "is not finished" if found else "has not run"
            raise InputError(f"{self.path}: the {stage} stage {state}. Run `instruct-prune {command}` first.")
        return found

    # ---- the tables of a run ----

    def write_scores(self, table: ScoreTable) -> None:
        import pyarrow as pa

        meta = {
            "subnets": [[s.kind, s.value, s.seed, s.scope] for s in table.subnets],
            "score_name": table.score_name,
            "backbone": table.backbone,
        }
        arrow = pa.table({name: pa.array(column) for name, column in table.columns().items()})
        write_parquet(self / "scores.parquet", arrow.replace_schema_metadata({"instruct_prune": json.dumps(meta)}))

    def read_scores(self) -> ScoreTable:
        """Read ``scores.parquet``.

        Raises:
            InputError: it is missing, damaged, or was written by something else.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self / "scores.parquet"
        if not path.exists():
            raise InputError(f"{path} does not exist. Run `instruct-prune score --data ... --out {self.path}` first.")
        try:
            arrow = pq.read_table(path, page_checksum_verification=True)
            meta = json.loads((arrow.schema.metadata or {})[b"instruct_prune"])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} cannot be read as a score table ({error}). Score again with --restart."
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
        )

    def read_embeddings(self) -> Embeddings:
        """Memory-map ``embeddings.npy``; its rows are those of ``embeddings.json``, in input order."""
        facts = self.require("embed", f"embed --out {self.path}")
        vectors = np.load(self / "embeddings.npy", mmap_mode="r", allow_pickle=False)
        row_id = np.load(self / "embeddings_rows.npy", allow_pickle=False)
        return Embeddings(row_id, vectors, str(facts["config"].get("embedder")))

    def write_clusters(self, clusters: Clusters) -> None:
        import pyarrow as pa

        columns = {"row_id": clusters.row_id, "cluster": clusters.labels, "distance": clusters.distances}
        write_parquet(self / "clusters.parquet", pa.table({name: pa.array(c) for name, c in columns.items()}))

    def write_selection(self, selection: Selection, more: Mapping[str, Any] | None = None) -> None:
        """Write ``selection.parquet``; ``more`` are further columns, aligned with the selection."""
        import pyarrow as pa

        strata = pa.DictionaryArray.from_arrays(pa.array(selection.stratum), pa.array(list(selection.strata_names)))
        reasons = pa.DictionaryArray.from_arrays(pa.array(selection.reason), pa.array(list(selection.reasons)))
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
        import pyarrow.parquet as pq

        path = self / "selection.parquet"
        if not path.exists():
            raise InputError(f"{path} does not exist. Run `instruct-prune select --out {self.path} --keep ...` first.")
        arrow = pq.read_table(path, page_checksum_verification=True).combine_chunks()
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


class PartStore:
    """One Parquet part for each (pass, chunk) of the scorer: the unit of resumption.

    A part that is torn (no footer, wrong page checksum) or belongs to another configuration counts as missing.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def path(self, pass_name: str, chunk: int) -> Path:
        return self.folder / pass_name / f"{chunk:06d}.parquet"

    def write(self, pass_name: str, chunk: int, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        table = pa.table({name: pa.array(c) for name, c in columns.items()})
        write_parquet(self.path(pass_name, chunk), table.replace_schema_metadata({"fingerprint": self.fingerprint}))

    def read(self, pass_name: str, chunk: int) -> pa.Table | None:
        """The part, or None when it is missing, torn or foreign."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.path(pass_name, chunk), page_checksum_verification=True)
        except (FileNotFoundError, pa.ArrowException, OSError):
            return None  # torn or absent: the chunk is done again
        return table if (table.schema.metadata or {}).get(b"fingerprint") == self.fingerprint.encode() else None

    def missing(self, pass_name: str, n_chunks: int) -> list[int]:
        return [chunk for chunk in range(n_chunks) if self.read(pass_name, chunk) is None]


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
