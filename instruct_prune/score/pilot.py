"""``--subnets auto``: a pilot of the rows goes through all passes of the ladder, the rest through those that matter.

The score is the mean loss over the ladder (docs/method.md, section 3). On the pilot it is measured; a pass is saved where the
passes that were kept predict the score so well that hardly any row changes its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32, Int64
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score.health import spearman

PILOT = 512
"""Most rows of the pilot; at most a quarter of all rows."""
LEAST = 64
"""Fewest rows from which a correlation is estimated; with fewer, every row goes through the whole ladder."""
STRATA = 32
FOLDS = 8
RIDGE = 1e-3
"""Weight of the penalty, beside features of variance one."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Earned:
    """Which passes a pilot found worth their time.

    Attributes:
        rows: of the pilot.
        predicted: rows whose score is predicted from the passes that were kept.
        tolerance: the rank correlation that was asked for.
        steps: (pass, Spearman's rho) in the order in which passes were kept: how the score that is predicted from them all so
            far correlates with the measured one, cross-validated on the pilot.
        saved: names of the passes that only the pilot went through.
        collapsed: those that carry no signal, which no score is made of.
    """

    rows: int
    predicted: int
    tolerance: float
    steps: tuple[tuple[str, float], ...]
    saved: tuple[str, ...]
    collapsed: tuple[str, ...]

    def told(self) -> str:
        """In one sentence, for people."""
        (first, rho), *more = self.steps
        way = f"{first} alone ranks the pilot's {self.rows:,} rows as the whole ladder does at rho {rho:.3f}"
        way += "".join(f", with {name} at {rho:.3f}" for name, rho in more)
        fate = f"saved for {self.predicted:,} rows: {', '.join(self.saved)}" if self.saved else "every pass is needed"
        left_out = f"; collapsed and left out: {', '.join(self.collapsed)}" if self.collapsed else ""
        return f"{way} (wanted {self.tolerance:g}); {fate}{left_out}"


@dataclass(frozen=True)
class Decision:
    """What a pilot says.

    Attributes:
        kept: the subnets that all rows go through, in the ladder's order.
        steps, saved, collapsed: as in `Earned`.
        weights: float64 [f], of the features of the kept losses; they give the score.
        tolerance: the rank correlation that was asked for.
        rows: int64, positions of the pilot's rows.
    """

    kept: tuple[SubnetSpec, ...]
    steps: tuple[tuple[str, float], ...]
    saved: tuple[str, ...]
    collapsed: tuple[str, ...]
    weights: Float64
    tolerance: float
    rows: Int64 = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def earned(self, scored: int) -> Earned:
        """For the record of a run with so many scored rows."""
        predicted = scored - len(self.rows) if self.saved else 0
        return Earned(len(self.rows), predicted, self.tolerance, self.steps, self.saved, self.collapsed)

    def predict(self, losses: Mapping[SubnetSpec, Float32], n_response: NDArray[np.integer]) -> Float32:
        """float32 [n]: the score of rows that went through the kept subnets; NaN where a loss is."""
        found: Float32 = (_features([losses[spec] for spec in self.kept], n_response) @ self.weights).astype(np.float32)
        return found


def pilot_rows(rows: Int64, lengths: NDArray[np.integer], names: Sequence[str]) -> Int64 | None:
    """The pilot: rows of all lengths, the same ones in whatever order the rows come.

    Args:
        rows: int64 [m], positions of the rows that are scored.
        lengths: integers [m], what each costs.
        names: hashes of their contents [m].

    Returns:
        int64, ascending positions; None where the rows are too few to save anything.
    """
    size = min(PILOT, len(rows) // 4)
    if size < LEAST:
        return None
    hashes = np.asarray(names, dtype=np.str_)
    by_length = np.lexsort((rows, hashes, lengths))
    picked = [
        part[np.lexsort((rows[part], hashes[part]))[: len(share)]]
        for part, share in zip(np.array_split(by_length, STRATA), np.array_split(np.arange(size), STRATA), strict=True)
    ]
    return np.sort(rows[np.concatenate(picked)])


def decide(
    losses: Mapping[SubnetSpec, Float32],
    ladder: Sequence[SubnetSpec],
    n_response: NDArray[np.integer],
    collapsed: Sequence[str],
    tolerance: float,
) -> Decision:
    """Keep the fewest passes that predict the score well enough: first the dense one, then always the one that helps most.

    Args:
        losses: {subnet: float32 [p]} of the pilot's rows; the first is kept in any case.
        ladder: the subnets, repeated as often as they count.
        n_response: [p], response tokens.
        collapsed: names of subnets that carry no signal.
        tolerance: Spearman's rho at which no further pass is kept; at 1, all are.
    """
    good = np.isfinite(np.stack(list(losses.values()))).all(axis=0)
    columns = {spec: column[good] for spec, column in losses.items()}
    n_response = n_response[good]
    ladder = [spec for spec in ladder if spec.name not in collapsed]
    score: Float64 = np.stack([columns[spec] for spec in ladder]).mean(axis=0, dtype=np.float64)
    left = list(dict.fromkeys(ladder))
    kept = [left.pop(0)]

    def rho(specs: Sequence[SubnetSpec]) -> float:
        if not set(ladder) - set(specs):
            return 1.0  # nothing is left to predict
        return _validated(_features([columns[spec] for spec in specs], n_response), score)

    steps = [(kept[0].name, rho(kept))]
    while left and (tolerance >= 1 or not steps[-1][1] >= tolerance):
        found = [rho([*kept, spec]) for spec in left]
        best = int(np.nanargmax([*found, -2.0]))  # the first of equals; where all are undefined, the next in the ladder
        best = best if best < len(left) else 0
        steps.append((left[best].name, found[best]))
        kept.append(left.pop(best))
    kept = [spec for spec in columns if spec in kept]
    weights = _fitted(_features([columns[spec] for spec in kept], n_response), score)
    saved = tuple(spec.name for spec in left)
    return Decision(tuple(kept), tuple(steps), saved, tuple(collapsed), weights, tolerance)


def _features(losses: Sequence[Float32], n_response: NDArray[np.integer]) -> Float64:
    """float64 [n, f]: one, each loss, and how many tokens it is the mean of."""
    length = np.log(np.maximum(n_response, 1).astype(np.float64))
    return np.stack([np.ones(len(length)), *(loss.astype(np.float64) for loss in losses), length], axis=1)


def _fitted(features: Float64, score: Float64) -> Float64:
    """float64 [f]: ridge regression; the constant is not penalised."""
    spread = np.maximum(features.std(axis=0), 1e-12)
    spread[0] = 1.0
    scaled = features / spread
    scaled[:, 1:] -= (centre := scaled[:, 1:].mean(axis=0))
    penalty = np.diag([0.0, *np.full(features.shape[1] - 1, RIDGE * len(scaled))])
    found = np.linalg.solve(scaled.T @ scaled + penalty, scaled.T @ score)
    found[0] -= centre @ found[1:]
    return np.asarray(found / spread)


def _validated(features: Float64, score: Float64) -> float:
    """Spearman's rho between the score and what is predicted of it from the other folds."""
    fold = np.arange(len(score)) % FOLDS
    predicted = np.empty(len(score))
    for one in range(FOLDS):
        predicted[fold == one] = features[fold == one] @ _fitted(features[fold != one], score[fold != one])
    return spearman(predicted, score)
