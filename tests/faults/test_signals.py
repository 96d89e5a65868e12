"""Commands that are ended by a signal, at every stage: no traceback, and the same command ends with the right bytes."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_runs import SOME_STEPS, Command, Fault, Send, Told, differing, leftovers, stands_still

Call = Callable[..., Told]


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 143, "run the same command again"),
        (signal.SIGINT, 130, "run the same command again"),
    ],
)
def test_a_run_that_is_stopped_at_every_stage_in_turn_ends_with_the_right_bytes(
    number: int, code: int, told: str, run_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    out = tmp_path / "RUN"
    for path in SOME_STEPS:
        stopped = call(run_words, out, Fault("os.rename", path, Send(number)))
        assert stopped.is_clean(code), path
        assert told in stopped.text, path
        assert number == signal.SIGKILL or leftovers(out) == [], path
    assert call(run_words, out).is_clean(0)
    assert differing(out, undisturbed) == []
    assert leftovers(out) == []


def test_before_there_is_a_manifest(score_words: list[str], call: Call, tmp_path: Path) -> None:
    """What is left of the very first file does not make the folder somebody else's."""
    out = tmp_path / "RUN"
    assert call(score_words, out, Fault("os.rename", "manifest.json", Send(signal.SIGKILL))).code == -signal.SIGKILL
    assert [path.name for path in out.glob(".manifest.json.*.tmp")]
    assert call(score_words, out).is_clean(0)


# ---- several processes ----


def ranks(n: int, words: list[str], folder: Path, fault: Fault | None = None, of_rank: int = 1) -> list[Command]:
    """Processes with the environment that torchrun gives its workers."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return [
        Command(
            words, folder / f"log-{rank}", fault if rank == of_rank else None, give_up_soon, RANK=str(rank),
            LOCAL_RANK=str(rank), WORLD_SIZE=str(n), LOCAL_WORLD_SIZE=str(n), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )
        for rank in range(n)
    ]  # fmt: skip


def give_up_soon() -> None:
    """A silent rank is given up after two seconds."""
    from instruct_prune.measure import heartbeat

    heartbeat.DEAD_AFTER_SECONDS = 2.0


def test_a_rank_that_is_killed(score_words: list[str], undisturbed: Path, call: Call, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    words = [*score_words, "--out", str(out)]
    killed = Fault("os.rename", "parts/score/*.parquet", Send(signal.SIGKILL), nth=2)
    main, other = [rank.end() for rank in ranks(2, words, tmp_path, killed)]
    assert other.code == -signal.SIGKILL
    assert main.is_clean(1)
    assert "a process ended before its parts were written" in main.text
    assert call(score_words, out).is_clean(0)
    assert (out / "scores.parquet").read_bytes() == (undisturbed / "scores.parquet").read_bytes()


def test_a_rank_that_is_killed_while_the_others_wait_for_it(score_words: list[str], call: Call, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    words = [*score_words, "--out", str(out)]
    killed = Fault("os.rename", "items/rows.parquet", Send(signal.SIGKILL))
    main, other = [rank.end() for rank in ranks(2, words, tmp_path, killed, of_rank=0)]
    assert main.code == -signal.SIGKILL
    assert other.is_clean(1)
    assert call(score_words, out).is_clean(0)


def test_a_rank_that_stands_still_is_waited_for_and_then_given_up(
    score_words: list[str], undisturbed: Path, call: Call, tmp_path: Path
) -> None:
    """The main one ends in words; the one that stood still goes on in a folder that was completed meanwhile, and harms nothing."""
    out = tmp_path / "RUN"
    words = [*score_words, "--out", str(out)]
    still = Fault("os.rename", "parts/score/*.parquet", Send(signal.SIGSTOP), nth=2)
    main, other = ranks(2, words, tmp_path, still)
    told = main.end()
    assert told.is_clean(1)
    assert "a process ended before its parts were written" in told.text
    assert call(score_words, out).is_clean(0)
    other.send(signal.SIGCONT)
    assert other.end().is_clean(0, 1)
    assert (out / "scores.parquet").read_bytes() == (undisturbed / "scores.parquet").read_bytes()
    assert call(["select", "--keep", "5", "--clusters", "none"], out).is_clean(0)


def test_a_rank_that_stands_still_for_a_moment_loses_nothing(
    score_words: list[str], undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "RUN"
    still = Fault("os.rename", "parts/score/*.parquet", Send(signal.SIGSTOP), nth=2)
    main, other = ranks(2, [*score_words, "--out", str(out)], tmp_path, still)
    beat = Path("parts") / "alive"
    while not list((out / beat).glob("*/rank-0001.json")):
        time.sleep(0.01)
    while not stands_still(other.pid):
        time.sleep(0.01)
    os.kill(other.pid, signal.SIGCONT)
    assert main.end().is_clean(0)
    assert other.end().is_clean(0)
    assert (out / "scores.parquet").read_bytes() == (undisturbed / "scores.parquet").read_bytes()
