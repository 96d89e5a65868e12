"""What one of several processes finds, and what it does where another one fails; the other is played."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.ranks import Ranks, leave_group


def two(monkeypatch: pytest.MonkeyPatch, rank: int, other: Any) -> Ranks:
    """This process, beside one that tells ``other``."""

    def gather(mine: list[Any]) -> list[Any]:
        if isinstance(other, Exception):
            raise other
        return [*mine, other] if rank == 0 else [other, *mine]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    ranks = Ranks(alone=True)
    ranks.rank, ranks.world = rank, 2
    return ranks


def fails() -> int:
    raise InputError("of this one")


def test_alone() -> None:
    assert Ranks(alone=True).on_all(lambda: 3) == [3]


def test_what_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two(monkeypatch, 0, ([2], "")).on_all(lambda: 1) == [1, 2]
    assert two(monkeypatch, 1, ([2], "")).on_all(lambda: 1) == [2, 1]


def test_what_the_main_one_found(monkeypatch: pytest.MonkeyPatch) -> None:
    assert two(monkeypatch, 0, ([None], "")).on_main(lambda: 1) == 1
    assert two(monkeypatch, 1, ([2], "")).on_main(fails) == 2


def test_the_main_process_tells_the_error_of_any(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="of the other"):
        two(monkeypatch, 0, ([], "of the other")).on_all(lambda: 1)
    with pytest.raises(InputError, match="of this one"):
        two(monkeypatch, 0, ([2], "")).on_all(fails)
    with pytest.raises(SystemExit) as ended:
        two(monkeypatch, 1, ([2], "")).on_all(fails)
    assert ended.value.code == 2
    with pytest.raises(SystemExit):
        two(monkeypatch, 1, ([], "of the main one")).on_all(lambda: 1)


def test_a_process_that_died(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IncompleteRunError, match="run the same command again"):
        two(monkeypatch, 0, RuntimeError("connection closed by peer")).on_all(lambda: 1)


def test_what_holds_the_group_goes_before_the_group(tmp_path: Path) -> None:
    """A model in a cycle that were freed after the group would wait for the group's threads, and they for Python's lock."""
    seen: list[bool] = []

    class Holder:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            seen.append(torch.distributed.is_initialized())

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    Holder()
    leave_group()
    assert seen == [True]
    assert not torch.distributed.is_initialized()
