"""Arms: which rows are trained on, how long, and by which seed; and the draws of rows that are no selection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Int64
from instruct_prune.errors import InputError

Kind = Literal["untrained", "random", "rule", "more", "length", "whole", "total", "third"]
NEAR = 0.005
"""A draw ends when it is within this share of its budget."""
TOLERANCE = 0.01
"""Arms that are compared differ by no more than this share in response tokens."""
DRAWS = 200
"""Random draws at most, until one is near in total tokens too."""
NEAREST = 8
"""Rows of about the same length, among which one is drawn."""


@dataclass(frozen=True)
class Arm:
    """One training.

    Attributes:
        kind: "random" or "rule"; of the extras "more" (random, several times the tokens), "length" (random, of a rule's
            lengths), "whole" (random rows of the whole pool, each seen at most once), "total" (a rule, at equal total tokens)
            and "third" (at a third of the learning rate; random where ``rule`` is empty). "untrained" trains nothing.
        rule: which rule it belongs to, "" for those that all rules share.
        seed: of the draw, the adapter's first weights, the order of the rows and dropout.
        rows: row ids in the pool, ascending.
        steps: optimiser steps.
        epochs: how often the rows are seen.
        learning_rate: the highest of the schedule.
        times: response tokens, as a multiple of the budget.
    """

    kind: Kind
    rule: str
    seed: int
    rows: tuple[int, ...]
    steps: int
    epochs: float
    learning_rate: float
    times: float = 1.0

    @property
    def name(self) -> str:
        """For people, and at the beginning of the arm's file."""
        what = {"more": f"random-x{self.times:g}", "random": "random", "untrained": "untrained", "rule": self.rule}
        named = what.get(self.kind) or "-".join(word for word in (self.rule or "random", self.kind) if word)
        return f"{re.sub(r'[^A-Za-z0-9_.=-]+', '-', named)}-{self.seed}"


def take(order: Int64, sizes: NDArray[np.integer], budget: int) -> Int64:
    """Positions in the given order, those that still fit, until the budget is all but spent.

    Args:
        order: int64 [m], positions among n rows.
        sizes: int [n].
        budget: of sizes, never exceeded.
    """
    found, left = [], budget
    for row in order.tolist():
        if sizes[row] <= left:
            found.append(row)
            left -= int(sizes[row])
            if left <= NEAR * budget:
                break
    return np.sort(np.asarray(found, dtype=np.int64))


def best_draw(
    draw: Callable[[np.random.Generator], Int64],
    wanted: Sequence[tuple[NDArray[np.integer], float]],
    seed: Sequence[int],
) -> Int64:
    """The first of many draws whose sizes are all within TOLERANCE of what is wanted, else the nearest.

    Args:
        draw: positions among n rows.
        wanted: (sizes int [n], their sum that is wanted) pairs.
        seed: of the draws.
    """
    rng = np.random.default_rng(list(seed))
    best, least = np.empty(0, dtype=np.int64), np.inf
    for _ in range(DRAWS):
        rows = draw(rng)
        off = max(abs(float(sizes[rows].sum()) / total - 1) for sizes, total in wanted)
        if off < least:
            best, least = rows, off
        if least <= TOLERANCE:
            break
    return best


def draw_random(response: Int64, total: Int64, budget: int, seed: int, times: float = 1.0) -> Int64:
    """Random rows whose response tokens meet the budget, and whose total tokens are those of average rows.

    So one band of random arms serves both readings, by response tokens and by total tokens.

    Args:
        response: int64 [n], response tokens of the pool's rows.
        total: int64 [n], all their tokens.
        budget: response tokens.
        seed: of the draw.
        times: multiple of the budget.
    """
    tokens = round(budget * times)
    both = ((response, tokens), (total, tokens * float(total.sum()) / float(response.sum())))
    return best_draw(
        lambda rng: take(rng.permutation(len(response)), response, tokens), both, (seed, round(1000 * times))
    )


def draw_among(rows: Int64, response: Int64, budget: int, seed: int) -> Int64:
    """Random rows among some (positions)."""
    return best_draw(lambda rng: take(rng.permutation(rows), response, budget), ((response, budget),), (seed, 1))


def draw_of_lengths(like: Int64, response: Int64, budget: int, seed: int) -> Int64:
    """Random rows with the lengths of some rows: for each of these, one of the nearest in length that is not taken yet.

    Args:
        like: int64 [k], positions among n rows.
        response: int64 [n].
        budget: response tokens.
        seed: of the draw.
    """

    def draw(rng: np.random.Generator) -> Int64:
        shuffled = rng.permutation(len(response))
        free = shuffled[np.argsort(response[shuffled], kind="stable")].tolist()
        order = []
        for row in rng.permutation(like).tolist():
            at = int(np.searchsorted(response[free], response[row]))
            low = max(0, min(at - NEAREST // 2, len(free) - NEAREST))
            order.append(free.pop(low + int(rng.integers(min(NEAREST, len(free) - low)))))
        rest = np.asarray(free, dtype=np.int64)
        close = rest[np.argsort(np.abs(response[rest] - np.median(response[like])), kind="stable")]
        return take(np.concatenate([np.asarray(order, dtype=np.int64), close]), response, budget)

    return best_draw(draw, ((response, budget),), (seed, 3))


def at_total(draw: Callable[[int], Int64], total: Int64, wanted: int, budget: int, most: int) -> Int64 | None:
    """A rule's rows whose total tokens are nearest to what is wanted, found by halving the interval of response tokens.

    Args:
        draw: the rule: response tokens -> positions among n rows.
        total: int64 [n], all tokens of the rows.
        wanted: total tokens.
        budget: response tokens to begin from.
        most: response tokens of all rows.

    Returns:
        int64 [k]; None where no draw comes within TOLERANCE of what is wanted.
    """
    best, off = np.empty(0, dtype=np.int64), 1.0
    low, high, found = 0, most, budget
    while off > NEAR:
        try:
            rows = draw(found)
        except InputError:  # the rule has not as many rows
            high = found
        else:
            tokens = int(total[rows].sum())
            if abs(tokens / wanted - 1) < off:
                best, off = rows, abs(tokens / wanted - 1)
            low, high = (found, high) if tokens < wanted else (low, found)
        if high - low <= 1:
            break
        found = min(2 * low, (low + high) // 2) if low >= budget else (low + high) // 2
    return best if off <= TOLERANCE else None
