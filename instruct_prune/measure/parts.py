"""The parts of a measurement on disk: the unit of work, of resumption and of storage."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instruct_prune.storage import write_parquet

if TYPE_CHECKING:
    import pyarrow as pa


class PartStore:
    """One Parquet part for each (pass, chunk) of the scorer: the unit of resumption.

    A part that is torn (no footer, wrong page checksum), belongs to another configuration or is that of another chunk counts as
    missing.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self.folder = folder
        self.fingerprint = fingerprint

    def path(self, pass_name: str, chunk: int) -> Path:
        return self.folder / pass_name / f"{chunk:06d}.parquet"

    def write(self, pass_name: str, chunk: int, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa

        table = pa.table({name: pa.array(c) for name, c in columns.items()})
        write_parquet(self.path(pass_name, chunk), table.replace_schema_metadata(self._stamp(pass_name, chunk, table)))

    def read(self, pass_name: str, chunk: int) -> pa.Table | None:
        """The part, or None when it is missing, torn or foreign."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            table = pq.read_table(self.path(pass_name, chunk), page_checksum_verification=True)
            stamp = self._stamp(pass_name, chunk, table)
        except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError):
            return None  # absent, or torn in one of many ways: the chunk is done again
        return table if table.schema.metadata == stamp else None

    def _stamp(self, pass_name: str, chunk: int, table: pa.Table) -> dict[bytes, bytes]:
        """Whose part it is, and what is in it: Parquet has checksums of its pages, and none of what describes them."""
        content = hashlib.sha256()
        for name, column in zip(table.column_names, table.columns, strict=True):
            flat = column.combine_chunks()
            flat = flat.flatten() if flat.type.num_fields else flat
            values = flat.to_numpy(zero_copy_only=False)
            content.update(f"{name} {flat.type} {flat.null_count} ".encode())
            content.update(json.dumps(values.tolist()).encode() if values.dtype == object else values.tobytes())
        return {b"part": f"{self.fingerprint} {pass_name} {chunk}".encode(), b"content": content.hexdigest().encode()}

    def missing(self, pass_name: str, n_chunks: int) -> list[int]:
        return [chunk for chunk in range(n_chunks) if self.read(pass_name, chunk) is None]
