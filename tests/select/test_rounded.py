"""Vectors in 8 bits: how far off they are, and that what is decided is decided by the vectors themselves."""

from __future__ import annotations

import numpy as np
import pytest

from instruct_prune.select.rounded import Rounded


@pytest.mark.parametrize("sparse", [False, True])
def test_no_cosine_is_off_by_more_than_the_slack(sparse: bool) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((5000, 16)).astype(np.float32)
    if sparse:  # one large number a row: the steps are coarse for all others
        vectors[np.arange(5000), rng.integers(0, 16, 5000)] += 50
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rounded, rows = Rounded(vectors), np.array([4, 4999, 17, 0])
    cosine, off = vectors[rows] @ vectors[rows].T, rounded[rows] @ rounded[rows].T
    assert 0 < np.abs(cosine - off).max() <= rounded.slack < 0.1
    assert rounded[rows].dtype == np.float32


def test_pairs_are_decided_by_the_vectors_themselves() -> None:
    near = np.array([[1, 0], [0.95, 0.3123], [0.949, 0.3153]], dtype=np.float32)
    rounded = Rounded(near / np.linalg.norm(near, axis=1, keepdims=True))
    assert rounded.reach(np.array([0, 0, 1]), np.array([1, 2, 2]), 0.9495).tolist() == [True, False, True]
    assert rounded.reach(np.array([], dtype=np.int64), np.array([], dtype=np.int64), 0.9).tolist() == []


def test_rows_of_zeros_stay_zeros() -> None:
    assert Rounded(np.zeros((2, 3), dtype=np.float32))[np.array([1])].tolist() == [[0, 0, 0]]
