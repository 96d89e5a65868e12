"""Selection by one ranking: random, easiest, hardest, easiest of each cluster."""

from __future__ import annotations

import numpy as np

from instruct_prune.select.stratum import Codes, Stratum


def random(stratum: Stratum) -> Codes:
    """Rows at random: the reference that every other method has to beat."""
    return stratum.take(stratum.rng.permutation(len(stratum)))


def easiest(stratum: Stratum) -> Codes:
    """The lowest scores. With clusters as strata this is `easy_diverse`, the rule of arXiv 2402.05356 v1."""
    return stratum.take(np.arange(len(stratum)))


def hardest(stratum: Stratum) -> Codes:
    """The highest scores (ties: the lower row id is passed over first)."""
    return stratum.take(np.arange(len(stratum))[::-1])
