"""Which passes a pilot saves: ladders whose passes say something new or nothing new, by construction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.measure.ladder import parse_subnets
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.score.health import spearman
from instruct_prune.score.pilot import LEAST, PILOT, decide, pilot_rows

LADDER = parse_subnets(["magnitude:1.0,0.8,0.64"])
N = 240


def losses(*noise: float, ladder: tuple[SubnetSpec, ...] = LADDER) -> dict[SubnetSpec, np.ndarray]:
    """The dense loss is gamma distributed; each later pass adds 1 and noise of its own of that size to it."""
    rng = np.random.default_rng(0)
    dense = rng.gamma(4.0, 0.5, N)
    columns = [dense, *(dense + 1 + size * rng.normal(size=N) for size in noise)]
    return {spec: column.astype(np.float32) for spec, column in zip(ladder, columns, strict=True)}


LENGTHS = np.random.default_rng(1).integers(5, 200, N)


def test_passes_that_follow_from_the_dense_one_are_saved() -> None:
    found = decide(losses(0.01, 0.01), LADDER, LENGTHS, (), 0.98)
    assert [spec.name for spec in found.kept] == ["dense"]
    assert found.saved == ("magnitude_0800", "magnitude_0640")
    assert len(found.steps) == 1
    assert found.steps[0][1] > 0.999


def test_the_pass_that_changes_the_order_is_kept_and_only_that_one() -> None:
    found = decide(losses(0.01, 1.0), LADDER, LENGTHS, (), 0.98)
    assert [spec.name for spec in found.kept] == ["dense", "magnitude_0640"]
    assert found.saved == ("magnitude_0800",)
    (first, alone), (second, both) = found.steps
    assert (first, second) == ("dense", "magnitude_0640")
    assert alone < 0.98 < both


def test_a_ladder_of_which_every_pass_is_news_is_kept_whole_and_its_score_is_the_mean() -> None:
    columns = losses(1.0, 1.0)
    found = decide(columns, LADDER, LENGTHS, (), 0.98)
    assert found.kept == LADDER
    assert found.saved == ()
    assert found.steps[-1][1] == 1.0


@pytest.mark.parametrize("noise", [0.001, 1.0])
def test_a_tolerance_of_one_saves_nothing(noise: float) -> None:
    assert decide(losses(noise, noise), LADDER, LENGTHS, (), 1.0).kept == LADDER


def test_collapsed_passes_are_neither_kept_nor_part_of_the_score() -> None:
    columns = losses(0.01, 50.0)
    found = decide(columns, LADDER, LENGTHS, ("magnitude_0640",), 0.98)
    assert [spec.name for spec in found.kept] == ["dense"]
    assert found.collapsed == ("magnitude_0640",)
    assert found.saved == ("magnitude_0800",)
    mean = (columns[LADDER[0]] + columns[LADDER[1]]) / 2
    assert np.abs(found.predict(columns, LENGTHS) - mean).max() < 0.05


def test_the_twin_of_a_pass_counts_twice_and_is_no_pass_of_its_own() -> None:
    ladder = parse_subnets(["dlc-released"])
    columns = losses(1.0, ladder=tuple(dict.fromkeys(ladder)))
    found = decide(columns, ladder, LENGTHS, (), 0.98)
    assert [spec.name for spec in found.kept] == ["dense", "magnitude_0800"]
    assert found.saved == ()


def test_predictions_are_of_the_score_in_nats_for_rows_outside_the_pilot() -> None:
    columns = losses(0.05, 0.05)
    pilot = {spec: column[:80] for spec, column in columns.items()}
    found = decide(pilot, LADDER, LENGTHS[:80], (), 0.9)
    assert [spec.name for spec in found.kept] == ["dense"]
    predicted = found.predict(columns, LENGTHS)[80:]
    score = np.mean(list(columns.values()), axis=0)[80:]
    assert np.abs(predicted - score).max() < 0.15, "the noise of two passes in a mean of three"
    assert spearman(predicted, score) > 0.99


def test_the_correlation_is_that_of_rows_that_the_regression_has_not_seen() -> None:
    """A score that is noise to what was kept: in-sample there would be some correlation."""
    rng = np.random.default_rng(2)
    dense = np.ones(80) + 1e-3 * rng.normal(size=80)
    columns = {LADDER[0]: dense, LADDER[1]: rng.normal(size=80), LADDER[2]: rng.normal(size=80)}
    found = decide({s: c.astype(np.float32) for s, c in columns.items()}, LADDER, LENGTHS[:80], (), 0.98)
    assert found.steps[0][1] < 0.1
    assert found.kept == LADDER


def test_rows_that_a_pass_could_not_measure_are_left_out_of_the_decision() -> None:
    columns = losses(0.01, 0.01)
    columns[LADDER[2]][:10] = np.nan
    found = decide(columns, LADDER, LENGTHS, (), 0.98)
    assert np.isfinite(found.weights).all()
    assert np.isfinite(found.predict(columns, LENGTHS)).all(), "the saved pass is not needed"


# ---- the rows of the pilot ----


def names(n: int) -> list[str]:
    return [f"{hash_:032x}" for hash_ in np.random.default_rng(3).permutation(n)]


def test_few_rows_have_no_pilot() -> None:
    few = 4 * LEAST - 1
    assert pilot_rows(np.arange(few), np.ones(few, dtype=np.int32), names(few)) is None


@pytest.mark.parametrize(("n", "size"), [(256, 64), (1000, 250), (2048, PILOT), (50_000, PILOT)])
def test_the_pilot_is_a_quarter_and_at_most_512_rows(n: int, size: int) -> None:
    found = pilot_rows(np.arange(n), np.arange(n, dtype=np.int32), names(n))
    assert found is not None
    assert len(found) == len(np.unique(found)) == size


def test_every_length_is_in_the_pilot() -> None:
    n = 4096
    found = pilot_rows(np.arange(n), np.arange(n, dtype=np.int32), names(n))
    assert found is not None
    per_stratum = np.bincount(found * 32 // n, minlength=32)
    assert per_stratum.tolist() == [16] * 32


@given(st.integers(0, 2**32))
def test_the_pilot_is_the_same_rows_in_whatever_order_they_come(seed: int) -> None:
    n = 300
    lengths, hashes = np.random.default_rng(0).integers(5, 50, n).astype(np.int32), names(n)
    first = pilot_rows(np.arange(n), lengths, hashes)
    order = np.random.default_rng(seed).permutation(n)
    second = pilot_rows(np.arange(n), lengths[order], [hashes[i] for i in order])
    assert first is not None
    assert second is not None
    assert {hashes[i] for i in first} == {hashes[order[i]] for i in second}
