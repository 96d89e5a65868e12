"""The loop: parts, memory that runs out, rows that fail, ranks that fall silent. Closed-form fakes; no model."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from instruct_prune.measure.passes import Pass
from torch import Tensor, nn

from instruct_prune.encode.batching import Plan, plan_batches
from instruct_prune.errors import IncompleteRunError
from instruct_prune.measure import engine as scorer
from instruct_prune.measure.engine import Heartbeat, Work, merge_parts, score_parts, share, wait_for_ranks
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.run.folder import PartStore

DENSE = SubnetSpec("dense")


class Fake:
    """Loss of item x is x / 10; ``limit`` rows fit in memory, item 13 never does."""

    def __init__(self, limit: int = 100) -> None:
        self.model = nn.Sequential(nn.Linear(2, 2))
        self.limit = limit
        self.sizes: list[int] = []

    def fit(self, items: Any) -> None: ...

    def start_pass(self, subnets: tuple[SubnetSpec, ...], plan: Plan) -> None: ...

    def collate(self, items: Sequence[int], prefix: int) -> list[int]:
        return list(items)

    def losses(self, batch: list[int]) -> Tensor:
        if len(batch) > self.limit or 13 in batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.sizes.append(len(batch))
        return torch.tensor(batch)[:, None] / 10


def work_of(folder: Path, n: int = 20, batch_tokens: int = 40, fingerprint: str = "f") -> Work:
    plan = plan_batches(np.arange(n), np.full(n, 10, dtype=np.int32), batch_tokens=batch_tokens)
    items = [i if i != 13 else 14 for i in range(n)]
    return Work((Pass((DENSE,)),), (items,), (plan,), PartStore(folder, fingerprint))


def test_parts_then_merge(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    assert len(work.missing()) == 5
    score_parts(Fake(), work, work.missing())
    losses, errors = merge_parts(work, 20)
    np.testing.assert_allclose(losses[DENSE][:13], np.arange(13) / 10, rtol=1e-6)
    assert errors == {}
    assert work.missing() == []


@given(n=st.integers(0, 50), world=st.integers(1, 7))
def test_shares_cover_everything_once(n: int, world: int) -> None:
    todo = [(0, i) for i in range(n)]
    shares = [share(todo, rank, world) for rank in range(world)]
    assert sorted(part for one in shares for part in one) == todo
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_does_not_fit_is_halved_and_only_that_one(tmp_path: Path) -> None:
    work, fake = work_of(tmp_path, n=16, batch_tokens=80), Fake(limit=3)
    score_parts(fake, work, work.missing())
    assert fake.sizes == [2] * 8
    losses, errors = merge_parts(work, 16)
    assert not errors
    assert np.isfinite(losses[DENSE]).all()


def test_a_row_that_never_fits_fails_alone_with_the_reason(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    items = list(range(20))
    work = Work(work.passes, (items,), work.plans, work.parts)
    score_parts(Fake(), work, work.missing())
    losses, errors = merge_parts(work, 20)
    assert list(errors) == [13]
    assert "out of memory" in errors[13]
    assert np.flatnonzero(np.isnan(losses[DENSE])).tolist() == [13]


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    class Broken(Fake):
        def losses(self, batch: list[int]) -> Tensor:
            raise RuntimeError("shape mismatch")

    work = work_of(tmp_path)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        score_parts(Broken(), work, work.missing())


@pytest.mark.parametrize("damage", ["torn", "flipped", "foreign", "gone"])
def test_damaged_parts_are_done_again(tmp_path: Path, damage: str) -> None:
    work = work_of(tmp_path)
    score_parts(Fake(), work, work.missing())
    path = work.parts.path("dense", 2)
    whole = path.read_bytes()
    if damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = whole.index(b"\x28\xb5\x2f\xfd") + 6  # inside the first compressed page
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    elif damage == "foreign":
        other = work_of(tmp_path / "other", fingerprint="another configuration")
        score_parts(Fake(), other, [(0, 2)])
        other.parts.path("dense", 2).rename(path)
    else:
        path.unlink()
    assert work.missing() == [(0, 2)]
    with pytest.raises(IncompleteRunError, match="4 rows of dense"):
        merge_parts(work, 20)
    score_parts(Fake(), work, work.missing())
    assert path.read_bytes() == whole


def test_sigterm_lets_the_part_in_hand_finish(tmp_path: Path) -> None:
    class Preempted(Fake):
        def losses(self, batch: list[int]) -> Tensor:
            if len(self.sizes) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().losses(batch)

    work = work_of(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(IncompleteRunError, match="stopped by signal 15"):
        score_parts(Preempted(), work, work.missing())
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(work.missing()) == 3
    assert "3 of 5 parts, 12 rows, of dense" in work.describe(work.missing())


def test_waiting_ends_when_ranks_are_done_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "DEAD_AFTER_SECONDS", 0.5)
    with Heartbeat(tmp_path, 1):
        pass
    (tmp_path / "rank-0002.json").write_text('{"count": 3, "state": "running"}')  # silent from now on
    wait_for_ranks(tmp_path, [1, 2, 3])  # rank 3 never appeared


def test_an_exception_marks_the_rank_as_stopped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Heartbeat(tmp_path, 4):
        raise ZeroDivisionError
    assert "stopped" in (tmp_path / "rank-0004.json").read_text()
