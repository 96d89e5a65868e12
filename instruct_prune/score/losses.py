"""Scores made of losses (docstrings name the source). All are oriented so that higher = harder."""

from __future__ import annotations

import numpy as np

from instruct_prune.arrays import Float32
from instruct_prune.errors import InputError
from instruct_prune.score.columns import ADAPTED, Columns
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


@score(needs=("loss_dense", "loss_blind"))
def visual(columns: Columns) -> Float32:
    """How much its pictures help a row, in nats per response token: the loss without them less the loss with them.

    Near 0 the picture is not needed; below 0 it misleads, as where it belongs to another row; 0 for rows that show none. Not a
    difficulty: rows that need their picture stand at the upper end (``--method hardest`` takes them first). Source: VisNec,
    arXiv 2603.01195.
    """
    difference: Float32 = (columns["loss_blind"] - columns["loss_dense"]).astype(np.float32)
    return difference


def _needs_of_drop(adapter: str | None) -> tuple[str, ...]:
    return ("loss_dense", ADAPTED + (adapter or ""))


@score(needs=_needs_of_drop)
def drop(columns: Columns, *, adapter: str | None = None) -> Float32:
    """The share of a row's loss that an adapter takes away, (L0 - L1) / L0: high where a row is like what it was trained on.

    Not a difficulty: rows to be kept stand at the upper end (``--method hardest`` takes them first). Source: the normalised
    endpoint loss drop of Yang et al., arXiv 2605.09404.

    Args:
        columns: of n rows.
        adapter: its name; may be left out where one adapter was measured.
    """
    known = columns.adapted()
    if not adapter and len(known) > 1:
        names = ", ".join(name.removeprefix(ADAPTED) for name in known)
        raise InputError(
            f"the score 'drop': several adapters were measured. Name one: --score-param adapter=NAME ({names})."
        )
    return relative_drop(columns["loss_dense"], columns[ADAPTED + adapter if adapter else known[0]])


def relative_drop(before: Float32, after: Float32) -> Float32:
    """float32 [n]: (before - after) / before; 0 where nothing is left to lose."""
    before64 = before.astype(np.float64)
    lost = np.divide(before64 - after, before64, out=np.zeros(len(before)), where=before64 != 0)
    return lost.astype(np.float32)
