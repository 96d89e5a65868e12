"""The parts of a measurement on disk: the unit of work, of resumption and of storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.storage import write_parquet

if TYPE_CHECKING:
    import pyarrow as pa


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
