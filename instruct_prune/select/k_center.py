"""k-centre greedy: every row near to a kept one."""

from __future__ import annotations

import numpy as np

from instruct_prune.geometry import nearest_similarity
from instruct_prune.select.methods import method
from instruct_prune.select.stratum import Codes, Stratum


@method(needs=("embeddings",))
def k_center(stratum: Stratum) -> Codes:
    """Again and again the row that is farthest from all kept ones; the first is at random.

    Its radius is at most twice the smallest possible. Time is rows x kept rows x d, memory a copy of the embeddings.
    Source: Gonzalez 1985; Sener & Savarese, "Active Learning for CNNs: A Core-Set Approach" (ICLR 2018), algorithm 1.
    """
    vectors = stratum.vectors()
    if stratum.forced.any():
        farness = 1 - nearest_similarity(vectors, vectors[stratum.forced])
    else:
        farness = np.full(len(stratum), 3, dtype=np.float32)  # above every cosine distance
        farness[stratum.rng.integers(len(stratum))] = 4
    return stratum.greedy(farness, lambda row: np.minimum(farness, 1 - vectors @ vectors[row], out=farness))
