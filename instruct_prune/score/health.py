"""What the losses say about the subnets themselves: which have collapsed, which are the same, how stable ranks are."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Float32
from instruct_prune.measure.subnet import DENSE, SubnetSpec


@dataclass(frozen=True)
class SubnetHealth:
    """What one subnet's losses say about it.

    Attributes:
        name: the subnet's name.
        mean_loss: nats per response token, mean over scored rows.
        rho_dense: Spearman rank correlation with the dense loss (NaN without a dense column).
        same_order: share of row pairs that the dense model puts in the same order, (1 + Kendall's tau) / 2 (NaN likewise).
        collapsed: mean loss has reached that of guessing tokens by their frequency.
        identical_to: names of subnets with the same losses on all rows.
        averaged: whether scores that are averages over subnets read it.
    """

    name: str
    mean_loss: float
    rho_dense: float
    same_order: float
    collapsed: bool
    identical_to: tuple[str, ...]
    averaged: bool = True


@dataclass(frozen=True)
class Health:
    """Health of all subnets; ``rho`` is float [s, s], Spearman between every two."""

    subnets: tuple[SubnetHealth, ...]
    rho: tuple[tuple[float, ...], ...]
    unigram_loss: float

    @property
    def warnings(self) -> list[str]:
        lines = []
        for row in self.subnets:
            if row.collapsed:
                fate = "It carries no signal and is left out of the score while another subnet remains (--include-collapsed keeps it)."
                if row.name == "dense":
                    fate = "It is the model itself, so it stays in the score; check that model, template and data belong together."
                elif not row.averaged:
                    fate = "No score averages it, so nothing is left out."
                lines.append(
                    f"subnet {row.name} has collapsed: its mean loss {row.mean_loss:.2f} has reached that of guessing tokens "
                    f"by frequency ({self.unigram_loss:.2f}). {fate}"
                )
            twins = [name for name in row.identical_to if name > row.name]
            if twins:
                lines.append(
                    f"subnets {row.name} and {', '.join(twins)} give IDENTICAL losses on all rows: they are the same network, "
                    "so one of them adds nothing. Check the densities, rates and seeds."
                )
        return lines


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's rho; NaN for fewer than two rows or a constant column."""
    from scipy.stats import ConstantInputWarning, spearmanr

    if len(a) < 2:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantInputWarning)
        return float(spearmanr(a, b).statistic)


def concordance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Share of row pairs that both columns put in the same order (ties count half); NaN for fewer than two rows."""
    from scipy.stats import kendalltau

    return (1 + float(kendalltau(a, b).statistic)) / 2 if len(a) > 1 else float("nan")


def subnet_health(losses: Mapping[SubnetSpec, Float32], scored: Bool, unigram: Float32) -> Health:
    """Health of every subnet on the scored rows; correlations are over those that all views say something of.

    Args:
        losses: {subnet: float32 [n]}.
        scored: bool [n].
        unigram: float32 [number of scored rows], loss of guessing by unigram frequency.
    """
    from scipy.stats import rankdata

    specs = list(losses)
    table = np.stack([losses[s][scored] for s in specs])
    columns = list(table[:, np.isfinite(table).all(axis=0)])
    dense = next((c for s, c in zip(specs, columns, strict=True) if s == DENSE), None)
    guess = float(unigram.mean()) if len(unigram) else float("nan")
    n = len(columns[0])
    with np.errstate(invalid="ignore"):  # a constant column has no correlation
        ranks = np.corrcoef(rankdata(np.stack(columns), axis=1)) if n > 1 else np.full((len(specs), len(specs)), np.nan)
    rho = tuple(map(tuple, np.atleast_2d(ranks).tolist()))
    rows = []
    for i, (spec, column) in enumerate(zip(specs, columns, strict=True)):
        own = table[i][np.isfinite(table[i])]
        mean = float(own.mean()) if len(own) else float("nan")
        twins = [
            other.name
            for other, values in zip(specs, columns, strict=True)
            if other != spec and len(values) and np.array_equal(values, column)
        ]
        unchanged = concordance(column, dense) if dense is not None else float("nan")
        rho_dense = rho[i][specs.index(DENSE)] if dense is not None else float("nan")
        collapsed = bool(mean >= guess)
        rows.append(SubnetHealth(spec.name, mean, rho_dense, unchanged, collapsed, tuple(twins), spec.is_averaged))
    return Health(tuple(rows), rho, guess)


def left_out_of(health: Health, ladder: Sequence[SubnetSpec]) -> list[str]:
    """Names of collapsed subnets that the score leaves out: never the dense model, never all there are."""
    averaged = {spec.name for spec in ladder if spec.is_averaged}
    collapsed = [row.name for row in health.subnets if row.collapsed and row.name in averaged - {DENSE.name}]
    return collapsed if averaged - set(collapsed) else []


def by_seed(ladder: Sequence[SubnetSpec]) -> list[tuple[SubnetSpec, ...]]:
    """The ladder as if only one mask seed had been used, for each seed; empty without seeded subnets."""
    seeded = [s for s in ladder if s.kind in ("random", "dropout")]
    plain = [s for s in ladder if s.kind not in ("random", "dropout") and s.is_averaged]
    return [(*plain, *(s for s in seeded if s.seed == seed)) for seed in sorted({s.seed for s in seeded})]


def rank_spread(scores: Float32) -> Float32:
    """How stable each row's rank is: its standard deviation over seeds, as a share of the rows.

    Args:
        scores: float32 [seeds, n], finite.

    Returns:
        float32 [n].
    """
    from scipy.stats import rankdata

    spread: Float32 = rankdata(scores, axis=1).std(axis=0).astype(np.float32) / np.float32(scores.shape[1])
    return spread
