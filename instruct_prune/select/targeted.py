"""Selection towards a target: each query in turn takes the row nearest to it."""

from __future__ import annotations

from instruct_prune.select.methods import method
from instruct_prune.select.stratum import BUDGET, PICKED, Codes, Stratum


@method(needs=("target",))
def targeted(stratum: Stratum) -> Codes:
    """The rows nearest to the target's queries, each query in turn; several tasks take turns too.

    Averaging over queries instead would favour rows that are a little near to all of them. Source: LESS (Xia et al.,
    arXiv 2402.04333) for gradients, RDS+ (Ivison et al., arXiv 2503.01807) for round-robin over queries.

    Args:
        stratum: the rows; the pool has a target.
    """
    assert stratum.turns is not None
    codes = stratum.kept_so_far()
    codes[stratum.turns.spend(stratum.rows, stratum.cost, codes == BUDGET, stratum.left)] = PICKED
    return codes
