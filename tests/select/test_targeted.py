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
from instruct_prune.select.targeted import attribute


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
    found = attribute(pool, selection.selected)
    assert pool.target is not None
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
    found = attribute(pool, select_rows(pool, Budget(rows=8), method="targeted").selected)
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
    found = attribute(pool, selection.selected)
    # a: row 0 (5); b: row 1 (9); a: row 2 (3); b: row 4 (7). Row ids are three times the positions.
    assert selection.kept.tolist() == [0, 3, 6, 12]
    assert found.turn.tolist() == [0, 1, 2, -1, 3, -1]
    assert found.task.tolist() == [0, 1, 0, -1, 1, -1]
    assert found.query.tolist() == [-1] * 6
    assert found.similarity.tolist() == [5, 9, 3, 2, 7, 0]
