"""Is a rule's mean another than that of random arms? Student's t with the spread of the random arms, Holm over rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.stats

ALPHA = 0.05
"""Chance that some rule is called better or worse when all of them do nothing."""

Word = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Verdict:
    """One rule against the random arms, by losses: lower is better.

    Attributes:
        word: what can be said at ALPHA, over all rules together.
        arms: of the rule.
        mean: loss of its arms.
        difference: mean loss of the rule minus that of the random arms.
        t: the difference over its standard error.
        p: two-sided, of this rule alone.
        p_holm: after Holm's correction over the rules.
        detectable: a difference above this would have been seen, whatever the other rules do (Bonferroni's bound).
        rank: random arms that are better than the rule's mean.
    """

    word: Word
    arms: int
    mean: float
    difference: float
    t: float
    p: float
    p_holm: float
    detectable: float
    rank: int

    def __str__(self) -> str:
        if self.word == "cannot tell":
            return f"cannot tell; a difference above {self.detectable:.4f} would have been seen"
        return f"{self.word} than random by {abs(self.difference):.4f}"


def verdicts(rules: Sequence[Sequence[float]], random: Sequence[float]) -> list[Verdict]:
    """Compare each rule with the random arms.

    Under the null hypothesis a rule's arms are further draws of the random arms, so the spread of these is that of both:
    t = (mean of the rule - mean of random) / (sd of random * sqrt(1/n + 1/R)), with R - 1 degrees of freedom.

    Args:
        rules: the losses of each rule's n arms, at least one.
        random: the losses of R random arms, at least two.
    """
    center, spread, r = float(np.mean(random)), float(np.std(random, ddof=1)), len(random)
    means = [float(np.mean(losses)) for losses in rules]
    errors = [spread * np.sqrt(1 / len(losses) + 1 / r) for losses in rules]
    t = [_ratio(mean - center, float(error)) for mean, error in zip(means, errors, strict=True)]
    p = [float(2 * scipy.stats.t.sf(abs(value), r - 1)) for value in t]
    found = []
    for i, corrected in enumerate(holm(p)):
        word: Word = "cannot tell" if corrected >= ALPHA else "better" if means[i] < center else "worse"
        found.append(
            Verdict(
                word=word,
                arms=len(rules[i]),
                mean=means[i],
                difference=means[i] - center,
                t=t[i],
                p=p[i],
                p_holm=corrected,
                detectable=detectable(spread, len(rules[i]), r, len(rules)),
                rank=int(np.sum(np.asarray(random) < means[i])),
            )
        )
    return found


def _ratio(difference: float, error: float) -> float:
    return difference / error if error else float(np.copysign(np.inf, difference)) if difference else 0.0


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values that keep the chance of any false finding at its level (Holm 1979, Scand. J. Statist. 6)."""
    adjusted, highest = [0.0] * len(p), 0.0
    for place, i in enumerate(np.argsort(p, kind="stable").tolist()):
        highest = max(highest, min(1.0, (len(p) - place) * p[i]))
        adjusted[i] = highest
    return adjusted


def detectable(spread: float, arms: int, random: int, rules: int) -> float:
    """The smallest difference that is called one for certain.

    Args:
        spread: standard deviation of random arms.
        arms: of the rule.
        random: random arms.
        rules: how many are compared.
    """
    return float(scipy.stats.t.ppf(1 - ALPHA / (2 * rules), random - 1) * spread * np.sqrt(1 / arms + 1 / random))


def lean(random: Sequence[float]) -> float:
    """The p value of Shapiro and Wilk's test: small where the losses of random arms are not normal, as Student's t has them."""
    return float(scipy.stats.shapiro(random).pvalue) if np.ptp(random) else 1.0


@dataclass(frozen=True)
class Worth:
    """How many random tokens a subset is worth.

    Attributes:
        times: multiple of the subset's own tokens; at a border of the curve where it lies outside.
        beyond: "more" and "less" where the loss lies outside of what the random arms reach, "" inside.
    """

    times: float
    beyond: Literal["", "more", "less"] = ""

    def __str__(self) -> str:
        words = {"": "", "more": "more than ", "less": "less than "}
        return f"{words[self.beyond]}{self.times:.1f}x its tokens"


def tokens_to_match(loss: float, times: Sequence[float], losses: Sequence[float]) -> Worth:
    """Where a loss lies on the curve of random arms: interpolated in the logarithm of the tokens.

    Args:
        loss: to be matched.
        times: multiples of the budget, ascending, at least two.
        losses: mean loss of the random arms of each; where more tokens were not better, the best before counts.
    """
    falling = np.minimum.accumulate(np.asarray(losses, dtype=np.float64))
    if loss > falling[0]:
        return Worth(float(times[0]), "less")
    if loss < falling[-1]:
        return Worth(float(times[-1]), "more")
    return Worth(float(np.exp(np.interp(-loss, -falling, np.log(times)))))
