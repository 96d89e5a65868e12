"""Moderate coreset: rows neither near to the centre of their stratum nor far from it."""

from __future__ import annotations

import numpy as np

from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("embeddings",))
def moderate(stratum: Stratum) -> Codes:
    """The rows whose distance to the mean embedding is nearest to the median distance (ties: the easier row).

    Source: Xia et al., "Moderate Coreset: A Universal Method of Data Selection for Real-World Data-Efficient Deep
    Learning" (ICLR 2023), where the strata are the classes.
    """
    vectors = stratum.vectors()
    distance = np.linalg.norm(vectors - vectors.mean(axis=0, dtype=np.float64).astype(np.float32), axis=1)
    return stratum.take(np.argsort(np.abs(distance - np.median(distance)), kind="stable"))
