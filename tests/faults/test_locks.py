"""Two commands in one run folder at once: the second is told who is there; no crash leaves a folder locked."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fault_runs import Command, Fault, Send, Told, differing, stands_still

from instruct_prune.cli import main
from instruct_prune.errors import IncompleteRunError, InputError
from instruct_prune.measure import heartbeat
from instruct_prune.run import lock
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.lock import alone

Call = Callable[..., Told]


@contextmanager
def standing_still(words: list[str], out: Path, at: str, log: Path) -> Iterator[Command]:
    """A command that was stopped (SIGSTOP) where it renames a file, inside its run folder; it goes on afterwards."""
    command = Command([*words, "--out", str(out)], log, Fault("os.rename", at, Send(signal.SIGSTOP)))
    while not stands_still(command.pid):
        assert command.running, command.text
        time.sleep(0.01)
    yield command
    command.send(signal.SIGCONT)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks at /proc to see that a process stands still")
def test_the_second_is_told_who_works_here_and_the_first_is_not_disturbed(
    score_words: list[str], undisturbed: Path, run_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "RUN"
    others: list[list[str]] = [
        score_words,  # the same
        [*score_words, "--subnets", "perplexity", "--restart", "score"],  # another configuration
        ["select", "--keep", "5", "--clusters", "none"],
        ["embed", "--embedder", "model"],
        ["export"],
    ]
    with standing_still(run_words, out, "parts/score/dense/*1.parquet", tmp_path / "log") as first:
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file() and path.name != ".lock"}
        for words in others:
            assert main([*words, "--out", str(out)]) == 2, words
            told = capsys.readouterr().err
            assert "is in use by `instruct-prune run --data" in told
            assert f"(process {first.pid} on " in told
            assert ", since 20" in told
        assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == before
    assert first.end().is_clean(0)
    assert differing(out, undisturbed) == []
    assert not (out / ".holder.json").exists()


def test_reading_waits_for_nobody(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with alone(RunFolder(finished)):
        for words in (["show", str(finished)], ["compare", str(finished)], ["correlate", str(finished)]):
            assert main(words) == 0
        assert main(["report", str(finished)]) == 2  # it writes
        assert f"(process {os.getpid()} on " in capsys.readouterr().err


def test_a_crash_leaves_no_lock(score_words: list[str], call: Call, tmp_path: Path) -> None:
    out = tmp_path / "RUN"
    assert call(score_words, out, Fault("os.rename", "scores.parquet", Send(signal.SIGKILL))).code == -signal.SIGKILL
    assert json.loads((out / ".holder.json").read_text())["state"] == "running"
    assert call(score_words, out).is_clean(0)


def test_the_lock_may_be_entered_again_inside_and_is_free_afterwards(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "RUN")
    with alone(folder):
        with alone(folder):
            assert folder.locked
        with pytest.raises(InputError, match="in use"), alone(RunFolder(folder.path)):
            pass
    with alone(RunFolder(folder.path)):
        pass
    assert RunFolder(folder.path).path.exists()  # a folder with nothing but a lock is as good as empty


# ---- what network file systems do ----


def of_another_machine(folder: Path) -> None:
    holder = {"count": 1, "state": "running", "command": "instruct-prune score", "pid": 7, "host": "node-2",
              "machine": "another", "since": "2026-01-01 00:00:00+00:00"}  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / ".holder.json").write_text(json.dumps(holder))


def test_a_holder_on_another_machine_that_beats_is_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where each machine grants its own locks: we got the lock, and yet somebody works here."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    monkeypatch.setattr(lock, "still_beats", lambda holder: True)
    of_another_machine(tmp_path / "RUN")
    with pytest.raises(InputError, match="process 7 on node-2, since 2026-01-01"), alone(RunFolder(tmp_path / "RUN")):
        pass


def test_a_holder_on_another_machine_that_is_silent_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_SECONDS", 0.05)
    of_another_machine(tmp_path / "RUN")
    with alone(RunFolder(tmp_path / "RUN")):
        assert json.loads((tmp_path / "RUN" / ".holder.json").read_text())["pid"] == os.getpid()
    assert "node-2" in capsys.readouterr().err


def test_a_beat_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_SECONDS", 30.0)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.01)
    with heartbeat.Heartbeat(tmp_path / "beat", {}, 0.01):
        assert heartbeat.still_beats(tmp_path / "beat")
    monkeypatch.setattr(heartbeat, "DEAD_AFTER_SECONDS", 0.05)
    assert not heartbeat.still_beats(tmp_path / "beat")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", none)
    folder = RunFolder(tmp_path / "RUN")
    with alone(folder), pytest.raises(InputError, match="in use"), alone(RunFolder(folder.path)):
        pass
    with alone(RunFolder(folder.path)):
        pass


def test_a_folder_that_is_gone_is_said_instead_of_what_came_of_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "RUN")
    with pytest.raises(IncompleteRunError, match="was moved or removed while this command worked in it"), alone(folder):
        folder.path.rename(tmp_path / "moved")
        raise AssertionError("whatever came of it")
    with pytest.raises(ValueError, match="as it is"), alone(RunFolder(tmp_path / "moved")):
        raise ValueError("as it is")
