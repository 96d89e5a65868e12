"""Scores made of losses (docstrings name the source). All are oriented so that higher = harder."""

from __future__ import annotations

import numpy as np

from instruct_prune.arrays import Float32
from instruct_prune.score.columns import Columns
from instruct_prune.score.scores import LADDER, score


@score(needs=(LADDER,))
def dlc(columns: Columns) -> Float32:
    """Mean loss over the subnets: learning complexity of arXiv 2402.05356 v3 (ICLR 2025)."""
    return columns.average(lambda loss: loss).astype(np.float32)


@score(needs=(LADDER,))
def lc(columns: Columns) -> Float32:
    """One minus the mean of exp(-loss) over the subnets: learning complexity of arXiv 2402.05356 v1."""
    return (1 - columns.average(lambda loss: np.exp(-loss))).astype(np.float32)


@score(needs=("loss_dense",))
def loss(columns: Columns) -> Float32:
    """Loss of the whole model, in nats per response token."""
    return columns["loss_dense"].astype(np.float32)


@score(needs=("loss_dense",))
def perplexity(columns: Columns) -> Float32:
    """Perplexity of the response under the whole model."""
    values: Float32 = np.exp(columns["loss_dense"]).astype(np.float32)
    return values


@score(needs=("loss_dense", "loss_alone"))
def ifd(columns: Columns) -> Float32:
    """Perplexity of the response given the prompt over its perplexity alone: instruction-following difficulty.

    A ratio of perplexities, not of losses. Source: Li et al., "From Quantity to Quality" (Cherry_LLM, NAACL 2024), and
    "Superfiltering" (ACL 2024).
    """
    ratio: Float32 = np.exp(columns["loss_dense"] - columns["loss_alone"]).astype(np.float32)
    return ratio
