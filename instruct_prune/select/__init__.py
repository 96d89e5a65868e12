"""Which rows to keep: a pool of scored rows, a budget, a method. numpy only; nothing here needs a model."""

from instruct_prune.select.budget import largest_remainder, resolve_budget
from instruct_prune.select.data import Budget, Pool, Selection
from instruct_prune.select.methods import METHODS, Method, find_method, method
from instruct_prune.select.pool import build_pool, strata_from_values
from instruct_prune.select.selection import select_rows
from instruct_prune.select.stratum import Codes, Stratum

__all__ = [
    "METHODS",
    "Budget",
    "Codes",
    "Method",
    "Pool",
    "Selection",
    "Stratum",
    "build_pool",
    "find_method",
    "largest_remainder",
    "method",
    "resolve_budget",
    "select_rows",
    "strata_from_values",
]
