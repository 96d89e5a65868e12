"""What a run folder says about its stages: one record each, in ``manifest.json``."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from instruct_prune.errors import InputError
from instruct_prune.progress import say
from instruct_prune.run.records import COSTLY, LAYOUT, RESTARTS, STAGES, Facts, Record, RowsFacts, read_record
from instruct_prune.storage import UNFINISHED, sha256_of, what_changed, write_json

MANIFEST = "manifest.json"
LOCK, SOFT_LOCK, HOLDER = ".lock", ".lock-file", ".holder.json"
"""Who may write (`run.lock`)."""
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


class Manifest:
    """The records of the stages in a run's folder.

    Args:
        path: the folder; it need not exist.

    Raises:
        InputError: the folder holds other files, so it is not a run's, or it was made by a version with another layout.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.locked = False
        if self.path.is_file():
            raise InputError(f"--out {self.path} is a file. Name a folder.")
        if self.path.is_dir() and not (self.path / MANIFEST).exists() and not all(map(_passes, self.path.iterdir())):
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
            under = self.record(kind)
            if under is None or under.facts is None or under.fingerprint != fingerprint:
                return name
            deeper = self.stale(under)
            if deeper is not None:
                return deeper
        return None

    def require(self, kind: type[Facts]) -> Record[Facts]:
        """A stage's record, finished and fresh, its files as it left them.

        Raises:
            InputError: it has not run, is unfinished or stale, or a file was changed; the message names the command to run.
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
        self._check_files(kind, record)
        return record

    def _check_files(self, kind: type[Facts], record: Record[Facts]) -> None:
        changed = self.changed_file(record)
        if changed is None:
            return
        restart = f" --restart {RESTARTS[kind.stage]}" if kind.stage in COSTLY else ""
        raise InputError(
            f"{changed}: it is not as the {kind.stage} stage left it, so it is not used. Put the file "
            f"back, or have it made anew: `instruct-prune {kind.command} --out {self.path}{restart}`, with the options of then."
        )

    def changed_file(self, record: Record[Any]) -> str | None:
        """The first file that is no more as the stage left it, and what is wrong with it; None where all are."""
        found = (what_changed(self / name, *stamp) for name, stamp in record.files.items())
        return next((words for words in found if words is not None), None)

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
        replace: bool = False,
        work_kept: bool = False,
    ) -> bool:
        """Claim a stage for options; True when it is already finished under the same ones, from the same inputs.

        Args:
            kind: of the stage.
            config: the options that decide the result.
            inputs: the stages that it is made from, all of them finished.
            restart: discard the stage and all that was made from it; but an unfinished one of the same options is gone on
                with, so that the same command, run again after an interruption, keeps what was done.
            replace: take the place of what is there, for stages that cost nothing to make again.
            work_kept: an unfinished stage has left parts that are worth keeping; without them it is simply begun anew.

        Raises:
            InputError: the folder holds this stage under other options; the message lists what differs.
        """
        known = self.record(kind)
        wanted = Record[Facts](
            json.loads(json.dumps(config, default=str)), {each.stage: self.require(each).fingerprint for each in inputs}
        )
        if known is not None and not replace:
            same = known.fingerprint == wanted.fingerprint
            if restart and not (same and known.facts is None):
                self._discard(kind)
            elif same and known.facts is not None:
                if kind.stage in COSTLY:
                    self._check_files(kind, known)
                changed = self.changed_file(known)
                if changed is None:
                    return True
                say(f"{changed}: the {kind.stage} stage is done again")
            elif same:
                return False
            else:
                lines = differences(known.config, wanted.config)
                if lines and (known.facts is not None or work_kept):
                    raise InputError(
                        f"{self.path} holds the {kind.stage} stage of another run, and nothing of it was overwritten. What "
                        "differs (there -> asked for):\n" + "\n".join(lines) + "\n" + self._ways_out(kind)
                    )
        self._write(kind, wanted)
        return False

    def _discard(self, kind: type[Any]) -> None:
        """Forget a stage and the costly ones that were made from it; its tables are overwritten when it is made anew.

        A selection and an export stay as they are, and are stale where the new results are others.
        """
        gone = [name for name in self._made_from(kind) if name in RESTARTS]
        self._save({name: entry for name, entry in self.manifest.get("stages", {}).items() if name not in gone})
        for name in gone:
            shutil.rmtree(self / "parts" / name, ignore_errors=True)

    def _made_from(self, kind: type[Any]) -> list[str]:
        """Names of the stages that stand or fall with this one, itself first."""
        found = [kind.stage]
        for each in STAGES:
            entry = self.manifest.get("stages", {}).get(each.stage, {})
            if each is not kind and set(entry.get("inputs", ())) & set(found):
                found.append(each.stage)
        return found

    def _ways_out(self, kind: type[Any]) -> str:
        keep = "Use the same options or another --out, and nothing is lost"
        gone = ", ".join(self._made_from(kind))
        if kind is RowsFacts:
            keep += "; or --update, which reads the data again and measures the rows that are new"
        return f"{keep}; or --restart {RESTARTS[kind.stage]}, which discards what the folder holds of: {gone}."

    def finish(self, facts: Any, *files: str) -> None:
        """Mark a stage complete: written last, when all its files are in place.

        Args:
            facts: of the stage.
            files: what later stages read of it: paths and patterns, relative to the folder.
        """
        record = self.record(type(facts))
        assert record is not None, "a stage begins before it is finished"
        paths = sorted({path for pattern in files for path in self.path.glob(pattern) if path.is_file()})
        stats = {path: path.stat() for path in paths}
        stamps = {
            path.relative_to(self.path).as_posix(): (stat.st_size, stat.st_mtime_ns, sha256_of(path))
            for path, stat in stats.items()
        }
        self._write(type(facts), Record(record.config, record.inputs, facts, stamps))

    def _write(self, kind: type[Any], record: Record[Any]) -> None:
        self._save({**self.manifest.get("stages", {}), kind.stage: record.to_json()})

    def _save(self, stages: Mapping[str, Any]) -> None:
        manifest = {"layout": LAYOUT, "stages": stages, "argv": sys.argv, "versions": versions()}
        write_json(self.path / MANIFEST, manifest)


def _passes(path: Path) -> bool:
    """Whether a folder that holds this is as good as empty: a command was stopped before it had made the manifest."""
    return path.name in (LOCK, SOFT_LOCK, HOLDER) or UNFINISHED.fullmatch(path.name) is not None


def versions() -> dict[str, str]:
    """Of Python and of the packages that take part in the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
