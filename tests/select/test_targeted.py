"""Round-robin towards a target, by hand and by brute force."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.errors import InputError
from instruct_prune.select import Budget, Pool, select_rows
from instruct_prune.select.target import Cosine, Target, Values
from instruct_prune.select.turns import Turns


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def make_pool(n: int, tasks: Sequence[int], seed: int = 0, d: int = 6, coarse: bool = False) -> Pool:
    rng = np.random.default_rng(seed)
    vectors, queries = rng.standard_normal((n, d)), rng.standard_normal((len(tasks), d))
    if coarse:  # many ties
        vectors, queries = np.round(vectors), np.round(queries)
        vectors[~vectors.any(axis=1)], queries[~queries.any(axis=1)] = 1, 1
    names = tuple(f"task{t}" for t in range(max(tasks) + 1))
    task = np.asarray(tasks, dtype=np.int32)
    at = rng.permutation(n).astype(np.int64)
    target = Target(names, task, np.arange(len(tasks), dtype=np.int64) + 100, Cosine(unit(queries), unit(vectors)), at)
    return Pool(
        row_id=np.arange(n, dtype=np.int64) * 3,
        score=rng.random(n).astype(np.float32),
        n_response=rng.integers(1, 20, n).astype(np.int32),
        strata=np.zeros(n, dtype=np.int32),
        target=target,
    )


def by_hand(pool: Pool, budget: Budget, forced: Sequence[int] = ()) -> list[tuple[int, int]]:
    """(row id, query) in the order in which rows are taken, the slow way."""
    target = pool.target
    assert target is not None
    cosine = target.near(np.arange(len(target)), target.at)
    cost = np.ones(len(pool), dtype=int) if budget.rows is not None else pool.n_response.astype(int)
    left = (budget.rows if budget.rows is not None else budget.tokens or 0) - sum(
        int(cost[pool.row_id.tolist().index(row)]) for row in forced
    )
    free = [i for i in range(len(pool)) if pool.row_id[i] not in forced]
    queues = [np.flatnonzero(target.task == t).tolist() for t in range(len(target.tasks))]
    taken: list[tuple[int, int]] = []
    step = 0
    while True:
        fits = [i for i in free if cost[i] <= left]
        if not fits:
            return taken
        queue = queues[step % len(queues)]
        query = queue[step // len(queues) % len(queue)]
        best = max(fits, key=lambda i: (cosine[query, i], -pool.row_id[i]))
        taken.append((int(pool.row_id[best]), query))
        free.remove(best)
        left -= int(cost[best])
        step += 1


@given(
    n=st.integers(1, 40),
    tasks=st.lists(st.integers(0, 2), min_size=1, max_size=6),
    seed=st.integers(0, 10_000),
    share=st.floats(0.01, 1),
    by_tokens=st.booleans(),
    coarse=st.booleans(),
)
def test_each_query_in_turn_takes_its_best_row(
    n: int, tasks: list[int], seed: int, share: float, by_tokens: bool, coarse: bool
) -> None:
    tasks = [sorted(set(tasks)).index(t) for t in tasks]
    pool = make_pool(n, tasks, seed, coarse=coarse)
    total = int(pool.n_response.sum())
    budget = Budget(tokens=max(1, int(share * total))) if by_tokens else Budget(rows=max(1, int(share * n)))
    if by_tokens and budget.tokens is not None and budget.tokens < pool.n_response.min():
        return
    selection = select_rows(pool, budget, method="targeted")
    expected = by_hand(pool, budget)
    assert selection.kept.tolist() == sorted(row for row, _ in expected)
    found = selection.taken
    assert found is not None
    for turn, (row, query) in enumerate(expected):
        at = pool.row_id.tolist().index(row)
        assert (found.turn[at], found.query[at], found.task[at]) == (turn, 100 + query, tasks[query])
    assert (found.turn[~selection.selected] == -1).all()


def test_row_order_changes_nothing_and_must_keep_counts() -> None:
    pool = make_pool(30, [0, 0, 1], seed=5)
    forced = [3, 30]
    selection = select_rows(pool, Budget(rows=9), method="targeted", must_keep=forced)
    assert set(forced) <= set(selection.kept.tolist())
    assert sorted(set(selection.kept.tolist()) - set(forced)) == sorted(
        r for r, _ in by_hand(pool, Budget(rows=9), forced)
    )
    order = np.random.default_rng(1).permutation(30)
    assert pool.target is not None
    shuffled = Pool(
        pool.row_id[order],
        pool.score[order],
        pool.n_response[order],
        pool.strata[order],
        target=pool.target.of_rows(order),
    )
    assert (
        select_rows(shuffled, Budget(rows=9), method="targeted", must_keep=forced).kept.tolist()
        == selection.kept.tolist()
    )


def test_every_query_of_a_task_is_served_before_any_is_served_twice() -> None:
    pool = make_pool(40, [0] * 8, seed=2)
    found = select_rows(pool, Budget(rows=8), method="targeted").taken
    assert found is not None
    assert sorted(found.query[found.turn >= 0].tolist()) == list(range(100, 108))


def test_a_row_without_a_vector_comes_last() -> None:
    pool = make_pool(5, [0], seed=3)
    assert pool.target is not None
    assert isinstance(pool.target.near, Cosine)
    vectors = np.array(pool.target.near.vectors)
    vectors[pool.target.at[2]] = np.nan
    target = replace(pool.target, near=Cosine(pool.target.near.queries, vectors))
    pool = Pool(pool.row_id, pool.score, pool.n_response, pool.strata, target=target)
    assert 6 not in select_rows(pool, Budget(rows=4), method="targeted").kept


def test_without_a_target_it_is_refused() -> None:
    pool = make_pool(5, [0])
    bare = Pool(pool.row_id, pool.score, pool.n_response, pool.strata)
    with pytest.raises(InputError, match="--target FILE"):
        select_rows(bare, Budget(rows=2), method="targeted")


def test_values_without_queries_are_taken_from_the_highest_down_tasks_in_turn() -> None:
    pool = make_pool(6, [0, 1])
    assert pool.target is not None
    values = np.array([[5, 4, 3, 2, 1, 0], [9, 9, 0, 1, 7, np.nan]], dtype=np.float32)
    whole = np.arange(2, dtype=np.int32)
    target = Target(("a", "b"), whole, np.full(2, -1), Values(values), np.arange(6))
    pool = Pool(pool.row_id, pool.score, pool.n_response, pool.strata, target=target)
    selection = select_rows(pool, Budget(rows=4), method="targeted")
    found = selection.taken
    assert found is not None
    # a: row 0 (5); b: row 1 (9); a: row 2 (3); b: row 4 (7). Row ids are three times the positions.
    assert selection.kept.tolist() == [0, 3, 6, 12]
    assert found.turn.tolist() == [0, 1, 2, -1, 3, -1]
    assert found.task.tolist() == [0, 1, 0, -1, 1, -1]
    assert found.query.tolist() == [-1] * 6
    assert found.similarity.tolist() == [5, 9, 3, 2, 7, 0]
    assert select_rows(pool, Budget(rows=6), method="targeted").selected.all()


def with_strata(pool: Pool, k: int, seed: int) -> Pool:
    strata = np.random.default_rng(seed).integers(0, k, len(pool)).astype(np.int32)
    return replace(pool, strata=strata, strata_names=tuple(f"s{i}" for i in range(k)))


@given(
    n=st.integers(8, 60),
    q=st.integers(1, 9),
    n_tasks=st.integers(1, 3),
    k=st.integers(1, 4),
    least=st.integers(0, 1),
    seed=st.integers(0, 10_000),
    share=st.floats(0.3, 0.9),
    by_tokens=st.booleans(),
)
def test_with_everything_at_once_the_budget_is_exact_and_no_query_is_passed_over(
    n: int, q: int, n_tasks: int, k: int, least: int, seed: int, share: float, by_tokens: bool
) -> None:
    """Strata, least rows of each, rows to keep, duplicates and contaminated rows."""
    rng = np.random.default_rng(seed)
    pool = with_strata(make_pool(n, sorted([i % n_tasks for i in range(max(q, n_tasks))]), seed), k, seed)
    forced = pool.row_id[:2]
    out = np.zeros(n, dtype=bool)
    out[n - 2] = True
    duplicate_of = np.where(np.arange(n) == n - 1, pool.row_id[3], -1)
    total = int(pool.n_response[: n - 2].sum())
    budget = Budget(tokens=max(int(share * total), 100)) if by_tokens else Budget(rows=max(6, int(share * (n - 2))))
    options = {"min_per_stratum": least, "must_keep": forced, "seed": seed}
    try:
        selection = select_rows(pool, budget, method="targeted", duplicate_of=duplicate_of, contaminated=out, **options)  # type: ignore[arg-type]
    except InputError as error:  # small pools cannot hold it all, which is said
        if "budget" not in str(error):
            raise
        return
    taken = selection.taken
    assert taken is not None
    reasons = np.asarray(selection.reasons)[selection.reason]
    assert (reasons[:2] == "must keep").all()
    assert (reasons[n - 2 :] == ["contaminated", "duplicate"]).all()
    spent = int(pool.n_response[selection.selected].sum())
    if budget.rows is not None:
        assert int(selection.selected.sum()) == budget.rows
    else:
        left = (budget.tokens or 0) - spent
        assert left >= 0
        assert (pool.n_response[(reasons == "budget")] > left).all()
    assert (taken.turn >= 0).tolist() == (reasons == "picked").tolist()
    assert sorted(taken.turn[taken.turn >= 0].tolist()) == list(range(int((taken.turn >= 0).sum())))
    # Tasks take turns, and each task serves all its queries before it serves one twice.
    assert pool.target is not None
    for t in range(n_tasks):
        mine = np.flatnonzero(pool.target.task == t)
        served = np.bincount(taken.query[taken.task == t] - 100, minlength=len(pool.target))[mine]
        assert served.max() - served.min() <= 1
    by_task = np.bincount(taken.task[taken.task >= 0], minlength=n_tasks)
    assert by_task.max() - by_task.min() <= 1
    order = rng.permutation(n)
    assert pool.target is not None
    shuffled = Pool(
        pool.row_id[order], pool.score[order], pool.n_response[order], pool.strata[order], pool.strata_names,
        target=pool.target.of_rows(order),
    )  # fmt: skip
    again = select_rows(
        shuffled, budget, method="targeted", duplicate_of=duplicate_of[order], contaminated=out[order], **options  # type: ignore[arg-type]
    )  # fmt: skip
    assert again.kept.tolist() == selection.kept.tolist()
    assert again.taken is not None
    for name in ("query", "task", "turn"):
        assert getattr(again.taken, name).tolist() == getattr(taken, name).tolist()


def test_short_lists_are_made_anew_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that are alike want the same rows, and go through their lists."""
    pool = make_pool(300, [0] * 12 + [1] * 3, seed=4, coarse=True)
    expected = by_hand(pool, Budget(rows=250))
    monkeypatch.setattr("instruct_prune.select.turns.LISTED", 15)
    monkeypatch.setattr("instruct_prune.select.turns.SPARE", 3)
    monkeypatch.setattr("instruct_prune.select.target.BLOCK", 7)
    taken = select_rows(pool, Budget(rows=250), method="targeted").taken
    assert taken is not None
    turn = {int(t): (int(pool.row_id[i]), int(taken.query[i]) - 100) for i, t in enumerate(taken.turn) if t >= 0}
    assert [turn[i] for i in range(250)] == expected


def test_a_stratum_goes_on_with_the_query_whose_turn_it_is() -> None:
    pool = make_pool(4, [0, 0])
    assert pool.target is not None
    turns = Turns(pool.target, pool.row_id)
    for row in range(4):
        turns.spend(np.array([row]), np.ones(1, dtype=np.int64), np.ones(1, dtype=bool), 1)
    assert turns.taken.query.tolist() == [100, 101, 100, 101]


def test_rows_that_must_stay_out_are_not_kept_by_force() -> None:
    pool = make_pool(5, [0])
    out = np.array([False, True, False, False, False])
    with pytest.raises(InputError, match=r"row 3 .* must be kept, and repeats a row"):
        select_rows(pool, Budget(rows=2), method="targeted", must_keep=[3], contaminated=out)
    with pytest.raises(InputError, match="only 4 are left"):
        select_rows(pool, Budget(rows=5), method="random", contaminated=out)
