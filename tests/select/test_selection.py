"""What holds for every selection: an exact budget, no row twice, a reason for each, the same rows for the same seed."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.select import METHODS, find_method, largest_remainder, select_rows
from instruct_prune.select.data import Budget, Pool
from instruct_prune.select.draw import easiest_first
from instruct_prune.select.stratum import FIRST_KEPT, fitting

UNAIMED = sorted(
    name for name in METHODS if "target" not in find_method(name).needs_of()
)  # test_targeted.py has the other


def pool_of(n: int, k: int = 1, seed: int = 0, ties: bool = False) -> Pool:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 3, n) if ties else rng.standard_normal(n)
    vectors = rng.standard_normal((n, 5))
    dense = rng.random(n).astype(np.float32)
    return Pool(
        row_id=np.sort(rng.choice(3 * n, n, replace=False)),
        score=score.astype(np.float32),
        n_response=rng.integers(1, 40, n).astype(np.int32),
        strata=rng.integers(0, k, n).astype(np.int32),
        strata_names=tuple(f"stratum {i}" for i in range(k)),
        embeddings=(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        losses={"dense": dense, "alone": rng.random(n).astype(np.float32)},
    )


def shuffled(pool: Pool, seed: int) -> tuple[Pool, np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(pool))
    columns = {name: getattr(pool, name)[order] for name in ("row_id", "score", "n_response", "strata", "embeddings")}
    return replace(pool, **columns, losses={name: loss[order] for name, loss in pool.losses.items()}), order


cases = st.fixed_dictionaries(
    {
        "n": st.integers(1, 60),
        "k": st.integers(1, 7),
        "seed": st.integers(0, 9),
        "ties": st.booleans(),
        "share": st.floats(0.01, 1),
        "method": st.sampled_from(UNAIMED),
        "minimum": st.integers(0, 2),
        "forced": st.integers(0, 3),
    }
)


@settings(deadline=None, max_examples=150)
@given(cases)
def test_rows_exactly_whatever_the_order(case):
    pool = pool_of(case["n"], case["k"], case["seed"], case["ties"])
    minimum = case["minimum"]
    must_keep = pool.row_id[: case["forced"]]
    sizes = np.bincount(pool.strata, minlength=case["k"])
    forced = np.bincount(pool.strata[: case["forced"]], minlength=case["k"])
    least = int(np.maximum(np.minimum(minimum, sizes), forced).sum())
    keep = min(case["n"], max(1, round(case["share"] * case["n"]), least))
    options = {"method": case["method"], "seed": case["seed"], "min_per_stratum": minimum, "must_keep": must_keep}

    selection = select_rows(pool, Budget(rows=keep), **options)
    assert selection.selected.sum() == keep == len(np.unique(selection.kept))
    assert np.isin(must_keep, selection.kept).all()
    assert (np.bincount(selection.stratum[selection.selected], minlength=case["k"]) >= np.minimum(minimum, sizes)).all()
    assert np.array_equal(selection.row_id, pool.row_id)
    assert np.array_equal(selection.selected, selection.reason >= FIRST_KEPT)

    other, _ = shuffled(pool, seed=1)
    again = select_rows(other, Budget(rows=keep), **options)
    assert np.array_equal(again.row_id, selection.row_id)
    assert np.array_equal(again.reason, selection.reason)


@settings(deadline=None, max_examples=100)
@given(cases)
def test_tokens_never_above_and_within_one_sample(case):
    pool = pool_of(case["n"], case["k"], case["seed"], case["ties"])
    total = int(pool.n_response.sum())
    budget = max(int(pool.n_response.min()), round(case["share"] * total))
    params = {"cut": 0.0} if case["method"] == "ccs" else {}
    selection = select_rows(pool, Budget(tokens=budget), method=case["method"], seed=case["seed"], params=params)
    spent = int(pool.n_response[selection.selected].sum())
    assert spent <= budget
    assert (pool.n_response[~selection.selected] > budget - spent).all()  # no dropped row would still fit
    other, _ = shuffled(pool, seed=2)
    again = select_rows(other, Budget(tokens=budget), method=case["method"], seed=case["seed"], params=params)
    assert np.array_equal(again.kept, selection.kept)


def test_strata_get_their_share():
    pool = pool_of(300, k=5)
    sizes = np.bincount(pool.strata)
    for method in ("flexrand", "easy_diverse", "random", "k_center"):
        selection = select_rows(pool, Budget(rows=77), method=method)
        got = np.bincount(selection.stratum[selection.selected])
        assert got.tolist() == largest_remainder(77, sizes, sizes).tolist()
        assert (np.abs(got - 77 * sizes / 300) < 1).all()


def test_a_stratum_smaller_than_its_share_gives_all_it_has():
    pool = replace(pool_of(100, k=3), strata=np.repeat([0, 1, 2], [90, 8, 2]).astype(np.int32))
    selection = select_rows(pool, Budget(rows=60), min_per_stratum=5)
    assert np.bincount(selection.stratum[selection.selected]).tolist() == [53, 5, 2]


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 9), st.floats(0.02, 1), st.sampled_from(UNAIMED))
def test_balanced_strata_get_equal_shares_as_far_as_they_have_rows(seed, share, method):
    pool = replace(pool_of(100, k=3, seed=seed), strata=np.repeat([0, 1, 2], [70, 25, 5]).astype(np.int32))
    budget = max(3, round(share * 100))
    selection = select_rows(pool, Budget(rows=budget), method=method, balanced=True, seed=seed)
    got = np.bincount(selection.stratum[selection.selected], minlength=3)
    assert got.sum() == budget
    level = got.max()  # water in three glasses: a stratum that has less than the others has given all its rows
    assert all(level - one <= 1 or one == size for one, size in zip(got, (70, 25, 5), strict=True))


@given(st.integers(0, 99))
def test_balanced_strata_get_equal_shares_of_the_tokens(seed):
    pool = replace(pool_of(100, k=3, seed=seed), strata=np.repeat([0, 1, 2], [60, 25, 15]).astype(np.int32))
    selection = select_rows(pool, Budget(tokens=450), method="random", balanced=True, seed=seed)
    got = np.bincount(pool.strata, weights=pool.n_response * selection.selected)
    assert got.sum() <= 450
    assert (np.abs(got - 150) <= pool.n_response.max()).all()


def test_min_per_stratum_under_tokens():
    pool = replace(pool_of(100, k=3), strata=np.repeat([0, 1, 2], [90, 8, 2]).astype(np.int32))
    selection = select_rows(pool, Budget(tokens=600), min_per_stratum=4)
    assert "must keep" not in [selection.reasons[r] for r in selection.reason]
    got = np.bincount(selection.stratum[selection.selected])
    assert got[1] >= 4
    assert got[2] == 2
    assert pool.n_response[selection.selected].sum() <= 600


def test_rank_and_reason_of_every_row():
    pool = Pool(
        row_id=np.array([2, 5, 6, 9]),
        score=np.array([0.5, 0.1, 0.5, 0.7], dtype=np.float32),
        n_response=np.ones(4, dtype=np.int32),
        strata=np.array([0, 1, 0, 0], dtype=np.int32),
        strata_names=("a", "b"),
    )
    selection = select_rows(
        pool, Budget(rows=2), method="hardest", must_keep=[2], duplicate_of=np.array([-1, -1, -1, 6])
    )
    assert selection.rank.tolist() == [0, 0, 1, 2]  # a tie: the lower row id is the easier one
    reasons = [selection.reasons[r] for r in selection.reason]
    assert reasons == ["must keep", "picked", "budget", "duplicate"]
    assert selection.duplicate_of.tolist() == [-1, -1, -1, 6]
    assert selection.kept.tolist() == [2, 5]
    assert selection.dropped.tolist() == [6, 9]


def test_duplicates_leave_before_the_budget_is_shared():
    pool = pool_of(40, k=2)
    duplicate_of = np.full(40, -1)
    duplicate_of[1::2] = pool.row_id[0::2]
    selection = select_rows(pool, Budget(rows=20), duplicate_of=duplicate_of)
    assert np.array_equal(selection.kept, pool.row_id[0::2])
    with pytest.raises(InputError, match="only 20 are left"):
        select_rows(pool, Budget(rows=21), duplicate_of=duplicate_of)
    other, order = shuffled(pool, 3)
    again = select_rows(other, Budget(rows=12), duplicate_of=duplicate_of[order])
    assert np.array_equal(again.kept, select_rows(pool, Budget(rows=12), duplicate_of=duplicate_of).kept)


def test_a_row_that_must_be_kept_is_no_duplicate():
    pool = pool_of(4)
    third = pool.row_id[2]
    duplicate_of = np.array([third, third, -1, -1])
    selection = select_rows(pool, Budget(rows=2), must_keep=pool.row_id[:2], duplicate_of=duplicate_of)
    assert np.array_equal(selection.kept, pool.row_id[:2])
    assert (selection.duplicate_of == -1).all()


def test_other_seeds_give_other_rows():
    pool = pool_of(200)
    kept = {tuple(select_rows(pool, Budget(rows=50), seed=seed).kept) for seed in range(5)}
    assert len(kept) == 5


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    select_rows(pool_of(50), Budget(rows=20))
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({"score": np.array([0, np.nan, 1], dtype=np.float32)}, {}, "first: row 4"),
        ({"row_id": np.array([1, 4, 4])}, {}, "row 4 is in the pool twice"),
        ({}, {"method": "flexrnad"}, "Did you mean 'flexrand'"),
        ({}, {"must_keep": [4, 77]}, "first: row 77"),
        ({}, {"must_keep": [1, 4, 9]}, "take 3 rows, the budget is 2"),
        ({}, {"min_per_stratum": 3}, "the budget is 2"),
        ({}, {"min_per_stratum": -1}, "0 or more"),
        ({}, {"balanced": True}, "all rows are in one"),
        ({}, {"params": {"bins": 3}}, "no parameter 'bins'"),
        ({}, {"method": "ccs", "params": {"bin": 3}}, "Did you mean 'bins'"),
        ({}, {"params": {"split": "mmd"}}, "there are none"),
        ({}, {"method": "k_center"}, "there are none"),
        ({}, {"method": "ifd"}, "needs the loss of each row under 'dense'"),
        ({}, {"duplicate_of": np.array([-1])}, "given for 1 rows"),
    ],
)
def test_bad_input(change, options, says):
    pool = Pool(
        row_id=np.array([1, 4, 9]),
        score=np.array([0, 1, 2], dtype=np.float32),
        n_response=np.ones(3, dtype=np.int32),
        strata=np.zeros(3, dtype=np.int32),
    )
    with pytest.raises(InputError, match=says):
        select_rows(replace(pool, **change), Budget(rows=2), **options)


def test_empty_pool():
    with pytest.raises(InputError, match="no scored rows"):
        select_rows(pool_of(0), Budget(rows=1))


def test_every_method_says_what_it_needs():
    without = replace(pool_of(20), embeddings=None)
    for method in UNAIMED:
        if "embeddings" in find_method(method).needs_of():
            with pytest.raises(InputError, match="embeddings"):
                select_rows(without, Budget(rows=5), method=method)
        else:
            assert select_rows(without, Budget(rows=5), method=method).selected.sum() == 5
    clustered = {name for name in METHODS if find_method(name).strata == "clusters"}
    assert clustered == {"flexrand", "easy_diverse"}


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=60))
def test_easiest_first_is_a_stable_argsort(values):
    score = np.array(values, dtype=np.float32)
    assert np.array_equal(easiest_first(score), np.argsort(score, kind="stable"))


@given(st.lists(st.integers(1, 9), max_size=30), st.integers(0, 60))
def test_fitting_takes_each_item_that_still_fits(cost, budget):
    expected, left = [], budget
    for i, c in enumerate(cost):
        if c <= left:
            expected.append(i)
            left -= c
    assert fitting(np.array(cost, dtype=np.int64), budget).tolist() == expected
