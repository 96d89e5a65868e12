"""Near-duplicates: every dropped row has a kept one at the threshold, and no two kept rows reach it."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.select import duplicates
from instruct_prune.select.duplicates import find_duplicates, text_keys

ALPACA = Path(__file__).parents[3] / "shared/data/alpaca_9k.json"


def unit(x: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def at_angles(*degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def one_by_one(vectors: np.ndarray, priority: np.ndarray, threshold: float) -> list[int]:
    """The definition: in order of priority, a row is kept unless it is near to a row kept before it."""
    stands = np.full(len(vectors), -1)
    kept: list[int] = []
    for row in np.argsort(priority).tolist():
        near = [k for k in kept if vectors[row] @ vectors[k] >= threshold]
        if near:
            stands[row] = near[0]
        else:
            kept.append(row)
    return stands.tolist()


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6), threshold=st.floats(0.3, 0.99))
def test_the_same_as_one_by_one(n, seed, threshold):
    rng = np.random.default_rng(seed)
    vectors, priority = unit(rng.standard_normal((n, 3))), rng.permutation(n)
    found = find_duplicates(np.arange(n), priority, vectors=vectors, threshold=threshold)
    assert found.tolist() == one_by_one(vectors, priority, threshold)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(30, 120), seed=st.integers(0, 10**6), threshold=st.floats(0.5, 0.99), rounded=st.booleans())
def test_rounds_end_as_one_by_one_does(n, seed, threshold, rounded):
    rng = np.random.default_rng(seed)
    vectors, priority = unit(rng.standard_normal((n, 3))), rng.permutation(n)
    with pytest.MonkeyPatch.context() as patch:  # cells that hold everything: no pair is missed
        patch.setattr(duplicates, "ALL_PAIRS", 3)
        patch.setattr(duplicates, "CELL", 1000)
        patch.setattr(duplicates, "MOST_BYTES", 0 if rounded else 1 << 32)
        found = find_duplicates(np.arange(n), priority, vectors=vectors, threshold=threshold)
    assert found.tolist() == one_by_one(vectors, priority, threshold)


def test_a_long_chain_in_order():
    # 3000 rows, each near to the next only: every other one is kept, and it does not take 1500 rounds.
    vectors = at_angles(*np.linspace(0, 270, 3000))
    threshold = float(np.cos(np.radians(1.5 * 270 / 2999)))
    found = find_duplicates(np.arange(3000), np.arange(3000), vectors=vectors.astype(np.float64), threshold=threshold)
    assert np.array_equal(found, np.where(np.arange(3000) % 2, np.arange(3000) - 1, -1))


def test_a_chain_is_not_a_group():
    # 0 is near to 10 degrees, 10 to 20, 20 to 30; 0 is not near to 20.
    vectors = at_angles(0, 10, 20, 30)
    assert find_duplicates(np.array([5, 6, 7, 8]), np.arange(4), vectors=vectors, threshold=0.98).tolist() == [
        -1,
        5,
        -1,
        7,
    ]
    assert find_duplicates(
        np.array([5, 6, 7, 8]), np.array([1, 0, 2, 3]), vectors=vectors, threshold=0.98
    ).tolist() == [6, -1, 6, -1]


def test_equal_keys_are_one_group_and_follow_their_leader():
    keys = np.array([7, 7, 8, 9, 7])
    assert find_duplicates(np.arange(5), np.array([4, 1, 2, 3, 0]), keys=keys).tolist() == [4, 4, -1, -1, -1]
    # The leader (row 4) is itself near to row 3, which comes before it: row 3 stands for them all.
    vectors = at_angles(0, 0, 90, 5, 1)
    both = find_duplicates(np.arange(5), np.array([4, 2, 3, 0, 1]), keys=keys, vectors=vectors)
    assert both.tolist() == [3, 3, -1, -1, 3]


def test_cells_find_what_all_pairs_find(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = unit(rng.standard_normal((600, 24)))
    planted = unit(vectors[:80] + 0.03 * rng.standard_normal((80, 24)))
    vectors, priority = np.concatenate([vectors, planted]), rng.permutation(680)
    exact = find_duplicates(np.arange(680), priority, vectors=vectors)
    assert (exact >= 0).sum() == 80
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 50)
    monkeypatch.setattr(duplicates, "CELL", 20)
    found = find_duplicates(np.arange(680), priority, vectors=vectors)
    hit = found == exact
    assert hit[exact >= 0].mean() >= 0.95
    assert hit[exact < 0].mean() >= 0.99  # nothing is called a duplicate that is none


def test_every_row_is_in_one_cell_of_a_partition(monkeypatch):
    monkeypatch.setattr(duplicates, "ALL_PAIRS", 10)
    monkeypatch.setattr(duplicates, "CELL", 20)
    rng = np.random.default_rng(1)
    vectors = unit(
        np.concatenate([rng.standard_normal((300, 5)), np.ones((100, 5))])
    )  # 100 rows that no cut tells apart
    rows = rng.permutation(400)[:350]
    cells = list(duplicates._cells(vectors, rows, np.random.default_rng(0)))
    assert np.array_equal(np.sort(np.concatenate(cells)), np.arange(350))
    assert len(cells) > 10


def test_keys_ignore_case_spacing_and_punctuation_only():
    same = ["Write a poem, please.", "write a  poem please", "WRITE A POEM, PLEASE!", "“Write a poem” please…"]
    assert len(set(text_keys(same).tolist())) == 1
    differ = ["x = 1.5", "x = 15", "x - 1", "x / 1", "x + 1", "f(x)", "f x", "", "?", "!"]
    assert len(set(text_keys(differ).tolist())) == len(differ)
    assert text_keys([]).shape == (0,)
    assert len(text_keys(["\ud800"])) == 1  # a lone surrogate does not stop it


@pytest.mark.parametrize("threshold", [0, 1.5, -1, float("nan")])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(InputError, match="--dedup"):
        find_duplicates(np.arange(2), np.arange(2), vectors=at_angles(0, 1), threshold=threshold)


def test_identical_rows_without_keys():
    vectors = np.repeat(at_angles(0, 90), 5, axis=0)
    assert find_duplicates(np.arange(10), np.arange(10)[::-1].copy(), vectors=vectors, threshold=1 - 1e-6).tolist() == [
        4, 4, 4, 4, -1, 9, 9, 9, 9, -1,
    ]  # fmt: skip


@pytest.mark.skipif(not ALPACA.exists(), reason="the shared Alpaca rows are not on this machine")
def test_planted_case_and_punctuation_copies_of_real_rows():
    rows = json.loads(ALPACA.read_text(encoding="utf-8"))
    texts = ["\n".join(row[field] for field in ("instruction", "input", "output")) for row in rows]
    changes = [str.upper, str.lower, str.title, lambda t: re.sub(r"[.,!?](?=\s|$)", "", t), lambda t: t + "..."]
    rng = random.Random(0)
    chosen = rng.sample(range(len(rows)), 500)
    planted = [rng.choice(changes)(texts[i]) for i in chosen]
    n = len(texts)
    found = find_duplicates(np.arange(n + 500), np.arange(n + 500), keys=text_keys(texts + planted))
    assert (found[n:] == chosen).mean() >= 0.98
    assert (found[:n] >= 0).mean() <= 0.01


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_rows_that_are_apart_never_stand_for_one_another(n, seed):
    rng = np.random.default_rng(seed)
    vectors, priority = unit(rng.standard_normal((n, 2))), rng.permutation(n)
    keys, apart = rng.integers(0, 5, n), rng.integers(0, 3, n)
    found = find_duplicates(np.arange(n), priority, keys=keys, apart=apart, vectors=vectors, threshold=0.9)
    for group in range(3):
        rows = np.flatnonzero(apart == group)
        alone = find_duplicates(rows, priority[rows], keys=keys[rows], vectors=vectors[rows], threshold=0.9)
        assert found[rows].tolist() == alone.tolist()
