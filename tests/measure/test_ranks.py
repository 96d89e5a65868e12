"""What one of several processes finds, and what it does where another one fails; the other is played."""

from __future__ import annotations

from typing import Any

import pytest

from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure.ranks import Ranks


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
