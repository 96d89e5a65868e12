"""The plan: every row once, within the budget, the same whatever the number of processes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.encode.batching import padded, plan_batches, shared_prefixes

LENGTHS = st.lists(st.integers(2, 300), min_size=1, max_size=200)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 2000))
def test_every_row_is_planned_once_and_fits(lengths: list[int], batch_tokens: int) -> None:
    n = np.asarray(lengths, dtype=np.int32)
    rows = np.arange(len(n), dtype=np.int64) * 3 + 1  # positions with gaps, as after rejects
    plan = plan_batches(rows, n, batch_tokens=batch_tokens)
    batches = [batch for chunk in plan.chunks for batch in chunk]
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == rows.tolist()
    length_of = dict(zip(rows.tolist(), lengths, strict=True))
    for batch in batches:
        assert {int(padded(np.asarray([length_of[int(i)]]))[0]) for i in batch.rows} == {batch.width}
        assert len(batch.rows) == 1 or batch.width * len(batch.rows) <= batch_tokens
    assert [b.width for b in batches] == sorted((b.width for b in batches), reverse=True)
    assert plan.n_tokens == sum(lengths)
    assert plan.n_tokens + plan.n_padding == sum(b.width * len(b.rows) for b in batches)


def test_widths_have_four_binary_digits() -> None:
    lengths = np.asarray([1, 4, 15, 16, 17, 18, 19, 32, 33, 36, 37, 100, 129, 1000, 2048], dtype=np.int32)
    assert padded(lengths).tolist() == [1, 4, 15, 16, 18, 18, 20, 32, 36, 36, 40, 104, 144, 1024, 2048]


def test_padding_is_four_percent_on_average() -> None:
    lengths = np.arange(32, 2048, dtype=np.int32)
    share = (padded(lengths) - lengths) / lengths
    assert share.min() == 0
    assert share.max() < 0.125
    assert share.mean() < 0.045


@given(lengths=LENGTHS, more=LENGTHS)
def test_other_rows_do_not_change_the_width_of_a_row(lengths: list[int], more: list[int]) -> None:
    def widths(n: list[int]) -> dict[int, int]:
        plan = plan_batches(np.arange(len(n)), np.asarray(n, dtype=np.int32), batch_tokens=640)
        return {int(row): batch.width for chunk in plan.chunks for batch in chunk for row in batch.rows}

    alone, together = widths(lengths), widths([*lengths, *more])
    assert alone.items() <= together.items()


def test_rows_that_run_alone_are_not_padded() -> None:
    plan = plan_batches(np.arange(3), np.asarray([33, 33, 33]), batch_tokens=640, alone=np.asarray([True, False, True]))
    assert [(b.width, b.rows.tolist()) for chunk in plan.chunks for b in chunk] == [(36, [1]), (33, [0]), (33, [2])]


@given(lengths=LENGTHS, seed=st.integers(0, 9))
def test_row_order_does_not_change_which_lengths_meet(lengths: list[int], seed: int) -> None:
    n = np.asarray(lengths, dtype=np.int32)
    shuffled = np.random.default_rng(seed).permutation(len(n))
    one = plan_batches(np.arange(len(n)), n, batch_tokens=500)
    two = plan_batches(np.arange(len(n)), n[shuffled], batch_tokens=500)
    widths = [[(b.width, len(b.rows)) for b in chunk] for chunk in one.chunks]
    assert widths == [[(b.width, len(b.rows)) for b in chunk] for chunk in two.chunks]


def rows_of_tokens(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offset = np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    return np.asarray([t for r in rows for t in r], dtype=np.int32), offset


def test_shared_prefixes_are_the_longest_common_ones() -> None:
    first, second = list(range(100, 130)), list(range(200, 225))
    rows = [[*first, i, i + 1, 7, 7] for i in range(10)] + [[*second, i, 5, 6] for i in range(9)] + [[1, 2, 3]]
    ids, offset = rows_of_tokens(rows)
    targets = np.asarray([len(r) - 1 for r in rows], dtype=np.int32)
    group, prefixes = shared_prefixes(ids, offset, np.arange(len(rows)), targets)
    assert [p.tolist() for p in prefixes] == [first, second]
    assert group.tolist() == [0] * 10 + [1] * 9 + [-1]


def test_a_prefix_never_reaches_the_state_that_predicts_the_first_target() -> None:
    row = list(range(40))
    ids, offset = rows_of_tokens([row] * 12)
    group, prefixes = shared_prefixes(ids, offset, np.arange(12), np.full(12, 30, dtype=np.int32))
    assert len(prefixes[0]) == 29
    plan = plan_batches(
        np.arange(12), np.full(12, 40, dtype=np.int32), batch_tokens=100, group=group, prefixes=prefixes
    )
    assert plan.n_tokens == 12 * 11
    assert plan.n_padding == 0


def test_few_rows_share_nothing() -> None:
    ids, offset = rows_of_tokens([list(range(40))] * 5)
    group, prefixes = shared_prefixes(ids, offset, np.arange(5), np.full(5, 30, dtype=np.int32))
    assert prefixes == ()
    assert set(group.tolist()) == {-1}
