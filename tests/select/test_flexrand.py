"""FlexRand has the pool shares of docs/method.md, section 4."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.select import select_rows
from instruct_prune.select.data import Budget, Pool
from instruct_prune.select.flexrand import auto_split, pool_shares


def pool_of(n: int, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    score = rng.permutation(n).astype(np.float32)
    return Pool(np.arange(n), score, rng.integers(1, 50, n).astype(np.int32), np.zeros(n, dtype=np.int32))


@pytest.mark.parametrize(
    ("keep", "split", "easy"),
    [
        (40, 0.25, 20),  # b/2 = 0.20 < g: half and half
        (60, 0.25, 25),  # g = 0.25 < b/2: the whole easy pool
        (50, 0.50, 25),
        (40, 0.75, 20),  # hard share = min(0.25, 0.20)
        (60, 0.75, 35),  # hard share = 0.25: the whole hard pool
        (100, 0.10, 10),
        (10, 0.05, 5),
        (20, 0.05, 5),
    ],
)
def test_shares_of_one_stratum(keep, split, easy):
    pool = pool_of(100)
    selection = select_rows(pool, Budget(rows=keep), params={"split": split})
    in_easy_pool = pool.score < 100 * split
    assert selection.selected[in_easy_pool].sum() == easy
    assert selection.selected[~in_easy_pool].sum() == keep - easy
    kept_as = np.array(selection.reasons)[selection.reason]
    assert set(kept_as[selection.selected & in_easy_pool]) <= {"easy pool"}
    assert set(kept_as[selection.selected & ~in_easy_pool]) <= {"hard pool"}
    assert set(kept_as[~selection.selected]) <= {"budget"}


@given(n=st.integers(1, 200), share=st.floats(0.01, 1), split=st.floats(0.02, 0.98), seed=st.integers(0, 5))
def test_shares_of_any_stratum(n, share, split, seed):
    pool, keep = pool_of(n), max(1, round(n * share))
    selection = select_rows(pool, Budget(rows=keep), params={"split": split}, seed=seed)
    easy_pool = round(n * split)
    easy = selection.selected[pool.score < easy_pool].sum()
    if split <= 0.5:
        ideal = min(easy_pool, keep / 2)
    else:
        ideal = keep - min(n - easy_pool, keep / 2)
    assert abs(easy - ideal) <= 0.5  # the odd row of half a budget falls on either side
    assert selection.selected.sum() == keep


def test_the_odd_row_goes_to_either_pool():
    pool = pool_of(100)
    easy = [
        select_rows(pool, Budget(rows=5), params={"split": 0.5}, seed=s).selected[pool.score < 50].sum()
        for s in range(40)
    ]
    assert set(easy) == {2, 3}


def test_a_pool_that_is_too_small_leaves_its_remainder():
    assert pool_shares(9, easy_pool=5, hard_pool=5) == (4, 5)
    assert pool_shares(9, easy_pool=5, hard_pool=5, odd=1) == (5, 4)
    assert pool_shares(9, easy_pool=2, hard_pool=8) == (2, 7)
    assert pool_shares(9, easy_pool=8, hard_pool=2) == (7, 2)
    assert pool_shares(10, easy_pool=5, hard_pool=5) == (5, 5)


def test_rows_are_drawn_at_random_within_a_pool():
    pool = pool_of(100)
    counts = sum(
        select_rows(pool, Budget(rows=20), params={"split": 0.5}, seed=s).selected.astype(int) for s in range(300)
    )
    # Each row is kept with probability 0.2: 60 times of 300, standard deviation 6.9.
    assert counts.min() > 60 - 5 * 6.9
    assert counts.max() < 60 + 5 * 6.9


def test_auto_split_is_the_tables():
    assert [auto_split(b) for b in (0.1, 0.2, 0.29, 0.3, 0.5, 0.9)] == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert auto_split(100 / 334) == 0.5  # 0.3 of 334 rows, rounded
    pool = pool_of(100)
    assert select_rows(pool, Budget(rows=20)).params["split"] == 0.25
    assert select_rows(pool, Budget(rows=30)).params["split"] == 0.5


def test_forced_rows_count_in_their_pool():
    pool = pool_of(100)
    easiest = pool.row_id[np.argsort(pool.score)[:15]]
    selection = select_rows(pool, Budget(rows=40), params={"split": 0.5}, must_keep=easiest)
    assert selection.selected[pool.score < 50].sum() == 20
    assert selection.selected[pool.score < 15].all()
    more = pool.row_id[np.argsort(pool.score)[:30]]  # more than the easy share: the hard one shrinks
    selection = select_rows(pool, Budget(rows=40), params={"split": 0.5}, must_keep=more)
    assert selection.selected[pool.score < 50].sum() == 30


def test_under_a_token_budget_the_shares_are_in_tokens():
    pool = pool_of(2000)
    total = int(pool.n_response.sum())
    selection = select_rows(pool, Budget(tokens=total // 2), params={"split": 0.25})
    by_score = np.argsort(pool.score)
    tokens = pool.n_response[by_score]
    easy = by_score[np.cumsum(tokens) <= 0.25 * total]
    kept_tokens = pool.n_response[selection.selected].sum()
    easy_tokens = pool.n_response[easy][selection.selected[easy]].sum()
    assert 0 <= total // 2 - kept_tokens < 50
    assert abs(easy_tokens - total / 4) < 100


def test_tokens_that_fit_no_row_of_their_pool_go_to_the_other():
    # Half of 6 tokens buys no row of the easy pool (4 tokens each) and one of the hard pool (2 each): 4 are left.
    tokens = np.array([4, 4, 2, 2, 2, 2], dtype=np.int32)
    pool = Pool(np.arange(6), np.arange(6, dtype=np.float32), tokens, np.zeros(6, dtype=np.int32))
    for seed in range(5):
        selection = select_rows(pool, Budget(tokens=6), params={"split": 0.5}, seed=seed)
        assert tokens[selection.selected].sum() == 6


@pytest.mark.parametrize("split", [0, 1, -0.5, 1.5, float("nan"), "middle", True])
def test_bad_splits(split):
    with pytest.raises(InputError, match="split is"):
        select_rows(pool_of(10), Budget(rows=5), params={"split": split})


def test_split_belongs_to_flexrand():
    with pytest.raises(InputError, match=r"the method 'random' has no parameter 'split'\. It takes none"):
        select_rows(pool_of(10), Budget(rows=5), method="random", params={"split": 0.3})
