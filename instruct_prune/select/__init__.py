"""Which rows to keep: functions of a Pool, numpy only."""

from instruct_prune.select.budget import largest_remainder, resolve_budget
from instruct_prune.select.duplicates import keep_priority
from instruct_prune.select.pool import build_pool, strata_from_values
from instruct_prune.select.selection import CLUSTERED, NEEDS_EMBEDDINGS, SELECTORS, select_rows

__all__ = [
    "CLUSTERED",
    "NEEDS_EMBEDDINGS",
    "SELECTORS",
    "build_pool",
    "keep_priority",
    "largest_remainder",
    "resolve_budget",
    "select_rows",
    "strata_from_values",
]
