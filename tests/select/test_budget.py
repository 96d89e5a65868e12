"""Budgets are exact: shares add up, stay within bounds, and wrong requests are refused in words."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.select import largest_remainder, resolve_budget
from instruct_prune.select.data import Budget, Pool


def pool_of(n: int, tokens: int = 10) -> Pool:
    rows = np.arange(n)
    return Pool(rows, rows.astype(np.float32), np.full(n, tokens, dtype=np.int32), np.zeros(n, dtype=np.int32))


@pytest.mark.parametrize(
    ("keep", "rows"),
    [(1, 1), (400, 400), (150, 150), (0.25, 100), (1.0, 400), (0.3333, 133), (0.0013, 1), (np.int64(7), 7)],
)
def test_rows_and_shares(keep, rows):
    assert resolve_budget(keep, None, pool_of(400)) == Budget(rows=rows)


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        (0, "keeps nothing"),
        (0.0, "not a share"),
        (-3, "keeps nothing"),
        (-0.2, "not a share"),
        (1.5, "not a share"),
        (float("nan"), "not a share"),
        (float("inf"), "not a share"),
        (5000, "more than the 400 scored rows"),
        (0.0001, "less than one row"),
        (True, "must be a number"),
        ("half", "must be a number"),
    ],
)
def test_refused(keep, says):
    with pytest.raises(InputError, match=says):
        resolve_budget(keep, None, pool_of(400))


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (0, "at least 1"),
        (2.5, "whole number"),
        (9, "shortest scored row"),
        (4001, "more than the 4000 response tokens"),
    ],
)
def test_tokens_refused(tokens, says):
    with pytest.raises(InputError, match=says):
        resolve_budget(None, tokens, pool_of(400))


def test_tokens_taken():
    assert resolve_budget(None, 4000, pool_of(400)) == Budget(tokens=4000)


def test_said_once():
    for keep, tokens in ((None, None), (0.5, 100)):
        with pytest.raises(InputError, match="exactly once"):
            resolve_budget(keep, tokens, pool_of(4))


def test_empty_pool():
    with pytest.raises(InputError, match="no scored rows"):
        resolve_budget(0.5, None, pool_of(0))


@pytest.mark.parametrize(
    ("total", "weights", "capacity", "floor", "shares"),
    [
        (10, [1, 1, 1], [9, 9, 9], None, [4, 3, 3]),  # a tie goes to the lower index
        (10, [5, 1, 1], [3, 9, 9], None, [3, 4, 3]),  # what the first cannot take, the others share
        (10, [100, 1, 1], [100, 9, 9], [0, 3, 1], [6, 3, 1]),  # floors come out of the others' shares
        (10, [6, 3, 1], [10, 10, 10], None, [6, 3, 1]),
        (7, [6, 3, 1], [10, 10, 10], None, [4, 2, 1]),  # quotas 4.2, 2.1, 0.7
        (4, [0, 0], [2, 2], None, [2, 2]),
        (0, [3, 4], [2, 2], None, [0, 0]),
        (
            10**10,
            [10**10, 3 * 10**10],
            [10**11, 10**11],
            None,
            [25 * 10**8, 75 * 10**8],
        ),  # beyond 64 bits when multiplied
    ],
)
def test_largest_remainder_by_hand(total, weights, capacity, floor, shares):
    assert largest_remainder(total, weights, capacity, floor).tolist() == shares


@given(st.data())
def test_largest_remainder_adds_up(data):
    k = data.draw(st.integers(1, 12))
    high = data.draw(st.lists(st.integers(0, 50), min_size=k, max_size=k))
    low = [data.draw(st.integers(0, h)) for h in high]
    weights = data.draw(st.lists(st.integers(0, 100), min_size=k, max_size=k))
    total = data.draw(st.integers(sum(low), sum(high)))
    shares = largest_remainder(total, weights, high, low)
    assert shares.sum() == total
    assert (shares >= low).all()
    assert (shares <= high).all()


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=20), st.integers(0, 500))
def test_largest_remainder_is_within_one_of_the_quota(weights, total):
    shares = largest_remainder(total, weights, [10**6] * len(weights))
    quotas = np.array(weights) * total / sum(weights)
    assert (np.abs(shares - quotas) < 1).all()


def test_impossible_bounds():
    with pytest.raises(ValueError, match="do not fit"):
        largest_remainder(11, [1, 1], [5, 5])
    with pytest.raises(ValueError, match="do not fit"):
        largest_remainder(1, [1, 1], [5, 5], [1, 1])
