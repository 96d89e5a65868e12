"""Student's t against the random arms, Holm, detectable differences, tokens to match: by hand, by scipy, by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from instruct_prune.errors import InputError
from instruct_prune.prove.arms import Arm, Kind
from instruct_prune.prove.readings import Judged, Readings, read
from instruct_prune.prove.results import Results
from instruct_prune.prove.statistics import detectable, holm, lean, tokens_to_match, verdicts
from instruct_prune.prove.study import Done

RANDOM = [2.0, 2.2, 1.8, 2.1, 1.9, 2.0]
"""Mean 2, sum of squares 0.1: variance 0.02."""


def test_the_statistic_by_hand() -> None:
    (found,) = verdicts([[1.5, 1.7]], RANDOM)
    assert found.mean == pytest.approx(1.6)
    assert found.difference == pytest.approx(-0.4)
    assert found.t == pytest.approx(-0.4 / math.sqrt(0.02 * (1 / 2 + 1 / 6)))
    assert found.p == pytest.approx(2 * scipy.stats.t.cdf(found.t, 5))
    assert found.p_holm == found.p  # a rule alone
    assert found.word == "better"
    assert found.rank == 0
    assert str(found) == "better than random by 0.4000"


def test_worse_and_cannot_tell() -> None:
    worse, same = verdicts([[2.6, 2.7], [2.05]], RANDOM)
    assert (worse.word, worse.rank) == ("worse", 6)
    assert (same.word, same.rank) == ("cannot tell", 4)
    bound = scipy.stats.t.ppf(1 - 0.05 / 4, 5) * math.sqrt(0.02 * (1 + 1 / 6))
    assert str(same) == f"cannot tell; a difference above {bound:.4f} would have been seen"


def test_random_arms_without_any_spread() -> None:
    same, other = verdicts([[1.0], [0.5]], [1.0] * 6)
    assert (same.word, same.t, same.p) == ("cannot tell", 0, 1)
    assert (other.word, other.t, other.p) == ("better", -math.inf, 0)


def test_holm_by_hand() -> None:
    # Smallest first: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.9.
    assert holm([0.03, 0.01, 0.9, 0.02]) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_p_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(a <= b <= min(1, a * len(p)) + 1e-12 for a, b in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.asarray(adjusted)[order]) >= 0).all()


@given(
    st.lists(st.floats(-1, 1), min_size=6, max_size=24),
    st.lists(st.lists(st.floats(-1, 1), min_size=1, max_size=4), min_size=1, max_size=5),
)
def test_a_difference_above_the_detectable_one_is_always_called(random: list[float], rules: list[list[float]]) -> None:
    if np.std(random, ddof=1) < 1e-6:
        return
    for found in verdicts(rules, random):
        if abs(found.difference) > found.detectable * (1 + 1e-9):
            assert found.word == ("better" if found.difference < 0 else "worse")


def test_detectable_difference_shrinks_with_arms() -> None:
    assert detectable(0.01, 3, 24, 1) == pytest.approx(scipy.stats.t.ppf(0.975, 23) * 0.01 * math.sqrt(1 / 3 + 1 / 24))
    assert detectable(0.01, 3, 24, 5) > detectable(0.01, 3, 24, 1) > detectable(0.01, 4, 24, 1)


def test_tokens_to_match_on_a_straight_line() -> None:
    times, losses = [1.0, 2.0, 4.0], [3.0, 2.0, 1.0]  # a nat less with every doubling
    assert tokens_to_match(2.5, times, losses).times == pytest.approx(math.sqrt(2))
    assert tokens_to_match(1.5, times, losses).times == pytest.approx(2 * math.sqrt(2))
    assert tokens_to_match(3.0, times, losses).times == pytest.approx(1)
    above, below = tokens_to_match(3.1, times, losses), tokens_to_match(0.9, times, losses)
    assert (above.times, above.beyond, str(above)) == (1, "less", "less than 1.0x its tokens")
    assert (below.times, below.beyond, str(below)) == (4, "more", "more than 4.0x its tokens")


def test_more_tokens_that_do_not_help_are_worth_no_more() -> None:
    found = tokens_to_match(1.9, [1.0, 2.0, 4.0], [3.0, 1.0, 2.0])
    assert 1 < found.times < 2
    assert found.beyond == ""


def test_readings_by_hand() -> None:
    values = np.asarray([1.0, 2.0, 9.0, 4.0, 6.0, 8.0], dtype=np.float32)  # rows of 1, 2 and 3 tokens
    found = read(values, np.asarray([0, 1, 3, 6]))
    assert found.per_token == pytest.approx(30 / 6)
    assert found.per_row == pytest.approx((1 + 5.5 + 6) / 3)
    assert found.inner == pytest.approx(6)  # of the third row alone: the others have nothing between first and last
    assert (found.short, found.middle, found.long) == pytest.approx((1, 5.5, 6))
    assert math.isnan(read(values[:1], np.asarray([0, 1])).inner)


RECORDED = [
    1.2483, 1.2518, 1.276, 1.2375, 1.2529, 1.2598, 1.2677, 1.2569, 1.2492, 1.2586, 1.2567, 1.271, 1.28, 1.2571, 1.2607, 1.2402, 1.2546,
    1.254, 1.2401, 1.2631, 1.2592, 1.2526, 1.2887, 1.3564, 1.3668, 1.2471, 1.274, 1.2628, 1.2474, 1.3121, 1.2625, 1.2348, 1.273, 1.2373,
    1.288, 1.2363, 1.2563, 1.2619, 1.2422, 1.2301, 1.2598, 1.3278, 1.2469, 1.2664, 1.2695, 1.2507, 1.2678, 1.2771, 1.2605, 1.3022, 1.3124,
    1.252, 1.2618, 1.2482, 1.275, 1.2339, 1.2309, 1.2509, 1.2829, 1.2911,
]  # fmt: skip
"""Losses of 60 random arms of the tiny model; they lean far to the right, as no real model's should."""


def called(draw: Callable[[int], NDArray[np.float64]], rules: int, arms: int, word: str) -> int:
    """In how many of 300 repetitions some rule that is random under another name is called so; the band has 24 arms."""
    count = 0
    for _ in range(300):
        losses = draw(24 + rules * arms)
        dealt = losses[24:].reshape(rules, arms).tolist()
        count += any(found.word == word for found in verdicts(dealt, losses[:24].tolist()))
    return count


@pytest.mark.parametrize(("rules", "arms"), [(1, 3), (1, 1), (5, 3)])
def test_a_rule_that_is_random_under_another_name_is_hardly_ever_better(rules: int, arms: int) -> None:
    rng = np.random.default_rng(0)
    assert called(lambda n: rng.permutation(RECORDED)[:n], rules, arms, "better") <= 15  # 5 of 100


@pytest.mark.parametrize("word", ["better", "worse"])
def test_losses_without_a_lean_keep_to_the_level(word: str) -> None:
    rng = np.random.default_rng(0)
    assert called(lambda n: rng.normal(size=n), 5, 3, word) <= 15


def test_a_lean_is_seen() -> None:
    assert lean(RECORDED) < 0.001
    assert lean(np.random.default_rng(0).normal(size=24).tolist()) > 0.05
    assert lean([1.0] * 6) == 1


def test_an_arm_that_diverged_is_named() -> None:
    def done(kind: Kind, rule: str, rate: float, loss: float) -> Done:
        arm = Arm(kind, rule, 3, (0, 1), 2, 1.0, rate)
        return Done(arm, 10, 20, Judged({"math": Readings(loss, *[1.0] * 5)}), 1.0)

    arms = [done("random", "", 2e-3, 1.0), done("random", "", 6e-3, math.nan), done("rule", "hardest", 2e-3, math.inf)]
    assert len(Results(arms[:2], ["hardest"], 2e-3).done) == 1  # at a rate that was not chosen
    with pytest.raises(
        InputError, match=r"an arm of hardest \(seed 3\) diverged at the learning rate 0.002.*lower --learning-rates"
    ):
        Results(arms, ["hardest"], 2e-3)
