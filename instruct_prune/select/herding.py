"""Herding: a subset whose mean embedding is that of the whole set."""

from __future__ import annotations

import numpy as np

from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("embeddings",))
def herding(stratum: Stratum) -> Codes:
    """Again and again the row that brings the mean of the kept ones nearest to the mean of all.

    Each step takes the row of the greatest <w, x>, then w += mean - x. Time is rows x kept rows x d, memory a copy of
    the embeddings. Source: Welling, "Herding Dynamical Weights to Learn" (ICML 2009); as a selector of rows, without
    replacement, in Rebuffi et al., "iCaRL" (CVPR 2017).
    """
    vectors = stratum.vectors()
    mean = vectors.mean(axis=0, dtype=np.float64)
    to_mean = vectors @ mean.astype(np.float32)
    weight = mean * (1 + stratum.forced.sum()) - vectors[stratum.forced].sum(axis=0, dtype=np.float64)
    value = vectors @ weight.astype(np.float32)
    return stratum.greedy(value, lambda row: np.add(value, to_mean - vectors @ vectors[row], out=value))
