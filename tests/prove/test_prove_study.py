"""What a study says while it goes on; training is played."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

from instruct_prune.prove.arms import Arm
from instruct_prune.prove.readings import Judged, Readings
from instruct_prune.prove.study import Study


class Slow:
    """A bench whose arms take a second and a little more."""

    tasks = ()

    def identity(self, arm: Arm) -> str:
        return f"{arm.seed:012d}"

    def tokens(self, arm: Arm) -> tuple[int, int]:
        return 10, 20

    def run(self, arm: Arm) -> Judged:
        time.sleep(1.1)
        return Judged({"code": Readings(*[1.0] * 6)})


def test_while_an_arm_is_to_come_there_is_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "arms").mkdir()
    bench: Any = Slow()
    study = Study(tmp_path, bench)
    study.expect(2, 0.5)  # planned for arms that are faster than these
    study.finish([Arm("random", "", seed, (0, 1), 1, 1.0, 1e-4) for seed in (0, 1)])
    assert re.findall(r"about (\S+) left", capsys.readouterr().err) == ["0:01", "0:00"]
