"""The rows room: files, globs, folders, Hub datasets and rows in memory -> a stream of Rows and Rejects, stored once."""

from __future__ import annotations

from instruct_prune.rows.facts import RowFacts
from instruct_prune.rows.formats import FORMATS, Format
from instruct_prune.rows.source import Source, open_data
from instruct_prune.rows.table import RowTable, write_rows

__all__ = ["FORMATS", "Format", "RowFacts", "RowTable", "Source", "open_data", "write_rows"]
