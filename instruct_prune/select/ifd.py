"""IFD: rows whose response is hard even with the prompt at hand, and yet easier than without it."""

from __future__ import annotations

import numpy as np

from instruct_prune.errors import InputError
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("losses:dense", "losses:alone"))
def ifd(stratum: Stratum) -> Codes:
    """The highest instruction-following difficulty below 1; rows at or above 1 (the prompt does not help) come last.

    IFD is the perplexity of the response given the prompt over its perplexity alone. Source: Li et al., "From Quantity
    to Quality" (Cherry_LLM, NAACL 2024), and "Superfiltering" (ACL 2024), which drop the rows above 1.

    Raises:
        InputError: a loss is not a number.
    """
    losses = stratum.pool.losses
    log_ifd = losses["dense"][stratum.rows].astype(np.float64) - losses["alone"][stratum.rows]
    if not np.isfinite(log_ifd).all():
        row = stratum.pool.row_id[stratum.rows[np.flatnonzero(~np.isfinite(log_ifd))[0]]]
        raise InputError(f"row {row} has no IFD: one of its losses, dense or alone, is not a number.")
    # exp keeps the order, so the log is enough; below 0 the highest first, then from 0 upwards.
    return stratum.take(np.lexsort((np.where(log_ifd < 0, -log_ifd, log_ifd), log_ifd >= 0)))
