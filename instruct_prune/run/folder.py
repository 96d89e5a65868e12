"""The folder of a run: the records of its stages, and its tables."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.records import LAYOUT, RESTARTS, STAGES, EmbedFacts, Facts, Record, read_record
from instruct_prune.score.table import ScoreTable
from instruct_prune.select.data import Clusters, Embeddings, Selection
from instruct_prune.storage import arrow_column, read_parquet, write_json, write_parquet

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
    """One run's folder: records of its stages in ``manifest.json``, tables beside it.

    Raises:
        InputError: the folder holds other files, so it is not a run's, or it was made by a version with another layout.
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
        if self.exists and self.manifest.get("layout") != LAYOUT:
            raise InputError(
                f"{self.path} was made by another version of instruct-prune, whose run folders this one does not read. Its "
                "tables (scores.parquet, pruned.jsonl) are as they were; to select or export anew, score into a new --out."
            )

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def exists(self) -> bool:
        return (self.path / MANIFEST).exists()

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

    def create(self) -> None:
        """Make the folder a run's, so that an interrupted first command can be run again."""
        if not self.exists:
            self._save({})

    # ---- records ----

    def record(self, kind: type[Facts]) -> Record[Facts] | None:
        """A stage's record, finished or not, fresh or stale; None where it never began."""
        entry = self.manifest.get("stages", {}).get(kind.stage)
        if entry is None:
            return None
        try:
            return read_record(kind, entry)
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{self.path / MANIFEST}: the record of the {kind.stage} stage cannot be read ({reason}). Restore the file, "
                "or score into another --out."
            ) from None

    def find(self, kind: type[Facts]) -> Record[Facts] | None:
        """A stage's record where it is finished and fresh, else None."""
        record = self.record(kind)
        return record if record is not None and record.facts is not None and self.stale(record) is None else None

    def stale(self, record: Record[Any]) -> str | None:
        """The name of the stage that was made anew since this record was written, or None where it is fresh."""
        for name, fingerprint in record.inputs.items():
            kind = next(kind for kind in STAGES if kind.stage == name)
            under = self.record(kind)  # type: ignore[type-var]
            if under is None or under.facts is None or under.fingerprint != fingerprint:
                return name
            deeper = self.stale(under)
            if deeper is not None:
                return deeper
        return None

    def require(self, kind: type[Facts]) -> Record[Facts]:
        """A stage's record, finished and fresh.

        Raises:
            InputError: it has not run, is unfinished or is stale; the message names the command to run.
        """
        record = self.record(kind)
        command = f"instruct-prune {kind.command} --out {self.path}"
        if record is None or record.facts is None:
            state = "has not run" if record is None else "is not finished"
            raise InputError(f"{self.path}: the {kind.stage} stage {state}. Run `{command}` first.")
        changed = self.stale(record)
        if changed is not None:
            raise InputError(
                f"{self.path}: the {kind.stage} stage is stale: the {changed} stage has changed since it was made, so its "
                f"results are not used. Run `{command}` again."
            )
        return record

    def facts(self, kind: type[Facts]) -> Facts:
        """The facts of a stage that is finished and fresh, as `require`."""
        facts = self.require(kind).facts
        assert facts is not None
        return facts

    def begin(
        self,
        kind: type[Facts],
        config: Mapping[str, Any],
        inputs: tuple[type[Any], ...] = (),
        restart: bool = False,
        work_kept: bool = False,
    ) -> bool:
        """Claim a stage for options; True when it is already finished under the same ones, from the same inputs.

        Args:
            kind: of the stage.
            config: the options that decide the result.
            inputs: the stages that it is made from, all of them finished.
            restart: take the place of what is there.
            work_kept: an unfinished stage has left parts that are worth keeping; without them it is simply begun anew.

        Raises:
            InputError: the folder holds this stage under other options; the message lists what differs.
        """
        known = self.record(kind)
        wanted = Record[Facts](
            json.loads(json.dumps(config, default=str)), {each.stage: self.require(each).fingerprint for each in inputs}
        )
        if known is not None and not restart:
            if known.fingerprint == wanted.fingerprint:
                return known.facts is not None
            lines = differences(known.config, wanted.config)
            if lines and (known.facts is not None or work_kept):
                raise InputError(
                    f"{self.path} holds the {kind.stage} stage of another run, and nothing of it was overwritten. What differs "
                    f"(there -> asked for):\n"
                    + "\n".join(lines)
                    + f"\nUse another --out or the same options, and both are kept. {self._cost_of_restart(kind)}"
                )
        self._write(kind, wanted)
        return False

    def discard(self, kind: type[Any]) -> None:
        """Forget a stage and all that was made from it; its tables are overwritten when it is made anew."""
        gone = self._made_from(kind)
        self._save({name: entry for name, entry in self.manifest.get("stages", {}).items() if name not in gone})
        for name in gone:
            shutil.rmtree(self / "parts" / name, ignore_errors=True)

    def _made_from(self, kind: type[Any]) -> tuple[str, ...]:
        """Names of the stages that the folder holds of this one, itself first: what stands or falls with it."""
        gone = [kind.stage]
        for name, entry in self.manifest.get("stages", {}).items():  # in the order in which they were made
            if name not in gone and set(entry["inputs"]) & set(gone):
                gone.append(name)
        return tuple(gone)

    def _cost_of_restart(self, kind: type[Any]) -> str:
        word = RESTARTS.get(kind.stage)
        if word is None:
            return ""
        gone = ", ".join(self._made_from(kind))
        return f"--restart {word} makes the stage anew and discards what is here of: {gone}."

    def finish(self, facts: Any) -> None:
        """Mark a stage complete: written last, when all its files are in place."""
        record = self.record(type(facts))
        assert record is not None, "a stage begins before it is finished"
        self._write(type(facts), Record(record.config, record.inputs, facts))

    def _write(self, kind: type[Any], record: Record[Any]) -> None:
        self._save({**self.manifest.get("stages", {}), kind.stage: record.to_json()})

    def _save(self, stages: Mapping[str, Any]) -> None:
        manifest = {"layout": LAYOUT, "stages": stages, "argv": sys.argv, "versions": versions()}
        write_json(self.path / MANIFEST, manifest)

    # ---- the tables of a run ----

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


def versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def open_run(out: str) -> RunFolder:
    """The run folder of this path; it need not exist yet."""
    if not out:
        raise InputError("--out is missing: name the folder of the run.")
    return RunFolder(out)


def existing_run(out: str) -> RunFolder:
    """The run folder of this path, which must exist."""
    folder = open_run(out)
    if not folder.exists:
        raise InputError(f"{out}: there is no run here. Make one with `instruct-prune score --data ... --out ...`.")
    return folder
