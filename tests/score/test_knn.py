"""k-NN learning complexity: neighbours, confidence and k by hand; the score over depths."""

from __future__ import annotations

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.score import knn
from instruct_prune.score.aggregate import aggregate
from instruct_prune.score.columns import LABEL, POOLED, Columns
from instruct_prune.score.knn import choose_k, confidence, neighbours


def test_neighbours_leave_the_row_itself_out() -> None:
    points = np.array([[0.0], [1.0], [3.0], [7.0]], dtype=np.float32)
    distances, positions = neighbours(points, 2)
    assert positions.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_confidence_by_hand() -> None:
    found = confidence(np.array([[1.0, 2.0, 4.0]], dtype=np.float32), np.array([[True, False, True]]))
    np.testing.assert_allclose(found, [(1 + 0.25) / 1.75])


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    whole = neighbours(points, 3)
    monkeypatch.setattr(knn, "BLOCK", 60)
    again = neighbours(points, 3)
    np.testing.assert_array_equal(whole[1], again[1])
    np.testing.assert_array_equal(whole[0], again[0])


def chosen(points: np.ndarray, labels: np.ndarray, candidates: tuple[int, ...]) -> int:
    distances, positions = neighbours(points, max(candidates))
    return choose_k(distances, labels[positions], labels, candidates)


def test_k_is_the_best_one_left_out() -> None:
    # Pairs of the same class far from one another: only k = 1 is always right.
    base = np.arange(12.0).repeat(2) * 10
    points = (base + np.tile([0.0, 0.5], 12)).astype(np.float32)[:, None]
    labels = np.arange(24) // 2 % 2
    assert chosen(points, labels, (1, 5, 9)) == 1
    assert chosen(points, np.zeros(24, dtype=np.int64), (5, 9)) == 5


def test_the_score_is_one_minus_the_mean_confidence_over_depths() -> None:
    rng = np.random.default_rng(1)
    labels = np.array(["a", "b", "c"])[rng.integers(0, 3, 40)]
    depths = [rng.normal(size=(40, d)).astype(np.float32) for d in (3, 5)]
    depths[1][7] = np.nan
    found = aggregate(
        Columns({f"{POOLED}{i:02d}": x for i, x in enumerate(depths)} | {LABEL: labels}), "knn_lc", {"k": 4}
    )
    known = np.arange(40) != 7
    sure = np.zeros(39)
    for states in depths:
        for i, (own, label) in enumerate(zip(states[known], labels[known], strict=True)):
            apart = np.linalg.norm(states[known].astype(float) - own, axis=1)
            nearest = [j for j in np.argsort(apart) if j != i][:4]
            same = sum(1 / apart[j] for j in nearest if labels[known][j] == label)
            sure[i] += same / sum(1 / apart[j] for j in nearest) / 2
    np.testing.assert_allclose(found[known], 1 - sure, atol=1e-5)
    assert np.isnan(found[7])


def test_wrong_k_and_too_few_rows_are_told() -> None:
    columns = Columns({f"{POOLED}01": np.ones((5, 2), dtype=np.float32), LABEL: np.arange(5)})
    with pytest.raises(InputError, match="k is 5"):
        aggregate(columns, "knn_lc", {"k": 5})
    with pytest.raises(InputError, match="1 rows have pooled states"):
        aggregate(Columns({f"{POOLED}01": np.ones((1, 2), dtype=np.float32), LABEL: np.arange(1)}), "knn_lc")
