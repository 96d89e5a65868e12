"""Scores, health and stability, against hand-computed values and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score import Columns, aggregate
from instruct_prune.score.health import by_seed, left_out_of, rank_spread, spearman, subnet_health

DENSE, HALF, ALONE = SubnetSpec("dense"), SubnetSpec("magnitude", 0.5), SubnetSpec("dense", view="alone")
LOSSES = {
    DENSE: np.asarray([1.0, 2.0, 3.0], dtype=np.float32),
    HALF: np.asarray([2.0, 2.0, 5.0], dtype=np.float32),
    ALONE: np.asarray([2.0, 1.0, 3.0], dtype=np.float32),
}
ALL = np.ones(3, dtype=bool)


def test_dlc_is_the_mean_loss() -> None:
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES), "dlc"), [1.5, 2.0, 4.0])


def test_repeated_subnets_count_twice_as_in_the_released_loop() -> None:
    np.testing.assert_allclose(
        aggregate(Columns.of_losses(LOSSES, [DENSE, HALF, HALF]), "dlc"), [5 / 3, 2.0, 13 / 3], rtol=1e-6
    )


def test_weights() -> None:
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES, [DENSE, HALF], [3, 1]), "dlc"), [1.25, 2.0, 3.5])


def test_lc_is_one_minus_mean_confidence() -> None:
    expected = 1 - (np.exp([-1.0, -2, -3]) + np.exp([-2.0, -2, -5])) / 2
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES), "lc"), expected, rtol=1e-6)


def test_ifd_is_a_ratio_of_perplexities() -> None:
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES), "ifd"), np.exp([-1.0, 1.0, 0.0]), rtol=1e-6)


def test_dense_scores() -> None:
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES), "loss"), [1, 2, 3])
    np.testing.assert_allclose(aggregate(Columns.of_losses(LOSSES), "perplexity"), np.exp([1.0, 2, 3]), rtol=1e-6)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(InputError, match="needs the subnet 'alone'"):
        aggregate(Columns.of_losses({DENSE: LOSSES[DENSE]}), "ifd")
    with pytest.raises(InputError, match="Did you mean 'dlc'"):
        aggregate(Columns.of_losses(LOSSES), "dlcc")
    with pytest.raises(InputError, match="no subnet is left"):
        aggregate(Columns.of_losses(LOSSES, [HALF], leave_out=[HALF]), "dlc")
    with pytest.raises(InputError, match="1 weights were given for 2"):
        aggregate(Columns.of_losses(LOSSES, [DENSE, HALF], [1]), "dlc")


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=40), st.integers(0, 5))
def test_spearman_is_the_correlation_of_average_ranks(values: list[int], seed: int) -> None:
    a = np.asarray(values, dtype=float)
    b = np.random.default_rng(seed).permutation(a) + a

    def ranks(column: np.ndarray) -> list[float]:
        return [float((column < value).sum() + (column <= value).sum()) / 2 for value in column]

    if len(set(a)) > 1 and len(set(b)) > 1:
        assert spearman(a, b) == pytest.approx(np.corrcoef(ranks(a), ranks(b))[0, 1])
    else:
        assert np.isnan(spearman(a, b))


def test_spearman_of_one_row_is_unknown() -> None:
    assert np.isnan(spearman(np.ones(1), np.ones(1)))
    assert spearman(np.arange(2), np.arange(2)) == pytest.approx(1)


def test_collapse_is_told_and_left_out_but_never_the_dense_model() -> None:
    health = subnet_health({DENSE: LOSSES[DENSE], HALF: LOSSES[HALF]}, ALL, np.full(3, 2.5, dtype=np.float32))
    assert [row.collapsed for row in health.subnets] == [False, True]
    assert "magnitude_0500 has collapsed" in health.warnings[0]
    assert left_out_of(health, [DENSE, HALF]) == ["magnitude_0500"]
    assert left_out_of(health, [HALF]) == [], "something must remain"
    hopeless = subnet_health({DENSE: LOSSES[DENSE]}, ALL, np.full(3, 0.5, dtype=np.float32))
    assert hopeless.subnets[0].collapsed
    assert left_out_of(hopeless, [DENSE]) == []


def test_identical_subnets_are_told_loudly() -> None:
    twin = SubnetSpec("dropout", 0.1)
    health = subnet_health({DENSE: LOSSES[DENSE], twin: LOSSES[DENSE].copy()}, ALL, np.full(3, 9.0, dtype=np.float32))
    assert sum("IDENTICAL" in line for line in health.warnings) == 1
    assert health.subnets[0].identical_to == ("dropout_0100_s0",)


def test_health_ignores_rows_without_a_score() -> None:
    losses = {DENSE: np.asarray([1.0, np.nan, 3.0], dtype=np.float32)}
    health = subnet_health(losses, np.asarray([True, False, True]), np.full(2, 9.0, dtype=np.float32))
    assert health.subnets[0].mean_loss == 2.0


def test_rank_correlation_and_order() -> None:
    losses = {DENSE: LOSSES[DENSE], HALF: np.asarray([3.0, 2.0, 1.0], dtype=np.float32)}
    health = subnet_health(losses, ALL, np.full(3, 9.0, dtype=np.float32))
    assert health.subnets[1].rho_dense == pytest.approx(-1)
    assert health.subnets[1].same_order == 0
    np.testing.assert_allclose(health.rho, [[1, -1], [-1, 1]])


def test_seeds_are_taken_one_at_a_time() -> None:
    first, second = SubnetSpec("dropout", 0.1, 0), SubnetSpec("dropout", 0.1, 1)
    assert by_seed([DENSE, first, second, ALONE]) == [(DENSE, first), (DENSE, second)]
    assert by_seed([DENSE, HALF]) == []


def test_rank_spread_is_the_deviation_of_ranks_as_a_share_of_rows() -> None:
    scores = np.asarray([[1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]], dtype=np.float32)
    assert rank_spread(scores).tolist() == [0, 0.125, 0.125, 0]
