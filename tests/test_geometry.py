"""Distances against their definitions."""

import numpy as np
import pytest

from instruct_prune import geometry
from instruct_prune.geometry import WholeSet, median_distance, nearest_neighbors, nearest_similarity


def unit(n: int, d: int, seed: int) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(params=[4096, 8])
def block(request, monkeypatch):
    """Once in one block, once in several."""
    for function in (geometry.blocks,):
        monkeypatch.setattr(function, "__defaults__", (request.param,))
    monkeypatch.setattr(geometry, "BLOCK", request.param)


def test_mmd_is_its_definition(block):
    x, rows = unit(20, 4, 0), np.arange(3, 15)
    width = median_distance(x)

    def mean_kernel(left, right):  # a row is not compared with itself
        distances = [((x[i] - x[j]) ** 2).sum() for i in left for j in right if i != j]
        return np.exp(-np.array(distances) / (2 * width**2)).mean()

    every = np.arange(20)
    expected = mean_kernel(every, every) + mean_kernel(rows, rows) - 2 * mean_kernel(every, rows)
    assert WholeSet(x, 0).mmd_squared(rows) == pytest.approx(expected, abs=1e-5)


def test_a_random_subset_is_as_near_to_the_whole_set_as_chance_has_it(monkeypatch):
    """Rows that the subset and the whole set share must not make it look nearer than it is."""
    monkeypatch.setattr(WholeSet, "SAMPLE", 100)
    x = unit(150, 3, 0)
    rng = np.random.default_rng(0)
    values = [WholeSet(x, seed).mmd_squared(rng.choice(150, 60, replace=False)) for seed in range(80)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(80)
    assert min(values) < 0 < max(values)  # unbiased, so sometimes below zero
    lopsided = np.argsort(x[:, 0])[:60]
    assert WholeSet(x, 0).mmd_squared(lopsided) > 10 * np.std(values)


def test_median_distance():
    x = unit(12, 3, 0)
    pairs = [np.linalg.norm(x[i] - x[j]) for i in range(12) for j in range(i)]
    assert median_distance(x) == pytest.approx(np.median(pairs), abs=1e-5)
    assert median_distance(x[:1]) == median_distance(x[[0, 0]]) == 1.0


def test_nearest_neighbors_by_brute_force(block):
    x = unit(50, 3, 0)
    cosine = (x @ x.T).astype(np.float64)
    np.fill_diagonal(cosine, -2)
    index, found = nearest_neighbors(x, 5)
    assert np.allclose(found, np.sort(cosine, axis=1)[:, ::-1][:, :5], atol=1e-6)
    assert np.allclose(np.take_along_axis(cosine, index, axis=1), found, atol=1e-6)
    index, found = nearest_neighbors(x[:3], 9)
    assert index.shape == (3, 2)
    assert (np.sort(index, axis=1) == [[1, 2], [0, 2], [0, 1]]).all()


def test_nearest_similarity_by_brute_force(block):
    x = unit(30, 3, 0)
    cosine = x @ x.T
    rows = np.arange(0, 30, 2)
    assert np.allclose(nearest_similarity(x[:4], x, rows=rows), cosine[:4, rows].max(axis=1))
    np.fill_diagonal(cosine, -2)
    own = np.arange(30)
    assert np.allclose(nearest_similarity(x, x, own=own), cosine.max(axis=1))
    assert np.allclose(nearest_similarity(x[rows], x, own=rows, rows=rows), cosine[np.ix_(rows, rows)].max(axis=1))
    assert (nearest_similarity(x[:2], x, rows=np.empty(0, int)) == -np.inf).all()
