"""Rows behind demonstrations: tokens, masks, lengths and shared beginnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.encode.item import Encoded, Status, Tokens
from instruct_prune.encode.shown import Shown
from instruct_prune.encode.store import TokenStore, write_store

BOS = 1


def store(folder: Path, rows: list[list[int]], prompts: list[int]) -> TokenStore:
    encoded = [
        Encoded(i, np.asarray(ids, dtype=np.int32), np.arange(len(ids)) >= prompt, Status.OK)
        for i, (ids, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    return write_store(folder, ((row, "file", row.row_id) for row in encoded))


def tokens(*ids: int) -> Tokens:
    return Tokens(np.asarray(ids, dtype=np.int32), np.ones(len(ids), dtype=np.bool_))


def test_by_hand(tmp_path: Path) -> None:
    own = store(tmp_path, [[BOS, 10, 11], [BOS, 20, 21, 22], [BOS, 30, 31]], [2, 2, 1])
    asked = [tokens(BOS, 5), tokens(BOS, 6, 6), tokens(BOS, 7)]
    nearest = np.asarray([[2, 0], [1, 0], [0, 1]])
    shown = Shown.of(own, asked, nearest, BOS, longest=8)
    assert shown[0].ids.tolist() == [BOS, 5, 7, 10, 11]  # in one order, with one BOS
    assert shown[0].response_mask.tolist() == [False] * 4 + [True]
    assert shown[1].ids.tolist() == [BOS, 6, 6, 20, 21, 22]  # both would be nine tokens: the nearest stays
    assert shown[1].response_mask.tolist() == [False] * 4 + [True] * 2
    assert shown[2].ids.tolist() == [BOS, 5, 6, 6, 30, 31]
    assert shown.lengths.tolist() == [5, 6, 6]
    assert shown.before.tolist() == [[0, 2], [1, -1], [0, 1]]
    alone = Shown.of(own, asked, nearest, BOS, longest=4)
    assert [alone[i].ids.tolist() for i in range(3)] == [own[i].ids.tolist() for i in range(3)]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shown")


@given(data=st.data())
def test_prefixes_are_beginnings_and_nothing_is_scored_in_them(data: st.DataObject, places: Path) -> None:
    bos = data.draw(st.sampled_from([BOS, None]))
    lengths = data.draw(st.lists(st.integers(2, 40), min_size=20, max_size=40))
    first = [BOS] if bos else [2]
    rows = [first + [3 + (t * i if t > 20 else t) % 7 for t in range(n - 1)] for i, n in enumerate(lengths)]
    prompts = [data.draw(st.integers(1, n - 1)) for n in lengths]
    own = store(places, rows, prompts)
    asked = [
        tokens(*first, *range(50, 50 + n)) for n in data.draw(st.lists(st.integers(0, 12), min_size=3, max_size=3))
    ]
    k = data.draw(st.integers(1, 3))
    nearest = np.asarray([data.draw(st.permutations(range(3))) for _ in rows])[:, :k]
    shown = Shown.of(own, asked, nearest, bos, longest=60)
    every = [shown[i] for i in range(len(rows))]
    assert shown.lengths.tolist() == [len(one.ids) for one in every]
    for i, one in enumerate(every):
        assert len(one.ids) <= 60
        assert one.ids[one.response_mask].tolist() == rows[i][prompts[i] :]  # the same tokens are scored
        assert (one.ids == BOS).sum() <= 1
    group, prefixes = shown.shared_prefixes(np.arange(len(rows)))
    for i, one in enumerate(every):
        if group[i] >= 0:
            prefix = prefixes[group[i]]
            assert one.ids[: len(prefix)].tolist() == prefix.tolist()
            assert not one.response_mask[: len(prefix) + 1].any()


def test_rows_with_the_same_demonstrations_share_them(tmp_path: Path) -> None:
    rows = [[BOS, *range(10, 40), 50 + i] for i in range(20)]
    own = store(tmp_path, rows, [31] * 20)
    nearest = np.asarray([[0, 1]] * 9 + [[1, 0]] * 3 + [[2, 1]] * 8)
    shown = Shown.of(own, [tokens(BOS, 5), tokens(BOS, 6), tokens(BOS, 7)], nearest, BOS, longest=99)
    group, prefixes = shown.shared_prefixes(np.arange(20))
    assert group.tolist() == [0] * 12 + [1] * 8
    assert [prefix.tolist() for prefix in prefixes] == [
        [
            BOS,
            5,
            6,
            *range(10, 39),
        ],  # and what the rows share of their own, up to the token before the last of the prompt
        [BOS, 6, 7, *range(10, 39)],
    ]
