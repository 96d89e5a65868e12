"""Selection by one ranking: random, easiest, hardest, easiest of each cluster."""

from __future__ import annotations

import numpy as np

from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=())
def random(stratum: Stratum) -> Codes:
    """Rows at random: the reference that every other method has to beat."""
    return stratum.take(stratum.rng.permutation(len(stratum)))


@method(needs=("score",))
def easiest(stratum: Stratum) -> Codes:
    """The lowest scores."""
    return stratum.take(np.arange(len(stratum)))


@method(needs=("score",), strata="clusters")
def easy_diverse(stratum: Stratum) -> Codes:
    """The lowest scores of each cluster: the rule of the paper's first version (arXiv 2402.05356 v1)."""
    return easiest(stratum)


@method(needs=("score",))
def hardest(stratum: Stratum) -> Codes:
    """The highest scores (ties: the lower row id is passed over first)."""
    return stratum.take(np.arange(len(stratum))[::-1])


@method(needs=())
def longest(stratum: Stratum) -> Codes:
    """The longest responses, in tokens (ties: the harder row).

    Source: Zhao et al., "Long Is More for Alignment" (arXiv 2402.04833).
    """
    length = stratum.pool.n_response[stratum.rows].astype(np.int64)
    return stratum.take(np.argsort(length, kind="stable")[::-1])


@method(needs=("score",))
def perplexity_middle(stratum: Stratum) -> Codes:
    """The scores nearest to the median, on both sides of it (ties: the easier row).

    The order is that of ranks, so it is the same for a loss and for its perplexity. Source: Marion et al., "When Less
    is More: Investigating Data Pruning for Pretraining LLMs at Scale" (arXiv 2309.04564), "middle" subsets.
    """
    middle = (len(stratum) - 1) / 2
    return stratum.take(np.argsort(np.abs(np.arange(len(stratum)) - middle), kind="stable"))
