"""The loop: parts, memory that runs out, rows that fail, ranks that fall silent. Closed-form fakes; no model."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from instruct_prune.encode.batching import Plan, plan_batches
from instruct_prune.errors import IncompleteRunError
from instruct_prune.measure import heartbeat
from instruct_prune.measure.engine import Planned, Work, measure_parts, share
from instruct_prune.measure.heartbeat import Heartbeat, beat_of_rank, wait_for_ranks
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import Loss, State
from instruct_prune.measure.stored import find, merge_columns
from instruct_prune.measure.subnet import DENSE

LOSS = Measurement(DENSE, Loss())


class Fake:
    """Loss of item x is x / 10; ``limit`` rows fit in memory, item 13 never does."""

    def __init__(self, limit: int = 100) -> None:
        self.module = self.backbone = nn.Sequential(nn.Linear(2, 2))
        self.limit = limit
        self.sizes: list[int] = []

    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None: ...

    def collate(self, items: Sequence[int], prefix: int) -> list[int]:
        return list(items)

    def forward(self, batch: list[int]) -> dict[int | None, Tensor]:
        if len(batch) > self.limit or 13 in batch:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.sizes.append(len(batch))
        return {None: torch.tensor(batch)}

    def losses(self, batch: list[int], states: dict[int | None, Tensor], depth: int | None) -> Tensor:
        return states[None] / 10

    def pool(self, batch: list[int], states: dict[int | None, Tensor], depth: int | None, how: str) -> Tensor:
        return torch.stack([states[None], -states[None], states[None] ** 2], dim=1).float()

    def width(self, depth: int | None) -> int:
        return 3


def work_of(folder: Path, n: int = 20, batch_tokens: int = 40, fingerprint: str = "f") -> Work:
    plan = plan_batches(np.arange(n), np.full(n, 10, dtype=np.int32), batch_tokens=batch_tokens)
    items = [i if i != 13 else 14 for i in range(n)]
    return Work((Planned(Pass(DENSE, "full", (LOSS,)), items, plan),), PartStore(folder, fingerprint))


def changed(work: Work, **fields: Any) -> Work:
    """The same with another pass, or other items."""
    (planned,) = work.passes
    return Work((replace(planned, **fields),), work.parts)


def test_parts_then_merge(tmp_path: Path) -> None:
    work = work_of(tmp_path)
    assert len(work.missing()) == 5
    measure_parts(Fake(), work, work.missing())
    losses, errors = merge_columns(work, 20)
    np.testing.assert_allclose(losses[LOSS][:13], np.arange(13) / 10, rtol=1e-6)
    assert errors == {}
    assert work.missing() == []


def test_vectors_lie_beside_losses_and_are_read_back_for_the_rows_that_are_asked_for(tmp_path: Path) -> None:
    vectors = Measurement(DENSE, State("mean"))
    work = changed(work_of(tmp_path), a_pass=Pass(DENSE, "full", (LOSS, vectors)))
    fake = Fake()
    measure_parts(fake, work, work.missing())
    assert len(fake.sizes) == 5, "both are read off one forward pass"
    losses, _ = merge_columns(work, 20)
    assert list(losses) == [LOSS], "vectors are no column of the table"
    stored = find(work, "mean_dense")
    assert stored.save(tmp_path / "mean.npy", np.arange(20)) == 3
    items = np.asarray([i if i != 13 else 14 for i in range(20)])
    np.testing.assert_array_equal(np.load(tmp_path / "mean.npy"), np.stack([items, -items, items**2], axis=1))
    np.testing.assert_allclose(losses[LOSS], items / 10, rtol=1e-6)


def test_vectors_of_a_row_that_never_fits_are_missing_too(tmp_path: Path) -> None:
    vectors = Measurement(DENSE, State("mean"))
    work = changed(work_of(tmp_path), a_pass=Pass(DENSE, "full", (vectors, LOSS)), items=list(range(20)))
    measure_parts(Fake(), work, work.missing())
    find(work, "mean_dense").save(tmp_path / "mean.npy", np.arange(20))
    found = np.load(tmp_path / "mean.npy")
    assert np.flatnonzero(np.isnan(found).all(axis=1)).tolist() == [13]
    assert int(np.isnan(found).any(axis=1).sum()) == 1


@given(n=st.integers(0, 50), world=st.integers(1, 7))
def test_shares_cover_everything_once(n: int, world: int) -> None:
    todo = [(0, i) for i in range(n)]
    shares = [share(todo, rank, world) for rank in range(world)]
    assert sorted(part for one in shares for part in one) == todo
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_batch_that_does_not_fit_is_halved_and_only_that_one(tmp_path: Path) -> None:
    work, fake = work_of(tmp_path, n=16, batch_tokens=80), Fake(limit=3)
    measure_parts(fake, work, work.missing())
    assert fake.sizes == [2] * 8
    losses, errors = merge_columns(work, 16)
    assert not errors
    assert np.isfinite(losses[LOSS]).all()


def test_a_row_that_never_fits_fails_alone_with_the_reason(tmp_path: Path) -> None:
    work = changed(work_of(tmp_path), items=list(range(20)))
    measure_parts(Fake(), work, work.missing())
    losses, errors = merge_columns(work, 20)
    assert list(errors) == [13]
    assert "out of memory" in errors[13]
    assert np.flatnonzero(np.isnan(losses[LOSS])).tolist() == [13]


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    class Broken(Fake):
        def forward(self, batch: list[int]) -> dict[int | None, Tensor]:
            raise RuntimeError("shape mismatch")

    work = work_of(tmp_path)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        measure_parts(Broken(), work, work.missing())


@pytest.mark.parametrize("damage", ["torn", "flipped", "foreign", "gone"])
def test_damaged_parts_are_done_again(tmp_path: Path, damage: str) -> None:
    work = work_of(tmp_path)
    measure_parts(Fake(), work, work.missing())
    path = work.parts.path("dense", 2)
    whole = path.read_bytes()
    if damage == "torn":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "flipped":
        middle = whole.index(b"\x28\xb5\x2f\xfd") + 6  # inside the first compressed page
        path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :])
    elif damage == "foreign":
        other = work_of(tmp_path / "other", fingerprint="another configuration")
        measure_parts(Fake(), other, [(0, 2)])
        other.parts.path("dense", 2).rename(path)
    else:
        path.unlink()
    assert work.missing() == [(0, 2)]
    with pytest.raises(IncompleteRunError, match="4 rows of dense"):
        merge_columns(work, 20)
    measure_parts(Fake(), work, work.missing())
    assert path.read_bytes() == whole


def test_sigterm_lets_the_part_in_hand_finish(tmp_path: Path) -> None:
    class Preempted(Fake):
        def forward(self, batch: list[int]) -> dict[int | None, Tensor]:
            if len(self.sizes) == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().forward(batch)

    work = work_of(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(IncompleteRunError, match="stopped by signal 15"):
        measure_parts(Preempted(), work, work.missing())
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(work.missing()) == 3
    assert "3 of 5 parts, 12 rows, of dense" in work.describe(work.missing())


def test_waiting_ends_when_ranks_are_done_or_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_SECONDS", 0.5)
    with Heartbeat(beat_of_rank(tmp_path, 1)):
        pass
    (tmp_path / "rank-0002.json").write_text('{"count": 3, "state": "running"}')  # silent from now on
    wait_for_ranks(tmp_path, [1, 2, 3])  # rank 3 never appeared


def test_an_exception_marks_the_rank_as_stopped(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Heartbeat(beat_of_rank(tmp_path, 4)):
        raise ZeroDivisionError
    assert "stopped" in (tmp_path / "rank-0004.json").read_text()
