"""What a study says while it goes on; training is played."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instruct_prune.prove import study as module
from instruct_prune.prove.arms import Arm
from instruct_prune.prove.readings import Judged, Readings
from instruct_prune.prove.study import Study


class Slow:
    """A bench whose arms take a minute, by its own clock."""

    tasks = ()
    clock = 0.0

    def identity(self, arm: Arm) -> str:
        return f"{arm.seed:012d}"

    def tokens(self, arm: Arm) -> tuple[int, int]:
        return 10, 20

    def run(self, arm: Arm) -> Judged:
        self.clock += 60
        return Judged({"code": Readings(*[1.0] * 6)})


def test_while_an_arm_is_to_come_there_is_time_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "arms").mkdir()
    bench: Any = Slow()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: bench.clock))
    study = Study(tmp_path, bench)
    study.expect(2, 30)  # planned for arms that are faster than these
    study.finish([Arm("random", "", seed, (0, 1), 1, 1.0, 1e-4) for seed in (0, 1)])
    assert re.findall(r"about (\S+) left", capsys.readouterr().err) == ["1:00", "0:00"]
