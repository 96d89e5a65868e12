"""Which rows to keep: functions of a Pool, numpy only."""

from instruct_prune.select.budget import largest_remainder, resolve_budget
from instruct_prune.select.pool import build_pool, strata_from_values
from instruct_prune.select.selection import SELECTORS, select_rows

__all__ = ["SELECTORS", "build_pool", "largest_remainder", "resolve_budget", "select_rows", "strata_from_values"]
