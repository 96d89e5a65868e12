"""k-NN learning complexity, by hand and by brute force."""

import numpy as np
import pytest

from instruct_prune.errors import InputError
from instruct_prune.score import Columns, aggregate, knn
from instruct_prune.score.knn import choose_k, confidence, neighbours


def blobs(n: int, d: int, seed: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    features = rng.standard_normal((classes, d))[labels] + 1.5 * rng.standard_normal((n, d))
    return features.astype(np.float32), labels


def columns_of(labels: np.ndarray, *depths: np.ndarray) -> Columns:
    return Columns({f"pooled_mean_{i}": depth for i, depth in enumerate(depths)} | {"label": labels})


def test_neighbours_leave_the_row_itself_out():
    distances, positions = neighbours(np.array([[0], [1], [3], [7]], dtype=np.float32), 2)
    assert positions.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_neighbours_by_brute_force_in_blocks(monkeypatch):
    features, _ = blobs(60, 5, 0)
    away = np.linalg.norm(features[:, None].astype(float) - features[None], axis=2)
    np.fill_diagonal(away, np.inf)
    monkeypatch.setattr(knn, "BLOCK", 700)
    monkeypatch.setattr(knn, "SPARE", 1)
    distances, positions = neighbours(features, 7)
    assert np.array_equal(positions, np.argsort(away, axis=1)[:, :7])
    assert np.allclose(distances, np.sort(away, axis=1)[:, :7])


def test_confidence_by_hand():
    found = confidence(np.array([[1, 2, 4]], dtype=np.float32), np.array([[True, False, True]]))
    assert found.tolist() == [pytest.approx((1 + 0.25) / 1.75)]


def test_score_by_hand():
    # Distances of row 0: 1 (its class), 3 (not): confidence (1/1) / (1/1 + 1/3) = 0.75. Row 3 has no state.
    features = np.array([[0], [1], [3], [np.nan]], dtype=np.float32)
    found = aggregate(columns_of(np.array([5, 5, 9, 9]), features), "knn_lc", {"k": 2})
    assert found[:3].tolist() == pytest.approx([0.25, 1 - (1 / 1) / (1 / 1 + 1 / 2), 1])
    assert np.isnan(found[3])


def test_mean_over_depths():
    labels = np.array([0, 0, 1, 1])
    near = np.array([[0], [1], [10], [11]], dtype=np.float32)  # the nearest other is of the row's class
    far = np.array([[0], [10], [1], [11]], dtype=np.float32)  # it is of the other class
    assert aggregate(columns_of(labels, near, far), "knn_lc", {"k": 1}).tolist() == [0.5, 0.5, 0.5, 0.5]


def test_k_is_the_best_one_left_out():
    # Pairs of one class far from one another: only k = 1 is always right.
    points = (np.repeat(np.arange(12.0), 2) * 10 + np.tile([0, 0.5], 12))[:, None].astype(np.float32)
    distances, positions = neighbours(points, 9)
    labels = np.arange(24) // 2 % 2
    assert choose_k(distances, labels[positions], labels, (1, 5, 9)) == 1
    same = np.zeros(24, dtype=np.int64)
    assert choose_k(distances, same[positions], same, (5, 9)) == 5
    assert choose_k(distances, same[positions], same, (50,)) == 9  # fewer neighbours than any candidate


def test_more_rows_than_are_asked(monkeypatch):
    monkeypatch.setattr(knn, "ASKED", 40)
    features, labels = blobs(300, 6, 1)
    found = aggregate(columns_of(labels, features), "knn_lc")
    assert np.array_equal(found, aggregate(columns_of(labels, features), "knn_lc"))
    assert ((found >= 0) & (found <= 1)).all()


def test_what_is_missing_is_named():
    features, labels = blobs(5, 2, 0)
    with pytest.raises(InputError, match="needs the pooled states"):
        aggregate(Columns({"label": labels}), "knn_lc")
    with pytest.raises(InputError, match="needs the class of each row"):
        aggregate(Columns({"pooled_mean": features}), "knn_lc")
    with pytest.raises(InputError, match="1 rows have pooled states"):
        aggregate(columns_of(labels[:1], features[:1]), "knn_lc")
    with pytest.raises(InputError, match="k is 5, it must be less than the 5 rows"):
        aggregate(columns_of(labels, features), "knn_lc", {"k": 5})
