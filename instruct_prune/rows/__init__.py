"""The load room: files, globs, Hub datasets and standard input -> a stream of Samples and Rejects."""

from __future__ import annotations

from instruct_prune.rows.formats import FORMATS
from instruct_prune.rows.source import Source, open_data, read_raw

__all__ = ["FORMATS", "Source", "open_data", "read_raw"]
